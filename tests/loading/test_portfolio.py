"""A portfolio's load as a whole: what only shows over several runs."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import anyio
import pytest

from fetcher.config import make_config
from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply
from fetcher.connector.types import parse_utc
from fetcher.job import Job
from fetcher.loading.claims import Claimed, FirstCome
from fetcher.loading.portfolios import Portfolios, as_it_is
from fetcher.report import Report
from fetcher.simulator import Behaviour, Faults, Latency, SimulatedPlatform, Size, World
from fetcher.simulator.faults import parse_faults
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from fetcher.sinks import Page, make_sink
from fetcher.sinks.appending.versions import version_of_line
from fetcher.sinks.writer import Delivery
from tests.simulation import BEGIN, VirtualTransport, inline
from tests.virtual import run_virtually

SIZE = Size(portfolios=1, enterprises=2, services=12, orders=200, years=0.8)


async def run_later(
    platform: SimulatedPlatform, url: str, later: float, services: list[str] | None = None, *, full: bool = False
) -> Report:
    """A run by a machine whose clock is right, so many seconds after the first.

    Args:
        platform: what is loaded from.
        url: the sink's.
        later: seconds.
        services: these alone.
        full: whether all is read again.
    """
    transport = VirtualTransport(platform, Latency(0.05, 0.0), random.Random(5), seconds=30)
    transport.offset = later
    document = config_document(platform, "http://127.0.0.1:1")
    portfolios = document["portfolios"]
    if services is not None:
        portfolios = [{**one, "service_ids": services} for one in portfolios]
    orders = {"updated_from": "2025-01-30T00:00:00Z"}
    config = make_config({**document, "portfolios": portfolios, "orders": orders, "sink": {"url": url}})
    async with Job(
        config,
        sink=make_sink(url),
        full=full,
        transport=transport,
        offload=inline,
        chance=random.Random(1),
        ours=transport.now,
    ) as job:
        return await job.run()


class Refusing(VirtualTransport):
    """A platform that answers no query of one enterprise's services for more than a day of orders."""

    refused: frozenset[str] = frozenset()

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        asked = json.loads(body)
        if path.startswith("productServiceOrders") and not self.refused.isdisjoint(asked["ServiceIds"]):
            start, end = (parse_utc(asked["UpdatedUtc"][name]) for name in ("StartUtc", "EndUtc"))
            if (end - start).total_seconds() > 1.5 * 86_400:
                heard(400, {})
                return Reply(400, {}, b'{"Message": "this is too much"}')
        return await super().post(path, body, heard, lease)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_would_close_a_service_that_fails_for_days_does_not_come_twice_in_the_end(
    kind: str, tmp_path: Path
) -> None:
    world = World(11, SIZE, int(BEGIN * MICROS))
    platform = SimulatedPlatform(world, Behaviour(), None, 3)
    url = f"{kind}:{tmp_path / 'orders'}"
    (portfolio,) = world.portfolios.values()
    heavy = next(iter(portfolio.enterprises.values()))
    refused = frozenset(world.service_ids[number] for number in heavy.services)
    number = next(n for n in range(SIZE.orders) if world.service_of(world.order_id(n)) in refused)

    async def run(later: float, services: frozenset[str]) -> Report:
        transport = Refusing(platform, Latency(0.05, 0.0), random.Random(5), seconds=30)
        transport.offset, transport.refused = later, services
        document = config_document(platform, "http://127.0.0.1:1")
        orders = {"updated_from": "2025-01-30T00:00:00Z"}
        limits = {"shard_by": "enterprise", "page_size": 50}
        config = make_config({**document, "orders": orders, "limits": limits, "sink": {"url": url}})
        async with Job(config, sink=make_sink(url), transport=transport, offload=inline) as job:
            return await job.run()

    # The loop's time begins at 1000 seconds; so this is just after the end of the first run.
    world.update(number, int((BEGIN + 1000 + 86_400 - 20) * MICROS), "Started")
    for day in (1, 2):
        assert not run_virtually(lambda day=day: run(day * 86_400, refused)).complete
    report = run_virtually(lambda: run(3 * 86_400, frozenset()))
    assert report.complete, report.failed
    came = Counter(_keys(url, tmp_path))
    assert len(came) == SIZE.orders
    assert max(came.values()) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_service_that_is_not_there_while_all_is_read_again_does_not_come_twice_later(
    kind: str, tmp_path: Path
) -> None:
    world = World(11, SIZE, int(BEGIN * MICROS))
    platform = SimulatedPlatform(world, Behaviour(), None, 3)
    url = f"{kind}:{tmp_path / 'orders'}"

    some = world.service_ids[::2]
    gone = next(n for n in range(SIZE.orders) if world.service_of(world.order_id(n)) not in some)
    for day, services, full in ((0, world.service_ids, False), (1, some, True), (2, world.service_ids, False)):
        later = day * 86_400
        report = run_virtually(
            lambda later=later, services=services, full=full: run_later(platform, url, later, services, full=full)
        )
        assert report.complete, report.failed
        if full:
            world.update(gone, int((BEGIN + day * 86_400) * MICROS), "Started")
    came = Counter(_keys(url, tmp_path))
    assert len(came) == SIZE.orders
    assert sum(came.values()) == SIZE.orders + 1  # and what changed meanwhile


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_comes_while_the_clock_is_ahead_does_not_come_twice_in_runs_soon_after(kind: str, tmp_path: Path) -> None:
    world = World(11, SIZE, int(BEGIN * MICROS))
    platform = SimulatedPlatform(world, Behaviour(), parse_faults("skew-first=2"), 3)
    url = f"{kind}:{tmp_path / 'orders'}"

    world.update(7, int((BEGIN + 1000 - 20) * MICROS), "Started")  # just before the first run
    for number in range(4):
        report = run_virtually(lambda number=number: run_later(platform, url, number * 60))
        assert report.complete, report.failed
        platform.faults = Faults()
    came = Counter(_keys(url, tmp_path))
    assert len(came) == SIZE.orders
    assert max(came.values()) == 1


