"""Whoever can read a service loads it: claims are given back, and taken over in the same run."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import duckdb
import pytest
from msgspec import structs

from fetcher.config import Config
from fetcher.connector.client import Connector
from fetcher.job import Job
from fetcher.loading.claims import FirstCome
from fetcher.loading.refusals import Refusals
from fetcher.report import Report
from fetcher.simulator import Latency, Size, parse_faults
from fetcher.sinks import make_sink
from tests.http import Site, site
from tests.virtual import run_virtually

SIZE = Size(portfolios=2, enterprises=4, services=30, orders=500, years=0.4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refusals, "CONFIRM_SECONDS", 0.01)


def told(scenario: Callable[[FirstCome, dict[str, Any]], Awaitable[None]]) -> dict[str, Any]:
    """What a scenario noted; in virtual time, in which waiting for nothing is an error."""
    notes: dict[str, Any] = {}

    async def within() -> None:
        await scenario(FirstCome(), notes)

    run_virtually(within)
    return notes


def test_who_asks_first_loads_a_service_and_an_id_is_an_id_whatever_its_case() -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        notes["a"] = await claims.claim("a", ["AB-1", "ab-2"])
        notes["b"] = await claims.claim("b", ["ab-1", "AB-3"])

    assert told(scenario) == {"a": {"AB-1": False, "ab-2": False}, "b": {"AB-3": False}}


def test_a_load_that_begins_again_has_what_it_had_and_gives_back_what_it_sees_no_more() -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        await claims.claim("a", ["x", "y", "z"])
        await claims.claim("b", ["y", "z", "q"])
        claims.begin_again("a")
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                notes["b settles"] = await claims.settle("b", [], [])

            group.start_soon(wait)
            await anyio.sleep(1)
            assert not notes
            notes["a"] = await claims.claim("a", ["X", "y"])
        notes["a settles"] = await claims.settle("a", [], [])
        notes["b settles again"] = await claims.settle("b", [], [])

    assert told(scenario) == {
        "a": {"X": False, "y": False},
        "b settles": {"z": True},
        "b settles again": {},
        "a settles": {},
    }


def test_what_a_load_had_loaded_is_its_own_when_it_begins_again() -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        await claims.claim("a", ["x"])
        await claims.settle("a", [], [])
        claims.begin_again("a")
        notes["b"] = await claims.claim("b", ["x"])
        notes["a"] = await claims.claim("a", ["x"])
        await claims.leave("a", [])
        notes["b settles"] = await claims.settle("b", [], [])
        claims.begin_again("nobody")

    assert told(scenario) == {"b": {}, "a": {"x": False}, "b settles": {"x": False}}


def test_what_is_refused_is_offered_to_the_next_one_that_sees_it_in_its_own_spelling() -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        for name, ids in (("a", ["x", "y"]), ("b", ["X"]), ("c", ["x"])):
            await claims.claim(name, ids)
        async with anyio.create_task_group() as group:

            async def wait(name: str, refused: list[str]) -> None:
                notes[f"{name} after {refused}"] = await claims.settle(name, refused, refused)

            group.start_soon(wait, "b", [])
            group.start_soon(wait, "c", [])
            await anyio.sleep(1)
            assert notes == {}
            await wait("a", ["x"])
            await anyio.sleep(1)
            assert notes == {"a after ['x']": {}, "b after []": {"X": True}}
            await wait("b", ["X"])  # it is refused, too
            await anyio.sleep(1)
            await wait("c", [])

    assert told(scenario) == {
        "a after ['x']": {},
        "b after []": {"X": True},
        "b after ['X']": {},
        "c after []": {},
    }


def test_a_portfolio_that_leaves_gives_back_all_but_what_it_settled() -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        await claims.claim("a", ["x", "y", "z"])
        await claims.claim("b", ["x", "y"])
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                notes["b"] = await claims.settle("b", [], [])

            group.start_soon(wait)
            await anyio.sleep(1)
            await claims.leave("a", ["y"])
        notes["late"] = await claims.claim("c", ["x", "z"])

    assert told(scenario) == {"b": {"x": False, "y": True}, "late": {"z": False}}


@pytest.mark.parametrize("for_others", [True, False])
def test_nobody_waits_for_a_portfolio_that_is_gone(for_others: bool) -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        await claims.claim("a", ["x"])
        await claims.claim("b", ["x", "y"])
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                notes["b"] = await claims.settle("b", [], [])

            group.start_soon(wait)
            await anyio.sleep(1)
            await claims.leave("a", None, for_others=for_others)
        await claims.leave("a", None)  # twice is no harm
        notes["again"] = await claims.settle("b", [], [])

    assert told(scenario) == {"b": {"x": True} if for_others else {}, "again": {}}


def test_two_that_wait_for_each_other_both_come_to_their_end() -> None:
    async def scenario(claims: FirstCome, notes: dict[str, Any]) -> None:
        await claims.claim("a", ["x"])
        await claims.claim("b", ["x", "y"])
        await claims.claim("a", ["y"])
        async with anyio.create_task_group() as group:

            async def wait(name: str) -> None:
                notes[name] = await claims.settle(name, [], [])

            group.start_soon(wait, "a")
            await anyio.sleep(1)
            group.start_soon(wait, "b")

    assert told(scenario) == {"a": {}, "b": {}}


def ids_in(path: Path) -> list[str]:
    if path.suffix == ".duckdb":
        with duckdb.connect(path, read_only=True) as db:
            return [id_ for (id_,) in db.execute("SELECT id::varchar FROM product_service_orders").fetchall()]
    return [json.loads(line)["Id"] for line in path.read_bytes().splitlines()]


def owners_in(path: Path) -> Mapping[str, set[str]]:
    with duckdb.connect(path, read_only=True) as db:
        rows = db.execute("SELECT service_id::varchar, portfolio FROM product_service_orders").fetchall()
    owners: dict[str, set[str]] = {}
    for service, portfolio in rows:
        owners.setdefault(service, set()).add(portfolio)
    return owners


async def run(config: Config, processes: int = 1) -> Report:
    async with Job(config, sink=make_sink(config.sink_url), processes=processes) as job:
        return await job.run()


async def in_turn(here: Site, sink: str, faults: list[str], **options: Any) -> list[Report]:
    """Runs, each under its own faults, with the first portfolio's services seen by both tokens."""
    reports: list[Report] = []
    for text in faults:
        here.platform.faults = parse_faults(f"shared=1,{text}")
        reports.append(await run(here.config(sink, page_size=20), **options))
    return reports


