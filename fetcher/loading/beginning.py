"""When a run began, by what is known now of the platform's clock, and what follows from it: what the run is to bring.

A run's end is fixed at its start, by the platform's clock. That clock may turn out to have been ahead (see
`PlatformClock`); then the run began earlier than was thought, and nothing may stand for what changed since.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import anyio

from fetcher.config import Config
from fetcher.connector.clock import PlatformClock
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import Target
from fetcher.planning.windows import Window

log = logging.getLogger("fetcher")


class Beginning:
    """When one portfolio's load began.

    Args:
        config: the whole configuration.
        clock: the platform's.
        checkpoint: the portfolio's progress; nothing in it stands for what came after the beginning.
        repeats: told if it was earlier than was thought.
    """

    CLOCK_TOLERANCE = timedelta(seconds=2)
    """By which the platform's machines may differ: what a run leaves for the next is more."""
    CLOCKS_DIFFER = timedelta(seconds=60)
    """By which our clock and the platform's may differ more, or less, from one run to the next."""

    def __init__(self, config: Config, clock: PlatformClock, checkpoint: Checkpoint, repeats: Repeats) -> None:
        self._config = config
        self._clock = clock
        self._checkpoint = checkpoint
        self._repeats = repeats
        # All mutable state. The first `target` sets when; `heed_clock` moves `_began` to earlier times, and counts
        # that.
        self._began: datetime | None = None
        self._ours: datetime | None = None
        self._tick = 0.0
        self._cuts = 0

    @property
    def began(self) -> datetime | None:
        """When, by the platform's clock as it was last heeded; `None`: not yet."""
        return self._began

    @property
    def ours(self) -> datetime | None:
        """When, by this machine's clock, by which the next run sees whether the platform's was ahead."""
        return self._ours

    @property
    def tick(self) -> float:
        """When, in seconds of the event loop: what time it was then may turn out to be earlier."""
        return self._tick

    @property
    def cuts(self) -> int:
        """How often it turned out to be earlier."""
        return self._cuts

    def target(self) -> Target:
        """What the run is to bring, by what is known now of when it began: now, if this is asked for the first time."""
        orders, limits = self._config.orders, self._config.limits
        if self._began is None:
            self._tick = anyio.current_time()
            self._ours = self._clock.ours()
        now = self._clock.at(self._tick)
        settled_end = (now - timedelta(seconds=orders.settle_seconds)).replace(microsecond=0)
        end = settled_end if orders.updated_until is None else min(settled_end, orders.updated_until)
        start = orders.updated_from.replace(microsecond=0)
        settled = min(end, settled_end - timedelta(seconds=round(orders.overlap_seconds)))
        if self._began is None:
            self._began = now
        return Target(
            window=Window(start, max(start, end)),
            settled=settled,
            open_ended=orders.updated_until is None or orders.updated_until >= settled_end,
            months=limits.window_months,
            shard_by=limits.shard_by,
        )

    def overstated(self, target: Target) -> datetime | None:
        """From when on earlier runs may not have read what they noted, as the clock was ahead; `None`: it was not."""
        last = self._checkpoint.last_run
        if self._began is None:
            return None
        found: list[datetime] = []
        if self._checkpoint.reaches_beyond(self._began):  # it was ahead, or is behind now
            found.append(target.settled)
        if last is not None and last.ours is not None:
            # Ours may have been set in between: then a little is read again.
            truly = self._began - max(timedelta(0), self._clock.ours() - last.ours)
            if last.began - truly > self.CLOCKS_DIFFER:
                found.append(min(target.settled, target.settled - (self._began - truly)))
        return min(found, default=None)

    def heed_clock(self) -> None:
        """See whether the clock was ahead when the run began; then nothing stands for what changed since it really did.

        Whatever is written down for later runs is so by the time that is known then: to be called before it is.
        """
        now = self._clock.at(self._tick)
        if self._began is None or now >= self._began - self.CLOCK_TOLERANCE:
            return
        ahead = timedelta(seconds=round((self._began - now).total_seconds()))
        name = self._checkpoint.portfolio
        log.warning("%s: an answer's clock was %s ahead: what changed since is read again", name, ahead)
        self._began = now
        self._cuts += 1
        settled = self.target().settled
        self._checkpoint.limit(settled)
        self._repeats.clock_was_ahead(settled)
