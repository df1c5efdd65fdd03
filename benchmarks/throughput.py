"""How fast the whole job is, against a bare loop that receives and decodes the same pages and does nothing else.

Both have as many connections open, and both share the machine with the simulator, which keeps the pages ready. What the
disk can do is told, too: JSONL is limited by it where it is slow (TMPDIR names another place to write to).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from operator import truediv
from pathlib import Path
from statistics import median

import aiohttp
import anyio
import msgspec
from _common import UNLIMITED, expect, load, options, run, work_folder

from fetcher.connector.transport import Heard, HttpTransport, Reply
from fetcher.connector.types import ProductServiceOrder
from fetcher.job import Job
from fetcher.simulator import Simulator, start_process
from fetcher.sinks import make_sink

CONNECTIONS = 48
"""As the job's walks: 16 for each of 3 portfolios."""
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
        await asyncio.gather(*(work(session) for _ in range(CONNECTIONS)))
    return orders, time.perf_counter() - started


def disk(folder: Path) -> float:
    """Megabytes a second that can be written, each 30 of them synced."""
    chunk = os.urandom(2**20) * 30
    place = folder / "disk"
    started = time.perf_counter()
    with place.open("wb", buffering=0) as file:
        for _ in range(10):
            file.write(chunk)
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    place.unlink()
    return 10 * len(chunk) / 1e6 / seconds


def remove(place: Path) -> None:
    """Remove what a sink wrote there."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def main() -> None:
    short = options(__doc__ or "")
    orders, rounds = (60_000, 2) if short else (900_000, 7)
    arguments = ["--orders", str(orders), "--services", "300", "--enterprises", "12", "--years", "1", "--plain"]
    arguments += ["--requests", UNLIMITED, "--keep", "1000"]
    rates: dict[str, list[float]] = {}
    written = 0.0
    with work_folder() as folder, start_process(arguments) as simulator:
        bodies = asyncio.run(record(simulator))
        for number in range(rounds):
            count, seconds = asyncio.run(bare(simulator.address, bodies))
            rates.setdefault("bare", []).append(count / seconds)
            written = max(written, disk(folder))
            for name in ("null", "jsonl", "parquet", "duckdb"):
                place = folder / f"{number}.{name}"
                report, seconds = load(simulator, "null:" if name == "null" else f"{name}:{place}", requests=10_000)
                rates.setdefault(name, []).append(report.orders / seconds)
                remove(place)
    print(f"\n{orders:,} orders, {len(bodies)} pages, {rounds} interleaved rounds: best rate, middle ratio")
    print(f"the disk takes {written:,.0f} MB/s")
    print(f"{'':22}{'orders/s':>12}{'of bare':>10}")
    ratios = {name: median(map(truediv, of_name, rates["bare"])) for name, of_name in rates.items()}
    for name, of_name in rates.items():
        label = "receive and decode" if name == "bare" else f"whole job to {name}:"
        print(f"{label:22}{max(of_name):12,.0f}{ratios[name]:10.2f}")
    for name, target in TARGETS.items():
        expect(ratios[name] >= target, f"{name}: at {target} of bare or more", short=short)


run(main)
