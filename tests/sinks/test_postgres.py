"""PostgreSQL as administrators set it up: poolers, encodings, few rights, settings of a role; and when it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psycopg
import pytest

import fetcher
from fetcher.errors import ConfigError, SinkAbandonedError, SinkError
from fetcher.sinks import Sink, make_sink
from fetcher.sinks.postgres_address import read_address
from fetcher.sinks.postgres_connection import PostgresConnection
from tests.http import site
from tests.orders import order, page
from tests.pooler import running_pooler
from tests.postgres import Server, free_port
from tests.sinks.test_sinks import commit

SECOND = "2024-03-01T10:00:00Z"
TEXT = "Ünï 東京 🥐"


@pytest.fixture
def name(tmp_path: Path) -> str:
    """For a role, a schema or a database of the test's own."""
    return f"test_{abs(hash(tmp_path)):x}"


@contextmanager
def opened(url: str) -> Iterator[Sink]:
    sink = make_sink(url)
    try:
        sink.open()
        yield sink
    finally:
        sink.close()


def refusing(method: Callable[[], object], match: str) -> SinkError:
    with pytest.raises(SinkError, match=match) as caught:
        method()
    assert "not-secret" not in str(caught.value)
    return caught.value


# Poolers


def test_a_pooler_may_give_each_transaction_another_session(postgres: Server, name: str) -> None:
    with postgres.role(name):
        postgres.trust(name)
        postgres.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        with running_pooler(free_port(), postgres.port) as pooler:
            url = f"postgresql://{name}@127.0.0.1:{pooler.port}/postgres"
            with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
                psycopg.connect(url, options="-c timezone=UTC")
            for run in range(3):
                make_sink(f"{url}?schema={name}").probe()
                with opened(f"{url}?schema={name}") as sink, opened(f"{url}?schema={name}") as other:
                    for number in range(4):
                        rows = [order(n, f"2024-01-0{run + 1}T00:00:00.{number}Z") for n in range(50)]
                        assert commit(sink, page(rows[:40]), progress={"a": str(number), "b": None}) == 40
                        assert commit(other, page(rows[10:]), progress={"c": str(number)}) == 10
                    holdings = sink.holdings()
            assert holdings.progress == {"a": "3", "c": "3"}
            assert holdings.rows == {"north": 50}
            assert pooler.sessions > 30  # one for each transaction: nothing can have been kept in any


# Encodings


@pytest.mark.parametrize("how", ["environment", "role", "role in this database", "address"])
@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "SQL_ASCII"])
def test_text_arrives_whatever_encoding_the_client_is_said_to_have(
    postgres: Server, name: str, monkeypatch: pytest.MonkeyPatch, how: str, encoding: str
) -> None:
    settings = {
        "role": [f"SET client_encoding TO '{encoding}'"],
        "role in this database": [f"IN DATABASE postgres SET client_encoding TO '{encoding}'"],
    }.get(how, [])
    with postgres.role(name, *settings) as url:
        postgres.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        if how == "environment":
            monkeypatch.setenv("PGCLIENTENCODING", encoding)
        query = f"client_encoding={encoding}&" if how == "address" else ""
        with opened(f"{url}?{query}schema={name}") as sink:
            commit(sink, page([order(1, SECOND, OriginDetails=TEXT)]), progress={TEXT: TEXT})
            assert sink.holdings().progress == {TEXT: TEXT}
        monkeypatch.delenv("PGCLIENTENCODING", raising=False)
        query = f"SELECT convert_to(origin_details, 'UTF8') FROM {name}.product_service_orders"
        assert postgres.execute(query) == [(TEXT.encode(),)]


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "SQL_ASCII", "EUC_JP"])
def test_a_database_that_cannot_hold_every_text_is_refused_before_anything_is_written(
    postgres: Server, name: str, encoding: str
) -> None:
    with postgres.database(name, encoding) as url:
        sink = make_sink(f"{url}?schema=orders")
        for method in (sink.probe, sink.open):
            error = refusing(method, f"encoding {encoding}")
            assert "ENCODING 'UTF8'" in error.cure
        assert postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'orders'", database=name) == []


