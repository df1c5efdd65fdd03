"""What a load hands over to whoever takes it: pages, and news that have to keep their place between them.

The rule that cannot be broken: what a page stands for is noted in the checkpoint when the page is accepted, and not
before (promise P3), and then the page gives its place in memory back (`fetcher.connector.room`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

import anyio
import msgspec

from fetcher.connector.operations import OrdersOperation
from fetcher.connector.room import Lease
from fetcher.loading.aside import Aside, AsideChange
from fetcher.loading.beginning import Beginning
from fetcher.loading.walk import Step
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.sifting import time_key
from fetcher.report import Tally
from fetcher.sinks.base import EncodedPage, Page
from fetcher.sinks.writer import Delivery

log = logging.getLogger("fetcher")

Send = Callable[[Delivery], Awaitable[None]]
Encode = Callable[[Page], EncodedPage | Page]
Note = Callable[[], None]
"""Notes something in the checkpoint."""


class Handover:
    """Hands over what one portfolio's load brings.

    Args:
        send: takes what is handed over.
        encode: brings a page into the form that `send` takes. It is called where the page was decoded, at once, while
            the page is in the processor's cache: with another thread for it, jobs took a third to a half longer,
            waiting for the interpreter's lock and for memory.
        operation: decodes them; knows which properties came that are not documented.
        beginning: heeds the clock before anything is noted.
        aside: what is kept aside.
        checkpoint: what changes in it goes with what is accepted.
        tally: where it tells what it does.
    """

    def __init__(
        self,
        send: Send,
        encode: Encode,
        operation: OrdersOperation,
        beginning: Beginning,
        aside: Aside,
        checkpoint: Checkpoint,
        tally: Tally,
    ) -> None:
        self._send = send
        self._encode = encode
        self._operation = operation
        self._beginning = beginning
        self._aside = aside
        self._checkpoint = checkpoint
        self._tally = tally
        # By batch, the services of which orders were handed over; grows with each `step`.
        self._sent: dict[str, tuple[str, ...]] = {}

    @property
    def begun(self) -> set[str]:
        """Services of which this run may have handed over orders."""
        return {service for services in self._sent.values() for service in services}

    async def step(self, step: Step, note: Note) -> None:
        """Hand a walk's page over; `note` notes what it stands for."""
        self._sent[step.shard.batch_key] = step.shard.service_ids
        for kind, count in step.sifted.oddities.items():
            self._tally.oddities[kind] = self._tally.oddities.get(kind, 0) + count
        delivery = self.page(step.page, step.lease, note)
        del step  # or the page would stay in memory as it came
        await delivery

    async def page(self, page: Page, lease: Lease, note: Note) -> None:
        """Hand a page over with its lease; `note` notes what it stands for."""
        self._tally.pages += 1
        self._tally.orders += len(page.orders) + len(page.rejected)  # a sink may hold what we cannot read
        if len(self._tally.unknown_properties) < len(self._operation.unknown):
            self._report_unknown()
        encoded, change = self._aside.sift(page, self._encode(page))
        del page
        accept = partial(self._accept_page, lease, note, change)
        await self._send(Delivery(portfolio=self._tally.portfolio, page=encoded, accept=accept))

    async def news(self, note: Note) -> None:
        """Have something noted after all that was handed over before."""
        accept = partial(self._accept_news, note)
        await self._send(Delivery(portfolio=self._tally.portfolio, page=None, accept=accept))

    async def flush(self) -> None:
        """Wait until all that was handed over is accepted."""
        accepted = anyio.Event()
        await self.news(accepted.set)
        await accepted.wait()

    async def give_up(self, keys: Sequence[str], now: datetime) -> None:
        """Say that what is kept aside under these keys is not at the platform any more.

        Args:
            keys: see `RejectedRow.key`; those under which nothing is kept are passed over.
            now: by the platform's clock.
        """
        change = self._aside.give_up(keys)
        if change is None:
            return
        portfolio = self._tally.portfolio
        log.warning("%s: %d orders that were kept aside are gone from the platform", portfolio, len(change.mended))
        encoded = self._encode(
            Page(
                portfolio=portfolio,
                enterprise_ids={},
                orders=[],
                body=b"",
                latest="",
                fetched_utc=now,
                settled=time_key(now),
            )
        )
        page = msgspec.structs.replace(encoded, mended=change.mended) if isinstance(encoded, EncodedPage) else None
        accept = partial(self._accept_news, partial(self._aside.note, change))
        await self._send(Delivery(portfolio=portfolio, page=page, accept=accept))

    def _accept_page(self, lease: Lease, note: Note, change: AsideChange | None) -> Mapping[str, str | None]:
        lease.release()
        self._beginning.heed_clock()
        note()
        if change is not None:
            self._aside.note(change)
        return self._checkpoint.take_changes()

    def _accept_news(self, note: Note) -> Mapping[str, str | None]:
        self._beginning.heed_clock()
        note()
        return self._checkpoint.take_changes()

    def _report_unknown(self) -> None:
        for name in self._operation.unknown[len(self._tally.unknown_properties) :]:
            self._tally.unknown_properties.append(name)
            log.warning("%s: orders have a property %r that the table does not know", self._tally.portfolio, name)
