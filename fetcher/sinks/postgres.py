"""`postgresql://...` keeps one row for each order, the newest version, in the table `product_service_orders`.

A commit is one transaction: the batch goes by COPY into a temporary table, and from there, in the order of the ids, so
that several processes never wait for each other in a circle, into the table; progress goes with it. A connection that
is lost is opened again and the batch is sent once more, which changes nothing if it was committed after all.
"""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from fetcher.errors import ConfigError, MissingExtraError, SinkError
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink

try:
    import psycopg
    import pyarrow as pa
    import pyarrow.csv as pc
    from psycopg import sql

    from fetcher.sinks.database import PROGRESS, TABLE, ColumnTypes, columns, definition, difference
    from fetcher.sinks.table import fitting, require_no_nul, require_uuids
except ImportError as missing:
    raise MissingExtraError("postgresql:", "postgres") from missing

T = TypeVar("T")
log = logging.getLogger("fetcher")

_TYPES = ColumnTypes(id="uuid", text="text", time="timestamp with time zone", flag="boolean")
_NAMES = ", ".join(columns(_TYPES))
_CSV = pc.WriteOptions(include_header=False, quoting_style="all_valid")
"""Every value is quoted and no null is, so that COPY tells an empty text from none."""
_CONNECT_SECONDS = 15


