"""Where a loader's pages go: to its run, which commits them with everybody's, or into a sink that many may write.

Both take what walks deliver from one stream, whichever Load it is of; what is waited for (`Delivery.durable`) is
through when it was sent, or when it is durable.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from anyio.streams.memory import MemoryObjectReceiveStream

from fetcher.errors import TakenOverError
from fetcher.loading.ownership import Ownership
from fetcher.loading.portfolios import Portfolios
from fetcher.report import Tally
from fetcher.sinks import Progress, Sink
from fetcher.sinks.writer import Delivery, Offload, Writer


class Outlet(Protocol):
    """Where the pages go."""

    async def open(self) -> None:
        """Make ready. Raises SinkError."""
        ...

    def held(self, portfolios: Portfolios, records: Progress) -> AbstractAsyncContextManager[Progress]:
        """Have portfolios to load within the context; gives what the sink knows of them.

        Args:
            portfolios: which; they have not begun.
            records: what the run knows of them.
        """
        ...

    async def take(self, receive: MemoryObjectReceiveStream[Delivery]) -> None:
        """Take what is delivered, until the stream ends. Raises SinkError."""
        ...


class ToTheRun:
    """The run commits; see `Outlet`.

    Args:
        pass_on: sends a delivery there.
    """

    buffer = 4
    """Encoded pages that may wait for it."""

    def __init__(self, pass_on: Callable[[Delivery], Awaitable[None]]) -> None:
        self._pass_on = pass_on

    async def open(self) -> None:
        """See `Outlet`."""

    @asynccontextmanager
    async def held(self, portfolios: Portfolios, records: Progress) -> AsyncGenerator[Progress]:
        """See `Outlet`: they are the run's."""
        yield records

    async def take(self, receive: MemoryObjectReceiveStream[Delivery]) -> None:
        """See `Outlet`."""
        async for delivery in receive:
            await self._pass_on(delivery)
            if delivery.durable is not None:
                delivery.durable()


class IntoTheSink:
    """The loader commits for itself; see `Outlet`.

    Sinks of a folder for each writer (files on a file system that many share) would be made here, each with a name of
    its own; those that are there now are one place for all.

    Args:
        sink: not yet opened; `shared`.
        offload: runs its methods.
        tallies: by portfolio, where it tells what was committed; those that come later, too.
        settled: see `fetcher.job.Loader`; likewise.
        lose: told what somebody else has taken over.
    """

    buffer = 16
    """Encoded pages that may wait for it; see `fetcher.job.Job.BUFFER`."""

    def __init__(
        self,
        sink: Sink,
        offload: Offload,
        tallies: Mapping[str, Tally],
        settled: Mapping[str, str],
        lose: Callable[[TakenOverError], None],
    ) -> None:
        self._sink = sink
        self._offload = offload
        self._writer = Writer(sink, offload, lambda: settled, tallies, lose)

    async def open(self) -> None:
        """See `Outlet`."""
        await self._offload(self._sink.open)

    def held(self, portfolios: Portfolios, records: Progress) -> AbstractAsyncContextManager[Progress]:
        """See `Outlet`: what the sink says now is newer than what the run knows."""
        return Ownership(self._sink, self._offload, portfolios).held()

    async def take(self, receive: MemoryObjectReceiveStream[Delivery]) -> None:
        """See `Outlet`."""
        await self._writer.run(receive)
