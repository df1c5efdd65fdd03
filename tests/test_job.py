"""The job as an application uses it: inside a running event loop, over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import anyio
import duckdb
import pytest
from blockbuster import blockbuster_ctx
from msgspec import structs

import fetcher
from fetcher.errors import IncompleteError, SinkError
from fetcher.job import Job
from fetcher.simulator import parse_faults
from fetcher.simulator.world import MICROS, micros
from fetcher.sinks import Batch, make_sink
from tests.http import site


def held(path: Path) -> list[str]:
    return [json.loads(line)["Id"] for line in path.read_bytes().splitlines()]


def test_run_loads_everything_and_a_second_run_just_what_changed(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            sink = f"jsonl:{tmp_path / 'o.jsonl'}"
            report = await fetcher.run(here.config(sink))
            assert report.complete
            assert report.orders == len(here.truth())
            assert set(held(tmp_path / "o.jsonl")) == here.truth()
            pages = report.pages
            here.platform.world.update(5, here.platform.world.updated[5] + 10**12, "Canceled")
            report = await fetcher.run(here.config(sink))
            assert (report.complete, report.orders) == (True, 0)  # changed in the future: not there yet
            assert report.pages < pages / 2

    anyio.run(check)


def test_pages_come_with_structs_and_walks_wait_for_their_taker() -> None:
    async def check() -> None:
        async with site() as here, fetcher.open(here.config()) as job:
            seen: set[str] = set()
            async for page in job.pages():
                await asyncio.sleep(0)
                seen.update(order.id for order in page.orders)
                assert all(page.enterprise_ids[order.service_id] for order in page.orders)
                assert len(page.lines()) == len(page.orders)
            assert seen == here.truth()
            assert [tally.phase for tally in job.tallies] == ["done", "done"]

    anyio.run(check)


def test_leaving_the_pages_early_ends_the_walks() -> None:
    async def check() -> None:
        async with site() as here:
            async with fetcher.open(here.config()) as job:
                async for page in job.pages():
                    assert page.orders
                    break
            requests = here.platform.stats.portfolios["portfolio-1"].requests
            await asyncio.sleep(0.05)
            assert here.platform.stats.portfolios["portfolio-1"].requests == requests

    anyio.run(check)


def test_load_gives_a_table_even_where_a_loop_is_running() -> None:
    async def check() -> None:
        async with site() as here:
            table = await asyncio.to_thread(fetcher.load, here.config())
            assert set(table["id"].to_pylist()) == here.truth()
            assert len(table) == len(here.truth())
            here.platform.faults = parse_faults("forbid=1")
            with pytest.raises(IncompleteError) as caught:
                await asyncio.to_thread(fetcher.load, here.config())
            assert 0 < len(caught.value.table) < len(table)
            assert caught.value.failed[0].portfolio == "portfolio-1"

    anyio.run(check)


def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            for kind in ("jsonl:o.jsonl.gz", "parquet:p", "duckdb:o.duckdb"):
                scheme, _, name = kind.partition(":")
                url = f"{scheme}:{tmp_path / name}"
                sink = make_sink(url)
                async with Job(here.config(url), sink=sink) as job:
                    with blockbuster_ctx() as blocking:
                        # What entering the job reads and maps is done; its memory of slots is a store into memory.
                        assert blocking is not None
                        report = await job.run()
                assert report.complete

    anyio.run(check)


def test_cancelling_keeps_what_was_committed_and_the_next_run_completes_it(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"duckdb:{tmp_path / 'o.duckdb'}"
            for seconds in (0.01, 0.05, 0.1, 0.2):
                with anyio.move_on_after(seconds):
                    await here.run(url)
            report = await here.run(url)
            assert report.complete
            with duckdb.connect(tmp_path / "o.duckdb", read_only=True) as db:
                ids = [id_ for (id_,) in db.execute("SELECT id::varchar FROM product_service_orders").fetchall()]
            assert len(ids) == len(set(ids))
            assert set(ids) == here.truth()

    anyio.run(check)


def test_stopping_commits_what_is_in_hand(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            sink = make_sink(f"jsonl:{tmp_path / 'o.jsonl'}")
            async with Job(here.config("null:", walks=1, page_size=10), sink=sink) as job:
                async with anyio.create_task_group() as group:

                    async def stop_soon() -> None:
                        while sum(tally.orders for tally in job.tallies) < 100:
                            await asyncio.sleep(0.001)
                        job.stop()
                        job.stop()

                    group.start_soon(stop_soon)
                    report = await job.run()
            assert report.interrupted
            assert not report.complete
            assert 100 <= report.orders == len(held(tmp_path / "o.jsonl")) < len(here.truth())
            again = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}", page_size=10)
            assert again.complete
            assert again.orders == len(here.truth()) - report.orders
            assert set(held(tmp_path / "o.jsonl")) == here.truth()

    anyio.run(check)


def test_a_resumed_run_fetches_no_page_twice(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"jsonl:{tmp_path / 'o.jsonl'}"
            whole = await here.run(f"jsonl:{tmp_path / 'whole.jsonl'}", page_size=20)
            sent = 0
            for target in (200, 300, 10**9):
                sink = make_sink(url)
                async with Job(here.config("null:", walks=4, page_size=20), sink=sink) as job:
                    async with anyio.create_task_group() as group:

                        async def stop_soon(job: Job = job, target: int = target) -> None:
                            while sum(tally.orders for tally in job.tallies) < target:
                                await asyncio.sleep(0.001)
                            job.stop()

                        group.start_soon(stop_soon)
                        report = await job.run()
                        group.cancel_scope.cancel()
                sent += report.pages
            assert report.complete
            # Each stop breaks off at most one request a walk; closing and discovery come once a run.
            assert sent <= whole.pages + 2 * 4 * 2 + 10

    anyio.run(check)


def test_a_sink_that_fails_ends_the_run_and_the_next_one_completes_it(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"jsonl:{tmp_path / 'o.jsonl'}"
            sink = make_sink(url)
            type(sink).batch_rows, before = 100, type(sink).batch_rows
            commit, commits = sink.commit, 0

            def failing(batch: Batch) -> object:
                nonlocal commits
                commits += 1
                if commits == 3:
                    raise SinkError(url, "the disk is full", "Make room")
                return commit(batch)

            sink.commit = failing  # type: ignore[method-assign,assignment]
            try:
                with pytest.raises(SinkError, match="disk is full"):
                    async with Job(here.config(url), sink=sink) as job:
                        await job.run()
            finally:
                type(sink).batch_rows = before
            assert 0 < len(held(tmp_path / "o.jsonl")) < len(here.truth())
            assert (await here.run(url)).complete
            assert sorted(held(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)


def test_a_changed_filter_is_told_and_repeats_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"jsonl:{tmp_path / 'o.jsonl'}"
            await here.run(url)
            config = here.config(url)
            orders = structs.replace(config.orders, states=["Canceled"])
            config = structs.replace(config, orders=orders)
            with caplog.at_level(logging.WARNING):
                report = await fetcher.run(config)
            assert report.complete
            assert report.orders == 0
            assert "states differ" in caplog.text
            assert len(held(tmp_path / "o.jsonl")) == len(here.truth())

    anyio.run(check)


def test_a_full_run_reads_all_and_repeats_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"parquet:{tmp_path / 'p'}"
            first = await here.run(url)
            second = await here.run(url, full=True)
            assert second.pages >= first.pages - 4
            assert (first.orders, second.orders) == (len(here.truth()), 0)

    anyio.run(check)


def test_unknown_properties_are_told_once_and_kept_whole(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(faults=parse_faults("unknown=1")) as here:
            report = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}")
            assert report.complete
            assert report.portfolios["portfolio-1"].unknown_properties == ["LoyaltyTier"]
            line = json.loads((tmp_path / "o.jsonl").read_bytes().splitlines()[0])
            assert line["LoyaltyTier"] == {"Name": "gold", "Points": [1, 2]}

    anyio.run(check)


def renamed(config: fetcher.Config, name: str = "other") -> fetcher.Config:
    portfolios = [structs.replace(one, name=f"{number}-{name}") for number, one in enumerate(config.portfolios)]
    return structs.replace(config, portfolios=portfolios)


def test_a_portfolio_under_another_name_repeats_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"jsonl:{tmp_path / 'o.jsonl'}"
            await here.run(url)
            report = await fetcher.run(renamed(here.config(url)))
            assert (report.complete, report.orders) == (True, 0)
            report = await fetcher.run(renamed(here.config(url)))
            assert (report.complete, report.orders) == (True, 0)
            assert sorted(held(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)


@pytest.mark.parametrize("name", ["batch", "open", "run", "done"])
def test_a_portfolio_may_be_called_like_a_record(name: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            config = renamed(here.config(f"jsonl:{tmp_path / 'o.jsonl'}"), name)
            assert (await fetcher.run(config)).orders == len(here.truth())
            again = await fetcher.run(config)
            assert (again.complete, again.orders) == (True, 0)

    anyio.run(check)


def test_two_portfolios_that_see_the_same_services_load_each_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            url = f"jsonl:{tmp_path / 'o.jsonl'}"
            config = here.config(url)
            both = structs.replace(config, portfolios=[*config.portfolios, *renamed(config).portfolios])
            for one in (config, both, both, config):
                assert (await fetcher.run(one)).complete
            assert sorted(held(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)


def test_a_gap_that_is_read_later_repeats_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        async with site() as here:
            world, url = here.platform.world, f"jsonl:{tmp_path / 'o.jsonl'}"
            now = datetime.now(UTC)
            for number in range(40):  # updated within the first run's overlap
                world.update(number, micros(now) - (100 + number) * MICROS, "Started")
            await here.run(url)
            config = here.config(url)
            later = structs.replace(config.orders, updated_from=now.replace(microsecond=0), overlap_seconds=0.0)
            await fetcher.run(structs.replace(config, orders=later))
            report = await here.run(url)
            assert report.complete
            lines = (tmp_path / "o.jsonl").read_bytes().splitlines()
            versions = [(one["Id"], one["UpdatedUtc"]) for one in map(json.loads, lines)]
            assert len(set(versions)) == len(versions)

    anyio.run(check)


def test_closing_the_pages_ends_the_walks_quietly() -> None:
    async def check() -> None:
        async with site() as here, fetcher.open(here.config()) as job:
            async with aclosing(job.pages()) as pages:
                async for page in pages:
                    assert page.orders
                    break

    anyio.run(check)


def test_a_future_end_is_no_end(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(faults=parse_faults("changes=50")) as here:
            config = here.config(f"duckdb:{tmp_path / 'o.duckdb'}", page_size=100)
            orders = structs.replace(config.orders, updated_until=datetime(2100, 1, 1, tzinfo=UTC))
            before = here.truth()
            report = await fetcher.run(structs.replace(config, orders=orders))
            assert report.complete, report.failed
            with duckdb.connect(tmp_path / "o.duckdb", read_only=True) as db:
                ids = {id_ for (id_,) in db.execute("SELECT id::varchar FROM product_service_orders").fetchall()}
            assert before <= ids

    anyio.run(check)
