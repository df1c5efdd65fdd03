"""Finding the bad ids among many, with few questions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from fetcher.errors import AccessDeniedError, InvalidRequestError, PlatformError
from fetcher.loading.refusals import Refusals
from fetcher.loading.refused import SAMPLE, Denied, find_denied, find_refused
from fetcher.report import Report
from fetcher.simulator import Latency, Size, parse_faults
from fetcher.simulator.answers import Response
from tests.http import Site, site


def search(ids: list[str], bad: set[str]) -> tuple[set[str], int]:
    asked = 0

    async def probe(part: Sequence[str]) -> PlatformError | None:
        nonlocal asked
        asked += 1
        return InvalidRequestError("x", "Invalid ServiceIds", status=400) if bad & set(part) else None

    async def scenario() -> set[str]:
        return set(await find_refused(ids, probe))

    return anyio.run(scenario), asked


@given(number=st.integers(1, 60), data=st.data())
def test_exactly_the_bad_ids_are_found(number: int, data: st.DataObject) -> None:
    ids = [str(place) for place in range(number)]
    bad = data.draw(st.sets(st.sampled_from(ids)))
    assert search(ids, bad)[0] == bad


@pytest.mark.parametrize("bad", [1, 3])
def test_a_bad_id_among_a_thousand_costs_about_twice_its_logarithm(bad: int) -> None:
    ids = [str(place) for place in range(1000)]
    found, asked = search(ids, {str(311 * place + 5) for place in range(bad)})
    assert len(found) == bad
    assert asked <= bad * (2 * math.ceil(math.log2(1000)) + 2)


def rights(enterprises: Mapping[str, list[str]], listed: list[str], denied: set[str]) -> tuple[Denied, int]:
    """What is found out of a list of which these ids are denied, and how often was asked."""
    asked = 0

    async def probe(part: Sequence[str]) -> PlatformError | None:
        nonlocal asked
        asked += 1
        return AccessDeniedError("x", "Insufficient permissions", status=403) if denied & set(part) else None

    async def scenario() -> Denied:
        return await find_denied(listed, enterprises, probe)

    return anyio.run(scenario), asked


def hotels(sizes: Sequence[int]) -> dict[str, list[str]]:
    return {f"e{place}": [f"e{place}-{number}" for number in range(size)] for place, size in enumerate(sizes)}


@pytest.mark.parametrize("sizes", [[3500], [1] * 3500, [700] * 5, [2, 3, 1000], [1]])
def test_that_all_is_denied_is_found_by_asking_for_a_few(sizes: list[int]) -> None:
    enterprises = hotels(sizes)
    ids = [id_ for mine in enterprises.values() for id_ in mine]
    found, asked = rights(enterprises, ids[:1000], set(ids))
    assert found.everything is not None
    assert (found.enterprises, found.ids) == ({}, {})
    assert asked <= SAMPLE


def test_one_of_five_enterprises_is_found_whole_with_few_questions() -> None:
    enterprises = hotels([200] * 5)
    ids = [id_ for mine in enterprises.values() for id_ in mine]
    found, asked = rights(enterprises, ids, set(enterprises["e3"]))
    assert found.everything is None
    assert (set(found.enterprises), dict(found.ids)) == ({"e3"}, {})
    assert asked <= 2 * SAMPLE + 6


def test_all_but_one_service_of_a_few_is_found_exactly() -> None:
    enterprises = hotels([SAMPLE])
    ids = enterprises["e0"]
    found, _ = rights(enterprises, ids, set(ids) - {"e0-4"})
    assert found.everything is None
    assert set(found.ids) == set(ids) - {"e0-4"}


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), data=st.data())
def test_what_is_denied_is_named_and_what_is_named_of_few_is_denied(sizes: list[int], data: st.DataObject) -> None:
    enterprises = hotels(sizes)
    ids = [id_ for mine in enterprises.values() for id_ in mine]
    denied = data.draw(st.sets(st.sampled_from(ids), min_size=1))
    found, _ = rights(enterprises, ids, denied)
    if found.everything is not None:
        named = set(ids)
    else:
        named = set(found.ids).union(*(enterprises[enterprise] for enterprise in found.enterprises))
        assert set(found.ids) <= denied
    assert denied <= named  # nobody asks in vain again
    if len(ids) <= SAMPLE:
        assert named == denied


def orders_asked(here: Site) -> list[int]:
    """Have the platform note how many services each order request was for, of the first portfolio."""
    handle, asked = here.platform.handle, list[int]()
    token = next(iter(here.platform.world.portfolios))

    def noting(path: str, headers: Any, body: bytes, now: float) -> Any:
        document = json.loads(body)
        if path == "productServiceOrders/getAll" and document["AccessToken"] == token:
            asked.append(len(document["ServiceIds"]))
        return handle(path, headers, body, now)

    here.platform.handle = noting  # type: ignore[method-assign]
    return asked


@pytest.mark.parametrize("shard_by", ["enterprise", "portfolio"])
def test_3500_services_behind_a_403_cost_12_order_requests_and_one_failure(shard_by: str) -> None:
    size = Size(portfolios=1, enterprises=5, services=3500, orders=4000, years=3)

    async def check() -> None:
        async with site(size, faults=parse_faults("forbid=1"), latency=Latency(0.05)) as here:
            asked = orders_asked(here)
            began = time.monotonic()
            report = await here.run(shard_by=shard_by)
            assert time.monotonic() - began < 10
            assert len(here.platform.world.service_ids) > 3200
            assert 0 < len(asked) <= 12
            assert len(report.failed) == 1
            assert "403" in report.failed[0].error
            assert f"6 of {len(here.platform.world.service_ids):,} services" in report.failed[0].error
            assert not report.complete

    anyio.run(check)


FEW = Size(portfolios=2, enterprises=8, services=400, orders=1500, years=0.6)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["Id"] for line in path.read_bytes().splitlines()]


async def loaded(here: Site, path: Path, **limits: Any) -> tuple[Report, set[str]]:
    """A run's report, and the services of which orders are missing."""
    report = await here.run(f"jsonl:{path}", **limits)
    return report, {here.platform.world.service_of(id_) for id_ in here.truth() - set(ids_in(path))}


