"""What a plan costs: requests and seconds, each beside the least possible, in worlds that are hard on it.

The whole job runs in virtual time against the simulated platform in memory, with the platform's own limit (200 requests
in 30 seconds), so latency and the budget count, and the processor does not. The least is one request for each thousand
orders, and for what discovery lists; the least time is what the limit allows, or 16 walks side by side after one answer
for discovery. A load that is not exact has no time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import anyio
from _common import expect, options, run

sys.path.insert(0, str(Path(__file__).parent.parent))  # the simulation's transport and loop are the tests'

from fetcher.config import ShardBy, make_config
from fetcher.job import Job
from fetcher.simulator import Behaviour, Faults, Latency, SimulatedPlatform, Size, World
from fetcher.simulator.process import config_document
from fetcher.simulator.world import DAY, MICROS, instant
from tests.simulation import BEGIN, KeyedSink, VirtualTransport, inline
from tests.virtual import run_virtually

JITTER = 0.3
WALKS = 16
LIMIT, WINDOW = 200, 30.0


class Case(NamedTuple):
    """A world, and how far away it is."""

    name: str
    hotels: tuple[tuple[int, int], ...]
    """Services and orders of each."""
    years: float
    latency: float
    """Seconds until an answer begins; its body takes half as long again."""
    portfolios: int = 1
    limit: int = LIMIT
    window: float = WINDOW


MONTH = 25 / 365.25
CASES = (
    Case("200 hotels of 5 services, 60,000 orders in 2.5 years, 200 ms", ((5, 300),) * 200, 2.5, 0.2),
    Case("one hotel of 60,000 orders beside 100 of 200, 400 ms", ((5, 60_000), *((5, 200),) * 100), 2.5, 0.4),
    Case("one hotel, 90,000 orders in 25 days, 800 ms", ((5, 90_000),), MONTH, 0.8),
    Case("one service of 60,000 in 25 days beside 20 small, 800 ms", ((1, 60_000), *((1, 100),) * 20), MONTH, 0.8),
    Case("one hotel, 90,000 orders in 2.5 years, 400 ms", ((5, 90_000),), 2.5, 0.4),
    Case("8 portfolios of 30 hotels, 240,000 orders, 200 ms", ((5, 1000),) * 240, 2.5, 0.2, portfolios=8),
)
BOUND = Case("bound by the budget: 40 in 3 s, 150 pages, 20 ms", ((5, 150_000),), 1.0, 0.02, limit=40, window=3.0)
PLATFORMS = {
    "by update": (False, False),
    "by creation, lenient cursors": (True, False),
    "by creation, strict cursors": (True, True),
}
GOALS = {
    "by update": (1.2, 2.0),
    "by creation, lenient cursors": (1.35, 2.2),
    "by creation, strict cursors": (1.8, 3.0),
}
GOAL_AGAIN = 1.5
GOAL_BOUND = (1.15, 1.05)


class Cost(NamedTuple):
    """What a load cost, over the least; and a second one, with nothing new."""

    requests: int
    over_requests: float
    seconds: float
    over_seconds: float
    again: int
    over_again: float
    exact: bool


def cost(case: Case, shard_by: ShardBy, *, by_creation: bool, strict: bool) -> Cost:
    """Load a world, and load it again."""
    moment = int(BEGIN * MICROS)
    size = Size(portfolios=case.portfolios, hotels=case.hotels, years=case.years)
    world = World(1, size, moment)
    behaviour = Behaviour(requests=case.limit, per_seconds=case.window, by_creation=by_creation)
    faults = Faults({}, {"invalid-cursors": 1} if strict else {})
    platform = SimulatedPlatform(world, behaviour, faults, seed=1)
    transport = VirtualTransport(platform, Latency(case.latency, JITTER), random.Random(1), seconds=60)
    sink = KeyedSink()
    sink.batch_rows = 50_000
    start = moment - int(case.years * 365.25 * DAY)
    start -= start % MICROS
    document = {
        **config_document(platform, "http://127.0.0.1:1"),
        "orders": {"updated_from": instant(start).isoformat()},
        "limits": {"requests": case.limit, "per_seconds": case.window, "walks": WALKS, "shard_by": shard_by},
    }
    runs: list[tuple[int, float, bool]] = []

    async def play() -> None:
        for _ in range(2):
            transport.start()
            began = anyio.current_time()
            job = Job(make_config(document), sink=sink, transport=transport, offload=inline, chance=random.Random(2))
            async with job:
                report = await job.run()
            runs.append((report.requests, anyio.current_time() - began, report.complete and not report.throttled))
            transport.offset += 600  # seconds until the second run: the window is free again

    run_virtually(play)
    pages, lists, batches = _least(case, world)
    longest = max(pages)
    answer = case.latency * 1.5
    by_walks = answer + ceil(longest / WALKS) * answer
    by_budget = (ceil((longest + lists // case.portfolios) / case.limit) - 1) * (case.window + answer)
    (requests, seconds, whole), (again, _, whole_again) = runs
    exact = whole and whole_again and dict(world.truth(start=start)).keys() == sink.rows.keys()
    return Cost(
        requests,
        requests / (sum(pages) + lists),
        seconds,
        seconds / max(by_walks, by_budget),
        again,
        again / (lists + batches),
        exact,
    )


def _least(case: Case, world: World) -> tuple[Sequence[int], int, int]:
    """Pages of each portfolio, requests of discovery, and batches of services, at the least."""
    pages: list[int] = []
    lists = batches = 0
    for number in range(case.portfolios):
        hotels = case.hotels[number :: case.portfolios]
        pages.append(ceil(sum(orders for _, orders in hotels) / 1000))
        services = ceil(sum(services for services, _ in hotels) / 1000)
        lists += ceil(len(hotels) / 1000) + services
        batches += services
    assert len(world.portfolios) == case.portfolios
    return pages, lists, batches


def main() -> None:
    short = options(__doc__ or "")
    missed: list[str] = []
    heading = f"{'requests':>10}{'/ least':>9}{'seconds':>9}{'/ least':>9}{'again':>7}{'/ least':>9}"
    for case in CASES[:1] if short else CASES:
        print(f"\n{case.name}\n{'':<46}{heading}")
        for platform, (by_creation, strict) in PLATFORMS.items():
            _show(case, platform, "auto", GOALS[platform], missed, by_creation=by_creation, strict=strict)
        _show(case, "by update", "portfolio", None, missed, by_creation=False, strict=False)
    if not short:
        print(f"\n{BOUND.name}\n{'':<46}{heading}")
        _show(BOUND, "by update", "auto", GOAL_BOUND, missed, by_creation=False, strict=False)
    expect(not missed, "each within its goal" + (f" ({'; '.join(missed)})" if missed else ""), short=short)


def _show(
    case: Case,
    platform: str,
    shard_by: ShardBy,
    goal: tuple[float, float] | None,
    missed: list[str],
    *,
    by_creation: bool,
    strict: bool,
) -> None:
    found = cost(case, shard_by, by_creation=by_creation, strict=strict)
    print(
        f"  {platform + ', ' + shard_by:<44}{found.requests:>10}{found.over_requests:>9.2f}{found.seconds:>9.1f}"
        f"{found.over_seconds:>9.2f}{found.again:>7}{found.over_again:>9.2f}",
        flush=True,
    )
    expect(found.exact, "every order is there once, and nothing was refused")
    if goal is not None and (
        found.over_requests > goal[0] or found.over_seconds > goal[1] or found.over_again > GOAL_AGAIN
    ):
        missed.append(f"{case.name}, {platform}")


run(main)
