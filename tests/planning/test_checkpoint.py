"""Records say what was accepted, and nothing else: whatever happened before, and whenever the process dies."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fetcher.connector.operations import MAX_IDS
from fetcher.planning.checkpoint import (
    AsideRecord,
    Checkpoint,
    Position,
    RunRecord,
    describe,
    owners_of,
    selection_key,
)
from fetcher.planning.shards import ServiceRef, Shard, split_services, split_window
from fetcher.planning.windows import Window, Windows, union
from fetcher.report import Failure
from fetcher.sinks.base import note_changes

DAYS = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(9)]
SERVICES = ("a", "B", "c", "D", "e")  # a platform may write ids in capitals
ASIDE = AsideRecord(id="X", reason="Number should be text, found null", service_id="B", updated_utc="2024")

BATCHES = st.sampled_from([ids for size in (1, 2, 5) for ids in combinations(SERVICES, size)])
WINDOWS = st.sampled_from([Window(DAYS[first], DAYS[last]) for first, last in combinations(range(8), 2)])
SHARDS = st.builds(
    lambda ids, window, settled, open_ended, repeats, filtered: Shard(
        service_ids=tuple(sorted(ids)),
        window=window,
        settled=DAYS[settled],
        open_ended=open_ended,
        repeats=repeats,
        filtered=filtered,
    ),
    BATCHES,
    WINDOWS,
    st.integers(0, 8),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
POSITIONS = st.builds(Position, st.sampled_from([None, "cursor-1", "cursor-2"]), st.sampled_from([50, 1000]))


class Accepted(msgspec.Struct):
    """What a portfolio's load has reached, told in the plainest way."""

    covered: dict[str, Windows] = {}
    begun: dict[str, tuple[Shard, Position]] = {}
    bad: dict[str, datetime] = {}
    aside: dict[str, AsideRecord] = {}
    again: bool = False
    since: datetime | None = None
    forgot: datetime | None = None
    run: RunRecord | None = None

    def view(self) -> dict[str, Any]:
        return {
            **msgspec.structs.asdict(self),
            "covered": {service: windows for service, windows in self.covered.items() if windows},
            "begun": sorted(map(_plain, self.begun.values())),
        }


def _plain(begun: tuple[Shard, Position]) -> list[str]:
    shard, position = begun
    # Whose enterprise it is follows the batch, and is for people to read.
    return [repr(msgspec.structs.replace(shard, enterprise_id=None)), repr(position)]


def view(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "covered": checkpoint.covered(),
        "begun": sorted(map(_plain, checkpoint.begun())),
        "bad": checkpoint.bad_services(),
        "aside": dict(checkpoint.aside()),
        "again": checkpoint.again,
        "since": checkpoint.since,
        "forgot": checkpoint.forgot,
        "run": checkpoint.last_run,
    }