@pytest.mark.parametrize("shard_by", ["enterprise", "portfolio"])
@pytest.mark.parametrize("faults", ["forbid-enterprises=1", "forbid-services=1", "forbid-services=3"])
def test_what_is_forbidden_alone_is_found_by_halves_and_the_rest_is_loaded(
    faults: str, shard_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusals, "CONFIRM_SECONDS", 0.01)

    async def check() -> None:
        async with site(FEW, faults=parse_faults(faults)) as here:
            asked = orders_asked(here)
            forbidden = here.platform.forbidden_services()
            report, missing = await loaded(here, tmp_path / "o.jsonl", shard_by=shard_by)
            assert not report.complete
            assert missing <= forbidden
            services = {service for failure in report.failed for service in failure.services}
            enterprises = {failure.enterprise for failure in report.failed if not failure.services}
            world = here.platform.world
            owner = next(iter(world.portfolios.values()))
            named = services.union(
                world.service_ids[number] for id_ in enterprises for number in owner.enterprises[id_ or ""].services
            )
            assert named == forbidden
            refusals = here.platform.stats.portfolios["portfolio-1"].statuses["403"]
            assert refusals <= 30 * len(report.failed)
            assert len(asked) <= report.portfolios["portfolio-1"].pages + 40 * len(report.failed) + 10
            here.platform.faults = parse_faults("")
            full = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", full=True)
            assert full.complete

    anyio.run(check)


@pytest.mark.parametrize("every", [3, 10, 30])
def test_a_refusal_that_comes_and_goes_costs_no_order_or_is_named(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusals, "CONFIRM_SECONDS", 0.01)

    async def check() -> None:
        async with site(FEW) as here:
            handle, count = here.platform.handle, 0

            def moody(path: str, headers: Any, body: bytes, now: float) -> Response:
                nonlocal count
                response = handle(path, headers, body, now)
                if path != "productServiceOrders/getAll":
                    return response
                count += 1
                return response if count % every else structs.replace(response, status=403, body=b"{}")

            here.platform.handle = moody  # type: ignore[method-assign]
            report, missing = await loaded(here, tmp_path / "o.jsonl", page_size=20)
            named = {service for failure in report.failed for service in failure.services}
            assert missing <= named or any(not failure.services for failure in report.failed)
            assert report.complete or every < 30, report.failed
            here.platform.handle = handle  # type: ignore[method-assign]
            await here.run(f"jsonl:{tmp_path / 'o.jsonl'}")
            assert (await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", full=True)).complete
            assert sorted(ids_in(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)
