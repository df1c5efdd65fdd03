"""A simulated platform over HTTP, within a test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fetcher.config import Config, make_config
from fetcher.job import Job
from fetcher.report import Report
from fetcher.simulator import Behaviour, Faults, Latency, SimulatedPlatform, SimulatorServer, Size, World
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from fetcher.sinks import make_sink

SMALL = Size(portfolios=2, enterprises=5, services=60, orders=900, years=0.5)


class Site:
    """A platform that is served, and configurations for it."""

    def __init__(self, platform: SimulatedPlatform, address: str) -> None:
        self.platform = platform
        self.address = address

    def config(self, sink: str | None = None, **limits: Any) -> Config:
        """A fetcher's configuration for it."""
        document = config_document(self.platform, self.address)
        defaults = {"page_size": 100, "requests": 5000, "per_seconds": 1}
        return make_config({**document, "sink": {"url": sink} if sink else {}, "limits": {**defaults, **limits}})

    async def run(self, sink: str = "null:", *, full: bool = False, **limits: Any) -> Report:
        """Run the job into a sink."""
        async with Job(self.config(sink, **limits), sink=make_sink(sink), full=full) as job:
            return await job.run()

    def truth(self) -> set[str]:
        """The id of every order."""
        return {id_ for id_, _ in self.platform.world.truth()}


@asynccontextmanager
async def site(
    size: Size = SMALL,
    *,
    behaviour: Behaviour | None = None,
    faults: Faults | None = None,
    seed: int = 1,
    latency: Latency | None = None,
) -> AsyncIterator[Site]:
    """Serve a world on a loopback port."""
    world = World(seed, size, int((time.time() - 600) * MICROS))
    platform = SimulatedPlatform(world, behaviour or Behaviour(requests=5000, per_seconds=1), faults, seed)
    async with SimulatorServer(platform, latency=latency).serve() as address:
        yield Site(platform, address)
