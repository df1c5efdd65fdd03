"""One shard's cursor walk: page after page, newest first, asking for less where the platform cannot give as much.

How a walk goes on after each answer:

1. a page: deliver it; short, it was the last
2. too heavy (408, 413, no answer in time): smaller pages, then half of the window, then half of the services
3. the cursor is gone, or leads nowhere: from the start, once; then half of the window, so that fewer pages hang on it
4. a service is refused: the caller finds out which
5. anything else is the caller's to report

After a full page, while others have nothing to do, it gives parts of what remains away:

- time below the oldest that came (`give_away`): of it nothing was read, whatever order the platform has. So these parts
  need no cursor, and nothing of them comes twice
- where that is not worth it, as pages do not come in the order of updates, or thousands of orders have one time:
  parts of the window, or of the services, that go on at the cursor, if the platform lets them (`Cursors`)

No page that was received is asked for again, except in case 3: parts of a split shard go on at its cursor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

import msgspec

from fetcher.connector.client import Answer, Connector
from fetcher.connector.operations import (
    MAX_MONTHS,
    Interval,
    Limitation,
    Listing,
    OrdersOperation,
    OrdersRequest,
    raw_orders,
)
from fetcher.connector.room import Lease, Room
from fetcher.connector.types import ProductServiceOrder, parse_utc
from fetcher.errors import BadResponseError, InvalidRequestError, TooHeavyError
from fetcher.loading.cursors import Cursors
from fetcher.loading.page_size import Learned, PageSize
from fetcher.planning.checkpoint import Position
from fetcher.planning.shards import Shard, cut_at, cut_services, cut_window, give_away, split_services, split_window
from fetcher.planning.sifting import NOTHING, Sieve, Sifted, time_key, unreadable_time
from fetcher.planning.windows import add_months
from fetcher.sinks.base import Page


class Step(msgspec.Struct, frozen=True):
    """A page of a shard, and where its walk goes on; `None`: it was the last."""

    shard: Shard
    page: Page
    position: Position | None
    sifted: Sifted
    lease: Lease
    """The page's, released when the page is accepted."""


class Finished(msgspec.Struct, frozen=True):
    """The walk is at its end. `at_once`: one request gave all there was, so nothing moved while it was read."""

    at_once: bool


class Split(msgspec.Struct, frozen=True):
    """The rest of the shard is to be walked as these shards, each from its position."""

    parts: tuple[tuple[Shard, Position], ...]
    helped: bool = False
    """Whether it is so that others may help, and not because it was too much."""


Outcome = Finished | Split
Deliver = Callable[[Step], Awaitable[None]]
Share = Callable[[float, float], int]
"""How many parts of its rest a walk may give away now: by how many pages that is, and how many seconds one takes."""


class Scope(msgspec.Struct, frozen=True):
    """What all walks of one portfolio share."""

    portfolio: str
    connector: Connector
    operation: OrdersOperation
    enterprise_ids: Mapping[str, str]
    states: tuple[str, ...] | None
    page_size: int
    learned: Learned
    """What its walks know of sizes."""
    cursors: Cursors
    """What they know of cursors."""
    settled: str
    """See `Page.settled`."""
    room: Room
    """For pages in memory."""
    splits: bool = True
    """Whether walks give parts away while walkers have nothing to do."""
    full_since: datetime | None = None
    """See `Page.full_since`."""

    def page(self, answer: Answer[ProductServiceOrder], sifted: Sifted, *, repeats: bool, filtered: bool) -> Page:
        """What a sink is to have of an answer; `filtered`: the platform sent no orders in other states."""
        rejected = sifted.rejected
        if sifted.unreadable:
            readable = [place for place in range(answer.listing.count) if place not in answer.listing.rejected]
            raws = raw_orders(answer.body)
            rejected = [*rejected, *(unreadable_time(bytes(raws[readable[place]])) for place in sifted.unreadable)]
        return Page(
            portfolio=self.portfolio,
            enterprise_ids=self.enterprise_ids,
            orders=sifted.kept,
            body=answer.body,
            skipped=answer.listing.places(sifted.skipped),
            latest=sifted.latest,
            fetched_utc=answer.fetched_utc,
            settled=self.settled,
            repeats=repeats,
            rejected=rejected,
            states=None if filtered else self.states,
            full_since=self.full_since,
        )


