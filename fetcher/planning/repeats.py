"""What may come twice, and by what the sink tells it: decided here. Pure.

A run reads some orders that the sink holds already. A keyed sink has one row for an order, and need not know. A sink
that appends holds each version once (promise P2), and has two ways to tell a repeat from a new version: its memory of
what it took lately, which costs next to nothing, and what it holds, which it reads once in a run, however much that
is. So what comes again in every run is told by memory, and what comes again now and then by reading:

    what may come twice                        because                                    told by
 1. what was updated since `remembered_from`   the run's closing and the next run         memory (`Page.settled`)
                                               read it again
 2. the orders of a walk                       its cursor was lost, so that it began      reading (`Page.repeats`)
                                               again (`Walk`; in its record, too)
 3. all orders of the portfolio                its progress was dropped (`--full`) or     reading
                                               cut: the platform's clock had been ahead
 4. all orders of a service                    it was read under another filter, or       reading
                                               as another portfolio's, then or now
 5. of a service, what was updated from        it was away, refused, or failed for long,  reading
    where it stands to where memory begins     while the rest went on
 6. what is twice in one page                  the platform has a fault                   a look at the page

Nothing else comes twice: shards share no instant of a service, and a walk goes on where it was. (Whether an order is
held at all, in whatever version, is told by reading, too: of other states than those asked for, see `Page.states`.)

How long is remembered: within a run, from the run's `settled` on, or from that of the earliest walk that goes on; if
the clock turns out to have been ahead, from what it should have been. Across runs, until a run that read anything has
ended: then what no walk of the services that the platform takes brings again is forgotten. One that fails for long
would keep the memory growing, so it reaches back `LONGEST_MEMORY` at the most; up to when was forgotten is noted in the
checkpoint, and what is read again of the time before is case 5.

The sink's part is in `fetcher.sinks.appending.memory`: to remember, to read, and to forget when it is told to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta

import msgspec

from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.shards import Shard, Target
from fetcher.planning.sifting import time_key
from fetcher.planning.windows import Window, Windows

_FOR_EVER = datetime.max.replace(tzinfo=UTC)


class Repeats:
    """Of one portfolio's load.

    Args:
        checkpoint: what earlier runs have reached, and what they had the sink forget; told what this one has.
        full: whether everything is read again, whatever is covered.
    """

    LONGEST_MEMORY = timedelta(days=7)
    """Before a run's `settled`. Of a service that was away for longer, repeats are told by reading when it is back."""

    def __init__(self, checkpoint: Checkpoint, *, full: bool = False) -> None:
        self._checkpoint = checkpoint
        self._full = full
        # All mutable state. `remember_from` sets from when on, before anything is walked, and `clock_was_ahead` moves
        # it to earlier, and sets how late it may be from then on; what other portfolios leave to this one adds to
        # `_delivered`; `forget` sets `_forget_before`, in the end.
        self._remembered_from = self._at_the_latest = _FOR_EVER
        self._delivered: set[str] = set()
        self._forget_before: datetime | None = None

    # What is told by memory

    @property
    def remembered_from(self) -> str:
        """From when on the sink is to tell repeats by memory; see `Page.settled`."""
        return time_key(self._remembered_from)

    def remember_from(self, settled: datetime, going_on: Iterable[Shard]) -> None:
        """The walks that come now are new ones, which settle then, and these, which may reach into what those read."""
        self._remembered_from = min([self._at_the_latest, settled, *(shard.settled for shard in going_on)])

    def clock_was_ahead(self, settled: datetime) -> None:
        """The run settles at an earlier time than was thought."""
        self._at_the_latest = min(self._at_the_latest, settled)
        self._remembered_from = min(self._remembered_from, settled)

    # What is told by reading

    def delivered(self, service_ids: Iterable[str]) -> None:
        """Another portfolio may have delivered orders of these services in this run."""
        self._delivered.update(service_ids)

    def of_services(self, service_ids: Iterable[str]) -> set[str]:
        """Those of these services of which any order may be in the sink already, whatever is covered."""
        everything = self._full or self._checkpoint.again
        return {id_ for id_ in service_ids if everything or id_ in self._delivered or self._checkpoint.elsewhere(id_)}

    def of_time(self, covered: Mapping[str, Windows], repeated: Set[str], target: Target) -> dict[str, Windows]:
        """By service id, the time of which any order may be in the sink already; of some services there is none.

        Args:
            covered: by service id, what needs no walk.
            repeated: what `of_services` says.
            target: what the run is to bring.
        """
        forgot = self._checkpoint.forgot
        repeats: dict[str, Windows] = {}
        for service, windows in covered.items():
            if service in repeated:
                repeats[service] = (target.window,)
            elif windows and forgot is not None and windows[0].end < forgot:
                repeats[service] = (Window(windows[0].end, forgot),)
        return repeats

    def marked(self, shards: Sequence[Shard]) -> list[Shard]:
        """Shards that close a run: what they read is remembered, unless progress was dropped or cut."""
        if not self._checkpoint.again:
            return list(shards)
        return [msgspec.structs.replace(shard, repeats=True) for shard in shards]

    # What is asked for by its id, beside the walks

    def may_come(self, services: Iterable[str]) -> dict[str, Windows]:
        """By service id in small letters, the time of which orders may come beside the walks.

        It is covered, so that no later walk brings them; or it is remembered, so that they are told if one does.
        """
        covered = self._checkpoint.covered()
        remembered = Window(self._remembered_from.replace(microsecond=0), _FOR_EVER)
        return {service: (*covered.get(service, ()), remembered) for service in services}

    # What is forgotten

    @property
    def forget_before(self) -> str | None:
        """What the sink may forget (form of `Page.settled`); `None`: nothing, or the load has not come to its end."""
        return None if self._forget_before is None else time_key(self._forget_before)

    def forget(self, services: Set[str], target: Target) -> None:
        """The load is at its end; whether it was whole or not, what no walk brings again is not needed.

        Args:
            services: ids in small letters of those that can be read.
            target: what it was to bring.
        """
        settled = self._settled(services)
        if settled is not None:
            self._forget_before = max(settled, target.settled - self.LONGEST_MEMORY)
            self._checkpoint.note_forgotten(self._forget_before)

    def _settled(self, services: Set[str]) -> datetime | None:
        """No later walk of these services reads again what was updated before it; `None`: nothing is covered.

        A service's first gap is what a later run reads; so is all that an open walk does not stand for.
        """
        covered = self._checkpoint.covered().items()
        ends = [windows[0].end for service, windows in covered if windows and service in services]
        opened = [
            shard.settled
            for shard, _ in self._checkpoint.begun()
            if not services.isdisjoint(map(str.lower, shard.service_ids))
        ]
        return min([*ends, *opened], default=None)
