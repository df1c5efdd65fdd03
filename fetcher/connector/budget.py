"""The guard of one access token's limit (promise P4).

The rule that cannot be broken: never more than `requests` of a token reach the platform in any `per_seconds`,
whatever the latency. We know when a request was sent and when it was answered, never when it arrived; it arrived
before its answer did. So a slot is taken when a request is sent, and is free again `per_seconds` after the
*response*: the next request that uses the slot is sent then, hence arrives later than that.
(An `AsyncLimiter(200, 30)` admits 399 requests into one window of 30 seconds: its bucket drains while it fills.)

The steady rate is requests / (per_seconds + latency): at 200 in 30 seconds and half a second of latency, 98 %.

Several processes of one machine share the slots, by a memory in which a slot is one process's at a time. What another
one holds is found out when it is in the way: a slot that seems free turns out to be held, and until when.

A token that moves to another machine has one budget at a time: the new one *inherits* what the old one held, and that
is everything, for as long as the old one may go on and its requests may be on their way, unless it has said what it is.
The old one has the right to send for a while only, unless that is confirmed again and again.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from fetcher.connector.share import Share


class SlotMemory(Protocol):
    """Where the times until which slots are held outlast the process, and are shared with other processes; times are
    `loop.time()` seconds.
    """

    def held(self) -> dict[int, float]:
        """By a slot's number, the times, later than now, until which it is held, by whomever."""
        ...

    def take(self, place: int, until: float) -> float | None:
        """Hold the slot numbered `place` until then; if somebody else holds it, until when."""
        ...

    def hold(self, place: int, until: float) -> None:
        """Change until when a slot that was taken is held; 0: it is free."""
        ...


class Slot:
    """The right to send one request. Whoever has it says how that ended, by exactly one of its methods."""

    __slots__ = ("_budget", "_place", "_sent_at")

    def __init__(self, budget: RequestBudget, place: int, sent_at: float) -> None:
        self._budget = budget
        self._place = place
        self._sent_at = sent_at

    @property
    def stale(self) -> bool:
        """Whether it was waited with for so long that somebody else may take the slot: give it back, `unsent`."""
        return self._budget.now() - self._sent_at > self._budget.arrival_seconds or not self._budget.allowed

    def leaves(self) -> None:
        """The request is sent now, and not when the slot was taken."""
        self._sent_at = self._budget.mark_sent(self._place)

    def answered(self) -> None:
        """The platform begins to answer: the slot is free `per_seconds` from now."""
        self._budget.note_accepted(self._place, self._sent_at)
        self._budget.give_back(self._place, after_arrival=0)

    def refused(self) -> None:
        """The platform answered 429. Whether it counted the request is unknown, so it is taken to have."""
        self._budget.give_back(self._place, after_arrival=0)
        self._budget.note_refused(self._sent_at)

    def broken(self) -> None:
        """No answer came, but it may have left: it may still arrive until `arrival_seconds` after it was sent."""
        age = self._budget.now() - self._sent_at
        self._budget.give_back(self._place, after_arrival=max(0.0, self._budget.arrival_seconds - age))

    def unsent(self) -> None:
        """The request never left: the slot is free at once."""
        self._budget.give_back(self._place, after_arrival=None)


