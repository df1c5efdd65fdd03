"""What `fetcher plan` tells a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from fetcher.prospect.plan import PackPlan, PortfolioPlan
from fetcher.terminal.plan import MOST_PACKS, plan_text

WATERMARK = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOTEL, OTHER = "11111111-1111-4111-a111-111111111111", "22222222-2222-4222-a222-222222222222"


def pack(**changes: Any) -> PackPlan:
    made = PackPlan(services=7, enterprises=(HOTEL, OTHER), windows=3, orders=4500, split=1)
    return msgspec.structs.replace(made, **changes)


def plan(**changes: Any) -> PortfolioPlan:
    made = PortfolioPlan(
        portfolio="north",
        enterprises=2,
        services=7,
        resumes_from=WATERMARK,
        orders=4500,
        basis="rows by enterprise and month",
        packs=(pack(),),
        least_requests=9,
        least_seconds=0.8,
        requests=11,
        seconds=1.2,
        answer_seconds=0.2,
        page_seconds=0.3,
        limit_requests=200,
        limit_seconds=30.0,
        limit_walks=16,
    )
    return msgspec.structs.replace(made, **changes)


NEW = {"orders": None, "basis": None, "requests": None, "seconds": None, "resumes_from": None, "page_seconds": None}


def words(text: str, line: int) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[line].split("  ") if cell]


def test_what_is_likely_is_told_with_the_least_beside_it() -> None:
    row = [cell.strip() for cell in words(plan_text([plan()]), 1)]
    assert row == [
        "north",
        "2",
        "7",
        "2026-01-02 03:04:05",
        "~4,500",
        "~11 (least 9)",
        "~1.2 s (least 0.8 s)",
        "latency",
    ]
    assert "~9 " in plan_text([plan(requests=9)])


def test_where_nobody_knows_how_much_there_is_the_least_is_told_as_that() -> None:
    text = plan_text([plan(**NEW, packs=(pack(orders=None),))])
    assert "the beginning  unknown  at least 9  at least 0.8 s" in " ".join(text.splitlines()[1:2])
    assert "Nobody knows how many orders there are, for nothing was read yet" in text
    assert "a full page is taken to need as long" in text
    assert "~" not in text


def test_of_several_portfolios_those_that_are_not_known_are_named() -> None:
    text = plan_text([plan(), plan(portfolio="south", **NEW)])
    assert "how many orders there are of south," in text
    assert "from the sink's rows, by enterprise and month" in text
    assert words(text, 3) == [
        "together",
        "4",
        "14",
        "unknown",
        "at least 18",
        "at least 0.8 s",
    ]


def test_side_by_side_requests_add_up_and_the_longest_time_counts() -> None:
    text = plan_text([plan(), plan(portfolio="south", seconds=2.5, least_seconds=2.0)])
    assert words(text, 3)[-2:] == ["~22 (least 18)", "~2.5 s (least 2.0 s)"]


def test_a_load_that_was_stopped_goes_on_where_it_was() -> None:
    assert "where it was" in plan_text([plan(resumes_from=None, shards_open=3)])


@pytest.mark.parametrize(
    ("one", "shard_by", "cells"),
    [
        (pack(), "auto", ["2 share", "7", "3", "~4,500", "1 of 3"]),
        (pack(enterprises=(HOTEL,), split=0), "auto", [HOTEL, "7", "3", "~4,500", "none"]),
        (pack(), "portfolio", ["2 share", "7", "3", "~4,500", "never"]),
        (pack(orders=None), "auto", ["2 share", "7", "3", "unknown", "unknown"]),
    ],
)
def test_a_pack_says_who_shares_it_and_what_will_be_split(one: PackPlan, shard_by: Any, cells: list[str]) -> None:
    text = plan_text([plan(packs=(one,), shard_by=shard_by)])
    assert words(text, 4) == ["north", "pack 1", *cells]


def test_hundreds_of_packs_are_not_all_shown() -> None:
    text = plan_text([plan(packs=(pack(),) * (MOST_PACKS + 5))])
    assert f"pack {MOST_PACKS} " in text
    assert f"pack {MOST_PACKS + 1}" not in text
    assert "... and 5 more: see --json" in text


def test_one_that_failed_is_named_and_keeps_no_other_from_being_shown() -> None:
    failed = PortfolioPlan(portfolio="south", failed=("it is revoked. Mend it",))
    text = plan_text([plan(), failed])
    assert text.endswith("failed: south: it is revoked. Mend it")
    assert words(text, 1)[0] == "north"
    assert plan_text([failed]) == "failed: south: it is revoked. Mend it"


def test_the_keys_of_json_are_those_that_are_documented() -> None:
    documented = {
        *("portfolio", "enterprises", "services", "orders", "basis", "requests", "seconds", "least_requests"),
        *("least_seconds", "least_seconds_by_budget", "least_seconds_by_latency", "bound_by", "shard_by", "packs"),
        *("resumes_from", "shards_open", "answer_seconds", "page_seconds", "limit_requests", "limit_seconds"),
        *("limit_walks", "processes", "failed"),
        *(f"{what}_by_{way}" for what in ("shards", "requests", "seconds") for way in ("enterprise", "portfolio")),
    }
    found = msgspec.to_builtins(plan())
    assert found.keys() == documented
    assert found["packs"][0].keys() == {"services", "enterprises", "windows", "orders", "split"}