class LifeOfRecords(RuleBasedStateMachine):
    """A load goes on, commits, dies and is taken up again, in any order."""

    @initialize(states=st.sampled_from([None, ["Canceled", "Started"]]))
    def begin(self, states: list[str] | None) -> None:
        self.states = states
        other = "none" if states is None else "all"
        self.others = {
            "north-2/run": "{}",
            "north-2/all/bad/a": '"2024-01-01T00:00:00Z"',
            f"north/{other}/bad/a": '"2024-01-01T00:00:00Z"',
            f"north/{other}/open/x": "no business of ours",
        }
        self.records = dict(self.others)
        self.durable = Accepted()
        self.reopen()

    def open(self) -> Checkpoint:
        return Checkpoint("north", self.states, self.records, owners_of(self.records))

    def reopen(self) -> None:
        self.checkpoint = self.open()
        self.accepted = deepcopy(self.durable)

    @rule(shard=SHARDS, position=POSITIONS)
    def a_page_is_accepted(self, shard: Shard, position: Position) -> None:
        self.checkpoint.advance(shard, position)
        if position.cursor is not None or shard.repeats:
            self.accepted.begun[shard.key] = shard, position

    @precondition(lambda self: self.accepted.begun)
    @rule(data=st.data(), position=POSITIONS)
    def another_page_is_accepted(self, data: st.DataObject, position: Position) -> None:
        shard, _ = self.accepted.begun[data.draw(st.sampled_from(sorted(self.accepted.begun)))]
        self.a_page_is_accepted(shard, position)

    @rule(shard=SHARDS)
    def a_walk_ends(self, shard: Shard) -> None:
        self.checkpoint.finish(shard)
        self.accepted.begun.pop(shard.key, None)
        # What a batch had of the services it covers is in no other batch, so it is by services that it counts.
        for service in map(str.lower, shard.service_ids):
            self.accepted.covered[service] = union((*self.accepted.covered.get(service, ()), *shard.stands_for))

    @precondition(lambda self: self.accepted.begun)
    @rule(data=st.data())
    def a_walk_that_was_begun_ends(self, data: st.DataObject) -> None:
        shard, _ = self.accepted.begun[data.draw(st.sampled_from(sorted(self.accepted.begun)))]
        self.a_walk_ends(shard)

    @precondition(lambda self: self.accepted.begun)
    @rule(data=st.data(), split=st.sampled_from([split_window, split_services]))
    def a_walk_is_split(self, data: st.DataObject, split: Any) -> None:
        shard, position = self.accepted.begun[data.draw(st.sampled_from(sorted(self.accepted.begun)))]
        parts = split(shard)
        if parts is None:
            return
        self.checkpoint.drop(shard)
        del self.accepted.begun[shard.key]
        for part in parts:
            self.a_page_is_accepted(part, position)

    @rule(service=st.sampled_from(SERVICES), until=st.sampled_from(DAYS), good=st.booleans())
    def a_service_is_refused_or_taken(self, service: str, until: datetime, good: bool) -> None:
        if good:
            self.checkpoint.mark_good(service)
            self.accepted.bad.pop(service, None)
        else:
            self.checkpoint.mark_bad(service, until)
            self.accepted.bad[service] = until

    @rule(key=st.sampled_from(["x", "unreadable-1", "with/a slash"]), mended=st.booleans())
    def an_order_is_kept_aside_or_mended(self, key: str, mended: bool) -> None:
        if mended:
            self.checkpoint.take_back(key)
            self.accepted.aside.pop(key, None)
        else:
            self.checkpoint.keep_aside(key, ASIDE)
            self.accepted.aside[key] = ASIDE

    @rule(day=st.sampled_from(DAYS))
    def the_sink_forgets(self, day: datetime) -> None:
        self.checkpoint.note_forgotten(day)
        self.accepted.forgot = max(self.accepted.forgot or day, day)

    @rule(day=st.sampled_from(DAYS), outcome=st.sampled_from(["whole", "partly"]))
    def a_run_is_noted(self, day: datetime, outcome: str) -> None:
        failed = (Failure(portfolio="north", services=("B",), window=(DAYS[0], day), error="no. Wait"),)
        run = RunRecord(selection=selection_key(self.states), began=day, outcome=outcome, watermark=day, failed=failed)
        self.checkpoint.record_run(run)
        self.checkpoint.note_since(day)
        self.accepted.run, self.accepted.since = run, day

    @rule()
    def everything_is_to_be_read_again(self) -> None:
        self.checkpoint.forget()
        self.accepted.covered, self.accepted.begun, self.accepted.bad = {}, {}, {}
        self.accepted.again = True

    @rule()
    def everything_is_covered(self) -> None:
        self.checkpoint.whole()
        self.accepted.again = False

    @rule(data=st.data(), known=st.sets(st.sampled_from(SERVICES)))
    def a_run_groups_its_services_anew(self, data: st.DataObject, known: set[str]) -> None:
        keys = sorted(self.accepted.begun)
        kept = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
        shards = [self.accepted.begun[key][0] for key in sorted(kept)]  # a set's order is another one each time
        self.checkpoint.regroup([ServiceRef("hotel", service) for service in known], shards)
        self.accepted.begun = {key: self.accepted.begun[key] for key in kept}
        # Ids of services that are not there today are only known in small letters, which is as good.

    @rule()
    def a_batch_is_committed(self) -> None:
        note_changes(self.records, self.checkpoint.take_changes())
        self.durable = deepcopy(self.accepted)

    @rule()
    def the_process_dies(self) -> None:
        self.reopen()

    @invariant()
    def the_checkpoint_says_what_was_accepted(self) -> None:
        if hasattr(self, "checkpoint"):
            assert view(self.checkpoint) == self.accepted.view()

    @invariant()
    def the_records_say_what_was_committed_and_no_more(self) -> None:
        if hasattr(self, "checkpoint"):
            assert view(self.open()) == self.durable.view()
            assert {name: self.records.get(name) for name in self.others} == self.others


