"""A loader: it walks, decodes, encodes and, where many may write into the sink, commits some of a run's portfolios.

It is told what to do over a link, and ends when that is gone. Its budgets remember what was sent as those of any
process do, so it may be killed at any time. How messages travel is not its affair: `main` is for the socket that a
process of the same machine has from its parent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from importlib.util import find_spec
from typing import NoReturn

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from fetcher.config import from_wire
from fetcher.connector.room import Room
from fetcher.errors import SinkAbandonedError, SinkError, TakenOverError, first_error
from fetcher.loading.claims import Claimed
from fetcher.loading.handover import Encode
from fetcher.loading.portfolios import Portfolios
from fetcher.processes.channel import Channel
from fetcher.processes.messages import (
    Claim,
    End,
    Failed,
    Finish,
    Granted,
    Leave,
    Link,
    Load,
    Loaded,
    Message,
    Opened,
    Parcel,
    Settle,
    Start,
    Stop,
    Told,
)
from fetcher.processes.outlets import IntoTheSink, Outlet, ToTheRun
from fetcher.report import Tally
from fetcher.sinks import EncodedPage, Progress, Sink, make_sink
from fetcher.sinks.writer import Delivery, Offload, SinkThread, deliver

TELL_SECONDS = 0.25
ABANDONED = 1
"""The exit code when the run is gone: nobody is there to take anything, or to be told."""


class RemoteClaims:
    """Asks the run, which knows what the other workers' portfolios have claimed. Each portfolio asks one thing at once.

    Args:
        send: to the run.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self._send = send
        self._asked: dict[str, asyncio.Future[Claimed]] = {}  # by portfolio

    async def claim(self, portfolio: str, service_ids: Iterable[str]) -> Claimed:
        """See `Claims`."""
        return await self._ask(portfolio, Claim(portfolio, list(service_ids)))

    async def settle(self, portfolio: str, refused: Collection[str], begun: Collection[str]) -> Claimed:
        """See `Claims`."""
        return await self._ask(portfolio, Settle(portfolio, sorted(refused), sorted(begun)))

    async def leave(self, portfolio: str, begun: Collection[str] | None, *, for_others: bool = True) -> None:
        """See `Claims`."""
        await self._send(Leave(portfolio, None if begun is None else sorted(begun), for_others))

    def granted(self, message: Granted) -> None:
        """The run has answered."""
        answer = self._asked.pop(message.portfolio)
        if not answer.done():
            answer.set_result(message.claimed)

    async def _ask(self, portfolio: str, question: Claim | Settle) -> Claimed:
        answer = self._asked[portfolio] = asyncio.get_running_loop().create_future()
        await self._send(question)
        return await answer


