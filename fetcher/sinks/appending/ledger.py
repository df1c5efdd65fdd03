"""What the file sinks know of themselves: progress, totals, parts, and what is kept aside; in SQLite.

The rule that cannot be broken: what is recorded here is durable in the files, and what is not recorded does not count
(promise P3). A file is written and synced before it is recorded, in one transaction with the progress. The versions
that may come again are in the same database, and `fetcher.sinks.appending.memory` knows what to do with them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from fetcher.connector.types import parse_utc
from fetcher.errors import SinkBusyError, SinkError
from fetcher.sinks.appending import memory
from fetcher.sinks.appending.memory import Memory, Versions
from fetcher.sinks.appending.versions import Version
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Progress, kept_aside
from fetcher.sinks.rejected import RejectedFile, line_of

_VERSION = "2"
_OLDER = "1"
"""Told versions by order and time alone, and did not know whose they are."""
_TABLES = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (
    portfolio TEXT PRIMARY KEY, rows INTEGER NOT NULL, newest TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS part (name TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejected (
    portfolio TEXT, key TEXT, line TEXT NOT NULL, PRIMARY KEY (portfolio, key)
) WITHOUT ROWID;
"""
_SCHEMA = _TABLES + memory.SCHEMA

log = logging.getLogger("fetcher")


