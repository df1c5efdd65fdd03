"""Which orders of a page are its shard's. Pure.

The platform may read an interval with or without its end, so an order on an edge comes in one window or in two; it is
kept in the window that begins there, and only there (promises P1 and P2). What the platform should not have sent, it
is told apart from, and counted; but for what is twice in one page: keyed sinks need not know, appending ones find out.
An id is an id whatever its case. Orders that cannot be read are sifted by what of them can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta

import msgspec

from fetcher.connector.operations import Listing
from fetcher.connector.rejecting import reject
from fetcher.connector.types import ProductServiceOrder, RejectedOrder, parse_utc
from fetcher.planning.shards import Shard
from fetcher.planning.windows import Windows

OUTSIDE = "outside its window"
UNASKED = "of a service that was not asked for"

_EDGE = timedelta(seconds=1)
"""A platform that compares whole seconds, and includes the end, sends what is updated within the second after it."""
NOTHING = datetime.max.replace(tzinfo=UTC)
"""Later than any order's time."""
_DIGITS = b"0123456789."
_SHAPE = b"--T::Z"
"""What is left of a time as the platform writes it, without its digits."""


class Sifted(msgspec.Struct, frozen=True):
    """A page's orders, sifted."""

    kept: list[ProductServiceOrder]
    skipped: frozenset[int]
    """Positions among the readable orders of those that were not kept."""
    oddities: Counter[str]
    """How many the platform should not have sent, by kind; an order on the window's edge is none."""
    latest: str
    """The latest `UpdatedUtc` of what was kept; empty if nothing was."""
    oldest: datetime | None = None
    """The oldest `UpdatedUtc` of what may be the shard's, `NOTHING` if there is nothing; `None`: it cannot be told."""
    by_update: bool = False
    """Whether they came newest `UpdatedUtc` first."""
    rejected: Sequence[RejectedOrder] = ()
    """Orders that cannot be read and may be the shard's."""
    unreadable: Sequence[int] = ()
    """Positions, part of `skipped`, of orders that were readable but for their `UpdatedUtc`."""


def time_key(instant: datetime) -> str:
    """`instant`, a whole second, as text that compares with the platform's times: `YYYY-MM-DDTHH:MM:SS`.

    Without the zone, because `00Z` sorts after `00.5Z`: what begins with the key is at or after it, what is smaller is
    before it.
    """
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Sieve:
    """Sifts the pages of one shard. Its window's edges are whole seconds."""

    def __init__(self, shard: Shard) -> None:
        self._services = frozenset(shard.service_ids)
        self._lower = frozenset(service.lower() for service in shard.service_ids)
        self._start = time_key(shard.window.start)
        self._end = "3" if shard.open_ended else time_key(shard.window.end)  # before the year 3000
        self._shard = shard

    def sift(self, listing: Listing[ProductServiceOrder]) -> Sifted:
        """The orders of a page that are the shard's."""
        orders = listing.items
        if not listing.count:
            return Sifted(orders, frozenset(), Counter(), "", NOTHING)
        # Every order passes here: columns first, each order only where one of them is not as it should be.
        times = [order.updated_utc for order in orders]
        if (
            not listing.rejected
            and self._start <= (oldest := min(times))
            and (latest := max(times)) < self._end
            and self._services.issuperset([order.service_id for order in orders])
            and "".join(times).encode().translate(None, _DIGITS) == _SHAPE * len(times)
            and _instant(latest) is not None
        ):
            return Sifted(orders, frozenset(), Counter(), latest, _instant(oldest), _descending(times))
        return self._sift_each(listing)

    def _sift_each(self, listing: Listing[ProductServiceOrder]) -> Sifted:
        kept: list[ProductServiceOrder] = []
        skipped: set[int] = set()
        unreadable: list[int] = []
        oddities: Counter[str] = Counter()
        oldest: datetime | None = NOTHING
        for position, order in enumerate(listing.items):
            updated = _instant(order.updated_utc)
            reason = self._reason(order.service_id, updated)
            if reason is None and updated is not None:
                kept.append(order)
                oldest = _older(oldest, updated)
                continue
            skipped.add(position)
            if reason is None:
                unreadable.append(position)
                oldest = None
            elif reason:
                oddities[reason] += 1
        rejected: list[RejectedOrder] = []
        for order in listing.rejected.values():
            updated = None if order.updated_utc is None else _instant(order.updated_utc)
            reason = self._reason(order.service_id, updated)
            if reason is None:
                rejected.append(order)
                oldest = _older(oldest, updated)
            elif reason:
                oddities[reason] += 1
        times = [order.updated_utc for order in kept]
        by_update = oldest is not None and not rejected and _descending(times)
        latest = max(times, default="")
        return Sifted(kept, frozenset(skipped), oddities, latest, oldest, by_update, rejected, unreadable)

    def _reason(self, service: str | None, updated: datetime | None) -> str | None:
        """Why an order is not kept: `None` it is, empty it is on the edge, else the oddity. What is unknown fits."""
        window = self._shard.window
        if updated is not None and (updated < window.start or (updated >= window.end and not self._shard.open_ended)):
            return "" if window.end <= updated < window.end + _EDGE else OUTSIDE
        if service is not None and service.lower() not in self._lower:
            return UNASKED
        return None


def sift_ids(listing: Listing[ProductServiceOrder], keys: Set[str], read: Mapping[str, Windows]) -> Sifted:
    """The orders of a page that were asked for by their ids, and that no walk is still to bring.

    Args:
        listing: the page.
        keys: the ids, in small letters.
        read: by service id in small letters, the time that was read, or of which repeats can be told.
    """
    asked = [order.id.lower() in keys and _within(order, read) for order in listing.items]
    unreadable = [
        place for place, order in enumerate(listing.items) if asked[place] and _instant(order.updated_utc) is None
    ]
    skipped = frozenset(unreadable) | {place for place in range(len(asked)) if not asked[place]}
    kept = [order for place, order in enumerate(listing.items) if place not in skipped]
    rejected = [order for order in listing.rejected.values() if (order.id or "").lower() in keys]
    latest = max([order.updated_utc for order in kept], default="")
    return Sifted(kept, skipped, Counter(), latest, None, False, rejected, unreadable)


def _within(order: ProductServiceOrder, read: Mapping[str, Windows]) -> bool:
    updated = _instant(order.updated_utc)
    return updated is None or any(
        window.start <= updated < window.end for window in read.get(order.service_id.lower(), ())
    )


def unreadable_time(raw: bytes) -> RejectedOrder:
    """An order whose `UpdatedUtc` is no time."""
    return reject(raw, "UpdatedUtc should be an ISO 8601 time, found other text")


def _older(oldest: datetime | None, updated: datetime | None) -> datetime | None:
    """The older of two times; `None`, which is any time, is older than all."""
    return None if oldest is None or updated is None else min(oldest, updated)


def _descending(times: list[str]) -> bool:
    """Whether times, as the platform writes them, are each at or before the one in front of it."""
    if "." in "".join(times):  # `01Z` is before `01.5Z`, though `.` comes before `Z`
        times = [time.removesuffix("Z") for time in times]
    return sorted(times, reverse=True) == times  # of what is in order the quickest way to see it


def _instant(text: str) -> datetime | None:
    try:
        return parse_utc(text)
    except (ValueError, OverflowError):
        return None