def test_what_no_later_walk_brings_again_is_forgotten_at_the_end_of_each_run(tmp_path: Path) -> None:
    world = World(11, SIZE, int(BEGIN * MICROS))
    platform = SimulatedPlatform(world, Behaviour(), None, 3)
    url = f"jsonl:{tmp_path / 'orders'}"

    for day in range(3):
        world.update(day, int((BEGIN + 1000 + day * 86_400 - 20) * MICROS), "Started")  # just before the run
        assert run_virtually(lambda day=day: run_later(platform, url, day * 86_400)).complete
        with sqlite3.connect(tmp_path / ".orders.fetcher") as db:
            assert db.execute("SELECT count(*) FROM recent").fetchone() == (1,), "what the next run reads again"
        db.close()


def test_of_a_service_that_another_portfolio_gave_back_any_order_may_have_been_delivered() -> None:
    class Begun(FirstCome):
        async def claim(self, portfolio: str, service_ids: Iterable[str]) -> Claimed:
            return dict.fromkeys(await super().claim(portfolio, service_ids), True)

    async def pages() -> list[bool]:
        platform = SimulatedPlatform(World(11, SIZE, int(BEGIN * MICROS)), Behaviour(), None, 3)
        transport = VirtualTransport(platform, Latency(0.05, 0.0), random.Random(5), seconds=30)
        document = config_document(platform, "http://127.0.0.1:1")
        config = make_config({**document, "orders": {"updated_from": "2025-01-30T00:00:00Z"}})
        portfolios = Portfolios(config, claims=Begun(), transport=transport, chance=random.Random(1))
        send, receive = anyio.create_memory_object_stream[Delivery](0)
        repeats: list[bool] = []
        async with portfolios, receive, anyio.create_task_group() as group:
            group.start_soon(portfolios.load, send, as_it_is, {})
            async for delivery in receive:
                if isinstance(delivery.page, Page) and delivery.page.orders:
                    repeats.append(delivery.page.repeats)
                delivery.accept()
        return repeats

    repeats = run_virtually(pages)
    assert repeats
    assert all(repeats)


def _keys(url: str, folder: Path) -> list[str]:
    if url.startswith("jsonl"):
        return [version_of_line(line).id.hex() for line in (folder / "orders").read_bytes().splitlines()]
    import pyarrow.parquet as pq

    return pq.read_table(folder / "orders", columns=["id"])["id"].to_pylist()
