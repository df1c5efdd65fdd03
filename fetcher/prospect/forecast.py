"""How many requests a load takes, and how long, if there are so many orders: its walks, played through. Pure.

What is played is what `loading.pool` does: walkers take shards from a queue, and one that has more to read gives parts
of it away while walkers are idle and the budget has free slots. A request waits for a slot, which is free again a
window after its answer began. Orders are taken as sent in the order of their updates: a platform that sorts by creation
takes longer if it refuses the cursors of others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from heapq import heappop, heappush, heappushpop
from itertools import count, pairwise
from math import ceil, floor

import msgspec

from fetcher.connector.operations import MAX_IDS
from fetcher.loading.pool import Pool, parts_to_give
from fetcher.loading.walk import Walk
from fetcher.planning.shards import Shard
from fetcher.prospect.density import Profile


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how fast walks get on."""

    requests: int
    per_seconds: float
    walks: int
    """Side by side."""
    page_size: int
    answer_seconds: float
    """That an answer takes which is nearly empty."""
    page_seconds: float
    """That an answer takes which is full."""

    def seconds(self, orders: float) -> float:
        """That an answer with so many orders takes."""
        return self.answer_seconds + (self.page_seconds - self.answer_seconds) * min(1.0, orders / self.page_size)

    def pages(self, orders: float) -> int:
        """Requests of a walk that reads so many: the last page is not full, so that it is known for the last."""
        return floor(orders / self.page_size) + 1


class Expected(msgspec.Struct, frozen=True):
    """A shard, and what it is expected to have left."""

    shard: Shard
    profile: Profile

    @property
    def orders(self) -> float:
        """How many orders."""
        return self.profile.orders


class Forecast(msgspec.Struct, frozen=True):
    """What a load takes."""

    requests: int
    seconds: float
    split: frozenset[int]
    """Places of the shards that will be split, among those that were given."""


class Before(msgspec.Struct, frozen=True):
    """What came before the first walk: requests of discovery, and seconds since the first of them."""

    requests: int
    seconds: float


def forecast(expected: Sequence[Expected], before: Before, pace: Pace, *, splits: bool, closes: bool) -> Forecast:
    """Play a load through.

    Args:
        expected: in the order in which they are walked.
        before: what discovery took.
        pace: what decides how fast walks get on.
        splits: whether walks give parts away.
        closes: whether the run ends by reading what changed while it read.
    """
    return _Play(before, pace, splits=splits).play(expected, closes=closes)


def closing_requests(expected: Sequence[Expected], pace: Pace, *, split: frozenset[int] = frozenset()) -> int:
    """What closing the run takes where nothing changes meanwhile: none for services that one request brought whole."""
    counts = Counter(service for one in expected for service in one.shard.service_ids)
    moving = {service for service, shards in counts.items() if shards > 1}
    for place, one in enumerate(expected):
        if place in split or not one.shard.open_ended or one.orders >= pace.page_size:
            moving.update(one.shard.service_ids)
    return ceil(len(moving) / MAX_IDS)


class _Rest(msgspec.Struct, frozen=True):
    """What a walk has left, of the shard at that place: the time from `start` to `oldest`, in seconds since 1970."""

    place: int
    start: float
    oldest: float
    newest: float | None = None
    """Of what the walk has read since it was begun, or split."""
    came: int = 0
    """How many that were."""


