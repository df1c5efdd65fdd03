"""Whether all that a run needs is usable, tried without a run: `fetcher check`."""

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
)
from fetcher.loading.discovery import Discovered
from fetcher.loading.portfolios import Portfolios
from fetcher.loading.refused import spread
from fetcher.planning.shards import ServiceRef
from fetcher.prospect import patience
from fetcher.prospect.patience import Hearing
from fetcher.sinks.base import Sink

SERVICES_TRIED = 4
"""Of each portfolio, one after the other until orders of one can be read."""
TRIED_BACK = timedelta(days=1)
"""Up to now, for one order: however many there are, that is a light request."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one thing that a run needs is usable."""

    what: str
    ok: bool
    message: str


class Checks:
    """Tries what a run needs.

    Args:
        config: what would be loaded.
        portfolios: made with the patience of those who wait for the answer.
    """

    def __init__(self, config: Config, portfolios: Portfolios) -> None:
        self._config = config
        self._portfolios = portfolios
        self._hearing = Hearing(config, portfolios)

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
            checks[what] = [_wrong(what, f"it did not answer within {patience.DEADLINE_SECONDS:g} s. {cure}")]
            ways[what] = partial(_check_sink, what, sink)
        for portfolio in self._config.portfolios:
            what = f"portfolio {portfolio.name}"
            checks[what] = []
            ways[what] = partial(self._check_portfolio, what, portfolio)

        async def find_out(what: str) -> None:
            checks[what] = await ways[what]()

        with anyio.move_on_after(patience.DEADLINE_SECONDS):
            async with anyio.create_task_group() as group:
                for what in ways:
                    group.start_soon(find_out, what)
        for portfolio in self._config.portfolios:
            what = f"portfolio {portfolio.name}"
            checks[what] = checks[what] or [
                _wrong(what, self._hearing.too_late(self._portfolios.tallies[portfolio.name]))
            ]
        return [check for lines in checks.values() for check in lines]

    async def _check_portfolio(self, what: str, portfolio: PortfolioConfig) -> list[Check]:
        load = self._portfolios.prospect(portfolio, self._portfolios.checkpoint(portfolio, {}, {}))
        try:
            found, target = await load.plan()
        except PlatformError as error:
            return [_wrong(what, self._hearing.tell(error))]
        connector = self._portfolios.connector(portfolio)
        counts = f"{len(found.enterprises)} enterprises, {len(found.services)} services"
        lines: list[Check] = []
        if found.services:
            try:
                taken, refused = await _try_orders(connector, found, target.window.end, self._config.orders.states)
            except PlatformError as error:
                return [_wrong(what, f"{counts}, but orders could not be read: {self._hearing.tell(error)}")]
            if taken is None:
                error = next(iter(refused.values()))
                tried = f"of each of {len(refused)} services that were tried" if len(refused) > 1 else "of its service"
                lines.append(_wrong(what, f"{counts}, but orders {tried} cannot be read: {error}"))
            else:
                lines.append(Check(what=what, ok=True, message=f"{counts}, and orders can be read"))
                lines += [_wrong(what, f"service {id_}: {error}") for id_, error in refused.items()]
        lines += [_wrong(what, failure.error) for failure in self._portfolios.tallies[portfolio.name].failed]
        return lines


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
