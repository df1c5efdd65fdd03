"""`fetcher demo`: the main job against a simulator, and what came of it compared with the truth."""

# Neither pyarrow nor duckdb ships full types; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from fetcher.config import Config
from fetcher.errors import ConfigError
from fetcher.report import Report
from fetcher.simulator.process import Simulator, start_process
from fetcher.sinks import LaterSink, Sink, later_sink
from fetcher.terminal.view import summary, table

_QUERIES = [
    (
        "orders by portfolio",
        """SELECT portfolio, count(DISTINCT enterprise_id)::VARCHAR, count(DISTINCT service_id)::VARCHAR,
                  count(*)::VARCHAR, strftime(max(updated_utc), '%Y-%m-%d %H:%M:%S')
           FROM product_service_orders GROUP BY portfolio ORDER BY portfolio""",
        ["portfolio", "enterprises", "services", "orders", "newest (UTC)"],
    ),
    (
        "orders by state",
        "SELECT state, count(*)::VARCHAR FROM product_service_orders GROUP BY state ORDER BY count(*) DESC LIMIT 6",
        ["state", "orders"],
    ),
]


def show_demo(orders: int, path: Path, load: Callable[[Config, Sink | LaterSink], Report]) -> int:
    """Run it and print it; returns the exit code: 0 only if what was loaded is exactly the truth.

    Args:
        orders: of the simulated world.
        path: the DuckDB file, replaced if it is there.
        load: runs the job.
    """
    url = f"duckdb:{path}"
    sink = later_sink(url)
    _make_place(path)
    print(f"starting a simulated platform with {orders:,} orders ...", file=sys.stderr)
    with start_process(["--orders", str(orders), "--latency", "30", "--jitter", "0.5"]) as simulator:
        report = load(simulator.config(url), sink)
        print(summary(report))
        if report.interrupted:
            return 130
        return 0 if _compare(path, simulator) and report.complete else 1


def _python() -> str:
    """The interpreter that runs, as one would type it here."""
    program = Path(sys.executable)
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def _make_place(path: Path) -> None:
    """Remove what an earlier demo left; anything that is no DuckDB file stays."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(12)[8:] != b"DUCK":
                raise ConfigError("--into", f"{path} is there, and is no DuckDB file", "Name another file")
        path.unlink()
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def _compare(path: Path, simulator: Simulator) -> bool:
    """Print what the file holds, and whether it is what the simulator holds."""
    import duckdb

    with duckdb.connect(path, read_only=True) as db:
        db.execute("SET TimeZone = 'UTC'")
        for title, query, headings in _QUERIES:
            print(f"\n{title}\n{table(headings, db.execute(query).fetchall())}")
        query = "SELECT portfolio, id::VARCHAR, epoch_us(updated_utc) FROM product_service_orders"
        loaded = {(portfolio, id_): updated for portfolio, id_, updated in db.execute(query).fetchall()}
        rows = db.execute("SELECT count(*) FROM product_service_orders").fetchall()[0][0]
    from fetcher.connector.types import parse_utc
    from fetcher.simulator.world import micros

    truth = {(portfolio, id_): micros(parse_utc(updated)) for portfolio, id_, updated in simulator.truth()}
    stats = simulator.stats()
    throttled = sum(count.throttled for count in stats.portfolios.values())
    exact = loaded == truth and rows == len(truth)
    print(
        f"\nchecked against the simulator: {len(truth):,} orders there, {rows:,} rows here, "
        f"{'every order at its newest version' if exact else 'NOT the same'}; "
        f"{stats.against_contract_count} requests against the contract, {throttled} throttled"
    )
    look = f"import duckdb; duckdb.connect('{path}').sql('FROM product_service_orders').show()"
    print(f'look for yourself: {_python()} -c "{look}"')
    return exact
