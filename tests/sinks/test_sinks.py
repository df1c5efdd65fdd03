"""What every sink promises: rows and progress together, nothing twice, the newest version wins."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow.parquet as pq
import pytest
import zstandard

from fetcher.errors import ConfigError, SinkError
from fetcher.sinks import Batch, EncodedPage, Extent, Page, Sink, make_sink
from fetcher.sinks.appending.jsonl import StdoutSink
from tests.orders import order, page
from tests.postgres import Server

KINDS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "duckdb", "postgresql")


def commit(sink: Sink, *pages: Page, progress: dict[str, str | None] | None = None, **options: Any) -> int:
    encoded = [sink.encode(one) for one in pages]
    return sum(sink.commit(Batch(pages=encoded, progress=progress or {}, **options)).values())


class Case:
    """One kind of sink, in one place; opened as often as wanted."""

    def __init__(self, kind: str, folder: Path, postgres: Callable[[], str]) -> None:
        self.kind = kind
        self.folder = folder
        if kind == "postgresql":
            self.url = postgres()
        elif kind == "parquet":
            self.url = f"parquet:{folder / 'orders'}"
        elif kind == "duckdb":
            self.url = f"duckdb:{folder / 'orders.duckdb'}"
        else:
            self.url = f"jsonl:{folder / ('orders.' + kind)}"

    def sink(self) -> Sink:
        return make_sink(self.url)

    def opened(self) -> Sink:
        sink = self.sink()
        sink.open()
        return sink

    def rows(self) -> list[tuple[str, str]]:
        """Every row's id and `updated_utc`, as a reader who knows nothing of fetcher finds them."""
        path = self.folder / f"orders.{self.kind}"
        query = "SELECT id::varchar, updated_utc FROM product_service_orders"
        if self.kind == "postgresql":
            address, _, schema = self.url.partition("?schema=")
            with psycopg.connect(address, autocommit=True) as db:
                exists = db.execute("SELECT to_regclass(%s)", (f"{schema}.product_service_orders",)).fetchone()
                if not exists or exists[0] is None:
                    return []
                found = db.execute(query.replace("product_service_orders", f"{schema}.product_service_orders"))
                return [(id_, _text(updated)) for id_, updated in found]
        if self.kind == "duckdb":
            if not path.exists():
                return []
            with duckdb.connect(path, read_only=True) as db:
                return [(id_, _text(updated)) for id_, updated in db.execute(query).fetchall()]
        if self.kind == "parquet":
            parts = sorted((self.folder / "orders").glob("*.parquet"))
            tables = [pq.read_table(part, columns=["id", "updated_utc"]).to_pylist() for part in parts]
            return [(row["id"], _text(row["updated_utc"])) for rows in tables for row in rows]
        data = path.read_bytes() if path.exists() else b""
        if self.kind == "jsonl.gz":
            data = gzip.decompress(data)
        elif self.kind == "jsonl.zst":
            reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
            data = reader.read()
        orders = [json.loads(line) for line in data.splitlines()]
        return [(one["Id"], _text(datetime.fromisoformat(one["UpdatedUtc"]))) for one in orders]


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path, lambda: request.getfixturevalue("schema_url"))


@pytest.fixture(params=[kind for kind in KINDS if kind != "postgresql"])
def file_case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path, lambda: "")


OLD = [order(number, f"2023-05-01T00:00:{number:02}Z") for number in range(5)]


def test_rows_and_progress_come_back(case: Case) -> None:
    sink = case.opened()
    assert commit(sink, page(OLD), progress={"north/a": "1", "north/b": "2"}) == 5
    assert commit(sink, progress={"north/a": None, "north/c": "3"}) == 0
    sink.finish()
    sink.close()
    assert sorted(case.rows()) == [(one["Id"], f"{one['UpdatedUtc'][:-1]}.000000") for one in OLD]
    again = case.sink()
    assert again.holdings().progress == {"north/b": "2", "north/c": "3"}
    assert again.holdings().rows == {"north": 5}
    assert sum(count.rows for count in again.extent().rows or ()) == 5
    assert again.holdings().newest == {"north": datetime(2023, 5, 1, 0, 0, 4, tzinfo=UTC)}
    assert again.open() == {"north/b": "2", "north/c": "3"}
    again.close()
    again.close()


