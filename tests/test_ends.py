"""However a run ends, what comes out of it is its own error, or none: whatever the walks were at in that instant."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import anyio
import pytest

from fetcher.config import make_config
from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply, brings_page
from fetcher.errors import SinkError
from fetcher.job import Job
from fetcher.loading.portfolios import Portfolios
from fetcher.simulator import SimulatedPlatform, World
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from fetcher.sinks import Sink
from tests.http import SMALL
from tests.simulation import BEGIN, KeyedSink, breaking, inline
from tests.virtual import run_virtually

WORLD = World(1, SMALL, int((BEGIN + 900) * MICROS))


class Turns:
    """Answers after a few turns of the loop, as a socket does: whoever is cancelled then has an answer already."""

    def __init__(self, chance: random.Random) -> None:
        self.platform = SimulatedPlatform(WORLD)
        self.chance = chance

    async def turn(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda done=future: done.done() or done.set_result(None))
            await future

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        await self.turn()
        headers = {"Content-Type": "application/json"}
        answer = self.platform.handle(path, headers, body, BEGIN + anyio.current_time())
        heard(answer.status, answer.headers)
        if lease is not None and brings_page(answer.status):
            await lease.acquire()
        await self.turn()
        return Reply(answer.status, answer.headers, answer.body)


def job(chance: random.Random, sink: Sink | None = None) -> Job:
    transport = Turns(chance)
    document = config_document(transport.platform, "http://127.0.0.1:1")
    config = make_config({**document, "limits": {"page_size": 20, "opens_per_second": 100_000}})
    return Job(config, sink=sink, transport=transport, offload=inline, chance=chance)


@pytest.mark.parametrize("seed", range(40))
def test_a_sink_that_fails_is_what_is_told(seed: int) -> None:
    async def check() -> None:
        chance = random.Random(seed)
        sink = KeyedSink()
        error = SinkError("memory:", "the disk is full", "Make room")
        breaking(sink, chance.randint(1, 4), error, before=True)
        with pytest.raises(SinkError) as caught:
            async with job(chance, sink) as running:
                await running.run()
        assert caught.value is error

    run_virtually(check)


@pytest.mark.parametrize("seed", range(40))
def test_the_pages_may_be_left_at_any_time(seed: int) -> None:
    async def check() -> int:
        chance = random.Random(seed)
        last = chance.randint(1, 15)
        taken = 0
        async with job(chance) as running, aclosing(running.pages()) as pages:
            async for page in pages:
                assert page.orders
                taken += 1
                if taken == last:
                    break
        room = running._alone()._room
        assert room.free == Portfolios.ROOM, "whatever was on its way"
        return taken

    assert run_virtually(check)
