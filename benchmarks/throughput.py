"""How fast the whole job is, against a bare loop that receives and decodes the same pages and does nothing else."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import anyio
import msgspec
from _common import UNLIMITED, expect, load, options, run, work_folder

from fetcher.connector.transport import Heard, HttpTransport, Reply
from fetcher.connector.types import ProductServiceOrder
from fetcher.job import Job
from fetcher.simulator import Simulator, start_process
from fetcher.sinks import make_sink

WALKS = 16
TARGETS = {"null": 0.85, "jsonl": 0.65, "parquet": 0.45}


class Page(msgspec.Struct):
    items: list[ProductServiceOrder] = msgspec.field(name="ProductServiceOrders")
    cursor: str | None = msgspec.field(name="Cursor", default=None)


class Recording(HttpTransport):
    """Keeps what was sent for orders."""

    def __init__(self, address: str) -> None:
        super().__init__(address, seconds=60, body_bytes=64 * 2**20)
        self.bodies: list[bytes] = []

    async def post(self, path: str, body: bytes, heard: Heard, room: anyio.Semaphore | None = None) -> Reply:
        if path.startswith("productServiceOrders"):
            self.bodies.append(body)
        return await super().post(path, body, heard, room)


async def record(simulator: Simulator) -> list[bytes]:
    """The requests of a whole job."""
    async with Recording(simulator.address) as transport:
        sink = make_sink("null:")
        async with Job(simulator.config("null:", requests=100_000), sink=sink, transport=transport) as job:
            await job.run()
        return transport.bodies


async def bare(address: str, bodies: list[bytes]) -> tuple[int, float]:
    """Send them, receive the answers, decode them: nothing else. Orders, and seconds."""
    decoder = msgspec.json.Decoder(Page)
    url = f"{address}/api/connector/v1/productServiceOrders/getAll"
    waiting = list(reversed(bodies))
    orders = 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal orders
        while waiting:
            async with session.post(url, data=waiting.pop(), headers={"Content-Type": "application/json"}) as response:
                body = await response.read()
            orders += len(decoder.decode(body).items)

    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work(session) for _ in range(WALKS)))
    return orders, time.perf_counter() - started


def main() -> None:
    short = options(__doc__ or "")
    orders, rounds = (60_000, 2) if short else (600_000, 5)
    arguments = ["--orders", str(orders), "--services", "300", "--enterprises", "6", "--years", "1", "--plain"]
    best: dict[str, float] = {}
    with work_folder() as folder, start_process([*arguments, "--requests", UNLIMITED]) as simulator:
        bodies = asyncio.run(record(simulator))
        for number in range(rounds):
            count, seconds = asyncio.run(bare(simulator.address, bodies))
            best["bare"] = max(best.get("bare", 0), count / seconds)
            for name, url in (
                ("null", "null:"),
                ("jsonl", f"jsonl:{folder}/{number}.jsonl"),
                ("parquet", f"parquet:{folder}/{number}"),
                ("duckdb", f"duckdb:{folder}/{number}.duckdb"),
            ):
                report, seconds = load(simulator, url)
                best[name] = max(best.get(name, 0), report.orders / seconds)
    print(f"\n{orders:,} orders, {len(bodies)} pages, best of {rounds} interleaved rounds")
    print(f"{'':22}{'orders/s':>12}{'of bare':>10}")
    for name, rate in best.items():
        label = "receive and decode" if name == "bare" else f"whole job to {name}:"
        print(f"{label:22}{rate:12,.0f}{rate / best['bare']:10.2f}")
    for name, target in TARGETS.items():
        expect(best[name] / best["bare"] >= target, f"{name}: at {target} of bare or more", short=short)


run(main)