LifeOfRecords.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestLifeOfRecords = LifeOfRecords.TestCase


def fresh(records: dict[str, str] | None = None, states: list[str] | None = None) -> Checkpoint:
    return Checkpoint("north", states, records or {}, owners_of(records or {}))


def committed(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: text for name, text in checkpoint.take_changes().items() if text is not None}


def shard(*services: str, first: int = 0, last: int = 4, **options: Any) -> Shard:
    window = Window(DAYS[first], DAYS[last])
    return Shard(service_ids=services, window=window, **{"settled": DAYS[8], **options})


def test_a_walk_of_which_nothing_was_committed_is_as_if_it_had_not_begun() -> None:
    checkpoint = fresh()
    checkpoint.advance(shard("a"), Position(None, 1000))
    assert checkpoint.take_changes() == {}
    assert checkpoint.empty


def test_a_walk_stands_for_no_instant_at_which_orders_may_still_turn_up() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a", settled=DAYS[2]))
    checkpoint.finish(shard("b", settled=DAYS[0]))  # all of it is too recent
    assert checkpoint.covered() == {"a": (Window(DAYS[0], DAYS[2]),)}


def test_changes_are_given_out_once_with_what_they_stand_for() -> None:
    checkpoint = fresh()
    checkpoint.advance(shard("a"), Position("cursor", 1000))
    first = checkpoint.take_changes()
    checkpoint.finish(shard("a"))
    second = checkpoint.take_changes()
    assert {name.split("/")[2] for name in first} == {"batch", "open"}
    assert {name.split("/")[2]: text is None for name, text in second.items()} == {"open": True, "done": False}
    assert checkpoint.take_changes() == {}


def test_records_follow_services_and_open_walks_and_not_history() -> None:
    checkpoint = fresh()
    services = [ServiceRef("hotel", f"{number:04}") for number in range(MAX_IDS + 5)]
    for number in range(300):  # many runs, each with batches of its own
        ids = tuple(one.id for one in services[number : number + 40])
        checkpoint.finish(shard(*ids, first=number % 4, last=number % 4 + 1))
    covered = checkpoint.covered()
    checkpoint.regroup(services, [])
    assert checkpoint.covered() == covered
    records = committed(checkpoint)
    checkpoint = fresh(records)
    assert checkpoint.covered() == covered
    for day in range(4):
        for first in range(0, len(services), MAX_IDS):
            checkpoint.finish(shard(*(one.id for one in services[first : first + MAX_IDS]), first=day, last=day + 1))
    checkpoint.regroup(services, [])
    assert sum(name.split("/")[2] == "done" for name in _after(records, checkpoint)) == 2  # alike, at most 1000 each


def test_services_that_were_walked_together_and_alone_keep_all_that_each_has() -> None:
    checkpoint = fresh()
    checkpoint.finish(shard("a", first=0, last=2))
    checkpoint.finish(shard("a", "c", first=2, last=4))
    covered = checkpoint.covered()
    checkpoint.regroup([ServiceRef("hotel", "a"), ServiceRef("hotel", "c")], [])
    assert checkpoint.covered() == fresh(committed(checkpoint)).covered() == covered


def _after(records: dict[str, str], checkpoint: Checkpoint) -> dict[str, str]:
    changed = {**records, **checkpoint.take_changes()}
    return {name: text for name, text in changed.items() if text is not None}


