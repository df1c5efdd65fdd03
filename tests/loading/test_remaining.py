"""What is left to walk: with what is covered and what goes on it is the whole target; repeats are marked as that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.loading.remaining import divide, remaining, under_way, write_down
from fetcher.planning.checkpoint import Checkpoint, Position, owners_of
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import ServiceRef, Shard, Target
from fetcher.planning.windows import Window, Windows, union
from tests.sets import intersection

DAYS = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(10)]
TARGET = Target(window=Window(DAYS[0], DAYS[8]), settled=DAYS[8], open_ended=True, months=3, shard_by="portfolio")
SERVICES = [ServiceRef("e", id_) for id_ in ("a", "b", "C")]
HALF = Window(DAYS[0], DAYS[4])
REST = Window(DAYS[4], DAYS[8])


def checkpoint(states: list[str] | None = None, records: dict[str, str] | None = None) -> Checkpoint:
    return Checkpoint("north", states, records or {}, owners_of(records or {}))


def shard(ids: str, window: Window = HALF, **options: Any) -> Shard:
    return Shard(service_ids=tuple(ids), window=window, settled=window.end, **options)


def walks(of: Checkpoint, services: list[ServiceRef] = SERVICES, **options: Any) -> tuple[list[Shard], list[Shard]]:
    repeats = Repeats(of)
    repeats.delivered(options.pop("again", ()))
    shards, going_on = remaining(of, services, TARGET, repeats, by_states=options.pop("by_states", False), **options)
    return shards, [shard for shard, _ in going_on]


def of_service(shards: list[Shard], id_: str) -> Windows:
    return union(shard.window for shard in shards if id_ in shard.service_ids)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "C", "ab", "bC", "abC", "abd"]),
            st.integers(0, 7),
            st.integers(1, 8),
            st.booleans(),
        ),
        max_size=5,
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_new_walks_old_ones_and_what_is_covered_make_up_the_target_of_every_service(
    earlier: list[tuple[str, int, int, bool]], again: bool
) -> None:
    records = checkpoint()
    for ids, start, days, finished in earlier:
        one = shard(ids, Window(DAYS[start], DAYS[min(start + days, 8)]))
        if finished:
            records.finish(one)
        else:
            records.advance(one, Position("cursor", 10))
    shards, going_on = walks(records, again={"a"} if again else ())
    covered = records.covered()
    for service in SERVICES:
        windows = [*of_service(shards, service.id), *of_service(going_on, service.id)]
        assert union((*windows, *covered.get(service.id.lower(), ()))) == (TARGET.window,)
        assert not intersection(of_service(shards, service.id), of_service(going_on, service.id))
        if again and service.id == "a":
            assert all(one.repeats for one in [*shards, *going_on] if "a" in one.service_ids)
    # It does not matter whether the walks are written down before they go on.
    write_down(records, SERVICES, [(one, Position("cursor", 10)) for one in going_on])
    assert {(one.service_ids, one.window) for one in walks(records)[0]} == {
        (one.service_ids, one.window) for one in shards
    }


def test_what_is_new_is_no_repeat_and_what_another_portfolio_has_loaded_is_one() -> None:
    assert [one.repeats for one in walks(checkpoint())[0]] == [False]
    other = Checkpoint("south", None, {}, {})
    other.finish(shard("a"))
    records = {name: text for name, text in other.take_changes().items() if text is not None}
    assert [one.repeats for one in walks(checkpoint(records=records), SERVICES[:1])[0]] == [True]
    assert [one.repeats for one in walks(checkpoint(records=records), SERVICES[1:])[0]] == [False]


def test_after_everything_was_forgotten_whatever_comes_is_a_repeat() -> None:
    records = checkpoint()
    records.finish(shard("abC"))
    records.forget()
    assert [(one.window, one.repeats) for one in walks(records)[0]] == [(TARGET.window, True)]


def test_a_service_that_was_away_while_the_sink_forgot_repeats_what_was_forgotten() -> None:
    records = checkpoint()
    records.finish(shard("a", HALF))
    records.finish(shard("b", Window(DAYS[0], DAYS[6])))
    records.note_forgotten(DAYS[6])
    assert {one.service_ids: one.repeats for one in walks(records, SERVICES[:2])[0]} == {("a",): True, ("b",): False}


def test_walks_wait_for_services_that_are_not_there_today_and_know_the_others_in_any_case() -> None:
    records = checkpoint()
    records.advance(shard("AbX"), Position("cursor", 7))
    going_on, waiting = under_way(records, SERVICES)
    assert [(one.service_ids, position.cursor) for one, position in going_on] == [(("a", "b"), "cursor")]
    assert [(one.service_ids, position.cursor) for one, position in waiting] == [(("X",), "cursor")]
    write_down(records, SERVICES, going_on)
    assert {one.service_ids for one, _ in records.begun()} == {("a", "b"), ("X",)}


def test_walks_that_are_divided_go_on_alone_from_where_they_were() -> None:
    records = checkpoint()
    records.advance(shard("abC"), Position("first", 7))
    records.advance(shard("a", REST), Position("second", 7))
    divide(records, {"a"})
    assert {(one.service_ids, one.window, position.cursor) for one, position in records.begun()} == {
        (("a",), HALF, "first"),
        (("b", "C"), HALF, "first"),
        (("a",), REST, "second"),
    }


@pytest.mark.parametrize(
    ("since", "again", "filtered"),
    [
        (None, (), {"a": False, "b": True}),  # a version up to 1.0 did not note when it began
        (DAYS[8], (), {"a": True, "b": True}),
        (DAYS[6], (), {"a": False, "b": True}),  # what was read may have changed to another state since
        (DAYS[8], ("a", "b"), {"a": False, "b": False}),
    ],
)
def test_other_states_are_left_out_by_the_platform_where_nothing_was_read_that_could_have_changed(
    since: datetime | None, again: tuple[str, ...], filtered: dict[str, bool]
) -> None:
    records = checkpoint(["Confirmed"])
    records.finish(shard("a", HALF))
    if since is not None:
        records.note_since(since)
    shards, _ = walks(records, SERVICES[:2], again=again, by_states=True)
    assert {id_: one.filtered for one in shards for id_ in one.service_ids} == filtered
    assert not any(one.filtered for one in walks(records, SERVICES[:2], again=again)[0])
