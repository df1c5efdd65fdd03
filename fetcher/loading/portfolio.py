"""One portfolio's load: discover, plan, walk, close; what fails is named and left for the next run.

    discover ─▶ remaining ─▶ pool: walks ─▶ handover ─▶ whoever takes it
                              └─ refusals        └─ aside
                then: asking (by ids), closing, and what other portfolios leave to this one

What is shared within the load, and by whom it is owned: when the run began by `Beginning`, what may come twice by
`Repeats`, what is refused by `Refusals`, what is kept aside by `Aside`, what was handed over by `Handover`, who walks
by `Pool`, what was reached by the `Checkpoint`. Here is the order in which things happen, and how a run ends.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import anyio

from fetcher.config import Config, PortfolioConfig
from fetcher.connector.client import Connector
from fetcher.connector.operations import OrdersOperation
from fetcher.connector.room import Room
from fetcher.errors import PlatformError
from fetcher.loading.aside import Aside
from fetcher.loading.asking import Asking
from fetcher.loading.beginning import Beginning
from fetcher.loading.claims import Claims
from fetcher.loading.closing import Closing
from fetcher.loading.cursors import Cursors
from fetcher.loading.discovery import AskedAhead, Discovered, discover, why_nothing
from fetcher.loading.handover import Encode, Handover, Send
from fetcher.loading.page_size import Learned
from fetcher.loading.pool import Pool
from fetcher.loading.refusals import PortfolioFailedError, Refusals
from fetcher.loading.remaining import UnderWay, divide, remaining, write_down
from fetcher.loading.walk import Scope
from fetcher.planning.checkpoint import Checkpoint, Position, RunRecord
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import ServiceRef, Shard, Target
from fetcher.report import Tally

log = logging.getLogger("fetcher")


class PortfolioLoad:
    """Loads one portfolio within one run.

    Args:
        config: the whole configuration.
        portfolio: which portfolio.
        connector: calls for its token.
        checkpoint: its progress.
        tally: where it tells what it does.
        send: takes what it loads.
        encode: brings a page into the form that `send` takes; see `Handover`.
        full: whether to read everything again, whatever is covered.
        claims: which portfolio loads what several see; shared by all loads of the run.
        room: for pages in memory; shared likewise.
        ahead: its enterprises, if they have been asked for.
    """

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
        room: Room,
        ahead: AskedAhead | None = None,
    ) -> None:
        self._config = config
        self._portfolio = portfolio
        self._connector = connector
        self._checkpoint = checkpoint
        self._tally = tally
        self._full = full
        self._claims = claims
        self._room = room
        self._ahead = ahead
        self._operation = OrdersOperation()
        self._learned = Learned(config.limits.page_size)
        self._cursors = Cursors()
        clock = connector.platform.clock
        self._repeats = Repeats(checkpoint, full=full)
        self._beginning = Beginning(config, clock, checkpoint, self._repeats)
        self._refusals = Refusals(connector, self._operation, checkpoint, tally)
        self._aside = Aside(checkpoint)
        self._handover = Handover(send, encode, self._operation, self._beginning, self._aside, checkpoint, tally)
        self._pool = Pool(config.limits.walks, self._refusals, self._handover, checkpoint, tally)
        self._asking = Asking(self._aside, self._handover, checkpoint, self._repeats, tally)
        self._closing = Closing(config.orders.settle_seconds, clock, self._beginning, self._repeats, tally)
        # All mutable state that is nobody else's: discovery sets it.
        self._visible: dict[str, ServiceRef] = {}  # by id, also those that other portfolios load

    @property
    def portfolio(self) -> str:
        """The portfolio's name."""
        return self._portfolio.name

    @property
    def settled(self) -> str | None:
        """See `Repeats.forget_before`."""
        return self._repeats.forget_before

    async def run(self) -> None:
        """Load it. Failures end up in the tally; only cancellation comes out."""
        started = anyio.current_time()
        found: Discovered | None = None
        target: Target | None = None
        try:
            self._tally.phase = "discovering"
            found = await self._discover()
            target = self._beginning.target()
            if self._visible:
                await self._load(found, target)
                await self._take_over(found, target)
                if self._full and not self._tally.failed:  # else it may be of what was not read
                    await self._give_up(found)
        except PortfolioFailedError as failure:
            await self._leave(failure.error)
        except PlatformError as error:
            await self._leave(error)
        finally:
            self._tally.seconds = anyio.current_time() - started
        await self._handover.news(partial(self._end_run, found, target))

    async def plan(self) -> tuple[Discovered, Target]:
        """What there is to load, for `fetcher plan`; asks for enterprises and services alone.

        Raises:
            PlatformError: the platform does not tell.
        """
        found = await self._discover()
        return found, self._beginning.target()

    def shards(self, found: Discovered, target: Target) -> tuple[list[Shard], list[UnderWay]]:
        """The shards that are missing, and the walks that go on."""
        by_states = self._config.orders.states is not None
        return remaining(self._checkpoint, found.services, target, self._repeats, by_states=by_states)

    async def interrupt(self) -> None:
        """The run is stopped: note it, for whoever asks what the sink holds."""
        await self._handover.news(self._note_interrupted)

    # What is loaded

    async def _discover(self) -> Discovered:
        portfolio, before = self._portfolio, self._checkpoint.services
        found = await discover(self._connector, portfolio.enterprise_ids, portfolio.service_ids, before, self._ahead)
        for id_, error in found.refused.items():
            self._tally.fail(f"{id_}: {error}", error.request_id)
        self._checkpoint.spell(service.id for service in found.services)
        if (reason := why_nothing(found, before)) is not None:
            self._tally.fail(reason)
        self._visible = {service.id: service for service in found.services}
        ours = await self._claims.claim(self._portfolio.name, self._visible)
        services = tuple(service for service in found.services if service.id in ours)
        self._repeats.delivered(service for service, begun in ours.items() if begun)
        if len(services) < len(found.services):
            others = len(found.services) - len(services)
            log.warning("%s: %d services are loaded by another portfolio", self._portfolio.name, others)
        self._tally.enterprises = len(found.enterprises)
        self._tally.services = len(services)
        return Discovered(found.enterprises, services, found.refused)

    async def _load(self, found: Discovered, target: Target) -> None:
        """Load what it has claimed."""
        checkpoint = self._checkpoint
        self._announce()
        if checkpoint.empty and not checkpoint.other_selections:
            checkpoint.note_since(target.settled)
        if self._full:
            self._forget_read(found.services)
        elif (before := self._beginning.overstated(target)) is not None:
            checkpoint.cut(before)
        self._refusals.expect(found.services)
        shards, going_on = self.shards(found, target)
        write_down(checkpoint, found.services, going_on)
        checkpoint.record_run(self._record("running or killed", checkpoint.watermark))
        await self._walk_through(found, target, shards, going_on, whole=True)

    async def _take_over(self, found: Discovered, target: Target) -> None:
        """Load what other portfolios have claimed and may not read, until nothing can come from them any more."""
        name = self._portfolio.name
        while True:
            refused = self._refusals.not_loaded
            begun = self._handover.begun & refused
            if begun:  # what another portfolio loads instead comes after it
                await self._handover.flush()
            self._tally.phase = "waiting"
            offered = await self._claims.settle(name, refused, begun)
            if not offered:
                return
            log.warning("%s: %d services are loaded that another portfolio cannot read", name, len(offered))
            self._tally.services += len(offered)
            self._repeats.delivered(service for service, begun in offered.items() if begun)
            services = tuple(sorted(self._visible[service] for service in offered))
            more = Discovered(found.enterprises, services, {})
            self._refusals.expect(services)
            divide(self._checkpoint, offered)
            if self._full:
                self._forget_read(services)
            await self._walk_through(more, target, *self.shards(more, target), whole=False)

    async def _walk_through(
        self,
        found: Discovered,
        target: Target,
        shards: Sequence[Shard],
        going_on: Sequence[UnderWay],
        *,
        whole: bool,
    ) -> None:
        """Walk all that is to be walked of these services, and close; `whole`: they are all that it had claimed."""
        self._tally.phase = "loading"
        self._repeats.remember_from(target.settled, [shard for shard, _ in going_on])
        moving = await self._pool.walk([*going_on, *self._from_start(shards)], self._scope(found))
        if self._aside.absent:  # most often there are none
            await self._handover.flush()
            asked = [service.id for service in found.services if service.id not in self._refusals.bad]
            await self._asking.ask(asked, self._scope(found), whole=whole)
        if not target.open_ended:
            return

        async def walk(shards: Sequence[Shard]) -> set[str]:
            return await self._pool.walk(self._from_start(shards), self._scope(found), closing=True)

        # Of a service that failed the next run reads on from what it has of it, if anything: what closed this run would
        # come again, and an appending sink may have forgotten it by then.
        read = [service for service in found.services if service.id not in self._pool.failed]
        await self._closing.close(read, target, moving, self._refusals.bad, walk)

    def _forget_read(self, services: Sequence[ServiceRef]) -> None:
        """Have all of them read again, also what is refused."""
        divide(self._checkpoint, {service.id for service in services})
        self._checkpoint.forget({service.id.lower() for service in services})

    async def _give_up(self, found: Discovered) -> None:
        """All of these services was read: what is kept aside of them and did not come is there no more."""
        await self._handover.flush()  # what the walks stand for is noted then
        services = {service.id.lower() for service in found.services}
        everywhere = self._checkpoint.covered().keys() <= services
        absent = self._aside.absent_of(services, everywhere=everywhere)
        await self._handover.give_up(absent, self._connector.platform.clock.now())

    def _from_start(self, shards: Sequence[Shard]) -> list[UnderWay]:
        return [(shard, Position(None, self._config.limits.page_size)) for shard in shards]

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
            cursors=self._cursors,
            settled=self._repeats.remembered_from,
            room=self._room,
            splits=self._config.limits.shard_by != "portfolio",
            full_since=self._beginning.began if self._full else None,
        )

    def _announce(self) -> None:
        name, checkpoint = self._portfolio.name, self._checkpoint
        if self._full:
            log.info("%s: everything is read again, as asked", name)
        elif checkpoint.other_selections and checkpoint.empty:
            log.warning("%s: the states differ from those of earlier runs: their whole history is read", name)

    # The end

    async def _leave(self, error: PlatformError) -> None:
        """It has failed. What it cannot load may be loaded by another, unless it is the platform that is down."""
        self._tally.fail(str(error), error.request_id)
        await self._handover.flush()  # what another portfolio loads instead comes after it
        for_others = not self._connector.platform.circuit.given_up
        await self._claims.leave(self._portfolio.name, self._handover.begun, for_others=for_others)

    def _end_run(self, found: Discovered | None, target: Target | None) -> None:
        """The last news of this portfolio: everything before it was accepted or rejected by now."""
        read = target is not None and not self._tally.failed  # all of it, and what is kept aside is durable, too
        watermark = self._checkpoint.watermark
        if read and target is not None:
            # By what is known now of when it began.
            watermark = min(target.window.end, self._beginning.target().window.end)
            self._checkpoint.whole()
        self._name_what_is_left_out()
        whole = read and not self._tally.failed
        if target is not None and found is not None:
            self._checkpoint.record_run(self._record("whole" if whole else "partly", watermark))
            self._repeats.forget({service.id.lower() for service in self._refusals.good_services}, target)
        self._tally.watermark = watermark
        self._tally.phase = "done" if whole else "failed"

    def _name_what_is_left_out(self) -> None:
        """What keeps a run from being whole though every walk came to its end."""
        for kind, count in self._tally.oddities.items():
            self._tally.fail(
                f"{count:,} orders {kind} came, and were left out. Run again; report it to the platform if it stays"
            )
        self._aside.name_in(self._tally)

    def _note_interrupted(self) -> None:
        if self._tally.phase in ("done", "failed"):  # it had come to its end by then
            return
        self._tally.phase = "stopped"
        self._tally.watermark = self._checkpoint.watermark
        if self._beginning.began is not None:
            self._checkpoint.record_run(self._record("interrupted", self._checkpoint.watermark))

    def _record(self, outcome: str, watermark: datetime | None) -> RunRecord:
        now = self._connector.platform.clock.now()
        last = self._checkpoint.last_run
        return RunRecord(
            selection=self._checkpoint.selection,
            began=self._beginning.began or now,
            ours=self._beginning.ours,
            ended=None if outcome == "running or killed" else now,
            outcome=outcome,
            watermark=watermark,
            failed=tuple(self._tally.failed[:100]),
            page_seconds=self._learned.page_seconds or (None if last is None else last.page_seconds),
        )
