"""What is happening, as values: the tallies that a running job keeps, and the report that it ends with."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the selection that was left out, and why."""

    portfolio: str
    enterprise: str | None = None
    """Enterprise id; `None`: the whole portfolio, or a walk that spans several enterprises."""
    services: tuple[str, ...] = ()
    """Service ids, when fewer than the whole enterprise is concerned (at most 1000)."""
    window: tuple[datetime, datetime] | None = None
    """Start and end of the time window, half-open, UTC; `None`: every window."""
    error: str
    """What happened and what to do."""
    request_id: str | None = None


class Tally(msgspec.Struct, kw_only=True):
    """What one portfolio has done so far. The job writes it, anybody may read it at any time."""

    portfolio: str
    phase: str = "waiting"
    """`waiting` (to begin, or for what another portfolio may leave to it), `discovering`, `loading`, `closing`, `done`,
    `failed` or `stopped`."""
    note: str | None = None
    """What holds it up, if anything does: `paused 12 s by the platform`, `the platform is down since …`."""
    enterprises: int = 0
    services: int = 0
    orders: int = 0
    """Orders that walks received (committed or not yet)."""
    committed: int = 0
    """Orders that are durable in the sink and new to it."""
    pages: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    """Answers with status 429."""
    shards_planned: int = 0
    """Shards of this run; grows when a shard is split."""
    shards_done: int = 0
    budget_used: int = 0
    """Slots of the request budget in use now."""
    budget_limit: int = 0
    oddities: dict[str, int] = {}
    """What the platform should not have sent, and how often: see `fetcher.planning.sifting`."""
    unknown_properties: list[str] = []
    """Properties of orders that the table does not know, each once."""
    kept_aside: int = 0
    """Orders that are kept aside: they cannot be read, or the sink cannot hold them."""
    watermark: datetime | None = None
    seconds: float = 0.0
    failed: list[Failure] = []

    def fail(
        self,
        error: str,
        request_id: str | None = None,
        *,
        enterprise: str | None = None,
        services: tuple[str, ...] = (),
        window: tuple[datetime, datetime] | None = None,
    ) -> None:
        """Name a part of the selection that was left out; see `Failure`."""
        self.failed.append(
            Failure(
                portfolio=self.portfolio,
                enterprise=enterprise,
                services=services,
                window=window,
                error=error,
                request_id=request_id,
            )
        )


class PortfolioReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a run went for one portfolio; the fields of `Report`, less what belongs to the whole run."""

    orders: int
    """Orders that are new to the sink."""
    pages: int
    requests: int
    retries: int
    throttled: int
    seconds: float
    complete: bool
    watermark: datetime | None
    """Everything updated before it is durable; `None` until a run completes."""
    enterprises: int
    services: int
    oddities: dict[str, int]
    unknown_properties: list[str]
    kept_aside: int
    """Orders that are kept aside, and named in `failed` (the first hundred)."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a run went: what `fetcher run --json` prints. Counts are sums over the portfolios."""

    orders: int
    pages: int
    requests: int
    retries: int
    throttled: int
    seconds: float
    complete: bool
    """Whether the sink now holds the whole selection."""
    interrupted: bool
    """Whether the run was stopped by a signal or by its caller."""
    watermark: datetime | None
    """The earliest of the portfolios' watermarks; `None` if any has none."""
    sink: str
    portfolios: dict[str, PortfolioReport]
    failed: list[Failure]
