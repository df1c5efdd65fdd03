"""The seam between the job and whatever keeps the orders: one small interface, one file per implementation.

The rule that cannot be broken (promise P3): `commit` makes rows and the progress they stand for durable
together, or neither. Progress is a handful of named text records that only the job understands; a sink keeps
them beside its rows and hands them back when it is opened again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from fetcher.connector.types import ProductServiceOrder

Progress = dict[str, str]
"""The job's records, name to JSON text. They grow with what is open, not with history."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of orders as a walk received it: at most 1000 orders, less those that are not its shard's."""

    portfolio: str
    enterprise_ids: Mapping[str, str]
    """The enterprise of each service, by service id (the platform names no enterprise in an order)."""
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

    def lines(self) -> list[msgspec.Raw]:
        """Each order of `orders` as the bytes that came, in the same order; line breaks between tokens are spaces."""
        if not self.body:  # 204
            return []
        body = self.body
        if b"\n" in body or b"\r" in body:  # never within a JSON string: there they are escaped
            body = body.replace(b"\n", b" ").replace(b"\r", b" ")
        items = _ITEMS.decode(body).items
        if not self.skipped:
            return items
        return [item for position, item in enumerate(items) if position not in self.skipped]


class _Items(msgspec.Struct):
    items: list[msgspec.Raw] = msgspec.field(name="ProductServiceOrders", default_factory=list[msgspec.Raw])


_ITEMS = msgspec.json.Decoder(_Items)


class EncodedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page in the sink's own form, as `encode` made it: `rows` orders, about `size` bytes in memory."""

    portfolio: str
    rows: int
    size: int
    payload: Any


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit makes durable: pages, and the progress that they stand for."""

    pages: Sequence[EncodedPage]
    progress: Mapping[str, str | None]
    """Records to write; `None` removes the record."""
    forget_before: str | None = None
    """No later walk sends an order updated before this time again (form of `Page.settled`): what an appending sink
    remembers of such orders, to recognise repeats, may go. `None` leaves the memory as it is."""


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink holds, for `fetcher status`; what a sink cannot tell cheaply is `None`."""

    rows: Mapping[str, int] | None
    """Rows by portfolio; an order with several versions in an appending sink counts once for each."""
    newest: Mapping[str, datetime] | None
    """The latest `updated_utc` by portfolio."""
    progress: Progress


class Sink(ABC):
    """Somewhere to keep orders.

    Every method blocks. The job calls them from one thread, one at a time, but for `encode`: that is called in the
    event loop, beside any of them, takes about as long as decoding the page did, and must not wait for anything.

    The life of a sink: `probe` any number of times, then `open`, `encode` and `commit` in turn, `close`.
    """

    batch_rows: ClassVar[int]
    """How many rows make a good commit; the job collects about as many (fewer at the end, or when time is up)."""
    resumes: ClassVar[bool] = True
    """Whether what was committed can be found again by a later run."""

    def __init__(self, url: str) -> None:
        self.url = url
        """What the user wrote, without any password: for messages."""

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

        Raises:
            DataError: an order of the page cannot be kept. Other pages are not concerned.
        """

    @abstractmethod
    def commit(self, batch: Batch) -> Mapping[str, int]:
        """Make the rows and the progress of `batch` durable together; returns by portfolio how many rows were new.

        A keyed sink keeps the version with the newest `updated_utc` of each order, whatever the order of
        arrival. An appending sink leaves out each (`id`, `updated_utc`) that it already holds.

        Raises:
            SinkError: nothing of the batch was kept; the sink can be closed, and opened again by a later run.
        """

    def finish(self) -> None:  # noqa: B027 most sinks have nothing left to do
        """Do what is worth doing once, after the last commit of a run (merge what was staged, say)."""

    @abstractmethod
    def holdings(self) -> Holdings:
        """What the sink holds now, without opening or changing it; nothing at all if it does not exist yet.

        Raises:
            SinkError: it cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the sink go; safe to call at any time after the constructor, and twice."""
