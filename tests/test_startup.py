"""What a run does not need is not imported; who loads is chosen by what there is to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import typer
from msgspec import structs

import fetcher
import fetcher.cli
from fetcher.errors import SinkError
from fetcher.job import Job
from fetcher.processes import supervisor
from fetcher.simulator import Latency, Simulator, start_process
from fetcher.simulator.faults import CONDITIONS, HOSTILE, STRIKES
from fetcher.sinks.base import Progress
from fetcher.sinks.null import NullSink
from fetcher.terminal.plain import plain_run
from tests.http import site

UNNEEDED = (
    "aiohttp",
    "aiolimiter",
    "duckdb",
    "fetcher.loading.portfolios",
    "fetcher.notebook",
    "fetcher.prospect",
    "fetcher.simulator",
    "fetcher.sinks.arrow",
    "fetcher.terminal.demo",
    "importlib.metadata",
    "psycopg",
    "pyarrow",
    "pydantic",
    "rich.live",  # the rest of rich is what some versions of typer import
    "urllib.request",
)
TO_LOAD_HERE = {"aiohttp", "aiolimiter", "fetcher.loading.portfolios", "importlib.metadata", "urllib.request"}
"""What a run needs that does not have others load."""


def imported_by(code: str, *arguments: str) -> set[str]:
    """The modules that are there once a process has run some code, which may exit."""
    listed = "finally: print(*sys.modules, file=sys.__stderr__)"
    code = f"import sys\ntry:\n {code}\n{listed}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=_environment()
    )
    return set(done.stderr.splitlines()[-1].split())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(fetcher.__file__).parent.parent)}


def test_the_command_line_imports_nothing_that_a_run_does_not_need() -> None:
    imported = imported_by("import fetcher.cli")
    assert "fetcher.job" in imported
    assert imported.isdisjoint(UNNEEDED), imported.intersection(UNNEEDED)


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    assert [name for name in imported_by("import fetcher") if name.startswith("fetcher")] == ["fetcher"]
    assert "fetcher.job" not in imported_by("from fetcher import ConfigError")
    assert "fetcher.job" in imported_by("from fetcher import Job")


def test_every_public_name_is_there_and_is_listed() -> None:
    assert {name for name in fetcher.__all__ if getattr(fetcher, name, None) is None} == set()
    assert set(dir(fetcher)) >= {*fetcher.__all__, "__version__", "config", "errors", "sinks"}
    assert fetcher.Config is fetcher.config.Config
    everything: dict[str, object] = {}
    exec("from fetcher import *", everything)
    assert everything.keys() >= set(fetcher.__all__)


def test_the_version_is_still_there_and_other_names_are_not() -> None:
    assert fetcher.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fetcher.nothing  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with start_process(["--orders", "300", "--portfolios", "2", "--enterprises", "2", "--services", "4"]) as here:
        yield here


def config_file(simulator: Simulator, folder: Path, processes: int | None) -> Path:
    """A configuration that the command line can read."""
    document: Any = simulator.document
    portfolios = [
        f'[[portfolios]]\nname = "{one["name"]}"\naccess_token = "{one["access_token"]}"'
        for one in document["portfolios"]
    ]
    path = folder / "config.toml"
    path.write_text(
        f'[platform]\naddress = "{simulator.address}"\nclient_token = "{document["platform"]["client_token"]}"\n'
        + "\n".join(portfolios)
        + f"\n[orders]\nupdated_from = {document['orders']['updated_from']}\n"
        + "[limits]\nrequests = 100_000\n"
        + (f"processes = {processes}\n" if processes else "")
    )
    return path


@pytest.mark.parametrize(("processes", "needed"), [(1, TO_LOAD_HERE), (2, set[str]()), (None, set[str]())])
def test_a_run_imports_what_calls_the_platform_only_where_it_does(
    processes: int | None, needed: set[str], simulator: Simulator, tmp_path: Path
) -> None:
    if processes is None and supervisor._cores() < 2:
        pytest.skip("one core is never worth a second process")
    config = config_file(simulator, tmp_path, processes)
    sink = f"--sink=jsonl:{tmp_path}/orders.jsonl"  # not there yet, so that workers start at once
    imported = imported_by("from fetcher.cli import main; main()", "run", str(config), sink, "--quiet")
    assert imported.intersection(UNNEEDED) == needed


def test_the_help_names_the_simulator_s_faults() -> None:
    assert ", ".join([*STRIKES, *HOSTILE, *CONDITIONS]) == fetcher.cli._FAULTS


def test_only_portfolios_with_much_to_load_are_worth_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_cores", lambda: 16)
    now = datetime.now(UTC)
    names = [f"p{number}" for number in range(30)]
    portfolios = [{"name": name, "access_token": name} for name in names]
    document = {
        "platform": {"address": "http://127.0.0.1:1", "client_token": "c"},
        "portfolios": portfolios,
        "orders": {"updated_from": "2023-01-01T00:00:00Z"},
        "sink": {"url": "null:"},
    }
    config = fetcher.config.make_config(document)
    count = supervisor.processes_for
    assert count(config) == count(config, dict.fromkeys(names)) == 2
    assert count(config, dict.fromkeys(names, now - timedelta(days=1))) == 1
    assert count(config, dict.fromkeys(names, now - timedelta(days=100))) == 2
    assert count(config, dict.fromkeys(names[:20], now)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "other.toml",
        "--full --json other.toml --quiet",
        "--sink duckdb:o.duckdb --from 2024-01-01 --until=2024-02-01",
        "--sink=jsonl:- --from=",
        "other.toml --sink postgresql://h/d?schema=s",
    ],
)
def test_plain_arguments_are_read_as_typer_reads_them(arguments: str) -> None:
    listed = arguments.split()
    command = typer.main.get_command(fetcher.cli.app).commands["run"]
    read = plain_run(["run", *listed])
    if read is None:
        assert listed[-1].endswith("=")
        return
    params = command.make_context("run", listed).params
    params["config"] = Path(params["config"])  # the oldest typer makes it one later
    assert structs.asdict(read) == params


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "run --help",
        "run --sink",
        "run --sink --json",
        "run --sink=",
        "run one.toml two.toml",
        "run --full=yes",
        "run --ful",
        "run -- one.toml",
        "run --from 2024-01-01 --from 2024-01-02",
        "plan",
        "",
    ],
)
def test_what_may_be_a_mistake_is_left_to_typer(arguments: str) -> None:
    assert plain_run(arguments.split()) is None


class Opening(NullSink):
    """Opens once the platform was asked for something, or too late."""

    def __init__(self, asked: Callable[[], bool], url: str = "null:") -> None:
        super().__init__(url)
        self.asked = asked
        self.late = False

    def open(self) -> Progress:
        deadline = time.monotonic() + 30
        while not self.asked() and not self.late:
            self.late = time.monotonic() > deadline
            time.sleep(0.001)  # in the sink's thread
        return super().open()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_platform_is_asked_for_what_takes_no_progress_before_the_sink_is_open(processes: int) -> None:
    async def check() -> None:
        async with site() as here:
            sink = Opening(lambda: any(one.requests for one in here.platform.stats.portfolios.values()))
            config = here.config("null:", processes=processes)
            async with Job(config, sink=sink, processes=processes) as job:
                report = await job.run()
            assert (report.complete, report.orders, sink.late) == (True, len(here.truth()), False)

    anyio.run(check)


def test_a_sink_that_cannot_be_opened_calls_off_what_was_asked_before() -> None:
    class Broken(NullSink):
        def open(self) -> Progress:
            raise SinkError("null:", "it is broken", "Mend it")

    async def check() -> None:
        async with site(latency=Latency(60)) as here:
            with anyio.fail_after(20), pytest.raises(SinkError, match="it is broken"):
                async with Job(here.config("null:"), sink=Broken("null:")) as job:
                    await job.run()

    anyio.run(check)


def test_a_run_with_nothing_new_starts_no_workers(
    simulator: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if supervisor._cores() < 2:
        pytest.skip("one core is never worth a second process")
    caplog.set_level("INFO", "fetcher")
    config = simulator.config(f"jsonl:{tmp_path}/orders.jsonl", requests=100_000)
    assert asyncio.run(fetcher.run(config)).complete
    assert "processes load 2 portfolios" in caplog.text
    caplog.clear()
    assert asyncio.run(fetcher.run(config)).complete
    assert "processes load" not in caplog.text
    assert asyncio.run(fetcher.run(config, full=True)).complete
    assert "processes load 2 portfolios" in caplog.text


def test_workers_that_start_once_the_sink_has_told_its_progress_add_to_the_requests_that_were_sent_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    if supervisor._cores() < 2:
        pytest.skip("one core is never worth a second process")
    caplog.set_level("INFO", "fetcher")

    async def check() -> None:
        async with site() as here:
            counts = here.platform.stats.portfolios
            config = here.config("null:", requests=100_000)
            everybody = len(config.portfolios)
            sink = Opening(
                lambda: sum(one.requests for one in counts.values()) >= everybody, "of a kind that nobody knows:"
            )
            async with Job(config, sink=sink, processes=None) as job:
                report = await job.run()
            assert "2 processes load 2 portfolios" in caplog.text
            assert (report.complete, report.orders, sink.late) == (True, len(here.truth()), False)
            assert report.requests == sum(one.requests for one in counts.values())

    anyio.run(check)
