"""Who walks next: a queue of shards, as many walkers as there is work for, and what becomes of each walk.

How it goes on after a walk:

1. it came to its end: whether its orders may have moved unseen is for the run's closing to know
2. it is split, because it was too much or because walkers have nothing to do: its parts go first, they are what the
   newest-first order has got to
3. something is refused: that is left out, and the rest goes on from where it was
4. the platform is down for too long, or asks for a longer pause than a run waits: nothing more of the portfolio
5. anything else: the shard has failed, is named, and is left for the next run
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Iterable, Set
from functools import partial
from math import ceil

import anyio
import msgspec
from anyio.abc import TaskGroup

from fetcher.errors import (
    AccessDeniedError,
    InvalidRequestError,
    InvalidStatesError,
    PausedError,
    PlatformError,
    first_error,
)
from fetcher.loading.handover import Handover
from fetcher.loading.refusals import PortfolioFailedError, Refusals
from fetcher.loading.remaining import UnderWay
from fetcher.loading.walk import Finished, Lineage, Scope, Split, Step, Walk
from fetcher.planning.checkpoint import Checkpoint, Position
from fetcher.planning.shards import Shard
from fetcher.report import Tally


class Item(msgspec.Struct, frozen=True):
    """A shard to walk, from a position on."""

    shard: Shard
    position: Position
    lineage: Lineage
    closing: bool
    """Whether it is read to close the run: no later run has to know where it stands."""
    attempts: int = 0
    """How often it was looked into why it is refused."""


class Pool:
    """Walks the shards of one portfolio, several side by side.

    Args:
        most: walks side by side.
        refusals: finds out what is refused.
        handover: takes what the walks bring.
        checkpoint: where they note how far they came.
        tally: where it tells what it does.
    """

    FIRST_WALKS = 4
    """Side by side, until the platform has answered one: should none be allowed, no more than these were in vain."""

    def __init__(self, most: int, refusals: Refusals, handover: Handover, checkpoint: Checkpoint, tally: Tally) -> None:
        self._most = most
        self._refusals = refusals
        self._handover = handover
        self._checkpoint = checkpoint
        self._tally = tally
        # All mutable state. `walk` begins with new ones but for `_taken` and `_failed`; its walkers take from the
        # queue, put back what a shard becomes, and add to what moved.
        self._queue: deque[Item] = deque()
        self._walkers = 0
        self._group: TaskGroup | None = None
        self._moving: set[str] = set()
        self._failed: set[str] = set()  # services of shards that failed
        self._taken = False  # whether any order request was answered with something else than a refusal

    @property
    def failed(self) -> Set[str]:
        """Ids of services of which not all could be read."""
        return self._failed

    async def walk(self, walks: Iterable[UnderWay], scope: Scope, *, closing: bool = False) -> set[str]:
        """Walk them all, each from its position; those that fail are named.

        Args:
            walks: shards, and where each begins.
            scope: what they share.
            closing: see `Item.closing`.

        Returns: ids of services of which orders may have moved unseen while they were read.

        Raises:
            PortfolioFailedError: nothing more of the portfolio can be loaded.
            PlatformError: likewise.
        """
        self._queue.extend(Item(shard, position, Lineage(), closing) for shard, position in walks)
        # Only services with a single shard can be read at once; the others may have moved between shards.
        counts = Counter(service for item in self._queue for service in item.shard.service_ids)
        self._moving = {service for service, count in counts.items() if count > 1}
        self._tally.shards_planned += len(self._queue)
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                self._hire(scope)
        except* (PortfolioFailedError, PlatformError) as errors:
            self._queue.clear()
            raise first_error(errors) from None
        return self._moving

    def _hire(self, scope: Scope) -> None:
        """Have as many walkers as there is work for, up to the limit."""
        idle = (self._most if self._taken else min(self._most, self.FIRST_WALKS)) - self._walkers
        for _ in range(min(idle, len(self._queue))):
            self._walkers += 1
            if self._group is not None:
                self._group.start_soon(self._work, scope)

    async def _work(self, scope: Scope) -> None:
        try:
            while self._queue:
                await self._walk(self._queue.popleft(), scope)
        finally:
            self._walkers -= 1

    def _share(self, item: Item, scope: Scope, pages: float, seconds: float) -> int:
        """How many parts a walk may give away now; see `parts_to_give`.

        Args:
            item: what is walked.
            scope: what its walks share.
            pages: that the walk may have left.
            seconds: that a page takes.
        """
        if item.closing or self._queue or not scope.splits:
            return 0
        budget = scope.connector.budget
        free = 0 if budget.paused_seconds else budget.share - budget.used - self._walkers
        at_once = budget.requests / budget.per_seconds * seconds
        return parts_to_give(self._most, self._walkers, free, pages, at_once)

    def _requeue(self, items: list[Item], scope: Scope) -> None:
        self._queue.extendleft(reversed(items))
        self._tally.shards_planned += len(items)
        self._hire(scope)

    async def _walk(self, item: Item, scope: Scope) -> None:
        """Walk one item to its end, its split, or its failure."""
        if not self._refusals.bad.isdisjoint(item.shard.service_ids):
            await self._leave_out_bad(item, item.shard, item.position, scope)
            return
        walk = Walk(scope, item.shard, item.position, item.lineage)
        try:
            outcome = await walk.run(partial(self._deliver, item, scope), partial(self._share, item, scope))
        except InvalidStatesError as error:  # every walk's: said once
            raise PortfolioFailedError(error) from None
        except InvalidRequestError as error:
            if not error.names_services:
                self._fail(item, error, scope)
            else:
                await self._find_out(self._refusals.find_refused(walk.shard, item.attempts, error), item, walk, scope)
        except AccessDeniedError as error:
            attempts = item.attempts if walk.position.cursor == item.position.cursor else 0  # it had come further
            await self._find_out(self._refusals.find_denied(walk.shard, attempts, error), item, walk, scope)
        except PlatformError as error:
            if scope.connector.platform.circuit.given_up or isinstance(error, PausedError):
                raise PortfolioFailedError(error) from None
            self._fail(item, error, scope)
        else:
            if isinstance(outcome, Split):
                await self._split(item, walk.shard, outcome, scope)
            else:
                self._finished(item, outcome)

    async def _deliver(self, item: Item, scope: Scope, step: Step) -> None:
        if not self._taken:
            self._taken = True
            self._hire(scope)
        delivery = self._handover.step(step, partial(self._note_step, item, step.shard, step.position))
        del step  # or the page would stay in memory as it came
        await delivery

    def _note_step(self, item: Item, shard: Shard, position: Position | None) -> None:
        if item.closing:
            return
        if position is None:
            self._checkpoint.finish(shard)
        else:
            self._checkpoint.advance(shard, position)

    def _finished(self, item: Item, outcome: Finished) -> None:
        self._tally.shards_done += 1
        if not (outcome.at_once and item.shard.open_ended):
            self._moving.update(item.shard.service_ids)

    async def _split(self, item: Item, shard: Shard, split: Split, scope: Scope) -> None:
        parts = [msgspec.structs.replace(item, shard=part, position=position) for part, position in split.parts]
        if split.helped:  # nothing was too much, so what is for one of them says nothing of the others
            parts[1:] = [msgspec.structs.replace(part, lineage=Lineage()) for part in parts[1:]]
        self._moving.update(shard.service_ids)
        self._tally.shards_planned -= 1
        if not item.closing:
            await self._handover.news(partial(self._note_split, shard, split))
        self._requeue(parts, scope)

    def _note_split(self, shard: Shard, split: Split) -> None:
        self._checkpoint.drop(shard)
        for part, position in split.parts:
            self._checkpoint.advance(part, position)

    async def _find_out(self, search: Awaitable[int], item: Item, walk: Walk, scope: Scope) -> None:
        """Go on with the rest of a refused shard once what is refused is found out."""
        try:
            attempts = await search
        except PlatformError as trouble:
            self._fail(item, trouble, scope)
            return
        again = msgspec.structs.replace(item, attempts=attempts)
        await self._leave_out_bad(again, walk.shard, walk.position, scope)

    async def _leave_out_bad(self, item: Item, shard: Shard, position: Position, scope: Scope) -> None:
        bad = self._refusals.bad
        good = tuple(service for service in shard.service_ids if service not in bad)
        self._tally.shards_planned -= 1
        if not good:
            self._give_up_cursor(position, scope)
            return
        rest = msgspec.structs.replace(shard, service_ids=good)
        if rest != item.shard and not item.closing:
            # What the bad ones had is noted too, so that they go on from there once the platform takes them again.
            left_out = tuple(service for service in shard.service_ids if service in bad)
            split = Split(((rest, position), (msgspec.structs.replace(shard, service_ids=left_out), position)))
            await self._handover.news(partial(self._note_split, item.shard, split))
        self._requeue([msgspec.structs.replace(item, shard=rest, position=position)], scope)

    def _fail(self, item: Item, error: PlatformError, scope: Scope) -> None:
        """Name what is left for the next run: of a pack, each enterprise with its services."""
        shard = item.shard
        self._give_up_cursor(item.position, scope)
        self._failed.update(shard.service_ids)
        enterprises: dict[str | None, list[str]] = {}
        for service in shard.service_ids:
            enterprises.setdefault(scope.enterprise_ids.get(service.lower()), []).append(service)
        for enterprise, services in enterprises.items():
            self._tally.fail(
                str(error),
                error.request_id,
                enterprise=enterprise,
                services=tuple(services),
                window=(shard.window.start, shard.window.end),
            )

    def _give_up_cursor(self, position: Position, scope: Scope) -> None:
        """A part that was to find out whether the platform takes a cursor elsewhere goes on no more."""
        if position.elsewhere:
            scope.cursors.unanswered()


LITTLE = 0.05
"""Of a walk's pages: so many parts cost the budget little, a request each at the most."""


def parts_to_give(most: int, walkers: int, free: int, pages: float, at_once: float) -> int:
    """How many parts a walk may give away: its share of the walkers that have nothing to do.

    Where the budget binds, parts only cost requests: then no more than keep it busy, or than cost little. That it binds
    is guessed from a page or two, and where the newest time is the densest it often does not.

    Args:
        most: walks side by side.
        walkers: that walk now.
        free: slots of the budget that they leave.
        pages: that the walk may have left.
        at_once: requests that the budget lets through while a page comes.
    """
    idle = most - walkers
    if pages > free:
        idle = min(idle, max(ceil(at_once) + 1 - walkers, int(pages * LITTLE)))
    return max(0, min(-(-idle // walkers), idle, free))
