"""Whether the simulator is fast enough not to be what is measured: full pages a second to a bare client; its memory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import msgspec
from _common import UNLIMITED, expect, options, run

from fetcher.simulator import Simulator, start_process


async def pages(simulator: Simulator, seconds: float) -> float:
    """Full pages a second to a client that does not even decode."""
    platform = simulator.document["platform"]
    portfolio = simulator.document["portfolios"][0]
    tokens = {"ClientToken": platform["client_token"], "AccessToken": portfolio["access_token"], "Client": "bare"}
    root = f"{simulator.address}/api/connector/v1"
    headers = {"Content-Type": "application/json"}
    count = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        body = msgspec.json.encode({**tokens, "Limitation": {"Count": 1000}})
        async with session.post(f"{root}/services/getAll", data=body, headers=headers) as response:
            services = [service["Id"] for service in (await response.json())["Services"]]
        query = {**tokens, "ServiceIds": services, "Limitation": {"Count": 1000}}
        body = msgspec.json.encode(query)
        started = time.perf_counter()

        async def work() -> None:
            nonlocal count
            while time.perf_counter() - started < seconds:
                async with session.post(f"{root}/productServiceOrders/getAll", data=body, headers=headers) as response:
                    count += len(await response.read()) > 600_000

        await asyncio.gather(*(work() for _ in range(8)))
        return count / (time.perf_counter() - started)


def main() -> None:
    short = options(__doc__ or "")
    orders = 100_000 if short else 1_000_000
    arguments = ["--orders", str(orders), "--services", "900", "--portfolios", "1", "--plain", "--requests", UNLIMITED]
    started = time.perf_counter()
    with start_process(arguments) as simulator:
        made = time.perf_counter() - started
        rate = max(asyncio.run(pages(simulator, 1 if short else 4)) for _ in range(3))
        status = Path(f"/proc/{simulator.pid}/status").read_text()
        peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    print(f"\n{orders:,} orders made in {made:.1f} s, {peak:,.0f} MB; {rate:,.0f} full pages a second")
    expect(rate > 1500, "more than 1,500 full pages a second", short=short)
    expect(peak < 2000, "under 2 GB")


run(main)
