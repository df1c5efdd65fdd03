"""The platform's clock: late is safe, ahead is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.connector.clock import PlatformClock, parse_http_date

TRUTH = datetime(2026, 3, 31, 12, 0, 0, 250_000, tzinfo=UTC)
HOURS = 3600.0


class Machine:
    """Time at the platform, at us, and in our ticks; answers of machines whose clocks are wrong by so much."""

    def __init__(self, ours_ahead: float = 0.0) -> None:
        self.passed = 0.0
        self.clock = PlatformClock(lambda: 1000.0 + self.passed, lambda: self.truth().timestamp() + ours_ahead)

    def truth(self) -> datetime:
        return TRUTH + timedelta(seconds=self.passed)

    def answer(self, wrong_by: float = 0.0, there: float = 0.1, back: float = 0.1) -> datetime:
        sent = 1000.0 + self.passed
        self.passed += there
        date = formatdate(self.truth().timestamp() + wrong_by, usegmt=True)
        self.passed += back
        self.clock.observe(date, sent, 1000.0 + self.passed)
        return self.clock.now()

    def late(self) -> float:
        """By how many seconds the clock is late; negative: it is ahead."""
        return (self.truth() - self.clock.now()).total_seconds()


def test_it_is_late_by_less_than_a_second_and_an_answer_s_way() -> None:
    machine = Machine()
    machine.answer()
    assert 0 <= machine.late() <= 1.1


@pytest.mark.parametrize("date", ["Fri, 31 Dec 9999 23:59:59 GMT", "Wed, 01 Jan 9000 00:00:00 GMT"])
def test_one_at_the_end_of_all_times_tells_none(date: str) -> None:
    machine = Machine()
    machine.clock.observe(date)
    assert not machine.clock.known
    machine.answer()
    machine.clock.observe(date)
    assert machine.clock.latest() - machine.truth() < timedelta(seconds=2)
    assert 0 <= machine.late() <= 1.1


@pytest.mark.parametrize("ahead", [2 * HOURS, 5.0, 30 * 24 * HOURS, 366 * 24 * HOURS])
@pytest.mark.parametrize("order", ["wrong right", "right wrong", "wrong wrong right", "right wrong right wrong"])
def test_one_that_is_ahead_is_contradicted_by_any_other_whichever_comes_first(ahead: float, order: str) -> None:
    machine = Machine()
    for kind in order.split():
        machine.answer(ahead if kind == "wrong" else 0.0)
        machine.passed += 0.5
    assert 0 <= machine.late() <= 1.5


def test_one_machine_of_several_that_is_ahead_all_the_time_never_counts() -> None:
    machine = Machine()
    for number in range(100):
        machine.answer(2 * HOURS if number % 3 == 0 else 0.0)
        if number:
            assert 0 <= machine.late() <= 1.1


@pytest.mark.parametrize("ours", [-5 * HOURS, 5 * HOURS, -400 * 24 * HOURS, 400 * 24 * HOURS])
def test_ours_may_be_wrong_by_whatever_it_likes(ours: float) -> None:
    machine = Machine(ours)
    for _ in range(3):
        machine.answer()
        assert 0 <= machine.late() <= 1.1


def test_what_time_it_was_may_turn_out_to_have_been_earlier() -> None:
    machine = Machine()
    machine.answer(2 * HOURS)
    began, tick = machine.clock.now(), 1000.0 + machine.passed
    truth = machine.truth()
    machine.passed += 100
    machine.answer()
    assert began > truth + timedelta(hours=1)
    assert truth - timedelta(seconds=1.2) <= machine.clock.at(tick) <= truth


def test_a_clock_that_goes_back_makes_it_late_and_never_ahead() -> None:
    machine = Machine()
    machine.answer()
    machine.answer(-2 * HOURS)
    assert machine.late() == pytest.approx(2 * HOURS, abs=1.2)
    machine.answer()
    assert machine.late() >= 0


@pytest.mark.parametrize("order", ["old right", "right old", "old old right old"])
def test_a_date_of_long_ago_is_a_mistake(order: str) -> None:
    machine = Machine()
    for kind in order.split():
        machine.answer(-56 * 365 * 24 * HOURS if kind == "old" else 0.0)
    assert 0 <= machine.late() <= 1.5


def test_where_all_are_of_long_ago_they_are_believed() -> None:
    machine = Machine()
    machine.answer(-30 * 365 * 24 * HOURS)
    machine.answer(-30 * 365 * 24 * HOURS)
    assert machine.clock.known
    assert machine.late() == pytest.approx(30 * 365 * 24 * HOURS, abs=1.2)


def test_whoever_reads_on_reads_to_the_latest_that_anybody_told() -> None:
    machine = Machine()
    machine.answer()
    machine.answer(-50 * HOURS)
    assert machine.late() > 49 * HOURS
    assert 0 <= (machine.truth() - machine.clock.latest()).total_seconds() <= 1.5


def test_an_answer_that_took_long_contradicts_nobody() -> None:
    machine = Machine()
    machine.answer()
    machine.answer(there=0.1, back=59)
    machine.answer(there=59, back=0.1)
    assert 0 <= machine.late() <= 1.1


@pytest.mark.parametrize("date", [None, "", "soon", "Tue, 99 Nov 2026 10:00:00 GMT", "0", "\x00"])
def test_a_date_that_is_absent_or_cannot_be_read_tells_nothing(date: str | None) -> None:
    machine = Machine(ours_ahead=7.0)
    machine.clock.observe(date)
    assert not machine.clock.known
    assert machine.late() == pytest.approx(-7.0)  # ours, as there is no other
    machine.answer()
    machine.clock.observe(date)
    assert 0 <= machine.late() <= 1.1


@given(
    answers=st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 2 * HOURS, 3.0, -3.0, -HOURS]), st.floats(0, 5), st.floats(0, 5)),
        min_size=1,
        max_size=20,
    )
)
def test_it_is_never_ahead_of_what_the_earliest_answer_allows_and_stamps_only_go_forward(
    answers: list[tuple[float, float, float]],
) -> None:
    machine = Machine()
    last = datetime.min.replace(tzinfo=UTC)
    slowest = 0.0
    earliest = 1e9
    for wrong_by, there, back in answers:
        machine.answer(wrong_by, there, back)
        earliest, slowest = min(earliest, wrong_by), max(slowest, there + back)
        assert machine.late() >= -(earliest + 1.0 + slowest)
        assert machine.clock.stamp() > last
        last = machine.clock.stamp()


def test_machines_that_differ_by_a_second_are_all_believed() -> None:
    machine = Machine()
    for wrong_by in (0.0, 0.6, -0.4, 0.3):
        machine.answer(wrong_by)
        assert -0.6 <= machine.late() <= 2


def test_http_dates_of_other_forms_and_zones() -> None:
    at = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
    assert parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT") == at
    assert parse_http_date("Sun Nov  6 08:49:37 1994") == at
    assert parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT") == at
    assert parse_http_date("Sun, 06 Nov 1994 10:49:37 +0200") == at
    assert parse_http_date("Fri, 31 Dec 9999 23:59:59 -2359") is None
