"""A platform in memory, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import anyio
import msgspec
import pytest

from fetcher.config import make_config
from fetcher.connector.room import Lease, Room
from fetcher.connector.transport import Reply, TransportError
from fetcher.job import Job
from fetcher.report import Report
from fetcher.simulator import Latency, SimulatedPlatform, Size, World, parse_faults
from fetcher.simulator.process import config_document
from fetcher.simulator.virtual import MemoryTransport, run_virtually
from fetcher.simulator.world import MICROS, micros
from fetcher.sinks import make_sink

T = TypeVar("T")

NOW = micros(datetime(2026, 3, 31, 12, tzinfo=UTC)) / MICROS


def transport(faults: str = "", **options: float) -> MemoryTransport:
    world = World(3, Size(portfolios=1, enterprises=2, services=6, orders=300, years=0.1), int(NOW * MICROS))
    platform = SimulatedPlatform(world, faults=parse_faults(faults))
    return MemoryTransport(platform, Latency(0.4), random.Random(1), began=NOW + 60, **options)


async def ask(carrier: MemoryTransport, lease: Lease | None = None) -> tuple[Reply, list[int]]:
    world = carrier.platform.world
    tokens = {"ClientToken": world.client_token, "AccessToken": next(iter(world.portfolios)), "Client": "test"}
    body = msgspec.json.encode({**tokens, "Limitation": {"Count": 100}})
    heard: list[int] = []
    reply = await carrier.post("services/getAll", body, lambda status, _: heard.append(status), lease)
    return reply, heard


def timed(function: Callable[..., Awaitable[T]], *arguments: object) -> tuple[T, float]:
    async def run() -> tuple[T, float]:
        began = anyio.current_time()
        return await function(*arguments), anyio.current_time() - began

    return run_virtually(run)


def test_an_answer_comes_after_its_latency_and_is_heard() -> None:
    (reply, heard), seconds = timed(ask, transport())
    assert (reply.status, heard) == (200, [200])
    assert seconds == pytest.approx(0.4)


def test_a_page_takes_a_room_and_the_time_of_its_body() -> None:
    room = Room(1)
    _, seconds = timed(ask, transport(body_share=0.5), room.lease())
    assert seconds == pytest.approx(0.6)
    assert room.free == 0


@pytest.mark.parametrize(
    ("faults", "kind", "seconds"), [("stall=1", "timeout", 5.2), ("reset=1", "broken", 0.4), ("gzip=1", "corrupt", 0.4)]
)
def test_what_does_not_come_whole_does_not_come(faults: str, kind: str, seconds: float) -> None:
    room = Room(1)

    async def fail() -> TransportError:
        with pytest.raises(TransportError) as caught:
            await ask(transport(faults, seconds=5), room.lease())
        return caught.value

    error, took = timed(fail)
    assert error.kind == kind
    assert took == pytest.approx(seconds)
    assert room.free == 1


def test_who_waits_for_nobody_is_told() -> None:
    async def wait() -> None:
        await anyio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing will ever happen again"):
        run_virtually(wait)


def test_a_job_runs_in_it() -> None:
    async def inline(function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments)

    async def load() -> Report:
        carrier = transport()
        document = {**config_document(carrier.platform, "http://127.0.0.1:1"), "sink": {"url": "null:"}}
        config = make_config(document)
        async with Job(config, sink=make_sink("null:"), transport=carrier, offload=inline) as job:
            return await job.run()

    report, seconds = timed(load)
    assert report.complete
    assert (report.orders, report.throttled) == (300, 0)
    assert report.seconds == pytest.approx(seconds)
    assert seconds < 10
