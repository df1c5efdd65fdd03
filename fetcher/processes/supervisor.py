"""Several loaders, each with some of the portfolios; and how many are worth having.

    loader: walks ─▶ pages, decoded and encoded ─┐
    loader: walks ─▶ pages, decoded and encoded ─┼─▶ stream (see `fetcher.job`)
    loader: walks ─▶ pages, decoded and encoded ─┘

A token is one loader's, so its budget is too, and all that is promised of it. Where one process alone may write into
the sink, that is the run's: what a loader sends are pages, each with the records that change with it, and both are
committed together. Where many may (`Sink.shared`), each commits for itself, and no row comes by here.

What a loader is, and how what it says gets here, is for whoever hires it (`messages.Hired`): processes of this machine
(`local`), as a rule. If one is gone, others go on with what it had, from what is durable.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from math import ceil
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from fetcher.config import Config, resolved, to_wire
from fetcher.connector.route import find_route
from fetcher.errors import ConfigError, SinkAbandonedError, SinkError, TakenOverError
from fetcher.loading.claims import FirstCome
from fetcher.planning.checkpoint import watermark_of
from fetcher.processes.dealing import Dealing, deal, one_by_one
from fetcher.processes.local import hire_here
from fetcher.processes.messages import (
    Claim,
    End,
    Failed,
    Finish,
    Granted,
    Hire,
    Hired,
    Leave,
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
from fetcher.processes.open_files import connections_for
from fetcher.processes.silence import move_on_after_awake
from fetcher.report import Failure, Tally
from fetcher.sinks.base import Progress, note_changes
from fetcher.sinks.writer import Delivery, deliver

if TYPE_CHECKING:  # a run does without
    from fetcher.loading.handover import Encode

log = logging.getLogger("fetcher")

BUSY_ORDERS_PER_SECOND = 100_000
"""What one process loads into any sink, compressed answers included; with less, more processes would but wait."""
MOST_PROCESSES = 16
"""Unless more are asked for: the one that commits keeps up with no more, and each takes about 100 MB."""
LONG = timedelta(days=30)
"""Since a portfolio was loaded whole: what changed in less is read before another process has begun."""
STOP_SECONDS = 4.0
"""For a loader to end in order once it is told to stop; then it is killed, which nothing that was sent minds."""
END_SECONDS = 5.0
"""For a loader to end once it has sent everything."""
START_SECONDS = 60.0
"""For a loader to say something the first time."""
SILENT_SECONDS = 20.0
"""Without a word, when it says something four times a second: it hangs, or is cut off. On this machine it is killed."""
MOST_MOVES = 3
"""Of a portfolio, in turn, from a loader that is gone to another while nothing new of it becomes durable: perhaps it is
what ends them."""
COUNTS = ("orders", "committed", "pages", "requests", "retries", "throttled", "seconds")
"""What of a portfolio's tally adds up over the loaders that it had."""


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


async def check_machine(config: Config) -> None:
    """Find out, before anything is written anywhere, what could not be told later: by workers that could but die of it.

    Raises:
        ConfigError: a token is missing, or the platform cannot be reached as configured.
    """
    whole = resolved(config)
    await find_route(whole.platform.address, whole.platform.ca_file)
    connections_for(whole)


class _Member(msgspec.Struct, eq=False):
    """A loader, seen from the run."""

    loader: Hired
    number: int
    """In the dealing."""
    given: list[Config] = []
    """Hands that it has, and has yet to be told of."""
    started: bool = False
    """Whether it was told to start: then it can be told of hands."""
    seconds: float = START_SECONDS
    """That it may say nothing."""
    silent: bool = False
    """Whether it was given up because it said nothing."""
    ended: bool = False
    """Whether it has sent everything."""
    gone: bool = False
    """Whether it is lost, and no more is sent to it."""


