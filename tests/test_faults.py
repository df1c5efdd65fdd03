"""A platform that misbehaves, over HTTP: each kind of fault that the in-memory simulation cannot show."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from fetcher.connector.client import Connector
from fetcher.job import Job
from fetcher.loading.portfolios import Portfolios
from fetcher.loading.refusals import Refusals
from fetcher.simulator import Behaviour, Faults, Size, parse_faults, start_process
from fetcher.simulator.faults import HOSTILE, STRIKES
from fetcher.sinks import make_sink
from tests.http import site

SMALL = Size(portfolios=2, enterprises=4, services=30, orders=400, years=0.4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries as short as loopback is."""
    monkeypatch.setattr(Connector, "BACKOFF_SECONDS", 0.002)
    monkeypatch.setattr(Refusals, "CONFIRM_SECONDS", 0.01)


@pytest.mark.parametrize("kind", [kind for kind in STRIKES if kind not in ("stall", "401")])
def test_a_fault_at_random_costs_retries_and_no_order(kind: str, tmp_path: Path) -> None:
    async def check() -> None:
        # Where a 429 does not say how long to wait: what is said is in whole seconds, and virtual time shows it heeded.
        behaviour = Behaviour(requests=5000, per_seconds=1, retry_after="absent")
        async with site(SMALL, behaviour=behaviour, faults=Faults({kind: 0.2})) as here:
            report = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", walks=4, page_size=10)
            lines = [json.loads(line)["Id"] for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
            left_out = kind in ("outside", "unasked")  # by those in whose place it came, nobody knows what is missing
            assert report.complete != left_out, report.failed
            assert all("were left out" in failure.error for failure in report.failed)
            assert sorted(lines) == sorted(here.truth())
            assert here.platform.stats.against_contract == []
            assert here.platform.stats.faults.get(kind)

    anyio.run(check)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_is_told(kind: str) -> None:
    async def check() -> None:
        async with site(SMALL, faults=Faults({kind: 1.0})) as here:
            report = await here.run(walks=2, body_mebibytes=4, request_seconds=5)
            assert not report.complete
            assert report.failed
            text = " ".join(failure.error for failure in report.failed)
            expected = {
                "bomb": "larger than 4 MiB",
                "large": "larger than 4 MiB",
                "endless": "larger than 4 MiB",
                "redirect": "redirects",
                "type": "Number should be text, found a number",
            }
            assert expected[kind] in text

    anyio.run(check)


MEASURED = """
import asyncio, json, sys
import fetcher
from fetcher.config import make_config
from fetcher.connector.client import Connector
Connector.BACKOFF_SECONDS = 0.002
report = asyncio.run(fetcher.run(make_config(json.load(sys.stdin))))
status = open("/proc/self/status").read()
print(json.dumps([report.retries, int(status.partition("VmHWM:")[2].split()[0]) / 1024]))
"""
BODY = 8
"""MiB that a body may have."""


def measured(faults: str) -> tuple[int, float]:
    """A run in a process of its own: its retries, and the most MiB that were resident in it."""
    arguments = ["--orders", "200", "--services", "24", "--enterprises", "6", "--portfolios", "1", "--faults", faults]
    with start_process([*arguments, "--requests", "5000"]) as simulator:
        limits = {"body_mebibytes": BODY, "request_seconds": 20, "requests": 5000, "page_size": 20, "processes": 1}
        document = {**simulator.document, "sink": {"url": "null:"}, "limits": limits}
        done = subprocess.run(
            [sys.executable, "-c", MEASURED],
            input=json.dumps(document),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert not done.returncode, done.stderr
        retries, mebibytes = json.loads(done.stdout)
        return retries, mebibytes


@pytest.fixture(scope="module")
def calm() -> float:
    """What a run takes that nobody disturbs."""
    _, mebibytes = measured("")
    return mebibytes


@pytest.mark.parametrize("faults", ["bomb=0.4", "large=0.1", "endless=0.4"])
def test_a_hostile_answer_takes_no_more_memory_than_the_configuration_allows(faults: str, calm: float) -> None:
    retries, mebibytes = measured(faults)
    assert retries, "it was not disturbed"
    assert mebibytes < calm + Portfolios.ROOM * BODY


def test_a_stalling_platform_is_given_up_on_time() -> None:
    async def check() -> None:
        async with site(SMALL, faults=parse_faults("stall=0.05")) as here:
            report = await here.run(walks=8, request_seconds=0.2)
            assert report.complete, report.failed

    anyio.run(check)


def test_bad_services_are_named_one_by_one_and_the_rest_is_loaded(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(SMALL, faults=parse_faults("bad-services=2")) as here:
            report = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}")
            named = {service for failure in report.failed for service in failure.services}
            platform = here.platform
            bad = platform.bad_services("portfolio-1") | platform.bad_services("portfolio-2")
            assert not report.complete
            assert named == bad
            lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
            assert bad.isdisjoint(line["ServiceId"] for line in lines)
            requests = report.requests
            again = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}")
            assert not again.complete
            assert again.requests < requests / 3  # nobody searches again
            platform.faults = Faults()
            full = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", full=True)
            assert full.complete
            lines = [json.loads(line)["Id"] for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
            assert sorted(lines) == sorted(here.truth())

    anyio.run(check)


def test_a_service_that_is_refused_in_mid_walk_goes_on_later_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusals, "BAD_AGAIN", timedelta(0))

    async def check() -> None:
        async with site(SMALL) as here:
            sink = make_sink(f"jsonl:{tmp_path / 'o.jsonl'}")
            async with Job(here.config(walks=2, page_size=10), sink=sink) as job:
                async with anyio.create_task_group() as group:

                    async def stop_soon() -> None:
                        while sum(tally.orders for tally in job.tallies) < 60:
                            await anyio.sleep(0.001)
                        job.stop()

                    group.start_soon(stop_soon)
                    await job.run()
            here.platform.faults = parse_faults("bad-services=4")
            assert not (await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", page_size=10)).complete
            here.platform.faults = Faults()
            assert (await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", page_size=10)).complete
            lines = [json.loads(line)["Id"] for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
            assert sorted(lines) == sorted(here.truth())

    anyio.run(check)


def test_a_revoked_token_ends_its_portfolio_and_no_other() -> None:
    async def check() -> None:
        async with site(SMALL, faults=parse_faults("revoke=8")) as here:
            report = await here.run(walks=2, page_size=30)
            assert {failure.portfolio for failure in report.failed} == {"portfolio-1"}
            assert "401" in report.failed[0].error
            assert report.failed[0].request_id
            assert report.portfolios["portfolio-2"].complete

    anyio.run(check)


def test_a_platform_that_is_down_is_waited_for() -> None:
    async def check() -> None:
        async with site(SMALL, faults=parse_faults("outage-after=10,outage-seconds=1.5")) as here:
            report = await here.run(walks=4, page_size=30)
            assert report.complete, report.failed

    anyio.run(check)


def test_a_platform_that_stays_down_is_given_up() -> None:
    async def check() -> None:
        async with site(SMALL, faults=parse_faults("outage-after=10,outage-seconds=1000")) as here:
            report = await here.run(walks=4, page_size=30, outage_minutes=0.02)
            assert not report.complete
            assert "down" in report.failed[0].error or "broke" in report.failed[0].error

    anyio.run(check)


def test_two_fetchers_on_one_token_share_its_limit() -> None:
    size = Size(portfolios=1, enterprises=3, services=60, orders=2500, years=2)

    async def check() -> None:
        async with site(size, behaviour=Behaviour(requests=40, per_seconds=1)) as here:
            reports = []

            async def one() -> None:
                reports.append(await here.run(requests=40, per_seconds=1, page_size=20))

            async with anyio.create_task_group() as group:
                group.start_soon(one)
                group.start_soon(one)
            assert all(report.complete for report in reports)
            assert sum(report.throttled for report in reports) == 0
            assert max(count.most_in_window for count in here.platform.stats.portfolios.values()) <= 40

    anyio.run(check)


PROGRAM = """
import asyncio, json, logging, sys
logging.basicConfig(level=1)
import fetcher
from fetcher.config import make_config
from fetcher.connector.client import Connector
Connector.BACKOFF_SECONDS = 0.01
report = asyncio.run(fetcher.run(make_config(json.load(open(sys.argv[1])))))
print(report)
print(open("/proc/self/cmdline").read())
if len(sys.argv) > 2:
    raise SystemExit(repr(make_config(json.load(open(sys.argv[1])))))
"""


@pytest.mark.parametrize(
    "faults", ["all=0.3", "redirect=0.2,type=0.2,401=0.3", "revoke=5,bad-services=2", "500=1", "lost=1"]
)
def test_tokens_are_found_nowhere(faults: str, tmp_path: Path) -> None:
    arguments = ["--orders", "300", "--services", "30", "--enterprises", "4", "--portfolios", "2", "--faults", faults]
    with start_process(arguments) as simulator:
        document = json.loads(json.dumps(simulator.document))
        real = [document["platform"]["client_token"], *(one["access_token"] for one in document["portfolios"])]
        document["sink"] = {"url": f"jsonl:{tmp_path / 'out' / 'o.jsonl'}"}
        document["limits"] = {"request_seconds": 1, "outage_minutes": 0.02}
        (tmp_path / "out").mkdir()
        (tmp_path / "config.json").write_text(json.dumps(document))
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "out" / "state"), "PYTHONASYNCIODEBUG": "1"}
        environment["PYTHONWARNINGS"] = "ignore"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "config.json")],
            capture_output=True,
            timeout=110,
            env=environment,
        )
    everything = done.stdout + done.stderr
    assert b"Report(" in done.stdout, done.stderr[-2000:]
    for file in (tmp_path / "out").rglob("*"):
        everything += file.name.encode() + (file.read_bytes() if file.is_file() else b"")
    for token in real:
        assert token.encode() not in everything
        assert token[:20].encode() not in everything


def test_logging_at_the_highest_level_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with site(SMALL, faults=parse_faults("500=0.2,reset=0.2")) as here:
            with caplog.at_level(logging.DEBUG):
                await here.run()
            for token in here.platform.world.portfolios:
                assert token not in caplog.text

    anyio.run(check)
