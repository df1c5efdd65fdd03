"""What `fetcher plan` tells a person: a table of portfolios, one of what is walked together, and what it stands on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from fetcher.prospect.plan import PackPlan, PortfolioPlan
from fetcher.terminal.view import duration, table

MOST_PACKS = 20
"""Lines of packs; `--json` has them all."""


def plan_text(plans: Sequence[PortfolioPlan]) -> str:
    """The plans as text."""
    shown = [plan for plan in plans if plan.services]
    parts: list[str] = []
    if shown:
        parts = [_portfolios(shown), _packs(shown), "\n".join(_notes(shown))]
    parts.append("\n".join(f"failed: {plan.portfolio}: {error}" for plan in plans for error in plan.failed))
    return "\n\n".join(part for part in parts if part)


def _portfolios(plans: Sequence[PortfolioPlan]) -> str:
    """A line for each portfolio, and one for all that are shown: they are loaded side by side."""
    headings = ["portfolio", "enterprises", "services", "reads from", "orders", "requests", "time", "bound by"]
    rows = [
        [
            plan.portfolio,
            f"{plan.enterprises:,}",
            f"{plan.services:,}",
            _start(plan),
            _orders(plan.orders),
            _least_or_likely(f"{plan.least_requests:,}", None if plan.requests is None else f"{plan.requests:,}"),
            _least_or_likely(duration(plan.least_seconds), None if plan.seconds is None else duration(plan.seconds)),
            plan.bound_by,
        ]
        for plan in plans
    ]
    if len(plans) > 1:
        rows.append(_all(plans))
    return table(headings, rows)


def _all(plans: Sequence[PortfolioPlan]) -> list[str]:
    known = [plan.orders for plan in plans if plan.orders is not None]
    requests = [plan.requests for plan in plans if plan.requests is not None]
    seconds = [plan.seconds for plan in plans if plan.seconds is not None]
    whole = len(known) == len(plans)
    least = sum(plan.least_requests for plan in plans), max(plan.least_seconds for plan in plans)
    return [
        "together",
        f"{sum(plan.enterprises for plan in plans):,}",
        f"{sum(plan.services for plan in plans):,}",
        "",
        _orders(sum(known) if whole else None),
        _least_or_likely(f"{least[0]:,}", f"{sum(requests):,}" if whole else None),
        _least_or_likely(duration(least[1]), duration(max(seconds)) if whole else None),
        "",
    ]


def _start(plan: PortfolioPlan) -> str:
    if plan.resumes_from is not None:
        return _time(plan.resumes_from)
    return "where it was" if plan.shards_open else "the beginning"


def _orders(count: int | None) -> str:
    return "unknown" if count is None else f"~{count:,}"


def _least_or_likely(least: str, likely: str | None) -> str:
    """What is likely, with the least beside it; where nobody knows, the least alone."""
    if likely is None:
        return f"at least {least}"
    return f"~{likely}" if likely == least else f"~{likely} (least {least})"


def _packs(plans: Sequence[PortfolioPlan]) -> str:
    """What is walked together: a line for each pack, the first of them only."""
    packs = [(plan, number, pack) for plan in plans for number, pack in enumerate(plan.packs, 1)]
    if not packs:
        return "Nothing is left to be read"
    headings = ["portfolio", "walked together", "enterprises", "services", "walks", "orders", "to be split"]
    rows = [
        [
            plan.portfolio,
            f"pack {number}",
            _enterprises(pack),
            f"{pack.services:,}",
            f"{pack.windows:,}",
            _orders(pack.orders),
            _split(plan, pack),
        ]
        for plan, number, pack in packs[:MOST_PACKS]
    ]
    text = table(headings, rows)
    return text if len(packs) <= MOST_PACKS else f"{text}\n... and {len(packs) - MOST_PACKS:,} more: see --json"


def _enterprises(pack: PackPlan) -> str:
    """Which share walks, or the one that has them alone."""
    return "".join(pack.enterprises) if len(pack.enterprises) == 1 else f"{len(pack.enterprises):,} share"


def _split(plan: PortfolioPlan, pack: PackPlan) -> str:
    if plan.shard_by == "portfolio":
        return "never"
    return "unknown" if pack.orders is None else f"{pack.split:,} of {pack.windows:,}" if pack.split else "none"


def _notes(plans: Sequence[PortfolioPlan]) -> Iterator[str]:
    """What the tables stand on, and what else a run would do."""
    one = plans[0]
    yield _basis(plans)
    yield _latency(plans)
    yield (
        f"The budget lets {one.limit_requests:,} requests through in any {one.limit_seconds:g} s; "
        f"{one.limit_walks} walks of a portfolio go side by side"
    )
    yield f'shard_by is "{one.shard_by}": {_other_way(plans)}'
    yield "A run would have " + (
        "one process" if one.processes == 1 else f"{one.processes} processes that load, and one that commits"
    )


def _basis(plans: Sequence[PortfolioPlan]) -> str:
    lines: list[str] = []
    if any(plan.basis == "rows by enterprise and month" for plan in plans):
        lines.append("Orders are estimated from the sink's rows, by enterprise and month, of the time that was read")
    if any(plan.basis == "rows of the portfolio" for plan in plans):
        lines.append(
            "Orders are estimated from the number of the sink's rows of the time that was read, as if spread evenly; "
            "the time may be longer where they are not"
        )
    unknown = [plan.portfolio for plan in plans if plan.basis is None]
    if unknown:
        whose = "" if len(unknown) == len(plans) else f" of {', '.join(unknown)}"
        lines.append(
            f"Nobody knows how many orders there are{whose}, for nothing was read yet: what is shown is the least, "
            "for none. Each full page is a request more"
        )
    return "\n".join(lines)


def _latency(plans: Sequence[PortfolioPlan]) -> str:
    one = plans[0]
    heard = "" if one.answer_seconds is None else f"An answer takes {_milliseconds(one.answer_seconds)}, as heard now"
    pages = {plan.page_seconds for plan in plans if plan.page_seconds is not None}
    if not pages:
        return f"{heard}; a full page is taken to need as long, and may need longer"
    longest = max(pages)
    return f"{heard}; a full page {_milliseconds(longest)}, as in the last run that had any"


def _other_way(plans: Sequence[PortfolioPlan]) -> str:
    by_enterprise = sum(plan.shards_by_enterprise for plan in plans)
    by_portfolio = sum(plan.shards_by_portfolio for plan in plans)
    return (
        f'"auto" and "portfolio" begin with {by_portfolio:,} walks, "enterprise" with {by_enterprise:,}, '
        'each a request at the least; "portfolio" never splits them'
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
