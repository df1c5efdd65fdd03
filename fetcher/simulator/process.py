"""The simulator as a process of its own: its options, its configuration for a fetcher, its start and its end."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from urllib.request import Request, urlopen

import msgspec

from fetcher.config import Config, make_config
from fetcher.connector.types import utc_text
from fetcher.simulator.faults import Faults, parse_faults
from fetcher.simulator.platform import RETRY_AFTER, Behaviour, SimulatedPlatform, Stats
from fetcher.simulator.server import Latency, SimulatorServer
from fetcher.simulator.world import DAY, MICROS, Size, World, instant

START_SECONDS = 300.0
"""A world of many million orders takes minutes to make."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All that a simulator can be told."""

    port: int = 0
    seed: int = 1
    size: Size = Size()
    behaviour: Behaviour = Behaviour()
    latency: Latency = Latency()
    compress: bool = True
    faults: Faults = Faults()
    requests: int = 200
    per_seconds: float = 30.0
    keep_mebibytes: int = 0


class Simulator(msgspec.Struct, frozen=True):
    """A simulator that runs in a process of its own."""

    address: str
    pid: int
    document: dict[str, object]
    """A fetcher's configuration for it, less the sink."""

    def config(self, sink: str | None = None, **limits: object) -> Config:
        """A fetcher's configuration for it; `limits` are keys of `[limits]`."""
        return make_config({**self.document, "sink": {"url": sink} if sink else {}, "limits": limits})

    def truth(self, portfolio: str | None = None) -> list[tuple[str, str, str]]:
        """Portfolio, id and `UpdatedUtc` of every order that it holds now."""
        query = f"?portfolio={portfolio}" if portfolio else ""
        lines = self._get(f"/simulator/truth{query}").decode().splitlines()
        return [(owner, id_, updated) for owner, id_, updated in (line.split("\t") for line in lines)]

    def orders(self) -> list[tuple[str, bytes]]:
        """Portfolio and JSON of every order that it holds now."""
        lines = [line.partition(b"\t") for line in self._get("/simulator/orders").splitlines()]
        return [(owner.decode(), body) for owner, _, body in lines]

    def stats(self) -> Stats:
        """What it has seen so far."""
        return msgspec.json.decode(self._get("/simulator/stats"), type=Stats)

    def set_faults(self, faults: str) -> None:
        """Have other things go wrong from now on; an empty text is nothing."""
        self._get("/simulator/faults", faults.encode())

    def _get(self, path: str, body: bytes | None = None) -> bytes:
        request = Request(self.address + path, data=body)  # noqa: S310 an address on this machine, made by us
        with urlopen(request, timeout=120) as response:  # noqa: S310
            return response.read()