class Lines(logging.Handler):
    """Log lines that are to be told."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._lines.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        """Those since the last call."""
        lines, self._lines = self._lines, []
        return lines


class Worker:
    """Loads what it is told to, and tells of it.

    Args:
        link: to the run.
        abandon: ends this process at once, whatever it is doing, for the run is gone.
    """

    def __init__(self, link: Link, abandon: Callable[[], NoReturn]) -> None:
        self._link = link
        self._abandon = abandon
        self._claims = RemoteClaims(self._send)
        # Held from when a page is accepted until it is sent: what is told never runs ahead of what was sent.
        self._order = asyncio.Lock()
        self._told_failed: dict[str, int] = {}  # by portfolio, how many failures were told
        self._lines = Lines()
        self._loads: list[Portfolios] = []  # what is being loaded, of one Load each
        self._tallies: dict[str, Tally] = {}  # of all that ever was
        self._settled: dict[str, str] = {}
        self._sink: Sink | None = None
        self._room = Room(Portfolios.ROOM)
        self._opened = anyio.Event()  # the run has opened the sink
        self._records: Progress = {}  # as of then
        self._ready: anyio.Event = anyio.Event()  # and what is delivered is taken
        self._outlet: Outlet = ToTheRun(self._pass_on)  # where to; once that is so
        self._stopped = False

    async def run(self) -> None:
        """Do it."""
        start = await self._link.receive()
        if not isinstance(start, Start):  # the run ended before it began
            return
        logger = logging.getLogger("fetcher")
        logger.handlers = [self._lines]
        logger.setLevel(start.log_level)
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_telling)
            try:
                await self._work(start)
            except* SinkError as errors:
                failed = first_error(errors)
            group.cancel_scope.cancel()
        await self._tell()
        if isinstance(failed, SinkError):
            abandoned = isinstance(failed, SinkAbandonedError)
            await self._send(Failed(failed.sink, failed.cause, failed.cure, abandoned))
        await self._send(End())

    async def _work(self, start: Start) -> None:
        with SinkThread(self._abandon_sink) as thread:
            try:
                async with anyio.create_task_group() as group:
                    buffer = IntoTheSink.buffer if start.commits else ToTheRun.buffer
                    send, receive = anyio.create_memory_object_stream[Delivery](buffer)
                    group.start_soon(self._take, start, thread, receive)
                    async with send:
                        await self._listen(start, send, group)
            finally:
                if self._sink is not None:
                    with anyio.CancelScope(shield=True):
                        await thread(self._sink.close)

    async def _take(self, start: Start, offload: Offload, receive: MemoryObjectReceiveStream[Delivery]) -> None:
        """Have all that is delivered taken, once the run has opened the sink."""
        with receive:
            # While the first answers are on their way, and the run opens the sink: what it imports takes a while.
            sink = self._sink = await offload(make_sink, start.sink_url)
            if self._stopped:  # before it was there to be told
                sink.abandon()
            if start.commits:
                self._outlet = IntoTheSink(sink, offload, self._tallies, self._settled, self._lose)
            await self._opened.wait()
            await self._outlet.open()
            self._ready.set()
            await self._outlet.take(receive)

    async def _listen(self, start: Start, send: MemoryObjectSendStream[Delivery], group: TaskGroup) -> None:
        """Do what the run says, until it says that nothing more comes."""
        while (message := await self._link.receive()) is not None:
            match message:
                case Load():
                    group.start_soon(self._load, message, start, send.clone())
                case Opened():
                    self._records = message.records
                    self._opened.set()
                case Granted():
                    self._claims.granted(message)
                case Stop():
                    self._stopped = True
                    for portfolios in self._loads:
                        portfolios.stop()
                    self._abandon_sink()
                case Finish():
                    return
                case _:
                    raise TypeError(type(message))
        self._abandon()

    async def _load(self, load: Load, start: Start, send: MemoryObjectSendStream[Delivery]) -> None:
        config = from_wire(load.config)
        loads = Portfolios(config, full=start.full, claims=self._claims, room=self._room)
        async with send, loads as portfolios, anyio.create_task_group() as group:
            self._loads.append(portfolios)
            self._tallies |= portfolios.tallies
            if self._stopped:  # before it was there to be told
                portfolios.stop()
            if start.commits:
                portfolios.hold_back()
            await group.start(portfolios.ask_ahead)
            await self._ready.wait()
            records = self._records if load.records is None else load.records
            async with self._outlet.held(portfolios, records) as held:
                await portfolios.load(send.clone(), self._encode, held)
                through = anyio.Event()
                await deliver(send, Delivery(portfolio="", page=None, accept=dict, durable=through.set))
                await through.wait()
            self._settled |= portfolios.settled
            await self._tell()
            self._loads.remove(portfolios)
        await self._send(Loaded([portfolio.name for portfolio in config.portfolios], portfolios.settled))

    @property
    def _encode(self) -> Encode:
        if self._sink is None:
            raise RuntimeError("a page before the sink")
        return self._sink.encode

    def _abandon_sink(self) -> None:
        if self._sink is not None:
            self._sink.abandon()

    def _lose(self, error: TakenOverError) -> None:
        for portfolios in self._loads:
            portfolios.lose(error)
        for name in error.portfolios:  # what had failed is somebody else's, too
            self._told_failed[name] = 0

    async def _pass_on(self, delivery: Delivery) -> None:
        page = delivery.page if isinstance(delivery.page, EncodedPage) else None
        async with self._order:
            changes = delivery.accept()
            if page is not None or changes:
                await self._send(Parcel(delivery.portfolio, page, changes))

    async def _keep_telling(self) -> None:
        while True:
            await self._tell()
            await anyio.sleep(TELL_SECONDS)

    async def _tell(self) -> None:
        async with self._order:
            found = {name: tally for portfolios in self._loads for name, tally in portfolios.tallies.items()}
            tallies = [
                msgspec.structs.replace(tally, failed=tally.failed[self._told_failed.get(name, 0) :])
                for name, tally in found.items()
            ]
            self._told_failed |= {name: len(tally.failed) for name, tally in found.items()}
            await self._send(Told(tallies, self._lines.take()))

    async def _send(self, message: Message) -> None:
        """Send it whole, even if the sender is cancelled meanwhile: the run is to understand what comes next."""
        try:
            with anyio.CancelScope(shield=True):
                await self._link.send(message)
        except OSError:
            self._abandon()


def main(descriptor: int) -> None:
    """Work for the process that holds the other end of the socket."""
    end = socket.socket(fileno=descriptor)

    async def work() -> None:
        await Worker(Channel(end), _abandon).run()

    anyio.run(work, backend_options={"use_uvloop": find_spec("uvloop") is not None})  # the `speed` extra


def _abandon() -> NoReturn:
    os._exit(ABANDONED)
