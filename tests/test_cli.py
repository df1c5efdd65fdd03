"""The command line as its user meets it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fetcher.cli import app
from fetcher.simulator import Simulator, start_process

WORLD = ["--orders", "1500", "--services", "90", "--enterprises", "6", "--years", "0.6"]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with start_process([*WORLD, "--requests", "100000"]) as running:
        yield running


def fetcher(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fetcher", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env={**os.environ, **environment},
    )


def write_config(folder: Path, simulator: Simulator, sink: str = "jsonl:o.jsonl", extra: str = "") -> Path:
    document: Any = simulator.document
    portfolios = "".join(
        f'[[portfolios]]\nname = "{one["name"]}"\naccess_token = "{one["access_token"]}"\n'
        for one in document["portfolios"]
    )
    path = folder / "config.toml"
    path.write_text(
        f'[platform]\naddress = "{simulator.address}"\nclient_token = {{ env = "CLIENT" }}\n{portfolios}'
        f"[orders]\nupdated_from = {document['orders']['updated_from']}\n"
        f'[sink]\nurl = "{sink}"\n[limits]\nrequests = 100000\n{extra}'
    )
    return path


@pytest.fixture
def client_token(simulator: Simulator) -> dict[str, str]:
    document: Any = simulator.document
    return {"CLIENT": document["platform"]["client_token"]}


def test_a_run_ends_with_one_json_object_for_machines(
    simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    done = fetcher("run", "--json", folder=tmp_path, **client_token)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    expected = {"orders", "pages", "requests", "retries", "throttled", "seconds", "complete", "watermark", "sink"}
    assert expected | {"portfolios", "failed"} <= set(summary)
    assert summary["orders"] == 1500
    assert set(summary["portfolios"]) == {"portfolio-1", "portfolio-2", "portfolio-3"}
    again = fetcher("run", folder=tmp_path, **client_token)
    assert "complete: 0 new orders" in again.stdout
    assert "portfolio-1: " in again.stderr
    status = fetcher("status", folder=tmp_path, **client_token)
    assert sum(int(line.split()[1].replace(",", "")) for line in status.stdout.splitlines()[1:4]) == 1500
    assert json.loads(fetcher("status", "--json", folder=tmp_path, **client_token).stdout)[0]["progress"]["last_run"]


def test_orders_on_standard_output_pipe_and_nothing_else_is_there(
    simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    done = fetcher("run", "--sink", "jsonl:-", folder=tmp_path, **client_token)
    assert done.returncode == 0
    assert len({json.loads(line)["Id"] for line in done.stdout.splitlines()}) == 1500
    assert "complete: 1,500 new orders" in done.stderr
    assert done.stderr.count("cannot be resumed") == 1


def test_plan_and_check_write_nothing(simulator: Simulator, tmp_path: Path, client_token: dict[str, str]) -> None:
    write_config(tmp_path, simulator)
    planned = fetcher("plan", folder=tmp_path, **client_token)
    assert planned.returncode == 0
    assert "enterprise" in planned.stdout
    checked = fetcher("check", folder=tmp_path, **client_token)
    assert checked.returncode == 0
    assert checked.stdout.count("ok  ") == 4
    plans = json.loads(fetcher("plan", "--json", folder=tmp_path, **client_token).stdout)
    assert all(one["shards_by_portfolio"] <= one["shards_by_enterprise"] for one in plans)
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


def test_a_wrong_token_is_told_by_check_and_run(simulator: Simulator, tmp_path: Path) -> None:
    write_config(tmp_path, simulator)
    checked = fetcher("check", folder=tmp_path, CLIENT="WRONG-SECRET")
    assert checked.returncode == 1
    assert "401" in checked.stdout
    done = fetcher("run", "--json", folder=tmp_path, CLIENT="WRONG-SECRET")
    assert done.returncode == 1
    assert "Check the portfolio's access_token" in json.loads(done.stdout)["failed"][0]["error"]
    assert "WRONG-SECRET" not in checked.stdout + checked.stderr + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra", "told"),
    [
        (["run", "nowhere.toml"], "", "nowhere.toml"),
        (["run", "--sink", "ftp:x"], "", "sink.url"),
        (["run", "--sink", "jsonl:missing/o.jsonl"], "", "there is no folder"),
        (["run", "--sink", "parquet:missing/deep/o"], "", "there is no folder"),
        (["run", "--sink", "duckdb:config.toml"], "", "no DuckDB database"),
        (["run", "--sink", "postgresql://me:SECRET@127.0.0.1:1/x"], "", "refused"),
        (["run", "--until", "1999-01-01"], "", "ends before it begins"),
        (["run", "--from", "soon"], "", "--from"),
        (["run"], "speed = 3\n", "limits.speed"),
        (["run"], "page_size = 0\n", "limits.page_size"),
        (["run", "--fast"], "", "--fast"),
        (["simulate", "--faults", "gremlins=1"], "", "gremlins"),
        (["simulate", "--enterprises", "1"], "", "--enterprises"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(
    arguments: list[str],
    extra: str,
    told: str,
    simulator: Simulator,
    tmp_path: Path,
    client_token: dict[str, str],
) -> None:
    write_config(tmp_path, simulator, extra=extra)
    done = fetcher(*arguments, folder=tmp_path, **client_token)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "SECRET" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


def test_an_unset_variable_is_told_with_its_cure(simulator: Simulator, tmp_path: Path) -> None:
    write_config(tmp_path, simulator)
    done = fetcher("run", folder=tmp_path)
    assert done.returncode == 2
    assert "CLIENT is not set" in done.stderr
    assert "export CLIENT" in done.stderr


def test_a_missing_extra_is_told_with_its_command(
    simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    for sink, extra in (("parquet:o", "parquet"), ("duckdb:o.duckdb", "duckdb"), ("postgresql://x/y", "postgres")):
        done = fetcher("run", "--sink", sink, folder=tmp_path, PYTHONPATH=str(tmp_path), **client_token)
        assert done.returncode == 2
        *before, last = done.stderr.splitlines()
        assert f"pip install 'fetcher[{extra}]'" in last
        # A package that is there and cannot be imported is found out while processes start, which is told.
        assert before in ([], ["2 processes load 3 portfolios"])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_within_five_seconds_and_the_next_run_goes_on(
    number: int, processes: int, tmp_path: Path
) -> None:
    with start_process([*WORLD, "--requests", "100000", "--latency", "60"]) as slow:
        write_config(tmp_path, slow, extra=f"page_size = 10\nwalks = 2\nprocesses = {processes}\n")
        document: Any = slow.document
        environment = {**os.environ, "CLIENT": document["platform"]["client_token"]}
        command = [sys.executable, "-m", "fetcher", "run", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
        deadline = time.monotonic() + 30
        while slow.stats().portfolios["portfolio-1"].pages < 10 and time.monotonic() < deadline:
            time.sleep(0.05)  # two other processes need the machine now
        process.send_signal(number)
        signalled = time.monotonic()
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - signalled < 5
        assert process.returncode == 130
        summary = json.loads(output)
        assert summary["interrupted"]
        committed = len((tmp_path / "o.jsonl").read_bytes().splitlines())
        assert 0 < committed == summary["orders"] < 1500
        status = fetcher("status", folder=tmp_path, CLIENT=environment["CLIENT"])
        assert "interrupted" in status.stdout
        write_config(tmp_path, slow, extra="page_size = 100\n")  # what is left is not to take long
        again = fetcher("run", "--json", folder=tmp_path, CLIENT=environment["CLIENT"])
        assert again.returncode == 0
        assert len((tmp_path / "o.jsonl").read_bytes().splitlines()) == 1500


def redirected(command: str, redirection: str, folder: Path, **environment: str) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and error of a command whose output a shell redirects."""
    script = f'exec "$0" -m fetcher {command} {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        cwd=folder,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


