"""From walks to the sink: collects pages into batches, and commits rows and progress together.

The rule that cannot be broken: what a page stands for is noted only when the page is in the batch, and in the order in
which its walk delivered; a batch is committed with exactly what was noted since the last one (promise P3).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from fetcher.errors import TakenOverError, first_error
from fetcher.report import Tally
from fetcher.sinks.base import Batch, EncodedPage, Page, Sink, portfolios_of, without

T = TypeVar("T")


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A page on its way to whoever takes it, or news that has to keep its place between pages."""

    portfolio: str
    page: EncodedPage | Page | None
    """Encoded by the sink, if there is one."""
    accept: Callable[[], Mapping[str, str | None]]
    """Makes room for another page; returns the portfolio's records that change with this page and with what went
    before it, to be committed with it. To be called once, by whoever takes the page."""
    durable: Callable[[], None] | None = None
    """To be called once all up to here is durable, which is seen to at once; `None`: nobody waits for it."""


async def deliver(stream: MemoryObjectSendStream[Delivery], delivery: Delivery) -> None:
    """Send it, without giving way to other tasks where there is room, which `send` always does."""
    # Whoever cancels us closes the stream next, which is no fault of ours to tell.
    await anyio.lowlevel.checkpoint_if_cancelled()
    try:
        stream.send_nowait(delivery)
    except anyio.WouldBlock:
        await stream.send(delivery)


class Offload(Protocol):
    """Runs a blocking function away from the event loop, one at a time, always in the same thread."""

    def __call__(self, function: Callable[..., T], *arguments: object) -> Awaitable[T]:
        """The function's result; waits for its end even if the caller is cancelled meanwhile."""
        ...


class SinkThread:
    """The thread in which a sink lives: databases' connections are bound to theirs. A context manager.

    Args:
        abandon: tells the sink that a caller was cancelled, and waits for the end of what the sink is doing.
    """

    def __init__(self, abandon: Callable[[], None] | None = None) -> None:
        self._abandon = abandon

    def __enter__(self) -> SinkThread:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fetcher-sink")
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        """See `Offload`."""
        loop = asyncio.get_running_loop()
        result = loop.run_in_executor(self._executor, function, *arguments)
        try:
            await asyncio.wait([result])
        except asyncio.CancelledError:
            if self._abandon is not None:
                self._abandon()
            with anyio.CancelScope(shield=True):  # half a commit is no commit, and the thread cannot be stopped
                await asyncio.wait([result])
            result.exception()  # nobody else will ask
            raise
        return result.result()


class Writer:
    """Takes deliveries until the stream ends, and commits them in batches.

    Args:
        sink: opened, and used through `offload` alone.
        offload: runs the sink's methods.
        forget_before: asked at the end, for the last batch's `forget_before`.
        tallies: by portfolio, where it tells what was committed.
        lose: told of portfolios that somebody else has taken over; what comes of them is dropped from then on. `None`:
            that ends the run.
    """

    FIRST_SECONDS = 1.0
    """The first page waits no longer than this to become durable: who is killed early has something to go on from."""
    COMMIT_SECONDS = 20.0
    """No page waits longer, however slowly its batch fills. From the first on the time doubles until then: a folder of
    Parquet files gets a handful of small ones in each run, not one for each second."""
    BATCH_BYTES = 64 * 2**20
    """A batch takes no more memory than this, however large its orders are."""
    AHEAD_BYTES = 16 * 2**20
    """As much of the next batch may be there while one is committed: with less, walks wait for it; more is memory."""

    def __init__(
        self,
        sink: Sink,
        offload: Offload,
        forget_before: Callable[[], Mapping[str, str]],
        tallies: Mapping[str, Tally],
        lose: Callable[[TakenOverError], None] | None = None,
    ) -> None:
        self._sink = sink
        self._offload = offload
        self._forget_before = forget_before
        self._tallies = tallies
        self._lose = lose
        self._lost: set[str] = set()  # portfolios; all that follows changes with what comes, and with what is committed
        self._awaited: list[Callable[[], None]] = []  # see `Delivery.durable`
        self._pages: list[EncodedPage] = []
        self._progress: dict[str, str | None] = {}
        self._rows = 0
        self._bytes = 0
        self._due: float | None = None
        self._seconds = self.FIRST_SECONDS  # that the batch in hand may take to fill
        self._turn = anyio.Semaphore(1)  # one commit at a time

    async def run(self, receive: MemoryObjectReceiveStream[Delivery]) -> None:
        """Commit everything that comes, until the last sender closes. While one batch is committed, the next fills.

        Raises:
            SinkError: a commit failed; what it was to make durable is not.
        """
        try:
            async with anyio.create_task_group() as commits:
                while await self._take_next(receive):
                    if self._bytes >= self.AHEAD_BYTES:
                        await self._turn.acquire()
                        self._turn.release()
                    if self._full():
                        await self._hand_over(commits)
                await self._hand_over(commits, self._forget_before)
        except* Exception as errors:
            raise first_error(errors) from None

    async def _hand_over(
        self, commits: TaskGroup, forget_before: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        """Have what was collected made durable, with the progress that it stands for, after what came before it."""
        await self._turn.acquire()
        self._seconds = min(2 * self._seconds, self.COMMIT_SECONDS)
        pages, progress, awaited = self._pages, self._progress, self._awaited
        self._pages, self._progress, self._rows, self._bytes, self._due, self._awaited = [], {}, 0, 0, None, []
        batch = Batch(pages=pages, progress=progress, forget_before=forget_before() if forget_before else {})
        commits.start_soon(self._commit, batch, awaited)

    async def _commit(self, batch: Batch, awaited: Sequence[Callable[[], None]]) -> None:
        while batch.pages or batch.progress:
            try:
                committed = await self._offload(self._sink.commit, batch)
            except TakenOverError as error:
                batch = self._rest_of(batch, error)
                continue
            for portfolio, new in committed.items():
                self._tallies[portfolio].committed += new
            break
        for tell in awaited:
            tell()
        # After a failure nobody has a turn any more: what comes later stands on what was not committed.
        self._turn.release()

    def _rest_of(self, batch: Batch, error: TakenOverError) -> Batch:
        """What of a batch is still ours to commit."""
        if self._lose is None or portfolios_of(batch).isdisjoint(error.portfolios):
            raise error
        self._lost |= error.portfolios
        self._lose(error)
        return without(batch, error.portfolios)

    def _full(self) -> bool:
        if self._awaited:
            return True
        due = self._due is not None and anyio.current_time() >= self._due
        return due or self._rows >= self._sink.batch_rows or self._bytes >= self.BATCH_BYTES

    async def _take_next(self, receive: MemoryObjectReceiveStream[Delivery]) -> bool:
        """Take what comes next, unless a commit is due before it comes; false at the end."""
        try:
            try:
                self._take(receive.receive_nowait())  # in a hurry there is always one, and no need to watch the clock
            except anyio.WouldBlock:
                with anyio.CancelScope(deadline=math.inf if self._due is None else self._due):
                    self._take(await receive.receive())
        except anyio.EndOfStream:
            return False
        return True

    def _take(self, delivery: Delivery) -> None:
        if delivery.durable is not None:
            self._awaited.append(delivery.durable)
        if delivery.portfolio in self._lost:
            delivery.accept()  # which makes room
            return
        if isinstance(delivery.page, EncodedPage):
            self._pages.append(delivery.page)
            self._rows += delivery.page.rows
            self._bytes += delivery.page.size
        self._progress.update(delivery.accept())
        if self._due is None:
            self._due = anyio.current_time() + self._seconds
