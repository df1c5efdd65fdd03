"""What a plan says of a run is what the run takes: whole loads in virtual time, each planned before it is run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import anyio
import pytest

from fetcher.config import Config, make_config
from fetcher.connector.types import parse_utc
from fetcher.job import Job
from fetcher.prospect.plan import PortfolioPlan
from fetcher.report import Report
from fetcher.simulator import Behaviour, Faults, Latency, SimulatedPlatform, Size, World
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from fetcher.sinks import EncodedPage, Extent, Holdings, Page, RowCount
from tests.simulation import BEGIN, KeyedSink, VirtualTransport, inline
from tests.virtual import run_virtually

CLOSE = 0.25
"""By which an estimate may miss, of what the run really took."""
CLOSE_IN_TIME = 0.35
"""In seconds: the last of several portfolios ends the run, and a walk more or less side by side is a whole answer."""
UNDER_WAY = 0.15
"""By which it may in the middle of a load, of the whole load: what was read is no fair sample of what is left."""


class TellingSink(KeyedSink):
    """Tells how many rows it has, as a database does, or as a file does: of each portfolio alone."""

    batch_rows = 5000

    def __init__(self, *, finely: bool = True) -> None:
        super().__init__()
        self._finely = finely
        self._places: dict[str, tuple[str, str]] = {}

    def encode(self, page: Page) -> EncodedPage:
        for order in page.orders:
            self._places[order.id.lower()] = page.portfolio, page.enterprise_ids[order.service_id.lower()].lower()
        return super().encode(page)

    def holdings(self) -> Holdings:
        rows = Counter(self._places[id_][0] for id_ in self.rows)
        return Holdings(rows=rows, newest=None, progress=dict(self.progress))

    def extent(self) -> Extent:
        if not self._finely:
            return super().extent()
        months: Counter[tuple[str, str, datetime]] = Counter()
        days: dict[str, Counter[datetime]] = {}
        for id_, version in self.rows.items():
            portfolio, enterprise = self._places[id_]
            day = parse_utc(version.updated).replace(hour=0, minute=0, second=0, microsecond=0)
            months[portfolio, enterprise, day.replace(day=1)] += 1
            days.setdefault(portfolio, Counter())[day] += 1
        rows = [
            RowCount(portfolio=portfolio, enterprise_id=enterprise, month=month, rows=count)
            for (portfolio, enterprise, month), count in months.items()
        ]
        return Extent(rows=rows, days=days, progress=dict(self.progress))


class Outcome(NamedTuple):
    """A plan, and what the run after it took."""

    plans: list[PortfolioPlan]
    report: Report
    seconds: float

    @property
    def least_requests(self) -> int:
        return sum(plan.least_requests for plan in self.plans)

    @property
    def requests(self) -> int:
        return sum(plan.requests or 0 for plan in self.plans)

    @property
    def planned_seconds(self) -> float:
        return max(plan.seconds or 0 for plan in self.plans)

    def check(self) -> None:
        """The plan came close."""
        assert self.requests == pytest.approx(self.report.requests, rel=CLOSE)
        assert self.planned_seconds == pytest.approx(self.seconds, rel=CLOSE_IN_TIME)
        assert self.least_requests <= self.report.requests


class Story:
    """A world, and what is done with it one after the other; pages have 100 orders, so that few make many."""

    def __init__(self, size: Size, latency: float, *, finely: bool = True, jitter: float = 0.3, **limits: Any) -> None:
        limits = {"requests": 200, "per_seconds": 30.0, "page_size": 100, **limits}
        behaviour = Behaviour(requests=limits["requests"], per_seconds=limits["per_seconds"])
        self.platform = SimulatedPlatform(World(1, size, int(BEGIN * MICROS)), behaviour, Faults({}, {}), seed=1)
        chance = random.Random(1)
        self.transport = VirtualTransport(self.platform, Latency(latency, jitter), chance, seconds=60)
        self.sink = TellingSink(finely=finely)
        self.document: dict[str, Any] = {**config_document(self.platform, "http://127.0.0.1:1"), "limits": limits}

    @property
    def config(self) -> Config:
        return make_config(self.document)

    def job(self, *, full: bool = False) -> Job:
        chance = random.Random(2)
        return Job(self.config, sink=self.sink, transport=self.transport, offload=inline, chance=chance, full=full)

    async def plan(self, *, full: bool = False) -> list[PortfolioPlan]:
        async with self.job(full=full) as job:
            plans = await job.plan()
        self.transport.offset += 600  # the window is free again
        return plans

    async def run(self, *, full: bool = False, stop_after: float | None = None) -> tuple[Report, float]:
        """Run, until its end or for so many seconds."""
        self.transport.start()
        began = anyio.current_time()
        async with self.job(full=full) as job, anyio.create_task_group() as group:

            async def stop(after: float) -> None:
                await anyio.sleep(after)
                job.stop()

            if stop_after is not None:
                group.start_soon(stop, stop_after)
            report = await job.run()
            group.cancel_scope.cancel()
        seconds = anyio.current_time() - began
        self.transport.offset += 600
        return report, seconds

    async def outcome(self, *, full: bool = False) -> Outcome:
        """Plan, then run."""
        plans = await self.plan(full=full)
        report, seconds = await self.run(full=full)
        assert report.complete
        return Outcome(plans, report, seconds)


WORLDS: dict[str, Callable[[], Story]] = {
    "many small hotels": lambda: Story(Size(portfolios=1, hotels=((5, 60),) * 100, years=2.5), 0.2),
    "one large hotel beside small ones": lambda: Story(
        Size(portfolios=1, hotels=((5, 6000), *((5, 40),) * 50), years=2.5), 0.4
    ),
    "90 pages in a month": lambda: Story(Size(portfolios=1, hotels=((5, 900),) * 10, years=25 / 365.25), 0.8),
    "three portfolios": lambda: Story(Size(portfolios=3, hotels=((5, 200),) * 45, years=1.0), 0.2),
    "bound by the budget": lambda: Story(
        Size(portfolios=1, hotels=((5, 12_000),), years=1.0), 0.02, requests=40, per_seconds=3.0
    ),
}


@pytest.mark.parametrize("world", WORLDS)
def test_what_a_plan_says_is_what_the_run_takes(world: str) -> None:
    story = WORLDS[world]()

    async def scenario() -> None:
        first = await story.outcome()
        assert {plan.orders for plan in first.plans} == {plan.requests for plan in first.plans} == {None}
        assert first.least_requests < first.report.requests
        again = await story.outcome()
        assert again.requests == again.least_requests == again.report.requests
        # This transport takes as long for a page with nothing in it as for a full one, and discovery has no such page.
        assert again.planned_seconds == pytest.approx(again.seconds, rel=0.35)
        full = await story.outcome(full=True)
        full.check()
        bound = "budget" if world == "bound by the budget" else "latency"
        assert {plan.bound_by for plan in full.plans} == {bound}
        orders = sum(plan.orders or 0 for plan in full.plans)
        assert orders == pytest.approx(len(story.sink.rows), rel=0.05)

    run_virtually(scenario)


@pytest.mark.parametrize("world", ["one large hotel beside small ones", "three portfolios"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_in_the_middle_of_a_load_what_is_left_is_estimated_by_what_was_read(world: str, share: float) -> None:
    story = WORLDS[world]()

    async def scenario() -> None:
        whole, seconds = await WORLDS[world]().run()
        report, _ = await story.run(stop_after=seconds * share)
        assert report.interrupted
        rest = await story.outcome()
        assert sum(plan.shards_open for plan in rest.plans)
        assert {plan.resumes_from for plan in rest.plans} == {None}
        orders = sum(plan.orders or 0 for plan in rest.plans)
        assert orders == pytest.approx(rest.report.orders, abs=UNDER_WAY * whole.orders)
        assert rest.requests == pytest.approx(rest.report.requests, abs=UNDER_WAY * whole.requests)
        assert rest.planned_seconds == pytest.approx(rest.seconds, rel=0.35)

    run_virtually(scenario)


def test_where_nothing_is_there_the_least_is_what_the_run_takes() -> None:
    story = Story(Size(portfolios=1, hotels=((700, 0), (700, 0)), years=2.5), 0.2)
    story.document["orders"] = {"updated_from": "2024-01-01T00:00:00Z"}

    async def scenario() -> None:
        for _ in range(2):
            outcome = await story.outcome()
            assert outcome.least_requests == outcome.report.requests
            assert outcome.plans[0].least_seconds == pytest.approx(outcome.seconds, rel=0.5)
        assert outcome.plans[0].orders == 0

    run_virtually(scenario)


def test_a_sink_that_knows_only_how_many_rows_there_are_tells_the_requests_all_the_same() -> None:
    story = Story(Size(portfolios=1, hotels=((5, 60),) * 100, years=2.5), 0.2, finely=False)

    async def scenario() -> None:
        await story.run()
        full = await story.outcome(full=True)
        assert full.plans[0].basis == "rows of the portfolio"
        full.check()

    run_virtually(scenario)


def test_rows_of_another_filter_by_states_tell_nothing() -> None:
    story = Story(Size(portfolios=1, hotels=((5, 100),), years=0.5), 0.2)

    async def scenario() -> None:
        await story.run()
        story.document["orders"] = {**story.document["orders"], "states": ["Confirmed"]}
        plan = (await story.plan())[0]
        assert plan.orders is None
        assert plan.basis is None
        assert plan.resumes_from is None

    run_virtually(scenario)


def test_after_a_full_load_that_was_stopped_rows_are_not_taken_for_those_of_what_it_read() -> None:
    story = WORLDS["many small hotels"]()

    async def scenario() -> None:
        _, seconds = await story.run()
        await story.run(full=True, stop_after=seconds / 2)
        plan = (await story.plan(full=True))[0]
        assert plan.orders == pytest.approx(len(story.sink.rows), rel=0.1)

    run_virtually(scenario)


def test_enterprises_that_share_walks_and_those_that_fill_them_alone_are_told() -> None:
    story = Story(Size(portfolios=1, hotels=((1000, 100), (400, 100), (300, 100)), years=0.5), 0.2)

    async def scenario() -> None:
        plan = (await story.plan())[0]
        assert [(pack.services, len(pack.enterprises)) for pack in plan.packs] == [(1000, 1), (700, 2)]
        assert sum(pack.windows for pack in plan.packs) == plan.shards_by_portfolio
        assert {pack.orders for pack in plan.packs} == {None}

    run_virtually(scenario)


def test_answers_are_timed_without_the_wait_for_the_budget() -> None:
    story = Story(Size(portfolios=1, hotels=((2500, 100),), years=0.5), 0.5, jitter=0, requests=1, per_seconds=3.0)

    async def scenario() -> None:
        plan = (await story.plan())[0]
        assert plan.answer_seconds == pytest.approx(0.5)
        assert plan.bound_by == "budget"

    run_virtually(scenario)