# Rights


@pytest.fixture
def limited(postgres: Server, name: str) -> Iterator[str]:
    """The address of a user who may use the tables that the administrator made, and nothing else."""
    url = f"{postgres.url}?schema={name}"
    with opened(url):
        pass
    with postgres.role(name) as address:
        postgres.execute(
            f"REVOKE TEMP ON DATABASE postgres FROM PUBLIC; GRANT USAGE ON SCHEMA {name} TO {name}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {name}"
        )
        try:
            yield f"{address}?schema={name}"
        finally:
            postgres.execute(f"GRANT TEMP ON DATABASE postgres TO PUBLIC; DROP SCHEMA {name} CASCADE")


def test_the_right_to_read_and_write_the_tables_is_enough(limited: str) -> None:
    make_sink(limited).probe()
    with opened(limited) as sink:
        bad = order(9, SECOND, VoucherId="")
        assert commit(sink, page([order(1, SECOND), order(2, SECOND), bad]), progress={"a": "1", "b": "2"}) == 2
        assert commit(sink, page([order(1, SECOND, State="Canceled")]), progress={"a": None}) == 1
        assert sink.holdings().progress == {"b": "2"}


@pytest.mark.parametrize(
    ("right", "table"),
    [
        ("INSERT", "product_service_orders"),
        ("UPDATE", "product_service_orders"),
        ("SELECT", "product_service_orders"),
        ("DELETE", "fetcher_progress"),
        ("INSERT", "fetcher_rejected"),
    ],
)
def test_a_right_that_is_missing_is_told_by_check(
    postgres: Server, limited: str, name: str, right: str, table: str
) -> None:
    postgres.execute(f"REVOKE {right} ON {name}.{table} FROM {name}")
    error = refusing(make_sink(limited).probe, f"permission denied for table {table}")
    assert "Grant" in error.cure


@pytest.mark.parametrize("table", ["fetcher_progress", "fetcher_rejected", "product_service_orders"])
def test_a_table_that_the_user_may_not_make_is_told_with_the_statement(
    postgres: Server, limited: str, name: str, table: str
) -> None:
    postgres.execute(f"DROP TABLE {name}.{table}")
    error = refusing(make_sink(limited).probe, f"may not create the table {table}")
    assert f'CREATE TABLE "{name}"."{table}"' in error.cure
    with pytest.raises(psycopg.errors.UndefinedTable):
        postgres.execute(f"SELECT FROM {name}.{table}")


