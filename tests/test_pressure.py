"""A platform that hangs, asks to wait, tells the wrong time, or is asked by several at once: with figures."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import anyio
import pytest

from fetcher.config import Config, make_config
from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply
from fetcher.job import Job
from fetcher.report import Report
from fetcher.simulator import Behaviour, Faults, Latency, SimulatedPlatform, Size, World, parse_faults, start_process
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from tests.http import site
from tests.simulation import BEGIN, KeyedSink, VirtualTransport, inline
from tests.virtual import run_virtually

PROGRAM = """
import asyncio, json, sys
import fetcher
from fetcher.config import make_config
from fetcher.report import Report
report = asyncio.run(fetcher.run(make_config(json.load(open(sys.argv[1])))))
print(json.dumps([report.complete, report.requests, report.throttled, report.seconds]))
"""


@pytest.mark.parametrize("heaviest", [100, 60, 20])
def test_pages_that_hang_are_asked_for_smaller_and_all_is_loaded_within_a_minute(heaviest: int) -> None:
    size = Size(portfolios=1, enterprises=3, services=60, orders=3000, years=1)

    async def check() -> None:
        async with site(size, faults=parse_faults(f"heavy-stalls={heaviest}")) as here:
            started = time.monotonic()
            report = await here.run(page_size=1000, request_seconds=2)
            assert report.complete, report.failed
            assert report.orders == len(here.truth()) == 3000
            assert time.monotonic() - started < 60

    anyio.run(check)


def test_pages_that_hang_for_three_portfolios_at_once_are_no_outage() -> None:
    size = Size(portfolios=3, enterprises=3, services=60, orders=3000, years=1)

    async def check() -> None:
        async with site(size, faults=parse_faults("heavy-stalls=100")) as here:
            started = time.monotonic()
            report = await here.run(page_size=1000, request_seconds=2, outage_minutes=0.5)
            assert report.complete, report.failed
            assert report.orders == 3000
            assert time.monotonic() - started < 60
            assert here.platform.stats.faults["heavy-stalls"] < 200

    anyio.run(check)


def _run_at_once(document: Mapping[str, object], folder: Path, count: int) -> list[list[float]]:
    """As many processes of one user, which all load the same; what each tells of it."""
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    running = []
    for number in range(count):
        path = folder / f"config-{number}.json"
        path.write_text(json.dumps({**document, "sink": {"url": f"jsonl:{folder / str(number)}.jsonl"}}))
        command = [sys.executable, "-c", PROGRAM, str(path)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
    return [json.loads(process.communicate(timeout=100)[0]) for process in running]


def test_two_fetchers_of_one_machine_never_send_more_than_the_limit_together_and_both_end(tmp_path: Path) -> None:
    limit, window = 40, 2.0
    arguments = ["--orders", "3000", "--services", "60", "--enterprises", "3", "--portfolios", "1", "--latency", "20"]
    arguments += ["--requests", str(limit), "--per-seconds", str(window)]
    with start_process(arguments) as simulator:
        limits = {"requests": limit, "per_seconds": window, "page_size": 20}
        results = _run_at_once({**simulator.document, "limits": limits}, tmp_path, 2)
        (count,) = simulator.stats().portfolios.values()
    assert all(complete for complete, *_ in results)
    assert [throttled for _, _, throttled, _ in results] == [0, 0]
    assert count.throttled == 0
    assert count.most_in_window <= limit
    # And they use it: no more than a tenth above the least, and what one waits for the other's last answers.
    least = (count.requests / limit - 1) * window
    assert max(seconds for *_, seconds in results) <= 1.1 * least + window


def test_a_run_that_starts_beside_another_that_ends_is_remembered_by_the_next(tmp_path: Path) -> None:
    # 30 requests in 10 seconds; each of three processes, one after the other is about to end, sends some of them.
    arguments = ["--orders", "200", "--services", "20", "--enterprises", "2", "--portfolios", "1"]
    arguments += ["--requests", "30", "--per-seconds", "5"]
    with start_process(arguments) as simulator:
        document = {**simulator.document, "limits": {"requests": 30, "per_seconds": 5, "page_size": 40}}
        for count in (2, 1, 2):
            _run_at_once(document, tmp_path, count)
        (count_,) = simulator.stats().portfolios.values()
    assert count_.throttled == 0
    assert count_.most_in_window <= 30


class Site:
    """A simulated platform in virtual time, and runs against it into one sink."""

    def __init__(self, faults: str = "", *, portfolios: int = 1, behaviour: Behaviour | None = None) -> None:
        size = Size(portfolios=portfolios, enterprises=portfolios, services=20 * portfolios, orders=300, years=0.3)
        self.world = World(7, size, int(BEGIN * MICROS))
        self.platform = SimulatedPlatform(self.world, behaviour or Behaviour(), parse_faults(faults), 7)
        self.transport = VirtualTransport(self.platform, Latency(0.05), random.Random(1), seconds=30)
        self.clock = self.transport
        self.sink = KeyedSink()

    def config(self, **limits: object) -> Config:
        document = config_document(self.platform, "http://127.0.0.1:1")
        orders = {"updated_from": "2024-11-30T00:00:00Z"}
        return make_config({**document, "orders": orders, "limits": {"page_size": 50, **limits}})

    def job(self, **limits: object) -> Job:
        return Job(
            self.config(**limits),
            sink=self.sink,
            transport=self.transport,
            offload=inline,
            ours=lambda: self.clock.now() + 7200,
        )

    async def run(self, **limits: object) -> Report:
        async with self.job(**limits) as job:
            return await job.run()

    def has_the_newest(self, order: str) -> bool:
        """Whether the sink has an order at its newest version."""
        return dict(self.world.truth())[order].rstrip("Z") == self.sink.rows[order].updated

    def truth(self) -> set[str]:
        return {id_ for id_, _ in self.world.truth()}

    def change(self, portfolio: int = 0) -> str:
        """Change an order now, as the platform's clock has it; gives its `UpdatedUtc`."""
        before = dict(self.world.truth())
        self.world.change(int(self.transport.now() * MICROS), random.Random(3))
        (changed,) = set(self.world.truth()) - set(before.items())
        return changed[0]


