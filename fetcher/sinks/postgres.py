"""`postgresql://...` keeps one row for each order, the newest version, in the table `product_service_orders`.

A commit is one transaction: the batch goes by COPY into a temporary table that lives as long, and from there, in the
order of the ids, so that several processes never wait for each other in a circle, into the table; progress goes with
it. A user without the right to make temporary tables sends it as an array for each column instead, which takes half as
much time again. A connection that is lost is opened again and the batch is sent once more, which changes nothing if it
was committed after all.

Of versions with the same `updated_utc` the one that the platform answered later stays: there may be several writers,
and what one of them sends again may be older by now. A row whose `fetched_utc` lies in the future tells of a clock
that was wrong, and yields.

A portfolio's progress has one owner: whoever took it last. Its epoch is a record beside the others (`NAME/epoch`), so
that no right is needed that was not before. A commit locks that row last of all, and looks whether the epoch is still
its own: so the owner before can have committed before it was taken, and is in the progress, or not at all. What holds
locks without saying anything (a machine that was cut off in mid-commit, a process that was stopped) is ended by the
server, see `postgres_connection`.
"""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec

from fetcher.errors import MissingExtraError, SinkError, TakenOverError
from fetcher.sinks.base import (
    Batch,
    EncodedPage,
    Extent,
    Holdings,
    Page,
    Predecessor,
    Progress,
    RejectedRow,
    Sink,
    Taken,
    portfolios_of,
)

try:
    import psycopg
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pcsv
    from psycopg import sql

    from fetcher.sinks.arrow import ID_COLUMNS, SCHEMA, fitting, require_no_nul, require_uuids, require_years
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
    from fetcher.sinks.postgres_address import Address, read_address
    from fetcher.sinks.postgres_connection import PostgresConnection, Verbatim
except ImportError as missing:
    raise MissingExtraError("postgresql:", "postgres") from missing

log = logging.getLogger("fetcher")

_TYPES = ColumnTypes(id="uuid", text="text", time="timestamp with time zone", flag="boolean")
_NAMES = ", ".join(columns(_TYPES))
_CSV = pcsv.WriteOptions(include_header=False, quoting_style="all_valid")
"""Every value is quoted and no null is, so that COPY tells an empty text from none."""
_COPIED = f"SELECT {_NAMES}, ctid AS place FROM pg_temp.fetcher_incoming"  # in the order in which they came
_ARRAYS = ", ".join(f"%s::{type_}[]" for type_ in columns(_TYPES).values())
_SENT = f"SELECT * FROM unnest({_ARRAYS}) WITH ORDINALITY AS given ({_NAMES}, place)"
_QUOTE, _NOTHING = pa.scalar('"', pa.large_string()), pa.scalar("", pa.large_string())
_DIFFERS = f"({', '.join(f't.{n}' for n in CONTENT)}) IS DISTINCT FROM ({', '.join(f'excluded.{n}' for n in CONTENT)})"
_UPDATES = ", ".join(f"{name} = excluded.{name}" for name in columns(_TYPES) if name != "id")


class _Owner(msgspec.Struct, frozen=True):
    """A portfolio's record `NAME/epoch`."""

    epoch: int = 0
    """How often it was taken."""
    place: str | None = None
    held: Sequence[float] | None = None
    """See `Predecessor`; from `at` on."""
    at: float = 0.0
    """When that was written: seconds since 1970, by the server's clock."""
    taken_by: str = ""
    """Which call of `take` it was: if its answer is lost, and it is made again, it is the same."""
    before: _Owner | None = None
    """Who had it then, less who was before."""


_NOBODY = msgspec.json.encode(_Owner()).decode()


