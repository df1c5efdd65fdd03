"""DuckDB's file: who has it open, and one run at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pytest

import fetcher
from fetcher.errors import SinkBusyError
from fetcher.sinks import make_sink
from tests.http import site
from tests.orders import order, page
from tests.sinks.test_sinks import commit

SECOND = "2024-03-01T10:00:00Z"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that a run left."""
    path = tmp_path / "orders.duckdb"
    sink = make_sink(f"duckdb:{path}")
    sink.open()
    commit(sink, page([order(1, SECOND)]), progress={"a": "1"})
    sink.close()
    return path


@contextmanager
def elsewhere(program: str) -> Iterator[int]:
    """Another process that runs the program, says something, and waits; gives its id."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}\nprint('open', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process.pid
    finally:
        process.communicate("\n", timeout=30)


def refused(path: Path, match: str) -> None:
    """Whatever needs the file says so, and the file is as it was."""
    sink = make_sink(f"duckdb:{path}")
    methods: list[Callable[[], object]] = [sink.probe, sink.open, sink.holdings]
    for method in methods:
        with pytest.raises(SinkBusyError, match=match) as caught:
            method()
        assert caught.value.cure
    sink.close()


@pytest.mark.parametrize("spelling", ["same", "relative", "link"])
def test_a_second_run_of_one_process_is_refused(file: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = file
    if spelling == "relative":
        monkeypatch.chdir(file.parent)
        other = Path("orders.duckdb")
    elif spelling == "link":
        other = file.with_name("link.duckdb")
        other.symlink_to(file)
    first = make_sink(f"duckdb:{file}")
    first.open()
    refused(other, "another run writes to it now")
    assert commit(first, page([order(2, SECOND)])) == 1  # the refusals did it no harm
    first.close()
    second = make_sink(f"duckdb:{other}")
    assert second.open() == {"a": "1"}
    second.close()


def test_of_two_runs_at_once_one_loads_and_the_other_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"duckdb:{tmp_path / 'orders.duckdb'}"
            ends = await asyncio.gather(*[fetcher.run(here.config(url)) for _ in range(3)], return_exceptions=True)
            reports = [end for end in ends if isinstance(end, fetcher.Report)]
            assert [report.orders for report in reports] == [len(here.truth())]
            assert sum(isinstance(end, SinkBusyError) for end in ends) == 2
            with duckdb.connect(tmp_path / "orders.duckdb") as db:
                query = "SELECT count(*), count(DISTINCT id) FROM product_service_orders"
                assert db.execute(query).fetchall() == [(len(here.truth()),) * 2]

    asyncio.run(check())


def test_a_run_of_another_process_is_told_as_one(file: Path) -> None:
    with elsewhere(f"from fetcher.sinks import make_sink\nsink = make_sink({f'duckdb:{file}'!r})\nsink.open()"):
        refused(file, "another run writes to it now")


def test_a_run_that_was_killed_is_no_run(file: Path) -> None:
    program = f"from fetcher.sinks import make_sink\nmake_sink({f'duckdb:{file}'!r}).open()\nimport os\nos._exit(9)"
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    sink = make_sink(f"duckdb:{file}")
    sink.open()
    sink.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_process_that_has_the_file_open_is_named(file: Path, read_only: bool) -> None:
    with elsewhere(f"import duckdb\ndb = duckdb.connect({os.fspath(file)!r}, read_only={read_only})") as process:
        sink = make_sink(f"duckdb:{file}")
        with pytest.raises(SinkBusyError, match=f"process {process} \\(.*python.*\\) has it open") as caught:
            sink.open()
        assert "another run" not in str(caught.value)
        if read_only:
            assert sink.holdings().rows == {"north": 1}  # who reads disturbs no reader
        sink.close()
    sink.open()
    sink.close()


@pytest.mark.parametrize("how", ["open", "open for reading", "attached"])
def test_a_notebook_that_has_the_file_open_is_told_to_close_it(file: Path, how: str) -> None:
    if how == "attached":
        mine = duckdb.connect()
        mine.execute(f"ATTACH '{file}' AS orders")
        with suppress(duckdb.Error), duckdb.connect(file, config={"threads": "1"}):
            pytest.skip("this version of DuckDB does not notice itself")
    else:
        mine = duckdb.connect(file, read_only=how == "open for reading")
    with mine:
        refused(file, "this process has it open already")
    sink = make_sink(f"duckdb:{file}")
    sink.open()
    sink.close()


def test_a_sink_that_could_not_be_opened_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "orders.duckdb"
    with duckdb.connect(path) as db:
        db.execute("CREATE TABLE product_service_orders (id text)")
    for _ in range(2):
        sink = make_sink(f"duckdb:{path}")
        with pytest.raises(fetcher.SinkError, match="has no column"):
            sink.open()
    with duckdb.connect(path) as db:
        db.execute("DROP TABLE product_service_orders")
    sink = make_sink(f"duckdb:{path}")
    sink.open()
    sink.close()
