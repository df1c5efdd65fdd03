"""Windows meet at instants, on one calendar grid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.planning.windows import Window, add_months, grid, overlaps, subtract, union
from tests.sets import intersection

INSTANTS = st.datetimes(datetime(2015, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)).map(
    lambda instant: instant.replace(microsecond=0)
)
WINDOWS = st.tuples(INSTANTS, INSTANTS).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Window(*sorted(pair)))
SETS = st.lists(WINDOWS, max_size=6).map(union)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def instants(windows: tuple[Window, ...]) -> timedelta:
    return sum((window.end - window.start for window in windows), timedelta())


@given(WINDOWS, st.integers(1, 3))
def test_the_grid_leaves_no_gap_and_no_overlap(window: Window, months: int) -> None:
    parts = list(grid(window, months))
    assert parts[0].start == window.start
    assert parts[-1].end == window.end
    assert all(earlier.end == later.start for earlier, later in pairwise(parts))
    assert all(part.start < part.end for part in parts)


@given(WINDOWS, st.integers(1, 3))
def test_no_window_of_the_grid_is_longer_than_the_platform_takes(window: Window, months: int) -> None:
    assert all(part.end <= add_months(part.start, 3) for part in grid(window, months))


@given(WINDOWS, INSTANTS, st.integers(1, 3))
def test_another_end_cuts_the_same_inner_edges(window: Window, end: datetime, months: int) -> None:
    if end <= window.start:
        return
    first = {part.start for part in grid(window, months)}
    second = {part.start for part in grid(Window(window.start, end), months)}
    until = min(window.end, end)
    assert {edge for edge in first if edge < until} == {edge for edge in second if edge < until}


@pytest.mark.parametrize(
    ("start", "end", "edges"),
    [
        (utc(2023, 12, 31, 23, 59, 59), utc(2024, 1, 1, 0, 0, 1), [utc(2024, 1, 1)]),
        (utc(2024, 2, 29), utc(2024, 4, 1), []),
        (utc(2024, 2, 29), utc(2024, 7, 1, 0, 0, 1), [utc(2024, 4, 1), utc(2024, 7, 1)]),
        (utc(2023, 1, 1), utc(2024, 1, 1), [utc(2023, 4, 1), utc(2023, 7, 1), utc(2023, 10, 1)]),
    ],
)
def test_edges_are_quarters_of_the_calendar(start: datetime, end: datetime, edges: list[datetime]) -> None:
    assert [part.start for part in grid(Window(start, end), 3)][1:] == edges


@pytest.mark.parametrize(
    ("instant", "months", "result"),
    [
        (utc(2023, 11, 30), 3, utc(2024, 2, 29)),
        (utc(2022, 11, 30), 3, utc(2023, 2, 28)),
        (utc(2023, 12, 31, 23), 2, utc(2024, 2, 29, 23)),
        (utc(2023, 10, 1), 3, utc(2024, 1, 1)),
    ],
)
def test_months_end_where_the_calendar_says(instant: datetime, months: int, result: datetime) -> None:
    assert add_months(instant, months) == result


@given(WINDOWS, SETS)
def test_what_is_left_and_what_is_covered_make_up_the_window(window: Window, covered: tuple[Window, ...]) -> None:
    left = subtract(window, covered)
    inside = intersection((window,), covered)
    assert instants(left) + instants(inside) == window.end - window.start
    assert union((*left, *inside)) == (window,)
    assert not any(overlaps(part, covered) for part in left)


@given(SETS, SETS)
def test_a_union_is_disjoint_and_in_order(one: tuple[Window, ...], other: tuple[Window, ...]) -> None:
    both = union((*one, *other))
    assert all(earlier.end < later.start for earlier, later in pairwise(both))
    assert instants(both) == instants(one) + instants(other) - instants(intersection(one, other))
