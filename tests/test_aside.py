"""One order that cannot be read, or kept, spoils no other: it is named, kept aside, asked for again, and comes back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import structs

import fetcher
from fetcher.errors import IncompleteError
from fetcher.planning.checkpoint import describe
from fetcher.simulator import parse_faults
from fetcher.simulator.answers import SPOILS, spoil_order
from fetcher.simulator.world import MICROS
from fetcher.sinks import make_sink
from tests.held import contents, held, rows, twice
from tests.http import Site, site

KINDS = ("jsonl", "parquet", "duckdb", "postgresql")
SHARE = 0.02


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("schema_url"))
    return f"{request.param}:{tmp_path / ('orders' if request.param == 'parquet' else 'orders.' + request.param)}"


def spoiled(here: Site) -> dict[str, bytes]:
    """The orders that cannot be read, or not be kept by every sink, as they are sent."""
    bodies = {here.platform.world.order_id(number): body for number, body in enumerate(here.platform.world.bodies)}
    sent = {id_: spoil_order(body, SHARE) for id_, body in bodies.items()}
    return {id_: body for id_, body in sent.items() if body != bodies[id_]}


def aside(url: str) -> set[str]:
    """The ids of what is kept aside."""
    return {name.rpartition("/")[2] for name in make_sink(url).holdings().progress if "/aside/" in name}


def test_every_other_order_is_there_and_a_mended_one_comes_though_its_window_is_done(url: str) -> None:
    async def check() -> None:
        async with site(faults=parse_faults(f"bad-order={SHARE}")) as here:
            bad = spoiled(here)
            assert len(bad) > 5
            report = await here.run(url)
            assert not report.complete
            truth = here.truth()
            missing = aside(url)
            assert missing <= bad.keys()
            assert {id_ for id_, _ in rows(url)} == truth - missing
            named = [failure for failure in report.failed if "kept aside" in failure.error]
            assert len(named) == len(report.failed) == len(missing)
            assert {status.kept_aside for status in describe(make_sink(url).holdings().progress)} != {0}
            # A run that finds them as they were names them again, and asks for them with a request or two.
            sent = sum(count.requests for count in here.platform.stats.portfolios.values())
            again = await here.run(url)
            assert {failure.error for failure in again.failed} == {failure.error for failure in report.failed}
            assert again.orders == 0
            assert sum(count.requests for count in here.platform.stats.portfolios.values()) - sent < 40
            here.platform.faults = parse_faults("")
            mended = await here.run(url)
            assert (mended.complete, mended.orders) == (True, len(missing))
            assert (aside(url), mended.failed) == (set(), [])
            assert {id_ for id_, _ in rows(url)} == truth
            # Those that the sink kept as they came were mended without another time: `--full` brings them.
            full = await here.run(url, full=True)
            assert full.orders == len(bad) - len(missing)
            assert held(url) == contents(here.platform.world.bodies)
            assert twice(rows(url), keyed=not url.startswith(("jsonl", "parquet"))) == []
            assert here.platform.stats.against_contract == []

    anyio.run(check)


def test_in_pages_they_are_beside_the_orders_and_load_names_them(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(faults=parse_faults(f"bad-order={SHARE}")) as here:
            bad = spoiled(here)
            async with fetcher.open(here.config()) as job:
                pages = [page async for page in job.pages()]
                failed = [failure for tally in job.tallies for failure in tally.failed]
            rejected = {order.id for page in pages for order in page.rejected}
            orders = {order.id for page in pages for order in page.orders}
            assert rejected <= bad.keys()
            assert orders == here.truth() - rejected
            assert len(failed) == len(rejected)
            assert all(bad[order.id or ""] == order.raw for page in pages for order in page.rejected)
            assert all(len(page.lines()) == len(page.orders) for page in pages)
            with pytest.raises(IncompleteError) as caught:
                await anyio.to_thread.run_sync(fetcher.load, here.config())
            loaded = set(caught.value.table["id"].to_pylist())
            assert loaded | bad.keys() == here.truth()
            assert len(caught.value.failed) == len(here.truth() - loaded)

    anyio.run(check)


def test_more_than_a_hundred_are_counted_and_a_full_run_forgets_what_is_gone(tmp_path: Path) -> None:
    async def check() -> None:
        url = f"duckdb:{tmp_path / 'o.duckdb'}"
        async with site(faults=parse_faults("bad-order=1")) as here:
            report = await here.run(url)
            assert report.orders == 0 or report.orders < len(here.truth()) / 5
            texts = [failure.error for failure in report.failed]
            counted = [text for text in texts if "more orders are kept aside" in text]
            assert len(counted) == 2
            assert len(texts) == 2 * 101
            # Orders whose very ids were made up here, or that are gone from the platform, do not stay for ever.
            here.platform.faults = parse_faults("")
            assert (await here.run(url, full=True)).complete
            assert aside(url) == set()
            assert held(url) == contents(here.platform.world.bodies)

    anyio.run(check)


def test_every_way_of_spoiling_an_order_is_seen_by_some_sink() -> None:
    from tests.orders import order

    body = json.dumps(order(1, "2024-01-01T00:00:00Z", VoucherId=None, CancelledUtc=None)).replace('": ', '":').encode()
    for name, spoil in SPOILS.items():
        assert spoil(body) != body, name


async def states_of(here: Site, url: str, states: list[str], **options: Any) -> fetcher.Report:
    config = here.config(url)
    config = structs.replace(config, orders=structs.replace(config.orders, states=states))
    return await fetcher.run(config, **options)


def test_a_filter_by_states_says_which_orders_are_brought_in_and_not_which_changes_are_heard_of(url: str) -> None:
    async def check() -> None:
        async with site() as here:
            world = here.platform.world
            first = await states_of(here, url, ["Confirmed"])
            assert first.complete
            chosen = {id_ for id_, row in contents(world.bodies).items() if row.state == "Confirmed"}
            assert held(url).keys() == chosen
            # One that was brought in changes to another state, with a new time; one that was not likewise.
            numbers = {world.order_id(number): number for number in range(len(world.bodies))}
            loaded, other = min(chosen), min(numbers.keys() - chosen)
            moment = int(time.time()) * MICROS - 60 * MICROS  # within what the next run reads again
            for id_ in (loaded, other):
                world.update(numbers[id_], moment, "Canceled")
            assert (await states_of(here, url, ["Confirmed"])).complete
            assert held(url)[loaded].state == "Canceled"
            assert held(url).keys() == chosen
            # Another one comes into one of the states; and what was loaded changes without another time: `--full`.
            world.update(numbers[other], moment + 9 * MICROS, "Confirmed")
            changed = sorted(chosen)[1]
            world.update(numbers[changed], world.updated[numbers[changed]], "Started", same_second=True)
            assert (await states_of(here, url, ["Confirmed"], full=True)).complete
            assert held(url)[changed].state == "Started"
            assert held(url).keys() == chosen | {other}
            assert twice(rows(url), keyed=not url.startswith(("jsonl", "parquet"))) == []

    anyio.run(check)


def test_pages_by_states_have_no_others() -> None:
    async def check() -> None:
        async with site(faults=parse_faults("changes=50")) as here:
            config = here.config()
            config = structs.replace(config, orders=structs.replace(config.orders, states=["Confirmed", "Started"]))
            async with fetcher.open(config) as job:
                pages = [page async for page in job.pages()]
            assert {order.state for page in pages for order in page.orders} == {"Confirmed", "Started"}
            assert all(len(page.lines()) == len(page.orders) for page in pages)

    anyio.run(check)


def test_ids_that_come_in_capitals_are_the_same_ids(url: str) -> None:
    async def check() -> None:
        async with site(faults=parse_faults("capitals=0.5")) as here:
            for share in ("0.5", "1", "0"):
                here.platform.faults = parse_faults(f"capitals={share}")
                report = await here.run(url)
                assert report.complete, report.failed
            lower = {id_.lower(): row for id_, row in held(url).items()}
            truth = contents(here.platform.world.bodies)
            assert lower.keys() == truth.keys()
            assert len(rows(url)) == len(truth)
            full = await here.run(url, full=True)
            assert (full.complete, full.orders) == (True, 0)

    anyio.run(check)


def test_what_is_left_out_counts_against_whole(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(faults=parse_faults("unasked=0.3,outside=0.3")) as here:
            report = await here.run(f"jsonl:{tmp_path / 'o.jsonl'}")
            assert not report.complete
            assert report.watermark is None or report.failed
            assert any("were left out" in failure.error for failure in report.failed)

    anyio.run(check)