def test_a_sink_that_is_not_there_holds_nothing_and_probing_makes_nothing(case: Case) -> None:
    before = sorted(case.folder.rglob("*"))
    case.sink().probe()
    holdings = case.sink().holdings()
    assert (holdings.rows, holdings.progress) == ({}, {})
    assert case.sink().extent() == Extent(rows=[], progress={})
    assert sorted(case.folder.rglob("*")) == before


def test_the_newest_version_is_the_order_in_whatever_order_they_come(case: Case) -> None:
    sink = case.opened()
    middle, newest, oldest = (f"2024-03-0{day}T00:00:00Z" for day in (2, 3, 1))
    commit(sink, page([order(1, middle), order(2, newest)]))
    commit(sink, page([order(1, newest), order(2, oldest)]), page([order(1, oldest), order(3, oldest)]))
    sink.close()
    rows = case.rows()
    newest_rows = {id_: max(updated for other, updated in rows if other == id_) for id_, _ in rows}
    assert [updated[:10] for _, updated in sorted(newest_rows.items())] == ["2024-03-03", "2024-03-03", "2024-03-01"]
    assert len(rows) == (3 if case.kind in ("duckdb", "postgresql") else 6)
    assert len(set(rows)) == len(rows)


def test_a_recent_version_that_comes_again_is_there_once(case: Case) -> None:
    recent = [order(number, f"2024-01-0{number}T00:00:00.5Z") for number in range(1, 5)]
    sink = case.opened()
    assert commit(sink, page(recent), page(recent)) == 4
    sink.close()
    # A later run has another `settled`, and the same instant may be written with other digits.
    later = [{**one, "UpdatedUtc": one["UpdatedUtc"].replace(".5Z", ".5000000Z")} for one in recent]
    sink = case.opened()
    assert commit(sink, page(later, settled="2024-06-01T00:00:00")) == 0
    sink.close()
    assert len(case.rows()) == 4


def test_a_walk_that_starts_again_repeats_nothing(case: Case) -> None:
    sink = case.opened()
    commit(sink, page(OLD[:2]))
    sink.close()
    sink = case.opened()
    assert commit(sink, page(OLD[:3]), page(OLD[2:4], repeats=True), page(OLD, repeats=True)) in (3, 5)
    sink.close()
    assert len(set(case.rows())) == 5


def test_a_version_that_is_twice_in_one_page_is_there_once(case: Case) -> None:
    first, other = order(1, "2023-01-01T00:00:00Z"), order(2, "2023-01-01T00:00:00Z")
    sink = case.opened()
    assert commit(sink, page([first, other, first])) == 2
    sink.close()
    assert sorted(id_ for id_, _ in case.rows()) == [first["Id"], other["Id"]]


def test_within_one_batch_what_came_before_a_repeat_is_known(case: Case) -> None:
    sink = case.opened()
    assert commit(sink, page(OLD[:3]), page(OLD, repeats=True)) == 5
    assert commit(sink, page([order(9, "2023-01-01T00:00:00Z")])) == 1
    assert commit(sink, page([order(9, "2023-01-01T00:00:00Z")], repeats=True)) == 0
    sink.close()
    assert len(case.rows()) == 6