def test_an_older_layout_goes_on_until_an_order_has_to_be_kept_aside(
    postgres: Server, limited: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    postgres.execute(f"DROP TABLE {name}.fetcher_rejected")
    with opened(limited) as sink:
        assert "fetcher_rejected" in caplog.text
        assert commit(sink, page([order(1, SECOND)])) == 1
        bad = sink.encode(page([order(2, SECOND), order(3, SECOND, VoucherId="")]))
        error = refusing(
            lambda: sink.commit(fetcher.sinks.Batch(pages=[bad], progress={})), "may not keep orders aside"
        )
        postgres.execute(error.cure.partition("run: ")[2].partition("; and grant")[0])
        postgres.execute(f"GRANT INSERT, SELECT, DELETE ON {name}.fetcher_rejected TO {name}")
        assert sink.commit(fetcher.sinks.Batch(pages=[bad], progress={})) == {"north": 1}


def test_a_schema_that_cannot_be_made_is_told(postgres: Server, name: str) -> None:
    with postgres.role(name) as url:
        refusing(make_sink(f"{url}?schema=nowhere").probe, "may not create the schema nowhere")
        refusing(make_sink(f"{url}?schema=nowhere").open, "may not create the schema nowhere")


def test_probing_leaves_no_trace_where_there_are_tables(postgres: Server, schema_url: str) -> None:
    with opened(schema_url) as sink:
        commit(sink, page([order(1, SECOND)]), progress={"a": "1"})
    before = make_sink(schema_url).holdings()
    make_sink(schema_url).probe()
    assert make_sink(schema_url).holdings() == before
    schema = schema_url.partition("?schema=")[2]
    assert postgres.execute(f"SELECT count(*) FROM {schema}.fetcher_rejected") == [(0,)]


def test_what_is_kept_aside_may_be_published(postgres: Server, schema_url: str, name: str) -> None:
    postgres.execute(f"CREATE PUBLICATION {name} FOR ALL TABLES")
    try:
        with opened(schema_url) as sink:
            for _ in range(2):
                commit(sink, page([order(1, SECOND, VoucherId="")]), progress={"a": "1"})
            commit(sink, progress={"a": None})
    finally:
        postgres.execute(f"DROP PUBLICATION {name}")


# Addresses


@pytest.mark.parametrize(
    ("url", "shown", "parts"),
    [
        (
            "postgresql://h1,h2:5433/db?target_session_attrs=read-write",
            "postgresql://h1,h2:5433/db",
            {"host": "h1,h2", "port": ",5433", "dbname": "db", "target_session_attrs": "read-write"},
        ),
        (
            "postgres://me:p%40s%2Fs%3F%26@h/my%20db?schema=a%20b&options=-c%20role%3Dloader",
            "postgresql://me@h/my%20db?schema=a b",
            {"user": "me", "password": "p@s/s?&", "host": "h", "dbname": "my db", "options": "-c role=loader"},
        ),
        (
            "postgresql:///db?host=/var/run/postgresql&password=SECRET",
            "postgresql:///db",
            {"host": "/var/run/postgresql", "password": "SECRET", "dbname": "db"},
        ),
        (
            "postgresql://me:SECRET#?+x@[::1]:5/db?sslrootcert=/etc/a%20b.pem&sslmode=verify-full",
            "postgresql://me@[::1]:5/db",
            {
                "user": "me",
                "password": "SECRET#?+x",
                "host": "::1",
                "port": "5",
                "dbname": "db",
                "sslrootcert": "/etc/a b.pem",
                "sslmode": "verify-full",
            },
        ),
        ("postgresql://?service=hotel&schema=x", "postgresql://?schema=x", {"service": "hotel"}),
        (
            "postgresql://%2Fvar%2Frun/db?connect_timeout=3&application_name=a%2Bb+c",
            "postgresql://%2Fvar%2Frun/db",
            {"host": "/var/run", "dbname": "db", "connect_timeout": "3", "application_name": "a+b+c"},
        ),
        ("postgresql://", "postgresql://", {}),
    ],
)
def test_what_libpq_takes_the_address_takes(url: str, shown: str, parts: dict[str, str]) -> None:
    address = read_address(url)
    assert address.shown == shown
    assert psycopg.conninfo.conninfo_to_dict(address.conninfo) == parts
    assert not address.parameters().keys() & parts.keys()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:SECRET@more@h/db",
        "postgresql://me:SECRET/more@h/db",
        "postgresql://me:SECRET%zz@h/db",
        "postgresql://me:SECRET/db",
        "postgresql://h/db?password=SECRET&SECRET",
        "postgresql://h/db?password=x&SECRET=y",
        "postgresql://h/db?unknown=1",
        "postgresql://h/db?schema=",
        "postgresql:h",
    ],
)
def test_an_address_that_cannot_be_read_is_told_without_any_of_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_address(url)
    assert "SECRET" not in str(caught.value)
    assert ("unknown" in str(caught.value)) == ("unknown" in url)