NOWHERE = [
    ">&-",
    "2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "<&- >&- 2>&-",
]


@pytest.mark.parametrize("redirection", NOWHERE)
@pytest.mark.parametrize("command", ["run", "run --json"])
def test_output_that_cannot_be_written_is_no_failure_of_a_load(
    command: str, redirection: str, simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    code, output, errors = redirected(command, redirection, tmp_path, **client_token)
    assert code == 0
    assert len({json.loads(line)["Id"] for line in (tmp_path / "o.jsonl").read_bytes().splitlines()}) == 1500
    assert b"Traceback" not in errors
    if ">&-" not in redirection.split() and ">/dev/full" not in redirection.split():
        assert b"1500" in output or b"1,500" in output
    elif "2>" not in redirection:
        assert errors.count(b"standard output cannot be written") == 1


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
@pytest.mark.parametrize(
    ("command", "code"),
    [("status", 0), ("plan", 0), ("check", 0), ("check --json", 0), ("--version", 0), ("run --fast", 2), ("run no", 2)],
)
def test_output_that_cannot_be_written_changes_no_exit_code(
    command: str, code: int, redirection: str, simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    found, _, errors = redirected(command, redirection, tmp_path, **client_token)
    assert found == code
    assert b"Traceback" not in errors
    assert b"Assertion" not in errors


@pytest.mark.parametrize("command", ["run", "status", "run --json"])
def test_a_reader_that_leaves_is_no_failure_and_nothing_to_tell(
    command: str, simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fetcher", *command.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, **client_token},
    )
    os.close(writing)
    assert done.returncode == 0
    assert b"cannot be written" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "<&- >&- 2>&-"])