CLOCKS = [
    # One answer: a proxy's 502, or one of the platform's own machines; the first, the second, the first three, ...
    "502=0.3,clock-skew=0.3",
    "skew-first=1",
    "skew-first=2",
    "skew-first=3",
    "clock-skew=0.5",
    "clock-skew=0.5,skew-hours=20",
    "skew-first=2,skew-hours=9000",
]


@pytest.mark.parametrize("faults", CLOCKS)
def test_an_answer_whose_clock_is_ahead_moves_no_watermark_into_the_future(faults: str) -> None:
    async def scenario() -> None:
        here = Site(faults)
        began = here.transport.now()
        report = await here.run()
        assert report.complete, report.failed
        assert report.watermark is not None
        late = began - report.watermark.timestamp()
        assert 0 <= late <= 40, "by settle_seconds, and no more"
        here.transport.offset += 1800
        changed = here.change()
        here.transport.offset += 9000
        here.platform.faults = Faults()
        again = await here.run()
        assert again.complete
        assert here.has_the_newest(changed)

    run_virtually(scenario)


@pytest.mark.parametrize("hours", [2, 30, 300])
def test_a_machine_that_is_late_costs_a_second_reading_and_no_order(hours: int) -> None:
    async def scenario() -> None:
        here = Site()
        began = here.transport.now()
        early = Reply(200, {"Date": formatdate(began - 3600 * hours, usegmt=True)}, b'{"Enterprises":[],"Cursor":null}')
        async with here.job() as job:
            transport = here.transport
            post = transport.post

            async def late_once(path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
                answer = await post(path, body, heard, lease)
                if path != "services/getAll":
                    return answer
                return Reply(answer.status, {**answer.headers, **early.headers}, answer.body)

            transport.post = late_once  # type: ignore[method-assign]
            report = await job.run()
            transport.post = post  # type: ignore[method-assign]
        assert report.complete, report.failed
        assert set(here.sink.rows) == here.truth()
        assert report.watermark is not None
        assert began - report.watermark.timestamp() == pytest.approx(3600 * hours, abs=40)
        here.transport.offset += 100
        assert (await here.run()).complete

    run_virtually(scenario)


def test_all_machines_may_be_ahead_of_our_own_clock() -> None:
    async def scenario() -> None:
        here = Site("clock-skew=1,skew-hours=5")
        began = here.transport.now() + 5 * 3600
        report = await here.run()
        assert report.complete
        assert report.watermark is not None
        assert 0 <= began - report.watermark.timestamp() <= 40

    run_virtually(scenario)


@pytest.mark.parametrize("later", [60, 9000, 86_400])
def test_what_nobody_contradicted_the_next_run_finds_out_by_our_own_clock(later: int) -> None:
    async def scenario() -> None:
        here = Site("clock-skew=1")  # of that run, nobody told otherwise
        assert (await here.run()).complete
        here.platform.faults = Faults()
        here.transport.offset += 10
        changed = here.change()
        here.transport.offset += later
        assert (await here.run()).complete
        assert here.has_the_newest(changed)

    run_virtually(scenario)


class Frozen:
    """Says what `answers` say to the requests of that number (from 1), and lets the others through."""

    def __init__(self, inner: VirtualTransport, answers: Mapping[int, Reply], token: str) -> None:
        self.inner = inner
        self.answers = answers
        self.token = token
        self.asked = 0

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        if json.loads(body)["AccessToken"] == self.token:
            self.asked += 1
            if (answer := self.answers.get(self.asked)) is not None:
                heard(answer.status, answer.headers)
                return answer
        return await self.inner.post(path, body, heard, lease)


@pytest.mark.parametrize(
    ("status", "retry_after", "comes_back"),
    [(429, "3600", 3600), (429, "86400", 86400), (503, "3600", 3600), (429, "date", 7200)],
)
def test_a_pause_that_is_longer_than_the_run_waits_ends_that_portfolio_and_no_other(
    status: int, retry_after: str, comes_back: float
) -> None:
    async def scenario() -> None:
        here = Site(portfolios=2)
        now = here.transport.now()
        header = formatdate(now + comes_back, usegmt=True) if retry_after == "date" else retry_after
        refusal = Reply(status, {"Date": formatdate(now, usegmt=True), "Retry-After": header}, b"{}")
        inner = here.transport
        here.transport = Frozen(inner, {20: refusal}, next(iter(here.world.portfolios)))  # type: ignore[assignment]
        started = anyio.current_time()
        report = await here.run(page_size=10, walks=2)
        assert anyio.current_time() - started < 60
        assert not report.complete
        assert report.portfolios["portfolio-2"].complete
        (failure,) = report.failed
        assert failure.portfolio == "portfolio-1"
        back = datetime.fromtimestamp(now + comes_back, UTC)
        told = {f"{back + timedelta(seconds=second):%Y-%m-%d %H:%M:%S} UTC" for second in (-1, 0, 1)}
        assert any(text in failure.error for text in told), failure.error
        held = len(here.sink.rows)
        here.transport = inner
        inner.offset += comes_back
        report = await here.run()
        assert report.complete
        assert set(here.sink.rows) == here.truth()
        owners = [here.world.owner_of(here.world.service_of(id_)).name for id_ in here.truth()]
        assert held > owners.count("portfolio-2")  # what had come is durable

    run_virtually(scenario)


@pytest.mark.parametrize("pause", [600, 100])
def test_after_an_outage_the_other_portfolios_do_not_wait_for_the_one_that_is_paused(pause: int) -> None:
    async def scenario() -> None:
        here = Site(f"outage-after=12,outage-seconds=20,outage-pause={pause}", portfolios=3)
        report = await here.run()
        assert report.complete, report.failed
        assert report.portfolios["portfolio-1"].seconds >= pause
        assert report.portfolios["portfolio-2"].seconds < 80
        assert report.portfolios["portfolio-3"].seconds < 80

    run_virtually(scenario)


def test_fetched_utc_only_goes_forward_whatever_the_machines_say() -> None:
    async def scenario() -> None:
        here = Site("clock-skew=0.5")
        stamps: list[datetime] = []
        async with here.job() as job:
            async for page in job.pages():
                stamps.append(page.fetched_utc)  # noqa: PERF401
        assert len(stamps) > 3
        assert len(set(stamps)) == len(stamps)

    run_virtually(scenario)
