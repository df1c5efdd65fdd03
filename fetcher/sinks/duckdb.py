"""`duckdb:FILE` keeps one row for each order, the newest version, in the table `product_service_orders`.

A commit is one transaction: the batch is compared with the table once, older versions are deleted, new ones inserted,
progress written. `ON CONFLICT` and `MERGE` would say it in one statement, and stall for minutes on some sizes; a
primary key costs twice the time and keeps its index in memory. So ids are unique because this sink, alone in the file,
keeps them so.
"""

# Neither pyarrow nor duckdb ships full types; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fetcher.config import expand_home
from fetcher.errors import ConfigError, MissingExtraError, SinkError
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink
from fetcher.sinks.ledger import busy, check_folder

try:
    import duckdb
    import pyarrow as pa

    from fetcher.sinks.database import PROGRESS, TABLE, ColumnTypes, columns, definition, difference
    from fetcher.sinks.table import POOL, SCHEMA, Columns, fitting, require_uuids
except ImportError as missing:
    raise MissingExtraError("duckdb:", "duckdb") from missing

_TYPES = ColumnTypes(id="UUID", text="VARCHAR", time="TIMESTAMP WITH TIME ZONE", flag="BOOLEAN")
_SETTINGS = {"memory_limit": "72MB", "threads": "1", "preserve_insertion_order": "false"}
"""A batch and its comparison need half of that, whatever the table's size; a second thread brings nothing here."""
_SELECT = ", ".join(
    f"CAST({name} AS {type_}) AS {name}" if type_ == _TYPES.id else name for name, type_ in columns(_TYPES).items()
)


