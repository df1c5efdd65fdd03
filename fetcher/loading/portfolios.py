"""Every portfolio's load side by side, in this process: what they share, and one of everything that each has alone.

    portfolio's load ─▶ walks ─┐
    portfolio's load ─▶ walks ─┼─▶ stream
    portfolio's load ─▶ walks ─┘

They share the transport, the room for pages, and the claims; each token has its budget.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType

import anyio
import msgspec
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from fetcher.config import Config, PortfolioConfig, ca_file_of
from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Connector, Credentials, Platform
from fetcher.connector.room import Room
from fetcher.connector.slots import place_of, slot_file, state_folder, why_none
from fetcher.connector.transport import HttpTransport, Transport
from fetcher.errors import TakenOverError
from fetcher.loading.claims import Claims, FirstCome
from fetcher.loading.discovery import AskedAhead
from fetcher.loading.handover import Encode, Send
from fetcher.loading.ownership import Ownership
from fetcher.loading.portfolio import PortfolioLoad
from fetcher.planning.checkpoint import Checkpoint, owners_of
from fetcher.processes.open_files import connections_for
from fetcher.report import Tally
from fetcher.sinks.base import Page, Progress
from fetcher.sinks.writer import Delivery, deliver

log = logging.getLogger("fetcher")


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long the platform is waited for, by those who cannot wait as long as a run does."""

    request_seconds: float
    """At most, of each request."""
    outage_seconds: float
    tries: int
    """Of each call that fails for a while."""


