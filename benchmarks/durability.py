"""What durable progress costs, and how quick a run is that has nothing to do.

With: as it is. Without: the same sinks, told no progress and not waiting for the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from _common import UNLIMITED, expect, load, options, run, work_folder

from fetcher.simulator import start_process
from fetcher.sinks import Sink, make_sink


@contextmanager
def careless(sink: Sink) -> Iterator[Sink]:
    """The sink without progress, and without the disk's word."""
    commit, sync = sink.commit, os.fsync
    sink.commit = lambda batch: commit(msgspec.structs.replace(batch, progress={}))  # type: ignore[method-assign]
    os.fsync = lambda _: None
    try:
        yield sink
    finally:
        os.fsync = sync


def main() -> None:
    short = options(__doc__ or "")
    orders, rounds = (60_000, 1) if short else (300_000, 5)
    best: dict[tuple[str, bool], float] = {}
    arguments = ["--orders", str(orders), "--plain", "--requests", UNLIMITED]
    with work_folder() as folder, start_process(arguments) as simulator:
        for number in range(rounds):
            for name in ("jsonl", "parquet", "duckdb"):
                for durable in (False, True):
                    url = f"{name}:{folder}/{number}-{durable}.{name}"
                    sink = make_sink(url)
                    if durable:
                        _, seconds = load(simulator, sink)
                    else:
                        with careless(sink):
                            _, seconds = load(simulator, sink)
                    best[name, durable] = min(best.get((name, durable), 1e9), seconds)
        print(f"\n{'':10}{'with':>10}{'without':>10}{'ratio':>8}   (seconds for {orders:,} orders, best of {rounds})")
        for name in ("jsonl", "parquet", "duckdb"):
            with_, without = best[name, True], best[name, False]
            print(f"{name:10}{with_:>10.2f}{without:>10.2f}{without / with_:>8.2f}")
            expect(without / with_ >= 0.9, f"{name}: at 0.9 or more of the speed without", short=short)
    _incremental(100_000 if short else 1_000_000, short=short)


def _incremental(orders: int, *, short: bool) -> None:
    print(f"\na run that finds nothing new in {orders:,} orders")
    with work_folder() as folder, start_process(["--orders", str(orders), "--requests", UNLIMITED]) as simulator:
        for name in ("jsonl", "parquet", "duckdb"):
            url = f"{name}:{folder}/orders.{name}"
            load(simulator, url)
            report, seconds = load(simulator, url)
            print(f"{name:10}{seconds:>6.2f} s, {report.requests} requests, {report.orders} new orders")
            expect(seconds < 2, f"{name}: under 2 seconds", short=short)


run(main)
