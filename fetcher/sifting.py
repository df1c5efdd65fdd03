"""Which orders of a page are its shard's. Pure.

The platform may read an interval with or without its end, so an order on an edge comes in one window or in two; it is
kept in the window that begins there, and only there (promises P1 and P2). What the platform should not have sent, it
is told apart from, and counted; but for what is twice in one page: keyed sinks need not know, appending ones find out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from fetcher.connector.types import ProductServiceOrder, parse_utc
from fetcher.errors import DataError
from fetcher.plan import Shard

OUTSIDE = "outside its window"
UNASKED = "of a service that was not asked for"


class Sifted(msgspec.Struct, frozen=True):
    """A page's orders, sifted."""

    kept: list[ProductServiceOrder]
    skipped: frozenset[int]
    """Positions in the page of those that were not kept."""
    oddities: Counter[str]
    """How many the platform should not have sent, by kind; an order on the window's edge is none."""
    latest: str
    """The latest `UpdatedUtc` of what was kept; empty if nothing was."""


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
        self._start = time_key(shard.window.start)
        self._end = "~" if shard.open_ended else time_key(shard.window.end)  # "~" sorts after every digit
        self._shard = shard

    def sift(self, orders: list[ProductServiceOrder]) -> Sifted:
        """The orders of a page that are the shard's.

        Raises:
            DataError: an order's `UpdatedUtc` is no time.
        """
        if not orders:
            return Sifted(orders, frozenset(), Counter(), "")
        # Every order passes here: columns first, each order only where one of them is not as it should be.
        times = [order.updated_utc for order in orders]
        latest = max(times)
        if (
            self._start <= min(times)
            and latest < self._end
            and self._services.issuperset([order.service_id for order in orders])
        ):
            return Sifted(orders, frozenset(), Counter(), latest)
        return self._sift_each(orders)

    def _sift_each(self, orders: Sequence[ProductServiceOrder]) -> Sifted:
        kept: list[ProductServiceOrder] = []
        skipped: set[int] = set()
        oddities: Counter[str] = Counter()
        for position, order in enumerate(orders):
            reason = self._reason(order)
            if reason is None:
                kept.append(order)
                continue
            skipped.add(position)
            if reason:
                oddities[reason] += 1
        latest = max([order.updated_utc for order in kept], default="")
        return Sifted(kept, frozenset(skipped), oddities, latest)

    def _reason(self, order: ProductServiceOrder) -> str | None:
        """Why an order is not kept: `None` it is, empty it is on the edge, else the oddity."""
        try:
            updated = parse_utc(order.updated_utc)
        except ValueError:
            raise DataError(order.id, "UpdatedUtc", "a time in ISO 8601", "other text") from None
        window = self._shard.window
        if updated < window.start or (updated >= window.end and not self._shard.open_ended):
            return "" if updated == window.end else OUTSIDE
        if order.service_id not in self._services:
            return UNASKED
        return None