class Crew:
    """Loads the portfolios of a configuration by several loaders. An async context manager, for one use.

    Args:
        config: what to load, and how; `sink.url` is what the loaders encode pages for.
        processes: as many at most.
        full: read everything again, whatever is covered.
        commits: whether each loader commits for itself, as the sink is `shared`; else the run does.
        before: by portfolio, what this process has done before: what it sent is in the tallies.
        hire: brings a loader into being.
        at_once: tokens that a loader has at once; the others wait until one has room, the large first, and where a
            loader is gone, another is hired. `None`: all are dealt at first.
        sizes: by portfolio, how much there is to load, where that is known; see `one_by_one`.
    """

    def __init__(
        self,
        config: Config,
        processes: int,
        *,
        full: bool = False,
        commits: bool = False,
        before: Mapping[str, Tally] | None = None,
        hire: Hire = hire_here,
        at_once: int | None = None,
        sizes: Mapping[str, float] | None = None,
    ) -> None:
        self._config = config
        self._processes = processes
        self._full = full
        self._hire = hire
        self._at_once = at_once
        self._sizes = sizes or {}
        self._claims = FirstCome()
        self._exits = AsyncExitStack()
        self._stopped = anyio.Event()
        self._loading = anyio.CancelScope()
        self._commits = commits
        # All mutable state, by portfolio. It changes as messages come, and as loaders do.
        self._tallies = {portfolio.name: Tally(portfolio=portfolio.name) for portfolio in config.portfolios}
        self._before = dict(before or {})  # what others had done of it
        self._moves = dict.fromkeys(self._tallies, 0)
        self._left = set(self._tallies)  # that are not loaded, nor given up
        self._settled: dict[str, str] = {}
        self._records: Progress | None = None  # once it is open: what the sink holds, or will, with what came so far
        self._held: Progress = {}  # what the sink held when it was opened
        self._dealing = Dealing(())
        self._members: dict[int, _Member] = {}  # by number, all that there ever were
        self._send: MemoryObjectSendStream[Delivery] | None = None
        self._group: TaskGroup | None = None
        self._failure: SinkError | None = None

    async def __aenter__(self) -> Crew:
        try:
            hands = self._dealt(resolved(self._config))
            self._dealing = Dealing(hands, self._at_once)
            for _ in range(min(self._processes, len(hands))):
                await self._new_member()  # at first: they are busy with imports until they are told what to do
            # What is wrong here is told here: a loader could but die of it.
            await find_route(self._config.platform.address, hands[0].platform.ca_file)
            connections_for(max(hands, key=lambda config: len(config.portfolios)))
            for member in self._there():
                await self._start(member)
            await self._hand_out()
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
        """By portfolio, what it has done so far, as the loaders told last."""
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

    def lose(self, error: TakenOverError) -> None:
        """See `fetcher.job.Loader`; it cannot be, where one process alone may write into the sink."""
        raise error

    async def load(self, send: MemoryObjectSendStream[Delivery], encode: Encode, records: Progress) -> None:
        """See `fetcher.job.Loader`; `encode` is not used, as the loaders encode pages for the configured sink."""
        self._send = send
        async with send:
            await self._follow_all(records)

    async def load_and_commit(self, records: Progress) -> None:
        """Load every portfolio, each loader into the sink, which is `shared`.

        Args:
            records: the progress that the sink holds.

        Raises:
            SinkError: a loader's sink failed. What was committed before stays.
        """
        await self._follow_all(records)
        if self._failure is not None:
            raise self._failure

    def _dealt(self, config: Config) -> list[Config]:
        if self._at_once is None:
            return deal(config, self._processes)
        return one_by_one(config, self._at_once * self._processes, self._sizes)

    async def _follow_all(self, records: Progress) -> None:
        self._held = records
        self._records = {} if self._commits else dict(records)
        with self._loading:
            async with anyio.create_task_group() as group:
                self._group = group
                for member in list(self._members.values()):
                    group.start_soon(self._follow, member)

    async def _new_member(self) -> _Member:
        loader = await self._hire()
        member = _Member(loader, self._dealing.join())
        self._members[member.number] = member
        self._exits.push_async_callback(_dismiss, member)
        return member

    async def _follow(self, member: _Member) -> None:
        """Have it load what it is given; take what it sends until it ends."""
        try:
            async with anyio.create_task_group() as group:
                if not member.started:
                    await self._start(member)
                await member.loader.send(Opened(self._records or {}))
                await self._hand_out()
                if not self._left:  # it came too late
                    await self._tell(member, Finish())
                group.start_soon(self._pass_on_stop, member)
                await self._take(member, group)
                group.cancel_scope.cancel()
        except* OSError:  # it was gone before it began
            pass
        if not member.ended:
            await self._lost(member)

    async def _start(self, member: _Member) -> None:
        await self._tell(member, Start(self._config.sink_url, self._full, self._commits, log.getEffectiveLevel()))
        member.started = True

    async def _hand_out(self) -> None:
        """Give what waits to those that have room, and tell them; or leave it for the next run."""
        if self._stopped.is_set():
            await self._give_up_all(self._dealing.drop(), None)
        for number, hand in self._dealing.deal():
            self._members[number].given.append(hand)
        for member in self._there():
            while member.started and member.given:
                await self._tell(member, Load(to_wire(member.given.pop(0)), self._records))

    async def _next(self, member: _Member) -> Message | None:
        """The next message of a loader; `None`: it is gone, or as good as that."""
        with move_on_after_awake(member.seconds):
            message = await member.loader.receive()
            member.seconds = SILENT_SECONDS
            return message
        member.silent = True
        member.loader.kill()
        return None

    async def _take(self, member: _Member, group: TaskGroup) -> None:
        """Until its end, or until it is gone."""
        while (message := await self._next(member)) is not None:
            match message:
                case Parcel():
                    await self._pass_on(message)
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
                case Loaded():
                    self._settled.update(message.settled)
                    self._dealing.done(member.number, message.portfolios)
                    await self._hand_out()
                    await self._over(message.portfolios)
                case Failed():
                    await self._fail(member, message)
                case End():
                    member.ended = True
                    return
                case _:
                    raise TypeError(type(message))

    async def _pass_on(self, parcel: Parcel) -> None:
        changes = parcel.changes
        if self._send is not None:
            await deliver(self._send, Delivery(portfolio=parcel.portfolio, page=parcel.page, accept=lambda: changes))
        if self._records is not None:  # as it is whenever a page comes: loaders begin once the sink is open
            note_changes(self._records, changes)  # only now: who is cancelled in between has not delivered it

    async def _settle(self, member: _Member, message: Settle) -> None:
        claimed = await self._claims.settle(message.portfolio, message.refused, message.begun)
        await self._tell(member, Granted(message.portfolio, claimed))

    def _update(self, told: Tally) -> None:
        """What the loader says, less what the run knows better: how much is durable, if it is the run that commits."""
        tally, before = self._tallies[told.portfolio], self._before.get(told.portfolio)
        for name in Tally.__struct_fields__:
            if name == "failed" or (name == "committed" and not self._commits):
                continue
            value = getattr(told, name)
            setattr(tally, name, value + getattr(before, name) if before and name in COUNTS else value)
        tally.failed.extend(told.failed)

    async def _over(self, portfolios: Iterable[str]) -> None:
        """These are loaded, or given up. Once all are, the loaders may end."""
        if not self._left:
            return
        self._left -= set(portfolios)
        if not self._left:
            for member in self._there():
                await self._tell(member, Finish())

    async def _fail(self, member: _Member, message: Failed) -> None:
        """A loader's sink failed, so everybody's does, and the run ends; but if it is to end, the others do it as well
        as they can.
        """
        kind = SinkAbandonedError if message.abandoned else SinkError
        self._failure = self._failure or kind(message.sink, message.cause, message.cure)
        if not (message.abandoned and self._stopped.is_set()):
            self._loading.cancel()
        await self._give_up_all(self._dealing.held(member.number), None)

    async def _pass_on_stop(self, member: _Member) -> None:
        await self._stopped.wait()
        with anyio.move_on_after(STOP_SECONDS):
            await self._tell(member, Stop())
            await anyio.sleep_forever()  # until it ends, which cancels this
        member.loader.kill()

    async def _tell(self, member: _Member, message: Message) -> None:
        with suppress(OSError):  # if it is gone, then perhaps because it has sent everything: that is yet to be read
            await member.loader.send(message)

    async def _lost(self, member: _Member) -> None:
        """A loader is gone that had not sent everything: others go on with what it had."""
        how = f"said nothing for {SILENT_SECONDS:.0f} s" if member.silent else await member.loader.ended()
        member.gone = True
        names = self._dealing.held(member.number) & self._left
        for name in names:
            before = self._before.get(name)
            advanced = self._tallies[name].committed > (before.committed if before else 0)
            self._moves[name] = 1 if advanced else self._moves[name] + 1
        given_up = {name for name in names if self._stopped.is_set() or self._moves[name] > MOST_MOVES}
        self._dealing.leave(member.number, given_up)
        for name in sorted(names - given_up):
            tally = self._tallies[name]
            self._claims.begin_again(name)
            self._before[name] = tally
            self._tallies[name] = msgspec.structs.replace(tally, phase="waiting", note=None, failed=[])
        if names - given_up:
            log.warning(
                "a process %s: what it loaded (%s) goes on in another", how, ", ".join(sorted(names - given_up))
            )
            if self._group is not None and (self._at_once is not None or not self._there()):
                self._group.start_soon(self._replace)
            await self._hand_out()
        why = None if self._stopped.is_set() else f"the process that loads it {how}, and so did those before"
        await self._give_up_all(given_up, why)

    def _there(self) -> list[_Member]:
        return [member for member in self._members.values() if not member.gone]

    async def _replace(self) -> None:
        """Have another loader in the place of one that is gone; if there is none at all, what waits is given up."""
        try:
            member = await self._new_member()
        except ConfigError as error:
            if not self._there():
                await self._give_up_all(self._dealing.drop(), str(error))
            return
        await self._follow(member)

    async def _give_up_all(self, names: Collection[str], error: str | None) -> None:
        for name in sorted(names):
            await self._give_up(name, error)
        if names:
            await self._over(names)

    async def _give_up(self, name: str, error: str | None) -> None:
        """Leave a portfolio for the next run; `None`: because the run was to stop."""
        await self._claims.leave(name, None)
        tally = self._tallies[name]
        if not self._commits and tally.phase in ("done", "failed", "stopped"):  # it is committed with all that came
            return
        tally.watermark = watermark_of(name, self._config.orders.states, self._held)
        tally.phase = "stopped" if error is None else "failed"
        if error is not None:
            cure = "What is durable stays; run again to take up the rest"
            tally.failed.append(Failure(portfolio=name, error=f"{error}. {cure}"))


async def _dismiss(member: _Member) -> None:
    """Have a loader end: at once if it has not sent everything, for then nothing of it is of use any more."""
    await member.loader.dismiss(END_SECONDS if member.ended else 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
