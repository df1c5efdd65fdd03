"""What a person sees: honest, and in words."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from io import StringIO

import anyio
import pytest
from rich.console import Console

from fetcher.report import Failure, PortfolioReport, Report, Tally
from fetcher.terminal.view import ConsoleHandler, Speed, View, duration, failure_line, summary, table
from tests.virtual import run_virtually


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
        kept_aside=4,
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


# While it lasts


def shown(tallies: list[Tally], seconds: float, *, terminal: bool = False, quiet: bool = False) -> tuple[str, str]:
    """What is shown of tallies that do not change, while it lasts, and once it is over."""
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)

    async def watch() -> str:
        async with View(lambda: tallies, lambda: console, quiet=quiet):
            await anyio.sleep(seconds)
            return out.getvalue()

    return run_virtually(watch), out.getvalue()


def loading(**changes: object) -> Tally:
    values = {"portfolio": "north", "phase": "loading", "shards_planned": 40, "budget_used": 7, "budget_limit": 200}
    return Tally(**{**values, **changes})


def test_a_log_has_a_line_at_once_and_one_every_ten_seconds() -> None:
    text, _ = shown([loading(orders=1200, shards_done=2)], 25)
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[0] == "north: loading, 1,200 orders (0/s), shards 2/40, budget 7/200"
    assert "left" not in text


def test_a_log_has_a_line_for_whatever_holds_it_up_and_not_for_each_second_of_it() -> None:
    tally = loading()

    def waiting() -> list[Tally]:
        now = anyio.current_time() - 1000
        tally.note = f"paused by the platform for {9 - now:.0f} s" if 2 < now < 8 else None
        return [tally]

    out = StringIO()

    async def watch() -> None:
        async with View(waiting, lambda: Console(file=out, force_terminal=False, width=200), quiet=False):
            await anyio.sleep(9)

    run_virtually(watch)
    assert ["paused" in line for line in out.getvalue().splitlines()] == [False, True, False]


def test_whoever_is_done_is_told_of_once() -> None:
    tallies = [loading(phase="done"), loading(portfolio="south", phase="failed"), loading(portfolio="west")]
    text, _ = shown(tallies, 45)
    assert [text.count(name) for name in ("north", "south", "west")] == [1, 1, 5]


def test_a_name_is_no_markup_and_is_not_wrapped() -> None:
    name = "[red]" + "x" * 150 + "[/red]"
    text, _ = shown([loading(portfolio=name)], 1)
    assert text.splitlines()[0].startswith(f"{name}: loading")


def test_a_terminal_has_a_table_which_goes_when_it_is_over() -> None:
    north = loading(orders=1200, shards_done=20, note="paused by the platform for 3 s")
    south = loading(portfolio="south", orders=800, shards_done=20, failed=[Failure(portfolio="south", error="no")])
    text, after = shown([north, south], 8, terminal=True)
    last = text.rpartition("portfolio")[2]
    for part in ("north", "20/40", "7/200", "paused by the platform", "1 failed", "~7.8 s", "all", "2,000"):
        assert part in last, part
    assert "\x1b[2K" in after.removeprefix(text)  # its lines are cleared


def test_a_single_portfolio_needs_no_sum() -> None:
    text, _ = shown([loading()], 1, terminal=True)
    assert "all" not in text.replace("loading", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_silent(terminal: bool) -> None:
    assert shown([loading()], 60, terminal=terminal, quiet=True) == ("", "")


def test_an_error_within_comes_out_as_it_is_and_leaves_the_terminal_in_order() -> None:
    out = StringIO()

    async def watch() -> None:
        async with View(lambda: [loading()], lambda: Console(file=out, force_terminal=True), quiet=False):
            await anyio.sleep(1)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtually(watch)
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue().rpartition("portfolio")[2]


def test_a_log_line_is_the_message_and_no_markup() -> None:
    out = StringIO()
    handler = ConsoleHandler(lambda: Console(file=out, width=20))
    text = "north: [bold] 12 services are loaded by another portfolio"
    handler.emit(logging.LogRecord("fetcher", logging.WARNING, "", 0, "north: %s", (text.partition(" ")[2],), None))
    assert out.getvalue() == f"{text}\n"
