"""What it costs that any order may be one that cannot be read, and that versions are told by their content.

1. Two orders in a thousand cannot be read, or not be kept by every sink: all others are there, and how long it takes.
2. `--against FOLDER`, a checkout of another version: how fast the clean path is beside it, in interleaved rounds, each
   load in a process of its own, the other's and ours in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from _common import UNLIMITED, expect, load, options, run, work_folder

from fetcher.simulator import Simulator, start_process
from fetcher.sinks import make_sink

SHARE = 0.002
KINDS = ("jsonl", "parquet", "duckdb")
PROGRAM = """
import asyncio, json, logging, resource, sys, time
import fetcher
from fetcher.config import make_config
logging.disable(logging.CRITICAL)
config = make_config(json.load(sys.stdin))
fetcher.sinks.make_sink(config.sink_url).probe()  # so that what the sink needs is imported
def processor():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
started, before = time.perf_counter(), processor()
report = asyncio.run(fetcher.run(config))
assert report.complete
print(time.perf_counter() - started, processor() - before)
"""


def once(checkout: Path, simulator: Simulator, url: str) -> tuple[float, float]:
    """One load by the code of a checkout: seconds, and seconds of its processor."""
    limits = {"requests": 100_000, "processes": 1}
    document = json.dumps({**simulator.document, "sink": {"url": url}, "limits": limits})
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=document, capture_output=True, text=True, check=True, env=environment
    )
    seconds, processor = map(float, done.stdout.split()[-2:])
    return seconds, processor


def against(other: Path, orders: int, rounds: int, *, short: bool) -> None:
    """Compare the clean path with the one of another version."""
    here = Path(__file__).parent.parent
    print(f"\nthe clean path, this version beside {other.name}: {orders:,} orders, {rounds} interleaved rounds")
    arguments = ["--orders", str(orders), "--plain", "--requests", UNLIMITED, "--keep", "2000"]
    with work_folder() as folder, start_process(arguments) as simulator:
        for name in ("null", *KINDS):
            taken: dict[Path, list[tuple[float, float]]] = {here: [], other: []}
            for number in range(rounds + 1):  # the first is not counted: it has the simulator make the pages
                for checkout in (here, other) if number % 2 else (other, here):
                    place = folder / f"{name}-{number}-{checkout is here}"
                    place.mkdir()
                    figures = once(checkout, simulator, "null:" if name == "null" else f"{name}:{place / 'o'}")
                    shutil.rmtree(place)
                    if number:
                        taken[checkout].append(figures)
            ratios = [
                median(theirs[which] / ours[which] for ours, theirs in zip(*taken.values(), strict=True))
                for which in (0, 1)
            ]
            print(f"{name:10}{ratios[0]:8.3f} of its speed, {ratios[1]:.3f} by processor time")
            expect(max(ratios) >= 0.98, f"{name}: within 2 % of the speed before", short=short)


def unreadable(orders: int, *, short: bool) -> None:
    """Two orders in a thousand cannot be read."""
    print(f"\ntwo of a thousand orders cannot be read, or not be kept by every sink: {orders:,} orders")
    arguments = ["--orders", str(orders), "--plain", "--requests", UNLIMITED]
    with work_folder() as folder, start_process(arguments) as simulator:
        for name in KINDS:
            _, clean = load(simulator, f"{name}:{folder}/clean.{name}")
            simulator.set_faults(f"bad-order={SHARE}")
            url = f"{name}:{folder}/spoiled.{name}"
            report, seconds = load(simulator, url, whole=False)
            progress = make_sink(url).holdings().progress
            aside = sum("/aside/" in record for record in progress)
            simulator.set_faults("")
            print(
                f"{name:10}{report.orders:>9,} rows, {aside:,} kept aside; {clean / seconds:.2f} of the speed without"
            )
            expect(report.orders + aside == orders, f"{name}: every other order is there", short=False)
            expect(not report.complete and aside > 0, f"{name}: and those are named", short=False)


def main() -> None:
    short, other = options(__doc__ or "", against="a checkout of another version to compare with")
    unreadable(30_000 if short else 300_000, short=short)
    if other is not None:
        against(Path(other).resolve(), 60_000 if short else 400_000, 1 if short else 5, short=short)


run(main)
