"""Several processes that load, each some of the portfolios; and how many are worth having.

    worker: walks ─▶ pages, decoded and encoded ─┐
    worker: walks ─▶ pages, decoded and encoded ─┼─▶ stream (see `fetcher.job`)
    worker: walks ─▶ pages, decoded and encoded ─┘

A token is one worker's, so its budget is too, and all that is promised of it. The sink and its progress stay with the
run: what a worker sends are pages, each with the records that change with it, and both are committed together.
"""

from __future__ import annotations

import logging
import os
import sys
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from math import ceil
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from fetcher.config import Config, PortfolioConfig, resolved, to_wire
from fetcher.connector.route import find_route
from fetcher.errors import ConfigError
from fetcher.loading.claims import FirstCome
from fetcher.planning.checkpoint import watermark_of
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
    pair,
)
from fetcher.processes.open_files import connections_for
from fetcher.report import Failure, Tally
from fetcher.sinks.base import Progress
from fetcher.sinks.writer import Delivery, deliver

if TYPE_CHECKING:
    from fetcher.loading.handover import Encode

log = logging.getLogger("fetcher")

BUSY_ORDERS_PER_SECOND = 100_000
"""What one process loads into any sink, compressed answers included; with less, more processes would but wait."""
MOST_PROCESSES = 16
"""Unless more are asked for: the one that commits keeps up with no more, and each takes about 100 MB."""
LONG = timedelta(days=30)
"""Since a portfolio was loaded whole: what changed in less is read before another process has begun."""
STOP_SECONDS = 4.0
"""For a worker to end in order once it is told to stop; then it is killed, which nothing that was sent minds."""
END_SECONDS = 5.0
"""For a worker to exit once it has sent everything."""


def processes_for(config: Config, watermarks: Mapping[str, datetime | None] | None = None) -> int:
    """How many processes are to load: as configured, or as many as can be kept busy and the machine can run.

    Portfolios keep a process busy if the limits let them, and if they have much to load: not those that were loaded
    whole within the last `LONG`, which have but a few pages left.

    Args:
        config: what is to be loaded, and how.
        watermarks: by portfolio, up to when it was loaded whole; `None`, or not named: it has everything to load.
    """
    limits = config.limits
    if limits.processes is not None:
        return min(limits.processes, len(config.portfolios))
    recently = datetime.now(UTC) - LONG
    reached = watermarks or {}
    ends = [reached.get(portfolio.name) for portfolio in config.portfolios]
    heavy = sum(end is None or end < recently for end in ends)
    allowed = heavy * limits.requests / limits.per_seconds * limits.page_size  # orders a second
    return max(1, min(ceil(allowed / BUSY_ORDERS_PER_SECOND), heavy, _cores(), MOST_PROCESSES))


def watermarks_of(config: Config, records: Progress) -> dict[str, datetime | None]:
    """By portfolio of the configuration, up to when the records say it was loaded whole.

    Args:
        config: what is to be loaded; under another filter by states, nothing was.
        records: the progress that the sink holds.
    """
    states = config.orders.states
    return {one.name: watermark_of(one.name, states, records) for one in config.portfolios}


def deal(config: Config, processes: int) -> list[Config]:
    """A configuration for each process: each token is in one of them, and none is without.

    Args:
        config: with every token resolved.
        processes: as many at most.
    """
    by_token: dict[str, list[PortfolioConfig]] = {}
    for portfolio in config.portfolios:
        by_token.setdefault(portfolio.access_token.resolve(portfolio.name).reveal(), []).append(portfolio)
    hands: list[list[PortfolioConfig]] = [[] for _ in range(min(processes, len(by_token)))]
    for number, portfolios in enumerate(by_token.values()):
        hands[number % len(hands)] += portfolios
    limits = config.limits  # of the whole run
    share = msgspec.structs.replace(limits, opens_per_second=limits.opens_per_second / len(hands))
    return [msgspec.structs.replace(config, portfolios=hand, limits=share) for hand in hands]


class _Member(msgspec.Struct, eq=False):
    """A worker, seen from the run."""

    config: Config
    channel: Channel
    process: Process
    ended: bool = False
    """Whether it has sent everything."""


