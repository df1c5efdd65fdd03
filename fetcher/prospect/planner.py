"""What a run would do, found out without one: `fetcher plan`. Sends what discovery needs, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import msgspec

from fetcher.config import Config, PortfolioConfig
from fetcher.errors import PlatformError
from fetcher.loading.portfolios import Portfolios
from fetcher.planning.checkpoint import Checkpoint, owners_of
from fetcher.planning.shards import ServiceRef, Target
from fetcher.planning.windows import Window, Windows, union
from fetcher.processes.supervisor import processes_for, watermarks_of
from fetcher.prospect import patience
from fetcher.prospect.density import Density
from fetcher.prospect.forecast import Before
from fetcher.prospect.patience import Hearing
from fetcher.prospect.plan import Found, PortfolioPlan, make_plan
from fetcher.prospect.stopwatch import Stopwatch
from fetcher.sinks.base import Extent


class Planner:
    """Asks what there is, and says what a run would do.

    Args:
        config: what would be loaded.
        portfolios: made with the patience of those who wait for the answer.
        full: as for the run.
    """

    def __init__(self, config: Config, portfolios: Portfolios, *, full: bool) -> None:
        self._config = config
        self._portfolios = portfolios
        self._full = full
        self._hearing = Hearing(config, portfolios)
        self._stopwatch = Stopwatch.on(portfolios.connector(config.portfolios[0]).platform)

    async def plans(self, extent: Extent) -> list[PortfolioPlan]:
        """What a run would do for each portfolio.

        Args:
            extent: what the sink holds.
        """
        outcomes: dict[str, Found | str] = {one.name: self._hearing.nothing for one in self._config.portfolios}

        async def find(portfolio: PortfolioConfig) -> None:
            try:
                outcomes[portfolio.name] = await self._find(portfolio, extent)
            except PlatformError as error:
                outcomes[portfolio.name] = self._hearing.tell(error)

        async with anyio.create_task_group() as group:
            group.start_soon(self._end_if_nothing_is_heard, group.cancel_scope)
            async with anyio.create_task_group() as finding:
                for portfolio in self._config.portfolios:
                    finding.start_soon(find, portfolio)
            group.cancel_scope.cancel()
        watermarks = None if self._full else watermarks_of(self._config, extent.progress)
        processes = processes_for(self._config, watermarks)
        # Only now, by all the answers that were heard.
        plans = [
            PortfolioPlan(portfolio=name, failed=(outcome,))
            if isinstance(outcome, str)
            else make_plan(name, outcome, self._config.limits, self._stopwatch.answer_seconds)
            for name, outcome in outcomes.items()
        ]
        return [msgspec.structs.replace(plan, processes=processes) for plan in plans]

    async def _end_if_nothing_is_heard(self, scope: anyio.CancelScope) -> None:
        """A platform that answers, however slowly, is worth waiting for; a silent one is not."""
        await anyio.sleep(patience.DEADLINE_SECONDS)
        if not self._hearing.heard:
            scope.cancel()

    async def _find(self, portfolio: PortfolioConfig, extent: Extent) -> Found:
        """What there is of a portfolio, and what is known of it.

        Raises:
            PlatformError: the platform does not tell.
        """
        held = self._portfolios.checkpoint(portfolio, extent.progress, owners_of(extent.progress))
        checkpoint = self._portfolios.checkpoint(portfolio, {}, {}) if self._full else held
        load = self._portfolios.prospect(portfolio, checkpoint)
        tally = self._portfolios.tallies[portfolio.name]
        began = anyio.current_time()
        found, target = await load.plan()
        before = Before(tally.requests, anyio.current_time() - began)
        missing, going_on = load.shards(found, target)
        by_enterprise, by_portfolio = (
            sum(map(len, load.shards(found, msgspec.structs.replace(target, shard_by=shard_by))))
            for shard_by in ("enterprise", "portfolio")
        )
        # Rows of another selection are among the sink's, and nobody can tell them apart.
        told = extent.rows is not None and not held.other_selections
        density = Density(
            [count for count in extent.rows or () if count.portfolio == portfolio.name],
            extent.days.get(portfolio.name, {}),
            _read(held, found.services, target) if told else {},
            found.services,
        )
        return Found(
            enterprises=len(found.enterprises),
            services=found.services,
            going_on=going_on,
            missing=missing,
            shards_by_enterprise=by_enterprise,
            shards_by_portfolio=by_portfolio,
            closes=target.open_ended,
            resumes_from=None if self._full else held.watermark,
            before=before,
            density=density,
            page_seconds=None if held.last_run is None else held.last_run.page_seconds,
            failed=tuple(failure.error for failure in tally.failed),
        )


def _read(held: Checkpoint, services: Sequence[ServiceRef], target: Target) -> Mapping[str, Windows]:
    """By service id in small letters, the instants of which the sink holds all rows."""
    if held.again:  # a run with `--full` is not at its end: there are rows of more than was noted
        return {service.id.lower(): (target.window,) for service in services}
    read = held.covered()
    for shard, position in held.begun():
        oldest = shard.window.end if position.oldest is None else max(position.oldest, shard.window.start)
        part = Window(oldest, min(shard.window.end, shard.settled))
        for service in map(str.lower, shard.service_ids):
            read[service] = union((*read.get(service, ()), part))
    return read
