"""What a run would do for a portfolio, from what was found out and what is known. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from fetcher.config import LimitsConfig
from fetcher.loading.remaining import UnderWay
from fetcher.planning.shards import ServiceRef, Shard, ShardBy, least_seconds
from fetcher.planning.windows import Window
from fetcher.prospect.density import Density
from fetcher.prospect.forecast import Before, Expected, Forecast, Pace, closing_requests, forecast

Basis = Literal["rows by enterprise and month", "rows of the portfolio"]
"""What tells how many orders there are: rows that the sink holds, as finely as it can tell."""


class PackPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Services that are asked for together, in a walk for each window; those of several enterprises share it."""

    services: int
    enterprises: tuple[str, ...]
    """Their ids."""
    windows: int
    """Walks: one for each window, or what is left of it."""
    orders: int | None
    """To be expected; `None`: nobody knows."""
    split: int
    """Walks that are expected to be split, because walkers would have nothing to do."""


class PortfolioPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do for a portfolio. What is least holds if orders are as many as `orders`, or none if nobody
    knows: an order more may be a page more.
    """

    portfolio: str
    enterprises: int = 0
    services: int = 0
    shards_by_enterprise: int = 0
    shards_by_portfolio: int = 0
    requests_by_enterprise: int = 0
    """Discovery, and one page for each shard: for an empty selection, whatever is known."""
    requests_by_portfolio: int = 0
    seconds_by_enterprise: float = 0.0
    """In which the budget lets that many requests through."""
    seconds_by_portfolio: float = 0.0
    resumes_from: datetime | None = None
    """The watermark; `None`: the portfolio was never loaded whole."""
    shards_open: int = 0
    """Walks that were under way, and go on."""
    shard_by: ShardBy = "auto"
    """As configured; what follows is of it."""
    orders: int | None = None
    """To be read, by what the sink holds of what was read so far; `None`: nobody knows."""
    basis: Basis | None = None
    """By what; `None` with `orders`."""
    packs: tuple[PackPlan, ...] = ()
    least_requests: int = 0
    """Discovery, the pages of each walk, and one for each 1000 services to close, if nothing is split."""
    least_seconds_by_budget: float = 0.0
    """In which the budget lets that many requests through."""
    least_seconds_by_latency: float = 0.0
    """In which so many pages come, one after the other in each of the walks side by side."""
    least_seconds: float = 0.0
    """The longer of the two."""
    bound_by: Literal["budget", "latency"] = "latency"
    """Which of the two that is."""
    requests: int | None = None
    """That are likely, by playing the load through; `None` with `orders`."""
    seconds: float | None = None
    """Likewise. What the sink takes to write is not in it."""
    answer_seconds: float | None = None
    """What an answer takes: the middle one of all answers that the plan has heard, of any portfolio."""
    page_seconds: float | None = None
    """What a full page took in the last run that had any; `None`: nobody knows, and `answer_seconds` is taken."""
    limit_requests: int = 0
    """The budget: so many requests ..."""
    limit_seconds: float = 0.0
    """... in any window of this length."""
    limit_walks: int = 0
    """Walks side by side."""
    processes: int = 1
    """That load, of the whole run (each portfolio says the same); more than one are beside the one that commits."""
    failed: tuple[str, ...] = ()
    """What could not be found out, or is refused, with why and what to do; the rest is as far as it was found out."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out of one portfolio."""

    enterprises: int
    services: Sequence[ServiceRef]
    going_on: Sequence[UnderWay]
    missing: Sequence[Shard]
    """As sharding is configured."""
    shards_by_enterprise: int
    shards_by_portfolio: int
    """Walks in each way of sharding, with those that go on."""
    closes: bool
    """Whether the run ends by reading what changed while it read."""
    resumes_from: datetime | None
    before: Before
    density: Density
    page_seconds: float | None
    """See `PortfolioPlan`."""
    failed: tuple[str, ...]