class _Play:
    """One load, played once; `play` says what came of it."""

    def __init__(self, before: Before, pace: Pace, *, splits: bool) -> None:
        self._pace = pace
        self._splits = splits
        # All mutable state. `_send` takes a slot and adds an answer that is to come; `play` takes the next answer, and
        # does what the pool does with it.
        self._now = before.seconds
        self._requests = before.requests
        self._queue: deque[_Rest] = deque()
        self._answers: list[tuple[float, int, float, _Rest]] = []  # when, in which order, after how long, to what
        self._slots: list[float] = []  # when each that is taken is free again
        self._walkers = 0
        self._taken = False
        self._split: set[int] = set()
        self._profiles: list[Profile] = []
        self._number = count()
        for _ in range(min(before.requests, pace.requests)):
            heappush(self._slots, before.seconds + pace.per_seconds)

    def play(self, expected: Sequence[Expected], *, closes: bool) -> Forecast:
        """Walk them all, and close."""
        self._profiles = [one.profile for one in expected]
        for place, one in enumerate(expected):
            self._queue.append(_Rest(place, one.profile.start, one.profile.end))
        self._hire()
        while self._answers:
            self._now, _, seconds, rest = heappop(self._answers)
            if not self._taken:
                self._taken = True
                self._hire()
            self._answered(rest, seconds)
        split = frozenset(self._split)
        for _ in range(closing_requests(expected, self._pace, split=split) if closes else 0):
            self._ask(0.0, _NOTHING)
        self._now = max((when for when, *_ in self._answers), default=self._now)
        return Forecast(self._requests, self._now, split)

    def _answered(self, rest: _Rest, seconds: float) -> None:
        """Go on with a walk whose page is there: at its end with the next, else with its rest, or with a part of it."""
        size, profile = self._pace.page_size, self._profiles[rest.place]
        up_to = profile.before(rest.oldest)
        if up_to - profile.before(rest.start) < size:
            if self._queue:
                self._send(self._queue.popleft())
            else:
                self._walkers -= 1
            return
        newest = profile.when(up_to) if rest.newest is None else rest.newest
        rest = _Rest(rest.place, rest.start, max(rest.start, profile.when(up_to - size)), newest, rest.came + size)
        parts = self._parts(_pages_left(rest, newest, size), seconds)
        if parts < 1:
            self._send(rest)
            return
        self._split.add(rest.place)
        cuts = [rest.start + (rest.oldest - rest.start) * share / (parts + 1) for share in range(parts + 2)]
        self._queue.extendleft(_Rest(rest.place, start, end) for start, end in pairwise(cuts))
        self._send(self._queue.popleft())
        self._hire()

    def _parts(self, pages: float, seconds: float) -> int:
        """How many parts a walk gives away that has so many pages left, the last of which took so long."""
        pace = self._pace
        if self._queue or not self._splits:
            return 0
        while self._slots and self._slots[0] <= self._now:
            heappop(self._slots)
        free = pace.requests - len(self._slots) - self._walkers
        most = parts_to_give(pace.walks, self._walkers, free, pages, pace.requests / pace.per_seconds * seconds)
        return min(most, int(pages / Walk.WORTH) - 1)

    def _hire(self) -> None:
        most = self._pace.walks if self._taken else min(self._pace.walks, Pool.FIRST_WALKS)
        for _ in range(min(most - self._walkers, len(self._queue))):
            self._walkers += 1
            self._send(self._queue.popleft())

    def _send(self, rest: _Rest) -> None:
        profile = self._profiles[rest.place]
        self._ask(profile.before(rest.oldest) - profile.before(rest.start), rest)

    def _ask(self, orders: float, rest: _Rest) -> None:
        """Ask for the next page of so many orders, as soon as there is a slot."""
        pace = self._pace
        start = self._now
        begins = pace.answer_seconds + pace.per_seconds
        if len(self._slots) < pace.requests:
            heappush(self._slots, start + begins)
        else:
            start = max(start, self._slots[0])
            heappushpop(self._slots, start + begins)
        self._requests += 1
        seconds = pace.seconds(orders)
        heappush(self._answers, (start + seconds, next(self._number), seconds, rest))


def _pages_left(rest: _Rest, newest: float, size: int) -> float:
    """How many pages a walk takes its rest for: as dense as what it has read."""
    span = newest - rest.oldest
    return rest.came * (rest.oldest - rest.start) / span / size if span > 0 else 0.0


_NOTHING = _Rest(0, 0.0, 0.0)
