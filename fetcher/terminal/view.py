"""What a person sees of a run: a live table on a terminal, lines where there is none, and the summary at the end."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

import anyio

from fetcher.report import Failure, Report, Tally

if TYPE_CHECKING:  # a run does without until it has something to print
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

FIRST_SECONDS = 0.1
"""Until the first look: a run has its first requests on their way by then, and prepares to print while it waits."""
REFRESH_SECONDS = 0.25
LINE_SECONDS = 10.0
"""Between two lines of progress in a log."""
RATE_SECONDS = 10.0
"""Over which "orders a second" is taken."""
NOT_BEGUN = ("waiting", None)
"""How a portfolio begins, which is worth no line."""


@cache
def standard_error() -> Console:
    """What is printed on beside the result, for all who print there."""
    from rich.console import Console

    return Console(stderr=True)


class Speed:
    """Orders a second over the last `RATE_SECONDS`, and the time that is left."""

    def __init__(self, clock: Callable[[], float] = anyio.current_time) -> None:
        self._clock = clock
        self._started = clock()
        self._points: deque[tuple[float, int]] = deque([(self._started, 0)])

    def rate(self, orders: int) -> float:
        """Orders a second, given how many there are now."""
        now = self._clock()
        self._points.append((now, orders))
        while len(self._points) > 2 and self._points[0][0] < now - RATE_SECONDS:
            self._points.popleft()
        since, before = self._points[0]
        return (orders - before) / (now - since) if now > since else 0.0

    def seconds_left(self, tally: Tally) -> float | None:
        """How long a portfolio still takes, if its other shards are like those that are done.

        `None` where nobody can say: before a tenth of the shards are done, and while it waits for the platform.
        """
        done, planned = tally.shards_done, tally.shards_planned
        if tally.phase != "loading" or tally.note or done < 3 or done * 10 < planned:
            return None
        return (self._clock() - self._started) * (planned - done) / done


class View:
    """Shows a run while it lasts: `async with View(...)`, beside the job.

    Args:
        tallies: gives what each portfolio has done so far.
        console: gives standard error, once there is something to be shown.
        quiet: whether to show nothing but warnings.
    """

    def __init__(self, tallies: Callable[[], list[Tally]], console: Callable[[], Console], *, quiet: bool) -> None:
        self._tallies = tallies
        self._console = console
        self._quiet = quiet
        self._speeds: dict[str, Speed] = {}
        self._all = Speed()
        self._phases: dict[str, tuple[str, str | None]] = {}
        self._live: Live | None = None

    async def __aenter__(self) -> View:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        if not self._quiet:
            self._group.start_soon(self._repeat)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        if self._live is not None:
            self._live.stop()
        elif not self._quiet and not (console := self._console()).is_terminal:
            self._lines(console, everybody=False)  # how it ended, however soon that was

    async def _repeat(self) -> None:
        next_line = anyio.current_time() + LINE_SECONDS
        await anyio.sleep(FIRST_SECONDS)
        console = self._console()
        if console.is_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=console, auto_refresh=False, transient=True)
            self._live.start()
        while True:
            if self._live is not None:
                self._live.update(self._table(), refresh=True)
            else:
                due = anyio.current_time() >= next_line
                next_line += LINE_SECONDS if due else 0
                self._lines(console, everybody=due)
            await anyio.sleep(REFRESH_SECONDS)

    def _lines(self, console: Console, *, everybody: bool) -> None:
        """A line for each portfolio that entered another phase, or waits for something new; or for everybody."""
        for tally in self._tallies():
            state = (tally.phase, (tally.note or "").partition(",")[0].rstrip("0123456789 s") or None)
            if everybody and tally.phase in ("done", "failed", "stopped"):
                continue
            if everybody or self._phases.get(tally.portfolio, NOT_BEGUN) != state:
                self._phases[tally.portfolio] = state
                console.print(self._line(tally), markup=False, highlight=False, soft_wrap=True)

    def _line(self, tally: Tally) -> str:
        parts = [f"{tally.portfolio}: {tally.phase}"]
        if tally.shards_planned:
            rate = self._speed(tally).rate(tally.orders)
            parts.append(f"{tally.orders:,} orders ({rate:,.0f}/s)")
            parts.append(f"shards {tally.shards_done}/{tally.shards_planned}")
            parts.append(f"budget {tally.budget_used}/{tally.budget_limit}")
            if (left := self._speed(tally).seconds_left(tally)) is not None:
                parts.append(f"about {duration(left)} left")
        if tally.note:
            parts.append(tally.note)
        return ", ".join(parts)

    def _table(self) -> Table:
        from rich.table import Table

        tallies = self._tallies()
        total = sum(tally.orders for tally in tallies)
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("portfolio", no_wrap=True)
        table.add_column("phase", no_wrap=True)
        for heading in ("orders", "orders/s", "shards", "budget", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", style="yellow")
        for tally in tallies:
            speed = self._speed(tally)
            left = speed.seconds_left(tally)
            table.add_row(
                tally.portfolio,
                tally.phase,
                f"{tally.orders:,}",
                f"{speed.rate(tally.orders):,.0f}",
                f"{tally.shards_done}/{tally.shards_planned}",
                f"{tally.budget_used}/{tally.budget_limit}",
                "" if left is None else f"~{duration(left)}",
                tally.note or (f"{len(tally.failed)} failed" if tally.failed else ""),
            )
        if len(tallies) > 1:
            table.add_row("all", "", f"{total:,}", f"{self._all.rate(total):,.0f}", style="bold")
        return table

    def _speed(self, tally: Tally) -> Speed:
        return self._speeds.setdefault(tally.portfolio, Speed())


class ConsoleHandler(logging.Handler):
    """Log lines on the console, above the live table where there is one."""

    def __init__(self, console: Callable[[], Console]) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self._console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def summary(report: Report) -> str:
    """How a run went, for a person: a few lines."""
    end = "interrupted" if report.interrupted else "complete" if report.complete else "incomplete"
    rate = report.orders / report.seconds if report.seconds else 0
    lines = [
        f"{end}: {report.orders:,} new orders into {report.sink} in {duration(report.seconds)} ({rate:,.0f}/s)",
        (
            f"{report.pages:,} pages, {report.requests:,} requests, {report.retries:,} retries, "
            f"{report.throttled:,} times throttled"
        ),
    ]
    width = max(map(len, report.portfolios), default=0)
    for name, portfolio in report.portfolios.items():
        state = f"whole up to {_time(portfolio.watermark)}" if portfolio.complete else "not whole"
        lines.append(
            f"  {name:{width}}  {portfolio.orders:>10,} orders  {portfolio.enterprises:>4} enterprises  "
            f"{portfolio.services:>6,} services  {state}"
        )
        for what, count in portfolio.oddities.items():
            lines.append(f"  {'':{width}}  left out: {count:,} orders {what}")
        if portfolio.kept_aside:
            lines.append(f"  {'':{width}}  kept aside: {portfolio.kept_aside:,} orders (fetcher status says where)")
        if portfolio.unknown_properties:
            lines.append(f"  {'':{width}}  not in the table: {', '.join(portfolio.unknown_properties)}")
    lines += [f"failed: {failure_line(failure)}" for failure in report.failed]
    if report.failed or report.interrupted:
        lines.append("What is durable stays. Run the same command again to take up the rest")
    return "\n".join(lines)


def failure_line(failure: Failure) -> str:
    """One failure on one line: where, what, and what to do."""
    where = [failure.portfolio]
    if failure.enterprise:
        where.append(f"enterprise {failure.enterprise}")
    if len(failure.services) == 1:
        where.append(f"service {failure.services[0]}")
    elif failure.services:
        where.append(f"{len(failure.services)} services from {failure.services[0]}")
    if failure.window:
        where.append(f"{_time(failure.window[0])} to {_time(failure.window[1])}")
    return f"{', '.join(where)}: {failure.error}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text that pipes: numbers to the right, no colour, no lines."""
    cells = [list(headings), *[list(row) for row in rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(headings))]
    right = [all(_is_number(row[place]) for row in cells[1:]) for place in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("-", "").removesuffix(" s").isdigit()


def _time(moment: datetime | None) -> str:
    return "never" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")