class PostgresSink(Sink):
    """Merges batches into a table of a PostgreSQL database.

    Args:
        address: where the database is, and the schema of the tables.
    """

    batch_rows = 50_000
    shared = True

    LOCK_KEY = 0x66657463686572  # "fetcher", for the advisory lock under which tables are made

    def __init__(self, address: Address) -> None:
        super().__init__(address.shown)
        self._schema = address.schema
        self._database = PostgresConnection(address)
        self._epochs: dict[str, int] = {}  # of each portfolio that was taken
        self._copies = False  # whether the user may make temporary tables: COPY needs one

    def probe(self) -> None:
        """See `Sink.probe`: does all that a run would do, in a transaction that is rolled back."""
        try:
            self._database.transact(self._try, undo=True)
        finally:
            self._database.close()

    def open(self) -> Progress:
        """See `Sink.open`."""

        def prepare(db: psycopg.Connection) -> Progress:
            self._check_server(db)
            self._make_tables(db)
            return self._progress(db)

        try:
            return self._database.transact(prepare)
        except BaseException:
            self.close()
            raise

    def encode(self, page: Page) -> EncodedPage:
        """The page as CSV, which the server reads nearly as fast as its binary format, and Arrow writes ten times."""
        batch, rejected = fitting(page, require_uuids, require_no_nul, require_years)
        text = _csv(batch)
        return EncodedPage.of(page, rows=batch.num_rows, size=text.size, payload=text, rejected=rejected)

    def take(self, portfolios: Collection[str], place: str | None) -> Taken:
        """See `Sink.take`."""
        call = uuid4().hex

        def take(db: psycopg.Connection) -> tuple[Taken, dict[str, int]]:
            make = (
                "INSERT INTO {progress} (name, record) SELECT name, %s FROM unnest(%s::text[]) AS given (name) "
                "ORDER BY name ON CONFLICT DO NOTHING"
            )
            db.execute(self._sql(make), (_NOBODY, _epoch_names(portfolios)))
            found, now = self._owners(db, portfolios)
            taken = {
                name: owner
                if owner.taken_by == call
                else _Owner(owner.epoch + 1, place, taken_by=call, before=msgspec.structs.replace(owner, before=None))
                for name, owner in found.items()
            }
            self._write_owners(db, taken)
            before = {
                name: _predecessor(owner.before, now)
                for name, owner in taken.items()
                if owner.before is not None and owner.before.epoch
            }
            # Only now: what the owners before had committed until then is in it.
            query = self._sql("SELECT name, record FROM {progress} WHERE split_part(name, '/', 1) = ANY(%s)")
            records: list[tuple[str, str]] = db.execute(query, (list(portfolios),)).fetchall()
            return Taken(_others(records), before), {name: owner.epoch for name, owner in taken.items()}

        result, epochs = self._database.transact(take, patient=True)
        self._epochs |= epochs
        return result

    def lost(self) -> Collection[str]:
        """See `Sink.lost`."""
        if not self._epochs:
            return ()
        return self._database.transact(lambda db: self._lost_of(db, self._epochs, lock=False))

    def hand_over(self, held: Mapping[str, Sequence[float]]) -> None:
        """See `Sink.hand_over`."""

        def write(db: psycopg.Connection) -> None:
            found, now = self._owners(db, held)
            mine = {name: owner for name, owner in found.items() if owner.epoch == self._epochs.get(name)}
            replace = msgspec.structs.replace
            said = {name: replace(owner, held=tuple(held[name]), at=now) for name, owner in mine.items()}
            self._write_owners(db, said)

        self._database.transact(write)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        return self._database.transact(lambda db: self._commit(db, batch), patient=True)

    def abandon(self) -> None:
        """See `Sink.abandon`."""
        self._database.abandon()

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        # As text of our own: how times are written is up to the role, the database and the server.
        newest = "to_char(max(updated_utc) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')"
        held, progress = self._held(f"SELECT portfolio, count(*), {newest} FROM {{table}} GROUP BY portfolio")
        return Holdings(
            rows={portfolio: rows for portfolio, rows, _ in held},
            newest={portfolio: datetime.fromisoformat(newest) for portfolio, _, newest in held},
            progress=progress,
        )

    def extent(self) -> Extent:
        """See `Sink.extent`: by enterprise and month, and by day."""
        return extent_of(*self._held(COUNTED))

    def _held(self, query: str) -> tuple[list[Any], Progress]:
        """What a query of the table gives, and the progress; nothing where there is no table yet."""

        def look(db: psycopg.Connection) -> tuple[list[Any], Progress]:
            if not self._columns_of(db, TABLE):
                return [], {}
            return db.execute(self._sql(query)).fetchall(), self._progress(db)

        try:
            return self._database.transact(look)
        finally:
            self._database.close()

    def close(self) -> None:
        """See `Sink.close`."""
        self._database.close()

    def _commit(self, db: psycopg.Connection, batch: Batch) -> dict[str, int]:
        new = self._merge(db, batch) if any(page.rows for page in batch.pages) else {}
        self._set_aside(db, batch)
        if lost := self._lost_of(db, portfolios_of(batch) & self._epochs.keys(), lock=True):
            raise TakenOverError(self.url, lost)
        self._record(db, batch.progress)
        return new

    def _lost_of(self, db: psycopg.Connection, portfolios: Collection[str], *, lock: bool) -> set[str]:
        """Which of these, that were taken, are somebody else's now; `lock`: those that are not, stay so until the end.

        One whose record is gone is nobody's: somebody has cleared the progress meanwhile.
        """
        if not portfolios:
            return set()
        found, _ = self._owners(db, portfolios, lock=lock)
        return {name for name in portfolios if name not in found or found[name].epoch != self._epochs[name]}

    def _owners(
        self, db: psycopg.Connection, portfolios: Collection[str], *, lock: bool = True
    ) -> tuple[dict[str, _Owner], float]:
        """Whose they are, by portfolio, and the server's time in seconds since 1970."""
        query = (
            "SELECT name, record, extract(epoch FROM clock_timestamp())::double precision FROM {progress} "
            f"WHERE name = ANY(%s) ORDER BY name{' FOR UPDATE' if lock else ''}"
        )
        rows: list[tuple[str, str, float]] = db.execute(self._sql(query), (_epoch_names(portfolios),)).fetchall()
        decode = msgspec.json.Decoder(_Owner).decode
        return {name.partition("/")[0]: decode(record) for name, record, _ in rows}, min(
            (r[2] for r in rows), default=0.0
        )

    def _write_owners(self, db: psycopg.Connection, owners: Mapping[str, _Owner]) -> None:
        query = (
            "UPDATE {progress} AS t SET record = given.record "
            "FROM unnest(%s::text[], %s::text[]) AS given (name, record) WHERE t.name = given.name"
        )
        records = [msgspec.json.encode(owner).decode() for owner in owners.values()]
        db.execute(self._sql(query), ([f"{name}/epoch" for name in owners], records))

    def _merge(self, db: psycopg.Connection, batch: Batch) -> dict[str, int]:
        """Bring a batch's rows into the table; returns by portfolio how many were new or newer."""
        states, since = states_of(batch), full_since_of(batch)
        texts = [page.payload for page in batch.pages if page.rows]
        parameters: list[object] = []
        if self._copies:
            self._copy(db, texts)
        else:
            parameters += [Verbatim(b"{" + elements + b"}") for elements in _elements_of(texts)]
        wanted = "true"
        if states is not None:
            # Whether an order came into its state within the batch or before it makes no difference.
            wanted = (
                "state = ANY(%s) OR EXISTS (SELECT FROM {table} t WHERE t.id = i.id) "
                "OR id IN (SELECT id FROM incoming WHERE state = ANY(%s))"
            )
            parameters += [list(states)] * 2
        gone_back = "false"
        if since is not None:
            gone_back = f"t.fetched_utc < %s AND {_DIFFERS}"
            parameters.append(since)
        query = (
            f"WITH incoming AS ({_COPIED if self._copies else _SENT}), "
            f"merged AS (INSERT INTO {{table}} AS t ({_NAMES}) "
            f"SELECT DISTINCT ON (id) {_NAMES} FROM incoming i WHERE {wanted} "
            "ORDER BY id, updated_utc DESC, place DESC "
            f"ON CONFLICT (id) DO UPDATE SET {_UPDATES} WHERE t.updated_utc < excluded.updated_utc "
            f"OR t.updated_utc = excluded.updated_utc AND {_DIFFERS} AND "
            "(t.fetched_utc <= excluded.fetched_utc OR t.fetched_utc > now() + interval '10 minutes') "
            f"OR {gone_back} "
            "RETURNING portfolio) SELECT portfolio, count(*) FROM merged GROUP BY portfolio"
        )
        return dict(db.execute(self._sql(query), parameters).fetchall())

    def _copy(self, db: psycopg.Connection, texts: Sequence[pa.Buffer]) -> None:
        # Two in one transaction are those of a trial.
        db.execute("DROP TABLE IF EXISTS pg_temp.fetcher_incoming")
        db.execute(self._sql(f"CREATE TEMP TABLE fetcher_incoming ({definition(_TYPES)}) ON COMMIT DROP"))
        copying = self._sql(f"COPY pg_temp.fetcher_incoming ({_NAMES}) FROM STDIN (FORMAT csv)")
        with db.cursor() as cursor, cursor.copy(copying) as copy:
            for text in texts:
                copy.write(memoryview(text))

    def _set_aside(self, db: psycopg.Connection, batch: Batch) -> None:
        """Bring the table of what is kept aside up to date."""
        gone, rows = gone_and_come(batch)
        if not gone:
            return
        portfolios, keys = zip(*gone, strict=True)
        try:
            db.execute(
                self._sql(
                    "DELETE FROM {rejected} WHERE (portfolio, lower(id)) IN "
                    "(SELECT * FROM unnest(%s::text[], %s::text[]))"
                ),
                (list(portfolios), list(keys)),
            )
            if rows:
                arrays = ", ".join(f"%s::{type_}[]" for type_ in rejected_columns(_TYPES).values())
                names = ", ".join(REJECTED_NAMES)
                db.execute(
                    self._sql(f"INSERT INTO {{rejected}} ({names}) SELECT * FROM unnest({arrays})"),
                    [list(values) for values in zip(*rows, strict=True)],
                )
        except psycopg.errors.UndefinedTable:
            raise self._may_not(f"keep orders aside: there is no table {REJECTED}", self._rejected_table()) from None

    def _record(self, db: psycopg.Connection, progress: Mapping[str, str | None]) -> None:
        """Write the records that changed, in the order of their names: see the module's first lines."""
        gone = [name for name, record in progress.items() if record is None]
        if gone:
            db.execute(
                self._sql(
                    "DELETE FROM {progress} AS t USING (SELECT name FROM {progress} WHERE name = ANY(%s) "
                    "ORDER BY name FOR UPDATE) AS gone WHERE t.name = gone.name"
                ),
                (gone,),
            )
        kept = {name: record for name, record in progress.items() if record is not None}
        if kept:
            db.execute(
                self._sql(
                    "INSERT INTO {progress} (name, record) SELECT name, record "
                    "FROM unnest(%s::text[], %s::text[]) AS given (name, record) ORDER BY name "
                    "ON CONFLICT (name) DO UPDATE SET record = excluded.record"
                ),
                (list(kept), list(kept.values())),
            )

    def _try(self, db: psycopg.Connection) -> None:
        """Whatever a run does; the caller rolls it back."""
        db.execute("SELECT set_config('lock_timeout', '5s', true)")
        self._check_server(db)
        self._make_tables(db, all_of_them=True)
        now = datetime.now(UTC)
        order_id = str(uuid4())
        row = RejectedRow(
            id=order_id, portfolio="check", enterprise_id=None, reason="check", raw="{}", rejected_utc=now
        )
        rejected = EncodedPage(portfolio="check", rows=0, size=0, payload=None, rejected=[row])
        # The second time the row is there already, and changes.
        for page in (_trial(order_id, now), _trial(order_id, now + timedelta(seconds=1))):
            self._commit(db, Batch(pages=[page, rejected], progress={f"check/{order_id}": "{}"}))
        self._commit(db, Batch(pages=[], progress={f"check/{order_id}": None}))

    def _check_server(self, db: psycopg.Connection) -> None:
        """Make sure that the database can hold any text, and takes any.

        Raises:
            SinkError: it cannot, or does not.
        """
        query = (
            "SELECT current_setting('server_encoding'), current_setting('transaction_read_only'), "
            "has_database_privilege(current_database(), 'TEMP')"
        )
        encoding, read_only, self._copies = db.execute(query).fetchall()[0]
        if encoding != "UTF8":
            # Told before anything is written: which letters such a database lacks would be found out order by order.
            cause = f"its database is in the encoding {encoding}, which cannot hold every text"
            cure = "Name a database that was made with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            raise SinkError(self.url, cause, cure)
        if read_only == "on":
            raise psycopg.errors.ReadOnlySqlTransaction("its transactions are read-only")

    def _make_tables(self, db: psycopg.Connection, *, all_of_them: bool = False) -> None:
        """Make the tables and columns that are not there; finds fault with a table that is somebody else's.

        Without the right to make the table of what is kept aside, an older layout goes on until an order has to be
        kept there, unless `all_of_them` are asked for.
        """
        # `IF NOT EXISTS` alone fails where two processes create at the same time.
        db.execute("SELECT pg_advisory_xact_lock(%s)", (self.LOCK_KEY,))
        found = self._columns_of(db, TABLE)
        if found:
            self._check_table(db, found)
            for name, type_ in missing_columns(found, _TYPES).items():
                add = self._sql(f"ALTER TABLE {{table}} ADD COLUMN {name} {type_}")
                self._make(db, f"add the column {name}", add)
        else:
            if not db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,)).fetchone():
                self._make(db, f"create the schema {self._schema}", self._sql("CREATE SCHEMA {schema}"))
            table = self._sql(f"CREATE TABLE {{table}} ({definition(_TYPES)}, PRIMARY KEY (id))")
            self._make(db, f"create the table {TABLE}", table)
        if not self._columns_of(db, PROGRESS):
            progress = self._sql("CREATE TABLE {progress} (name text PRIMARY KEY, record text NOT NULL)")
            self._make(db, f"create the table {PROGRESS}", progress)
        if not self._columns_of(db, REJECTED):
            try:
                self._make(db, f"create the table {REJECTED}", self._rejected_table())
            except SinkError as error:
                if all_of_them:
                    raise
                log.warning("%s. Until then a run ends where an order cannot be kept with the others", error)

    def _make(self, db: psycopg.Connection, what: str, statement: sql.Composed) -> None:
        try:
            with db.transaction():
                db.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            raise self._may_not(what, statement) from None

    def _may_not(self, what: str, statement: sql.Composed) -> SinkError:
        cure = (
            f"Grant it CREATE on the schema {self._schema} and, where it is there already, what the table's owner may, "
            f"or have the owner run: {statement.as_string(None)}; and grant it SELECT, INSERT, UPDATE, DELETE there"
        )
        return SinkError(self.url, f"its user may not {what}", cure)

    def _rejected_table(self) -> sql.Composed:
        # It has no key, and a publication of all tables wants to know which rows go.
        replica = "ALTER TABLE {rejected} REPLICA IDENTITY FULL"
        return self._sql(f"CREATE TABLE {{rejected}} ({rejected_definition(_TYPES)}); {replica}")

    def _check_table(self, db: psycopg.Connection, found: Mapping[str, str]) -> None:
        how = difference(found, _TYPES)
        if how is None and not self._is_keyed(db):
            how = f"its table {TABLE} has no primary key (id)"
        if how is not None:
            cure = f"Rename that table, or name another schema with ?schema=... (this one is {self._schema})"
            raise SinkError(self.url, how, cure)

    def _columns_of(self, db: psycopg.Connection, table: str) -> dict[str, str]:
        """Each column's type; empty if there is no such table. Also of tables that the user may not read."""
        query = (
            "SELECT a.attname::text, format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, NULL) "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
            "JOIN pg_type t ON t.oid = a.atttypid "
            "WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped"
        )
        return dict(db.execute(query, (self._schema, table)).fetchall())

    def _is_keyed(self, db: psycopg.Connection) -> bool:
        query = (
            "SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) "
            "WHERE n.nspname = %s AND c.relname = %s AND i.indisunique GROUP BY i.indexrelid"
        )
        return ["id"] in [names for (names,) in db.execute(query, (self._schema, TABLE)).fetchall()]

    def _progress(self, db: psycopg.Connection) -> Progress:
        if not self._columns_of(db, PROGRESS):
            return {}
        return _others(db.execute(self._sql("SELECT name, record FROM {progress}")).fetchall())

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(  # pyright: ignore[reportArgumentType] every text is one of this module's
            table=sql.Identifier(self._schema, TABLE),
            progress=sql.Identifier(self._schema, PROGRESS),
            rejected=sql.Identifier(self._schema, REJECTED),
            schema=sql.Identifier(self._schema),
        )