def test_pages_that_another_process_encoded_are_kept_like_ours(case: Case) -> None:
    sink = case.opened()
    pages = [
        page([order(number, f"2024-01-01T00:00:{number:02}Z", BookerId=None) for number in range(50)]),
        page([order(7, "2024-01-01T00:00:07Z"), order(51, "2024-01-01T00:00:51.1234567Z")]),
        page([order(52, "2024-01-02T00:00:00Z"), order(52, "2024-01-02T00:00:00Z"), order(53, "2020-01-01T00:00:00Z")]),
    ]
    encoded: list[EncodedPage] = []
    for one in pages:
        parts: list[pickle.PickleBuffer] = []
        data = pickle.dumps(sink.encode(one), protocol=5, buffer_callback=parts.append)
        assert len(data) < 1000  # what is large goes beside it
        encoded.append(pickle.loads(data, buffers=[bytearray(part.raw()) for part in parts]))
    assert sum(sink.commit(Batch(pages=encoded, progress={})).values()) == 53
    sink.close()
    assert len(case.rows()) == 53


def test_what_is_forgotten_takes_no_room(tmp_path: Path) -> None:
    sink = make_sink(f"jsonl:{tmp_path / 'orders.jsonl'}")
    sink.open()
    commit(sink, page([order(number, f"2024-02-01T00:00:{number:02}Z") for number in range(30)]))
    commit(sink, progress={"a": "b"}, forget_before={"north": "2024-02-01T00:00:20"})
    sink.close()
    with sqlite3.connect(tmp_path / ".orders.jsonl.fetcher") as db:
        assert db.execute("SELECT count(*) FROM recent").fetchone() == (10,)
    db.close()


def test_a_second_writer_is_refused(file_case: Case) -> None:
    sink = file_case.opened()
    commit(sink, page(OLD))
    script = f"from fetcher.sinks import make_sink; make_sink({file_case.url!r}).open()"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    sink.close()
    assert second.returncode
    assert "SinkBusyError" in second.stderr
    assert "another run writes to it now" in second.stderr


def test_two_writers_of_one_database_are_both_right(schema_url: str, tmp_path: Path) -> None:
    case = Case("postgresql", tmp_path, lambda: schema_url)
    first, second = case.opened(), case.opened()
    older = page([order(number, "2024-01-01T00:00:00Z") for number in range(20)])
    newer = page([order(number, "2024-01-02T00:00:00Z") for number in reversed(range(20))])
    assert commit(first, newer) == 20
    assert commit(second, older) == 0
    assert commit(second, newer) == 0
    first.close()
    second.close()
    assert {updated[:10] for _, updated in case.rows()} == {"2024-01-02"}


class Crash(BaseException):
    """The process is gone."""


def crash_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> Callable[[], int]:
    """Have the process die at call `number` of a function; returns how often it was called."""
    real = getattr(owner, name)
    calls = 0

    def crashing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Crash
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, crashing)  # the system's functions: the one way to die between two of them
    return lambda: calls


