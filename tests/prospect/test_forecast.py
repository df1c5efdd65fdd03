"""Loads that are played through, where one can tell by hand what they take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fetcher.planning.shards import Shard
from fetcher.planning.windows import Window
from fetcher.prospect.density import Profile
from fetcher.prospect.forecast import Before, Expected, Forecast, Pace, closing_requests, forecast

START = datetime(2024, 1, 1, tzinfo=UTC)
PACE = Pace(requests=200, per_seconds=30.0, walks=16, page_size=1000, answer_seconds=1.0, page_seconds=1.0)
NOTHING = Before(0, 0.0)


def expected(number: int, orders: float, *, services: tuple[str, ...] = (), open_ended: bool = True) -> Expected:
    """A shard of a day of its own."""
    window = Window(START + timedelta(days=number), START + timedelta(days=number + 1))
    shard = Shard(service_ids=services or (f"s{number}",), window=window, settled=window.end, open_ended=open_ended)
    return Expected(shard, Profile([(window, orders)]))


def played(*shards: Expected, before: Before = NOTHING, pace: Pace = PACE, splits: bool = False) -> Forecast:
    return forecast(shards, before, pace, splits=splits, closes=False)


@pytest.mark.parametrize(("orders", "pages"), [(0, 1), (999, 1), (1000, 2), (1001, 2), (5500, 6)])
def test_a_walk_takes_a_request_for_each_page_and_ends_with_one_that_is_not_full(orders: int, pages: int) -> None:
    found = played(expected(0, orders))
    assert (found.requests, found.seconds) == (pages, pytest.approx(pages))


def test_discovery_comes_before_all_walks() -> None:
    assert played(expected(0, 0), before=Before(3, 2.5)) == Forecast(4, 3.5, frozenset())


def test_the_first_answer_is_waited_for_with_four_walks_and_then_sixteen_go_side_by_side() -> None:
    assert played(*(expected(number, 10) for number in range(4))).seconds == 1
    assert played(*(expected(number, 10) for number in range(20))).seconds == 2
    assert played(*(expected(number, 10) for number in range(21))).seconds == 3


def test_what_is_large_is_split_while_walkers_are_idle_and_takes_a_fraction_of_the_time() -> None:
    alone = played(expected(0, 60_000))
    shared = played(expected(0, 60_000), splits=True)
    assert alone.seconds == alone.requests == 61
    assert shared.seconds < 10
    assert 61 <= shared.requests < 80
    assert shared.split == {0}


def test_where_the_newest_time_has_most_parts_are_not_alike_and_it_takes_longer() -> None:
    skewed = expected(0, 0)
    window = skewed.shard.window
    last = window.end - timedelta(hours=1)
    profile = Profile([(Window(window.start, last), 20_000.0), (Window(last, window.end), 40_000.0)])
    assert (
        played(Expected(skewed.shard, profile), splits=True).seconds > played(expected(0, 60_000), splits=True).seconds
    )


def test_a_full_window_waits_until_its_slots_are_free_again() -> None:
    pace = Pace(requests=10, per_seconds=30.0, walks=16, page_size=1000, answer_seconds=0.1, page_seconds=0.1)
    shards = [expected(number, 0) for number in range(25)]
    assert 60 <= played(*shards, pace=pace).seconds <= 61
    assert played(*shards[:8], before=Before(2, 0.1), pace=pace).seconds < 1
    assert played(*shards[:9], before=Before(2, 0.1), pace=pace).seconds > 30


def test_a_page_that_is_not_full_takes_less_time() -> None:
    pace = Pace(requests=200, per_seconds=30.0, walks=16, page_size=1000, answer_seconds=0.2, page_seconds=1.0)
    assert played(expected(0, 0), pace=pace).seconds == pytest.approx(0.2)
    assert played(expected(0, 1500), pace=pace).seconds == pytest.approx(1.0 + 0.6)


def test_what_one_request_brings_whole_needs_no_closing() -> None:
    assert closing_requests([expected(0, 10)], PACE) == 0
    assert closing_requests([expected(0, 1000)], PACE) == 1
    assert closing_requests([expected(0, 10, open_ended=False)], PACE) == 1
    several = [expected(number, 10, services=tuple(f"s{one}" for one in range(1001))) for number in range(2)]
    assert closing_requests(several, PACE) == 2
    assert forecast(several, NOTHING, PACE, splits=True, closes=True) == Forecast(4, 2.0, frozenset())
