"""How many orders to expect, by rows and by the time that they were read in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fetcher.planning.shards import ServiceRef
from fetcher.planning.windows import Window
from fetcher.prospect.density import Density, Profile
from fetcher.sinks import RowCount

JANUARY, FEBRUARY, MARCH, APRIL = (datetime(2024, month, 1, tzinfo=UTC) for month in range(1, 5))
SERVICES = (ServiceRef("E1", "A"), ServiceRef("E1", "b"), ServiceRef("E2", "c"))
BOTH = Window(JANUARY, MARCH)


def count(rows: int, enterprise: str | None = None, month: datetime | None = None) -> RowCount:
    return RowCount(portfolio="north", rows=rows, enterprise_id=enterprise, month=month)


def test_what_was_read_whole_is_what_is_there() -> None:
    counts = [count(100, "e1", JANUARY), count(300, "e1", FEBRUARY), count(50, "e2", JANUARY)]
    density = Density(counts, {}, dict.fromkeys("abc", (BOTH,)), SERVICES)
    assert density.profile(["A", "b"], BOTH).orders == pytest.approx(400)
    assert density.profile(["A"], Window(FEBRUARY, MARCH)).orders == pytest.approx(150)
    assert density.profile(["c"], Window(FEBRUARY, MARCH)).orders == 0
    assert density.profile(["A", "b", "c"], BOTH).orders == pytest.approx(450)


def test_a_month_that_was_not_read_is_like_the_nearest_that_was() -> None:
    counts = [count(31_000, "e1", JANUARY), count(58, "e1", FEBRUARY)]
    density = Density(counts, {}, dict.fromkeys("ab", (BOTH,)), SERVICES)
    assert density.profile(["A", "b"], Window(MARCH, APRIL)).orders == pytest.approx(62)


def test_an_enterprise_of_which_nothing_was_read_is_like_the_whole_portfolio() -> None:
    density = Density([count(200, "e1", JANUARY)], {}, dict.fromkeys("ab", (Window(JANUARY, FEBRUARY),)), SERVICES)
    assert density.profile(["c"], Window(JANUARY, FEBRUARY)).orders == pytest.approx(100)


def test_rows_without_a_place_are_spread_evenly_over_what_was_read() -> None:
    read = {"a": (BOTH,), "b": (BOTH,), "gone": (BOTH,)}
    density = Density([count(300)], {}, read, SERVICES)
    assert density.profile(["A", "b"], BOTH).orders == pytest.approx(200)
    assert not density.by_enterprise


def test_a_bulk_change_makes_its_own_day_dense_and_no_other() -> None:
    read = Window(datetime(2024, 1, 11, tzinfo=UTC), FEBRUARY)
    days = {read.start + timedelta(days=number): 10 for number in range(21)} | {read.start: 5000}
    density = Density([count(sum(days.values()), "e1", JANUARY)], days, dict.fromkeys("abc", (read,)), SERVICES)
    assert density.profile(["A", "b"], Window(read.start, read.start + timedelta(days=1))).orders == pytest.approx(5000)
    assert density.profile(["A", "b"], Window(JANUARY, read.start)).orders == pytest.approx(100)


def test_where_nothing_was_read_nothing_is_known() -> None:
    density = Density([], {}, {}, SERVICES)
    assert not density.known
    assert density.profile(["A"], BOTH).orders == 0
    assert Density([], {}, {"a": (BOTH,)}, SERVICES).known


def test_a_profile_tells_orders_up_to_a_time_and_the_time_of_as_many() -> None:
    middle = JANUARY + timedelta(days=10)
    profile = Profile([(Window(JANUARY, middle), 0.0), (Window(middle, FEBRUARY), 210.0)])
    assert profile.before(middle.timestamp()) == 0
    assert profile.when(0.0) == JANUARY.timestamp()
    assert profile.when(10.0) == pytest.approx((middle + timedelta(days=1)).timestamp())
    assert profile.before(APRIL.timestamp()) == profile.orders == 210
    assert Profile([]).orders == Profile([]).before(1.0) == 0
