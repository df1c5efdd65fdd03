"""What may come twice: told by memory where it comes again in every run, by reading where it seldom does."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.planning.checkpoint import Checkpoint, Position, owners_of
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import Shard, Target
from fetcher.planning.sifting import time_key
from fetcher.planning.windows import Window

DAYS = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(30)]
TARGET = Target(window=Window(DAYS[0], DAYS[9]), settled=DAYS[8], open_ended=True, months=3, shard_by="auto")


def fresh(states: list[str] | None = None, records: dict[str, str] | None = None) -> Checkpoint:
    return Checkpoint("north", states, records or {}, owners_of(records or {}))


def shard(ids: Iterable[str], first: int = 0, last: int = 4, settled: int = 8, **options: Any) -> Shard:
    window = Window(DAYS[first], DAYS[last])
    return Shard(service_ids=tuple(ids), window=window, settled=DAYS[settled], **options)


# Told by memory


def test_it_is_remembered_from_where_the_run_settles_or_from_the_earliest_walk_that_goes_on() -> None:
    repeats = Repeats(fresh())
    repeats.remember_from(DAYS[8], [])
    assert repeats.remembered_from == "2024-01-09T00:00:00"
    repeats.remember_from(DAYS[8], [shard("a", settled=6), shard("b", settled=7)])
    assert repeats.remembered_from == time_key(DAYS[6])


def test_where_the_clock_was_ahead_it_is_remembered_from_what_it_should_have_been_and_never_later_again() -> None:
    repeats = Repeats(fresh())
    repeats.remember_from(DAYS[8], [])
    repeats.clock_was_ahead(DAYS[5])
    assert repeats.remembered_from == time_key(DAYS[5])
    repeats.remember_from(DAYS[8], [])  # what other portfolios leave, by the target as it was thought to be
    assert repeats.remembered_from == time_key(DAYS[5])
    repeats.remember_from(DAYS[8], [shard("a", settled=4)])
    assert repeats.remembered_from == time_key(DAYS[4])


# Told by reading


def test_of_a_service_that_is_known_to_nobody_nothing_may_come_twice() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a"))
    repeats = Repeats(checkpoint)
    assert repeats.of_services("ab") == set()
    assert repeats.of_time({"a": (Window(DAYS[0], DAYS[4]),), "b": ()}, set(), TARGET) == {}
    assert repeats.marked([shard("a")]) == [shard("a")]


def _dropped(checkpoint: Checkpoint) -> None:
    checkpoint.forget()


def _cut(checkpoint: Checkpoint) -> None:
    checkpoint.cut(DAYS[3])


@pytest.mark.parametrize("what", [_dropped, _cut])
def test_after_progress_was_dropped_or_cut_whatever_comes_may_be_there(what: Any) -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a"))
    what(checkpoint)
    repeats = Repeats(checkpoint)
    assert repeats.of_services("ab") == {"a", "b"}
    assert repeats.marked([shard("a")]) == [shard("a", repeats=True)]
    checkpoint.whole()
    assert repeats.of_services("ab") == set()


def test_of_a_service_that_was_read_as_anothers_any_order_may_be_there() -> None:
    other = Checkpoint("south", None, {}, {})
    other.advance(shard("A"), Position("cursor", 10))
    records = {name: text for name, text in other.take_changes().items() if text is not None}
    assert Repeats(fresh(records=records)).of_services("ab") == {"a"}
    repeats = Repeats(fresh())
    repeats.delivered("b")
    repeats.delivered("c")
    assert repeats.of_services("abc") == {"b", "c"}
    assert repeats.of_time({"b": (), "a": ()}, {"b"}, TARGET) == {"b": (TARGET.window,)}


def test_a_run_that_is_to_read_everything_says_so_of_every_service_before_its_progress_is_dropped() -> None:
    assert Repeats(fresh(), full=True).of_services("ab") == {"a", "b"}


def test_of_a_service_that_was_away_what_was_forgotten_meanwhile_may_be_there() -> None:
    checkpoint = fresh()
    checkpoint.note_forgotten(DAYS[6])
    covered = {"a": (Window(DAYS[0], DAYS[4]),), "b": (Window(DAYS[0], DAYS[6]),), "new": ()}
    assert Repeats(checkpoint).of_time(covered, set(), TARGET) == {"a": (Window(DAYS[4], DAYS[6]),)}


# Asked for by its id


def test_beside_the_walks_comes_what_is_covered_or_remembered() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("A"))
    repeats = Repeats(checkpoint)
    repeats.remember_from(DAYS[8], [])
    found = repeats.may_come("ab")
    assert [(window.start, window.end) for window in found["a"]][:1] == [(DAYS[0], DAYS[4])]
    for service, times in (("a", [0, 3, 8, 20]), ("b", [8, 20])):
        within = [day for day in (0, 3, 4, 7, 8, 20) if any(w.start <= DAYS[day] < w.end for w in found[service])]
        assert within == times


# Forgotten


def test_what_no_walk_brings_again_is_forgotten_at_the_end() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a", last=6))
    checkpoint.finish(shard("B", last=3))
    for services, forgotten in (("ab", 3), ("a", 6), ("z", None)):
        repeats = Repeats(checkpoint)
        assert repeats.forget_before is None
        repeats.forget(set(services), TARGET)
        assert repeats.forget_before == (None if forgotten is None else time_key(DAYS[forgotten]))
    assert checkpoint.forgot == DAYS[6]


def test_what_an_open_walk_reaches_into_is_not_forgotten() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a", last=6))
    checkpoint.advance(shard("Ab", first=6, last=7, settled=1), Position("cursor", 50))
    repeats = Repeats(checkpoint)
    repeats.forget({"a"}, TARGET)
    assert repeats.forget_before == time_key(DAYS[1])


def test_a_service_that_stays_behind_is_remembered_for_a_week_and_no_longer() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a", last=2))
    repeats = Repeats(checkpoint)
    repeats.forget({"a"}, Target(window=TARGET.window, settled=DAYS[20], open_ended=True, months=3, shard_by="auto"))
    assert repeats.forget_before == time_key(DAYS[13])
    assert checkpoint.forgot == DAYS[13]
    assert Repeats(checkpoint).of_time({"a": (Window(DAYS[0], DAYS[2]),)}, set(), TARGET) == {
        "a": (Window(DAYS[2], DAYS[13]),)
    }


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "ab"]), st.integers(1, 8), st.booleans()), min_size=1, max_size=6),
    st.integers(8, 20),
)
@settings(deadline=None)
def test_what_is_read_again_is_remembered_or_told_by_reading(walks: list[tuple[str, int, bool]], day: int) -> None:
    """Whatever a run leaves behind: of each service, all from its first gap on."""
    checkpoint = fresh()
    for ids, last, finished in walks:
        one = shard(ids, last=last, settled=last)
        checkpoint.finish(one) if finished else checkpoint.advance(one, Position("cursor", 10))
    run = Target(window=Window(DAYS[0], DAYS[day]), settled=DAYS[day], open_ended=True, months=3, shard_by="auto")
    ended = Repeats(checkpoint)
    ended.forget({"a", "b"}, run)
    covered = {service: checkpoint.covered().get(service, ()) for service in "ab"}
    by_reading = Repeats(checkpoint).of_time(covered, set(), run)
    for service, windows in covered.items():
        if windows and ended.forget_before is not None and time_key(gap := windows[0].end) < ended.forget_before:
            assert by_reading[service] == (Window(gap, checkpoint.forgot or gap),)
        else:
            assert service not in by_reading