class RequestBudget:
    """At most `requests` of one access token in any `per_seconds`, for the tasks of one event loop.

    Waiters are served in order, by one timer. Where other programs use the same token, the platform refuses
    requests that the budget allows; the *share* that may be used then falls below `requests`, and grows back
    (promise P5, `Share`).

    Args:
        requests: slots of the window, 1 or more.
        per_seconds: length of the window, in seconds.
        arrival_seconds: how long after it was sent a request without an answer may still arrive.
        memory: what outlasts the process, and is shared with others; `None`: nothing does.
    """

    LOOKS = 100
    """How often in a window to look whether slots that another process has on their way were answered meanwhile."""

    def __init__(
        self,
        requests: int,
        per_seconds: float,
        *,
        arrival_seconds: float = 60.0,
        memory: SlotMemory | None = None,
    ) -> None:
        self.requests = requests
        self.per_seconds = per_seconds
        self.arrival_seconds = arrival_seconds
        self._memory = memory
        # All mutable state; it changes in `acquire`, `give_back`, `pause`, `inherit`, `allow_until`, `note_accepted`,
        # `note_refused` and `_serve`, none of which waits in between, so every task sees it whole. A slot's number is
        # in one place: with whoever sends, in `_held`, or in `_places`.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sent = 0  # slots of requests on their way
        self._held: list[tuple[float, int]] = []  # heap: until when, and the slot's number; others' too
        self._places = list(range(requests))  # numbers of free slots, as far as we know
        self._others: set[int] = set()  # numbers in `_held` of slots that others had on their way when we looked
        self._looked_at = 0.0
        self._waiters: deque[asyncio.Future[int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._paused_until = 0.0
        self._allowed_until = math.inf  # who owns the token until further notice has no need of it
        self._share = Share(requests, per_seconds)
        self._probes: set[int] = set()  # numbers of slots that were taken beyond the share, and are on their way

    @property
    def used(self) -> int:
        """Slots that are not free now: on their way, or sent within the window."""
        self._release()
        return self._sent + len(self._held)

    @property
    def share(self) -> int:
        """How many slots may be used now: `requests`, or fewer while others use the token too; probes come on top."""
        return self._share.allowed(self.now())

    @property
    def paused_seconds(self) -> float:
        """How long the platform asked to wait, from now; 0 if it did not."""
        return max(0.0, self._paused_until - self.now())

    @property
    def allowed(self) -> bool:
        """Whether anything may be sent: see `allow_until`."""
        return self.now() < self._allowed_until

    def allow_until(self, time: float) -> None:
        """Grant nothing from then on, in seconds of the event loop: until then nobody else sends with the token.

        Whoever may lose it to another machine says this again before it is over.
        """
        self._allowed_until = time
        self._serve()

    def inherit(self, seconds: Iterable[float]) -> None:
        """As many slots are held for so long, from now: what was sent with the token elsewhere, before it came here.

        To be called before anything is sent.

        Args:
            seconds: of each slot that was not free there.
        """
        now = self.now()
        for until in sorted((now + more for more in seconds if more > 0), reverse=True)[: self.requests]:
            if self._places:
                place = self._places.pop()
                other = None if self._memory is None else self._memory.take(place, until)
                heapq.heappush(self._held, (until if other is None else max(until, other), place))
            elif self._held and self._held[0][0] < until:  # what is held here is more than that
                _, place = heapq.heapreplace(self._held, (until, self._held[0][1]))
                self._others.discard(place)  # whatever the memory says of it: it is held for longer

    def left_over(self) -> list[float]:
        """For how many seconds from now each slot is held that is not free: what somebody else is to `inherit`."""
        now = self.now()
        self._release()
        self._look()
        held = [until - now for until, _ in self._held]
        held += [self.arrival_seconds + self.per_seconds] * self._sent
        if (pause := self.paused_seconds) > 0:  # which is for whoever has the token
            held = [max(pause, seconds) for seconds in held] + [pause] * (self.requests - len(held))
        return held

    def now(self) -> float:
        """The event loop's time, in seconds."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._recall()
        return self._loop.time()

    async def acquire(self) -> Slot:
        """Wait for a slot, behind all who wait already. Cancelled while it waits, it takes none."""
        self._serve()
        if not self._waiters and (taken := self._take()) is not None:
            return Slot(self, taken, self.now())
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._serve()
        try:
            place = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # granted and cancelled in the same turn of the loop
                self.give_back(waiter.result(), after_arrival=None)
            raise
        return Slot(self, place, self.now())

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds` from now (what the platform's Retry-After asks of every walk of the token)."""
        self._paused_until = max(self._paused_until, self.now() + seconds)
        self._serve()

    def mark_sent(self, place: int) -> float:
        """A request leaves now, with a slot that was taken before; gives the time."""
        now = self.now()
        self._remember(place, self._arrived_and_over(now))
        return now

    def give_back(self, place: int, *, after_arrival: float | None) -> None:
        """Free a slot `per_seconds` after its request arrived, `after_arrival` seconds from now; `None`: at once."""
        self._sent -= 1
        self._probes.discard(place)
        if after_arrival is None:
            self._places.append(place)
            self._remember(place, 0.0)
        else:
            until = self.now() + after_arrival + self.per_seconds
            heapq.heappush(self._held, (until, place))
            self._remember(place, until)
        self._serve()

    def note_accepted(self, place: int, sent_at: float) -> None:
        """The platform did not refuse a request sent at `sent_at` with the slot numbered `place`."""
        self._share.accepted(self.now(), sent_at, probe=place in self._probes)

    def note_refused(self, sent_at: float) -> None:
        """The platform refused a request sent at `sent_at`, whose slot was given back."""
        self._look()
        self._share.refused(self.now(), sent_at, accepted=len(self._held) - 1)

    def _available(self) -> bool:
        return self._paused_until <= self.now() < self._allowed_until and (self._within_share() or self._may_probe())

    def _within_share(self) -> bool:
        return self._sent + len(self._held) < self.share

    def _may_probe(self) -> bool:
        return len(self._probes) < Share.PROBES and self._share.in_doubt(self.now())

    def _take(self) -> int | None:
        """The number of a slot to send with; `None` if there is none now."""
        while self._available() and self._places:
            probe = not self._within_share()
            place = self._places.pop()
            until = self._arrived_and_over(self.now())
            held = None if self._memory is None else self._memory.take(place, until)
            if held is None:
                self._sent += 1
                if probe:
                    self._probes.add(place)
                return place
            self._note_other(place, held)
        return None

    def _arrived_and_over(self, sent_at: float) -> float:
        """Until when a request without an answer holds its slot: should the process be killed, it may still arrive."""
        return sent_at + self.arrival_seconds + self.per_seconds

    def _note_other(self, place: int, until: float) -> None:
        heapq.heappush(self._held, (until, place))
        if until > self.now() + self.per_seconds:  # it is on its way, and will be held for less once it is answered
            self._others.add(place)

    def _look(self) -> None:
        """See what other processes hold by now."""
        if self._memory is None:
            return
        self._looked_at = self.now()
        held = self._memory.held()
        free = [place for place in self._places if place not in held]
        known = [(until, place) for until, place in self._held if place not in self._others]
        found = [place for place in (*self._places, *self._others) if place in held]
        free += [place for place in self._others if place not in held]
        self._places, self._held, self._others = free, known, set()
        heapq.heapify(self._held)
        for place in found:
            self._note_other(place, held[place])

    def _release(self) -> None:
        now = self.now()
        # While the share is lower it is for all processes together: what they hold counts, in the way or not.
        if (self._others or now < self._share.whole_at) and now >= self._looked_at + self.per_seconds / self.LOOKS:
            self._look()
        while self._held and self._held[0][0] <= now:
            place = heapq.heappop(self._held)[1]
            self._others.discard(place)
            self._places.append(place)

    def _serve(self) -> None:
        """Grant what can be granted, and set the timer for the next time that something can."""
        self._release()
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
            elif (place := self._take()) is not None:
                self._waiters.popleft().set_result(place)
            else:
                break
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters and (wake := self._next_change()) is not None:
            self._timer = asyncio.get_running_loop().call_at(wake, self._serve)

    def _next_change(self) -> float | None:
        """The earliest time at which a waiter may be served; `None`: it takes a `give_back`, or an `allow_until`."""
        now = self.now()
        if now >= self._allowed_until:
            return None
        if now < self._paused_until:
            return self._paused_until
        times = [self._held[0][0]] if self._held else []
        if self._others:
            times.append(self._looked_at + self.per_seconds / self.LOOKS)
        if (growth := self._share.grows_at(now)) is not None:
            times.append(growth)
        return min(times, default=None)

    def _recall(self) -> None:
        if self._memory is None:
            return
        held = self._memory.held()
        self._places = [place for place in range(self.requests) if place not in held]
        for place, until in held.items():
            if place < self.requests:
                self._note_other(place, until)
        for until in sorted((until for place, until in held.items() if place >= self.requests), reverse=True):
            if self._places:  # there were more slots then
                place = self._places.pop()
                other = self._memory.take(place, until)
                heapq.heappush(self._held, (until if other is None else max(until, other), place))

    def _remember(self, place: int, until: float) -> None:
        if self._memory is not None:
            self._memory.hold(place, until)