class Portfolios:
    """The portfolios of a configuration, ready to be loaded. An async context manager, for one use.

    Args:
        config: what to load, and how.
        full: read everything again, whatever is covered.
        claims: which portfolio loads what several see; `None`: nobody else is asked.
        transport: how to reach the platform; `None`: over HTTP.
        chance: where jitter comes from.
        ours: this machine's time, in seconds since 1970.
        patience: `None`: as configured.
        room: for pages being received, shared with others of this process; `None`: `ROOM` of its own.
    """

    ROOM = 8
    """Pages being received at once. More do not come faster, and each takes memory that is no longer in any cache."""

    def __init__(
        self,
        config: Config,
        *,
        full: bool = False,
        claims: Claims | None = None,
        transport: Transport | None = None,
        chance: random.Random | None = None,
        ours: Callable[[], float] = time.time,
        patience: Patience | None = None,
        room: Room | None = None,
    ) -> None:
        self._config = config
        self._full = full
        self._claims = claims or FirstCome()
        self._transport = transport
        self._patience = patience
        self._ours = ours
        self._chance = chance or random.Random()  # noqa: S311 jitter, no secret
        self._exits = AsyncExitStack()
        self._connectors: dict[str, Connector] = {}
        self._tallies = {portfolio.name: Tally(portfolio=portfolio.name) for portfolio in config.portfolios}
        self._loads: list[PortfolioLoad] = []
        self._ahead: dict[str, AskedAhead] = {}  # by portfolio, once `ask_ahead` runs
        self._asking = anyio.CancelScope()
        self._asked = anyio.Event()
        self._lost: dict[str, TakenOverError] = {}  # by portfolio
        self._scopes = {portfolio.name: anyio.CancelScope() for portfolio in config.portfolios}
        self._walks = anyio.CancelScope()
        self._stopped = False
        self._remembers = transport is None
        self._room = room or Room(self.ROOM)

    async def __aenter__(self) -> Portfolios:
        try:
            await self._connect()
        except BaseException:  # cancelled, too: who fails to enter is not exited
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.__aexit__(kind, error, trace)

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """By portfolio, what it has done so far, as of now."""
        for name, connector in self._connectors.items():
            tally = self._tallies[name]
            tally.budget_used = connector.budget.used
            tally.budget_limit = connector.budget.share
            tally.note = connector.platform.circuit.describe(connector.platform.clock)
            if not connector.budget.allowed and tally.phase not in ("done", "failed", "stopped"):
                tally.note = "waits for the sink, which has to say whose it is"
            if tally.note is None and (pause := connector.budget.paused_seconds) >= 0.5:
                tally.note = f"paused by the platform for {pause:.0f} s"
        return self._tallies

    @property
    def settled(self) -> Mapping[str, str]:
        """See `fetcher.job.Loader`."""
        return {load.portfolio: settled for load in self._loads if (settled := load.settled) is not None}

    def stop(self) -> None:
        """See `fetcher.job.Loader`."""
        self._stopped = True
        self.cancel()

    def cancel(self) -> None:
        """See `fetcher.job.Loader`."""
        self._asking.cancel()
        self._walks.cancel()

    async def ask_ahead(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Ask for the enterprises, which takes no progress: for beside whatever brings that. Raises nothing.

        To be waited for until it has started; `load`, which comes after that, waits for what is asked.
        """
        for portfolio in self._config.portfolios:
            self._ahead[portfolio.name] = AskedAhead(self._connectors[portfolio.name], portfolio.enterprise_ids)
        task_status.started()
        with self._asking:
            async with anyio.create_task_group() as group:
                for asked in self._ahead.values():
                    group.start_soon(asked.ask)
        self._asked.set()

    async def withdraw(self) -> None:
        """Load nothing, after `ask_ahead` alone: others will. What they send is counted on top of what was sent."""
        self.cancel()
        await self._asked.wait()
        await self._exits.aclose()

    async def load(self, send: MemoryObjectSendStream[Delivery], encode: Encode, records: Progress) -> None:
        """See `fetcher.job.Loader`."""
        owners = owners_of(records)
        async with send:
            with self._walks:
                if self._stopped:
                    self._walks.cancel()
                async with anyio.create_task_group() as group:
                    for portfolio in self._config.portfolios:
                        checkpoint = self.checkpoint(portfolio, records, owners)
                        load = self._prepare(portfolio, checkpoint, partial(deliver, send), encode, self._claims)
                        self._loads.append(load)
                        group.start_soon(self._run, load)
            with suppress(anyio.BrokenResourceError):  # whoever took the pages has left
                for load in self._loads if self._stopped else ():
                    await load.interrupt()

    def lose(self, error: TakenOverError) -> None:
        """End the loads of portfolios that are somebody else's now; what they reached counts there. May be repeated."""
        for name in error.portfolios & self._scopes.keys():
            self._lost[name] = error
            self._scopes[name].cancel()
            self._tell_lost(name)

    def hold_back(self) -> None:
        """Send nothing until the portfolios are taken: somebody else may send with their tokens (see `Ownership`)."""
        for connector in self._connectors.values():
            connector.budget.allow_until(0)

    def budgets(self) -> Mapping[str, RequestBudget]:
        """Each portfolio's."""
        return {name: connector.budget for name, connector in self._connectors.items()}

    @property
    def place(self) -> str | None:
        """Where the budgets remember what is sent (see `place_of`); `None`: nowhere."""
        return place_of(state_folder()) if self._remembers else None

    def checkpoint(
        self, portfolio: PortfolioConfig, records: Progress, owners: Mapping[str, Collection[str]]
    ) -> Checkpoint:
        """What the records say of a portfolio."""
        return Checkpoint(portfolio.name, self._config.orders.states, records, owners)

    def connector(self, portfolio: PortfolioConfig) -> Connector:
        """What calls for a portfolio."""
        return self._connectors[portfolio.name]

    def prospect(self, portfolio: PortfolioConfig, checkpoint: Checkpoint) -> PortfolioLoad:
        """A portfolio's load that is to be planned, and not run; it claims nothing."""
        return self._prepare(portfolio, checkpoint, _nowhere, as_it_is, FirstCome())

    async def _run(self, load: PortfolioLoad) -> None:
        name = load.portfolio
        with self._scopes[name]:
            await load.run()
        if name in self._lost:
            self._tell_lost(name)
            # Whoever has it now loads what it has not.
            await self._claims.leave(name, None, for_others=False)

    def _tell_lost(self, name: str) -> None:
        tally = self._tallies[name]
        tally.phase, tally.watermark, tally.failed = "failed", None, []
        tally.fail(str(self._lost[name]))

    def _prepare(
        self, portfolio: PortfolioConfig, checkpoint: Checkpoint, send: Send, encode: Encode, claims: Claims
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
            claims=claims,
            room=self._room,
            ahead=self._ahead.get(portfolio.name),
        )

    async def _connect(self) -> None:
        tokens = {
            portfolio.name: portfolio.access_token.resolve(f"portfolios.{portfolio.name}.access_token").reveal()
            for portfolio in self._config.portfolios
        }
        client_token = self._config.platform.client_token.resolve("platform.client_token").reveal()
        limits, patience = self._config.limits, self._patience
        transport = self._transport
        if transport is None:
            http = HttpTransport(
                self._config.platform.address,
                seconds=min(limits.request_seconds, patience.request_seconds if patience else limits.request_seconds),
                body_bytes=limits.body_mebibytes * 2**20,
                connections=connections_for(self._config),
                ca_file=ca_file_of(self._config.platform),
            )
            transport = await self._exits.enter_async_context(http)
        platform = Platform(
            transport,
            opens_per_second=limits.opens_per_second,
            outage_seconds=patience.outage_seconds if patience else limits.outage_minutes * 60,
            chance=self._chance,
            ours=self._ours,
        )
        budgets: dict[str, RequestBudget] = {}  # by token: two portfolios may, by mistake, have the same
        for name, token in tokens.items():
            budget = budgets.get(token) or budgets.setdefault(token, self._budget(token))
            credentials = Credentials(client_token, token, self._config.platform.client)
            self._connectors[name] = Connector(
                platform, credentials, budget, self._tallies[name], tries=patience.tries if patience else None
            )

    def _budget(self, token: str) -> RequestBudget:
        limits = self._config.limits
        memory = None
        if self._transport is None:
            # What is inherited can be held for longer than what was sent from here.
            longest = limits.per_seconds + limits.request_seconds + Ownership.SECONDS
            address = self._config.platform.address
            memory = slot_file(state_folder(), address, token, slots=limits.requests, longest=longest)
            if memory is None:
                self._remembers = False
                log.warning("what this process sends cannot be remembered for the next: %s", why_none())
            else:
                self._exits.callback(memory.close)
        return RequestBudget(limits.requests, limits.per_seconds, arrival_seconds=limits.request_seconds, memory=memory)


def as_it_is(page: Page) -> Page:
    """The encoding of those who take the pages themselves."""
    return page


async def _nowhere(_delivery: Delivery) -> None:
    """Where nothing is loaded, nothing is delivered."""
