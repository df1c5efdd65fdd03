"""When the whole platform is down, asking it once now and then is enough (promise P7: the rest can wait).

The rule that cannot be broken: it opens, and stays open, only on evidence that a light request fails. A heavy request
may fail because it is heavy (promise P8), and all walks may fail so at once; a light one (of discovery, or for a single
item) fails because the platform is away. So what becomes of heavy requests puts it in doubt at most, and a light
request decides; and the probe of a platform that is down is always a light one.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from typing import Literal

from fetcher.connector.clock import PlatformClock


class Circuit:
    """Whether the platform is reachable; shared by all who call it.

    Closed, it lets everybody pass. `FAILURES_TO_OPEN` failures in a row, without an answer in between, open it if the
    last one is of a light request; else it is in doubt, which a probe ends at once. Open, one caller at a time
    passes, as a probe, after pauses that grow from `FIRST_PAUSE` to `LONGEST_PAUSE` seconds. Any sign of life closes
    it.

    Nobody waits for anything between being let pass and sending, so the probe is never behind one token's budget or
    pause: `ready` waits and claims nothing, then the caller gets what it needs to send, then `admit` lets it pass, or
    not.

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
        # All mutable state; it changes in `admit`, `doubt`, `alive`, `failed` and `abandoned`.
        self._failures = 0
        self._reason = ""
        self._doubted = False
        self._opened_at: float | None = None
        self._alive_at = -1.0
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

    def alive_since(self, moment: float) -> bool:
        """Whether the platform answered anybody after `moment`, in seconds of the event loop."""
        return self._alive_at > moment

    def describe(self, clock: PlatformClock) -> str | None:
        """One line on an outage, since when and when next, by the platform's clock; `None` if there is none."""
        down = self.down_seconds
        if down is None:
            return None
        since = f"for {down:.0f} s"
        if clock.known:
            since = f"since {_time(clock.now() - timedelta(seconds=down))} UTC"
        return f"the platform is down {since}, asked again in {self.next_probe_seconds:.0f} s: {self._reason}"

    async def ready(self) -> None:
        """Wait until `admit` may let somebody pass: at once, unless the platform is down or in doubt. Returns when it
        is given up, too.
        """
        while not (self._passable or self.given_up):
            wait = None if self._probing else self.next_probe_seconds
            if self._opened_at is not None:
                left = self._opened_at + self._outage_seconds - _now()
                wait = left if wait is None else min(left, wait)
            changed = self._changed
            try:
                async with asyncio.timeout(wait):
                    await changed.wait()
            except TimeoutError:
                pass

    def admit(self) -> Literal["all", "probe"] | None:
        """Whether the caller may send now: whatever it likes, or one light request, as a probe; `None`: not yet.

        A probe tells how it ended, by `alive`, `failed` or `abandoned`.
        """
        if self._closed:
            return "all"
        if not self._passable:
            return None
        self._probing = True
        return "probe"

    def doubt(self) -> None:
        """A heavy request got no answer, and nothing else did since it was sent: see whether a light one does."""
        if self._closed:
            self._doubted = True
            self._next_probe = _now()

    def abandoned(self) -> None:
        """A probe ended without telling anything: it was cancelled, say."""
        self._probing = False
        self._wake()

    def alive(self) -> None:
        """The platform answered."""
        self._failures = 0
        self._probing = False
        self._alive_at = _now()
        if not self._closed:
            self._opened_at = None
            self._doubted = False
            self._wake()

    def verdict(self) -> str:
        """Why it is given up, on one line."""
        return f"the platform has been down for {self.down_seconds or 0:.0f} s: {self._reason}"

    def failed(self, *, light: bool, probe: bool = False, reason: str = "it does not answer") -> None:
        """The platform did not answer, or answered 5xx.

        Args:
            reason: what happened, for messages.
            light: whether the request was a light one, or never left because there is no connection.
            probe: whether it was let pass as a probe.
        """
        self._reason = reason
        probe = probe and self._probing  # else somebody else's answer came meanwhile
        self._failures += 1
        if self._opened_at is None:
            if not probe and self._failures < self.FAILURES_TO_OPEN:
                return
            if not (probe or light):
                self.doubt()
                return
            self._doubted = False
            self._opened_at = _now()
            self._probes = 0
        elif not probe:
            return  # it was sent before the circuit opened
        self._probing = False
        pause = min(self.LONGEST_PAUSE, self.FIRST_PAUSE * 2.0**self._probes)
        self._next_probe = _now() + pause * self._chance.uniform(0.75, 1.25)
        self._probes += 1
        self._wake()

    @property
    def _closed(self) -> bool:
        return self._opened_at is None and not self._doubted

    @property
    def _passable(self) -> bool:
        return self._closed or (not self._probing and _now() >= self._next_probe)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _time(moment: datetime) -> str:
    return moment.strftime("%H:%M:%S")
