"""Sinks that version 1.0 left in the middle of a load open, go on, and end with the truth."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import psycopg
import pytest

from fetcher.config import make_config
from fetcher.job import Job
from fetcher.planning.checkpoint import describe
from fetcher.report import Report
from fetcher.simulator import Behaviour, Latency, SimulatedPlatform, Size, World
from fetcher.simulator.process import config_document
from fetcher.simulator.world import MICROS
from fetcher.sinks import make_sink
from tests.held import contents, held
from tests.postgres import Server
from tests.simulation import BEGIN, VirtualTransport, inline
from tests.virtual import run_virtually

EARLIER = Path(__file__).parent / "earlier" / "1.0"
SIZE = Size(portfolios=2, enterprises=4, services=18, orders=260, years=0.8)


def world() -> World:
    """What the simulated platform held: eight orders had changed just before."""
    world = World(11, SIZE, int((BEGIN + 900) * MICROS))
    for number in range(8):
        world.update(number * 17, int((BEGIN + 1000 - 3 * number) * MICROS), "Started")
    return world


async def go_on(url: str, platform: SimulatedPlatform, *, later: float, full: bool = False) -> Report:
    transport = VirtualTransport(platform, Latency(0.05, 0.0), random.Random(5), seconds=30)
    transport.offset = later
    config = make_config(
        {
            **config_document(platform, "http://127.0.0.1:1"),
            "orders": {"updated_from": "2025-05-30T00:00:00Z", "settle_seconds": 5, "overlap_seconds": 20},
            "limits": {"requests": 60, "per_seconds": 2.0, "walks": 2, "page_size": 10},
            "sink": {"url": url},
        }
    )
    async with Job(
        config, sink=make_sink(url), full=full, transport=transport, offload=inline, chance=random.Random(1)
    ) as job:
        return await job.run()


@pytest.fixture(params=["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "duckdb", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kind = request.param
    for source in EARLIER.iterdir():
        if source.is_file():
            shutil.copy(source, tmp_path)
    shutil.copytree(EARLIER / "orders", tmp_path / "orders")
    if kind == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("DROP SCHEMA IF EXISTS earlier CASCADE")
            db.execute((EARLIER / "orders.sql").read_text())  # type: ignore[arg-type]
        return f"{server.url}?schema=earlier"
    if kind == "duckdb":
        import duckdb

        try:
            duckdb.connect(tmp_path / "orders.duckdb", read_only=True).close()
        except duckdb.Error:
            pytest.skip("the file is of a newer DuckDB than this one")
    name = {"parquet": "orders"}.get(kind, f"orders.{kind}")
    return f"{kind.partition('.')[0]}:{tmp_path / name}"


def test_a_load_that_version_1_0_began_goes_on_and_ends_with_the_truth(url: str) -> None:
    platform = SimulatedPlatform(world(), Behaviour(requests=60, per_seconds=2.0), None, 3)
    before = {status.portfolio: status for status in describe(make_sink(url).holdings().progress)}
    assert before["portfolio-1"].shards_open == 2
    assert before["portfolio-2"].watermark is not None
    report = run_virtually(lambda: go_on(url, platform, later=200))
    assert report.complete, report.failed
    assert report.orders == SIZE.orders - 186  # what it held was not loaded again
    truth = contents(platform.world.bodies)
    assert held(url) == truth
    # Then a value changes without another time, just after the run had read it, and one without any run near.
    recent = max(range(len(platform.world.bodies)), key=platform.world.updated.__getitem__)
    for number in (recent, 3):
        platform.world.update(number, platform.world.updated[number], "Requested", same_second=True)
    report = run_virtually(lambda: go_on(url, platform, later=400, full=True))
    assert report.complete, report.failed
    assert report.orders == 2
    assert held(url) == contents(platform.world.bodies)