def test_the_first_of_several_hosts_may_be_gone(postgres: Server, name: str) -> None:
    url = f"postgresql://tester:not-secret@127.0.0.1:{free_port()},127.0.0.1:{postgres.port}/postgres"
    with opened(f"{url.replace(',127.0.0.1', ',127.0.0.1')}?schema={name}&target_session_attrs=read-write") as sink:
        assert commit(sink, page([order(1, SECOND)])) == 1


def test_a_socket_folder_is_a_host(postgres: Server, name: str) -> None:
    url = f"postgresql://tester:not-secret@/postgres?host={postgres.folder}&port={postgres.port}&schema={name}"
    with opened(url) as sink:
        assert commit(sink, page([order(1, SECOND)])) == 1


@pytest.mark.parametrize(
    ("query", "variable", "expected"),
    [("", "", "fetcher"), ("application_name=nightly&", "", "nightly"), ("", "from the shell", "from the shell")],
)
def test_the_user_names_the_application(
    postgres: Server, name: str, monkeypatch: pytest.MonkeyPatch, query: str, variable: str, expected: str
) -> None:
    if variable:
        monkeypatch.setenv("PGAPPNAME", variable)
    with opened(f"{postgres.url}?{query}schema={name}"):
        monkeypatch.delenv("PGAPPNAME", raising=False)
        assert postgres.execute(f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{expected}'")


def test_options_may_name_another_role(postgres: Server, name: str) -> None:
    with postgres.role(name), postgres.role(f"{name}_owner"):
        postgres.execute(f"GRANT {name}_owner TO {name}; CREATE SCHEMA {name} AUTHORIZATION {name}_owner")
        with opened(f"{postgres.address(user=name)}?options=-c%20role%3D{name}_owner&schema={name}"):
            query = f"SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = '{name}'"
            assert postgres.execute(query) == [(f"{name}_owner",)]


# Settings of a role


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle TO 'SQL, DMY'",
        "DateStyle TO 'German'",
        "DateStyle TO 'Postgres, MDY'",
        "TimeZone TO 'Asia/Kathmandu'",
        "search_path TO 'nowhere'",
        "standard_conforming_strings TO off",
        "default_transaction_isolation TO 'serializable'",
        "client_min_messages TO debug1",
        "bytea_output TO escape",
    ],
)
def test_the_settings_of_a_role_change_nothing(postgres: Server, name: str, setting: str) -> None:
    with postgres.role(name, f"SET {setting}") as url:
        postgres.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        make_sink(f"{url}?schema={name}").probe()
        with opened(f"{url}?schema={name}") as sink:
            commit(sink, page([order(1, "2024-02-03T04:05:06.000007Z", OriginDetails='\\"'), order(2, SECOND)]))
            assert commit(sink, page([order(2, SECOND, VoucherId="")]), progress={"a": '\\"'}) == 0
        holdings = make_sink(f"{url}?schema={name}").holdings()
        assert holdings.newest == {"north": datetime(2024, 3, 1, 10, tzinfo=UTC)}
        assert holdings.progress == {"a": '\\"'}
        query = f"SELECT updated_utc, origin_details FROM {name}.product_service_orders ORDER BY number"
        assert postgres.execute(query)[0] == (datetime(2024, 2, 3, 4, 5, 6, 7, tzinfo=UTC), '\\"')


def test_a_role_that_may_only_read_is_told_so_and_status_works(postgres: Server, name: str) -> None:
    with postgres.role(name, "SET default_transaction_read_only TO on") as url:
        postgres.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        sink = make_sink(f"{url}?schema={name}")
        for method in (sink.probe, sink.open):
            assert "default_transaction_read_only" in refusing(method, "read-only").cure
        assert sink.holdings().rows == {}


def test_a_time_limit_of_the_role_is_told_at_once(postgres: Server, name: str) -> None:
    with postgres.role(name, "SET statement_timeout TO '300ms'", "SET lock_timeout TO '100ms'") as url:
        postgres.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        with opened(f"{url}?schema={name}") as sink, psycopg.connect(postgres.url) as holder:
            holder.execute(f"LOCK TABLE {name}.product_service_orders")
            error = refusing(lambda: commit(sink, page([order(1, SECOND)])), "timeout")
            assert "ALTER ROLE" in error.cure
            holder.rollback()
            assert commit(sink, page([order(1, SECOND)])) == 1


