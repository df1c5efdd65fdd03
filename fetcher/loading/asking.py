"""Asking again for the orders that are kept aside, by their ids: their windows may be done and never bring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fetcher.connector.operations import MAX_IDS, Limitation, OrdersRequest
from fetcher.errors import PlatformError, TooHeavyError
from fetcher.loading.aside import Aside
from fetcher.loading.handover import Handover
from fetcher.loading.page_size import PageSize
from fetcher.loading.walk import Scope
from fetcher.planning.checkpoint import AsideRecord, Checkpoint
from fetcher.planning.repeats import Repeats
from fetcher.planning.sifting import sift_ids
from fetcher.planning.windows import Windows
from fetcher.report import Tally


class Asking:
    """Asks for what is kept aside of one portfolio.

    Args:
        aside: what is.
        handover: takes what comes.
        checkpoint: what was read.
        repeats: what may come beside the walks.
        tally: where it tells that it could not ask.
    """

    def __init__(
        self, aside: Aside, handover: Handover, checkpoint: Checkpoint, repeats: Repeats, tally: Tally
    ) -> None:
        self._aside = aside
        self._handover = handover
        self._checkpoint = checkpoint
        self._repeats = repeats
        self._tally = tally

    async def ask(self, service_ids: Sequence[str], scope: Scope, *, whole: bool) -> None:
        """Ask for what has not come in this run; what the platform has no longer is given up.

        After the walks, and after all that they brought is accepted: what a walk is still to bring is left to it, or it
        would come twice.

        Args:
            service_ids: of these services.
            scope: what is shared with the walks.
            whole: whether the services are all that the portfolio loads; then also orders of which nobody knows the
                service.
        """
        services = {id_.lower(): id_ for id_ in service_ids}
        waiting = self._aside.to_ask_for(services, whole=whole)
        read = self._repeats.may_come(services)
        # One of which nobody knows the service may be of one that cannot be asked today: refused, or not seen.
        everywhere = self._checkpoint.covered().keys() <= services.keys()
        for first in range(0, len(waiting), MAX_IDS):
            part = waiting[first : first + MAX_IDS]
            try:
                came = await self._ask_for(part, services, scope, read)
            except PlatformError as error:
                self._tally.fail(f"orders that are kept aside could not be asked for again: {error}", error.request_id)
                return
            # The platform has them no longer, so there is nothing to wait for.
            gone = [
                key
                for record in part
                if (key := record.id.lower()) not in came and (everywhere or record.service_id is not None)
            ]
            await self._handover.give_up(gone, scope.connector.platform.clock.now())

    async def _ask_for(
        self, records: Sequence[AsideRecord], services: Mapping[str, str], scope: Scope, read: Mapping[str, Windows]
    ) -> set[str]:
        """At most 1000 of them; returns the keys of those that came, readable or not."""
        named = {services[record.service_id.lower()] for record in records if record.service_id is not None}
        all_named = all(record.service_id is not None for record in records)
        of = sorted(named if all_named else services.values())
        asked = [record.id for record in records]
        came: set[str] = set()
        for start in range(0, len(of), MAX_IDS):
            came |= await self._pages(of[start : start + MAX_IDS], asked, scope, read)
        return came

    async def _pages(
        self, services: Sequence[str], ids: Sequence[str], scope: Scope, read: Mapping[str, Windows]
    ) -> set[str]:
        wanted = frozenset(id_.lower() for id_ in ids)
        size = PageSize(scope.page_size, scope.page_size, scope.learned)
        cursor: str | None = None
        again = bool(self._repeats.of_services(services))
        came: set[str] = set()
        while True:
            limitation = Limitation(size.count, cursor)
            request = OrdersRequest(limitation, services, product_service_order_ids=ids)
            try:
                with scope.room.lease() as lease:
                    answer = await scope.connector.call(scope.operation, request, lease)
            except TooHeavyError:
                if not size.shrink():
                    raise
                continue
            listing = answer.listing
            before = len(came)
            came |= {order.id.lower() for order in listing.items}
            came |= {(order.id or "").lower() for order in listing.rejected.values()}
            with lease:
                page = scope.page(answer, sift_ids(listing, wanted, read), repeats=again, filtered=False)
                del answer
                await self._handover.page(page, lease, _nothing)
            if listing.count < limitation.count or listing.cursor is None or len(came) == before:
                return came
            cursor = listing.cursor


def _nothing() -> None:
    """What a page stands for that no walk brought."""