def test_standard_output_as_the_sink_has_to_be_written(
    redirection: str, simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    code, _, errors = redirected("run --sink jsonl:-", redirection, tmp_path, **client_token)
    assert code == 1
    assert b"Traceback" not in errors
    assert b"sink jsonl:-" in errors or "2>&-" in redirection


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
)
def test_a_name_may_have_letters_that_the_output_s_encoding_lacks(
    environment: dict[str, str], simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    config = write_config(tmp_path, simulator)
    name = "Łódź-Zürich-東京"
    config.write_text(config.read_text().replace("portfolio-1", name), "utf-8")
    narrow = "ascii" in environment.values() or "LC_ALL" in environment
    for command in ("run", "plan", "check", "status") if narrow else ("run",):
        code, output, errors = redirected(command, "", tmp_path, **client_token, **environment)
        assert code == 0, errors
        assert b"-Z" in output
        assert b"Traceback" not in errors
    code, output, _ = redirected("run --json", "", tmp_path, **client_token, **environment)
    assert code == 0
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    assert name in json.loads(output.decode(encoding))["portfolios"]


def test_a_sink_s_name_that_is_no_text_is_printed_somehow(
    simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    write_config(tmp_path, simulator)
    for options in ("", "--json"):
        command = f'run {options} --sink "$(printf "jsonl:x\\377")"'
        code, output, errors = redirected(command, "", tmp_path, **client_token)
        assert code == 0, errors
        assert b"jsonl:x" in output
        assert b"Traceback" not in errors


@pytest.mark.parametrize(
    "option", ["", "--sink jsonl:~nobody-of-that-name/x", "--sink jsonl:~nobody-of-that-name/x.gz"]
)
def test_a_home_that_nobody_knows_is_one_message(
    option: str, simulator: Simulator, tmp_path: Path, client_token: dict[str, str]
) -> None:
    config = write_config(tmp_path, simulator)
    if not option:
        config.write_text(config.read_text().replace('{ env = "CLIENT" }', '{ file = "~nobody-of-that-name/token" }'))
    code, _, errors = redirected(f"run {option}", "", tmp_path, **client_token)
    assert code == 2
    assert b"Set HOME" in errors
    assert errors.count(b"\n") == 1


def test_the_demo_shows_that_it_loaded_the_truth(tmp_path: Path) -> None:
    done = fetcher("demo", "--orders", "3000", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3,000 rows here, every order at its newest version" in done.stdout
    assert "0 requests against the contract, 0 throttled" in done.stdout


def test_help_is_worth_reading(tmp_path: Path) -> None:
    assert fetcher("--help", folder=tmp_path).stdout.count("\n") > 10
    for command in ("run", "demo", "plan", "check", "status", "simulate"):
        shown = CliRunner().invoke(app, [command, "--help"])
        assert (shown.exit_code, len(shown.output) > 300) == (0, True)