class Lineage:
    """What a planned shard and all that it was split into share.

    It counts how often in a row they were too heavy: without that, a shard that is always too heavy would be halved
    into millions of seconds.
    """

    MOST_FRUITLESS = 64
    """From three months to one second are 23 halvings, from 1000 services to one are 10, and pages shrink first;
    twice that, because halves may be walked side by side."""

    HALVED_IN_VAIN = 8
    """Three of them are smaller pages. If halving the window does not help after that, pages become smaller still."""

    def __init__(self) -> None:
        self.fruitless = 0

    @property
    def halved_in_vain(self) -> bool:
        """Whether it is the pages that are too heavy, rather than the windows."""
        return self.fruitless > self.HALVED_IN_VAIN

    @property
    def hopeless(self) -> bool:
        """Whether asking for less has been tried often enough."""
        return self.fruitless >= self.MOST_FRUITLESS


class Walk:
    """The walk of one shard, from a position on.

    Args:
        scope: what it shares with other walks.
        shard: what it reads.
        position: where it begins; a page size above the scope's is cut to it.
        lineage: of the planned shard that this one is, or is a part of.
    """

    AHEAD = timedelta(days=1)
    """How far beyond the platform's now an open-ended shard asks, so that what changes while it reads is there."""

    WORTH = 2.0
    """Pages that a part should have, by what was seen of the walk: it costs up to a request more. 1.5 costs a few
    requests of a hundred more, and 2.5 a tenth of the time (`benchmarks/plan.py`, the worlds of 25 days)."""

    def __init__(self, scope: Scope, shard: Shard, position: Position, lineage: Lineage) -> None:
        self._scope = scope
        self._lineage = lineage
        self._shard = shard
        self._cursor = position.cursor
        # The oldest and the newest `UpdatedUtc` that came, how many orders of this object's, and the last of the last
        # page; the oldest is also of those before it, or unknown. Until an answer came it is not known whether the
        # cursor leads on, if it is none of the shard's orders.
        self._at_start = position.cursor is None
        self._oldest = position.oldest
        self._newest: datetime | None = None
        self._came = 0
        self._by_update = True
        self._elsewhere = position.elsewhere
        self._last: tuple[str, str, str] | None = None
        self._size = PageSize(scope.page_size, position.count, scope.learned)
        self._sieve = Sieve(shard)
        self._until = shard.window.end
        if shard.open_ended:
            furthest = add_months(shard.window.start, MAX_MONTHS)
            self._until = min(furthest, max(self._until, scope.connector.platform.clock.latest() + self.AHEAD))
        self._interval = Interval.between(shard.window.start, self._until)
        self._seen: set[str] = set() if position.cursor is None else {position.cursor}
        self._pages = 0
        self._restarted = False

    @property
    def shard(self) -> Shard:
        """What it reads; says so if it started again, so that its orders may come twice."""
        return self._shard

    @property
    def position(self) -> Position:
        """Where it stands: what it delivered is newer."""
        return Position(self._cursor, self._size.count, self._oldest, self._elsewhere)

    async def run(self, deliver: Deliver, share: Share = lambda _pages, _seconds: 0) -> Outcome:
        """Walk to the end, or to where the shard is split: because it must be, or because others may help.

        Args:
            deliver: takes each page.
            share: says how many parts may be given away; asked after each full page.

        Raises:
            InvalidRequestError: a service is refused, or the request as a whole.
            PlatformError: the rest of the shard cannot be had now.
        """
        whole_from_here = self._cursor is None
        while True:
            count = self._size.count
            try:
                with self._scope.room.lease() as lease:
                    answer = await self._ask(count, lease)
                finished = answer.listing.count < count
            except TooHeavyError as error:
                if (split := self._ask_for_less(error)) is not None:
                    return split
                continue
            except _LostCursorError as error:
                self._note_cursor(lead_on=False)
                if (split := self._start_again(error)) is not None:
                    return split
                continue
            self._size.went_well(answer.listing.count)
            self._scope.learned.took(answer.listing.count, answer.seconds)
            self._lineage.fruitless = 0
            self._pages += 1
            self._note_cursor(lead_on=True)
            known = self._at_start or self._oldest is not None
            self._at_start = False
            self._cursor = answer.listing.cursor
            self._last = _identity(answer.listing)
            now = self._scope.connector.platform.clock.now()
            seconds = answer.seconds
            with lease:
                sifted = self._sieve.sift(answer.listing)
                self._look_at_times(sifted, known=known)
                delivery = deliver(self._step(answer, sifted, lease, None if finished else self.position))
                del answer, sifted  # or it would stay in memory until the next one is there
                await delivery
            if finished:
                at_once = whole_from_here and self._pages == 1
                return Finished(at_once and now < self._until)
            if (given := self._give_away(share, seconds)) is not None:
                return given

    def _look_at_times(self, sifted: Sifted, *, known: bool) -> None:
        """Note how old the orders of a page are; `known`: it was known before how old the oldest is."""
        if not known or sifted.oldest is None:
            self._oldest = None
        elif sifted.oldest == NOTHING:  # all on the window's edge
            self._oldest = self._oldest or self._shard.window.end
        else:
            newest = parse_utc(sifted.latest) if sifted.latest else sifted.oldest
            self._oldest = sifted.oldest if self._oldest is None else min(self._oldest, sifted.oldest)
            self._newest = newest if self._newest is None else max(self._newest, newest)
            self._came += len(sifted.kept)
            self._by_update = sifted.by_update

    def _give_away(self, share: Share, seconds: float) -> Split | None:
        """What others may read of what is left, as long as each part is worth its request; `None`: nothing.

        1. time of which nothing was read, if it is worth parts by the density of what was
        2. it is not, and there is nothing else: pages come by update
        3. how dense it is nobody knows, for all that came has one time: then all of that time is one part
        4. there is none: parts of what the cursor leads to
        """
        below = self._seconds_below()
        if below >= 1 and (pages := self._pages_in(below)):
            given = self._give_below(share(pages, seconds), pages)
            if given is not None or self._by_update:
                return given
        # Nobody knows how much there is: a walk that has not come to its end may well have as much again.
        most = min(share(self._pages, seconds), int(self._pages / self.WORTH))
        if most and below >= 1 and self._by_update:
            return self._give_all_below()
        return self._give_at_cursor(self._scope.cursors.most(most))

    def _seconds_below(self) -> float:
        """How much time is left of which nothing was read; 0: none, or nobody knows."""
        if self._oldest is None:
            return 0
        return (self._oldest.replace(microsecond=0) - self._shard.window.start).total_seconds()

    def _pages_in(self, seconds: float) -> float:
        """How many pages so much time is worth, if it is as dense as what was read; 0: nobody knows."""
        if self._oldest is None or self._newest is None or self._newest <= self._oldest:
            return 0
        return self._came * seconds / (self._newest - self._oldest).total_seconds() / self._size.count

    def _give_below(self, most: int, pages: float) -> Split | None:
        """Parts of the time of which nothing was read."""
        if most and not self._by_update:  # what is kept cannot be shared as well later: the parts are to be smaller
            most = most * 2 + 1
        parts = min(most, int(pages / self.WORTH) - 1)
        if parts < 1 or self._oldest is None:
            return None
        return self._given(give_away(self._shard, self._oldest, parts))

    def _give_all_below(self) -> Split | None:
        """All the time of which nothing was read."""
        return None if self._oldest is None else self._given(cut_at(self._shard, self._oldest))

    def _given(self, shards: tuple[Shard, ...] | None) -> Split | None:
        """The first goes on, the others begin."""
        if shards is None:
            return None
        fresh = Position(None, self._size.count)
        return Split(((shards[0], self.position), *((shard, fresh) for shard in shards[1:])), helped=True)

    def _give_at_cursor(self, parts: int) -> Split | None:
        """Parts of all that is left, each from where this walk is; the cursor's order is one's, or none's."""
        if not parts or self._cursor is None:
            return None
        shards = None if self._by_update else cut_window(self._shard, parts)
        if shards is None and (shards := cut_services(self._shard, parts)) is None:
            return None
        self._scope.cursors.trying()
        here = self.position
        elsewhere = msgspec.structs.replace(here, elsewhere=True)
        return Split(tuple((shard, here if self._is_of(shard) else elsewhere) for shard in shards), helped=True)

    def _is_of(self, shard: Shard) -> bool:
        """Whether the cursor's order is, as it came, one of a shard's."""
        if self._last is None:
            return False
        id_, service_id, updated = self._last
        if id_ != self._cursor or service_id not in shard.service_ids:
            return False
        before_end = shard.open_ended or updated < time_key(shard.window.end)
        return before_end and time_key(shard.window.start) <= updated

    def _note_cursor(self, *, lead_on: bool) -> None:
        if self._elsewhere:
            self._elsewhere = False
            self._scope.cursors.found(lead_on=lead_on)

    async def _ask(self, count: int, lease: Lease) -> Answer[ProductServiceOrder]:
        request = OrdersRequest(
            Limitation(count, self._cursor),
            self._shard.service_ids,
            self._interval,
            self._scope.states if self._shard.filtered else None,
        )
        try:
            answer = await self._scope.connector.call(self._scope.operation, request, lease)
        except InvalidRequestError as error:
            if error.names_cursor and self._cursor is not None:
                raise _LostCursorError(error) from None
            raise
        if answer.listing.count >= count:
            self._check_cursor(answer)
        return answer

    def _check_cursor(self, answer: Answer[ProductServiceOrder]) -> None:
        """Make sure that the cursor leads on."""
        cursor = answer.listing.cursor
        if cursor is None:
            raise self._lost("a full page without a cursor")
        if cursor in self._seen:
            raise self._lost("a cursor that was there before: the pages go in a circle")
        self._seen.add(cursor)

    def _lost(self, what: str) -> _LostCursorError:
        return _LostCursorError(BadResponseError(self._scope.operation.path, what, status=200))

    def _ask_for_less(self, error: TooHeavyError) -> Split | None:
        """Smaller pages, or else a split; raises `error` if there is nothing left to halve."""
        position = self.position
        self._lineage.fruitless += 1
        if self._lineage.hopeless:
            raise error
        if error.status == 413:  # the ids are too many, whatever the window
            halves = split_services(self._shard)
        elif self._size.shrink(last_resort=self._lineage.halved_in_vain):
            return None
        else:
            halves = split_window(self._shard) or split_services(self._shard)
        if halves is None:
            # One service and one second: a bulk change leaves thousands of orders there.
            if error.status != 413 and self._size.shrink(last_resort=True):
                return None
            raise error
        return Split(tuple((half, position) for half in halves))

    def _start_again(self, error: _LostCursorError) -> Split | None:
        """From the start, or, if that did not help, in halves from the start; raises if it cannot be halved."""
        again = msgspec.structs.replace(self._shard, repeats=True)
        fresh = Position(None, self._size.count)
        if not self._restarted:
            self._restarted = True
            self._shard = again
            self._cursor = None
            self._at_start = True
            self._oldest = self._newest = None
            self._came = 0
            self._seen.clear()
            return None
        halves = split_window(again) or split_services(again)
        if halves is None:
            raise error.error
        return Split(tuple((half, fresh) for half in halves))

    def _step(
        self, answer: Answer[ProductServiceOrder], sifted: Sifted, lease: Lease, position: Position | None
    ) -> Step:
        page = self._scope.page(answer, sifted, repeats=self._shard.repeats, filtered=self._shard.filtered)
        return Step(self._shard, page, position, sifted, lease)


def _identity(listing: Listing[ProductServiceOrder]) -> tuple[str, str, str] | None:
    """Id, service and `UpdatedUtc` of a page's last order; not the order, which may hold the whole page."""
    if not listing.items:
        return None
    last = listing.items[-1]
    return last.id, last.service_id, last.updated_utc


class _LostCursorError(Exception):
    """The walk cannot go on from where it is; `error` says why."""

    def __init__(self, error: InvalidRequestError | BadResponseError) -> None:
        super().__init__()
        self.error = error
