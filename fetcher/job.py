"""The job: every portfolio's load side by side, one writer into the sink, and an orderly end however it comes.

    portfolio's load ─▶ walks ─┐
    portfolio's load ─▶ walks ─┼─▶ stream ─▶ writer ─▶ sink.commit, in the sink's own thread
    portfolio's load ─▶ walks ─┘

The stream is short, so walks wait while the sink is behind (promise P6).
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TypeVar

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from fetcher.checkpoint import Checkpoint, owners_of
from fetcher.config import Config, PortfolioConfig
from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Connector, Credentials, Platform
from fetcher.connector.slots import slot_file, state_folder
from fetcher.connector.transport import HttpTransport, Transport
from fetcher.errors import FetcherError, PlatformError, SinkError, first_error
from fetcher.load import Encode, PortfolioLoad, Send
from fetcher.plan import least_seconds
from fetcher.progress import PortfolioReport, Report, Tally
from fetcher.sinks.base import Page, Progress, Sink
from fetcher.writer import Delivery, Offload, SinkThread, Writer

log = logging.getLogger("fetcher")

T = TypeVar("T")


class PortfolioPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do for a portfolio. Requests and seconds are the least: an order more, a page more."""

    portfolio: str
    enterprises: int
    services: int
    shards_by_enterprise: int
    shards_by_portfolio: int
    requests_by_enterprise: int
    """Discovery, and one page for each shard."""
    requests_by_portfolio: int
    seconds_by_enterprise: float
    """In which the budget lets that many requests through."""
    seconds_by_portfolio: float
    resumes_from: datetime | None
    """The watermark; `None`: the portfolio was never loaded whole."""
    shards_open: int
    """Walks that were under way, and go on."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one thing that a run needs is usable."""

    what: str
    ok: bool
    message: str