# Several writers


def test_of_two_writers_what_the_platform_answered_later_stays(schema_url: str) -> None:
    early, late = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 1, 0, 0, 1, tzinfo=UTC)
    with opened(schema_url) as first, opened(schema_url) as second:
        old = msgspec.structs.replace(page([order(1, SECOND, State="Confirmed")]), fetched_utc=early)
        new = msgspec.structs.replace(page([order(1, SECOND, State="Canceled")]), fetched_utc=late)
        assert [commit(first, old), commit(second, new), commit(first, old)] == [1, 1, 0]


@pytest.mark.parametrize(("ahead", "replaced"), [(timedelta(hours=2), 1), (timedelta(minutes=5), 0)])
def test_a_row_from_the_future_yields(schema_url: str, ahead: timedelta, replaced: int) -> None:
    now = datetime.now(UTC)
    with opened(schema_url) as sink:
        wrong = msgspec.structs.replace(page([order(1, SECOND)]), fetched_utc=now + ahead)
        right = msgspec.structs.replace(page([order(1, SECOND, State="Canceled")]), fetched_utc=now)
        assert [commit(sink, wrong), commit(sink, right)] == [1, replaced]


def test_two_names_for_a_hotel_in_two_runs_at_once_load_each_order_once(postgres: Server, schema_url: str) -> None:
    pages = [page(order(number, SECOND) for number in numbers) for numbers in (range(3000), reversed(range(3000)))]
    pages[1] = msgspec.structs.replace(pages[1], portfolio="south")
    with opened(schema_url) as first, opened(schema_url) as second, ThreadPoolExecutor(2) as threads:
        new = threads.map(lambda pair: [commit(*pair) for _ in range(3)], zip((first, second), pages, strict=True))
        assert sum(map(sum, new)) == 3000
    schema = schema_url.partition("?schema=")[2]
    query = f"SELECT count(*), count(DISTINCT id) FROM {schema}.product_service_orders"
    assert postgres.execute(query) == [(3000, 3000)]


# The end of a run