@contextmanager
def start_process(arguments: Sequence[str] = ()) -> Generator[Simulator]:
    """Start a simulator in a process of its own, and end it.

    Args:
        arguments: as `python -m fetcher.simulator --help` tells.

    Raises:
        RuntimeError: it did not start; it told why on standard error.
    """
    command = [sys.executable, "-m", "fetcher.simulator", *arguments, "--parent", str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603 our own
    try:
        line = process.stdout.readline() if process.stdout is not None else b""
        if not line:
            raise RuntimeError("the simulator did not start")
        started = msgspec.json.decode(line, type=_Started)
        yield Simulator(started.address, process.pid, started.document)
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


class _Started(msgspec.Struct):
    address: str
    document: dict[str, object]


def config_document(platform: SimulatedPlatform, address: str) -> dict[str, object]:
    """A fetcher's configuration for a simulated platform, less sink and limits."""
    world = platform.world
    return {
        "platform": {"address": address, "client_token": world.client_token},
        "portfolios": [
            {"name": portfolio.name, "access_token": token} for token, portfolio in world.portfolios.items()
        ],
        "orders": {"updated_from": _start(platform)},
    }


def _start(platform: SimulatedPlatform) -> str:
    """A midnight before all that the platform holds."""
    oldest = min(platform.world.updated, default=int(time.time() * MICROS))
    return utc_text(instant(oldest - oldest % DAY) - timedelta(days=1))


def config_text(platform: SimulatedPlatform, address: str, sink: str) -> str:
    """The same as a `config.toml`. The tokens in it open nothing but this simulator."""
    world = platform.world
    lines = [
        "[platform]",
        f'address = "{address}"',
        f'client_token = "{world.client_token}"',
        *(
            f'\n[[portfolios]]\nname = "{portfolio.name}"\naccess_token = "{token}"'
            for token, portfolio in world.portfolios.items()
        ),
        f"\n[orders]\nupdated_from = {_start(platform)}",
        f"\n[limits]\nrequests = {platform.behaviour.requests}\nper_seconds = {platform.behaviour.per_seconds:g}",
        f'\n[sink]\nurl = "{sink}"\n',
    ]
    return "\n".join(lines)


def make_platform(options: Options) -> SimulatedPlatform:
    """A platform with a world of its own, whose newest orders are of now."""
    world = World(options.seed, options.size, int(time.time() * MICROS))
    return SimulatedPlatform(world, options.behaviour, options.faults, options.seed, options.keep_mebibytes * 2**20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until ended by a signal, or until the parent process is gone. Prints one JSON line once it listens."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        options = _options(parsed)
    except ValueError as error:
        parser.error(str(error))
    asyncio.run(_serve(options, parsed.parent))


async def _serve(options: Options, parent: int) -> None:
    platform = make_platform(options)
    server = SimulatorServer(platform, latency=options.latency, compress=options.compress)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with server.serve(options.port) as address:
        line = msgspec.json.encode({"address": address, "document": config_document(platform, address)})
        print(line.decode(), flush=True)
        while not stopped.is_set() and (not parent or os.getppid() == parent):
            try:
                async with asyncio.timeout(1):
                    await stopped.wait()
            except TimeoutError:
                pass


def parse_hotels(text: str) -> tuple[tuple[int, int], ...]:
    """Services and orders of each enterprise, from `COUNTxSERVICESxORDERS,...`; an empty text is none.

    Raises:
        ValueError: it is not written so.
    """
    hotels: list[tuple[int, int]] = []
    for part in filter(None, text.split(",")):
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x\d+", part):
            raise ValueError(f"hotels are written COUNTxSERVICESxORDERS,..., e.g. 1x5x60000,100x5x200; not {part!r}")
        count, services, orders = map(int, part.split("x"))
        hotels += [(services, orders)] * count
    return tuple(hotels)


def _options(parsed: argparse.Namespace) -> Options:
    size = Size(
        portfolios=parsed.portfolios,
        enterprises=parsed.enterprises,
        services=parsed.services,
        orders=parsed.orders,
        years=parsed.years,
        skew=parsed.skew,
        hotels=parse_hotels(parsed.hotels),
    )
    behaviour = Behaviour(
        requests=parsed.requests,
        per_seconds=parsed.per_seconds,
        inclusive=parsed.inclusive,
        by_creation=parsed.by_creation,
        retry_after=parsed.retry_after,
    )
    return Options(
        port=parsed.port,
        seed=parsed.seed,
        size=size,
        behaviour=behaviour,
        latency=Latency(parsed.latency / 1000, parsed.jitter, parsed.spread),
        compress=not parsed.plain,
        faults=parse_faults(parsed.faults),
        keep_mebibytes=parsed.keep,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fetcher.simulator", description="A simulated platform.")
    size = Size()
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--portfolios", type=int, default=size.portfolios)
    parser.add_argument("--enterprises", type=int, default=size.enterprises)
    parser.add_argument("--services", type=int, default=size.services)
    parser.add_argument("--orders", type=int, default=size.orders)
    parser.add_argument("--years", type=float, default=size.years)
    parser.add_argument("--skew", type=float, default=size.skew, help="how unequal enterprises are; 0: all alike")
    exact = "COUNTxSERVICESxORDERS,...: enterprises one by one, dealt to the portfolios in turn, instead of the counts"
    parser.add_argument("--hotels", default="", help=exact)
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds")
    parser.add_argument("--jitter", type=float, default=0.0, help="0 to 1: share of the latency")
    parser.add_argument("--spread", type=float, default=0.0, help="standard deviation of the latency's logarithm")
    parser.add_argument("--keep", type=int, default=0, help="mebibytes of pages kept as they were sent, for measuring")
    parser.add_argument("--faults", default="", help="kind=number,...")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--per-seconds", type=float, default=30.0)
    parser.add_argument("--inclusive", action="store_true", help="intervals include their end")
    parser.add_argument("--by-creation", action="store_true", help="newest means created, not updated")
    parser.add_argument("--retry-after", choices=RETRY_AFTER, default="seconds")
    parser.add_argument("--plain", action="store_true", help="answers are not compressed")
    parser.add_argument("--parent", type=int, default=0, help="ends when this process is no longer its parent")
    return parser
