"""`duckdb:FILE` keeps one row for each order, the newest version, in the table `product_service_orders`.

A commit is one transaction: the batch is compared with the table once, by ids and times; only what has the same time is
compared by content. Older versions are deleted, new ones inserted, progress written. `ON CONFLICT` and `MERGE` would
say it in one statement, and stall for minutes on some sizes; a primary key costs twice the time and keeps its index in
memory. So ids are unique because this sink, alone in the file, keeps them so: DuckDB keeps other processes out, and
`_OPEN` other runs of this one, which would share the file.
"""

# Neither pyarrow nor duckdb ships full types; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fetcher.errors import MissingExtraError, SinkBusyError, SinkError
from fetcher.sinks.appending.ledger import busy, check_folder
from fetcher.sinks.base import Batch, EncodedPage, Extent, Holdings, Page, Progress, Sink
from fetcher.sinks.places import place_of

try:
    import duckdb
    import pyarrow as pa

    from fetcher.sinks.arrow import POOL, SCHEMA, Columns, fitting, require_uuids, require_years
    from fetcher.sinks.database import (
        CONTENT,
        COUNTED,
        PROGRESS,
        REJECTED,
        REJECTED_NAMES,
        TABLE,
        ColumnTypes,
        columns,
        definition,
        difference,
        extent_of,
        full_since_of,
        gone_and_come,
        missing_columns,
        rejected_columns,
        rejected_definition,
        states_of,
    )
except ImportError as missing:
    raise MissingExtraError("duckdb:", "duckdb") from missing

_TYPES = ColumnTypes(id="UUID", text="VARCHAR", time="TIMESTAMP WITH TIME ZONE", flag="BOOLEAN")
_SETTINGS = {"memory_limit": "72MB", "threads": "1", "preserve_insertion_order": "false"}
"""A batch and its comparison need half of that, whatever the table's size; a second thread brings nothing here."""
_SELECT = ", ".join(
    f"CAST({name} AS {type_}) AS {name}" if type_ == _TYPES.id else name for name, type_ in columns(_TYPES).items()
)
_NAMES = ", ".join(columns(_TYPES))
_DIFFERS = " OR ".join(f"t.{name} IS DISTINCT FROM i.{name}" for name in CONTENT)
_HOLDER = re.compile(r"Conflicting lock is held in (?P<program>.*) \(PID (?P<process>\d+)\)")

_OPEN: set[str] = set()
"""The files that sinks of this process have open. Changes under `_OPENING` alone."""
_OPENING = threading.Lock()


