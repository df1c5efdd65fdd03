"""The most memory that a run takes, with few orders and with many: it must not follow the data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from _common import UNLIMITED, expect, options, run, work_folder

from fetcher.simulator import start_process

RUN = """
import asyncio, json, resource, sys
import fetcher
from fetcher.config import make_config
document = json.loads(sys.argv[1])
report = asyncio.run(fetcher.run(make_config(document)))
own, largest = (resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
processes = document["limits"]["processes"]
print(report.orders, own + (processes * largest if processes > 1 else 0))
"""


def main() -> None:
    short = options(__doc__ or "")
    sizes = (30_000, 150_000) if short else (100_000, 3_000_000)
    peaks: dict[tuple[str, int], list[int]] = {}
    for orders in sizes:
        # Full pages in either case: what is compared is the number of orders, not the shape of the pages.
        arguments = ["--orders", str(orders), "--services", "90", "--years", "0.5", "--enterprises", "9"]
        arguments += ["--requests", UNLIMITED]
        with work_folder() as folder, start_process(arguments) as simulator:
            for name in ("null", "jsonl", "parquet", "duckdb"):
                for processes in (1, 2):
                    url = _url(name, folder / str(processes))
                    peaks.setdefault((name, processes), []).append(peak(simulator.document, url, processes))
    print(
        f"\n{'peak memory, MB':18}{'processes':>10}" + "".join(f"{orders:>14,}" for orders in sizes) + f"{'ratio':>8}"
    )
    for (name, processes), (few, many) in peaks.items():
        print(f"{name:18}{processes:>10}{few:>14}{many:>14}{many / few:>8.2f}")
    for (name, processes), (few, many) in peaks.items():
        label = name if processes == 1 else f"{name}, {processes} processes and the one that commits"
        expect(many <= 1.2 * few, f"{label}: within 20 %", short=short)
        if processes == 1:
            expect(max(few, many) < 300, f"{label}: under 300 MB", short=short)


def _url(name: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return {
        "null": "null:",
        "jsonl": f"jsonl:{folder}/orders.jsonl",
        "parquet": f"parquet:{folder}/orders",
        "duckdb": f"duckdb:{folder}/orders.duckdb",
    }[name]


def peak(document: dict[str, object], url: str, processes: int) -> int:
    """The peak of a process that runs the job, in MB; with others, what all would have if each were as large as the
    largest."""
    import json

    whole = {**document, "sink": {"url": url}, "limits": {"requests": 100_000, "processes": processes}}
    # JSON has no times, and the configuration wants one.
    text = json.dumps(whole)
    done = subprocess.run([sys.executable, "-c", RUN, text], capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[1])


run(main)
