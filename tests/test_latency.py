"""How many answers a run waits for, one after the other, and how many requests it sends, where nothing is large."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from fetcher.config import make_config
from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply
from fetcher.job import Job
from fetcher.report import Report
from fetcher.simulator import Latency, SimulatedPlatform, Size, World
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from tests.simulation import BEGIN, KeyedSink, VirtualTransport, inline
from tests.virtual import run_virtually

LATENCY = 1.0
"""Seconds between a request and its answer."""
BODY = 0.5
"""Of a latency, for the body of a page of orders."""


class Hotels:
    """Hotels of 5 services, and one without any if `empty`; and a sink that outlives the runs."""

    def __init__(self, hotels: int, *, empty: bool = False) -> None:
        count = hotels + 1  # a world has one without services
        size = Size(portfolios=1, enterprises=count, services=count * 5, orders=900, years=1.2, skew=0)
        world = World(5, size, int((BEGIN + 900) * MICROS))
        (portfolio,) = world.portfolios.values()
        (without,) = (id_ for id_, hotel in portfolio.enterprises.items() if not hotel.services)
        if not empty:
            del portfolio.enterprises[without]
        self.platform = SimulatedPlatform(world)
        self.transport = VirtualTransport(self.platform, Latency(LATENCY), random.Random(1), seconds=30)
        self.sink = KeyedSink()
        self.asked: list[str] = []
        self.offload: Callable[..., Any] = inline
        post = self.transport.post

        async def noted(path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
            self.asked.append(path.partition("/")[0])
            return await post(path, body, heard, lease)

        self.transport.post = noted  # type: ignore[method-assign]

    async def run(self, **limits: Any) -> tuple[Report, float]:
        """One run, and the latencies that it took."""
        self.asked.clear()
        document = config_document(self.platform, "http://127.0.0.1:1")
        orders = {"updated_from": "2024-11-30T00:00:00Z"}
        config = make_config({**document, "orders": orders, "limits": limits})
        began = anyio.current_time()
        async with Job(
            config,
            sink=self.sink,
            transport=self.transport,
            offload=self.offload,
            chance=random.Random(2),
            ours=self.transport.now,
        ) as job:
            report = await job.run()
        assert report.complete, report.failed
        return report, (anyio.current_time() - began) / LATENCY


@pytest.mark.parametrize("shard_by", ["auto", "portfolio"])
@pytest.mark.parametrize(
    ("hotels", "empty", "pages"),
    [
        (199, False, 1),
        (200, False, 2),  # 1000 services are a full page: only an empty one says that there are no more
        (199, True, 2),  # whether one that is not in the list of all can be listed is to be known
    ],
)
def test_a_run_with_nothing_new_waits_for_discovery_and_one_answer_more(
    hotels: int, empty: bool, pages: int, shard_by: str
) -> None:
    async def scenario() -> None:
        here = Hotels(hotels, empty=empty)
        first, _ = await here.run(shard_by=shard_by)
        assert first.orders == 900
        here.transport.offset += 3600
        second, latencies = await here.run(shard_by=shard_by)
        assert second.orders == 0
        assert sorted(here.asked) == ["enterprises", "productServiceOrders", *["services"] * pages]
        assert latencies < pages + BODY + 1.1

    run_virtually(scenario)


def test_what_is_asked_before_the_sink_is_open_is_not_asked_again_however_soon_that_is() -> None:
    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def scenario() -> None:
        here = Hotels(199)
        here.offload = at_once
        await here.run()
        assert here.asked.count("enterprises") == 1

    run_virtually(scenario)


def test_a_first_run_closes_with_one_request_for_a_thousand_services_whatever_its_windows() -> None:
    async def scenario() -> None:
        here = Hotels(199)
        _, latencies = await here.run(shard_by="portfolio")
        windows = 6  # from the last of November 2024 to the end of March 2026, cut at each quarter
        assert here.asked.count("productServiceOrders") == windows + 1
        rounds = 3  # four walks until one is answered, the others, and what closes the run
        assert latencies < 1 + rounds * (1 + BODY) + 0.1

    run_virtually(scenario)
