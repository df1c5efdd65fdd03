"""Whose portfolios are, where many may write into one sink: on one machine or on several, of one run or of another.

Three rules that cannot be broken:

1. A portfolio has one owner: whoever took it last. The sink refuses what anybody else commits of it.
2. Whoever may not be the owner any more sends nothing with its token. The sink is asked again and again, and the right
   to send lasts for `SECONDS` after it was asked the last time that it said yes.
3. So a new owner knows when the old one's requests have passed through the platform's window, though nobody tells it:
   `SECONDS`, and the longest that a request may be on its way, and the window's length, after it took the portfolio.
   Until then it takes the whole window as spent, unless the old one has said what it held when it sent no more, or what
   it sent is remembered where the new one looks anyway.

Slots travel by the sink, because that is the one thing that both owners know, and the one clock that they share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

import anyio

from fetcher.connector.budget import RequestBudget
from fetcher.errors import FetcherError, SinkError, TakenOverError, first_error
from fetcher.sinks.base import Predecessor, Progress, Sink
from fetcher.sinks.writer import Offload

T = TypeVar("T")
log = logging.getLogger("fetcher")


class Owner(Protocol):
    """Whoever loads what is owned; see `Portfolios`."""

    @property
    def place(self) -> str | None:
        """Where the budgets remember what is sent; `None`: nowhere."""
        ...

    def budgets(self) -> Mapping[str, RequestBudget]:
        """Each portfolio's."""
        ...

    def lose(self, error: TakenOverError) -> None:
        """End the loads of portfolios that are somebody else's now."""
        ...


class Ownership:
    """Of the portfolios of one `Owner`, in one sink that is `shared`.

    Args:
        sink: opened.
        offload: runs the sink's methods.
        owner: has not begun to send.
    """

    SECONDS = 20.0
    """Of the right to send, since the sink was asked (see `_ask`)."""
    ASKS_SECONDS = 5.0
    """From one answer to the next question."""

    def __init__(self, sink: Sink, offload: Offload, owner: Owner) -> None:
        self._sink = sink
        self._offload = offload
        self._owner = owner

    async def take(self) -> Progress:
        """Become the owner; what the sink knows of the portfolios.

        Raises:
            SinkError: it cannot be done.
        """
        budgets = self._owner.budgets()
        asked, taken = await self._ask(self._sink.take, list(budgets), self._owner.place)
        for name, budget in budgets.items():
            budget.allow_until(asked + self.SECONDS)
            if (before := taken.predecessors.get(name)) is not None:
                budget.inherit(self._inheritance(name, before, budget))
        return taken.progress

    async def keep(self) -> None:
        """Ask again and again whether it still is the owner; never ends by itself."""
        while True:
            await anyio.sleep(self.ASKS_SECONDS)
            try:
                asked, lost = await self._ask(self._sink.lost)
            except SinkError:  # whoever commits will be told so; until the sink is back, nothing is sent for long
                continue
            for name, budget in self._owner.budgets().items():
                if name not in lost:
                    budget.allow_until(asked + self.SECONDS)
            if lost:
                self._owner.lose(TakenOverError(self._sink.url, lost))

    async def hand_over(self) -> None:
        """Nothing is sent any more: whoever comes next is told what was."""
        held = {name: budget.left_over() for name, budget in self._owner.budgets().items()}
        with suppress(SinkError):  # then whoever comes next waits for as long as it takes
            await self._offload(self._sink.hand_over, held)

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[Progress]:
        """Be the owner for as long as the context lasts; gives what the sink knows of the portfolios.

        It is handed over in the end, unless the sink has failed. Whatever is sent is to be sent within the context.

        Raises:
            SinkError: it cannot be taken.
        """
        records = await self.take()
        failed = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self.keep)
                try:
                    yield records
                except FetcherError:
                    failed = True
                    raise
                finally:
                    group.cancel_scope.cancel()
        except* FetcherError as errors:
            raise first_error(errors) from None
        finally:
            if not failed:
                with anyio.CancelScope(shield=True):
                    await self.hand_over()

    async def _ask(self, function: Callable[..., T], *arguments: object) -> tuple[float, T]:
        """When the sink was asked, and its answer.

        That is when its turn comes: it waits for a commit, which may take longer than the right to send lasts.
        """
        now = asyncio.get_running_loop().time

        def ask() -> tuple[float, T]:
            return now(), function(*arguments)

        return await self._offload(ask)

    def _inheritance(self, name: str, before: Predecessor, budget: RequestBudget) -> Sequence[float]:
        if before.place is not None and before.place == self._owner.place:
            return ()  # the budgets' memory is the same
        if before.held is not None:
            return before.held
        seconds = self.SECONDS + budget.arrival_seconds + budget.per_seconds
        log.warning("%s: what loaded it last, elsewhere, was cut off: nothing is sent for %.0f s", name, seconds)
        return [seconds] * budget.requests
