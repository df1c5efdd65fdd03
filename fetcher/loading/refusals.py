"""What the platform refuses of one portfolio: found out once, whoever runs into it, and remembered.

`refused` searches; here is who asks when, and what becomes of what was found: a service that is refused alone is left
out for a day, also by later runs; an enterprise for this run; and if it is everything, the portfolio has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from functools import partial

import anyio

from fetcher.connector.client import Connector
from fetcher.connector.listings import ENTERPRISES
from fetcher.connector.operations import EnterprisesRequest, Interval, Limitation, OrdersOperation, OrdersRequest
from fetcher.connector.types import utc_text
from fetcher.errors import AccessDeniedError, InvalidRequestError, PlatformError
from fetcher.loading.refused import SAMPLE, asked_twice, find_denied, find_refused
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.shards import ServiceRef, Shard
from fetcher.planning.windows import Window
from fetcher.report import Tally


class PortfolioFailedError(Exception):
    """Nothing more of this portfolio can be loaded in this run; `error` says why."""

    def __init__(self, error: PlatformError) -> None:
        super().__init__()
        self.error = error


class Refusals:
    """What is refused of one portfolio's services.

    Args:
        connector: calls for its token.
        operation: the calls that are refused.
        checkpoint: where services that are refused alone are remembered for later runs.
        tally: where it names what is left out.
    """

    CONFIRM_SECONDS = 2.0
    """Between a refused token and asking once more: what is revoked stays so, what hiccups does not."""
    ATTEMPTS = 3
    """Walks of a shard that is refused for no reason that can be found."""
    BAD_AGAIN = timedelta(days=1)
    """How long a refused service is left alone."""

    def __init__(self, connector: Connector, operation: OrdersOperation, checkpoint: Checkpoint, tally: Tally) -> None:
        self._connector = connector
        self._operation = operation
        self._checkpoint = checkpoint
        self._tally = tally
        self._asking = anyio.Lock()  # one at a time finds out what is refused; the others use what it found
        # All mutable state. `expect` adds to the services and recalls what earlier runs found; the two searches change
        # the rest, each while it has the lock.
        self._services: set[ServiceRef] = set()  # what the portfolio is to load, or was
        self._bad: set[str] = set()  # services that are left out
        self._lost: set[str] = set()  # services of walks that were denied for no reason that could be found
        self._asked_at = 0.0  # when somebody last began to find out what is denied

    @property
    def bad(self) -> Set[str]:
        """Ids of services that are left out."""
        return self._bad

    @property
    def not_loaded(self) -> Set[str]:
        """Ids of services of which this portfolio cannot load all, for want of a right or because they are refused."""
        return self._bad | self._lost

    @property
    def good_services(self) -> list[ServiceRef]:
        """What the portfolio is to load, or was, and is not refused."""
        return [service for service in self._services if service.id not in self._bad]

    def expect(self, services: Sequence[ServiceRef]) -> None:
        """The portfolio is to load these services, too. Those that were refused not long ago are left out and named."""
        known = {service.id.lower(): service for service in services}
        self._services.update(services)
        now = self._connector.platform.clock.now()
        for key, retry_at in self._checkpoint.bad_services().items():
            service = known.get(key.lower())
            if retry_at <= now:
                self._checkpoint.mark_good(key)  # so it seems, until the platform says otherwise
            elif service is not None:
                detail = f"refused before, to be tried again after {utc_text(retry_at)}"
                self._leave_out(service.id, InvalidRequestError(self._operation.path, detail, status=400))

    async def find_denied(self, shard: Shard, attempts: int, error: AccessDeniedError) -> int:
        """Find out what the token has no right to, and leave it out.

        Each walk has at most one request refused until that is known: it waits for its turn to ask, and whoever was
        refused before somebody else began to ask tries again instead.

        Args:
            shard: whose walk was refused.
            attempts: how often that was looked into for this shard.
            error: the refusal.

        Returns: how often it was looked into now.

        Raises:
            PlatformError: it cannot be found out, now or at all; the shard has failed.
            PortfolioFailedError: it is everything.
        """
        denied_at = anyio.current_time()
        async with self._asking:
            if self._asked_at < denied_at and self._bad.isdisjoint(shard.service_ids):
                self._asked_at = anyio.current_time()
                attempts += 1
                if not await self._ask_for_rights(shard, error) and attempts >= self.ATTEMPTS:
                    self._lost.update(shard.service_ids)
                    raise error
        return attempts

    async def find_refused(self, shard: Shard, attempts: int, error: InvalidRequestError) -> int:
        """Find the services that the platform refuses, and leave them out.

        Args, returns: see `find_denied`.

        Raises:
            PlatformError: it cannot be found out, now or at all; the shard has failed.
        """
        async with self._asking:
            if self._bad.isdisjoint(shard.service_ids):
                bad = await find_refused(shard.service_ids, asked_twice(partial(self._probe, shard.window)))
                self._remember(bad)
                if not bad and attempts + 1 >= self.ATTEMPTS:
                    raise error
        return attempts + 1

    async def _ask_for_rights(self, shard: Shard, error: AccessDeniedError) -> bool:
        """Whether anything was found that the token has no right to; if that is all, raises `PortfolioFailedError`."""
        await anyio.sleep(self.CONFIRM_SECONDS)
        try:
            await self._connector.call(ENTERPRISES, EnterprisesRequest(Limitation(1)))
        except AccessDeniedError:
            raise PortfolioFailedError(error) from None
        except PlatformError:  # nothing that tells of the token: look for what it may not see
            pass
        probe = partial(self._probe, shard.window)
        if await probe(shard.service_ids) is None:  # it was a mistake, or is over
            return False
        enterprises: dict[str, list[str]] = {}
        good = sorted(self.good_services)
        for service in good:
            enterprises.setdefault(service.enterprise_id, []).append(service.id)
        denied = await find_denied(shard.service_ids, enterprises, probe)
        if (reason := denied.everything) is not None:
            count = len(good)
            detail = f"{reason.detail}; likewise for {min(SAMPLE, count)} of {count:,} services, each asked for alone"
            raise PortfolioFailedError(
                AccessDeniedError(reason.operation, detail, status=reason.status, request_id=reason.request_id)
            )
        for enterprise, refusal in denied.enterprises.items():
            # For this run: the next one finds out again, with a few requests.
            self._bad.update(enterprises[enterprise])
            self._tally.fail(str(refusal), refusal.request_id, enterprise=enterprise)
        self._remember(denied.ids)
        return bool(denied.enterprises or denied.ids)

    async def _probe(self, window: Window, ids: Sequence[str]) -> PlatformError | None:
        """Whether the platform takes these services: `None`, or its refusal."""
        interval = Interval.between(window.start, min(window.end, window.start + timedelta(seconds=1)))
        try:
            await self._connector.call(self._operation, OrdersRequest(Limitation(1), ids, interval))
        except (AccessDeniedError, InvalidRequestError) as refusal:
            return refusal
        return None

    def _remember(self, bad: Mapping[str, PlatformError]) -> None:
        """Leave out what is refused alone, in later runs too: to find it takes many requests."""
        retry_at = self._connector.platform.clock.now() + self.BAD_AGAIN
        for service, refusal in bad.items():
            self._leave_out(service, refusal)
            self._checkpoint.mark_bad(service, retry_at.replace(microsecond=0))

    def _leave_out(self, service: str, error: PlatformError) -> None:
        self._bad.add(service)
        enterprise = next((known.enterprise_id for known in self._services if known.id == service), None)
        self._tally.fail(str(error), error.request_id, enterprise=enterprise, services=(service,))
