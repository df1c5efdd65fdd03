"""The way to a PostgreSQL server: transactions that rely on no session, loss of the connection, giving up in time.

A connection may lead through a pooler that hands each transaction another session of the server. So nothing is kept in
a session: no settings at its start, no prepared statements, no temporary tables; what a transaction relies on it says
itself.

Nor does anybody wait for ever for one that is gone, or was stopped, in the middle of a transaction: the server ends
what says nothing for `SILENT_SECONDS` between two statements. (While rows come by COPY it waits for longer, but then
nothing is locked yet that others want.)

Who is in a hurry (`abandon`) waits for no database. What is under way then has `GRACE_SECONDS`; afterwards its
statement is cancelled, and if not even that helps, the connection is cut. Either the server had committed or it
had not: rows and progress are one, so the next run finds out which.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg
from psycopg import capabilities, sql
from psycopg.abc import Buffer
from psycopg.adapt import Dumper

from fetcher.errors import SinkAbandonedError, SinkError
from fetcher.sinks.postgres_address import Address

T = TypeVar("T")
Work = Callable[[psycopg.Connection], T]
log = logging.getLogger("fetcher")

_SAFE = "What was committed is safe, and the next run goes on from it"
SILENT_SECONDS = 10
"""Between two statements of a transaction: they follow each other at once, unless a machine is overwhelmed; then the
transaction is done again."""
_SESSION = sql.SQL(
    "SELECT set_config('client_encoding', 'UTF8', true), set_config('DateStyle', 'ISO', true), "
    "set_config('TimeZone', 'UTC', true), set_config('client_min_messages', 'warning', true), "
    "set_config('idle_in_transaction_session_timeout', {}, true)"
).format(sql.Literal(f"{SILENT_SECONDS}s"))


class Verbatim:
    """A parameter's text, as the server reads it: bytes in UTF-8, of whatever type the statement says."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class _VerbatimDumper(Dumper):
    def dump(self, obj: Verbatim) -> Buffer:
        return obj.data


