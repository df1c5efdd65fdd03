"""What a run would meet, found out without one: `fetcher plan` and `fetcher check`.

Both are for somebody who waits at a terminal, so neither waits out an outage: portfolios are asked side by side, each
with `HURRY`, and what has not answered by `DEADLINE_SECONDS` is told as that. One that fails spoils no other.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import anyio
import msgspec

from fetcher.config import Config, PortfolioConfig
from fetcher.connector.client import Connector
from fetcher.connector.operations import Interval, Limitation, OrdersOperation, OrdersRequest
from fetcher.errors import (
    AccessDeniedError,
    FetcherError,
    InvalidRequestError,
    InvalidStatesError,
    PlatformError,
    SinkError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.loading.discovery import Discovered
from fetcher.loading.portfolios import Patience, Portfolios
from fetcher.loading.refused import spread
from fetcher.planning.checkpoint import owners_of
from fetcher.planning.shards import ServiceRef, least_seconds
from fetcher.report import Tally
from fetcher.sinks.base import Progress, Sink

HURRY = Patience(request_seconds=8, outage_seconds=5, tries=2)
"""Of 15 seconds that somebody waits at most."""
DEADLINE_SECONDS = 9.0
"""For all of a check, and until a plan hears anything: the rest of 15 seconds is for starting, and for ending."""
SERVICES_TRIED = 4
"""Of each portfolio, one after the other until orders of one can be read."""
TRIED_BACK = timedelta(days=1)
"""Up to now, for one order: however many there are, that is a light request."""


class PortfolioPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do for a portfolio. Requests and seconds are the least: an order more, a page more."""

    portfolio: str
    enterprises: int = 0
    services: int = 0
    shards_by_enterprise: int = 0
    shards_by_portfolio: int = 0
    requests_by_enterprise: int = 0
    """Discovery, and one page for each shard."""
    requests_by_portfolio: int = 0
    seconds_by_enterprise: float = 0.0
    """In which the budget lets that many requests through."""
    seconds_by_portfolio: float = 0.0
    resumes_from: datetime | None = None
    """The watermark; `None`: the portfolio was never loaded whole."""
    shards_open: int = 0
    """Walks that were under way, and go on."""
    failed: tuple[str, ...] = ()
    """What could not be found out, or is refused, with why and what to do; the rest is as far as it was found out."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one thing that a run needs is usable."""

    what: str
    ok: bool
    message: str


