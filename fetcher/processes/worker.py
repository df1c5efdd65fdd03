"""A process that loads some of a run's portfolios: it walks, decodes and encodes; the run alone has the sink.

It is told what to do over a socket that it has from its parent, and ends when that is closed. Its budgets remember
what was sent as those of any process do, so it may be killed at any time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from importlib.util import find_spec

import anyio
import anyio.to_thread
import msgspec

from fetcher.config import from_wire
from fetcher.loading.claims import Claimed
from fetcher.loading.portfolios import Portfolios
from fetcher.processes.channel import (
    Channel,
    Claim,
    End,
    Granted,
    Leave,
    Message,
    Opened,
    Parcel,
    Settle,
    Start,
    Stop,
    Told,
)
from fetcher.sinks import EncodedPage, make_sink
from fetcher.sinks.writer import Delivery

TELL_SECONDS = 0.25
ABANDONED = 1
"""The exit code when the run is gone: nobody is there to take anything, or to be told."""
BUFFER = 4
"""Encoded pages that wait for the socket."""


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
    """Loads what its first message says, and tells of it.

    Args:
        channel: to the run.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._claims = RemoteClaims(self._send)
        # Held from when a page is accepted until it is sent: what is told never runs ahead of what was sent.
        self._order = asyncio.Lock()
        self._told_failed: dict[str, int] = {}  # by portfolio, how many failures were told
        self._lines = Lines()

    async def run(self) -> None:
        """Do it."""
        start = await self._channel.receive()
        if not isinstance(start, Start):  # the run ended before it began
            return
        logger = logging.getLogger("fetcher")
        logger.handlers = [self._lines]
        logger.setLevel(start.log_level)
        config = from_wire(start.config)
        async with Portfolios(config, full=start.full, claims=self._claims) as portfolios:
            async with anyio.create_task_group() as group:
                await group.start(portfolios.ask_ahead)
                # While the answers are on their way, and the run opens the sink: what it imports takes a while.
                encode = (await anyio.to_thread.run_sync(make_sink, config.sink_url)).encode
                opened = await self._channel.receive()
                if not isinstance(opened, Opened):  # the run ended before it began
                    os._exit(ABANDONED)
                group.start_soon(self._listen, portfolios)
                group.start_soon(self._keep_telling, portfolios)
                send, receive = anyio.create_memory_object_stream[Delivery](BUFFER)
                group.start_soon(portfolios.load, send, encode, opened.records)
                with receive:
                    async for delivery in receive:
                        await self._pass_on(delivery)
                group.cancel_scope.cancel()
            await self._tell(portfolios)
            await self._send(End(portfolios.settled))

    async def _listen(self, portfolios: Portfolios) -> None:
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, Granted):
                self._claims.granted(message)
            elif isinstance(message, Stop):
                portfolios.stop()
        os._exit(ABANDONED)

    async def _pass_on(self, delivery: Delivery) -> None:
        page = delivery.page if isinstance(delivery.page, EncodedPage) else None
        async with self._order:
            await self._send(Parcel(delivery.portfolio, page, delivery.accept()))

    async def _keep_telling(self, portfolios: Portfolios) -> None:
        while True:
            await self._tell(portfolios)
            await anyio.sleep(TELL_SECONDS)

    async def _tell(self, portfolios: Portfolios) -> None:
        async with self._order:
            tallies = [
                msgspec.structs.replace(tally, failed=tally.failed[self._told_failed.get(name, 0) :])
                for name, tally in portfolios.tallies.items()
            ]
            self._told_failed = {name: len(tally.failed) for name, tally in portfolios.tallies.items()}
            await self._send(Told(tallies, self._lines.take()))

    async def _send(self, message: Message) -> None:
        """Send it whole, even if the sender is cancelled meanwhile: the run is to understand what comes next."""
        try:
            with anyio.CancelScope(shield=True):
                await self._channel.send(message)
        except OSError:
            os._exit(ABANDONED)


def main(descriptor: int) -> None:
    """Work for the process that holds the other end of the socket."""
    end = socket.socket(fileno=descriptor)

    async def work() -> None:
        await Worker(Channel(end)).run()

    anyio.run(work, backend_options={"use_uvloop": find_spec("uvloop") is not None})  # the `speed` extra