class PostgresConnection:
    """A database, connected when it is needed. Used from one thread, but for `abandon`.

    Args:
        address: where it is.
    """

    RETRY_SECONDS = 120.0
    """How long a database that is gone is waited for: a restart takes seconds, a failover a minute."""
    GRACE_SECONDS = 3.0
    """How long what is under way may take when the caller is in a hurry."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._db: psycopg.Connection | None = None
        self._abandoned = threading.Event()
        self._over = False  # whether the grace is over
        self._turn = threading.Condition()  # guards _db and _busy, between the sink's thread and the one that cuts
        self._busy = False

    def transact(self, work: Work[T], *, patient: bool = False, undo: bool = False) -> T:
        """Do `work` in one transaction.

        Args:
            work: gets the connection; is done again if the connection was lost.
            patient: wait for a database that is away, or for another process that is in the way.
            undo: keep nothing of it.

        Raises:
            SinkAbandonedError: the caller is in a hurry, and it could not be done in time.
            SinkError: anything else that went wrong; nothing of it was kept.
        """
        with self._translated():
            deadline = time.monotonic() + (self.RETRY_SECONDS if patient else 0)
            pause = 0.25
            while True:
                try:
                    return self._once(work, undo=undo)
                except psycopg.Error as error:
                    if not _may_pass(error) or self._abandoned.is_set() or time.monotonic() + pause > deadline:
                        raise
                    log.warning("the database is away or in the way (%s); trying again", type(error).__name__)
                    self.close()
                    self._abandoned.wait(pause)  # in the sink's own thread
                    pause = min(5.0, pause * 2)

    def close(self) -> None:
        """Let the connection go; the next transaction makes another."""
        with self._turn:
            db, self._db = self._db, None
            if db is not None:
                with suppress(psycopg.Error):
                    db.close()

    def abandon(self) -> None:
        """See `Sink.abandon`."""
        with self._turn:
            if self._abandoned.is_set():
                return
            self._abandoned.set()
        threading.Thread(target=self._cut, name="fetcher-abandon", daemon=True).start()

    def _once(self, work: Work[T], *, undo: bool) -> T:
        if self._over:
            raise psycopg.OperationalError("the time is over")
        db = self._connected()
        with self._turn:
            self._busy = True
        try:
            with db.transaction(force_rollback=undo):
                db.execute(_SESSION)
                return work(db)
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def _connected(self) -> psycopg.Connection:
        """The connection, made if there is none.

        In a thread of its own, which is left alone if the caller gets into a hurry: neither the look-up of a name nor
        a server that does not answer can be told to stop.
        """
        if self._db is not None and not self._db.closed:
            return self._db
        made: Future[psycopg.Connection] = Future()
        done = threading.Event()
        made.add_done_callback(lambda _: done.set())
        threading.Thread(target=self._connect, args=(made,), name="fetcher-connect", daemon=True).start()
        while not done.wait(0.05):
            if self._abandoned.is_set() and made.cancel():
                raise psycopg.OperationalError("not connected in time")
        self._db = made.result()
        return self._db

    def _connect(self, made: Future[psycopg.Connection]) -> None:
        try:
            db = psycopg.connect(
                self._address.conninfo,
                autocommit=True,  # transactions begin where `transact` says so
                prepare_threshold=None,
                **self._address.parameters(),  # pyright: ignore[reportArgumentType] libpq's, all text
            )
            db.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # whatever the role's default: see the upsert
            db.adapters.register_dumper(Verbatim, _VerbatimDumper)
        except BaseException as error:  # told in the other thread
            if made.set_running_or_notify_cancel():
                made.set_exception(error)
            return
        if made.set_running_or_notify_cancel():
            made.set_result(db)
        else:
            db.close()

    def _cut(self) -> None:
        """End what is under way when the grace is over, by the gentlest way that works."""
        time.sleep(self.GRACE_SECONDS)
        self._over = True
        with self._turn:
            db = self._db if self._busy else None
        if db is None:
            return
        if capabilities.has_cancel_safe():  # libpq before 17 stops the whole process for a server that does not answer
            threading.Thread(target=_cancel, args=(db,), name="fetcher-cancel", daemon=True).start()
            if self._idle_within(0.7):
                return
        with self._turn:
            if self._db is not None and not self._db.closed:
                with suppress(OSError), socket.socket(fileno=os.dup(self._db.pgconn.socket)) as line:
                    line.shutdown(socket.SHUT_RDWR)

    def _idle_within(self, seconds: float) -> bool:
        with self._turn:
            return self._turn.wait_for(lambda: not self._busy, seconds)

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Turn what goes wrong in the database into `SinkError`; its messages never repeat a password."""
        try:
            yield
        except psycopg.Error as error:
            if self._abandoned.is_set() and (_may_pass(error) or self._over):
                cause = "the run was ended, and the database did not answer in time"
                raise SinkAbandonedError(self._address.shown, cause, _SAFE) from None
            cause, cure = _explained(error)
            raise SinkError(self._address.shown, cause, cure) from None


def _cancel(db: psycopg.Connection) -> None:
    with suppress(psycopg.Error):
        db.cancel_safe(timeout=1.0)


def _may_pass(error: psycopg.Error) -> bool:
    """Whether another try may help.

    A lost connection, a server that starts or has no connection free, a deadlock, a standby that is about to be the
    primary; not a full disk, nor a statement that was cancelled for its time.
    """
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in ("08", "40") or state in ("57P01", "57P02", "57P03", "57P05", "53300", "25006", "25P03")


def _explained(error: psycopg.Error) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    said = _said(error)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return said, "Grant its user the right, or name another user"
    if isinstance(error, psycopg.errors.DiskFull):
        return said, f"Make room. {_SAFE}"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        cure = (
            "Name the primary server (of several hosts: with target_session_attrs=read-write), or have its user's "
            "default_transaction_read_only set to off"
        )
        return said, cure
    if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        cure = (
            "Give its user a longer statement_timeout or lock_timeout (ALTER ROLE ... SET statement_timeout = '2min', "
            "or ?options=-c%20statement_timeout%3D120000), or end what holds the table"
        )
        return said, cure
    if isinstance(error, psycopg.OperationalError):
        return said, "Check host, port, user, password (PGPASSWORD or .pgpass) and that the server runs"
    return f"PostgreSQL says: {said}", f"Mend that. {_SAFE}"


def _said(error: psycopg.Error) -> str:
    """The server's or libpq's message, on one line."""
    message = error.diag.message_primary or str(error)
    return " ".join(message.split())[:300].rstrip(".?") or type(error).__name__
