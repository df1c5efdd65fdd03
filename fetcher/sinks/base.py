"""The seam between the job and whatever keeps the orders: one small interface, one file per implementation.

The rule that cannot be broken (promise P3): `commit` makes rows and the progress they stand for durable
together, or neither. Progress is a handful of named text records that only the job understands; a sink keeps
them beside its rows and hands them back when it is opened again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec

from fetcher.connector.operations import raw_orders
from fetcher.connector.types import ProductServiceOrder, RejectedOrder

Progress = dict[str, str]
"""The job's records, name to JSON text. They grow with what is open, not with history."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of orders as a walk received it: at most 1000 orders, less those that are not its shard's."""

    portfolio: str
    enterprise_ids: Mapping[str, str]
    """The enterprise of each service, by service id in small letters (the platform names no enterprise in an order)."""
    orders: list[ProductServiceOrder]
    """As sent; a platform with a fault may send one twice."""
    body: bytes
    """The whole response as it came, decompressed."""
    skipped: frozenset[int] = frozenset()
    """Positions within the response of orders that are not in `orders`."""
    latest: str
    """The latest `UpdatedUtc` in `orders`, as text; empty if there are none."""
    fetched_utc: datetime
    """When the platform answered, by the platform's clock."""
    settled: str
    """Orders updated at or after this time may be sent again by a later walk: `YYYY-MM-DDTHH:MM:SS`, no zone,
    so that plain text comparison with `updated_utc` is right whatever its fraction."""
    repeats: bool = False
    """Whether any order of this page may have been committed before (its shard was begun before, and starts again)."""
    rejected: Sequence[RejectedOrder] = ()
    """Orders of the page that cannot be read; they are not in `orders`."""
    states: tuple[str, ...] | None = None
    """Of orders in other states only those are kept that the sink holds already; `None`: every order is."""
    full_since: datetime | None = None
    """When a run that reads everything again began (`--full`): what a keyed sink holds from before it is replaced by
    whatever comes, even by an older version. `None`: by newer versions alone."""

    def lines(self) -> Sequence[bytes | msgspec.Raw]:
        """Each order of `orders` as the bytes that came, in the same order; line breaks between tokens are spaces."""
        body = self.body
        if b"\n" in body or b"\r" in body:  # never within a JSON string: there they are escaped
            body = body.replace(b"\n", b" ").replace(b"\r", b" ")
        items = raw_orders(body)
        if not self.skipped:
            return items
        return [item for position, item in enumerate(items) if position not in self.skipped]