class Ledger:
    """The SQLite file beside a file sink's data.

    Args:
        url: the sink's, for messages.
        path: the file; `None`: a temporary one, for a sink that cannot resume.
        scan: gives every version in the data files, in the order in which they came.
        rejected: the file that shows what is kept aside; `None`: nobody asks for it.
    """

    def __init__(
        self,
        url: str,
        path: Path | None,
        scan: Callable[[], Iterable[Version]],
        rejected: RejectedFile | None = None,
    ) -> None:
        self._url = url
        self._path = path
        self._rejected = rejected
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.memory = Memory(url, scan, lambda: self.db)
        """Which versions it holds."""
        self._added: list[str] = []  # what `show_aside` is to add
        self._aside_went = False  # whether something is to go from there

    def open(self) -> Progress:
        """Create or read the file, and keep other processes out. `renew` comes next, once the data files are in order.

        Raises:
            SinkBusyError: another process has it.
            SinkError: it cannot be used.
        """
        with translated(self._url):
            if self._path is not None:
                self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise busy(self._url) from None
            self._connect()
            if not self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'fact'").fetchone():
                self.db.executescript(f"BEGIN; {_SCHEMA} INSERT INTO fact VALUES ('version', '{_VERSION}'); COMMIT;")
            if self.fact("version") not in (_VERSION, _OLDER):
                cure = "Use that version of fetcher, or another place"
                raise SinkError(self._url, "it was written by another version of fetcher", cure)
            return dict(self.db.execute("SELECT name, record FROM progress"))

    def renew(self) -> None:
        """Take over what an older version wrote, and show what is kept aside."""
        with translated(self._url):
            if self.fact("version") == _OLDER:
                self._take_over()
            self.memory.renew()
            self._show_aside()

    def move(self, path: Path) -> None:
        """Go on in another place on the same disk, keeping others out all the while."""
        with translated(self._url):
            if self._path is None or self._db is None:
                raise RuntimeError("there is no file to move")
            self._db.close()
            self._path.rename(path)
            self._path = path
            self._connect()

    @property
    def db(self) -> sqlite3.Connection:
        """The open connection."""
        if self._db is None:
            raise RuntimeError("the sink is used before it was opened")
        return self._db

    def fact(self, name: str) -> str | None:
        """A value by name."""
        row = self.db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_fact(self, name: str, value: str) -> None:
        """Keep a value by name, within `recording`."""
        self.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def start_over(self) -> Progress:
        """Forget everything, because the data is gone; returns the progress there is then: none."""
        self.memory.start_over()
        self.db.executescript(_SCHEMA)
        with self.recording(()):
            for table in ("progress", "total", "part", "rejected"):
                self.db.execute(f"DELETE FROM {table}")
            self.set_fact("length", "0")
            self.set_fact("version", _VERSION)
        return {}

    def parts(self) -> list[str]:
        """The names of the data files that are recorded, in order."""
        return [name for (name,) in self.db.execute("SELECT name FROM part ORDER BY name")]

    def add_part(self, name: str, rows: int) -> None:
        """Record a data file, within `recording`."""
        self.db.execute("INSERT INTO part VALUES (?, ?)", (name, rows))

    @contextmanager
    def recording(self, pages: Iterable[Versions]) -> Generator[None]:
        """One transaction for a batch of these pages: what is done within lasts, all of it or nothing."""
        self.memory.prepare(pages)
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    def record(self, batch: Batch, rows: Mapping[str, int], newest: Mapping[str, str]) -> None:
        """Keep a batch's progress and totals (new rows, and the newest `UpdatedUtc`, by portfolio), in `recording`."""
        for name, record in batch.progress.items():
            if record is None:
                self.db.execute("DELETE FROM progress WHERE name = ?", (name,))
            else:
                self.db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (name, record))
        for portfolio, count in rows.items():
            self.db.execute(
                "INSERT INTO total VALUES (?, ?, ?) ON CONFLICT (portfolio) DO UPDATE "
                "SET rows = rows + excluded.rows, newest = max(newest, excluded.newest)",
                (portfolio, count, newest.get(portfolio, "")),
            )
        self._keep_aside(batch.pages)
        self.memory.forget(batch.forget_before, self._portfolios)

    def show_aside(self) -> None:
        """After `recording`: show what was changed in what is kept aside. What is recorded counts, shown or not."""
        added, self._added = self._added, []
        went, self._aside_went = self._aside_went, False
        try:
            if went:
                self._show_aside()
            elif added and self._rejected is not None:
                self._rejected.add(added)
        except OSError as error:
            log.warning(
                "%s: what is kept aside cannot be shown (%s); it is recorded, and shown by the next run",
                self._url,
                error.strerror or error,
            )

    def close(self) -> None:
        """Let the file go."""
        db, self._db = self._db, None
        if db is not None:
            db.close()
        lock, self._lock = self._lock, None
        if lock is not None:  # only now: closing any descriptor of the file drops SQLite's own locks
            os.close(lock)

    def _connect(self) -> None:
        self._db = sqlite3.connect("" if self._path is None else self._path, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA temp_store = FILE")

    def _keep_aside(self, pages: Sequence[EncodedPage]) -> None:
        if not any(page.rejected or page.mended for page in pages):
            return
        gone, rows = kept_aside(pages)
        went = self.db.executemany("DELETE FROM rejected WHERE portfolio = ? AND key = ?", gone).rowcount
        lines = [line_of(row) for row in rows]
        values = [(row.portfolio, row.key, line) for row, line in zip(rows, lines, strict=True)]
        self.db.executemany("INSERT INTO rejected VALUES (?, ?, ?)", values)
        self._aside_went = went > 0
        self._added = lines
        if rows:
            self.set_fact("rejected", "shown")

    def _show_aside(self) -> None:
        """Write the file anew; one that this sink never wrote is not touched."""
        if self._rejected is None or self.fact("rejected") is None:
            return
        if self.db.execute("SELECT 1 FROM rejected").fetchone() is None:
            self._rejected.remove()
        else:
            lines = self.db.execute("SELECT line FROM rejected ORDER BY portfolio, key")
            self._rejected.show(line for (line,) in lines)

    def _portfolios(self) -> list[str]:
        return [name for (name,) in self.db.execute("SELECT portfolio FROM total")]

    def _take_over(self) -> None:
        """Make of what an older version wrote what this one writes."""
        self.db.execute("BEGIN IMMEDIATE")
        self.memory.take_over(self._portfolios())
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self.db.execute(statement)
        self.set_fact("version", _VERSION)
        self.db.execute("COMMIT")


def read_holdings(url: str, path: Path) -> Holdings:
    """What a ledger holds, without keeping anybody out; nothing if there is none."""
    if not path.exists():
        return Holdings(rows={}, newest={}, progress={})
    with translated(url):
        db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=30)
        try:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'total'").fetchone():
                return Holdings(rows={}, newest={}, progress={})
            totals = db.execute("SELECT portfolio, rows, newest FROM total").fetchall()
            progress = dict(db.execute("SELECT name, record FROM progress"))
        finally:
            db.close()
    newest: dict[str, datetime] = {portfolio: parse_utc(text) for portfolio, _, text in totals if text}
    return Holdings(rows={portfolio: rows for portfolio, rows, _ in totals}, newest=newest, progress=progress)


def is_locked(path: Path) -> bool:
    """Whether another process has this ledger open."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def busy(url: str) -> SinkBusyError:
    """The error for a sink that another process writes to."""
    return SinkBusyError(url, "another run writes to it now", "Wait for it to end, or use another sink")


def check_folder(url: str, folder: Path) -> None:
    """Whether files can be made in `folder`, which must exist.

    Raises:
        SinkError: they cannot.
    """
    if not folder.is_dir():
        raise SinkError(url, f"there is no folder {folder}", "Create it, or name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(url, f"the folder {folder} is not writable", "Change its permissions, or name another place")


def sync_file(path: Path) -> None:
    """Make what was written into a file durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translated(url: str) -> Generator[None]:
    """Turn what goes wrong with files into `SinkError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cause = "the disk is full" if full else f"it cannot be written ({error.strerror or error})"
        cure = "Make room" if full else "Mend that, or name another place"
        raise SinkError(url, cause, f"{cure}; what was committed is safe, and the next run goes on from it") from error
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        cause = "the disk is full" if full else f"its ledger cannot be used ({error})"
        cure = "Make room" if full else "Mend that, or name another place"
        raise SinkError(url, cause, f"{cure}; what was committed is safe, and the next run goes on from it") from error
