"""When the whole platform is down, asking it once now and then is enough (promise P7: the rest can wait)."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta

from fetcher.connector.clock import PlatformClock


class Circuit:
    """Whether the platform is reachable; shared by all who call it.

    Closed, it lets everybody pass. After `failures_to_open` failures in a row, without an answer in between, it
    opens: one caller at a time passes, as a probe, after pauses that grow from `FIRST_PAUSE` to `LONGEST_PAUSE`
    seconds. Any sign of life closes it.

    Args:
        outage_seconds: how long the platform may stay down before `given_up`.
    """

    FAILURES_TO_OPEN = 8
    """Faults that come at random, one in five say, make such a row once in 400 thousand calls."""
    FIRST_PAUSE = 1.0
    LONGEST_PAUSE = 60.0

    def __init__(self, outage_seconds: float, chance: random.Random) -> None:
        self._outage_seconds = outage_seconds
        self._chance = chance
        self._failures = 0
        self._opened_at: float | None = None
        self._probes = 0
        self._next_probe = 0.0
        self._probing = False
        self._changed = asyncio.Event()

    @property
    def down_seconds(self) -> float | None:
        """How long the platform has been down; `None` if it is not."""
        return None if self._opened_at is None else _now() - self._opened_at

    @property
    def next_probe_seconds(self) -> float:
        """How long until it is asked again."""
        return max(0.0, self._next_probe - _now())

    @property
    def given_up(self) -> bool:
        """Whether it has been down for longer than anybody should wait."""
        down = self.down_seconds
        return down is not None and down >= self._outage_seconds

    def describe(self, clock: PlatformClock) -> str | None:
        """One line on an outage, since when and when next, by the platform's clock; `None` if there is none."""
        down = self.down_seconds
        if down is None:
            return None
        since = f"for {down:.0f} s"
        if clock.known:
            since = f"since {_time(clock.now() - timedelta(seconds=down))} UTC"
        return f"the platform is down {since}, asked again in {self.next_probe_seconds:.0f} s"

    async def ready(self) -> None:
        """Wait until a call may be made: at once, unless the platform is down. Returns when it is given up, too."""
        while self._opened_at is not None and not self.given_up:
            if not self._probing and _now() >= self._next_probe:
                self._probing = True
                return
            left = self._opened_at + self._outage_seconds - _now()
            wait = left if self._probing else min(left, self.next_probe_seconds)
            changed = self._changed
            try:
                async with asyncio.timeout(wait):
                    await changed.wait()
            except TimeoutError:
                pass

    def abandoned(self) -> None:
        """A call that was let pass ended without telling anything: it was cancelled, say."""
        self._probing = False
        self._wake()

    def alive(self) -> None:
        """The platform answered."""
        self._failures = 0
        self._probing = False
        if self._opened_at is not None:
            self._opened_at = None
            self._wake()

    def failed(self) -> None:
        """The platform did not answer, or answered 5xx."""
        self._failures += 1
        if self._opened_at is None:
            if self._failures < self.FAILURES_TO_OPEN:
                return
            self._opened_at = _now()
            self._probes = 0
        elif not self._probing:
            return  # it was sent before the circuit opened
        self._probing = False
        pause = min(self.LONGEST_PAUSE, self.FIRST_PAUSE * 2.0**self._probes)
        self._next_probe = _now() + pause * self._chance.uniform(0.75, 1.25)
        self._probes += 1
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _time(moment: datetime) -> str:
    return moment.strftime("%H:%M:%S")
