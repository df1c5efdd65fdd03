"""Whether what is loaded is the truth: rows against the simulator's, in every sink, with latency and real limits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from _common import expect, load, options, run, work_folder

from fetcher.connector.types import parse_utc
from fetcher.simulator import start_process

Rows = Counter[tuple[str, float]]


def main() -> None:
    short = options(__doc__ or "")
    orders = 40_000 if short else 300_000
    arguments = ["--orders", str(orders), "--latency", "50", "--jitter", "0.5"]
    for extra in ([], ["--inclusive", "--by-creation"]):
        print(f"\n{' '.join(extra) or 'half-open intervals, newest by update'}")
        # The limit is the platform's, 200 in 30 s, with every second made a tenth.
        limits = {"requests": 200, "per_seconds": 3.0}
        with (
            work_folder() as folder,
            start_process([*arguments, *extra, "--requests", "200", "--per-seconds", "3"]) as simulator,
        ):
            truth = Rows((id_, parse_utc(updated).timestamp()) for _, id_, updated in simulator.truth())
            for name, url, read in (
                ("jsonl", f"jsonl:{folder}/o.jsonl", _jsonl),
                ("parquet", f"parquet:{folder}/o", _parquet),
                ("duckdb", f"duckdb:{folder}/o.duckdb", _duckdb),
            ):
                report, seconds = load(simulator, url, **limits)
                rows = read(Path(url.partition(":")[2]))
                expect(rows == truth, f"{name}: {rows.total():,} rows are the truth, {seconds:.1f} s")
                expect(report.throttled == 0, f"{name}: {report.throttled} times 429 in {report.requests} requests")
            refused = simulator.stats().against_contract_count
            expect(refused == 0, f"{refused} requests against the contract")


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as lines:
        orders = (json.loads(line) for line in lines)
        return Rows((order["Id"], parse_utc(order["UpdatedUtc"]).timestamp()) for order in orders)


def _parquet(path: Path) -> Rows:
    rows = Rows()
    for part in path.glob("*.parquet"):
        table = pq.read_table(part, columns=["id", "updated_utc"])
        rows.update((row["id"], row["updated_utc"].timestamp()) for row in table.to_pylist())
    return rows


def _duckdb(path: Path) -> Rows:
    with duckdb.connect(path, read_only=True) as db:
        query = "SELECT id::varchar, epoch_us(updated_utc) / 1e6 FROM product_service_orders"
        return Rows((id_, updated) for id_, updated in db.execute(query).fetchall())


run(main)
