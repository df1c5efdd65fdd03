"""The end of a run: what changed while it read is read, again and again, until nothing moved unseen (promise P1).

While a run reads, orders change and so leave windows that were not read yet; they turn up after the run's end. So what
changed since its end is read, packed across enterprises, until one request for each batch gives all there is. Services
whose whole run was one such request need no closing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta

import anyio

from fetcher.connector.clock import PlatformClock
from fetcher.connector.operations import MAX_IDS
from fetcher.loading.beginning import Beginning
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import ServiceRef, Shard, Target, closing_shards
from fetcher.planning.windows import Window
from fetcher.report import Tally

WalkAll = Callable[[Sequence[Shard]], Awaitable[set[str]]]
"""Walks shards from their start; returns ids of services of which orders may have moved unseen meanwhile."""


class Closing:
    """Closes one portfolio's runs.

    Args:
        settle_seconds: how long before the platform's now a run ends.
        clock: the platform's.
        beginning: when the run began. The clock may turn out to have been ahead then; if so, the rounds until then
            began too late.
        repeats: which of what is read may be in the sink already.
        tally: where it tells that there was no end to it.
    """

    ROUNDS = 8
    """Each round reads what changed during the round before, which took a fraction of its time. Their pauses double,
    and add up to twice `settle_seconds`."""
    LEAST_BATCH = 8
    """Each round also asks for fewer services at once, so that one request gives all."""

    def __init__(
        self, settle_seconds: float, clock: PlatformClock, beginning: Beginning, repeats: Repeats, tally: Tally
    ) -> None:
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._beginning = beginning
        self._repeats = repeats
        self._tally = tally

    async def close(
        self,
        services: Sequence[ServiceRef],
        target: Target,
        moving: Collection[str],
        bad: Collection[str],
        walk: WalkAll,
    ) -> None:
        """Read what changed since the run's end.

        Args:
            services: what the run loaded.
            target: what it was to bring.
            moving: ids of services of which orders may have moved unseen.
            bad: ids of services that are left out; more may come to it while it is read.
            walk: reads.
        """
        self._tally.phase = "closing"
        beginning = self._beginning
        settle = timedelta(seconds=self._settle_seconds)
        began_at = beginning.tick  # of the run, then of the round before
        moving = set(moving)
        suspects, cuts = set(moving), beginning.cuts
        for number in range(self.ROUNDS):
            beginning.heed_clock()
            if beginning.cuts > cuts:  # the rounds so far began too late
                began_at = beginning.tick
                moving |= suspects
            left = [service for service in services if service.id in moving and service.id not in bad]
            if not left:
                return
            suspects |= moving
            cuts = beginning.cuts
            # A bulk of changes is more than one request gives, until it is older than what a round reads again.
            await anyio.sleep(self._settle_seconds * 2.0 ** (number - self.ROUNDS + 1) if number else 0)
            start = min(target.window.end, (self._clock.at(beginning.tick) - settle).replace(microsecond=0))
            start = max(start, (self._clock.at(began_at) - settle).replace(microsecond=0))
            began_at = anyio.current_time()
            window = Window(start, max(self._clock.now().replace(microsecond=0), start + timedelta(seconds=1)))
            shards = closing_shards(left, window, target.settled, max(MAX_IDS >> number, self.LEAST_BATCH))
            moving = await walk(self._repeats.marked(shards))
        beginning.heed_clock()
        if moving or beginning.cuts > cuts:
            what = "orders change faster than they can be read"
            self._tally.fail(f"{what}; the next run goes on from here. Run again at a quieter time")
