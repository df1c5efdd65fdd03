"""What the benchmarks share: the machine they run on, a job in this process, options."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, overload

from fetcher.job import Job
from fetcher.processes.supervisor import processes_for
from fetcher.report import Report
from fetcher.simulator import Simulator
from fetcher.sinks import Sink, make_sink

UNLIMITED = "1000000"


@overload
def options(description: str) -> bool: ...
@overload
def options(description: str, *, against: str) -> tuple[bool, str | None]: ...
def options(description: str, *, against: str | None = None) -> bool | tuple[bool, str | None]:
    """Whether `--short` was given; prints the machine and the versions.

    With `against`, the help of an option `--against FOLDER`, its value too.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="a small run, to see that it works")
    if against is not None:
        parser.add_argument("--against", metavar="FOLDER", help=against)
    parsed = parser.parse_args()
    short = bool(parsed.short)
    logging.getLogger("fetcher").setLevel(logging.ERROR)
    tell_machine(short)
    return short if against is None else (short, parsed.against)


def tell_machine(short: bool) -> None:
    """Print the machine and the versions."""
    names = ("fetcher", "aiohttp", "msgspec", "anyio", "pyarrow", "duckdb")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{versions}{' (short run)' if short else ''}")


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for what a benchmark writes, which is also where budgets are remembered."""
    folder = Path(tempfile.mkdtemp(prefix="fetcher-benchmark-"))
    os.environ["XDG_STATE_HOME"] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(simulator: Simulator, sink: Sink | str, *, whole: bool = True, **limits: object) -> tuple[Report, float]:
    """Run the job into a sink, which has to be `whole`; returns its report and how many seconds it took.

    Into a URL as its user would, in as many processes as that takes; into a sink that was made already, in this one.
    """
    target = make_sink(sink) if isinstance(sink, str) else sink
    config = simulator.config(target.url, **{"requests": 100_000, **limits})
    processes = processes_for(config) if isinstance(sink, str) else 1

    async def run() -> Report:
        async with Job(config, sink=target, processes=processes) as job:
            return await job.run()

    started = time.perf_counter()
    report = asyncio.run(run())
    seconds = time.perf_counter() - started
    if whole and not report.complete:
        raise SystemExit(f"the run was not complete: {report.failed}")
    return report, seconds


def expect(holds: bool, what: str, *, short: bool = False, told: bool = True) -> None:
    """Tell whether a figure holds; in a short run, on a machine with other work, nothing follows from it."""
    if told:
        print(f"{'ok  ' if holds else 'NOT '} {what}")
    if not holds and not short:
        _missed.append(what)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a benchmark; exits 1 if a figure did not hold."""
    main()
    sys.exit(1 if _missed else 0)


_missed: list[str] = []
