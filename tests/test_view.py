"""What a person sees: honest, and in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fetcher.progress import Failure, PortfolioReport, Report, Tally
from fetcher.view import Speed, duration, failure_line, summary, table


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (8.44, "8.4 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_rate_is_of_the_last_seconds() -> None:
    clock = Clock()
    speed = Speed(clock)
    for second in range(1, 21):
        clock.now = 100.0 + second
        rate = speed.rate(1000 * second if second <= 10 else 10_000)
    assert rate == pytest.approx(0, abs=100)


def test_time_left_is_told_only_when_it_can_be_known() -> None:
    clock = Clock()
    speed = Speed(clock)
    tally = Tally(portfolio="north", phase="loading", shards_planned=100, shards_done=5)
    clock.now += 10
    assert speed.seconds_left(tally) is None  # too early
    tally.shards_done = 20
    assert speed.seconds_left(tally) == pytest.approx(40)
    tally.note = "paused by the platform for 12 s"
    assert speed.seconds_left(tally) is None


def test_a_failure_says_where_what_and_what_to_do() -> None:
    start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC)
    failure = Failure(
        portfolio="north", enterprise="e", services=("s",), window=(start, end), error="answered 500. Try again later"
    )
    line = "north, enterprise e, service s, 2024-01-01 00:00:00 to 2024-04-01 00:00:00: answered 500. Try again later"
    assert failure_line(failure) == line


def test_the_summary_of_a_run_that_is_not_whole_says_how_to_go_on() -> None:
    counts = {"orders": 5, "pages": 1, "requests": 2, "retries": 0, "throttled": 0, "seconds": 2.0, "watermark": None}
    portfolio = PortfolioReport(
        **counts,
        complete=False,
        enterprises=1,
        services=2,
        oddities={"outside its window": 3},
        unknown_properties=["LoyaltyTier"],
    )
    failed = [Failure(portfolio="north", error="answered 401")]
    text = summary(
        Report(
            **counts, complete=False, interrupted=False, sink="null:", portfolios={"north": portfolio}, failed=failed
        )
    )
    for part in (
        "incomplete: 5 new orders",
        "3 orders outside its window",
        "LoyaltyTier",
        "answered 401",
        "Run the same",
    ):
        assert part in text


def test_tables_align_and_pipe() -> None:
    assert table(["name", "rows"], [["a", "5"], ["long", "1,000"]]) == "name   rows\na         5\nlong  1,000"
