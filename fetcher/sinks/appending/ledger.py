"""What the file sinks know of themselves: progress, totals, parts, and versions that may come again; in SQLite.

The rule that cannot be broken: what is recorded here is durable in the files, and what is not recorded does not count
(promise P3). A file is written and synced before it is recorded, in one transaction with the progress.

An appending sink holds each version once (promise P2, `fetcher.sinks.appending.versions`). Three kinds may come again:

1. Updated since the run's end, less the overlap: the closing of this run or the next run reads them again. They are
   remembered, by portfolio, until no walk asks for them any more: a few minutes' worth.
2. Of a walk that starts again (`Page.repeats`): rare, so the files are read once, and all versions go to a
   temporary index on disk.
3. Twice in one page, which only a platform with a fault would send.

What comes is compared with what was held last of the same order and time: an order that changes from one content to
another and back within a second has three versions. The index, once made, also takes what is written after it.
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

import msgspec

from fetcher.connector.types import parse_utc
from fetcher.errors import SinkBusyError, SinkError
from fetcher.sinks.appending.versions import Version
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, kept_aside
from fetcher.sinks.rejected import RejectedFile, line_of

_VERSION = "2"
_OLDER = "1"
"""Told versions by order and time alone, and did not know whose they are."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (
    portfolio TEXT PRIMARY KEY, rows INTEGER NOT NULL, newest TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS part (name TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recent (
    key BLOB PRIMARY KEY, content BLOB NOT NULL, updated TEXT NOT NULL, portfolio TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS recent_of ON recent (portfolio, updated);
CREATE TABLE IF NOT EXISTS rejected (
    portfolio TEXT, key TEXT, line TEXT NOT NULL, PRIMARY KEY (portfolio, key)
) WITHOUT ROWID;
"""
_NOBODY = ""
"""The owner of what a file by an older version remembered, where the file does not tell."""

log = logging.getLogger("fetcher")


class Versions(msgspec.Struct, frozen=True):
    """What is known of the versions of one page's orders without looking at each."""

    portfolio: str
    latest: str
    """The latest `UpdatedUtc`; empty if there is none."""
    settled: str
    repeats: bool
    twins: bool
    """Whether an id is there more than once."""
    states: tuple[str, ...] | None
    """See `Page.states`."""


def versions_of(page: Page, latest: str | None = None, *, twins: bool | None = None) -> Versions:
    """What is known of a page's versions; `latest` and `twins` where a sink keeps other orders than `page.orders`."""
    if twins is None:
        twins = len({order.id for order in page.orders}) < len(page.orders)
    latest = page.latest if latest is None else latest
    return Versions(page.portfolio, latest, page.settled, page.repeats, twins, page.states)


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
        self._scan = scan
        self._rejected = rejected
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._indexed = False
        self._added: list[str] = []  # what `show_aside` is to add
        self._aside_went = False  # whether something is to go from there
        self._recent_from: dict[str, str] = {}  # by portfolio, the oldest time remembered before this run

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
            # To the second: with a fraction, the text of one instant does not compare with another text of it.
            query = "SELECT portfolio, substr(min(updated), 1, 19) FROM recent GROUP BY portfolio"
            self._recent_from = dict(self.db.execute(query))
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
        self.db.execute("DROP TABLE IF EXISTS recent")
        self.db.executescript(_SCHEMA)
        with self.recording(()):
            for table in ("progress", "total", "part", "recent", "rejected"):
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
        # Whether an order is there already, whatever its version, only the files tell.
        if any(versions.repeats or (versions.states is not None and versions.latest) for versions in pages):
            self.index()
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    def unseen(self, versions: Versions, read: Callable[[], Iterable[Version]]) -> list[int] | None:
        """Which orders of a page are new, by position; `None`: all. Remembers them. Within `recording`.

        Args:
            versions: what is known of them.
            read: gives each order's version; seldom needed.
        """
        # Earlier runs remembered from another time on than this one does.
        earlier = (self._recent_from.get(owner, versions.settled) for owner in (versions.portfolio, _NOBODY))
        recent_from = min(versions.settled, *earlier)
        states = versions.states
        if versions.latest < recent_from and not self._indexed and not versions.twins and states is None:
            return None
        new: list[int] = []
        count = 0
        of_page: dict[bytes, bytes] = {}
        for position, version in enumerate(read()):
            count += 1
            if states is not None and version.state not in states and not self._holds(version.id):
                continue
            recent = version.updated >= recent_from
            known = of_page.get(version.key) or self._known(version.key, recent=recent)
            of_page[version.key] = version.content
            is_new = known != version.content
            if is_new:
                new.append(position)
            if recent and (is_new or self._indexed):  # what the files alone knew is remembered from now on
                values = (version.key, version.content, version.updated, versions.portfolio)
                self.db.execute("INSERT OR REPLACE INTO recent VALUES (?, ?, ?, ?)", values)
            if is_new and self._indexed:
                self.db.execute(_INTO_INDEX, (version.key, version.content))
                self.db.execute(_INTO_HELD, (version.id,))
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
        self._keep_aside(batch.pages)
        self._forget(batch.forget_before)

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

    def index(self) -> None:
        """Read all versions that the files hold into a temporary table, once in a run. Outside `recording`."""
        if self._indexed:
            return
        log.info("%s: what the files hold is read, to tell repeats from new versions", self._url)
        self.db.execute("CREATE TEMP TABLE version (key BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID")
        self.db.execute("CREATE TEMP TABLE held (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self.db.execute("BEGIN")
        for version in self._scan():
            self.db.execute(_INTO_INDEX, (version.key, version.content))
            self.db.execute(_INTO_HELD, (version.id,))
        self.db.execute("COMMIT")
        self._indexed = True

    def _connect(self) -> None:
        self._db = sqlite3.connect("" if self._path is None else self._path, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA temp_store = FILE")

    def _known(self, key: bytes, *, recent: bool) -> bytes | None:
        """The content held last of an order and time, as far as it can come again."""
        tables = ["version"] * self._indexed + ["recent"] * recent
        for table in tables:
            row = self.db.execute(f"SELECT content FROM {table} WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return row[0]
        return None

    def _holds(self, id_: bytes) -> bool:
        return self.db.execute("SELECT 1 FROM held WHERE id = ?", (id_,)).fetchone() is not None

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

    def _forget(self, before: Mapping[str, str]) -> None:
        self.db.executemany("DELETE FROM recent WHERE portfolio = ? AND updated < ?", before.items())
        if before and before.keys() >= {name for (name,) in self.db.execute("SELECT portfolio FROM total")}:
            self.db.execute("DELETE FROM recent WHERE portfolio = ? AND updated < ?", (_NOBODY, min(before.values())))

    def _take_over(self) -> None:
        """Know by their content, too, the versions that an older version remembered: the files have it."""
        (since,) = self.db.execute("SELECT min(updated) FROM recent").fetchone()
        owners = [name for (name,) in self.db.execute("SELECT portfolio FROM total")]
        owner = owners[0] if len(owners) == 1 else _NOBODY
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("DROP TABLE recent")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self.db.execute(statement)
        if since is not None:
            log.info("%s: it was written by an older version, so what it holds is read once", self._url)
            for version in self._scan():
                if version.updated >= since[:19]:
                    values = (version.key, version.content, version.updated, owner)
                    self.db.execute("INSERT OR REPLACE INTO recent VALUES (?, ?, ?, ?)", values)
        self.set_fact("version", _VERSION)
        self.db.execute("COMMIT")


_INTO_INDEX = "INSERT OR REPLACE INTO version VALUES (?, ?)"
_INTO_HELD = "INSERT OR IGNORE INTO held VALUES (?)"


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