@pytest.mark.parametrize(
    ("kind", "processes", "faults"),
    [
        *(("jsonl", 1, faults) for faults in ("forbid=1", "forbid-enterprises=1", "forbid-services=2", "revoke=12")),
        *(("jsonl", 2, faults) for faults in ("forbid=1", "forbid-services=2", "revoke=12", "revoke=2")),
        ("duckdb", 2, "revoke=14"),
    ],
)
def test_what_the_first_may_not_read_the_second_loads_in_the_same_run(
    kind: str, faults: str, processes: int, tmp_path: Path
) -> None:
    path = tmp_path / f"o.{kind}"

    async def check() -> None:
        async with site(SIZE, latency=Latency(0.003)) as here:
            (report,) = await in_turn(here, f"{kind}:{path}", [faults], processes=processes)
            assert sorted(ids_in(path)) == sorted(here.truth())
            assert report.orders == len(here.truth())
            assert report.portfolios["portfolio-2"].complete
            # Which of the two asks first for a service is a matter of time, so the first may have been asked for none.
            assert {failure.portfolio for failure in report.failed} <= {"portfolio-1"}
            assert here.platform.stats.against_contract == []

    anyio.run(check)


def first_asks_first(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the second portfolio's discovery come after the first one's, whatever the machine does."""
    handle, asked = here.platform.handle, anyio.Event()
    first, second = [token.encode() for token in here.platform.world.portfolios][:2]

    def held_up(path: str, headers: Any, body: bytes, now: float) -> Any:
        if first in body and path.startswith("productServiceOrders"):
            asked.set()
        response = handle(path, headers, body, now)
        if second in body and not asked.is_set():
            return structs.replace(response, status=503, body=b"", headers={**response.headers, "Retry-After": "0"})
        return response

    here.platform.handle = held_up  # type: ignore[method-assign]
    monkeypatch.setattr(Connector, "LONGEST_BACKOFF", 0.02)
    monkeypatch.setattr(Connector, "TRIES", 1000)


def test_the_failure_of_the_first_is_named_though_the_second_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with site(SIZE) as here:
            first_asks_first(here, monkeypatch)
            (report,) = await in_turn(here, f"duckdb:{tmp_path / 'o.duckdb'}", ["forbid=1"])
            assert not report.complete
            assert [failure.portfolio for failure in report.failed] == ["portfolio-1"]
            assert "403" in report.failed[0].error
            assert set.union(*owners_in(tmp_path / "o.duckdb").values()) == {"portfolio-2"}
            assert sorted(ids_in(tmp_path / "o.duckdb")) == sorted(here.truth())
            assert report.portfolios["portfolio-2"].complete

    anyio.run(check)


@pytest.mark.parametrize(
    "faults",
    [
        ["forbid=1", "forbid=1", "", ""],
        ["revoke=14", "", "forbid=1", ""],
        ["", "forbid-enterprises=1", "", "forbid=1"],
        ["forbid-services=3", "revoke=14", "forbid-services=3", ""],
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "duckdb"])
def test_progress_of_both_stays_right_whoever_loads_in_later_runs(kind: str, faults: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"o.{kind}"

    async def check() -> None:
        async with site(SIZE) as here:
            reports = await in_turn(here, f"{kind}:{path}", faults)
            assert sorted(ids_in(path)) == sorted(here.truth())
            assert sum(report.orders for report in reports) == len(here.truth())

    anyio.run(check)


def test_a_stopped_run_ends_though_a_portfolio_waits_for_another(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(SIZE, faults=parse_faults("shared=1"), latency=Latency(0.02)) as here:
            config = here.config(f"jsonl:{tmp_path / 'o.jsonl'}", walks=1, page_size=5)
            async with Job(config, sink=make_sink(config.sink_url)) as job:

                async def stop() -> None:
                    while not any(tally.orders and tally.phase == "waiting" for tally in job.tallies):
                        await anyio.sleep(0.01)
                    job.stop()

                async with anyio.create_task_group() as group:
                    group.start_soon(stop)
                    with anyio.fail_after(60):
                        report = await job.run()
            assert report.interrupted
            again = await here.run(config.sink_url)
            assert again.complete
            assert sorted(ids_in(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)
