"""PostgreSQL: a portfolio has one owner, and whoever had it before commits nothing of it any more (promise P3)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import psycopg
import pytest
from msgspec import structs

import fetcher
from fetcher.errors import SinkError, TakenOverError
from fetcher.job import Job
from fetcher.planning.checkpoint import describe
from fetcher.simulator import Latency
from fetcher.sinks import Batch, Page, make_sink, postgres_connection
from fetcher.sinks.base import Predecessor, without
from fetcher.sinks.postgres import PostgresSink
from tests.held import contents, held, rows
from tests.http import site
from tests.orders import order, page
from tests.postgres import Server
from tests.sinks.test_sinks import commit

SECOND = "2024-03-01T10:00:00Z"


@pytest.fixture
def two(schema_url: str) -> Iterator[tuple[PostgresSink, PostgresSink]]:
    """Two processes' ways into one database."""
    sinks = make_sink(schema_url), make_sink(schema_url)
    try:
        for sink in sinks:
            assert isinstance(sink, PostgresSink)
            sink.open()
        yield sinks  # type: ignore[misc]
    finally:
        for sink in sinks:
            sink.close()


def numbered(*numbers: int, portfolio: str = "north") -> Page:
    return structs.replace(page([order(number, SECOND) for number in numbers]), portfolio=portfolio)


def test_whoever_had_a_portfolio_before_commits_nothing_of_it_any_more(
    two: tuple[PostgresSink, PostgresSink], schema_url: str
) -> None:
    old, new = two
    old.take(["north", "south"], "a")
    commit(old, numbered(1), progress={"north/run": "1", "south/run": "7"})
    assert new.take(["north"], "b").progress == {"north/run": "1"}
    assert old.lost() == {"north"}
    assert new.lost() == set()
    with pytest.raises(TakenOverError, match="taken this over") as refused:
        commit(old, numbered(2), numbered(3, portfolio="south"), progress={"north/run": "2", "south/run": "8"})
    assert refused.value.portfolios == {"north"}
    assert len(rows(schema_url)) == 1
    pages = [old.encode(numbered(2)), old.encode(numbered(3, portfolio="south"))]
    batch = Batch(pages=pages, progress={"north/run": "2", "south/run": "8"})
    assert old.commit(without(batch, refused.value.portfolios)) == {"south": 1}
    assert commit(new, numbered(4), progress={"north/run": "3"}) == 1
    assert new.holdings().progress == {"north/run": "3", "south/run": "8"}
    assert {id_[:8] for id_, _ in rows(schema_url)} == {"00000001", "00000003", "00000004"}


def test_who_owns_what_is_no_progress(two: tuple[PostgresSink, PostgresSink]) -> None:
    two[0].take(["north"], None)
    assert two[1].holdings().progress == {}
    assert describe(two[0].holdings().progress) == []


def test_many_that_take_at_once_leave_one_owner(schema_url: str) -> None:
    sinks = [make_sink(schema_url) for _ in range(4)]
    names = ["north", "south", "east"]
    sinks[0].open()
    try:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(5):
                list(threads.map(lambda sink: sink.take(names, None), sinks))
        owners = {name: [sink for sink in sinks if name not in sink.lost()] for name in names}
        assert all(len(found) == 1 for found in owners.values())
        seen = sinks[1].take(names, None)
        assert len(seen.predecessors) == 3
    finally:
        for sink in sinks:
            sink.close()


def test_what_an_owner_held_of_the_budget_is_told_to_the_next_and_grows_less(
    two: tuple[PostgresSink, PostgresSink],
) -> None:
    old, new = two
    assert old.take(["north", "south"], "a").predecessors == {}
    old.hand_over({"north": [0.01, 30.0, 60.0]})
    time.sleep(0.05)
    before = new.take(["north", "south"], "b").predecessors
    assert (before["north"].place, before["south"].place) == ("a", "a")
    assert before["south"].held is None
    kept = before["north"].held
    assert kept is not None
    assert len(kept) == 2
    assert 20 < kept[0] < 29.96
    old.hand_over({"north": []})  # it has no say any more
    assert old.take(["north"], "a").predecessors["north"].held is None


def test_a_take_that_is_made_again_because_its_answer_was_lost_is_the_same_take(
    two: tuple[PostgresSink, PostgresSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    old.take(["north"], "elsewhere")
    transact = new._database.transact

    def twice_over(work: Any, **options: Any) -> Any:
        transact(work, **options)
        return transact(work, **options)

    monkeypatch.setattr(new._database, "transact", twice_over)
    assert new.take(["north"], "here").predecessors == {"north": Predecessor("elsewhere", None)}
    monkeypatch.undo()
    assert commit(new, numbered(1)) == 1
    assert new.lost() == set()


def test_progress_that_was_cleared_belongs_to_nobody(two: tuple[PostgresSink, PostgresSink], postgres: Server) -> None:
    sink, _ = two
    sink.take(["north"], None)
    schema = sink.url.partition("?schema=")[2]
    postgres.execute(f"DELETE FROM {schema}.fetcher_progress")
    with pytest.raises(TakenOverError):
        commit(sink, numbered(1))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing in the middle of a transaction is ended after a second."""
    quick = psycopg.sql.SQL("SELECT set_config('idle_in_transaction_session_timeout', '1s', true)")
    monkeypatch.setattr(postgres_connection, "_SESSION", quick)


@pytest.mark.usefixtures("hasty")
def test_an_owner_that_is_stopped_in_mid_commit_holds_nobody_up(
    two: tuple[PostgresSink, PostgresSink], schema_url: str
) -> None:
    old, new = two
    old.take(["north"], None)
    batch = Batch(pages=[old.encode(numbered(1, 2))], progress={"north/run": "1"})
    stopped, goes_on = threading.Event(), threading.Event()

    def stop(db: psycopg.Connection) -> None:
        old._commit(db, batch)  # all its locks are held now
        stopped.set()
        goes_on.wait(30)
        db.execute("SELECT 1")

    with ThreadPoolExecutor(1) as thread:
        stuck = thread.submit(old._database.transact, stop)
        assert stopped.wait(10)
        began = time.monotonic()
        new.take(["north"], None)
        assert commit(new, numbered(1, 2), progress={"north/run": "2"}) == 2
        assert time.monotonic() - began < 8
        goes_on.set()
        with pytest.raises(SinkError):
            stuck.result()
    with pytest.raises(TakenOverError):
        old.commit(batch)
    assert len(rows(schema_url)) == 2


def test_of_two_runs_of_one_portfolio_the_later_ends_it_and_the_other_is_told_so(schema_url: str) -> None:
    async def check() -> None:
        async with site(latency=Latency(0.05)) as here:
            config = here.config(schema_url, page_size=5, walks=1)
            async with Job(config, sink=make_sink(schema_url)) as job:
                reports = []

                async def first() -> None:
                    reports.append(await job.run())

                async with anyio.create_task_group() as group:
                    group.start_soon(first)
                    while sum(tally.orders for tally in job.tallies) < 100:
                        await asyncio.sleep(0.01)
                    later = await fetcher.run(here.config(schema_url, processes=1))
            assert later.complete
            assert later.failed == []
            told = {failure.portfolio: failure.error for failure in reports[0].failed}
            assert told.keys() == later.portfolios.keys()
            assert all("taken this over" in error and "Nothing is lost" in error for error in told.values())
            assert reports[0].watermark is None
            assert held(schema_url) == contents(here.platform.world.bodies)

    anyio.run(check)
