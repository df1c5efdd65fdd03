"""When a run began: by what is known now of the platform's clock, never later than it was thought before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio

from fetcher.config import Config, make_config
from fetcher.connector.clock import PlatformClock
from fetcher.loading.beginning import Beginning
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import Shard
from fetcher.planning.windows import Window
from tests.virtual import run_virtually

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
FROM = datetime(2024, 1, 1, tzinfo=UTC)


def config(**orders: object) -> Config:
    return make_config(
        {
            "platform": {"address": "http://127.0.0.1:1", "client": "tests 1", "client_token": "x"},
            "portfolios": [{"name": "north", "access_token": "y"}],
            "orders": {"updated_from": FROM.isoformat(), "settle_seconds": 30, "overlap_seconds": 300, **orders},
            "sink": {"url": "null:"},
        }
    )


def told(clock: PlatformClock, moment: datetime) -> None:
    """An answer comes that says that it is `moment`."""
    clock.observe(format_datetime(moment, usegmt=True))


def played(scene: Callable[[PlatformClock, Beginning, Checkpoint], Awaitable[None]], **orders: object) -> None:
    async def play() -> None:
        clock = PlatformClock(anyio.current_time)
        told(clock, NOW)
        checkpoint = Checkpoint("north", None, {}, {})
        await scene(clock, Beginning(config(**orders), clock, checkpoint, Repeats(checkpoint)), checkpoint)

    run_virtually(play)


def test_a_run_ends_what_settles_before_it_began_whenever_that_is_asked() -> None:
    async def scene(_clock: PlatformClock, beginning: Beginning, _checkpoint: Checkpoint) -> None:
        assert beginning.began is None
        first = beginning.target()
        assert first.window == Window(FROM, NOW - timedelta(seconds=30))
        assert first.settled == NOW - timedelta(seconds=330)
        assert first.open_ended
        await anyio.sleep(1000)
        assert beginning.target() == first
        assert beginning.began == NOW

    played(scene)


def test_a_selection_that_ends_earlier_is_not_open_ended() -> None:
    until = datetime(2025, 1, 1, tzinfo=UTC)

    async def scene(_clock: PlatformClock, beginning: Beginning, _checkpoint: Checkpoint) -> None:
        target = beginning.target()
        assert (target.window, target.settled, target.open_ended) == (Window(FROM, until), until, False)

    played(scene, updated_until=until.isoformat())


def test_a_clock_that_was_ahead_moves_the_beginning_back_and_nothing_stands_for_what_came_since() -> None:
    async def scene(clock: PlatformClock, beginning: Beginning, checkpoint: Checkpoint) -> None:
        target = beginning.target()
        beginning._repeats.remember_from(target.settled, [])
        checkpoint.finish(Shard(service_ids=("a",), window=target.window, settled=target.settled))
        await anyio.sleep(10)
        told(clock, NOW - timedelta(hours=1) + timedelta(seconds=10))
        beginning.heed_clock()
        assert beginning.cuts == 1
        settled = NOW - timedelta(hours=1, seconds=330)
        assert beginning.target().settled == settled
        assert checkpoint.covered() == {"a": (Window(FROM, settled),)}
        assert checkpoint.again
        assert beginning._repeats.remembered_from == f"{settled:%Y-%m-%dT%H:%M:%S}"
        beginning.heed_clock()
        assert beginning.cuts == 1

    played(scene)


def test_machines_that_differ_a_little_and_a_clock_that_was_late_change_nothing() -> None:
    async def scene(clock: PlatformClock, beginning: Beginning, checkpoint: Checkpoint) -> None:
        target = beginning.target()
        checkpoint.finish(Shard(service_ids=("a",), window=target.window, settled=target.settled))
        for moment in (NOW - timedelta(seconds=2), NOW + timedelta(hours=1)):
            told(clock, moment)
            beginning.heed_clock()
        assert beginning.cuts == 0
        assert not checkpoint.again

    played(scene)


def test_before_it_began_no_clock_was_ahead() -> None:
    async def scene(clock: PlatformClock, beginning: Beginning, _checkpoint: Checkpoint) -> None:
        told(clock, NOW - timedelta(days=1))
        beginning.heed_clock()
        assert (beginning.cuts, beginning.began) == (0, None)

    played(scene)