class DuckdbSink(Sink):
    """Merges batches into a table of a DuckDB file."""

    batch_rows = 50_000  # fewer cost time, more cost memory

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(url)
        self._path = path
        self._db: duckdb.DuckDBPyConnection | None = None
        self._claimed: str | None = None  # our entry in _OPEN
        self._mark: int | None = None  # see _mark_as_run
        self._further = False  # whether the table has columns that are not ours

    def probe(self) -> None:
        """See `Sink.probe`."""
        self._check_place()
        if self._path.exists():
            # For writing, as a run does: who only reads it elsewhere is in the way of that.
            try:
                self._prepare(keep=False)
            finally:
                self.close()

    def open(self) -> Progress:
        """See `Sink.open`."""
        self._check_place()
        try:
            return self._prepare(keep=True)
        except BaseException:
            self.close()
            raise

    def encode(self, page: Page) -> EncodedPage:
        """The page as an Arrow record batch."""
        batch, rejected = fitting(page, require_uuids, require_years)
        payload = Columns(batch)
        return EncodedPage.of(page, rows=batch.num_rows, size=batch.nbytes, payload=payload, rejected=rejected)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        if self._db is None:
            raise RuntimeError("the sink is used before it was opened")
        db = self._db
        with self._translated():
            db.execute("BEGIN")
            try:
                new = self._merge(db, batch) if any(page.rows for page in batch.pages) else {}
                self._set_aside(db, batch)
                self._record(db, batch.progress)
                db.execute("COMMIT")
            except BaseException:  # whatever it is, nothing of the batch may stay
                _roll_back(db)
                raise
        POOL.release_unused()  # or it keeps another batch's worth
        return new

    def finish(self) -> None:
        """Write what is still in the log into the file itself."""
        if self._db is not None:
            with self._translated():
                self._db.execute("CHECKPOINT")

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        query = f"SELECT portfolio, count(*), max(updated_utc) FROM {TABLE} GROUP BY portfolio"
        held, progress = self._held(query)
        return Holdings(
            rows={portfolio: rows for portfolio, rows, _ in held},
            newest={portfolio: newest for portfolio, _, newest in held},
            progress=progress,
        )

    def extent(self) -> Extent:
        """See `Sink.extent`: by enterprise and month, and by day."""
        return extent_of(*self._held(COUNTED.format(table=TABLE)))

    def _held(self, query: str) -> tuple[list[Any], Progress]:
        """What a query of the table gives, and the progress; nothing where there is no table yet."""
        if not self._path.exists():
            return [], {}
        if os.path.realpath(self._path) in _OPEN:  # an older DuckDB would open it twice
            raise busy(self.url)
        with self._connected(read_only=True) as db:
            if not {TABLE, PROGRESS} <= _tables(db):
                return [], {}
            return db.execute(query).fetchall(), _progress(db)

    def close(self) -> None:
        """See `Sink.close`."""
        db, self._db = self._db, None
        if db is not None:
            db.close()
        # After DuckDB's own: to close any handle on the file drops the lock that DuckDB has through another.
        mark, self._mark = self._mark, None
        if mark is not None:
            os.close(mark)
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            with _OPENING:
                _OPEN.discard(claimed)

    def _prepare(self, *, keep: bool) -> Progress:
        """Take the file for us alone, until `close`, and make what is not there yet; gives the progress."""
        self._claim()
        db = self._db = self._connect(read_only=False)
        self._mark_as_run()
        with self._translated():
            self._check_table(db)
            db.execute("BEGIN")
            self._make_tables(db)
            progress = _progress(db)
            self._further = not _columns_of(db).keys() <= columns(_TYPES).keys()
            db.execute("COMMIT" if keep else "ROLLBACK")
            return progress

    def _make_tables(self, db: duckdb.DuckDBPyConnection) -> None:
        db.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({definition(_TYPES)})")
        for name, type_ in missing_columns(_columns_of(db), _TYPES).items():
            db.execute(f"ALTER TABLE {TABLE} ADD COLUMN {name} {type_}")
        db.execute(f"CREATE TABLE IF NOT EXISTS {PROGRESS} (name VARCHAR PRIMARY KEY, record VARCHAR NOT NULL)")
        db.execute(f"CREATE TABLE IF NOT EXISTS {REJECTED} ({rejected_definition(_TYPES)})")

    def _merge(self, db: duckdb.DuckDBPyConnection, batch: Batch) -> dict[str, int]:
        """Bring a batch's rows into the table; returns by portfolio how many were new or newer."""
        arrived = pa.Table.from_batches([page.payload.batch for page in batch.pages if page.rows], SCHEMA)
        db.register("arrived", arrived)
        self._stage(db, arrived)
        self._compare(db, batch)
        self._leave_out(db, batch)
        db.unregister("arrived")
        counted = db.execute("SELECT portfolio, count(*) FROM incoming GROUP BY portfolio").fetchall()
        if not db.execute("SELECT count(*) FROM known WHERE older").fetchall()[0][0]:
            pass  # as in a first load: even to delete nothing would read the table
        elif self._further:
            _update(db)
        else:
            db.execute(f"DELETE FROM {TABLE} WHERE rowid IN (SELECT place FROM known WHERE older)")
        db.execute(f"INSERT INTO {TABLE} ({_NAMES}) SELECT {_NAMES} FROM incoming")
        db.execute("DROP TABLE incoming; DROP TABLE known")
        return dict(counted)

    def _stage(self, db: duckdb.DuckDBPyConnection, arrived: pa.Table) -> None:
        """Make the table `incoming`: of each id the newest version; of those the one that came last."""
        db.execute(f"CREATE OR REPLACE TEMP TABLE incoming AS SELECT {_SELECT} FROM arrived")
        if db.execute("SELECT count(*) - count(DISTINCT id) FROM incoming").fetchall()[0][0]:
            db.register("placed", arrived.append_column("place", pa.array(range(arrived.num_rows), pa.int64())))
            newest = "row_number() OVER (PARTITION BY CAST(id AS UUID) ORDER BY updated_utc DESC, place DESC) = 1"
            db.execute(f"CREATE OR REPLACE TEMP TABLE incoming AS SELECT {_SELECT} FROM placed QUALIFY {newest}")
            db.unregister("placed")

    def _compare(self, db: duckdb.DuckDBPyConnection, batch: Batch) -> None:
        """Make the table `known`: of what is incoming what is there, and whether that is an older version."""
        since = full_since_of(batch)
        # Of equal times, content tells; in a run that reads everything again, also where an older version comes.
        doubtful = "t.updated_utc = i.updated_utc"
        if since is not None:
            doubtful = f"({doubtful} OR (t.updated_utc > i.updated_utc AND t.fetched_utc < $since))"
        db.execute(
            "CREATE OR REPLACE TEMP TABLE known AS "
            f"SELECT t.rowid AS place, t.id, t.updated_utc < i.updated_utc AS older, {doubtful} AS doubtful "
            f"FROM {TABLE} t JOIN incoming i ON t.id = i.id",
            {} if since is None else {"since": since},
        )
        if db.execute("SELECT count(*) FROM known WHERE doubtful").fetchall()[0][0]:
            db.execute(
                "UPDATE known SET older = true WHERE place IN ("
                f"SELECT k.place FROM known k JOIN {TABLE} t ON t.rowid = k.place JOIN incoming i ON i.id = k.id "
                f"WHERE k.doubtful AND ({_DIFFERS}))"
            )

    def _leave_out(self, db: duckdb.DuckDBPyConnection, batch: Batch) -> None:
        """Take from `incoming` what is there already, and what is in no state that was asked for."""
        db.execute("DELETE FROM incoming WHERE id IN (SELECT id FROM known WHERE NOT older)")
        states = states_of(batch)
        if states is not None:
            # Whether an order came into its state within the batch or before it makes no difference.
            db.execute(
                "DELETE FROM incoming WHERE id NOT IN (SELECT id FROM known) AND id NOT IN "
                "(SELECT CAST(id AS UUID) FROM arrived WHERE state IN (SELECT unnest($states)))",
                {"states": list(states)},
            )

    def _set_aside(self, db: duckdb.DuckDBPyConnection, batch: Batch) -> None:
        """Bring the table of what is kept aside up to date."""
        gone, rows = gone_and_come(batch)
        if not gone:
            return
        db.register("gone", pa.table(dict(zip(("portfolio", "id"), zip(*gone, strict=True), strict=True))))
        db.execute(f"DELETE FROM {REJECTED} WHERE (portfolio, lower(id)) IN (SELECT (portfolio, id) FROM gone)")
        db.unregister("gone")
        if rows:
            texts = {
                name: pa.array(values, pa.string())
                for name, values in zip(REJECTED_NAMES, zip(*rows, strict=True), strict=True)
            }
            select = ", ".join(f"CAST({name} AS {type_})" for name, type_ in rejected_columns(_TYPES).items())
            db.register("rejected", pa.table(texts))
            db.execute(f"INSERT INTO {REJECTED} ({', '.join(REJECTED_NAMES)}) SELECT {select} FROM rejected")
            db.unregister("rejected")

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
        if TABLE in _tables(db) and (how := difference(_columns_of(db), _TYPES)) is not None:
            raise SinkError(self.url, how, "Rename that table, or name another file")

    def _claim(self) -> None:
        """Keep other runs of this process out: to DuckDB they would be one."""
        path = os.path.realpath(self._path)
        with _OPENING:
            if path in _OPEN:
                raise busy(self.url)
            _OPEN.add(path)
        self._claimed = path

    def _mark_as_run(self) -> None:
        """Lock the file in a way that DuckDB does not look at: others can tell a run from who just has it open."""
        with suppress(OSError):  # where files cannot be locked so, messages are less exact
            self._mark = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_marked(self) -> bool:
        """Whether a run of another process has the file. Only where this process does not have it: see `close`."""
        with suppress(OSError):
            mark = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(mark)
        return False

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._translated():
            db = duckdb.connect(self._path, read_only=read_only, config={**_SETTINGS})
            db.execute("SET TimeZone = 'UTC'")
            db.execute("SET enable_progress_bar = false")  # standard output is the summary's
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
            if (held := self._held_by(str(error))) is not None:
                raise held from None
            if "No space left" in str(error) or "File too large" in str(error):
                cure = "Make room; what was committed is safe, and the next run goes on from it"
                raise SinkError(self.url, "the disk is full", cure) from error
            if "not a valid DuckDB database" in str(error):
                raise SinkError(self.url, "the file is no DuckDB database", "Name another file") from None
            cure = "Mend that; what was committed is safe, and the next run goes on from it"
            raise SinkError(self.url, f"DuckDB says: {text}", cure) from error

    def _held_by(self, text: str) -> SinkBusyError | None:
        """Who keeps us from opening the file, by what DuckDB says.

        1. A run of this process.
        2. Another connection of this process, or a database that it has attached.
        3. A run of another process.
        4. Something else in another process: a notebook, a report that reads.
        """
        if "different configuration" in text or "is already attached" in text:
            if self._claimed is None and os.path.realpath(self._path) in _OPEN:
                return busy(self.url)
            cure = "Close that connection (or DETACH the file) first, in a notebook in the cell that made it"
            return SinkBusyError(self.url, "this process has it open already, outside of fetcher", cure)
        if "Could not set lock" not in text:
            return None
        holder = _HOLDER.search(text)
        if holder is None or self._is_marked():
            return busy(self.url)
        who = f"process {holder['process']} ({Path(holder['program']).name})"
        return SinkBusyError(self.url, f"{who} has it open", "Close it there, or end that process, and run again")


