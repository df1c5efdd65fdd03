"""The command line: turns options into a configuration, runs the job, and ends with an exit code.

Exit codes: 0 whole, 1 partly (the rest is durable), 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import msgspec
import typer

from fetcher.config import Config, check_config, load_config, parse_instant
from fetcher.connector.types import utc_text
from fetcher.errors import ConfigError, FetcherError, PlatformError, SinkError
from fetcher.job import Job
from fetcher.planning.checkpoint import PortfolioStatus, describe
from fetcher.processes.supervisor import processes_for
from fetcher.report import Report
from fetcher.sinks import LaterSink, Sink, later_sink, make_sink
from fetcher.terminal.plain import RunOptions, plain_run
from fetcher.terminal.text import steady_output, to_json
from fetcher.terminal.view import ConsoleHandler, View, failure_line, standard_error, summary, table

if TYPE_CHECKING:  # each command imports what it alone needs
    from fetcher.prospect.check import Check
    from fetcher.prospect.plan import PortfolioPlan
    from fetcher.simulator.process import Options

T = TypeVar("T")

WHOLE, PARTLY, USAGE, INTERRUPTED = 0, 1, 2, 130
STOP_SECONDS = 4.5
"""After a signal, for committing what is in hand; then the process ends, which no commit minds."""
LINGER_SECONDS = 1.0
"""For a job that loads nothing to end, once its result is shown."""

app = typer.Typer(
    name="fetcher",
    help="Loads every product service order of many hotels from the Mews Connector API into a file or a database.\n\n"
    "Begin with `fetcher demo`, which needs no account; then write a config.toml, and `fetcher check`, `fetcher run`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they show local variables, and some of those are tokens
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(help="The configuration file.")]
SinkUrl = Annotated[
    str | None,
    typer.Option(
        "--sink",
        metavar="URL",
        help="Where orders go, instead of the configured sink: jsonl:FILE (.gz, .zst; jsonl:- is standard output), "
        "parquet:FOLDER, duckdb:FILE, postgresql://..., null:",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, and nothing else.")]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="Orders updated from then on (UTC).")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Orders updated before then (UTC).")]
Full = Annotated[bool, typer.Option("--full", help="Read everything again, whatever the sink has already.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"fetcher {version('fetcher')}")
        raise typer.Exit


@app.callback()
def program(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself; its help is the app's."""


@app.command(short_help="Load every order into the sink; later, what changed.")
def run(
    config: ConfigPath = Path("config.toml"),
    sink: SinkUrl = None,
    from_: From = None,
    until: Until = None,
    full: Full = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; warnings still go to standard error.")] = False,
) -> None:
    """Load every order into the sink: at first all of them, then just what changed.

    Run it again whenever you like: what is durable is not loaded again. Ctrl-C stops it within seconds, with all
    that was committed usable. Exits 0 if everything is there, 1 if a part failed (it is named, and the next run takes
    it up), 2 for a mistake in the configuration, 130 if interrupted.
    """
    options = RunOptions(config=config, sink=sink, from_=from_, until=until, full=full, as_json=as_json, quiet=quiet)
    raise typer.Exit(_run_job(options))


def _run_job(options: RunOptions) -> int:
    """What `fetcher run` does; returns its exit code."""
    settings = _settings(options.config, options.sink, options.from_, options.until)
    if options.as_json and settings.sink_url == "jsonl:-":
        raise ConfigError("--json", "the orders go to standard output already", "Leave it out, or name another sink")
    target = later_sink(settings.sink_url)
    report = _load(settings, target, full=options.full, quiet=options.quiet or options.as_json)
    if options.as_json:
        _print_json(report)
    else:
        # Where the orders themselves go to standard output, the summary must not.
        print(summary(report), file=sys.stdout if settings.sink_url != "jsonl:-" else sys.stderr)
    return INTERRUPTED if report.interrupted else WHOLE if report.complete else PARTLY


