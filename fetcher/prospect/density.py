"""How many orders there are to be read, by what a sink holds of what was read so far. Pure.

Rows over the time that they were read in, of each service, are a density; that, over the time that is still to be read,
are the orders to expect. Of an enterprise it is that of the nearest month of which enough was read, if the sink tells
months apart; else it is the portfolio's. Within a month, days are told apart by the whole portfolio's: the newest often
have most. It is an estimate, never a bound: nobody counts orders at the platform.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from statistics import median

from fetcher.planning.shards import ServiceRef
from fetcher.planning.windows import Window, Windows, grid
from fetcher.sinks.base import RowCount

DAY_SECONDS = 86400
ENOUGH = 0.1
"""Of a month or a day, times the services, that was read: of less, a single page might tell too much."""

_Key = tuple[str | None, datetime | None]
"""An enterprise, or all; a month, or all."""


class Profile:
    """How many orders there are up to any time of a window.

    Args:
        parts: the window's, the oldest first, each with how many orders it has, spread evenly over it.
    """

    def __init__(self, parts: Sequence[tuple[Window, float]]) -> None:
        self._edges = [
            *(part.start.timestamp() for part, _ in parts),
            *(part.end.timestamp() for part, _ in parts[-1:]),
        ]
        self._up_to = [0.0, *accumulate(orders for _, orders in parts)]

    @property
    def orders(self) -> float:
        """Of all of it."""
        return self._up_to[-1]

    @property
    def start(self) -> float:
        """When it begins, in seconds since 1970."""
        return self._edges[0] if self._edges else 0.0

    @property
    def end(self) -> float:
        """When it ends, likewise."""
        return self._edges[-1] if self._edges else 0.0

    def before(self, time: float) -> float:
        """How many there are before that time."""
        return _between(self._edges, self._up_to, time)

    def when(self, orders: float) -> float:
        """The time before which there are so many."""
        return _between(self._up_to, self._edges, orders)


class Density:
    """What is known of one portfolio.

    Args:
        counts: the portfolio's rows.
        days: the same, by day; may be empty.
        read: by service id in small letters, the instants in which those rows are all that there is.
        services: the portfolio's, as they are today.
    """

    def __init__(
        self,
        counts: Iterable[RowCount],
        days: Mapping[datetime, int],
        read: Mapping[str, Windows],
        services: Sequence[ServiceRef],
    ) -> None:
        self._enterprises = {service.id.lower(): service.enterprise_id.lower() for service in services}
        self._sizes = Counter(self._enterprises.values())
        self._rows: Counter[_Key] = Counter()
        for count in counts:
            for key in {
                (count.enterprise_id, count.month),
                (count.enterprise_id, None),
                (None, count.month),
                (None, None),
            }:
                self._rows[key] += count.rows
        self._days = days
        self._seconds: defaultdict[_Key, float] = defaultdict(float)  # of services
        self._day_seconds: defaultdict[datetime, float] = defaultdict(float)
        groups = Counter((self._enterprises.get(service), windows) for service, windows in read.items())
        for (enterprise, windows), members in groups.items():
            for month, part in _months(windows):
                for key in _keys(enterprise, month):
                    self._seconds[key] += members * _seconds(part)
        for windows, members in Counter(read.values()).items() if days else ():
            for window in windows:
                for day, part in _days(window):
                    self._day_seconds[day] += members * _seconds(part)
        self._by_enterprise = any(enterprise is not None for enterprise, _ in self._rows)
        self._read_months: dict[str, list[datetime]] = {}  # of each enterprise, those of which enough was read
        for (enterprise, month), seconds in self._seconds.items() if self._by_enterprise else ():
            if enterprise and month and seconds > ENOUGH * 30 * DAY_SECONDS * self._sizes[enterprise]:
                self._read_months.setdefault(enterprise, []).append(month)
        # As asked for so far.
        self._finest: dict[tuple[str, datetime], float] = {}
        self._shapes: dict[datetime, tuple[dict[datetime, float], float]] = {}

    @property
    def known(self) -> bool:
        """Whether anything was read yet."""
        return self._seconds[None, None] > 0

    @property
    def by_enterprise(self) -> bool:
        """Whether the sink tells one enterprise, and one month, from another."""
        return self._by_enterprise

    def profile(self, service_ids: Iterable[str], window: Window) -> Profile:
        """How many are to be expected of these services in this window, and when they were updated."""
        members = Counter(self._enterprises.get(service.lower(), "") for service in service_ids)
        parts: list[tuple[Window, float]] = []
        for month, in_month in _months([window] if window.start < window.end else []):
            density = sum(count * self._of(enterprise, month) for enterprise, count in members.items())
            if self._days:
                parts += [(part, density * self._shape(day, month) * _seconds(part)) for day, part in _days(in_month)]
            else:
                parts.append((in_month, density * _seconds(in_month)))
        return Profile(parts)

    def _of(self, enterprise: str, month: datetime) -> float:
        """Rows in a second of a service of the enterprise, in that month."""
        key = enterprise, month
        if key not in self._finest:
            self._finest[key] = self._choose(enterprise, month)
        return self._finest[key]

    def _choose(self, enterprise: str, month: datetime) -> float:
        if months := self._read_months.get(enterprise):
            nearest = min(months, key=lambda other: abs(other - month))
            return self._rows[enterprise, nearest] / self._seconds[enterprise, nearest]
        return self._rows[None, None] / self._seconds[None, None] if self._seconds[None, None] else 0.0

    def _shape(self, day: datetime, month: datetime) -> float:
        """How much denser the day is than its month, all services together."""
        if month not in self._shapes:
            self._shapes[month] = self._look_at_days(month)
        shapes, usual = self._shapes[month]
        return shapes.get(day, usual)

    def _look_at_days(self, month: datetime) -> tuple[dict[datetime, float], float]:
        """The shapes of days of which enough was read, and what is usual: one bulk change makes no other day dense."""
        rows, seconds = self._rows[None, month], self._seconds[None, month]
        enough = ENOUGH * DAY_SECONDS * len(self._enterprises)
        shapes: dict[datetime, float] = {}
        for day in (month + timedelta(days=number) for number in range(31)):
            if rows and day.month == month.month and self._day_seconds[day] > enough:
                shapes[day] = self._days.get(day, 0) / self._day_seconds[day] * seconds / rows
        return shapes, median(shapes.values()) if shapes else 1.0


def _keys(enterprise: str | None, month: datetime | None) -> set[_Key]:
    """All that a part belongs to; each once, also where one of them is all."""
    return {(enterprise, month), (enterprise, None), (None, month), (None, None)}


def _months(windows: Iterable[Window]) -> list[tuple[datetime, Window]]:
    """The windows month by month: its beginning, and what there is of it."""
    return [
        (part.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0), part)
        for window in windows
        for part in grid(window, 1)
    ]


def _days(window: Window) -> Iterator[tuple[datetime, Window]]:
    """The window day by day, likewise."""
    day = window.start.replace(hour=0, minute=0, second=0, microsecond=0)
    while day < window.end:
        following = day + timedelta(days=1)
        yield day, Window(max(window.start, day), min(window.end, following))
        day = following


def _seconds(window: Window) -> float:
    return (window.end - window.start).total_seconds()


def _between(known: Sequence[float], values: Sequence[float], at: float) -> float:
    """What `values` is where `known`, which never falls, is `at`: on a straight line between two, or the end's."""
    place = bisect_left(known, at)
    if place == 0 or place == len(known):
        return values[min(place, len(values) - 1)] if values else 0.0
    low, high = known[place - 1], known[place]
    return values[place - 1] + (values[place] - values[place - 1]) * (at - low) / (high - low)