class PostgresSink(Sink):
    """Merges batches into a table of a PostgreSQL database.

    Args:
        url: as shown, without any password.
        conninfo: as libpq takes it.
        schema: where the tables are.
    """

    batch_rows = 50_000

    RETRY_SECONDS = 120.0
    """How long a database that is gone is waited for: a restart takes seconds, a failover a minute."""
    LOCK_KEY = 0x66657463686572  # "fetcher", for the advisory lock under which tables are made

    def __init__(self, url: str, conninfo: str, schema: str) -> None:
        super().__init__(url)
        self._conninfo = conninfo
        self._schema = schema
        self._db: psycopg.Connection | None = None

    def probe(self) -> None:
        """See `Sink.probe`."""
        with self._translated(), self._connect() as db:
            self._check_table(db)
            self._check_rights(db)

    def open(self) -> Progress:
        """See `Sink.open`."""
        with self._translated():
            self._db = self._connect()
            self._check_table(self._db)
            with self._db.transaction():
                # `IF NOT EXISTS` alone fails where two processes create at the same time.
                self._db.execute("SELECT pg_advisory_xact_lock(%s)", (self.LOCK_KEY,))
                if not self._table_columns(self._db):
                    self._create(self._db)
                self._db.execute(
                    self._sql("CREATE TABLE IF NOT EXISTS {progress} (name text PRIMARY KEY, record text NOT NULL)")
                )
            self._prepare(self._db)
            return self._progress(self._db)

    def encode(self, page: Page) -> EncodedPage:
        """The page as CSV, which the server reads nearly as fast as its binary format, and Arrow writes ten times."""
        batch, rejected = fitting(page, require_uuids, require_no_nul)
        out = pa.BufferOutputStream()
        pc.write_csv(batch, out, _CSV)
        text = out.getvalue()
        return EncodedPage.of(page, rows=batch.num_rows, size=text.size, payload=text, rejected=rejected)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        with self._translated():
            return self._retried(lambda db: self._merge(db, batch))

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        with self._translated(), self._connect() as db:
            if not self._table_columns(db):
                return Holdings(rows={}, newest={}, progress={})
            query = self._sql("SELECT portfolio, count(*), max(updated_utc) FROM {table} GROUP BY portfolio")
            held: list[tuple[str, int, Any]] = db.execute(query).fetchall()
            return Holdings(
                rows={portfolio: rows for portfolio, rows, _ in held},
                newest={portfolio: newest for portfolio, _, newest in held},
                progress=self._progress(db),
            )

    def close(self) -> None:
        """See `Sink.close`."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(psycopg.Error):
                db.close()

    def _merge(self, db: psycopg.Connection, batch: Batch) -> dict[str, int]:
        new: dict[str, int] = {}
        with db.transaction(), db.cursor() as cursor:
            if any(page.rows for page in batch.pages):
                with cursor.copy(
                    self._sql(f"COPY pg_temp.fetcher_incoming ({_NAMES}) FROM STDIN (FORMAT csv)")
                ) as copy:
                    for page in batch.pages:
                        copy.write(memoryview(page.payload))
                cursor.execute(self._upsert())
                new = dict(cursor.fetchall())
            # In one order, all through, so that several processes never wait for each other in a circle.
            for gone, records in groupby(sorted(batch.progress.items()), lambda item: item[1] is None):
                if gone:
                    names = [(name,) for name, _ in records]
                    cursor.executemany(self._sql("DELETE FROM {progress} WHERE name = %s"), names)
                else:
                    cursor.executemany(self._upsert_record(), list(records))
        return new

    def _upsert(self) -> sql.Composed:
        """From the temporary table into the table, the newest version first; counts by portfolio what was new."""
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns(_TYPES) if name != "id")
        return self._sql(
            f"WITH merged AS (INSERT INTO {{table}} AS t ({_NAMES}) "
            f"SELECT DISTINCT ON (id) {_NAMES} FROM pg_temp.fetcher_incoming ORDER BY id, updated_utc DESC "
            f"ON CONFLICT (id) DO UPDATE SET {updates} WHERE t.updated_utc < excluded.updated_utc "
            "RETURNING portfolio) SELECT portfolio, count(*) FROM merged GROUP BY portfolio"
        )

    def _upsert_record(self) -> sql.Composed:
        conflict = "ON CONFLICT (name) DO UPDATE SET record = excluded.record"
        return self._sql(f"INSERT INTO {{progress}} VALUES (%s, %s) {conflict}")

    def _retried(self, work: Callable[[psycopg.Connection], T]) -> T:
        """Do it, on a new connection if the old one is lost; again if another process was in the way."""
        deadline = time.monotonic() + self.RETRY_SECONDS
        pause = 0.25
        while True:
            try:
                if self._db is None:
                    self._db = self._connect()
                    self._prepare(self._db)
                return work(self._db)
            except (psycopg.OperationalError, psycopg.errors.SerializationFailure) as error:
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise
                log.warning("the database is away or in the way (%s); trying again", type(error).__name__)
                self.close()
                time.sleep(pause)  # in the sink's own thread
                pause = min(5.0, pause * 2)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            self._conninfo,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name="fetcher",
            options="-c timezone=UTC -c client_min_messages=warning",
        )

    def _prepare(self, db: psycopg.Connection) -> None:
        defined = definition(_TYPES)
        db.execute(self._sql(f"CREATE TEMP TABLE IF NOT EXISTS fetcher_incoming ({defined}) ON COMMIT DELETE ROWS"))

    def _create(self, db: psycopg.Connection) -> None:
        if not db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,)).fetchone():
            db.execute(self._sql("CREATE SCHEMA {schema}"))
        db.execute(self._sql(f"CREATE TABLE {{table}} ({definition(_TYPES)}, PRIMARY KEY (id))"))

    def _table_columns(self, db: psycopg.Connection) -> dict[str, str]:
        return dict(
            db.execute(
                "SELECT column_name, data_type FROM information_schema.columns "
                "WHERE table_schema = %s AND table_name = %s",
                (self._schema, TABLE),
            ).fetchall()
        )

    def _check_table(self, db: psycopg.Connection) -> None:
        found = self._table_columns(db)
        if not found:
            return
        how = difference(found, _TYPES)
        if how is None and not self._is_keyed(db):
            how = f"its table {TABLE} has no primary key (id)"
        if how is not None:
            cure = f"Rename that table, or name another schema with ?schema=... (this one is {self._schema})"
            raise SinkError(self.url, how, cure)

    def _is_keyed(self, db: psycopg.Connection) -> bool:
        query = (
            "SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a "
            "ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) "
            "WHERE i.indrelid = to_regclass(%s) AND i.indisunique GROUP BY i.indexrelid"
        )
        name = sql.Identifier(self._schema, TABLE).as_string(db)
        return ["id"] in [names for (names,) in db.execute(query, (name,)).fetchall()]

    def _check_rights(self, db: psycopg.Connection) -> None:
        """Find out whether what is missing could be made, without making it."""
        if self._table_columns(db):
            return
        exists = db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,)).fetchone()
        query = (
            "SELECT has_schema_privilege(%s, 'CREATE')"
            if exists
            else "SELECT has_database_privilege(current_database(), 'CREATE') WHERE %s <> ''"
        )
        row = db.execute(query, (self._schema,)).fetchone()
        if row is None or not row[0]:
            what = "tables in" if exists else "the schema"
            cause = f"its user may not create {what} {self._schema}"
            raise SinkError(self.url, cause, "Grant it the right, or name another schema with ?schema=...")

    def _progress(self, db: psycopg.Connection) -> Progress:
        exists = db.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s",
            (self._schema, PROGRESS),
        ).fetchone()
        return dict(db.execute(self._sql("SELECT name, record FROM {progress}")).fetchall()) if exists else {}

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(  # pyright: ignore[reportArgumentType] every text is one of this module's
            table=sql.Identifier(self._schema, TABLE),
            progress=sql.Identifier(self._schema, PROGRESS),
            schema=sql.Identifier(self._schema),
        )

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Turn what goes wrong in the database into `SinkError`; its messages never repeat a password."""
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            raise SinkError(self.url, _said(error), "Grant its user the right, or name another user") from None
        except psycopg.errors.DiskFull as error:
            cure = "Make room; what was committed is safe, and the next run goes on from it"
            raise SinkError(self.url, _said(error), cure) from None
        except psycopg.OperationalError as error:
            cure = "Check host, port, user, password (PGPASSWORD or .pgpass) and that the server runs"
            raise SinkError(self.url, _said(error), cure) from None
        except psycopg.Error as error:
            cure = "Mend that; what was committed is safe, and the next run goes on from it"
            raise SinkError(self.url, f"PostgreSQL says: {_said(error)}", cure) from None