class Crew:
    """Loads the portfolios of a configuration in processes of their own. An async context manager, for one use.

    Args:
        config: what to load, and how; `sink.url` is what the workers encode pages for.
        processes: as many at most.
        full: read everything again, whatever is covered.
        before: by portfolio, what this process has done before: what it sent is in the tallies.
    """

    def __init__(
        self, config: Config, processes: int, *, full: bool = False, before: Mapping[str, Tally] | None = None
    ) -> None:
        self._before = before or {}
        self._config = config
        self._processes = processes
        self._full = full
        self._claims = FirstCome()
        self._tallies = {portfolio.name: Tally(portfolio=portfolio.name) for portfolio in config.portfolios}
        self._settled: dict[str, str] = {}
        self._members: list[_Member] = []
        self._exits = AsyncExitStack()
        self._stopped = anyio.Event()
        self._loading = anyio.CancelScope()

    async def __aenter__(self) -> Crew:
        try:
            hands = deal(resolved(self._config), self._processes)
            for config in hands:  # at first: they are busy with their imports until they are told what to do
                self._members.append(await self._hire(config))
            # What is wrong here is told here: a worker could but die of it.
            await find_route(self._config.platform.address, hands[0].platform.ca_file)
            connections_for(max(hands, key=lambda config: len(config.portfolios)))
            for member in self._members:
                await self._tell(member, Start(to_wire(member.config), self._full, log.getEffectiveLevel()))
        except BaseException:  # cancelled, too: who fails to enter is not exited
            await self._exits.aclose()
            raise
        log.info("%d processes load %d portfolios", len(self._members), len(self._config.portfolios))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.__aexit__(kind, error, trace)

    @property
    def tallies(self) -> dict[str, Tally]:
        """By portfolio, what it has done so far, as the workers told last."""
        return self._tallies

    @property
    def settled(self) -> dict[str, str]:
        """See `fetcher.job.Loader`."""
        return self._settled

    def stop(self) -> None:
        """See `fetcher.job.Loader`."""
        self._stopped.set()

    def cancel(self) -> None:
        """See `fetcher.job.Loader`."""
        self._loading.cancel()

    async def load(self, send: MemoryObjectSendStream[Delivery], encode: Encode, records: Progress) -> None:
        """See `fetcher.job.Loader`; `encode` is not used, as the workers encode pages for the configured sink."""
        async with send:
            with self._loading:
                async with anyio.create_task_group() as group:
                    for member in self._members:
                        group.start_soon(self._follow, member, send, records)

    async def _hire(self, config: Config) -> _Member:
        channel, theirs = pair()
        self._exits.callback(channel.close)
        with theirs:
            try:
                process = await create_subprocess_exec(
                    *command(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=DEVNULL,
                    stdout=DEVNULL,  # it may be where the orders go
                    start_new_session=True,  # Ctrl-C is for the run
                )
            except OSError as error:
                cause = f"a process cannot be started ({error.strerror})"
                raise ConfigError("limits.processes", cause, "Write processes = 1") from error
        member = _Member(config, channel, process)
        self._exits.push_async_callback(_dismiss, member)
        return member

    async def _follow(self, member: _Member, send: MemoryObjectSendStream[Delivery], records: Progress) -> None:
        """Take what a worker sends until it ends."""
        try:
            async with anyio.create_task_group() as group:
                await member.channel.send(Opened(records))
                group.start_soon(self._pass_on_stop, member)
                await self._take(member, send, group)
                group.cancel_scope.cancel()
        except* OSError:  # it was gone before it began
            pass
        if not member.ended:
            await self._lost(member, records)

    async def _take(self, member: _Member, send: MemoryObjectSendStream[Delivery], group: TaskGroup) -> None:
        """Until its end, or until it is gone."""
        while (message := await member.channel.receive()) is not None:
            match message:
                case Parcel():
                    changes = message.changes
                    delivery = Delivery(portfolio=message.portfolio, page=message.page, accept=lambda c=changes: c)
                    await deliver(send, delivery)
                case Claim():
                    claimed = await self._claims.claim(message.portfolio, message.service_ids)
                    group.start_soon(self._tell, member, Granted(message.portfolio, claimed))
                case Settle():
                    group.start_soon(self._settle, member, message)
                case Leave():
                    await self._claims.leave(message.portfolio, message.begun, for_others=message.for_others)
                case Told():
                    for tally in message.tallies:
                        self._update(tally)
                    for level, text in message.lines:
                        log.log(level, "%s", text)
                case End():
                    self._settled.update(message.settled)
                    member.ended = True
                    return
                case _:
                    raise TypeError(type(message))

    async def _settle(self, member: _Member, message: Settle) -> None:
        claimed = await self._claims.settle(message.portfolio, message.refused, message.begun)
        await self._tell(member, Granted(message.portfolio, claimed))

    def _update(self, told: Tally) -> None:
        """What the worker says, less what the run knows better: how much is durable."""
        tally = self._tallies[told.portfolio]
        for name in Tally.__struct_fields__:
            if name not in ("committed", "failed"):
                setattr(tally, name, getattr(told, name))
        if (before := self._before.get(told.portfolio)) is not None:
            tally.requests += before.requests
            tally.retries += before.retries
            tally.throttled += before.throttled
        tally.failed.extend(told.failed)

    async def _pass_on_stop(self, member: _Member) -> None:
        await self._stopped.wait()
        with anyio.move_on_after(STOP_SECONDS):
            await self._tell(member, Stop())
            await anyio.sleep_forever()  # until it ends, which cancels this
        with suppress(ProcessLookupError):
            member.process.kill()

    async def _tell(self, member: _Member, message: Message) -> None:
        with suppress(OSError):  # if it is gone, then perhaps because it has sent everything: that is yet to be read
            await member.channel.send(message)

    async def _lost(self, member: _Member, records: Progress) -> None:
        """A worker is gone that had not sent everything: what it did not is for the next run."""
        code = await member.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        error = f"the process that loads it {how}. What is durable stays; run again to take up the rest"
        for portfolio in member.config.portfolios:
            await self._claims.leave(portfolio.name, None)
            tally = self._tallies[portfolio.name]
            if tally.phase in ("done", "failed", "stopped"):
                continue
            tally.watermark = watermark_of(portfolio.name, self._config.orders.states, records)
            if self._stopped.is_set():
                tally.phase = "stopped"
            else:
                tally.phase = "failed"
                tally.failed.append(Failure(portfolio=portfolio.name, error=error))


async def _dismiss(member: _Member) -> None:
    """Have a worker end: at once if it has not sent everything, for then nothing of it is of use any more."""
    process = member.process
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(END_SECONDS if member.ended else 0):
            await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(descriptor: int) -> list[str]:
    """The command line of a worker that finds its socket at this descriptor.

    It looks for modules where this process does: `python -m` would look in the working folder first.
    """
    return [sys.executable, "-c", _PROGRAM, str(descriptor), *sys.path]


# What a terminal or a service manager sends to all processes is for the run, which then tells its workers.
_PROGRAM = """# a worker of fetcher
import sys
sys.path[:] = sys.argv[2:]
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
from fetcher.processes.worker import main
main(int(sys.argv[1]))
"""
