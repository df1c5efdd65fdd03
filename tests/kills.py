"""SIGKILL at random moments, again and again, into every sink; afterwards the rows are the truth.

    python -m tests.kills 200        # until 200 kills were survived

Against a simulator in a process of its own whose orders change meanwhile. Each load is killed up to 10 times, then
finished; every row is compared.
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

from fetcher.connector.types import parse_utc
from fetcher.simulator import Simulator, start_process
from tests.postgres import Server, running_server

PROGRAM = """
import asyncio, json, sys
import fetcher
from fetcher.config import make_config
from fetcher.sinks import base
import fetcher.sinks.jsonl, fetcher.sinks.parquet, fetcher.sinks.duckdb, fetcher.sinks.postgres
for kind in (fetcher.sinks.jsonl.JsonlSink, fetcher.sinks.parquet.ParquetSink,
             fetcher.sinks.duckdb.DuckdbSink, fetcher.sinks.postgres.PostgresSink):
    kind.batch_rows = 300  # many commits, so that many kills fall into one
print("started", flush=True)
report = asyncio.run(fetcher.run(make_config(json.load(open(sys.argv[1])))))
print(report.complete, report.failed)
"""

WORLD = ["--orders", "6000", "--services", "80", "--enterprises", "5", "--years", "0.7", "--latency", "4"]
Rows = list[tuple[str, str]]


def survive(kind: str, seed: int, server: Server | None) -> int:
    """One load, killed at random moments; returns how many kills it survived.

    Raises:
        AssertionError: the rows are not the truth, or something is there twice.
    """
    chance = random.Random(seed)
    world = [*WORLD, "--seed", str(seed % 5), "--requests", "100000", "--faults", "changes=40,late=2"]
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
            done = _start(folder)
            output, _ = done.communicate(timeout=100)
            assert "True []" in output, output
        check(_rows(kind, folder, url), simulator, keyed=kind in ("duckdb", "postgresql"))
    return kills


def _start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-c", PROGRAM, str(folder / "config.json")]
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


def check(rows: Rows, simulator: Simulator, *, keyed: bool) -> None:
    """The rows are the truth: each order at its newest version, and nothing twice."""
    versions = [(id_, _instant(updated)) for id_, updated in rows]
    assert len(set(versions)) == len(versions), "a version is there twice"
    newest: dict[str, float] = {}
    for id_, updated in versions:
        newest[id_] = max(newest.get(id_, 0.0), updated)
    truth = {id_: _instant(updated) for _, id_, updated in simulator.truth()}
    missing = [id_ for id_ in truth if newest.get(id_) != truth[id_]]
    assert newest == truth, f"{len(missing)} orders are missing or old, {len(newest)} of {len(truth)}"
    assert not keyed or len(rows) == len(truth), "a keyed sink holds an order twice"


def _instant(updated: str) -> float:
    return parse_utc(updated).timestamp()


def _rows(kind: str, folder: Path, url: str) -> Rows:
    query = "SELECT id::varchar, to_char(updated_utc AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM {}"
    if kind == "jsonl":
        orders = [json.loads(line) for line in (folder / "o.jsonl").read_bytes().splitlines()]
        return [(order["Id"], order["UpdatedUtc"]) for order in orders]
    if kind == "parquet":
        import pyarrow.parquet as pq

        parts = [pq.read_table(part, columns=["id", "updated_utc"]) for part in (folder / "p").glob("*.parquet")]
        return [(row["id"], row["updated_utc"].isoformat()) for part in parts for row in part.to_pylist()]
    if kind == "duckdb":
        import duckdb

        with duckdb.connect(folder / "o.duckdb", read_only=True) as db:
            rows = db.execute("SELECT id::varchar, epoch_us(updated_utc) FROM product_service_orders").fetchall()
            from fetcher.simulator.world import instant

            return [(id_, instant(updated).isoformat()) for id_, updated in rows]
    import psycopg

    address, _, schema = url.partition("?schema=")
    with psycopg.connect(address) as db:
        return db.execute(query.format(f"{schema}.product_service_orders")).fetchall()


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
