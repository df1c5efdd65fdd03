"""Time as the job cuts it: half-open windows on one calendar grid, and sets of such windows. Pure.

The rule that cannot be broken: windows meet at instants, so that between them there is neither gap nor overlap
(promises P1 and P2), and their edges depend on the calendar alone, so that a later run cuts the same shards.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import pairwise

import msgspec


class Window(msgspec.Struct, frozen=True, order=True):
    """The instants from `start` up to, not including, `end`; both in UTC, `start` before `end`."""

    start: datetime
    end: datetime


Windows = tuple[Window, ...]
"""A set of instants: disjoint windows in order, none touching the next."""


def add_months(instant: datetime, months: int) -> datetime:
    """`instant` moved by calendar months; a day that the month has not becomes the month's last.

    >>> add_months(datetime(2023, 11, 30, tzinfo=UTC), 3).date().isoformat()
    '2024-02-29'
    """
    year, month = divmod(instant.year * 12 + instant.month - 1 + months, 12)
    day = min(instant.day, monthrange(year, month + 1)[1])
    return instant.replace(year=year, month=month + 1, day=day)


def grid(window: Window, months: int) -> Iterator[Window]:
    """`window` cut wherever the calendar begins a group of `months` months (1, 2 or 3, counted from January)."""
    yield from (Window(start, end) for start, end in pairwise(_edges(window, months)))


def _edges(window: Window, months: int) -> Iterator[datetime]:
    yield window.start
    ordinal = window.start.year * 12 + window.start.month - 1
    ordinal += months - ordinal % months
    while (edge := datetime(ordinal // 12, ordinal % 12 + 1, 1, tzinfo=UTC)) < window.end:
        yield edge
        ordinal += months
    yield window.end


def union(windows: Iterable[Window]) -> Windows:
    """All instants of `windows`, which may overlap and come in any order."""
    merged: list[Window] = []
    for window in sorted(windows):
        if window.start >= window.end:
            continue
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return tuple(merged)


def subtract(window: Window, covered: Windows) -> Windows:
    """The instants of `window` that are not in `covered`."""
    left: list[Window] = []
    start = window.start
    for taken in covered:
        if taken.start > start:
            left.append(Window(start, min(taken.start, window.end)))
        start = max(start, taken.end)
        if start >= window.end:
            break
    if start < window.end:
        left.append(Window(start, window.end))
    return tuple(gap for gap in left if gap.start < gap.end)


def overlaps(window: Window, windows: Iterable[Window]) -> bool:
    """Whether any instant of `window` is in one of `windows`."""
    return any(other.start < window.end and window.start < other.end for other in windows)
