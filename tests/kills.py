"""SIGKILL at random moments, again and again, into every sink; afterwards the rows are the truth.

    python -m tests.kills 200        # until 200 kills were survived

Against a simulator in a process of its own whose orders change meanwhile, some of them twice within a second, and some
of which cannot be read. Each load is killed up to 10 times, then finished once all can be read; every row is compared.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fetcher.simulator import Simulator, start_process
from fetcher.sinks import make_sink
from tests.held import contents, held, rows, twice
from tests.postgres import Server, running_server

PROGRAM = """
import asyncio, json, sys
import fetcher
from fetcher.config import make_config
from fetcher.sinks import base
import fetcher.sinks.appending.jsonl, fetcher.sinks.appending.parquet, fetcher.sinks.duckdb, fetcher.sinks.postgres
for kind in (fetcher.sinks.appending.jsonl.JsonlSink, fetcher.sinks.appending.parquet.ParquetSink,
             fetcher.sinks.duckdb.DuckdbSink, fetcher.sinks.postgres.PostgresSink):
    kind.batch_rows = 300  # many commits, so that many kills fall into one
print("started", flush=True)
report = asyncio.run(fetcher.run(make_config(json.load(open(sys.argv[1]))), full="full" in sys.argv))
print(report.complete, report.failed)
"""

WORLD = ["--orders", "6000", "--services", "80", "--enterprises", "5", "--years", "0.7", "--latency", "4"]
FAULTS = "changes=40,late=2,same-second=1,bad-order=0.01"


def survive(kind: str, seed: int, server: Server | None) -> int:
    """One load, killed at random moments; returns how many kills it survived.

    Raises:
        AssertionError: the rows are not the truth, or something is there twice.
    """
    chance = random.Random(seed)
    world = [*WORLD, "--seed", str(seed % 5), "--requests", "100000", "--faults", FAULTS]
    with tempfile.TemporaryDirectory() as name, start_process(world) as simulator:
        folder = Path(name)
        url = {
            "jsonl": f"jsonl:{folder / 'o.jsonl'}",
            "parquet": f"parquet:{folder / 'p'}",
            "duckdb": f"duckdb:{folder / 'o.duckdb'}",
            "postgresql": f"{server.url}?schema=kills_{seed}" if server is not None else "",
        }[kind]
        document = {**simulator.document, "sink": {"url": url}}
        document["orders"] = {**document["orders"], "settle_seconds": 4, "overlap_seconds": 3}  # type: ignore[dict-item]
        limits = {"requests": 100_000, "page_size": 50, "walks": chance.choice([2, 8])}
        document["limits"] = {**limits, "processes": chance.choice([1, 2])}
        (folder / "config.json").write_text(json.dumps(document))
        kills = sum(_kill(folder, chance) for _ in range(chance.randrange(4, 11)))
        simulator.set_faults("")
        time.sleep(5)  # what was changed last must be as old as a run's margin
        for _ in range(2):
            finish(folder)
        assert not kept_aside(url), "what can be read is kept aside"
        # What could be read and was kept as it came has been mended without another time.
        finish(folder, "full")
        check(url, simulator)
    return kills


def finish(folder: Path, *options: str) -> None:
    """Run it to its end, which has to be whole."""
    done = _start(folder, *options)
    output, _ = done.communicate(timeout=100)
    assert "True []" in output, output


def kept_aside(url: str) -> list[str]:
    """The records of what is kept aside."""
    return [name for name in make_sink(url).holdings().progress if "/aside/" in name]


def _start(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-c", PROGRAM, str(folder / "config.json"), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=Path.cwd()
    )


def _kill(folder: Path, chance: random.Random) -> int:
    """Start a run, and kill it a little later; 0 if it was done by then."""
    process = _start(folder)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(chance.uniform(0, 1) ** 2 * 1.5)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return int(alive)


def check(url: str, simulator: Simulator) -> None:
    """The rows are the truth: each order at its newest version, and nothing twice."""
    found = rows(url)
    assert not (ids := twice(found, keyed=not url.startswith(("jsonl:", "parquet:")))), f"twice: {ids[:3]}"
    truth = contents(body for _, body in simulator.orders())
    has = held(url)
    wrong = [id_ for id_ in truth if has.get(id_) != truth[id_]]
    assert has == truth, f"{len(wrong)} orders are missing or old, {len(has)} of {len(truth)}: {wrong[:3]}"


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    survived, loads = dict.fromkeys(("jsonl", "parquet", "duckdb", "postgresql"), 0), 0
    with running_server() as server:
        while sum(survived.values()) < wanted:
            for kind in survived:
                survived[kind] += survive(kind, 1000 + loads, server)
                loads += 1
            print(f"{sum(survived.values())} kills survived in {loads} loads: {survived}", flush=True)


if __name__ == "__main__":
    main()