def make(url: str) -> Sink:
    """The sink for `postgresql://user:password@host:port/database?schema=name`."""
    cure = 'Write it like "postgresql://user@host:5432/database?schema=public"'
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname or "", parts.port, parts.username
    except ValueError:
        raise ConfigError("sink.url", "it is no address of a database", cure) from None
    if parts.fragment or not url.partition(":")[2].startswith("//"):
        raise ConfigError("sink.url", "it is no address of a database", cure)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = options.pop("schema", "public")
    if not re.fullmatch(r"[^\x00]{1,63}", schema):
        raise ConfigError("sink.url", "its schema is no name", cure)
    query = urlencode(options)
    conninfo = urlunsplit(("postgresql", parts.netloc, parts.path, query, ""))
    try:
        psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error:
        raise ConfigError("sink.url", "it has an option that PostgreSQL does not know", cure) from None
    where = f"{user + '@' if user else ''}{host}{f':{port}' if port else ''}{parts.path}"
    shown = f"postgresql://{where}" + (f"?schema={schema}" if schema != "public" else "")
    return PostgresSink(shown, conninfo, schema)


def _may_pass(error: psycopg.Error) -> bool:
    """Whether another try may help: a lost connection, a server that starts, a deadlock; not a full disk."""
    state = error.sqlstate
    return state is None or state[:2] in ("08", "57", "40")


def _said(error: psycopg.Error) -> str:
    """The server's or libpq's message, on one line."""
    message = error.diag.message_primary or str(error)
    return " ".join(message.split())[:300].rstrip(".?") or type(error).__name__
