"""A run closes by reading what changed since its end, until nothing moved while it was read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from fetcher.connector.clock import PlatformClock
from fetcher.connector.operations import MAX_IDS
from fetcher.loading.beginning import Beginning
from fetcher.loading.closing import Closing
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import ServiceRef, Shard
from fetcher.report import Tally
from tests.loading.test_beginning import NOW, config, told
from tests.virtual import run_virtually

SERVICES = [ServiceRef("e", id_) for id_ in "abc"]
SETTLE = timedelta(seconds=30)


class Rounds:
    """What is walked in each round, and what moves meanwhile; each takes ten seconds."""

    def __init__(self, *moved: str) -> None:
        self.left = list(moved)
        self.shards: list[list[Shard]] = []
        self.began: list[datetime] = []
        self.tally = Tally(portfolio="north")
        self.clock = PlatformClock(anyio.current_time)
        told(self.clock, NOW)
        self.checkpoint = Checkpoint("north", None, {}, {})
        self.repeats = Repeats(self.checkpoint)
        self.beginning = Beginning(config(), self.clock, self.checkpoint, self.repeats)
        self.target = self.beginning.target()

    async def walk(self, shards: Sequence[Shard]) -> set[str]:
        self.shards.append(list(shards))
        self.began.append(self.clock.now())
        await anyio.sleep(10)
        return set(self.left.pop(0) if self.left else "")

    async def close(self, moving: str, bad: str = "", services: Sequence[ServiceRef] = SERVICES) -> Rounds:
        await anyio.sleep(100)  # the run itself
        closing = Closing(SETTLE.total_seconds(), self.clock, self.beginning, self.repeats, self.tally)
        await closing.close(services, self.target, moving, set(bad), self.walk)
        return self

    @property
    def read(self) -> list[str]:
        return ["".join(id_ for shard in shards for id_ in shard.service_ids) for shards in self.shards]


def closed(*moved: str, moving: str, **options: Any) -> Rounds:
    async def play() -> Rounds:
        return await Rounds(*moved).close(moving, **options)

    return run_virtually(play)


def test_what_was_read_at_once_needs_no_closing() -> None:
    assert closed(moving="").read == []


def test_what_may_have_moved_is_read_until_nothing_moves() -> None:
    rounds = closed("ab", "b", moving="abc")
    assert rounds.read == ["abc", "ab", "b"]
    assert rounds.tally.failed == []
    assert rounds.tally.phase == "closing"


def test_what_is_refused_is_not_read() -> None:
    assert closed("ab", moving="ab", bad="a").read == ["b", "b"]
    assert closed(moving="a", bad="a").read == []


def test_each_round_reads_from_before_the_one_before_began_so_that_what_commits_late_is_there() -> None:
    rounds = closed("a", "a", "a", moving="a")
    starts = [shards[0].window.start for shards in rounds.shards]
    before = [rounds.beginning.began or NOW, *rounds.began]
    for start, began in zip(starts, before, strict=False):
        assert began - SETTLE - timedelta(seconds=2) <= start <= began - SETTLE
    assert all(shards[0].open_ended for shards in rounds.shards)


def test_rounds_ask_for_fewer_services_at_once_and_after_the_last_of_them_it_is_named() -> None:
    many = [ServiceRef("e", f"{number:04}") for number in range(MAX_IDS)]
    ids = [service.id for service in many]

    class All(Rounds):
        async def walk(self, shards: Sequence[Shard]) -> set[str]:
            await super().walk(shards)
            return set(ids)

    async def play() -> Rounds:
        return await All().close(ids, services=many)  # type: ignore[arg-type]

    rounds = run_virtually(play)
    assert [len(shards[0].service_ids) for shards in rounds.shards] == [1000, 500, 250, 125, 62, 31, 15, 8]
    assert all(sum(len(shard.service_ids) for shard in shards) == MAX_IDS for shards in rounds.shards)
    assert ["orders change faster" in failure.error for failure in rounds.tally.failed] == [True]


def test_in_a_run_that_reads_all_again_what_comes_may_have_come() -> None:
    async def play(again: bool) -> bool:
        rounds = Rounds()
        if again:
            rounds.checkpoint.forget()
        return (await rounds.close("a")).shards[0][0].repeats

    assert [run_virtually(play, again) for again in (False, True)] == [False, True]


@pytest.mark.parametrize(("found_out_in", "read"), [(0, ["ab", "ab"]), (1, ["ab", "a", "ab"])])
def test_where_the_clock_turns_out_to_have_been_ahead_everything_since_the_beginning_is_read_again(
    found_out_in: int, read: list[str]
) -> None:
    class Ahead(Rounds):
        async def walk(self, shards: Sequence[Shard]) -> set[str]:
            moved = await super().walk(shards)
            if len(self.shards) == found_out_in + 1:
                told(self.clock, self.clock.now() - timedelta(hours=1))
            return moved

    async def play() -> Rounds:
        return await Ahead("a").close("ab")

    rounds = run_virtually(play)
    assert rounds.read == read
    assert rounds.shards[-1][0].window.start <= NOW - timedelta(hours=1) - SETTLE
    assert rounds.tally.failed == []
