"""What a file sink knows of the versions that it holds, as far as they may come again; in its ledger, and beside it.

An appending sink holds each version once (promise P2, `fetcher.sinks.appending.versions`). Which may come again, and by
what they are to be told, `fetcher.planning.repeats` says. Here is how:

1. By memory: what was updated since `Page.settled` is remembered, by portfolio, until `Batch.forget_before` lets it go.
   That is a few minutes' worth.
2. By reading: where a page says that it may repeat (`Page.repeats`), or asks what is held at all (`Page.states`), the
   files are read, once in a run, and all versions go to a temporary index on disk. It then takes what is written, too;
   and what it tells to be a repeat is remembered if it may come again in a later run, which has no index.
3. Twice in one page, which only a platform with a fault would send: each is compared with those before it.

What comes is compared with what was held last of the same order and time: an order that changes from one content to
another and back within a second has three versions.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from fetcher.sinks.appending.versions import Version
from fetcher.sinks.base import Page

SCHEMA = """
CREATE TABLE IF NOT EXISTS recent (
    key BLOB PRIMARY KEY, content BLOB NOT NULL, updated TEXT NOT NULL, portfolio TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS recent_of ON recent (portfolio, updated);
"""
_NOBODY = ""
"""The owner of what a file by an older version remembered, where the file does not tell."""
_REMEMBER = "INSERT OR REPLACE INTO recent VALUES (?, ?, ?, ?)"
_INTO_INDEX = "INSERT OR REPLACE INTO version VALUES (?, ?)"
_INTO_HELD = "INSERT OR IGNORE INTO held VALUES (?)"

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


class Memory:
    """Of one file sink. Used within the ledger's transactions, but for `prepare` and `index`.

    Args:
        url: the sink's, for messages.
        scan: gives every version in the data files, in the order in which they came.
        db: gives the ledger's connection, whose tables are there.
    """

    def __init__(self, url: str, scan: Callable[[], Iterable[Version]], db: Callable[[], sqlite3.Connection]) -> None:
        self._url = url
        self._scan = scan
        self._db = db
        # All mutable state that is not in the database: `renew` sets the one, `index` the other.
        self._recent_from: dict[str, str] = {}  # by portfolio, the oldest time remembered before this run
        self._indexed = False

    def renew(self) -> None:
        """See what earlier runs remembered."""
        # To the second: with a fraction, the text of one instant does not compare with another text of it.
        query = "SELECT portfolio, substr(min(updated), 1, 19) FROM recent GROUP BY portfolio"
        self._recent_from = dict(self._db().execute(query))

    def prepare(self, pages: Iterable[Versions]) -> None:
        """Read the files if one of these pages cannot be told without."""
        # Whether an order is there already, whatever its version, only the files tell.
        if any(versions.repeats or (versions.states is not None and versions.latest) for versions in pages):
            self.index()

    def index(self) -> None:
        """Read all versions that the files hold into a temporary table, once in a run."""
        if self._indexed:
            return
        log.info("%s: what the files hold is read, to tell repeats from new versions", self._url)
        db = self._db()
        db.execute("CREATE TEMP TABLE version (key BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID")
        db.execute("CREATE TEMP TABLE held (id BLOB PRIMARY KEY) WITHOUT ROWID")
        db.execute("BEGIN")
        for version in self._scan():
            self._put_into_index(version)
        db.execute("COMMIT")
        self._indexed = True

    def unseen(self, versions: Versions, read: Callable[[], Iterable[Version]]) -> list[int] | None:
        """Which orders of a page are new, by position; `None`: all. Remembers them.

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
            if recent and (is_new or self._indexed):
                self._remember(version, versions.portfolio)
            if is_new and self._indexed:
                self._put_into_index(version)
        return None if len(new) == count else new

    def forget(self, before: Mapping[str, str], portfolios: Callable[[], Collection[str]]) -> None:
        """Let go what no walk brings again.

        Args:
            before: see `Batch.forget_before`.
            portfolios: whose orders the sink holds.
        """
        db = self._db()
        db.executemany("DELETE FROM recent WHERE portfolio = ? AND updated < ?", before.items())
        if before and before.keys() >= set(portfolios()):
            db.execute("DELETE FROM recent WHERE portfolio = ? AND updated < ?", (_NOBODY, min(before.values())))

    def start_over(self) -> None:
        """The data is gone: there is nothing to remember. The table is to be made anew."""
        self._db().execute("DROP TABLE IF EXISTS recent")

    def take_over(self, portfolios: Collection[str]) -> None:
        """Know by their content, too, the versions that an older version remembered: the files have it.

        Args:
            portfolios: whose orders the sink holds.
        """
        db = self._db()
        (since,) = db.execute("SELECT min(updated) FROM recent").fetchone()
        db.execute("DROP TABLE recent")
        for statement in filter(str.strip, SCHEMA.split(";")):
            db.execute(statement)
        if since is None:
            return
        owner = next(iter(portfolios)) if len(portfolios) == 1 else _NOBODY
        log.info("%s: it was written by an older version, so what it holds is read once", self._url)
        for version in self._scan():
            if version.updated >= since[:19]:
                self._remember(version, owner)

    def _remember(self, version: Version, portfolio: str) -> None:
        self._db().execute(_REMEMBER, (version.key, version.content, version.updated, portfolio))

    def _put_into_index(self, version: Version) -> None:
        self._db().execute(_INTO_INDEX, (version.key, version.content))
        self._db().execute(_INTO_HELD, (version.id,))

    def _known(self, key: bytes, *, recent: bool) -> bytes | None:
        """The content held last of an order and time, as far as it can come again."""
        tables = ["version"] * self._indexed + ["recent"] * recent
        for table in tables:
            row = self._db().execute(f"SELECT content FROM {table} WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return row[0]
        return None

    def _holds(self, id_: bytes) -> bool:
        return self._db().execute("SELECT 1 FROM held WHERE id = ?", (id_,)).fetchone() is not None
