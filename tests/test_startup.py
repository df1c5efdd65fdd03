"""What a run does not need is not imported; who loads is chosen by what there is to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import fetcher
import fetcher.cli
from fetcher.processes import supervisor
from fetcher.simulator import start_process
from fetcher.simulator.faults import CONDITIONS, HOSTILE, STRIKES

UNNEEDED = (
    "duckdb",
    "fetcher.notebook",
    "fetcher.prospect",
    "fetcher.simulator",
    "fetcher.sinks.arrow",
    "fetcher.terminal.demo",
    "psycopg",
    "pyarrow",
    "rich.live",  # the rest of rich is what some versions of typer import
)


def test_the_command_line_imports_nothing_that_a_run_does_not_need() -> None:
    code = "import sys, fetcher.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    imported = set(done.stdout.split())
    assert "fetcher.job" in imported
    assert imported.isdisjoint(UNNEEDED), imported.intersection(UNNEEDED)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(fetcher.__file__).parent.parent)}


def test_the_version_is_still_there_and_other_names_are_not() -> None:
    assert fetcher.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fetcher.nothing  # type: ignore[attr-defined]


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


def test_a_run_with_nothing_new_starts_no_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if supervisor._cores() < 2:
        pytest.skip("one core is never worth a second process")
    caplog.set_level("INFO", "fetcher")
    with start_process(["--orders", "300", "--portfolios", "2", "--enterprises", "2", "--services", "4"]) as here:
        config = here.config(f"jsonl:{tmp_path}/orders.jsonl", requests=100_000)
        assert asyncio.run(fetcher.run(config)).complete
        assert "processes load 2 portfolios" in caplog.text
        caplog.clear()
        assert asyncio.run(fetcher.run(config)).complete
        assert "processes load" not in caplog.text
        assert asyncio.run(fetcher.run(config, full=True)).complete
        assert "processes load 2 portfolios" in caplog.text