class Job:
    """One load of all portfolios. An async context manager, for one use: `run`, `pages`, `plan` or `check`.

    Args:
        config: what to load, and how.
        sink: where `run` puts it, not yet opened.
        full: read everything again, whatever is covered.
        transport: how to reach the platform; `None`: over HTTP.
        offload: where the sink's methods run, but for `encode`; `None`: in a thread of their own.
        chance: where jitter comes from.
    """

    ROOM = 8
    """Pages being received at once. More do not come faster, and each takes memory that is no longer in any cache."""
    BUFFER = 16
    """Encoded pages between the walks and the writer."""

    def __init__(
        self,
        config: Config,
        *,
        sink: Sink | None = None,
        full: bool = False,
        transport: Transport | None = None,
        offload: Offload | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._config = config
        self._sink = sink
        self._full = full
        self._transport = transport
        self._offload = offload
        self._chance = chance or random.Random()  # noqa: S311 jitter, no secret
        self._exits = AsyncExitStack()
        self._group: TaskGroup | None = None
        self._platform: Platform | None = None
        self._connectors: dict[str, Connector] = {}
        self._tallies = {portfolio.name: Tally(portfolio=portfolio.name) for portfolio in config.portfolios}
        self._walks = anyio.CancelScope()
        self._stopped = False
        self._room = anyio.Semaphore(self.ROOM, fast_acquire=True)
        self.sink_opened = False
        """Whether the run got as far as its sink: before that nothing was written anywhere."""

    async def __aenter__(self) -> Job:
        try:
            return await self._enter()
        except BaseException:  # cancelled, too: who fails to enter is not exited
            await self._exits.aclose()
            raise

    async def _enter(self) -> Job:
        tokens = {
            portfolio.name: portfolio.access_token.resolve(f"portfolios.{portfolio.name}.access_token").reveal()
            for portfolio in self._config.portfolios
        }
        client_token = self._config.platform.client_token.resolve("platform.client_token").reveal()
        limits = self._config.limits
        transport = self._transport
        remembers = transport is None
        if transport is None:
            http = HttpTransport(
                self._config.platform.address,
                seconds=limits.request_seconds,
                body_bytes=limits.body_mebibytes * 2**20,
            )
            transport = await self._exits.enter_async_context(http)
        self._platform = Platform(
            transport,
            opens_per_second=limits.opens_per_second,
            outage_seconds=limits.outage_minutes * 60,
            chance=self._chance,
        )
        if self._offload is None:
            self._offload = self._exits.enter_context(SinkThread())
        budgets: dict[str, RequestBudget] = {}  # by token: two portfolios may, by mistake, have the same
        for name, token in tokens.items():
            budget = budgets.get(token) or budgets.setdefault(token, self._budget(token, remembers))
            credentials = Credentials(client_token, token, self._config.platform.client)
            self._connectors[name] = Connector(self._platform, credentials, budget, self._tallies[name])
        self._group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._walks.cancel()
        try:
            # Without the error: a task group would wrap it, and what `run` raises is to come out as it is.
            await self._of(self._group).__aexit__(None, None, None)
        except* FetcherError as errors:
            raise first_error(errors) from None
        finally:
            await self._exits.__aexit__(kind, error, trace)

    @property
    def tallies(self) -> list[Tally]:
        """What each portfolio has done so far, as of now."""
        for name, connector in self._connectors.items():
            tally = self._tallies[name]
            tally.budget_used = connector.budget.used
            tally.budget_limit = connector.budget.share
            tally.note = connector.platform.circuit.describe(connector.platform.clock)
            if tally.note is None and (pause := connector.budget.paused_seconds) >= 0.5:
                tally.note = f"paused by the platform for {pause:.0f} s"
        return list(self._tallies.values())

    def stop(self) -> None:
        """End the run soon, and in order: no more requests; what was received is committed. May be called twice."""
        self._stopped = True
        self._walks.cancel()

    async def run(self) -> Report:
        """Load everything into the sink.

        Raises:
            SinkError: the sink failed. What was committed before stays, and the next run goes on from there.
        """
        if self._sink is None:
            raise ValueError("a run needs a sink")
        started = anyio.current_time()
        sink, offload = self._sink, self._of(self._offload)
        try:
            records = await offload(sink.open)
            self.sink_opened = True
            await self._load_into(sink, offload, records)
            if not self._stopped:
                await offload(sink.finish)
        finally:
            with anyio.CancelScope(shield=True):
                await offload(sink.close)
        return self._report(anyio.current_time() - started)

    async def pages(self) -> AsyncGenerator[Page]:
        """Each page as it comes, in no particular order, none of them empty; walks wait while you work.

        No sink is used.

        What failed is in `tallies` afterwards. Leaving the loop early ends the walks.
        """
        send, receive = anyio.create_memory_object_stream[Delivery](0)
        records: Progress = {}
        loads: list[PortfolioLoad] = []
        # The task group is the job's, not this generator's: a generator may be closed from another task.
        self._of(self._group).start_soon(self._load_all, send, _as_it_is, records, loads)
        try:
            async for delivery in receive:
                try:
                    if isinstance(delivery.page, Page) and delivery.page.orders:
                        delivery.tally.committed += len(delivery.page.orders)
                        yield delivery.page
                finally:
                    delivery.accepted()
        finally:
            self._walks.cancel()  # before the stream closes: a walk that waits there would take it for a fault
            receive.close()

    async def plan(self) -> list[PortfolioPlan]:
        """What a run would do; sends only what discovery needs.

        Raises:
            PlatformError: discovery failed.
            SinkError: the sink cannot be read.
        """
        records = await self._held()
        owners = owners_of(records)
        plans: list[PortfolioPlan] = []
        for portfolio in self._config.portfolios:
            tally = self._tallies[portfolio.name]
            checkpoint = self._checkpoint(portfolio, records, owners)
            last = checkpoint.last_run
            load = self._load(portfolio, checkpoint, _nowhere, _as_it_is, {})
            found, target = await load.plan()
            limits = self._config.limits
            shards: list[int] = []
            going_on = 0
            for shard_by in ("enterprise", "portfolio"):
                missing, open_walks = load.shards(found, msgspec.structs.replace(target, shard_by=shard_by))
                going_on = len(open_walks)
                shards.append(len(missing) + going_on)
            requests = [tally.requests + count for count in shards]
            seconds = [least_seconds(count, limits.requests, limits.per_seconds) for count in requests]
            plans.append(
                PortfolioPlan(
                    portfolio=portfolio.name,
                    enterprises=len(found.enterprises),
                    services=len(found.services),
                    shards_by_enterprise=shards[0],
                    shards_by_portfolio=shards[1],
                    requests_by_enterprise=requests[0],
                    requests_by_portfolio=requests[1],
                    seconds_by_enterprise=seconds[0],
                    seconds_by_portfolio=seconds[1],
                    resumes_from=None if last is None or self._full else last.watermark,
                    shards_open=going_on,
                )
            )
        return plans

    async def check(self) -> list[Check]:
        """Whether the sink, and every portfolio's token, enterprises and services are usable."""
        checks: list[Check] = []
        if self._sink is not None:
            try:
                await self._of(self._offload)(self._sink.probe)
                checks.append(Check(what=f"sink {self._sink.url}", ok=True, message="usable"))
            except SinkError as error:
                checks.append(Check(what=f"sink {self._sink.url}", ok=False, message=f"{error.cause}. {error.cure}"))
        for portfolio in self._config.portfolios:
            load = self._load(portfolio, self._checkpoint(portfolio, {}, {}), _nowhere, _as_it_is, {})
            what = f"portfolio {portfolio.name}"
            try:
                found, _ = await load.plan()
            except PlatformError as error:
                checks.append(Check(what=what, ok=False, message=str(error)))
                continue
            counts = f"{len(found.enterprises)} enterprises, {len(found.services)} services"
            checks.append(Check(what=what, ok=bool(found.services), message=counts))
            checks += [Check(what=what, ok=False, message=f"{id_}: {error}") for id_, error in found.refused.items()]
        return checks

    def _budget(self, token: str, remembers: bool) -> RequestBudget:
        limits = self._config.limits
        memory = None
        if remembers:
            address, longest = self._config.platform.address, limits.per_seconds + limits.request_seconds
            memory = slot_file(state_folder(), address, token, slots=limits.requests, longest=longest)
            if memory is None:
                where = state_folder() or "the home folder"
                log.warning("what this process sends cannot be remembered for the next: %s is not writable", where)
            else:
                self._exits.callback(memory.close)
        return RequestBudget(limits.requests, limits.per_seconds, arrival_seconds=limits.request_seconds, memory=memory)

    async def _held(self) -> Progress:
        """The progress that the sink holds, without opening it."""
        if self._sink is None or self._full:
            return {}
        return (await self._of(self._offload)(self._sink.holdings)).progress

    def _checkpoint(
        self, portfolio: PortfolioConfig, records: Progress, owners: Mapping[str, Collection[str]]
    ) -> Checkpoint:
        return Checkpoint(portfolio.name, self._config.orders.states, records, owners)

    def _of(self, value: T | None) -> T:
        if value is None:
            raise RuntimeError("the job is used outside its `async with`")
        return value

    def _report(self, seconds: float) -> Report:
        tallies = list(self._tallies.values())
        watermarks = [tally.watermark for tally in tallies]
        return Report(
            orders=sum(tally.committed for tally in tallies),
            pages=sum(tally.pages for tally in tallies),
            requests=sum(tally.requests for tally in tallies),
            retries=sum(tally.retries for tally in tallies),
            throttled=sum(tally.throttled for tally in tallies),
            seconds=round(seconds, 3),
            complete=all(tally.phase == "done" for tally in tallies),
            interrupted=self._stopped,
            watermark=None if None in watermarks else min(filter(None, watermarks), default=None),
            sink="" if self._sink is None else self._sink.url,
            portfolios={tally.portfolio: _portfolio_report(tally) for tally in tallies},
            failed=[failure for tally in tallies for failure in tally.failed],
        )

    async def _load_into(self, sink: Sink, offload: Offload, records: Progress) -> None:
        loads: list[PortfolioLoad] = []
        others = {name.partition("/")[0] for name in records} - self._tallies.keys()

        def forget_before() -> str | None:
            settled = [load.settled for load in loads]
            # A portfolio that is not part of this run may come back, and read on from where it was.
            return None if others or None in settled else min(filter(None, settled), default=None)

        writer = Writer(sink, offload, forget_before)
        send, receive = anyio.create_memory_object_stream[Delivery](self.BUFFER)
        failure: list[Exception] = []

        async def write() -> None:
            with receive:
                try:
                    await writer.run(receive)
                except Exception as error:  # whatever it is, the walks end first; then it is raised
                    failure.append(error)
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await self._load_all(send, sink.encode, records, loads)
        if failure:
            raise failure[0]

    async def _load_all(
        self,
        send: MemoryObjectSendStream[Delivery],
        encode: Encode,
        records: Progress,
        loads: list[PortfolioLoad],
    ) -> None:
        """Run every portfolio's load, each of which is added to `loads`."""
        claimed: dict[str, str] = {}
        owners = owners_of(records)
        async with send:
            with self._walks:
                if self._stopped:
                    self._walks.cancel()
                async with anyio.create_task_group() as group:
                    for portfolio in self._config.portfolios:
                        checkpoint = self._checkpoint(portfolio, records, owners)
                        load = self._load(portfolio, checkpoint, partial(_send, send), encode, claimed)
                        loads.append(load)
                        group.start_soon(load.run)
            with suppress(anyio.BrokenResourceError):  # whoever took the pages has left
                for load in loads if self._stopped else ():
                    await load.interrupt()

    def _load(
        self,
        portfolio: PortfolioConfig,
        checkpoint: Checkpoint,
        send: Send,
        encode: Encode,
        claimed: dict[str, str],
    ) -> PortfolioLoad:
        return PortfolioLoad(
            self._config,
            portfolio,
            self._connectors[portfolio.name],
            checkpoint,
            self._tallies[portfolio.name],
            send,
            encode,
            full=self._full,
            claimed=claimed,
            room=self._room,
        )


def _as_it_is(page: Page) -> Page:
    """The encoding of those who take the pages themselves."""
    return page


async def _send(stream: MemoryObjectSendStream[Delivery], delivery: Delivery) -> None:
    # `send` gives way to other tasks each time, even where there is room. But whoever cancels us closes the stream
    # next, which is no fault of ours to tell.
    await anyio.lowlevel.checkpoint_if_cancelled()
    try:
        stream.send_nowait(delivery)
    except anyio.WouldBlock:
        await stream.send(delivery)


async def _nowhere(_delivery: Delivery) -> None:
    """Where nothing is loaded, nothing is delivered."""


def _portfolio_report(tally: Tally) -> PortfolioReport:
    return PortfolioReport(
        orders=tally.committed,
        pages=tally.pages,
        requests=tally.requests,
        retries=tally.retries,
        throttled=tally.throttled,
        seconds=round(tally.seconds, 3),
        complete=tally.phase == "done",
        watermark=tally.watermark,
        enterprises=tally.enterprises,
        services=tally.services,
        oddities=dict(tally.oddities),
        unknown_properties=list(tally.unknown_properties),
    )