STEPS: list[tuple[str, Any, str]] = [
    ("sync", os, "fsync"),
    ("rename", Path, "rename"),
    ("write", pq, "write_table"),
]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("step", STEPS, ids=[name for name, _, _ in STEPS])
def test_dying_at_any_step_of_a_commit_loses_and_repeats_nothing(
    file_case: Case, step: tuple[str, Any, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = file_case.opened()
    commit(sink, page(OLD[:2]), progress={"at": "0"})
    with monkeypatch.context() as patch:
        _, owner, name = step
        crash_at(patch, owner, name, number)
        try:
            for place in (2, 3, 4):
                commit(sink, page(OLD[place : place + 1]), progress={"at": str(place - 1)})
        except Crash:
            pass
        sink.close()
    # Whoever looks now sees committed rows alone, but for a JSONL file's end, which the next start cuts off.
    if file_case.kind in ("parquet", "duckdb"):
        assert len(file_case.rows()) == len(set(file_case.rows()))
    again = file_case.sink()
    reached = int(again.open()["at"])
    assert len(set(file_case.rows() if file_case.kind != "duckdb" else _rows_of(again))) == 2 + reached
    for place in range(2 + reached, 5):
        commit(again, page(OLD[place : place + 1]), progress={"at": str(place - 1)})
    again.close()
    assert sorted(id_ for id_, _ in file_case.rows()) == [one["Id"] for one in OLD]


def _rows_of(sink: Sink) -> list[tuple[str, str]]:
    db = sink._db  # type: ignore[attr-defined]
    return [(id_, "") for (id_,) in db.execute("SELECT id::varchar FROM product_service_orders").fetchall()]


DISK = """
import random, resource, signal, sys
sys.path.insert(0, {root!r})
from tests.sinks.test_sinks import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = make_sink({url!r})
assert sink.open() == {{}}
commit(sink, page(OLD), progress={{"at": "0"}})
if sys.argv[1] == "files":
    resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
else:
    fill_the_database({url!r})
chance = random.Random(1)
for number in range(1, 60):
    details = [chance.randbytes(200).hex() for _ in range(1000)]  # takes half of its room, however it is compressed
    orders = [order(number * 1000 + n, "2023-01-01T00:00:00Z", OriginDetails=text) for n, text in enumerate(details)]
    try:
        commit(sink, page(orders), progress={{"at": str(number)}})
    except SinkError as error:
        print(error)
        break
"""
ROOM = {"jsonl": 2**21, "jsonl.gz": 2**20, "jsonl.zst": 2**20, "parquet": 2**17, "duckdb": 2**22}
"""Bytes of a file: what is there already fits, and what is added does not for long."""


def fill_the_database(url: str, *, full: bool = True) -> None:
    """Have PostgreSQL say what it says when its disk is full, to whoever adds rows; the server's own is not ours."""
    address, _, schema = url.partition("?schema=")
    with psycopg.connect(address, autocommit=True) as db:
        if full:
            db.execute(
                f"CREATE FUNCTION {schema}.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF (SELECT count(*) > "
                f"2500 FROM {schema}.product_service_orders) THEN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = "
                "'could not extend file: No space left on device'; END IF; RETURN NULL; END $$"
            )
            db.execute(
                f"CREATE TRIGGER filled AFTER INSERT ON {schema}.product_service_orders "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {schema}.full()"
            )
        else:
            db.execute(f"DROP TRIGGER filled ON {schema}.product_service_orders")


def test_a_full_disk_is_told_by_every_sink_and_what_was_committed_stays(case: Case) -> None:
    root = str(Path(__file__).parent.parent.parent)
    script = DISK.format(root=root, url=case.url, room=ROOM.get(case.kind, 0))
    where = "files" if case.kind in ROOM else "database"
    done = subprocess.run([sys.executable, "-c", script, where], capture_output=True, text=True, timeout=100)
    full = "the disk is full" if case.kind in ROOM else "No space left on device"
    assert full in done.stdout, done.stdout + done.stderr
    assert "what was committed is safe" in done.stdout.lower()
    if case.kind == "postgresql":
        fill_the_database(case.url, full=False)
    sink = case.sink()
    committed = int(sink.open()["at"])
    commit(sink, page([order(7, "2023-09-09T00:00:00Z")]), progress={"at": "after"})
    sink.close()
    rows = case.rows()
    assert len(set(rows)) == len(rows) == len(OLD) + committed * 1000 + 1
    assert case.kind == "parquet" or 0 < committed < 59


def test_files_that_fetcher_did_not_write_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "orders.jsonl").write_text("mine\n")
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "mine.parquet").write_text("mine")
    (tmp_path / "orders.duckdb").write_text("mine, and long enough to look at " * 200)
    for url in ("jsonl:{}/orders.jsonl", "parquet:{}/orders", "duckdb:{}/orders.duckdb"):
        sink = make_sink(url.format(tmp_path))
        for method in (sink.probe, sink.open):
            with pytest.raises(SinkError):
                method()
        sink.close()
    assert (tmp_path / "orders.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_a_table_that_differs_is_told_how(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = Case(kind, tmp_path, lambda: request.getfixturevalue("schema_url"))
    statement = "CREATE TABLE {}product_service_orders (id text, number integer)"
    if kind == "duckdb":
        with duckdb.connect(tmp_path / "orders.duckdb") as db:
            db.execute(statement.format(""))
    else:
        address, _, schema = case.url.partition("?schema=")
        with psycopg.connect(address, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {schema}")
            db.execute(statement.format(f"{schema}."))
    with pytest.raises(SinkError, match="has no column service_id"):
        case.sink().probe()


def test_jsonl_lines_are_the_bytes_that_came(tmp_path: Path) -> None:
    raw = b'{"Id":"a", "ServiceId" : "s","Extra":{"x":[1, 2]},"UpdatedUtc":"2023-01-01T00:00:00Z"}'
    body = b'{"ProductServiceOrders":[%b],"Cursor":null}' % raw
    one = page(OLD[:1])
    sink = make_sink(f"jsonl:{tmp_path / 'o.jsonl'}")
    sink.open()
    commit(sink, Page(**{name: getattr(one, name) for name in one.__struct_fields__} | {"body": body}))
    sink.close()
    assert (tmp_path / "o.jsonl").read_bytes() == raw + b"\n"


def test_standard_output_gets_each_version_once() -> None:
    out = io.BytesIO()
    sink = StdoutSink("jsonl:-", out)
    sink.open()
    commit(sink, page(OLD[:3]))
    commit(sink, page(OLD))
    sink.close()
    assert [json.loads(line)["Number"] for line in out.getvalue().splitlines()] == ["0", "1", "2", "3", "4"]


def test_parquet_has_large_row_groups_and_the_table_s_columns(tmp_path: Path) -> None:
    sink = make_sink(f"parquet:{tmp_path / 'p'}")
    sink.open()
    pages = [page(order(first + n, "2023-01-01T00:00:00Z") for n in range(1000)) for first in range(0, 3000, 1000)]
    commit(sink, *pages)
    sink.close()
    file = pq.ParquetFile(tmp_path / "p" / "part-000001.parquet")
    assert (file.metadata.num_row_groups, file.metadata.num_rows) == (1, 3000)
    assert file.schema_arrow.names[0] == "id"
    assert file.schema_arrow.names[-3:] == ["portfolio", "enterprise_id", "fetched_utc"]
    file.close()


def test_a_database_that_restarts_in_mid_run_is_waited_for(postgres: Server, schema_url: str, tmp_path: Path) -> None:
    case = Case("postgresql", tmp_path, lambda: schema_url)
    sink = case.opened()
    commit(sink, page(OLD[:2]))
    postgres.stop()
    postgres.start()
    assert commit(sink, page(OLD[1:]), progress={"a": "1"}) == 3
    sink.close()
    assert len(case.rows()) == 5


def test_a_database_that_cannot_be_reached_is_told_without_the_password() -> None:
    sink = make_sink("postgresql://me:SECRET@127.0.0.1:1/db?schema=x")
    with pytest.raises(SinkError, match="refused") as caught:
        sink.probe()
    assert "SECRET" not in str(caught.value)
    assert sink.url == "postgresql://me@127.0.0.1:1/db?schema=x"


@pytest.mark.parametrize(
    "url", ["", "orders.jsonl", "ftp:x", "jsonl:", "parquet:", "duckdb:", "null:x", "postgresql:x"]
)
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ConfigError):
        make_sink(url)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "duckdb", "postgresql"])
def test_orders_that_are_kept_aside_count_for_the_size_of_a_batch(kind: str, tmp_path: Path) -> None:
    bad = page([order(number, "2024-01-01T00:00:00Z", Id=None, OriginDetails="x" * 1000) for number in range(10)])
    url = "postgresql://localhost/nowhere" if kind == "postgresql" else f"{kind}:{tmp_path / 'orders'}"
    encoded = make_sink(url).encode(bad)
    assert (encoded.rows, len(encoded.rejected)) == (0, 10)
    assert encoded.size >= 10 * 2000
