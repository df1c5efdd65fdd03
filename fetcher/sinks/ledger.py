"""What the file sinks know of themselves: progress, totals, parts, and versions that may come again; in SQLite.

The rule that cannot be broken: what is recorded here is durable in the files, and what is not recorded does not count
(promise P3). A file is written and synced before it is recorded, in one transaction with the progress.

An appending sink holds each version (`Id`, `UpdatedUtc`) once (promise P2). Three kinds of versions may come again:

1. Updated since the run's end, less the overlap: the closing of this run or the next run reads them again. Their
   digests are remembered until no walk asks for them any more: a few minutes' worth.
2. Of a walk that starts again (`Page.repeats`): rare, so the files are read once, and all versions go to a
   temporary index on disk.
3. Twice in one page, which only a platform with a fault would send.

The index, once made, also takes what is written after it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

import msgspec

from fetcher.connector.types import parse_utc
from fetcher.errors import SinkBusyError, SinkError
from fetcher.sinks.base import Batch, Holdings, Page, Progress

_VERSION = "1"
_SCHEMA = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE progress (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE total (portfolio TEXT PRIMARY KEY, rows INTEGER NOT NULL, newest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE part (name TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE recent (version BLOB PRIMARY KEY, updated TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX recent_updated ON recent (updated);
"""


class Versions(msgspec.Struct, frozen=True):
    """What is known of the versions of one page's orders without looking at each."""

    latest: str
    """The latest `UpdatedUtc`; empty if there is none."""
    settled: str
    repeats: bool
    twins: bool
    """Whether an id is there more than once."""


def versions_of(page: Page) -> Versions:
    """What is known of a page's versions."""
    twins = len({order.id for order in page.orders}) < len(page.orders)
    return Versions(page.latest, page.settled, page.repeats, twins)


def version_digest(order_id: str, updated: str) -> bytes:
    """Names a version. However the platform writes a fraction, the same instant is the same version."""
    text = updated.rstrip("Z")
    if "." in text:
        head, _, fraction = text.partition(".")
        text = f"{head}.{fraction[:6]}".rstrip("0").rstrip(".")
    return blake2b(f"{order_id}{text}".encode(), digest_size=12).digest()


class Ledger:
    """The SQLite file beside a file sink's data.

    Args:
        url: the sink's, for messages.
        path: the file; `None`: a temporary one, for a sink that cannot resume.
        scan: gives the digest of every version in the data files.
    """

    def __init__(self, url: str, path: Path | None, scan: Callable[[], Iterable[bytes]]) -> None:
        self._url = url
        self._path = path
        self._scan = scan
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._indexed = False
        self._recent_from: str | None = None  # the oldest `UpdatedUtc` that was remembered before this run

    def open(self) -> Progress:
        """Create or read the file, and keep other processes out.

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
            self._db = sqlite3.connect("" if self._path is None else self._path, isolation_level=None)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA temp_store = FILE")
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'fact'").fetchone():
                self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                self._db.execute("INSERT INTO fact VALUES ('version', ?)", (_VERSION,))
            if self.fact("version") != _VERSION:
                cure = "Use that version of fetcher, or another place"
                raise SinkError(self._url, "it was written by another version of fetcher", cure)
            # To the second: with a fraction, the text of one instant does not compare with another text of it.
            (self._recent_from,) = self._db.execute("SELECT substr(min(updated), 1, 19) FROM recent").fetchone()
            return dict(self._db.execute("SELECT name, record FROM progress"))

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
        with self.recording(()):
            for table in ("progress", "total", "part", "recent"):
                self.db.execute(f"DELETE FROM {table}")
            self.set_fact("length", "0")
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
        if any(versions.repeats for versions in pages):
            self.index()
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    def unseen(self, versions: Versions, read: Callable[[], Iterable[tuple[str, str]]]) -> list[int] | None:
        """Which orders of a page are new, by position; `None`: all. Remembers them. Within `recording`.

        Args:
            versions: what is known of them.
            read: gives each order's id and `UpdatedUtc`; seldom needed.
        """
        # Earlier runs remembered from another time on than this one does.
        recent_from = versions.settled if self._recent_from is None else min(versions.settled, self._recent_from)
        if versions.latest < recent_from and not self._indexed and not versions.twins:
            return None
        new: list[int] = []
        count = 0
        of_page: set[bytes] = set()
        for position, (id_, updated) in enumerate(read()):
            digest = version_digest(id_, updated)
            twin = digest in of_page
            of_page.add(digest)
            indexed = self._indexed and not self._add_to("version (digest) VALUES (?)", digest)
            recent = updated >= recent_from and not self._add_to(
                "recent (version, updated) VALUES (?, ?)", digest, updated
            )
            if not (twin or indexed or recent):
                new.append(position)
            count += 1
        return None if len(new) == count else new

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
        if batch.forget_before:
            self.db.execute("DELETE FROM recent WHERE updated < ?", (min(batch.forget_before.values()),))

    def close(self) -> None:
        """Let the file go."""
        db, self._db = self._db, None
        if db is not None:
            db.close()
        lock, self._lock = self._lock, None
        if lock is not None:  # only now: closing any descriptor of the file drops SQLite's own locks
            os.close(lock)

    def _add_to(self, where: str, *values: object) -> bool:
        """Add a row; false if it is there already."""
        return self.db.execute(f"INSERT OR IGNORE INTO {where}", values).rowcount == 1

    def index(self) -> None:
        """Read all versions that the files hold into a temporary table, once in a run. Outside `recording`."""
        if self._indexed:
            return
        self.db.execute("CREATE TEMP TABLE IF NOT EXISTS version (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self.db.executemany("INSERT OR IGNORE INTO version VALUES (?)", ((digest,) for digest in self._scan()))
        self._indexed = True


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