@app.command(short_help="Show what a run would do, and how long it takes.")
def plan(
    config: ConfigPath = Path("config.toml"),
    sink: SinkUrl = None,
    from_: From = None,
    until: Until = None,
    full: Full = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, and how long it takes: at the least, and likely where the sink knows how much there is.

    Sends only what discovery needs. How many orders there are is told by what the sink holds of earlier runs; where it
    holds nothing, what is shown is the least, for no orders at all. Exits 1 if something could not be found out, or is
    refused: it is named.
    """
    settings = _settings(config, sink, from_, until)
    target = None if settings.sink.url is None else make_sink(settings.sink_url)

    def show(plans: list[PortfolioPlan]) -> int:
        from fetcher.terminal.plan import plan_text

        print(to_json(plans) if as_json else plan_text(plans))
        return PARTLY if any(one.failed for one in plans) else WHOLE

    raise typer.Exit(_in_job(settings, target, Job.plan, show, full=full))


@app.command(short_help="Are the tokens, services and the sink usable?")
def check(config: ConfigPath = Path("config.toml"), sink: SinkUrl = None, as_json: AsJson = False) -> None:
    """Find out whether the tokens, the enterprises, the services, their orders and the sink are usable.

    Asks for what a run needs, also for one order of one service of each portfolio. Writes nothing, and takes no longer
    than 15 seconds. Exits 0 if all is well, 1 if something is not: each with its cause, and what to do.
    """
    settings = _settings(config, sink, None, None)
    target = None if settings.sink.url is None else make_sink(settings.sink_url)

    def show(checks: list[Check]) -> int:
        if as_json:
            _print_json(checks)
        else:
            for line in checks:
                print(f"{'ok  ' if line.ok else 'FAIL'}  {line.what}: {line.message}")
        return WHOLE if all(line.ok for line in checks) else PARTLY

    raise typer.Exit(_in_job(settings, target, Job.check, show))


@app.command(short_help="Show what the sink holds, and what is left or failed.")
def status(config: ConfigPath = Path("config.toml"), sink: SinkUrl = None, as_json: AsJson = False) -> None:
    """Show what the sink holds: watermarks, rows, the newest order, what is unfinished or failed.

    Asks the sink alone; the platform is not called.
    """
    settings = _settings(config, sink, None, None)
    target = make_sink(settings.sink_url)
    if not target.resumes:
        raise ConfigError("sink.url", "it keeps nothing that could be found again", "Name another sink")
    holdings = target.holdings()
    target.close()
    rows, newest = holdings.rows or {}, holdings.newest or {}
    found = {portfolio.portfolio: portfolio for portfolio in describe(holdings.progress)}
    names = list(dict.fromkeys([*(portfolio.name for portfolio in settings.portfolios), *rows, *found]))
    lines = [
        _Status(
            portfolio=name,
            rows=rows.get(name, 0),
            newest=None if name not in newest else utc_text(newest[name]),
            progress=found.get(name),
        )
        for name in names
    ]
    if as_json:
        _print_json(lines)
        return
    headings = [
        "portfolio",
        "rows",
        "newest order",
        "whole up to",
        "last run",
        "ended",
        "unfinished walks",
        "kept aside",
    ]
    print(table(headings, [line.cells() for line in lines]))
    failed = [failure for line in lines if line.progress is not None for failure in line.progress.failed]
    for failure in failed:
        print(f"failed: {failure_line(failure)}")
    if aside := sum(line.progress.kept_aside for line in lines if line.progress is not None):
        print(f"{aside:,} orders are kept aside in {target.kept_aside_in}: as they came, and why")


class _Status(msgspec.Struct, frozen=True):
    """What a sink holds of one portfolio."""

    portfolio: str
    rows: int
    newest: str | None
    progress: PortfolioStatus | None

    def cells(self) -> list[str]:
        progress = self.progress
        if progress is None:
            return [self.portfolio, f"{self.rows:,}", self.newest or "none", "never", "none", "", "0", "0"]
        return [
            self.portfolio,
            f"{self.rows:,}",
            self.newest or "none",
            "never" if progress.watermark is None else utc_text(progress.watermark),
            progress.last_run,
            "" if progress.last_run_ended is None else utc_text(progress.last_run_ended.replace(microsecond=0)),
            str(progress.shards_open),
            f"{progress.kept_aside:,}",
        ]


# As the simulator has them (a test compares), which is not imported to run without it.
_FAULTS = (
    "500, 502, 503, 408, 429, 401, reset, lost, stall, truncated, corrupt, gzip, not-utf8, not-json, nested, "
    "cursor, circle, twice, outside, unasked, bomb, large, endless, redirect, type, bad-services, "
    "bad-enterprises, 429-seconds, heavy-pages, heavy-stalls, heavy-windows, heavy-ids, revoke, forbid, "
    "forbid-services, forbid-enterprises, shared, others, outage-after, outage-seconds, outage-pause, retry-after, "
    "clock-skew, skew-first, skew-hours, changes, late, same-second, bad-order, capitals, unknown, invalid-cursors"
)


@app.command(short_help="Serve a simulated platform, to try things on.")
def simulate(
    port: Annotated[int, typer.Option(help="Loopback port; 0: any that is free.")] = 8910,
    orders: Annotated[int, typer.Option(help="Orders of the whole world.", min=0)] = 200_000,
    portfolios: Annotated[int, typer.Option(help="Portfolios, each with an access token.", min=1)] = 3,
    enterprises: Annotated[int, typer.Option(help="Enterprises of all portfolios.", min=1)] = 14,
    services: Annotated[int, typer.Option(help="Services of all enterprises.", min=1)] = 7000,
    latency: Annotated[float, typer.Option(help="Milliseconds of each request.", min=0)] = 50.0,
    jitter: Annotated[float, typer.Option(help="Share of the latency that varies.", min=0, max=1)] = 0.5,
    faults: Annotated[
        str, typer.Option(metavar="KIND=NUMBER,...", help=f"What goes wrong, and how often: all, {_FAULTS}.")
    ] = "",
    seed: Annotated[int, typer.Option(help="The same seed makes the same world, up to the time of day.")] = 1,
) -> None:
    """Serve a simulated platform on this machine, to try things on. Ends with Ctrl-C.

    Prints a configuration for it on standard output: `fetcher simulate > simulated.toml`, and in another terminal
    `fetcher run simulated.toml`. The tokens in it open nothing else.
    """
    from fetcher.simulator import Behaviour, Latency, Size, parse_faults
    from fetcher.simulator.process import Options

    if enterprises < portfolios:
        raise ConfigError("--enterprises", "there are fewer than portfolios", "Each portfolio needs one at least")
    try:
        parsed = parse_faults(faults)
    except ValueError as error:
        raise ConfigError("--faults", str(error), "See fetcher simulate --help") from None
    options = Options(
        port=port,
        seed=seed,
        size=Size(portfolios=portfolios, enterprises=enterprises, services=services, orders=orders),
        behaviour=Behaviour(),
        latency=Latency(latency / 1000, jitter),
        faults=parsed,
    )
    anyio.run(_serve, options)


async def _serve(options: Options) -> None:
    from fetcher.simulator.process import config_text, make_platform
    from fetcher.simulator.server import SimulatorServer

    print(f"making a world of {options.size.orders:,} orders ...", file=sys.stderr)
    platform = make_platform(options)
    server = SimulatorServer(platform, latency=options.latency)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        async with server.serve(options.port) as address:
            print(config_text(platform, address, "jsonl:simulated.jsonl"), flush=True)
            print(f"listening on {address}; Ctrl-C ends it", file=sys.stderr)
            await stopped.wait()
    except OSError as error:
        cause = f"port {options.port} cannot be used ({error.strerror})"
        raise ConfigError("--port", cause, "Name another, or 0 for any") from None
    counts = platform.stats.portfolios.values()
    requests, throttled = sum(count.requests for count in counts), sum(count.throttled for count in counts)
    refused = platform.stats.against_contract_count
    print(f"{requests:,} requests, {throttled:,} throttled, {refused:,} against the contract", file=sys.stderr)


@app.command(short_help="The main job against a simulated platform.")
def demo(
    orders: Annotated[int, typer.Option(help="Orders of the simulated world.", min=1)] = 200_000,
    into: Annotated[Path, typer.Option(metavar="FILE", help="The DuckDB file to make; replaced if there.")] = Path(
        "fetcher-demo.duckdb"
    ),
) -> None:
    """Run the main job against a simulated platform: no account and no network needed.

    Starts a simulator in a process of its own, with 3 portfolios, 14 enterprises and the platform's real limits, loads
    all its orders into a DuckDB file, and shows what is in it, compared with what the simulator knows to be true.
    """
    from fetcher.terminal.demo import show_demo

    raise typer.Exit(show_demo(orders, into, _load))


def main() -> None:
    """The program `fetcher`."""
    steady_output()
    try:
        plain = plain_run(sys.argv[1:])
        if plain is None:
            app(prog_name="fetcher")
        else:
            sys.exit(_run_job(plain))
    except KeyboardInterrupt:  # before there was a job to stop
        sys.exit(INTERRUPTED)
    except FetcherError as error:
        print(f"fetcher: {error}", file=sys.stderr)
        begun = isinstance(error, PlatformError) or (isinstance(error, SinkError) and error.after_start)
        sys.exit(PARTLY if begun else USAGE)
    finally:
        sys.stdout.flush()  # else it is Python that does, and its exit code tells of that


def _settings(path: Path, sink: str | None, from_: str | None, until: str | None) -> Config:
    """The configuration file, with what the command line says instead."""
    config = load_config(path)
    if sink is not None:
        config = msgspec.structs.replace(config, sink=msgspec.structs.replace(config.sink, url=sink))
    orders = config.orders
    if from_ is not None:
        orders = msgspec.structs.replace(orders, updated_from=parse_instant(from_, "--from"))
    if until is not None:
        orders = msgspec.structs.replace(orders, updated_until=parse_instant(until, "--until"))
    return check_config(msgspec.structs.replace(config, orders=orders))


def _load(config: Config, sink: Sink | LaterSink, *, full: bool = False, quiet: bool = False) -> Report:
    """Run the job, with progress on standard error, until its end or a signal."""
    _log(quiet=quiet)

    async def load() -> Report:
        processes = config.limits.processes and processes_for(config)
        async with Job(config, sink=sink, full=full, processes=processes) as job:
            _stop_on_signals(job)
            try:
                async with View(lambda: job.tallies, standard_error, quiet=quiet):
                    return await job.run()
            except SinkError as error:
                error.after_start = job.sink_opened
                raise

    return _run(load)


def _in_job(
    config: Config,
    sink: Sink | None,
    work: Callable[[Job], Awaitable[T]],
    show: Callable[[T], int],
    *,
    full: bool = False,
) -> int:
    """Do something with a job that loads nothing, and show what came of it; returns what `show` does, an exit code."""
    _log(quiet=True)

    async def within() -> int:
        async with Job(config, sink=sink, full=full, hurried=True) as job:
            code = show(await work(job))
            print(end="", flush=True)
            # A name that is still being looked up, in a thread, cannot be called off; all is said, so nobody waits.
            asyncio.get_running_loop().call_later(LINGER_SECONDS, os._exit, code)
            return code

    return _run(within)


def _run(function: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(function, backend_options={"use_uvloop": find_spec("uvloop") is not None})  # the `speed` extra


def _stop_on_signals(job: Job) -> None:
    """The first signal ends the run in order, within `STOP_SECONDS`; the second at once."""
    loop = asyncio.get_running_loop()
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(INTERRUPTED)
        job.stop()
        loop.call_later(STOP_SECONDS, os._exit, INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _log(*, quiet: bool) -> None:
    logger = logging.getLogger("fetcher")
    logger.handlers = [ConsoleHandler(standard_error)]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def _print_json(value: Any) -> None:
    print(to_json(value))