def test_a_service_that_somebody_else_walked_is_known_whatever_its_case() -> None:
    before = Checkpoint("south", None, {}, {})
    before.advance(shard("AB"), Position("cursor", 50))
    records = committed(before)
    assert fresh(records).elsewhere("ab")
    assert not fresh(records).elsewhere("cd")
    assert not Checkpoint("south", None, records, owners_of(records)).elsewhere("ab")
    assert Checkpoint("south", ["Canceled"], records, owners_of(records)).elsewhere("ab")


def test_another_filter_is_another_selection_whose_watermark_is_its_own() -> None:
    run = RunRecord(selection="all", began=DAYS[0], ended=DAYS[1], outcome="whole", watermark=DAYS[1])
    checkpoint = fresh()
    checkpoint.finish(shard("a"))
    checkpoint.record_run(run)
    records = committed(checkpoint)
    assert fresh(records).watermark == DAYS[1]
    other = fresh(records, ["Canceled"])
    assert (other.watermark, other.empty, other.other_selections) == (None, True, True)
    assert not fresh({**records, "north-2/run": "{}", "north-2/all/bad/a": "{}"}).other_selections


@given(st.lists(st.sampled_from(["Confirmed", "Canceled", "Started"]), min_size=1))
def test_a_selection_is_named_alike_in_whatever_order_its_states_are_written(states: list[str]) -> None:
    assert selection_key(states) == selection_key(sorted(states, reverse=True))
    assert selection_key(states) != selection_key(None)


def test_what_is_kept_aside_outlives_a_reading_of_everything() -> None:
    checkpoint = fresh()
    checkpoint.keep_aside("x", ASIDE)
    checkpoint.finish(shard("a"))
    checkpoint.forget()
    assert (checkpoint.covered(), dict(checkpoint.aside())) == ({}, {"x": ASIDE})


def test_a_status_is_told_of_each_portfolio_by_name() -> None:
    records: dict[str, str] = {}
    for name in ("south", "north"):
        checkpoint = Checkpoint(name, None, records, {})
        checkpoint.advance(shard("a"), Position("cursor", 50))
        checkpoint.keep_aside("x", ASIDE)
        if name == "north":
            checkpoint.record_run(
                RunRecord(selection="all", began=DAYS[0], ended=DAYS[1], outcome="whole", watermark=DAYS[1])
            )
        records |= committed(checkpoint)
    north, south = describe(records)
    assert (north.portfolio, north.watermark, north.last_run, north.shards_open) == ("north", DAYS[1], "whole", 1)
    assert (south.portfolio, south.watermark, south.last_run, south.kept_aside) == (
        "south",
        None,
        "running or killed",
        1,
    )


@pytest.mark.parametrize("name", ["open", "batch", "run", "aside", "all"])
def test_a_portfolio_may_be_called_like_a_kind_of_record(name: str) -> None:
    checkpoint = Checkpoint(name, None, {}, {})
    checkpoint.advance(shard("a"), Position("cursor", 50))
    checkpoint.mark_bad("b", DAYS[3])
    records = committed(checkpoint)
    again = Checkpoint(name, None, records, owners_of(records))
    assert view(again) == view(checkpoint)
    assert owners_of(records) == {"a": {f"{name}/all/"}}
    assert [one.shards_open for one in describe(records)] == [1]


def test_of_services_that_are_not_read_again_nothing_is_forgotten() -> None:
    checkpoint = Checkpoint("north", None, {}, {})
    window = Window(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))
    later = Window(window.end, datetime(2024, 3, 1, tzinfo=UTC))
    checkpoint.finish(Shard(service_ids=("A", "b"), window=window, settled=window.end))
    checkpoint.advance(Shard(service_ids=("b",), window=later, settled=later.end), Position("cursor", 10))
    checkpoint.advance(Shard(service_ids=("A",), window=later, settled=later.end), Position("cursor", 10))
    checkpoint.mark_bad("A", window.end)
    checkpoint.mark_bad("b", window.end)
    checkpoint.forget({"a"})
    assert checkpoint.covered() == {"b": (window,)}
    assert [shard.service_ids for shard, _ in checkpoint.begun()] == [("b",)]
    assert checkpoint.bad_services().keys() == {"b"}
    assert checkpoint.again
