"""A set operation that only tests need."""

from __future__ import annotations

from fetcher.planning.windows import Window, Windows, union


def intersection(first: Windows, second: Windows) -> Windows:
    """The instants that are in both."""
    return union(Window(max(one.start, other.start), min(one.end, other.end)) for one in first for other in second)
