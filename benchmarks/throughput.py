"""How fast the whole job is, against a bare loop that receives and decodes the same pages and does nothing else.

Both have as many connections open, and both share the machine with the simulator, which keeps the pages ready (and for
that takes 6 GB). The bare loop is one process; the job is measured as one, and as the several that it takes by itself
where limits and cores allow it. What the disk can do is told, too, because JSONL may be limited by it (TMPDIR names
another place to write to).
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
import msgspec
from _common import UNLIMITED, expect, load, options, run, work_folder

from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, HttpTransport, Reply
from fetcher.connector.types import ProductServiceOrder
from fetcher.job import Job
from fetcher.processes.supervisor import processes_for
from fetcher.simulator import Simulator, start_process
from fetcher.sinks import make_sink

CONNECTIONS = 48
LIMITS = {"requests": 100_000, "walks": 6}
"""As many connections for the job, too: 6 for each of 8 portfolios."""
BARE = ("bare", 1)
TARGETS = {"null": 0.85, "jsonl": 0.65, "parquet": 0.45}


class Page(msgspec.Struct):
    items: list[ProductServiceOrder] = msgspec.field(name="ProductServiceOrders")
    cursor: str | None = msgspec.field(name="Cursor", default=None)


class Recording(HttpTransport):
    """Keeps what was sent for orders."""

    def __init__(self, address: str) -> None:
        super().__init__(address, seconds=60, body_bytes=64 * 2**20)
        self.bodies: list[bytes] = []

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        if path.startswith("productServiceOrders"):
            self.bodies.append(body)
        return await super().post(path, body, heard, lease)


async def record(simulator: Simulator) -> list[bytes]:
    """The requests of a whole job."""
    async with Recording(simulator.address) as transport:
        sink = make_sink("null:")
        async with Job(simulator.config("null:", **LIMITS), sink=sink, transport=transport) as job:
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
    orders, rounds = (60_000, 2) if short else (2_000_000, 5)
    # Portfolios of like size: with several processes, the last one to end is what counts.
    arguments = ["--orders", str(orders), "--portfolios", "8", "--enterprises", "96", "--services", "960"]
    arguments += ["--skew", "0", "--years", "1", "--plain", "--requests", UNLIMITED, "--keep", "3000"]
    rates: dict[tuple[str, int], list[float]] = {}
    written = 0.0
    with work_folder() as folder, start_process(arguments) as simulator:
        bodies = asyncio.run(record(simulator))
        several = processes_for(simulator.config("null:", **LIMITS))
        for number in range(rounds):
            count, seconds = asyncio.run(bare(simulator.address, bodies))
            rates.setdefault(BARE, []).append(count / seconds)
            written = max(written, disk(folder))
            for name in ("null", "jsonl", "parquet", "duckdb"):
                for processes in sorted({1, several}):
                    place = folder / f"{number}-{processes}.{name}"
                    url = "null:" if name == "null" else f"{name}:{place}"
                    report, seconds = load(simulator, url, **LIMITS, processes=processes)
                    rates.setdefault((name, processes), []).append(report.orders / seconds)
                    remove(place)
    print(f"\n{orders:,} orders, {len(bodies)} pages, {rounds} interleaved rounds: best rate, middle ratio")
    print(f"the disk takes {written:,.0f} MB/s; by itself, the job takes {several} processes here")
    print(f"{'':22}{'processes':>10}{'orders/s':>12}{'of bare':>10}")
    ratios = {kind: median(map(truediv, of_kind, rates[BARE])) for kind, of_kind in rates.items()}
    for kind, of_kind in rates.items():
        label = "receive and decode" if kind == BARE else f"whole job to {kind[0]}:"
        print(f"{label:22}{kind[1]:>10}{max(of_kind):12,.0f}{ratios[kind]:10.2f}")
    for name, target in TARGETS.items():
        expect(ratios[name, several] >= target, f"{name}: at {target} of bare or more", short=short)


run(main)