class Heard(logging.Handler):
    """Tells when something was said."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word
        self.said = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._word in record.getMessage():
            self.said.set()


@pytest.fixture
def heard() -> Iterator[threading.Event]:
    """Set when the sink waits for a database that is away."""
    handler = Heard("trying again")
    logger = logging.getLogger("fetcher")
    logger.addHandler(handler)
    yield handler.said
    logger.removeHandler(handler)


def test_who_is_in_a_hurry_waits_for_no_database(postgres: Server, schema_url: str, heard: threading.Event) -> None:
    with opened(schema_url) as sink, ThreadPoolExecutor(1) as thread:
        commit(sink, page([order(1, SECOND)]))
        postgres.stop()
        try:
            waiting = thread.submit(commit, sink, page([order(2, SECOND)]))
            assert heard.wait(30)
            sink.abandon()
            with pytest.raises(SinkAbandonedError, match="did not answer in time"):
                waiting.result(2)
        finally:
            postgres.start()


def test_a_server_that_does_not_even_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as thread:
        monkeypatch.setenv("PGSSLMODE", "disable")
        sink = make_sink(f"postgresql://me:not-secret@127.0.0.1:{silent.getsockname()[1]}/db")
        waiting = thread.submit(sink.open)
        client, _ = silent.accept()
        with client:
            sink.abandon()
            with pytest.raises(SinkAbandonedError):
                waiting.result(2)


def _stuck(postgres: Server) -> None:
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'fetcher' AND wait_event_type = 'Lock'"
    while not postgres.execute(query):
        pass


def test_a_commit_that_is_stuck_in_the_server_is_cancelled(
    postgres: Server, schema_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresConnection, "GRACE_SECONDS", 0.1)
    schema = schema_url.partition("?schema=")[2]
    with opened(schema_url) as sink, ThreadPoolExecutor(1) as thread, psycopg.connect(postgres.url) as holder:
        holder.execute(f"LOCK TABLE {schema}.product_service_orders")
        waiting = thread.submit(commit, sink, page([order(1, SECOND)]))
        _stuck(postgres)
        sink.abandon()
        with pytest.raises(SinkAbandonedError):
            waiting.result(2)
        with pytest.raises(SinkAbandonedError):  # the time is over for whatever comes after it, too
            commit(sink, page([order(2, SECOND)]))
        holder.rollback()
    assert make_sink(schema_url).holdings().rows == {}


def test_a_connection_that_hangs_is_cut(postgres: Server, schema_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresConnection, "GRACE_SECONDS", 0.1)
    with Line(postgres.port) as line:
        url = schema_url.replace(f":{postgres.port}/", f":{line.port}/")
        with opened(url) as sink, ThreadPoolExecutor(1) as thread:
            line.dead = True
            waiting = thread.submit(commit, sink, page([order(1, SECOND)]))
            assert line.swallowed.wait(30)
            sink.abandon()
            with pytest.raises(SinkAbandonedError):
                waiting.result(3)


class Line:
    """A line to a server that goes dead without anybody being told."""

    def __init__(self, port: int) -> None:
        self.dead = False
        self.swallowed = threading.Event()
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Line:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._ends += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.dead:
                    self.swallowed.set()
                else:
                    target.sendall(data)


def test_in_a_hurry_a_healthy_database_still_takes_what_is_there(schema_url: str) -> None:
    with opened(schema_url) as sink:
        sink.abandon()
        assert commit(sink, page([order(1, SECOND)])) == 1


@pytest.mark.parametrize("how", ["cancelled", "cancelled by asyncio", "stopped"])
def test_a_job_that_ends_while_its_database_is_away_ends_within_seconds(
    postgres: Server, schema_url: str, heard: threading.Event, how: str
) -> None:
    async def check() -> None:
        async with site() as here:
            config = here.config(schema_url)
            sink = make_sink(schema_url)
            sink.batch_rows = 100  # type: ignore[misc]
            job = fetcher.Job(config, sink=sink)
            commits = sink.commit

            def leaving(batch: Any) -> Any:
                sink.commit = commits  # type: ignore[method-assign]
                postgres.stop()
                return commits(batch)

            sink.commit = leaving  # type: ignore[method-assign]
            async with job:
                if how == "stopped":
                    async with anyio.create_task_group() as group:
                        group.start_soon(_then, heard, job.stop)
                        with anyio.fail_after(20):
                            report = await job.run()
                    assert report.interrupted
                    assert report.orders == 0
                elif how == "cancelled":
                    async with anyio.create_task_group() as group:
                        group.start_soon(job.run)
                        await _then(heard, group.cancel_scope.cancel)
                        began = anyio.current_time()
                    assert anyio.current_time() - began < 5
                else:
                    task = asyncio.create_task(job.run())
                    await _then(heard, task.cancel)
                    done, _ = await asyncio.wait([task], timeout=5)
                    assert done
                    assert task.cancelled()

    try:
        anyio.run(check)
    finally:
        postgres.start()
    assert (make_sink(schema_url).holdings().rows or {}) == {}


async def _then(heard: threading.Event, act: Callable[[], object]) -> None:
    assert await anyio.to_thread.run_sync(heard.wait, 30)
    act()


def test_a_service_file_is_heeded(postgres: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "services"
    file.write_text(
        f"[hotel]\nhost=127.0.0.1\nport={postgres.port}\nuser=tester\npassword=not-secret\ndbname=postgres\n"
        "application_name=from the service\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", os.fspath(file))
    with opened(f"postgresql://?service=hotel&schema={name}"):
        assert postgres.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'from the service'")