def make(url: str) -> Sink:
    """The sink for `duckdb:FILE`."""
    return DuckdbSink(url, place_of(url))


def _progress(db: duckdb.DuckDBPyConnection) -> Progress:
    return dict(db.execute(f"SELECT name, record FROM {PROGRESS}").fetchall())


def _columns_of(db: duckdb.DuckDBPyConnection) -> dict[str, str]:
    query = (
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_name = ? AND table_schema = current_schema() AND table_catalog = current_database()"
    )
    return dict(db.execute(query, [TABLE]).fetchall())


def _update(db: duckdb.DuckDBPyConnection) -> None:
    """Bring newer versions into their rows, which keep what they have in further columns, and out of `incoming`."""
    updates = ", ".join(f"{name} = i.{name}" for name in columns(_TYPES))
    db.execute(
        f"UPDATE {TABLE} AS t SET {updates} FROM incoming i JOIN known k ON k.id = i.id "
        "WHERE t.rowid = k.place AND k.older"
    )
    db.execute("DELETE FROM incoming WHERE id IN (SELECT id FROM known)")


def _tables(db: duckdb.DuckDBPyConnection) -> set[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    return {name for (name,) in db.execute(query).fetchall()}


def _roll_back(db: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # the transaction may be gone already
        db.execute("ROLLBACK")
