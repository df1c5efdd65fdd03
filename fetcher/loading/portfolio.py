"""One portfolio's load: discover, plan, walk, close; what fails is named and left for the next run.

A run's end is fixed at its start, by the platform's clock. While it reads, orders change and so leave windows that
were not read yet; they turn up after the run's end. So a run closes by reading what changed since its end, packed
across enterprises, again and again until one request per batch gives all there is: then nothing moved unseen
(promise P1). Services whose whole run was one such request need no closing.

An order that cannot be read, or that the sink cannot hold, is kept aside (promise P7), and each run asks for those that
are left by their ids.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import msgspec
from anyio.abc import TaskGroup

from fetcher.checkpoint import AsideRecord, Checkpoint, Position, RunRecord
from fetcher.config import Config, PortfolioConfig
from fetcher.connector.client import Connector
from fetcher.connector.listings import ENTERPRISES
from fetcher.connector.operations import (
    MAX_IDS,
    EnterprisesRequest,
    Interval,
    Limitation,
    OrdersOperation,
    OrdersRequest,
)
from fetcher.connector.types import parse_utc, utc_text
from fetcher.errors import (
    AccessDeniedError,
    InvalidRequestError,
    PausedError,
    PlatformError,
    TooHeavyError,
    first_error,
)
from fetcher.loading.claims import Claims
from fetcher.loading.discovery import Discovered, discover, why_nothing
from fetcher.loading.refused import SAMPLE, asked_twice, find_denied, find_refused
from fetcher.loading.walk import Finished, Lineage, Scope, Split, Step, Walk
from fetcher.page_size import Learned, PageSize
from fetcher.plan import ServiceRef, Shard, Target, closing_shards, plan
from fetcher.progress import Failure, Tally
from fetcher.sifting import instant_of, sift_ids, time_key
from fetcher.sinks.base import EncodedPage, Page, RejectedRow, rejected_row
from fetcher.windows import Window, Windows, union
from fetcher.writer import Delivery

log = logging.getLogger("fetcher")

_FOR_EVER = datetime.max.replace(tzinfo=UTC)

Send = Callable[[Delivery], Awaitable[None]]
Encode = Callable[[Page], EncodedPage | Page]


class Item(msgspec.Struct, frozen=True):
    """A shard to walk, from a position on."""

    shard: Shard
    position: Position
    lineage: Lineage
    closing: bool = False
    """Whether it is read to close the run: no later run has to know where it stands."""
    attempts: int = 0


class Aside(msgspec.Struct, frozen=True):
    """What a page changes in what is kept aside."""

    rejected: tuple[RejectedRow, ...]
    mended: tuple[str, ...]
    """Keys."""


class PortfolioLoad:
    """Loads one portfolio within one run.

    Args:
        config: the whole configuration.
        portfolio: which portfolio.
        connector: calls for its token.
        checkpoint: its progress.
        tally: where it tells what it does.
        send: takes what it loads.
        encode: brings a page into the form that `send` takes. It is called where the page was decoded, at once, while
            the page is in the processor's cache: with another thread for it, jobs took a third to a half longer,
            waiting for the interpreter's lock and for memory.
        full: whether to read everything again, whatever is covered.
        claims: which portfolio loads what several see; shared by all loads of the run.
        room: for pages in memory; shared likewise.
    """

    CLOSING_ROUNDS = 8
    """Each round reads what changed during the round before, which took a fraction of its time. Their pauses double,
    and add up to twice `settle_seconds`."""
    LEAST_CLOSING_BATCH = 8
    """Each round also asks for fewer services at once, so that one request gives all."""
    CONFIRM_SECONDS = 2.0
    """Between a refused token and asking once more: what is revoked stays so, what hiccups does not."""
    FIRST_WALKS = 4
    """Side by side, until the platform has answered one: should none be allowed, no more than these were in vain."""
    ATTEMPTS = 3
    """Walks of a shard that is refused for no reason that can be found."""
    CLOCK_TOLERANCE = timedelta(seconds=2)
    """By which the platform's machines may differ: what a run leaves for the next is more."""
    BAD_AGAIN = timedelta(days=1)
    """How long a refused service is left alone."""
    LONGEST_MEMORY = timedelta(days=7)
    """Sinks that append tell repeats from new versions by memory for so long; after that, by reading what they hold."""
    MOST_NAMED = 100
    """Orders that are kept aside and named one by one, in a run's failures."""

    def __init__(
        self,
        config: Config,
        portfolio: PortfolioConfig,
        connector: Connector,
        checkpoint: Checkpoint,
        tally: Tally,
        send: Send,
        encode: Encode,
        *,
        full: bool,
        claims: Claims,
        room: anyio.Semaphore,
    ) -> None:
        self._config = config
        self._portfolio = portfolio
        self._connector = connector
        self._checkpoint = checkpoint
        self._tally = tally
        self._send = send
        self._encode = encode
        self._full = full
        self._claims = claims
        self._room = room
        self._operation = OrdersOperation()
        self._queue: deque[Item] = deque()
        self._workers = 0
        self._group: TaskGroup | None = None
        self._moving: set[str] = set()  # services of which orders may have moved unseen
        self._bad: dict[str, PlatformError] = {}
        self._asking = anyio.Lock()  # one at a time finds out what is refused; the others use what it found
        self._learned = Learned(config.limits.page_size)
        self._asked_at = 0.0  # when somebody last began to find out what is denied
        self._taken = False  # whether any order request was answered with something else than a refusal
        self._visible: dict[str, ServiceRef] = {}  # by id, also those that other portfolios load
        self._ours: set[ServiceRef] = set()  # what it is to load, or was
        self._lost: set[str] = set()  # services of walks that were denied for no reason that could be found
        self._sent: dict[str, tuple[str, ...]] = {}  # services, by batch, of which orders were delivered
        self._again: set[str] = set()  # services of which another portfolio may have delivered orders
        self._began: datetime | None = None
        self._began_at = 0.0  # in seconds of the event loop: what time it was then may turn out to be earlier
        self._cuts = 0  # how often it did
        self._remembered_from = ""
        # What is kept aside, counting what was delivered and not yet accepted: by key, each order's `UpdatedUtc`.
        self._aside = {key: record.updated_utc for key, record in checkpoint.aside().items()}
        self._rejected_now: set[str] = set()  # keys of those that came in this run
        self._forget_before: datetime | None = None

    @property
    def portfolio(self) -> str:
        """The portfolio's name."""
        return self._portfolio.name

    @property
    def settled(self) -> str | None:
        """What the sink may forget (form of `Page.settled`); `None`: nothing, or the load has not come to its end."""
        return None if self._forget_before is None else time_key(self._forget_before)

    async def run(self) -> None:
        """Load it. Failures end up in the tally; only cancellation comes out."""
        started = anyio.current_time()
        found: Discovered | None = None
        target: Target | None = None
        try:
            self._tally.phase = "discovering"
            found = await self._discover()
            target = self._target()
            if self._visible:
                await self._load(found, target)
                await self._take_over(found, target)
                if self._full and not self._tally.failed:  # else it may be of what was not read
                    await self._give_up([key for key in self._aside if key not in self._rejected_now])
        except _PortfolioFailedError as failure:
            self._fail(None, failure.error)
            await self._leave()
        except PlatformError as error:
            self._fail(None, error)
            await self._leave()
        finally:
            self._tally.seconds = anyio.current_time() - started
        await self._deliver_news(partial(self._end_run, found, target))

    async def plan(self) -> tuple[Discovered, Target]:
        """What there is to load, for `fetcher plan`; asks for enterprises and services alone.

        Raises:
            PlatformError: the platform does not tell.
        """
        found = await self._discover()
        return found, self._target()

    async def interrupt(self) -> None:
        """The run is stopped: note it, for whoever asks what the sink holds."""
        await self._deliver_news(self._note_interrupted)

    def _note_interrupted(self) -> None:
        if self._tally.phase in ("done", "failed"):  # it had come to its end by then
            return
        self._tally.phase = "stopped"
        self._tally.watermark = self._checkpoint.watermark
        if self._began is not None:
            self._checkpoint.record_run(self._record("interrupted", self._checkpoint.watermark))

    # Discovery and plan

    async def _discover(self) -> Discovered:
        found = await discover(self._connector, self._portfolio.enterprise_ids, self._portfolio.service_ids)
        for id_, error in found.refused.items():
            self._tally.failed.append(
                Failure(portfolio=self._portfolio.name, error=f"{id_}: {error}", request_id=error.request_id)
            )
        self._checkpoint.spell(service.id for service in found.services)
        if (reason := why_nothing(found, self._checkpoint.services)) is not None:
            self._fail_text(reason)
        self._visible = {service.id: service for service in found.services}
        ours = await self._claims.claim(self._portfolio.name, self._visible)
        services = tuple(service for service in found.services if service.id in ours)
        self._again = {service for service, begun in ours.items() if begun}
        if len(services) < len(found.services):
            others = len(found.services) - len(services)
            log.warning("%s: %d services are loaded by another portfolio", self._portfolio.name, others)
        self._tally.enterprises = len(found.enterprises)
        self._tally.services = len(services)
        return Discovered(found.enterprises, services, found.refused)

    def _target(self) -> Target:
        """What the run is to bring, by what is known now of when it began."""
        orders = self._config.orders
        clock = self._connector.platform.clock
        if self._began is None:
            self._began_at = anyio.current_time()
        now = clock.at(self._began_at)
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
            months=self._config.limits.window_months,
            shard_by=self._config.limits.shard_by,
        )

    def _heed_clock(self) -> None:
        """See whether the clock was ahead when the run began; then nothing stands for what changed since it really did.

        Whatever is written down for later runs is so by the time that is known then (see `PlatformClock`).
        """
        now = self._connector.platform.clock.at(self._began_at)
        if self._began is None or now >= self._began - self.CLOCK_TOLERANCE:
            return
        ahead = timedelta(seconds=round((self._began - now).total_seconds()))
        log.warning("%s: an answer's clock was %s ahead: what changed since is read again", self._portfolio.name, ahead)
        self._began = now
        self._cuts += 1
        settled = self._target().settled
        self._checkpoint.limit(settled)
        self._remembered_from = min(self._remembered_from, time_key(settled))

    def shards(self, found: Discovered, target: Target) -> tuple[list[Shard], list[tuple[Shard, Position]]]:
        """The shards that are missing, and the walks that go on."""
        checkpoint = self._checkpoint
        known = dict(checkpoint.covered())
        again = {
            service.id
            for service in found.services
            if self._full or checkpoint.again or checkpoint.elsewhere(service.id) or service.id in self._again
        }
        going_on: list[tuple[Shard, Position]] = []
        for shard, position in self._resumed(found)[0]:
            for service in map(str.lower, shard.service_ids):
                known[service] = (*known.get(service, ()), *shard.stands_for)
            repeats = shard.repeats or not again.isdisjoint(shard.service_ids)
            going_on.append((msgspec.structs.replace(shard, repeats=repeats), position))
        covered = {service.id: union(known.get(service.id.lower(), ())) for service in found.services}
        tainted: dict[str, Windows] = {}
        for service, windows in covered.items():
            if service in again:  # other progress was made before, or this was forgotten: orders come again
                tainted[service] = (target.window,)
            elif windows and checkpoint.forgot is not None and windows[0].end < checkpoint.forgot:
                tainted[service] = (Window(windows[0].end, checkpoint.forgot),)  # it was away for a while
        return plan(found.services, covered, target, tainted, self._filtered_until(covered, again, target)), going_on

    def _filtered_until(self, covered: Mapping[str, Windows], again: set[str], target: Target) -> dict[str, datetime]:
        """See `fetcher.plan.plan`. What was loaded may change to another state, and that is to be heard.

        It changes after it was loaded. So whatever was updated before anything of its service was read can be asked
        for by states: all of a service that is new, and what is left of the selection's first run.
        """
        if self._config.orders.states is None:
            return {}
        until = {service: target.window.end for service, windows in covered.items() if not windows}
        if (since := self._checkpoint.since) is not None:
            until |= {service: since for service, windows in covered.items() if windows}
        return {service: end for service, end in until.items() if service not in again}

    def _resumed(self, found: Discovered) -> tuple[list[tuple[Shard, Position]], list[tuple[Shard, Position]]]:
        """The walks that were under way: those that go on, and those that wait until their services are back."""
        known = {service.id.lower(): service.id for service in found.services}  # as the platform spells it today
        going_on: list[tuple[Shard, Position]] = []
        waiting: list[tuple[Shard, Position]] = []
        for shard, position in self._checkpoint.begun():
            here = tuple(sorted(known[service.lower()] for service in shard.service_ids if service.lower() in known))
            gone = tuple(service for service in shard.service_ids if service.lower() not in known)
            if here:
                going_on.append((msgspec.structs.replace(shard, service_ids=here), position))
            if gone:
                waiting.append((msgspec.structs.replace(shard, service_ids=gone), position))
        return going_on, waiting

    # Loading

    async def _load(self, found: Discovered, target: Target) -> None:
        checkpoint = self._checkpoint
        self._announce(checkpoint)
        if checkpoint.empty and not checkpoint.other_selections:
            checkpoint.note_since(target.settled)
        if self._full:
            checkpoint.forget()  # what is refused, too
        elif self._began is not None and checkpoint.reaches_beyond(self._began):
            checkpoint.cut(target.settled)  # the clock was ahead in an earlier run, or is behind now
        self._recall_bad(found)
        shards, going_on = self.shards(found, target)
        resumed = [*going_on, *self._resumed(found)[1]]
        for shard, position in resumed:
            checkpoint.advance(shard, position)  # parts of a walk take its place
        checkpoint.regroup(found.services, [shard for shard, _ in resumed])
        checkpoint.record_run(self._record("running or killed", self._checkpoint.watermark))
        await self._walk_through(found, target, shards, going_on, whole=True)

    async def _take_over(self, found: Discovered, target: Target) -> None:
        """Load what other portfolios have claimed and may not read, until nothing can come from them any more."""
        name = self._portfolio.name
        while True:
            refused = self._bad.keys() | self._lost
            begun = self._begun() & refused
            if begun:
                await self._flush()
            self._tally.phase = "waiting"
            offered = await self._claims.settle(name, refused, begun)
            if not offered:
                return
            log.warning("%s: %d services are loaded that another portfolio cannot read", name, len(offered))
            self._tally.services += len(offered)
            self._again.update(service for service, begun in offered.items() if begun)
            services = tuple(sorted(self._visible[service] for service in offered))
            more = Discovered(found.enterprises, services, {})
            self._recall_bad(more)
            self._divide(offered)
            await self._walk_through(more, target, *self.shards(more, target), whole=False)

    def _divide(self, services: Collection[str]) -> None:
        """Walks under way that are of these services and of others become two each, so that either can go on alone."""
        for shard, position in self._checkpoint.begun():
            here = tuple(service for service in shard.service_ids if service in services)
            gone = tuple(service for service in shard.service_ids if service not in services)
            if here and gone:
                self._checkpoint.drop(shard)
                for part in (here, gone):
                    self._checkpoint.advance(msgspec.structs.replace(shard, service_ids=part), position)

    async def _leave(self) -> None:
        """What this portfolio cannot load may be loaded by another, unless it is the platform that is down."""
        await self._flush()
        for_others = not self._connector.platform.circuit.given_up
        await self._claims.leave(self._portfolio.name, self._begun(), for_others=for_others)

    def _begun(self) -> set[str]:
        """Services of which this run may have delivered orders."""
        return {service for services in self._sent.values() for service in services}

    async def _flush(self) -> None:
        """Wait until all that was delivered is accepted: what another portfolio loads instead comes after it."""
        accepted = anyio.Event()
        await self._deliver_news(accepted.set)
        await accepted.wait()

    async def _walk_through(
        self,
        found: Discovered,
        target: Target,
        shards: Sequence[Shard],
        going_on: Sequence[tuple[Shard, Position]],
        *,
        whole: bool,
    ) -> None:
        """Walk all that is to be walked of these services, and close; `whole`: they are all that it had claimed."""
        page_size = self._config.limits.page_size
        items = [Item(shard, position, Lineage()) for shard, position in going_on]
        items += [Item(shard, Position(None, page_size), Lineage()) for shard in shards]
        # Only services with a single shard can be read at once; the others may have moved between shards.
        walks = Counter(service for item in items for service in item.shard.service_ids)
        self._moving = {service for service, count in walks.items() if count > 1}
        self._ours.update(found.services)
        self._tally.phase = "loading"
        # Walks that go on reach into what the new ones read, so all remember from the earliest of them on.
        self._remembered_from = time_key(min([target.settled, *(shard.settled for shard, _ in going_on)]))
        await self._walk_all(items, found)
        await self._ask_again(found, whole=whole)
        if target.open_ended:
            await self._close(found, target)

    async def _close(self, found: Discovered, target: Target) -> None:
        """Read what changed since the run's end, until nothing moved while it was read."""
        self._tally.phase = "closing"
        orders = self._config.orders
        settle = timedelta(seconds=orders.settle_seconds)
        clock = self._connector.platform.clock
        began_at = self._began_at  # of the run, then of the round before
        suspects, cuts = set(self._moving), self._cuts
        for number in range(self.CLOSING_ROUNDS):
            self._heed_clock()
            if self._cuts > cuts:  # the rounds so far began too late
                began_at = self._began_at
                self._moving |= suspects
            moving = [service for service in found.services if service.id in self._moving - self._bad.keys()]
            if not moving:
                return
            suspects |= self._moving
            self._moving = set()
            cuts = self._cuts
            # A bulk of changes is more than one request gives, until it is older than what a round reads again.
            await anyio.sleep(orders.settle_seconds * 2.0 ** (number - self.CLOSING_ROUNDS + 1) if number else 0)
            start = min(target.window.end, (clock.at(self._began_at) - settle).replace(microsecond=0))
            start = max(start, (clock.at(began_at) - settle).replace(microsecond=0))
            began_at = anyio.current_time()
            window = Window(start, max(clock.now().replace(microsecond=0), start + timedelta(seconds=1)))
            position = Position(None, self._config.limits.page_size)
            shards = closing_shards(moving, window, target.settled, max(MAX_IDS >> number, self.LEAST_CLOSING_BATCH))
            if self._checkpoint.again:
                shards = [msgspec.structs.replace(shard, repeats=True) for shard in shards]
            await self._walk_all([Item(shard, position, Lineage(), closing=True) for shard in shards], found)
        self._heed_clock()
        if self._moving or self._cuts > cuts:
            what = "orders change faster than they can be read"
            self._fail_text(f"{what}; the next run goes on from here. Run again at a quieter time")

    def _announce(self, checkpoint: Checkpoint) -> None:
        name = self._portfolio.name
        if self._full:
            log.info("%s: everything is read again, as asked", name)
        elif checkpoint.other_selections and checkpoint.empty:
            log.warning("%s: the states differ from those of earlier runs: their whole history is read", name)

    def _recall_bad(self, found: Discovered) -> None:
        now = self._connector.platform.clock.now()
        known = {service.id.lower(): service.id for service in found.services}
        for key, retry_at in self._checkpoint.bad_services().items():
            service = known.get(key.lower())
            if retry_at <= now:
                self._checkpoint.mark_good(key)  # so it seems, until the platform says otherwise
            elif service is not None:
                error = InvalidRequestError(
                    self._operation.path,
                    f"refused before, to be tried again after {utc_text(retry_at)}",
                    status=400,
                )
                self._note_bad(service, error)

    # Walking

    def _scope(self, found: Discovered) -> Scope:
        states = self._config.orders.states
        return Scope(
            portfolio=self._portfolio.name,
            connector=self._connector,
            operation=self._operation,
            enterprise_ids={service.id.lower(): service.enterprise_id for service in found.services},
            states=None if states is None else tuple(states),
            page_size=self._config.limits.page_size,
            learned=self._learned,
            settled=self._remembered_from,
            room=self._room,
            full_since=self._began if self._full else None,
        )

    async def _walk_all(self, items: Iterable[Item], found: Discovered) -> None:
        self._queue.extend(items)
        self._tally.shards_planned += len(self._queue)
        scope = self._scope(found)
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                self._hire(scope)
        except* (_PortfolioFailedError, PlatformError) as errors:
            self._queue.clear()
            raise first_error(errors) from None

    def _hire(self, scope: Scope) -> None:
        """Have as many workers as there is work for, up to the limit."""
        most = self._config.limits.walks
        idle = (most if self._taken else min(most, self.FIRST_WALKS)) - self._workers
        for _ in range(min(idle, len(self._queue))):
            self._workers += 1
            if self._group is not None:
                self._group.start_soon(self._work, scope)

    async def _work(self, scope: Scope) -> None:
        try:
            while self._queue:
                await self._walk(self._queue.popleft(), scope)
        finally:
            self._workers -= 1

    def _requeue(self, items: Sequence[Item], scope: Scope) -> None:
        """Parts of a shard go first: they are what the newest-first order has got to."""
        self._queue.extendleft(reversed(items))
        self._tally.shards_planned += len(items)
        self._hire(scope)

    async def _walk(self, item: Item, scope: Scope) -> None:
        """Walk one item to its end, its split, or its failure."""
        if not self._bad.keys().isdisjoint(item.shard.service_ids):
            await self._leave_out_bad(item, item.shard, item.position, scope)
            return
        walk = Walk(scope, item.shard, item.position, item.lineage)
        try:
            outcome = await walk.run(partial(self._deliver, item, scope))
        except InvalidRequestError as error:
            if not error.names_services:
                self._fail(item, error)
            else:
                await self._find_bad(item, walk, error, scope)
        except AccessDeniedError as error:
            await self._find_denied(item, walk, error, scope)
        except PlatformError as error:
            if self._connector.platform.circuit.given_up or isinstance(error, PausedError):
                raise _PortfolioFailedError(error) from None
            self._fail(item, error)
        else:
            if isinstance(outcome, Split):
                await self._split(item, walk.shard, outcome, scope)
            else:
                self._finished(item, outcome)

    def _finished(self, item: Item, outcome: Finished) -> None:
        self._tally.shards_done += 1
        if not (outcome.at_once and item.shard.open_ended):
            self._moving.update(item.shard.service_ids)

    async def _split(self, item: Item, shard: Shard, split: Split, scope: Scope) -> None:
        parts = [msgspec.structs.replace(item, shard=part, position=position) for part, position in split.parts]
        self._moving.update(shard.service_ids)
        self._tally.shards_planned -= 1
        if not item.closing:
            await self._deliver_news(partial(self._note_split, item, shard, split))
        self._requeue(parts, scope)

    def _note_split(self, item: Item, shard: Shard, split: Split) -> None:
        self._checkpoint.drop(shard)
        for part, position in split.parts:
            self._checkpoint.advance(part, position)

    # What is refused

    async def _find_denied(self, item: Item, walk: Walk, error: AccessDeniedError, scope: Scope) -> None:
        """Find out what the token has no right to, and go on with the rest; raises if nothing is left.

        Each walk has at most one request refused until that is known: it waits for its turn to ask, and whoever was
        refused before somebody else began to ask tries again instead.
        """
        denied_at = anyio.current_time()
        attempts = item.attempts if walk.position.cursor == item.position.cursor else 0
        async with self._asking:
            if self._asked_at < denied_at and self._bad.keys().isdisjoint(walk.shard.service_ids):
                self._asked_at = anyio.current_time()
                attempts += 1
                try:
                    found = await self._ask_for_rights(walk.shard, error)
                except PlatformError as trouble:  # it cannot be found out now
                    self._fail(item, trouble)
                    return
                if not found and attempts >= self.ATTEMPTS:
                    self._lost.update(walk.shard.service_ids)
                    self._fail(item, error)
                    return
        attempt = msgspec.structs.replace(item, attempts=attempts)
        await self._leave_out_bad(attempt, walk.shard, walk.position, scope)

    async def _ask_for_rights(self, shard: Shard, error: AccessDeniedError) -> bool:
        """Whether anything was found that the token has no right to; if that is all, raises `_PortfolioFailedError`."""
        await anyio.sleep(self.CONFIRM_SECONDS)
        try:
            await self._connector.call(ENTERPRISES, EnterprisesRequest(Limitation(1)))
        except AccessDeniedError:
            raise _PortfolioFailedError(error) from None
        except PlatformError:  # nothing that tells of the token: look for what it may not see
            pass
        probe = partial(self._probe, shard.window)
        if await probe(shard.service_ids) is None:  # it was a mistake, or is over
            return False
        enterprises: dict[str, list[str]] = {}
        count = 0
        for service in sorted(self._ours):
            if service.id not in self._bad:
                enterprises.setdefault(service.enterprise_id, []).append(service.id)
                count += 1
        denied = await find_denied(shard.service_ids, enterprises, probe)
        if (reason := denied.everything) is not None:
            detail = f"{reason.detail}; likewise for {min(SAMPLE, count)} of {count:,} services, each asked for alone"
            raise _PortfolioFailedError(
                AccessDeniedError(reason.operation, detail, status=reason.status, request_id=reason.request_id)
            )
        for enterprise, refusal in denied.enterprises.items():
            self._note_denied(enterprise, enterprises[enterprise], refusal)
        self._keep_bad(denied.ids)
        return bool(denied.enterprises or denied.ids)

    async def _find_bad(self, item: Item, walk: Walk, error: InvalidRequestError, scope: Scope) -> None:
        """Find the services that the platform refuses, and go on with the others."""
        shard = walk.shard
        async with self._asking:
            if self._bad.keys().isdisjoint(shard.service_ids):
                try:
                    bad = await find_refused(shard.service_ids, asked_twice(partial(self._probe, shard.window)))
                except PlatformError as trouble:  # it cannot be found out now
                    self._fail(item, trouble)
                    return
                self._keep_bad(bad)
                if not bad and item.attempts + 1 >= self.ATTEMPTS:
                    self._fail(item, error)
                    return
        attempt = msgspec.structs.replace(item, attempts=item.attempts + 1)
        await self._leave_out_bad(attempt, shard, walk.position, scope)

    async def _leave_out_bad(self, item: Item, shard: Shard, position: Position, scope: Scope) -> None:
        good = tuple(service for service in shard.service_ids if service not in self._bad)
        self._tally.shards_planned -= 1
        if not good:
            return
        rest = msgspec.structs.replace(shard, service_ids=good)
        if rest != item.shard and not item.closing:
            # What the bad ones had is noted too, so that they go on from there once the platform takes them again.
            left_out = tuple(service for service in shard.service_ids if service in self._bad)
            split = Split(((rest, position), (msgspec.structs.replace(shard, service_ids=left_out), position)))
            await self._deliver_news(partial(self._note_split, item, item.shard, split))
        self._requeue([msgspec.structs.replace(item, shard=rest, position=position)], scope)

    async def _probe(self, window: Window, ids: Sequence[str]) -> PlatformError | None:
        """Whether the platform takes these services: `None`, or its refusal."""
        interval = Interval.between(window.start, min(window.end, window.start + timedelta(seconds=1)))
        try:
            await self._connector.call(self._operation, OrdersRequest(Limitation(1), ids, interval))
        except (AccessDeniedError, InvalidRequestError) as refusal:
            return refusal
        return None

    def _keep_bad(self, bad: Mapping[str, PlatformError]) -> None:
        """Note what is refused alone, for later runs too: to find it takes many requests."""
        retry_at = self._connector.platform.clock.now() + self.BAD_AGAIN
        for service, refusal in bad.items():
            self._note_bad(service, refusal)
            self._checkpoint.mark_bad(service, retry_at.replace(microsecond=0))

    def _note_denied(self, enterprise: str, services: Sequence[str], error: PlatformError) -> None:
        """Leave a whole enterprise out of this run; the next one finds out again, with a few requests."""
        self._bad.update(dict.fromkeys(services, error))
        self._tally.failed.append(
            Failure(
                portfolio=self._portfolio.name,
                enterprise=enterprise,
                error=str(error),
                request_id=error.request_id,
            )
        )

    def _note_bad(self, service: str, error: PlatformError) -> None:
        self._bad[service] = error
        self._tally.failed.append(
            Failure(
                portfolio=self._portfolio.name,
                services=(service,),
                error=str(error),
                request_id=error.request_id,
            )
        )

    # Delivering

    async def _deliver(self, item: Item, scope: Scope, step: Step) -> None:
        """Hand a walk's page over."""
        if not self._taken:
            self._taken = True
            self._hire(scope)
        self._sent[step.shard.batch_key] = step.shard.service_ids
        for kind, count in step.sifted.oddities.items():
            self._tally.oddities[kind] = self._tally.oddities.get(kind, 0) + count
        note = partial(self._note_step, item, step.shard, step.position)
        page = step.page
        del step
        await self._deliver_page(page, note)

    def _note_step(self, item: Item, shard: Shard, position: Position | None) -> None:
        if item.closing:
            return
        if position is None:
            self._checkpoint.finish(shard)
        else:
            self._checkpoint.advance(shard, position)

    async def _deliver_page(self, page: Page, note: Callable[[], None]) -> None:
        """Hand a page over, for which there is room; `note` notes in the checkpoint what it stands for."""
        self._tally.pages += 1
        self._tally.orders += len(page.orders) + len(page.rejected)  # a sink may hold what we cannot read
        if len(self._tally.unknown_properties) < len(self._operation.unknown):
            self._report_unknown()
        try:
            encoded = self._encode(page)
            aside: Aside | None = None
            if self._aside or page.rejected or (isinstance(encoded, EncodedPage) and encoded.rejected):
                encoded, aside = self._put_aside(page, encoded)
            del page
            accept = partial(self._accept_page, note, aside)
            await self._send(Delivery(portfolio=self._portfolio.name, page=encoded, accept=accept))
        except BaseException:  # cancelled, too: nobody else will make room
            self._room.release()
            raise

    def _accept_page(self, note: Callable[[], None], aside: Aside | None) -> Mapping[str, str | None]:
        self._room.release()
        self._heed_clock()
        note()
        if aside is not None:
            self._note_aside(aside)
        return self._checkpoint.take_changes()

    # What is kept aside

    def _put_aside(self, page: Page, encoded: EncodedPage | Page) -> tuple[EncodedPage | Page, Aside]:
        """Tell what of a page is kept aside, and what is so no longer because it came readable."""
        rows = encoded.rejected if isinstance(encoded, EncodedPage) else [rejected_row(page, o) for o in page.rejected]
        rejected = {row.key: row for row in rows}
        mended = [
            key
            for id_, updated in _versions(page)
            if (key := id_.lower()) in self._aside
            and key not in rejected
            and (self._aside[key] is None or parse_utc(updated) >= parse_utc(self._aside[key] or ""))
        ]
        for key in mended:
            del self._aside[key]
        self._aside.update((key, row.updated_utc) for key, row in rejected.items())
        self._rejected_now |= rejected.keys()
        if mended and isinstance(encoded, EncodedPage):
            encoded = msgspec.structs.replace(encoded, mended=mended)
        return encoded, Aside(tuple(rejected.values()), tuple(mended))

    def _note_aside(self, aside: Aside) -> None:
        for key in aside.mended:
            self._checkpoint.take_back(key)
        for row in aside.rejected:
            self._checkpoint.keep_aside(
                row.key,
                AsideRecord(
                    id=row.id,
                    reason=row.reason,
                    enterprise_id=row.enterprise_id,
                    service_id=row.service_id,
                    updated_utc=row.updated_utc,
                    can_be_asked_for=row.has_id,
                ),
            )

    async def _ask_again(self, found: Discovered, *, whole: bool) -> None:
        """Ask for the orders that were kept aside by their ids: their windows may be done, and would not bring them.

        After the walks: what a walk is still to bring is left to it, or it would come twice. Only if the services are
        the `whole` of what it loads, also for those of which nobody knows the service.
        """
        if self._aside.keys() <= self._rejected_now:  # most often there are none
            return
        await self._flush()
        services = {service.id.lower(): service.id for service in found.services if service.id not in self._bad}
        waiting = [
            record
            for record in self._checkpoint.aside().values()
            if record.can_be_asked_for
            and record.id.lower() not in self._rejected_now
            and (whole if record.service_id is None else record.service_id.lower() in services)
        ]
        waiting.sort(key=lambda record: (record.service_id or "", record.id))
        scope = self._scope(found)
        covered = self._checkpoint.covered()
        remembered = Window(instant_of(self._remembered_from), _FOR_EVER)
        read = {service: (*covered.get(service, ()), remembered) for service in services}
        for first in range(0, len(waiting), MAX_IDS):
            part = waiting[first : first + MAX_IDS]
            named = {services[record.service_id.lower()] for record in part if record.service_id is not None}
            all_named = all(record.service_id is not None for record in part)
            of = sorted(named if all_named else services.values())
            came: set[str] = set()
            try:
                asked = [record.id for record in part]
                for start in range(0, len(of), MAX_IDS):
                    came |= await self._ask_for(scope, of[start : start + MAX_IDS], asked, read)
            except PlatformError as error:
                text = f"orders that are kept aside could not be asked for again: {error}"
                self._fail_text(text, error.request_id)
                return
            # The platform has them no longer, so there is nothing to wait for.
            await self._give_up([key for record in part if (key := record.id.lower()) not in came])

    async def _ask_for(
        self, scope: Scope, services: Sequence[str], ids: Sequence[str], read: Mapping[str, Windows]
    ) -> set[str]:
        """Orders by their ids; returns the keys of those that came, readable or not."""
        wanted = frozenset(id_.lower() for id_ in ids)
        size = PageSize(scope.page_size, scope.page_size, scope.learned)
        cursor: str | None = None
        came: set[str] = set()
        while True:
            limitation = Limitation(size.count, cursor)
            request = OrdersRequest(limitation, services, product_service_order_ids=ids)
            try:
                answer = await self._connector.call(self._operation, request, self._room)
            except TooHeavyError:
                if not size.shrink():
                    raise
                continue
            listing = answer.listing
            again = self._checkpoint.again
            page = scope.page(answer, sift_ids(listing, wanted, read), repeats=again, filtered=False)
            before = len(came)
            came |= {order.id.lower() for order in listing.items}
            came |= {(order.id or "").lower() for order in listing.rejected.values()}
            del answer
            await self._deliver_page(page, _nothing)
            if listing.count < limitation.count or listing.cursor is None or len(came) == before:
                return came
            cursor = listing.cursor

    async def _give_up(self, keys: Sequence[str]) -> None:
        """What is kept aside under these keys is not at the platform any more."""
        gone = [key for key in keys if key in self._aside]
        if not gone:
            return
        log.warning("%s: %d orders that were kept aside are gone from the platform", self._portfolio.name, len(gone))
        for key in gone:
            del self._aside[key]
        page = self._encode(
            Page(
                portfolio=self._portfolio.name,
                enterprise_ids={},
                orders=[],
                body=b"",
                latest="",
                fetched_utc=self._connector.platform.clock.now(),
                settled=self._remembered_from,
            )
        )
        page = msgspec.structs.replace(page, mended=gone) if isinstance(page, EncodedPage) else None
        accept = partial(self._accept_news, partial(self._note_aside, Aside((), tuple(gone))))
        await self._send(Delivery(portfolio=self._portfolio.name, page=page, accept=accept))

    def _name_what_is_left_out(self) -> None:
        """What keeps a run from being whole though every walk came to its end."""
        for kind, count in self._tally.oddities.items():
            self._fail_text(
                f"{count:,} orders {kind} came, and were left out. Run again; report it to the platform if it stays"
            )
        aside = self._checkpoint.aside()
        for record in list(aside.values())[: self.MOST_NAMED]:
            self._tally.failed.append(
                Failure(
                    portfolio=self._portfolio.name,
                    enterprise=record.enterprise_id,
                    services=() if record.service_id is None else (record.service_id,),
                    error=f"order {record.id} is kept aside: {record.reason}. Every run asks for it again",
                )
            )
        if len(aside) > self.MOST_NAMED:
            self._fail_text(f"{len(aside) - self.MOST_NAMED:,} more orders are kept aside. See fetcher status")

    async def _deliver_news(self, note: Callable[[], None]) -> None:
        """Have something noted in the checkpoint after all that was delivered before."""
        accept = partial(self._accept_news, note)
        await self._send(Delivery(portfolio=self._portfolio.name, page=None, accept=accept))

    def _accept_news(self, note: Callable[[], None]) -> Mapping[str, str | None]:
        self._heed_clock()
        note()
        return self._checkpoint.take_changes()

    def _report_unknown(self) -> None:
        for name in self._operation.unknown[len(self._tally.unknown_properties) :]:
            self._tally.unknown_properties.append(name)
            log.warning("%s: orders have a property %r that the table does not know", self._portfolio.name, name)

    # The end

    def _fail(self, item: Item | None, error: PlatformError) -> None:
        if item is None:
            self._fail_text(str(error), error.request_id)
            return
        shard = item.shard
        self._tally.failed.append(
            Failure(
                portfolio=self._portfolio.name,
                enterprise=shard.enterprise_id,
                services=shard.service_ids,
                window=(shard.window.start, shard.window.end),
                error=str(error),
                request_id=error.request_id,
            )
        )

    def _fail_text(self, text: str, request_id: str | None = None) -> None:
        self._tally.failed.append(Failure(portfolio=self._portfolio.name, error=text, request_id=request_id))

    def _end_run(self, found: Discovered | None, target: Target | None) -> None:
        """The last news of this portfolio: everything before it was accepted or rejected by now."""
        read = target is not None and not self._tally.failed  # all of it, and what is kept aside is durable, too
        watermark = self._checkpoint.watermark
        if read and target is not None:
            watermark = min(target.window.end, self._target().window.end)  # by what is known now of when it began
            self._checkpoint.whole()
        self._name_what_is_left_out()
        whole = read and not self._tally.failed
        if target is not None and found is not None:
            self._checkpoint.record_run(self._record("whole" if whole else "partly", watermark))
            self._forget(target)
        self._tally.watermark = watermark
        self._tally.phase = "done" if whole else "failed"

    def _forget(self, target: Target) -> None:
        """Say what the sink may forget: what no walk brings again, but for walks of which the sink is to be read."""
        services = {service.id.lower() for service in self._ours if service.id not in self._bad}
        settled = self._checkpoint.settled(services)
        if settled is not None:
            self._forget_before = max(settled, target.settled - self.LONGEST_MEMORY)
            self._checkpoint.note_forgotten(self._forget_before)

    def _record(self, outcome: str, watermark: datetime | None) -> RunRecord:
        running = outcome == "running or killed"
        return RunRecord(
            selection=self._checkpoint.selection,
            began=self._began or self._connector.platform.clock.now(),
            ended=None if running else self._connector.platform.clock.now(),
            outcome=outcome,
            watermark=watermark,
            failed=tuple(self._tally.failed[:100]),
        )


def _versions(page: Page) -> Iterator[tuple[str, str]]:
    """Each order's id and `UpdatedUtc`, also of those that cannot be read but that some sink may keep all the same."""
    for order in page.orders:
        yield order.id, order.updated_utc
    for order in page.rejected:
        if order.id is not None and order.updated_utc is not None:
            yield order.id, order.updated_utc


def _nothing() -> None:
    """What a page stands for that no walk brought."""


class _PortfolioFailedError(Exception):
    """Nothing more of this portfolio can be loaded in this run."""

    def __init__(self, error: PlatformError) -> None:
        super().__init__()
        self.error = error
