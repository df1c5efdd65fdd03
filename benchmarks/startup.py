"""How soon `fetcher run` asks the platform for something, and when it starts workers.

From the start of the process to the arrival of its first request at the simulator: with one process into each kind of
sink, with workers where there is enough to do for them, and in a second run that finds nothing new, which starts none.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import msgspec
from _common import expect, options, run, work_folder

from fetcher.simulator import Behaviour, SimulatedPlatform, SimulatorServer, Size, World, config_text

MOST_SECONDS = 0.35
MOST_SECONDS_WITH_WORKERS = 0.5
SINKS = ("null", "jsonl", "parquet", "duckdb")
FEW = Size(portfolios=2, enterprises=4, services=20, orders=400)
MANY = Size(portfolios=20, enterprises=40, services=200, orders=4000)
"""Whose tokens together allow more than one process can take."""


class Platform:
    """A simulated platform in this process, which knows when it was asked first."""

    def __init__(self, size: Size) -> None:
        self._platform = SimulatedPlatform(World(1, size, int(time.time() * 10**6)), Behaviour())
        self._first: float | None = None

    async def start(self, url: str, folder: Path) -> tuple[float, int]:
        """Run the program to its end; returns seconds to its first request, and how many workers it started."""
        self._first = None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        async with SimulatorServer(self._platform, clock=self._clock).serve() as address:
            config = folder / "config.toml"
            config.write_text(config_text(self._platform, address, url))
            command = [sys.executable, "-m", "fetcher", "run", str(config)]
            began = time.time()
            process = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            output, errors = await process.communicate()
        if process.returncode or self._first is None:
            raise SystemExit(f"{url}: {(output + errors).decode()}")
        told = [line.split()[0] for line in errors.decode().splitlines() if " processes load " in line]
        return self._first - began, int(told[0]) if told else 0

    def _clock(self) -> float:
        now = time.time()
        self._first = self._first or now
        return now


class Figure(msgspec.Struct):
    """What was measured of one kind of run."""

    seconds: list[float] = []
    workers: int = 0

    def add(self, seconds: float, workers: int) -> None:
        self.seconds.append(seconds)
        self.workers = max(self.workers, workers)


async def measure(rounds: int) -> dict[str, Figure]:
    """By what is run: the first round is left out, since nothing is in the disk's cache yet."""
    figures: dict[str, Figure] = {}
    few, many = Platform(FEW), Platform(MANY)
    with work_folder() as folder:
        for number in range(rounds + 1):
            found: dict[str, tuple[float, int]] = {}
            for name in SINKS:
                url = "null:" if name == "null" else f"{name}:{folder}/{number}-few.{name}"
                found[name] = await few.start(url, folder)
            for name in SINKS:
                url = "null:" if name == "null" else f"{name}:{folder}/{number}-many.{name}"
                found[f"{name}, workers"] = await many.start(url, folder)
                if name != "null":
                    found[f"{name}, nothing new"] = await many.start(url, folder)
            if number:
                for name, figure in found.items():
                    figures.setdefault(name, Figure()).add(*figure)
    return figures


def main() -> None:
    short = options(__doc__ or "")
    figures = asyncio.run(measure(1 if short else 7))
    print(f"\n{'':24}{'best':>8}{'median':>8}{'worst':>8}{'workers':>9}   (seconds to the first request)")
    for name, figure in figures.items():
        seconds = figure.seconds
        print(f"{name + ':':24}{min(seconds):8.2f}{median(seconds):8.2f}{max(seconds):8.2f}{figure.workers:9}")
    print()
    several = len(os.sched_getaffinity(0)) > 1
    for name, figure in figures.items():
        with_workers = name.endswith(", workers")
        most = MOST_SECONDS_WITH_WORKERS if with_workers and several else MOST_SECONDS
        expect(median(figure.seconds) <= most, f"{name}: the first request within {most:g} s", short=short)
        expect((figure.workers > 0) == (with_workers and several), f"{name}: {figure.workers} workers")


if __name__ == "__main__":
    run(main)