class RejectedRow(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is kept aside: the platform's bytes, where they came from, and why they are not among the rows."""

    id: str
    """As it was sent; where not even that can be read, `unreadable-` and a digest of `raw`."""
    portfolio: str
    enterprise_id: str | None
    stream: str = "product_service_orders"
    reason: str
    """The property, what was expected, and what was found; never a value."""
    raw: str
    """The order as it came. What is no UTF-8, and NUL, is written as a backslash, `x` and two hexadecimal digits."""
    rejected_utc: datetime
    """When the platform answered with it, by the platform's clock."""
    service_id: str | None = None
    updated_utc: str | None = None

    has_id: bool = True
    """Whether `id` is the order's own."""

    @property
    def key(self) -> str:
        """The id in small letters: an id is an id whatever its case."""
        return self.id.lower()


def rejected_row(page: Page, order: RejectedOrder) -> RejectedRow:
    """An order of `page` as it is kept aside."""
    service = order.service_id
    return RejectedRow(
        id=order.id or f"unreadable-{blake2b(order.raw, digest_size=8).hexdigest()}",
        portfolio=page.portfolio,
        enterprise_id=None if service is None else page.enterprise_ids.get(service.lower()),
        reason=order.reason,
        raw=order.raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00"),
        rejected_utc=page.fetched_utc,
        service_id=service,
        updated_utc=order.updated_utc,
        has_id=order.id is not None,
    )


_REJECTED_BYTES = 1000
"""What an order that is kept aside takes in memory beside what came: its row, its record, and their texts."""


class EncodedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page in the sink's own form, as `encode` made it: `rows` orders, about `size` bytes in memory."""

    portfolio: str
    rows: int
    size: int
    payload: Any
    rejected: Sequence[RejectedRow] = ()
    """What is to be kept aside: orders that cannot be read, or that the sink cannot hold."""
    mended: Sequence[str] = ()
    """Keys (see `RejectedRow.key`) of what was kept aside, and is so no longer: a readable version came, say."""
    states: tuple[str, ...] | None = None
    """See `Page.states`."""
    full_since: datetime | None = None
    """See `Page.full_since`."""

    @classmethod
    def of(cls, page: Page, *, rows: int, size: int, payload: Any, rejected: Sequence[RejectedRow] = ()) -> EncodedPage:
        """What `encode` made of `page`; `size`: of the payload alone."""
        return cls(
            portfolio=page.portfolio,
            rows=rows,
            size=size + sum(len(row.raw) + _REJECTED_BYTES for row in rejected),
            payload=payload,
            rejected=rejected,
            states=page.states,
            full_since=page.full_since,
        )


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit makes durable: pages, and the progress that they stand for."""

    pages: Sequence[EncodedPage]
    progress: Mapping[str, str | None]
    """Records to write; `None` removes the record."""
    forget_before: Mapping[str, str] = {}
    """By portfolio: no later walk of it sends an order updated before this time again (form of `Page.settled`). What
    an appending sink remembers of such orders, to recognise repeats, may go. Of those that are not named, all stays."""


def kept_aside(pages: Iterable[EncodedPage]) -> tuple[set[tuple[str, str]], list[RejectedRow]]:
    """What a batch changes in what is kept aside: portfolio and key of what goes from there, and what comes.

    Whatever comes takes the place of what is there of its key, so that goes too. Page by page: an order may be rejected
    in one, and come readable in the next.
    """
    gone: set[tuple[str, str]] = set()
    rows: dict[tuple[str, str], RejectedRow] = {}
    for page in pages:
        for key in page.mended:
            gone.add((page.portfolio, key))
            rows.pop((page.portfolio, key), None)
        for row in page.rejected:
            gone.add((row.portfolio, row.key))
            rows[row.portfolio, row.key] = row
    return gone, list(rows.values())


def note_changes(records: Progress, changes: Mapping[str, str | None]) -> None:
    """Have `records` say what they say once `changes` are committed: a record that is `None` is there no more."""
    for name, record in changes.items():
        if record is None:
            records.pop(name, None)
        else:
            records[name] = record


def portfolios_of(batch: Batch) -> set[str]:
    """The portfolios of which a batch has anything."""
    return {page.portfolio for page in batch.pages} | {name.partition("/")[0] for name in batch.progress}


def without(batch: Batch, portfolios: Collection[str]) -> Batch:
    """A batch less what is of these portfolios."""
    return Batch(
        pages=[page for page in batch.pages if page.portfolio not in portfolios],
        progress={n: record for n, record in batch.progress.items() if n.partition("/")[0] not in portfolios},
        forget_before={name: time for name, time in batch.forget_before.items() if name not in portfolios},
    )


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink holds, for `fetcher status`; what a sink cannot tell cheaply is `None`."""

    rows: Mapping[str, int] | None
    """Rows by portfolio; an order with several versions in an appending sink counts once for each."""
    newest: Mapping[str, datetime] | None
    """The latest `updated_utc` by portfolio."""
    progress: Progress


class RowCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows a sink holds of a portfolio, or of a part of it."""

    portfolio: str
    rows: int
    enterprise_id: str | None = None
    """In small letters; `None`: of all its enterprises."""
    month: datetime | None = None
    """The beginning of the month (UTC) in which they were updated; `None`: whenever that was."""


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How much a sink holds, and where, for `fetcher plan`."""

    rows: Sequence[RowCount] | None
    """No row is in two of them; `None`: the sink cannot tell cheaply."""
    days: Mapping[str, Mapping[datetime, int]] = {}
    """The same rows once more: by portfolio, and by the beginning of the day (UTC) in which they were updated. Empty:
    the sink cannot tell cheaply."""
    progress: Progress


class Predecessor(msgspec.Struct, frozen=True):
    """Whoever had a portfolio before it was taken, and what that says of the requests of its token."""

    place: str | None
    """Where what it sent is remembered (`fetcher.connector.slots.place_of`); `None`: nowhere."""
    held: Sequence[float] | None
    """Slots of its budget that it had not free when it handed over: for how many seconds from now each is held. `None`:
    it has not handed over. It was killed, or it is cut off, and may yet believe that the portfolio is its own."""


class Taken(msgspec.Struct, frozen=True):
    """What whoever takes portfolios is told."""

    progress: Progress
    """The records of these portfolios; nobody else changes them from now on."""
    predecessors: Mapping[str, Predecessor]
    """By portfolio; those that nobody had before are not in it."""


class Sink(ABC):
    """Somewhere to keep orders.

    Every method blocks. The job calls them from one thread, one at a time, but for `encode` and `abandon`: those are
    called in the event loop, beside any of them. `encode` takes about as long as decoding the page did, and must not
    wait for anything.

    The life of a sink: `probe` any number of times, then `open`, `encode` and `commit` in turn, `close`.
    """

    batch_rows: ClassVar[int]
    """How many rows make a good commit; the job collects about as many (fewer at the end, or when time is up)."""
    resumes: ClassVar[bool] = True
    """Whether what was committed can be found again by a later run."""
    shared: ClassVar[bool] = False
    """Whether many may write at once, on whatever machines, each the portfolios that it has taken (`take`). Then every
    process that loads opens the sink and commits for itself; else one process of a run commits for all."""

    def __init__(self, url: str) -> None:
        self.url = url
        """What the user wrote, without any password: for messages."""
        self.kept_aside_in = "the table fetcher_rejected"
        """Where what is kept aside can be seen: for messages."""

    @abstractmethod
    def probe(self) -> None:
        """Find out whether the sink could be opened now, and change nothing.

        Raises:
            SinkError: it could not: not writable, not reachable, or a table that is there differs.
            SinkBusyError: another process holds it.
        """

    @abstractmethod
    def open(self) -> Progress:
        """Take the sink for this process, finish or undo what a killed process left, and give back the progress.

        Raises:
            SinkError, SinkBusyError: as for `probe`.
        """

    @abstractmethod
    def encode(self, page: Page) -> EncodedPage:
        """Convert a page to the sink's own form; touches nothing that lasts.

        Orders of it that the sink cannot hold, and those that cannot be read (unless it can hold them all the same),
        are in the encoded page's `rejected`.
        """

    @abstractmethod
    def commit(self, batch: Batch) -> Mapping[str, int]:
        """Make the rows and the progress of `batch` durable together; returns by portfolio how many rows were new.

        A version of an order is its `UpdatedUtc` and its content. A keyed sink keeps the version with the newest
        `updated_utc` of each order; of equal ones, the one that came later. An appending sink leaves out what is the
        same, time and content, as what it holds of that order and time already. What is kept aside becomes durable
        with the rest: `mended` orders go from there, `rejected` ones take the place of what is there of their ids.

        Raises:
            TakenOverError: some of the batch's portfolios are somebody else's now; nothing of the batch was kept.
            SinkError: nothing of the batch was kept; the sink can be closed, and opened again by a later run.
        """

    def take(self, portfolios: Collection[str], place: str | None) -> Taken:
        """Become the owner of these portfolios, whoever has them now; for sinks that are `shared`.

        Each has an epoch, which is raised. From then on `commit` refuses whatever their owner before sends of them,
        inside its own transaction, by a `TakenOverError`; what that had committed is in the progress that is returned.

        Args:
            portfolios: their names.
            place: where the new owner remembers what it sends; see `Predecessor.place`.

        Raises:
            SinkError: it cannot be done now.
        """
        # Nobody calls it of a sink that is not shared, and of one that is it has to be there.
        raise NotImplementedError(f"{type(self).__name__} is not shared")

    def lost(self) -> Collection[str]:
        """Which of the portfolios that were taken are somebody else's by now.

        Raises:
            SinkError: it cannot be told now.
        """
        return ()

    def hand_over(self, held: Mapping[str, Sequence[float]]) -> None:  # noqa: B027 for sinks that are `shared`
        """The last word of an owner: nothing more is sent. See `Predecessor.held`, by portfolio.

        Raises:
            SinkError: it cannot be said now; then whoever comes next takes all slots to be held.
        """

    def finish(self) -> None:  # noqa: B027 most sinks have nothing left to do
        """Do what is worth doing once, after the last commit of a run (merge what was staged, say)."""

    def abandon(self) -> None:  # noqa: B027 most sinks wait for nothing
        """The run is to end: wait no longer for what is away, and be done with what is under way within 4 seconds.

        May be called from any thread, at any time and more than once; returns at once. What could not be done in time
        raises `SinkAbandonedError`, then and afterwards, but for `close`.
        """

    @abstractmethod
    def holdings(self) -> Holdings:
        """What the sink holds now, without opening or changing it; nothing at all if it does not exist yet.

        Raises:
            SinkError: it cannot be read.
        """

    def extent(self) -> Extent:
        """What the sink holds now, as fine as it can tell in about the time of `holdings`; likewise changes nothing.

        Raises:
            SinkError: it cannot be read.
        """
        held = self.holdings()
        counts = None
        if held.rows is not None:
            counts = [RowCount(portfolio=name, rows=rows) for name, rows in held.rows.items()]
        return Extent(rows=counts, progress=held.progress)

    @abstractmethod
    def close(self) -> None:
        """Let the sink go; safe to call at any time after the constructor, and twice."""
