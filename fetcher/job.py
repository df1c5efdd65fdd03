"""The job: everything loaded, one writer into the sink, and an orderly end however it comes.

    loader ─▶ stream ─▶ writer ─▶ sink.commit, in the sink's own thread

The loader is this process (`loading.portfolios`) or several others (`processes.supervisor`). The stream is short, so
walks wait while the sink is behind (promise P6).
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from fetcher.config import Config
from fetcher.errors import FetcherError, SinkAbandonedError, TakenOverError, first_error
from fetcher.processes.supervisor import Crew, processes_for, watermarks_of
from fetcher.report import PortfolioReport, Report, Tally
from fetcher.sinks import LaterSink
from fetcher.sinks.base import Extent, Page, Progress, Sink
from fetcher.sinks.places import is_blank
from fetcher.sinks.writer import Delivery, Offload, SinkThread, Writer

if TYPE_CHECKING:  # a run does without, or imports it when it needs it
    from fetcher.connector.transport import Transport
    from fetcher.loading.handover import Encode
    from fetcher.loading.portfolios import Patience, Portfolios
    from fetcher.prospect.check import Check
    from fetcher.prospect.plan import PortfolioPlan

T = TypeVar("T")

LOADS_HERE = "fetcher.loading.portfolios"
"""What is imported only if this process loads: with all that calls the platform it takes a tenth of a second."""


class Loader(Protocol):
    """Whoever loads the portfolios."""

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """By portfolio, what it has done so far, as of now."""
        ...

    @property
    def settled(self) -> Mapping[str, str]:
        """Of each portfolio whose load has ended, see `PortfolioLoad.settled`; complete when `load` has ended."""
        ...

    def stop(self) -> None:
        """End the loads soon, and in order: no more requests. May be called twice."""
        ...

    def cancel(self) -> None:
        """End the loads at once, and say nothing of it to whoever takes the pages."""
        ...

    def lose(self, error: TakenOverError) -> None:
        """End the loads of portfolios that somebody else has taken over. May be called twice."""
        ...

    async def load(self, send: MemoryObjectSendStream[Delivery], encode: Encode, records: Progress) -> None:
        """Load every portfolio: what is delivered goes to `send`, which is closed in the end.

        Args:
            send: takes the pages, and news that keep their place between them.
            encode: brings a page into the form in which it is delivered.
            records: the progress that the sink holds.
        """
        ...


class Job:
    """One load of all portfolios. An async context manager, for one use: `run`, `pages`, `plan` or `check`.

    Args:
        config: what to load, and how.
        sink: where `run` puts it, not yet opened, and perhaps yet to be made, which is then done in the sink's thread.
        full: read everything again, whatever is covered.
        transport: how to reach the platform; `None`: over HTTP.
        offload: where the sink's methods run, but for `encode`; `None`: in a thread of their own.
        chance: where jitter comes from.
        ours: this machine's time, in seconds since 1970.
        processes: how many load; more than one are processes of their own, which make the configured sink themselves
            to encode pages, and can `run` alone. `None`: as many as are worth having, found out once the sink has
            told its progress; for `run`.
        hurried: for `plan` and `check`, which nobody wants to wait for: a platform that is out of reach is given up
            within seconds.
    """

    BUFFER = 16
    """Encoded pages between the walks and the writer."""

    def __init__(
        self,
        config: Config,
        *,
        sink: Sink | LaterSink | None = None,
        full: bool = False,
        transport: Transport | None = None,
        offload: Offload | None = None,
        chance: random.Random | None = None,
        ours: Callable[[], float] = time.time,
        processes: int | None = 1,
        hurried: bool = False,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError("a job needs one process at least")
        if processes != 1 and not (transport is None and chance is None):
            raise ValueError("other processes have a transport, and chance, of their own")
        self._config = config
        self._sink = sink if isinstance(sink, Sink) else None
        self._later = sink if isinstance(sink, LaterSink) else None
        self._full = full
        self._offload = offload
        if processes is None and (full or processes_for(config) == 1):
            processes = processes_for(config)  # whatever the sink holds
        self._processes = processes
        self._transport = transport
        self._chance = chance
        self._ours = ours
        self._hurried = hurried
        self._here: Portfolios | None = None
        self._shared = sink is not None and sink.shared
        self._crew = None
        if processes is not None and processes > 1:
            self._crew = self._crew_of(processes)
        self._tallies = [Tally(portfolio=portfolio.name) for portfolio in config.portfolios]  # until there is a loader
        self._exits = AsyncExitStack()
        self._group: TaskGroup | None = None
        self._stopped = False
        self.sink_opened = False
        """Whether the run got as far as its sink: before that nothing was written anywhere."""

    async def __aenter__(self) -> Job:
        try:
            if self._offload is None:
                self._offload = self._exits.enter_context(SinkThread(self._abandon))
            if self._processes is None and await self._offload(is_blank, self._url):
                self._processes = processes_for(self._config)
            # Where nothing is known yet it is most often a run that finds little new: others may come later.
            await self._prepare(self._processes or 1)
            self._group = await anyio.create_task_group().__aenter__()
        except BaseException:  # cancelled, too: who fails to enter is not exited
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if loader := self._here or self._crew:
            loader.cancel()
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
        loader = self._here or self._crew
        return list(loader.tallies.values()) if loader else self._tallies

    def stop(self) -> None:
        """End the run within seconds, and in order: no more requests; what was received is committed, unless the sink
        does not answer. May be called twice.
        """
        self._stopped = True
        if loader := self._here or self._crew:
            loader.stop()
        self._abandon()

    async def run(self) -> Report:
        """Load everything into the sink.

        Raises:
            SinkError: the sink failed. What was committed before stays, and the next run goes on from there.
        """
        if self._sink is None and self._later is None:
            raise ValueError("a run needs a sink")
        started = anyio.current_time()
        offload = self._of(self._offload)
        if self._here is not None:
            if self._shared:
                self._here.hold_back()
            await self._of(self._group).start(self._here.ask_ahead)
        if self._sink is None:
            self._sink = await offload(self._of(self._later).make)
            if self._stopped:  # before it was there to be told
                self._sink.abandon()
        sink = self._sink
        try:
            records = await offload(sink.open)
            self.sink_opened = True
            await self._load_into(sink, offload, records)
            if not self._stopped:
                await offload(sink.finish)
        except SinkAbandonedError:
            if not self._stopped:
                raise
        finally:
            with anyio.CancelScope(shield=True):
                await offload(sink.close)
        return self._report(anyio.current_time() - started)

    async def pages(self) -> AsyncGenerator[Page]:
        """Each page as it comes, in no particular order, none of them empty; walks wait while you work.

        No sink is used. An order may come again in a later page: if its `UpdatedUtc` is not older, that is its newer
        version. Orders that cannot be read are in `page.rejected`, and only there.

        What failed is in `tallies` afterwards. Leaving the loop early ends the walks.
        """
        from fetcher.loading.portfolios import as_it_is

        send, receive = anyio.create_memory_object_stream[Delivery](0)
        nothing: Progress = {}
        portfolios = self._alone()
        # The task group is the job's, not this generator's: a generator may be closed from another task.
        self._of(self._group).start_soon(portfolios.load, send, as_it_is, nothing)
        try:
            async for delivery in receive:
                try:
                    page = _in_its_states(delivery.page) if isinstance(delivery.page, Page) else None
                    if page is not None and (page.orders or page.rejected):
                        portfolios.tallies[delivery.portfolio].committed += len(page.orders)
                        yield page
                finally:
                    delivery.accept()
        finally:
            portfolios.cancel()  # before the stream closes: a walk that waits there would take it for a fault
            receive.close()

    async def plan(self) -> list[PortfolioPlan]:
        """What a run would do; sends only what discovery needs. What fails at the platform is in each one's `failed`.

        Raises:
            SinkError: the sink cannot be read.
        """
        from fetcher.prospect.planner import Planner

        planner = Planner(self._config, self._alone(), full=self._full)
        extent = Extent(rows=None, progress={})
        if self._sink is not None:
            extent = await self._of(self._offload)(self._sink.extent)
        return await planner.plans(extent)

    async def check(self) -> list[Check]:
        """Whether the sink, and every portfolio's token, enterprises, services and orders are usable; in seconds."""
        from fetcher.prospect.check import Checks

        return await Checks(self._config, self._alone()).checks(self._sink)

    def _alone(self) -> Portfolios:
        if self._processes != 1:
            raise ValueError("a job of several processes can only `run`")
        return self._of(self._here)

    def _of(self, value: T | None) -> T:
        if value is None:
            raise RuntimeError("the job is used outside its `async with`")
        return value

    def _report(self, seconds: float) -> Report:
        tallies = self.tallies
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
            sink=self._url,
            portfolios={tally.portfolio: _portfolio_report(tally) for tally in tallies},
            failed=[failure for tally in tallies for failure in tally.failed],
        )

    @property
    def _url(self) -> str:
        sink = self._sink or self._later
        return "" if sink is None else sink.url

    def _abandon(self) -> None:
        if self._sink is not None:
            self._sink.abandon()

    async def _prepare(self, processes: int, before: Mapping[str, Tally] | None = None) -> Loader:
        """Have as many processes ready to load: this one, or so many others."""
        if processes > 1:
            chosen = self._crew = self._crew or self._crew_of(processes, before)
        else:
            chosen = self._here = await self._prepare_here()
        await self._exits.enter_async_context(chosen)
        if self._stopped:  # before it was there to be told
            chosen.stop()
        return chosen

    def _crew_of(self, processes: int, before: Mapping[str, Tally] | None = None) -> Crew:
        return Crew(self._config, processes, full=self._full, commits=self._shared, before=before)

    async def _prepare_here(self) -> Portfolios:
        if self._transport is None and LOADS_HERE not in sys.modules:
            # In a thread: an application's loop has other things to do meanwhile.
            await self._of(self._offload)(import_module, LOADS_HERE)
        from fetcher.loading.portfolios import Portfolios

        return Portfolios(
            self._config,
            full=self._full,
            transport=self._transport,
            chance=self._chance,
            ours=self._ours,
            patience=_hurry() if self._hurried else None,
        )

    async def _choose(self, here: Portfolios, records: Progress) -> Loader:
        """Have as many processes load as there is enough to do for: each takes time to begin, and memory."""
        count = processes_for(self._config, watermarks_of(self._config, records))
        if count == 1:
            return here
        sent = here.tallies
        self._here = None  # at first: what is closed has nothing to tell any more
        await here.withdraw()
        return await self._prepare(count, sent)

    async def _load_into(self, sink: Sink, offload: Offload, records: Progress) -> None:
        loader: Loader = self._of(self._here or self._crew)
        if self._processes is None:
            loader = await self._choose(self._of(self._here), records)
        if not self._shared:
            await self._load_and_write(loader, sink, offload, records)
        elif isinstance(loader, Crew):
            await loader.load_and_commit(records)
        else:
            from fetcher.loading.ownership import Ownership

            async with Ownership(sink, offload, self._of(self._here)).held() as taken:
                await self._load_and_write(loader, sink, offload, taken)

    async def _load_and_write(self, loader: Loader, sink: Sink, offload: Offload, records: Progress) -> None:
        writer = Writer(sink, offload, lambda: loader.settled, loader.tallies, loader.lose)
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
            await loader.load(send, sink.encode, records)
        if failure:
            raise failure[0]


def _hurry() -> Patience:
    from fetcher.prospect.patience import HURRY

    return HURRY


def _in_its_states(page: Page) -> Page:
    """A page less what is in other states than those asked for: where nothing is held, nothing can have changed."""
    states = page.states
    if states is None:
        return page
    others = {place for place, order in enumerate(page.orders) if order.state not in states}
    readable = [place for place in range(len(page.orders) + len(page.skipped)) if place not in page.skipped]
    orders = [order for place, order in enumerate(page.orders) if place not in others]
    return msgspec.structs.replace(
        page,
        orders=orders,
        skipped=page.skipped | {readable[place] for place in others},
        latest=max([order.updated_utc for order in orders], default=""),
    )


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
        kept_aside=tally.kept_aside,
    )