def make_plan(portfolio: str, found: Found, limits: LimitsConfig, answer_seconds: float | None) -> PortfolioPlan:
    """What a run would do.

    Args:
        portfolio: its name.
        found: what was found out of it.
        limits: as configured.
        answer_seconds: see `PortfolioPlan`.
    """
    density, before = found.density, found.before
    left = [*((shard, _left(shard, at.oldest)) for shard, at in found.going_on)]
    left += [(shard, shard.window) for shard in found.missing]
    expected = [Expected(shard, density.profile(shard.service_ids, window)) for shard, window in left]
    pace = _pace(limits, answer_seconds or 0.0, found.page_seconds)
    splits = limits.shard_by != "portfolio"
    likely = forecast(expected, before, pace, splits=splits, closes=found.closes)
    pages = [pace.pages(one.orders) for one in expected]
    closing = closing_requests(expected, pace) if found.closes else 0
    least_requests = before.requests + sum(pages) + closing
    by_budget = least_seconds(least_requests, limits.requests, limits.per_seconds)
    by_latency = _least_by_latency(expected, pages, closing, before, pace, splits=splits)
    by_enterprise = before.requests + found.shards_by_enterprise
    by_portfolio = before.requests + found.shards_by_portfolio
    return PortfolioPlan(
        portfolio=portfolio,
        enterprises=found.enterprises,
        services=len(found.services),
        shards_by_enterprise=found.shards_by_enterprise,
        shards_by_portfolio=found.shards_by_portfolio,
        requests_by_enterprise=by_enterprise,
        requests_by_portfolio=by_portfolio,
        seconds_by_enterprise=least_seconds(by_enterprise, limits.requests, limits.per_seconds),
        seconds_by_portfolio=least_seconds(by_portfolio, limits.requests, limits.per_seconds),
        resumes_from=found.resumes_from,
        shards_open=len(found.going_on),
        shard_by=limits.shard_by,
        orders=round(sum(one.orders for one in expected)) if density.known else None,
        basis=_basis(density),
        packs=_packs(expected, likely, found.services, known=density.known),
        least_requests=least_requests,
        least_seconds_by_budget=by_budget,
        least_seconds_by_latency=round(by_latency, 3),
        least_seconds=round(max(by_budget, by_latency), 3),
        bound_by="budget" if by_budget > by_latency else "latency",
        requests=likely.requests if density.known else None,
        seconds=round(likely.seconds, 3) if density.known else None,
        answer_seconds=answer_seconds and round(answer_seconds, 3),
        page_seconds=found.page_seconds and round(found.page_seconds, 3),
        limit_requests=limits.requests,
        limit_seconds=limits.per_seconds,
        limit_walks=limits.walks,
        failed=found.failed,
    )


def _basis(density: Density) -> Basis | None:
    if not density.known:
        return None
    return "rows by enterprise and month" if density.by_enterprise else "rows of the portfolio"


def _left(shard: Shard, oldest: datetime | None) -> Window:
    """What a walk that has read down to `oldest` has left; `None`: it has read nothing, or nobody knows."""
    end = shard.window.end if oldest is None else min(oldest, shard.window.end)
    return Window(shard.window.start, max(shard.window.start, end))


def _pace(limits: LimitsConfig, answer_seconds: float, page_seconds: float | None) -> Pace:
    """How fast walks get on; the first answers were heard on connections that had to be opened."""
    full = answer_seconds if page_seconds is None else page_seconds
    return Pace(
        requests=limits.requests,
        per_seconds=limits.per_seconds,
        walks=limits.walks,
        page_size=limits.page_size,
        answer_seconds=min(answer_seconds, full),
        page_seconds=full,
    )


def _least_by_latency(
    expected: Sequence[Expected], pages: Sequence[int], closing: int, before: Before, pace: Pace, *, splits: bool
) -> float:
    """In which all pages come, if walkers share them as well as can be."""
    walks = [
        (count - 1) * pace.page_seconds + pace.seconds(one.orders - (count - 1) * pace.page_size)
        for one, count in zip(expected, pages, strict=True)
    ]
    longest = pace.page_seconds if splits and max(pages, default=0) > 1 else max(walks, default=0.0)
    return before.seconds + max(longest, sum(walks) / pace.walks) + (pace.answer_seconds if closing else 0.0)


def _packs(
    expected: Sequence[Expected], likely: Forecast, services: Collection[ServiceRef], *, known: bool
) -> tuple[PackPlan, ...]:
    enterprises = {service.id: service.enterprise_id for service in services}
    packs: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(expected):
        packs.setdefault(one.shard.service_ids, []).append(place)
    return tuple(
        PackPlan(
            services=len(ids),
            enterprises=tuple(sorted({enterprises[id_] for id_ in ids})),
            windows=len(places),
            orders=round(sum(expected[place].orders for place in places)) if known else None,
            split=len(likely.split.intersection(places)),
        )
        for ids, places in packs.items()
    )