def make(url: str) -> Sink:
    """The sink for `postgresql://user:password@host:port/database?schema=name`, or whatever else libpq takes."""
    return PostgresSink(read_address(url))


def _epoch_names(portfolios: Collection[str]) -> list[str]:
    return [f"{name}/epoch" for name in portfolios]


def _others(records: Sequence[tuple[str, str]]) -> Progress:
    """The job's own records; who owns what is for the sink alone. (No selection is called `epoch`.)"""
    return {name: record for name, record in records if name.split("/")[1:] != ["epoch"]}


def _predecessor(owner: _Owner, now: float) -> Predecessor:
    if owner.held is None:
        return Predecessor(owner.place, None)
    passed = max(0.0, now - owner.at)
    return Predecessor(owner.place, [seconds - passed for seconds in owner.held if seconds > passed])


def _csv(batch: pa.RecordBatch) -> pa.Buffer:
    out = pa.BufferOutputStream()
    pcsv.write_csv(batch, out, _CSV)
    return out.getvalue()


def _elements_of(texts: Sequence[pa.Buffer]) -> Iterator[bytes]:
    """What pages of CSV hold, column by column, as the elements of an array."""
    table = pcsv.read_csv(
        pa.BufferReader(b"".join(memoryview(text) for text in texts)),
        pcsv.ReadOptions(column_names=SCHEMA.names),
        pcsv.ParseOptions(newlines_in_values=True),
        pcsv.ConvertOptions(
            column_types=dict.fromkeys(SCHEMA.names, pa.large_string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    for column in table.columns:
        text = pc.replace_substring(pc.replace_substring(column, "\\", "\\\\"), '"', '\\"')
        quoted = pc.fill_null(pc.binary_join_element_wise(_QUOTE, text, _QUOTE, _NOTHING), "NULL")
        yield ",".join(quoted.to_pylist()).encode()


def _trial(order_id: str, updated: datetime) -> EncodedPage:
    """A page of one order that never was."""
    values = {pa.string(): "check", pa.bool_(): False}
    row = {field.name: order_id if field.name in ID_COLUMNS else values.get(field.type, updated) for field in SCHEMA}
    text = _csv(pa.RecordBatch.from_pylist([row], SCHEMA))
    return EncodedPage(portfolio="check", rows=1, size=text.size, payload=text)