class Prospect:
    """Asks what a run would meet.

    Args:
        config: what would be loaded.
        portfolios: made with the patience of those who wait for the answer.
        full: as for the run.
    """

    def __init__(self, config: Config, portfolios: Portfolios, *, full: bool) -> None:
        self._config = config
        self._portfolios = portfolios
        self._full = full

    async def plans(self, records: Progress) -> list[PortfolioPlan]:
        """What a run would do for each portfolio; sends only what discovery needs.

        Args:
            records: the progress that the sink holds.
        """
        late = f"no answer came within {DEADLINE_SECONDS:g} s. {self._cure}"
        plans = {one.name: PortfolioPlan(portfolio=one.name, failed=(late,)) for one in self._config.portfolios}
        owners = owners_of(records)

        async def plan(portfolio: PortfolioConfig) -> None:
            checkpoint = self._portfolios.checkpoint(portfolio, records, owners)
            load = self._portfolios.prospect(portfolio, checkpoint)
            try:
                found, target = await load.plan()
            except PlatformError as error:
                plans[portfolio.name] = PortfolioPlan(portfolio=portfolio.name, failed=(self._tell(error),))
                return
            tally = self._portfolios.tallies[portfolio.name]
            limits = self._config.limits
            shards: list[int] = []
            going_on = 0
            for shard_by in ("enterprise", "portfolio"):
                missing, open_walks = load.shards(found, msgspec.structs.replace(target, shard_by=shard_by))
                going_on = len(open_walks)
                shards.append(len(missing) + going_on)
            requests = [tally.requests + count for count in shards]
            seconds = [least_seconds(count, limits.requests, limits.per_seconds) for count in requests]
            plans[portfolio.name] = PortfolioPlan(
                portfolio=portfolio.name,
                enterprises=len(found.enterprises),
                services=len(found.services),
                shards_by_enterprise=shards[0],
                shards_by_portfolio=shards[1],
                requests_by_enterprise=requests[0],
                requests_by_portfolio=requests[1],
                seconds_by_enterprise=seconds[0],
                seconds_by_portfolio=seconds[1],
                resumes_from=None if self._full else checkpoint.watermark,
                shards_open=going_on,
                failed=tuple(failure.error for failure in tally.failed),
            )

        async with anyio.create_task_group() as group:
            group.start_soon(self._end_if_nothing_is_heard, group.cancel_scope)
            async with anyio.create_task_group() as planning:
                for portfolio in self._config.portfolios:
                    planning.start_soon(plan, portfolio)
            group.cancel_scope.cancel()
        return list(plans.values())

    async def checks(self, sink: Sink | None) -> list[Check]:
        """Whether the sink, and every portfolio's token, enterprises, services and orders are usable: a line for each.

        Args:
            sink: not open; `None`: there is none to be checked.
        """
        checks: dict[str, list[Check]] = {}
        ways: dict[str, Callable[[], Awaitable[list[Check]]]] = {}
        if sink is not None:
            what = f"sink {sink.url}"
            cure = "Check that its host or disk is there, and answers"
            checks[what] = [_wrong(what, f"it did not answer within {DEADLINE_SECONDS:g} s. {cure}")]
            ways[what] = partial(_check_sink, what, sink)
        for portfolio in self._config.portfolios:
            what = f"portfolio {portfolio.name}"
            checks[what] = []
            ways[what] = partial(self._check_portfolio, what, portfolio)

        async def find_out(what: str) -> None:
            checks[what] = await ways[what]()

        with anyio.move_on_after(DEADLINE_SECONDS):
            async with anyio.create_task_group() as group:
                for what in ways:
                    group.start_soon(find_out, what)
        for portfolio in self._config.portfolios:
            what = f"portfolio {portfolio.name}"
            checks[what] = checks[what] or [_wrong(what, self._too_late(self._portfolios.tallies[portfolio.name]))]
        return [check for lines in checks.values() for check in lines]

    async def _check_portfolio(self, what: str, portfolio: PortfolioConfig) -> list[Check]:
        load = self._portfolios.prospect(portfolio, self._portfolios.checkpoint(portfolio, {}, {}))
        try:
            found, target = await load.plan()
        except PlatformError as error:
            return [_wrong(what, self._tell(error))]
        connector = self._portfolios.connector(portfolio)
        counts = f"{len(found.enterprises)} enterprises, {len(found.services)} services"
        lines: list[Check] = []
        if found.services:
            try:
                taken, refused = await _try_orders(connector, found, target.window.end, self._config.orders.states)
            except PlatformError as error:
                return [_wrong(what, f"{counts}, but orders could not be read: {self._tell(error)}")]
            if taken is None:
                error = next(iter(refused.values()))
                tried = f"of each of {len(refused)} services that were tried" if len(refused) > 1 else "of its service"
                lines.append(_wrong(what, f"{counts}, but orders {tried} cannot be read: {error}"))
            else:
                lines.append(Check(what=what, ok=True, message=f"{counts}, and orders can be read"))
                lines += [_wrong(what, f"service {id_}: {error}") for id_, error in refused.items()]
        lines += [_wrong(what, failure.error) for failure in self._portfolios.tallies[portfolio.name].failed]
        return lines

    async def _end_if_nothing_is_heard(self, scope: anyio.CancelScope) -> None:
        """A platform that answers, however slowly, is worth waiting for; a silent one is not."""
        await anyio.sleep(DEADLINE_SECONDS)
        if not self._heard:
            scope.cancel()

    @property
    def _heard(self) -> bool:
        """Whether the platform has answered anything."""
        return self._portfolios.connector(self._config.portfolios[0]).platform.clock.known

    @property
    def _cure(self) -> str:
        address = self._config.platform.address
        return f"Check platform.address ({address}), and the network, a proxy or a firewall on the way there"

    def _tell(self, error: PlatformError) -> str:
        """An error, and where to look if the platform was never reached, or is another program."""
        if error.status is None and not self._heard:
            # That it be run again when the platform is well is no help to whoever has not reached it yet.
            unreached = error.cure == UnavailableError.cure
            return f"{error.operation} failed: {error.detail}. {self._cure}" if unreached else f"{error}. {self._cure}"
        elsewhere = error.status is not None and (300 <= error.status < 400 or error.status in (404, 405))
        return f"{error}. {self._cure}" if elsewhere else str(error)

    def _too_late(self, tally: Tally) -> str:
        within = f"within {DEADLINE_SECONDS:g} s"
        if not self._heard:
            return f"no answer came {within}. {self._cure}"
        if tally.note is not None:
            return f"it is not known {within}: {tally.note}. Try again later"
        if tally.budget_used >= tally.budget_limit:
            return f"it is not known {within}: the token's requests of this window are used up. Try again in a minute"
        return f"it is not known {within}: the platform answers slowly. A run waits for it; try again later"


async def _try_orders(
    connector: Connector, found: Discovered, now: datetime, states: Sequence[str] | None
) -> tuple[ServiceRef | None, dict[str, PlatformError]]:
    """The first service of a few, of several enterprises, of which orders can be read, and those that were refused.

    Raises:
        PlatformError: it cannot be found out.
    """
    enterprises: dict[str, list[str]] = {}
    services = {service.id: service for service in found.services}
    for service in found.services:
        enterprises.setdefault(service.enterprise_id, []).append(service.id)
    operation = OrdersOperation()
    interval = Interval.between(now - TRIED_BACK, now)
    refused: dict[str, PlatformError] = {}
    for id_ in spread(list(enterprises.values()), SERVICES_TRIED):
        try:
            await connector.call(operation, OrdersRequest(Limitation(1), [id_], interval, states))
        except InvalidStatesError:
            raise
        except (AccessDeniedError, InvalidRequestError) as error:
            refused[id_] = error
            continue
        except TooHeavyError as error:
            if error.status is None:
                raise
        return services[id_], refused
    return None, refused


async def _check_sink(what: str, sink: Sink) -> list[Check]:
    try:
        await abandonable(sink.probe)
    except SinkError as error:
        return [_wrong(what, f"{error.cause}. {error.cure}")]
    except FetcherError as error:
        return [_wrong(what, str(error))]
    return [Check(what=what, ok=True, message="usable")]


async def abandonable(work: Callable[[], None]) -> None:
    """Do `work` in a thread that nobody waits for any more once this is cancelled, not even the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def within() -> None:
        failed: BaseException | None = None
        try:
            work()
        except BaseException as error:  # whatever it is, it is for whoever waits
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, failed)

    threading.Thread(target=within, daemon=True, name="fetcher probe").start()
    await done


def _wrong(what: str, message: str) -> Check:
    return Check(what=what, ok=False, message=message)