class DuckdbSink(Sink):
    """Merges batches into a table of a DuckDB file."""

    batch_rows = 50_000  # fewer cost time, more cost memory

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(url)
        self._path = path
        self._db: duckdb.DuckDBPyConnection | None = None

    def probe(self) -> None:
        """See `Sink.probe`."""
        self._check_place()
        if self._path.exists():
            with self._connected(read_only=True) as db:
                self._check_table(db)

    def open(self) -> Progress:
        """See `Sink.open`."""
        self._check_place()
        db = self._db = self._connect(read_only=False)
        with self._translated():
            self._check_table(db)
            db.execute("BEGIN")
            db.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({definition(_TYPES)})")
            db.execute(f"CREATE TABLE IF NOT EXISTS {PROGRESS} (name VARCHAR PRIMARY KEY, record VARCHAR NOT NULL)")
            db.execute("COMMIT")
            return _progress(db)

    def encode(self, page: Page) -> EncodedPage:
        """The page as an Arrow record batch."""
        batch, rejected = fitting(page, require_uuids)
        payload = Columns(batch)
        return EncodedPage.of(page, rows=batch.num_rows, size=batch.nbytes, payload=payload, rejected=rejected)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        if self._db is None:
            raise RuntimeError("the sink is used before it was opened")
        db = self._db
        table = pa.Table.from_batches([page.payload.batch for page in batch.pages if page.rows], SCHEMA)
        with self._translated():
            db.execute("BEGIN")
            try:
                new = self._merge(db, table) if table.num_rows else {}
                self._record(db, batch.progress)
                db.execute("COMMIT")
            except BaseException:  # whatever it is, nothing of the batch may stay
                _roll_back(db)
                raise
        del table
        POOL.release_unused()  # or it keeps another batch's worth
        return new

    def finish(self) -> None:
        """Write what is still in the log into the file itself."""
        if self._db is not None:
            with self._translated():
                self._db.execute("CHECKPOINT")

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        if not self._path.exists():
            return Holdings(rows={}, newest={}, progress={})
        with self._connected(read_only=True) as db:
            if not {TABLE, PROGRESS} <= _tables(db):
                return Holdings(rows={}, newest={}, progress={})
            query = f"SELECT portfolio, count(*), max(updated_utc) FROM {TABLE} GROUP BY portfolio"
            held: list[tuple[str, int, Any]] = db.execute(query).fetchall()
            return Holdings(
                rows={portfolio: rows for portfolio, rows, _ in held},
                newest={portfolio: newest for portfolio, _, newest in held},
                progress=_progress(db),
            )

    def close(self) -> None:
        """See `Sink.close`."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _merge(self, db: duckdb.DuckDBPyConnection, table: pa.Table) -> dict[str, int]:
        """Bring a batch into the table; returns by portfolio how many rows were new or newer."""
        db.register("arrived", table)
        db.execute(f"CREATE OR REPLACE TEMP TABLE incoming AS SELECT {_SELECT} FROM arrived")
        db.unregister("arrived")
        twice = db.execute("SELECT count(*) - count(DISTINCT id) FROM incoming").fetchall()[0][0]
        if twice:
            newest = "row_number() OVER (PARTITION BY id ORDER BY updated_utc DESC) = 1"
            db.execute(f"CREATE OR REPLACE TEMP TABLE incoming AS SELECT * FROM incoming QUALIFY {newest}")
        db.execute(
            "CREATE OR REPLACE TEMP TABLE known AS "
            "SELECT t.rowid AS place, t.id, t.updated_utc < i.updated_utc AS older "
            f"FROM {TABLE} t JOIN incoming i ON t.id = i.id"
        )
        known, older = db.execute("SELECT count(*), count(*) FILTER (older) FROM known").fetchall()[0]
        if older:
            db.execute(f"DELETE FROM {TABLE} WHERE rowid IN (SELECT place FROM known WHERE older)")
        if known > older:
            db.execute("DELETE FROM incoming WHERE id IN (SELECT id FROM known WHERE NOT older)")
        names = ", ".join(columns(_TYPES))
        db.execute(f"INSERT INTO {TABLE} ({names}) SELECT {names} FROM incoming")
        counted = db.execute("SELECT portfolio, count(*) FROM incoming GROUP BY portfolio").fetchall()
        db.execute("DROP TABLE incoming; DROP TABLE known")
        return dict(counted)

    def _record(self, db: duckdb.DuckDBPyConnection, progress: Mapping[str, str | None]) -> None:
        """Write the records that changed: all at once, because each statement costs a millisecond."""
        if not progress:
            return
        records = pa.table({"name": list(progress), "record": pa.array(list(progress.values()), pa.string())})
        db.register("records", records)
        db.execute(f"DELETE FROM {PROGRESS} WHERE name IN (SELECT name FROM records WHERE record IS NULL)")
        db.execute(f"INSERT OR REPLACE INTO {PROGRESS} SELECT name, record FROM records WHERE record IS NOT NULL")
        db.unregister("records")

    def _check_place(self) -> None:
        check_folder(self.url, self._path.absolute().parent)
        if self._path.is_dir():
            raise SinkError(self.url, "it is a folder", "Name a file")
        if self._path.exists() and not os.access(self._path, os.W_OK):
            raise SinkError(self.url, "the file is not writable", "Change its permissions, or name another")

    def _check_table(self, db: duckdb.DuckDBPyConnection) -> None:
        if TABLE not in _tables(db):
            return
        found = db.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = ? "
            "AND table_schema = current_schema()",
            [TABLE],
        ).fetchall()
        if (how := difference(dict(found), _TYPES)) is not None:
            raise SinkError(self.url, how, "Rename that table, or name another file")

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._translated():
            db = duckdb.connect(self._path, read_only=read_only, config={**_SETTINGS})
            db.execute("SET TimeZone = 'UTC'")
            return db

    @contextmanager
    def _connected(self, *, read_only: bool) -> Generator[duckdb.DuckDBPyConnection]:
        db = self._connect(read_only=read_only)
        try:
            with self._translated():
                yield db
        finally:
            db.close()

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Turn what goes wrong in the database into `SinkError`."""
        try:
            yield
        except duckdb.Error as error:
            text = str(error).partition("\n")[0]
            if "Could not set lock" in str(error):
                raise busy(self.url) from None
            if "No space left" in str(error) or "File too large" in str(error):
                cure = "Make room; what was committed is safe, and the next run goes on from it"
                raise SinkError(self.url, "the disk is full", cure) from error
            if "not a valid DuckDB database" in str(error):
                raise SinkError(self.url, "the file is no DuckDB database", "Name another file") from None
            cure = "Mend that; what was committed is safe, and the next run goes on from it"
            raise SinkError(self.url, f"DuckDB says: {text}", cure) from error


def make(url: str) -> Sink:
    """The sink for `duckdb:FILE`."""
    name = url.partition(":")[2]
    if not name or name.startswith(":"):
        raise ConfigError("sink.url", "duckdb: needs a file", 'Write it like "duckdb:orders.duckdb"')
    return DuckdbSink(url, expand_home(name, "sink.url"))


def _progress(db: duckdb.DuckDBPyConnection) -> Progress:
    return dict(db.execute(f"SELECT name, record FROM {PROGRESS}").fetchall())


def _tables(db: duckdb.DuckDBPyConnection) -> set[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    return {name for (name,) in db.execute(query).fetchall()}


def _roll_back(db: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # the transaction may be gone already
        db.execute("ROLLBACK")
