"""An order on a window's edge is kept once, whichever way the platform reads intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.connector.operations import Listing
from fetcher.connector.types import OrderOptions, ProductServiceOrder, RejectedOrder, parse_utc, utc_text
from fetcher.planning.shards import Shard
from fetcher.planning.sifting import OUTSIDE, UNASKED, Sieve, time_key
from fetcher.planning.windows import Window

EDGE = datetime(2024, 4, 1, tzinfo=UTC)
OPTIONS = OrderOptions(
    owner_checked_in=False, all_companions_checked_in=False, any_companion_checked_in=False, connector_check_in=False
)
ORDER = ProductServiceOrder(
    id="1", service_id="s", account_id="a", account_type="Customer", creator_profile_id="c", updater_profile_id="u",
    number="1", state="Confirmed", origin="Connector", created_utc="2024-01-01T00:00:00Z",
    updated_utc="2024-01-01T00:00:00Z", options=OPTIONS,
)  # fmt: skip


def order(updated: str, id_: str = "1", service: str = "s") -> ProductServiceOrder:
    return msgspec.structs.replace(ORDER, id=id_, updated_utc=updated, service_id=service)


def sieve(start: datetime, end: datetime, *, open_ended: bool = False) -> Sieve:
    return Sieve(Shard(service_ids=("s",), window=Window(start, end), settled=end, open_ended=open_ended))


@given(
    st.lists(st.integers(-3, 3), max_size=5).map(lambda seconds: [EDGE + timedelta(seconds=each) for each in seconds]),
    st.sampled_from(["", ".0", ".000", ".0000000", ".5", ".999999", ".9999999"]),
)
def test_windows_that_meet_keep_each_order_once(times: list[datetime], fraction: str) -> None:
    orders = [order(f"{time_key(instant)}{fraction}Z", id_=str(number)) for number, instant in enumerate(times)]
    before = sieve(EDGE - timedelta(days=1), EDGE).sift(Listing(orders)).kept
    after = sieve(EDGE, EDGE + timedelta(days=1)).sift(Listing(orders)).kept
    assert sorted(each.id for each in before + after) == sorted(each.id for each in orders)


def test_an_order_on_the_end_is_no_oddity_because_older_platforms_include_it() -> None:
    sifted = sieve(EDGE - timedelta(days=1), EDGE).sift(Listing([order("2024-04-01T00:00:00Z")]))
    assert (sifted.kept, sifted.skipped, sifted.oddities) == ([], frozenset({0}), {})


@pytest.mark.parametrize(
    ("times", "by_update"),
    [
        (["12:00:01Z", "12:00:01Z", "11:59:59Z"], True),
        (["12:00:01.5Z", "12:00:01Z", "12:00:00.25Z"], True),
        (["12:00:01Z", "12:00:01.5Z"], False),
        (["11:59:59Z", "12:00:01Z"], False),
    ],
)
@pytest.mark.parametrize("on_the_edge", [False, True])
def test_whether_a_page_comes_newest_update_first_is_told_of_what_is_kept(
    times: list[str], by_update: bool, on_the_edge: bool
) -> None:
    orders = [order(f"2024-03-31T{time}") for time in times]
    if on_the_edge:
        orders.append(order("2024-04-01T00:00:00Z"))
    assert sieve(EDGE - timedelta(days=1), EDGE).sift(Listing(orders)).by_update == by_update


def test_what_should_not_have_come_is_left_out_and_counted() -> None:
    start = EDGE - timedelta(days=1)
    orders = [
        order("2024-03-31T12:00:00Z", "good"),
        order("2024-03-31T12:00:01Z", "good"),  # another version: not the same
        order("2024-05-31T12:00:00Z", "late"),
        order("2023-05-31T12:00:00Z", "early"),
        order("2024-03-31T12:00:00Z", "foreign", "t"),
    ]
    sifted = sieve(start, EDGE).sift(Listing(orders))
    assert [each.updated_utc for each in sifted.kept] == ["2024-03-31T12:00:00Z", "2024-03-31T12:00:01Z"]
    assert sifted.skipped == {2, 3, 4}
    assert sifted.oddities == {OUTSIDE: 2, UNASKED: 1}
    assert sifted.latest == "2024-03-31T12:00:01Z"


def test_an_open_ended_shard_keeps_whatever_is_newer() -> None:
    sifted = sieve(EDGE - timedelta(days=1), EDGE, open_ended=True).sift(Listing([order("2024-05-31T12:00:00Z")]))
    assert len(sifted.kept) == 1


@pytest.mark.parametrize("time", ["secret", "", "2024-04-01", "2024-04-01T25:00:00Z", "99"])
def test_an_order_without_a_time_is_unreadable_and_spoils_no_other(time: str) -> None:
    good = order("2024-04-01T12:00:00Z", "good")
    sifted = sieve(EDGE, EDGE + timedelta(days=1), open_ended=True).sift(Listing([good, order(time, "7"), good]))
    if time == "2024-04-01":  # ISO 8601, and midnight
        assert (len(sifted.kept), sifted.unreadable) == (3, [])
        return
    assert (sifted.kept, sifted.unreadable, sifted.skipped) == ([good, good], [1], {1})
    assert sifted.oddities == {}


@pytest.mark.parametrize(("asked", "sent"), [("s", "S"), ("S", "s"), ("aB", "Ab")])
def test_an_id_is_an_id_whatever_its_case(asked: str, sent: str) -> None:
    shard = Shard(service_ids=(asked,), window=Window(EDGE, EDGE + timedelta(days=1)), settled=EDGE)
    sifted = Sieve(shard).sift(Listing([order("2024-04-01T12:00:00Z", service=sent)]))
    assert [each.service_id for each in sifted.kept] == [sent]
    assert sifted.oddities == {}


def test_what_cannot_be_read_is_the_shard_s_unless_it_tells_otherwise() -> None:
    def rejected(**what: str) -> RejectedOrder:
        return RejectedOrder(reason="x", raw=b"{}", **what)  # type: ignore[arg-type]

    inside = rejected(id="1", service_id="S", updated_utc="2024-04-01T12:00:00Z")
    unknown = rejected(id="2")
    on_the_edge = rejected(service_id="s", updated_utc="2024-04-02T00:00:00Z")
    elsewhere = rejected(service_id="s", updated_utc="2024-06-02T00:00:00Z")
    foreign = rejected(service_id="t")
    places = dict(enumerate([inside, unknown, on_the_edge, elsewhere, foreign]))
    sifted = sieve(EDGE, EDGE + timedelta(days=1)).sift(Listing([], None, places))
    assert sifted.rejected == [inside, unknown]
    assert sifted.oddities == {OUTSIDE: 1, UNASKED: 1}


def test_within_a_second_after_the_end_an_order_is_the_next_window_s() -> None:
    sifted = sieve(EDGE - timedelta(days=1), EDGE).sift(Listing([order("2024-04-01T00:00:00.999Z")]))
    assert (sifted.kept, sifted.oddities) == ([], {})


@given(st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_a_time_survives_its_text(instant: datetime) -> None:
    assert parse_utc(utc_text(instant)) == instant


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [("2024-01-01T00:00:00.1234567Z", 123456), ("2024-01-01T00:00:00.1Z", 100000), ("2024-01-01T00:00:00", 0)],
)
def test_times_are_read_with_any_fraction_and_without_a_zone(text: str, microsecond: int) -> None:
    assert parse_utc(text) == datetime(2024, 1, 1, 0, 0, 0, microsecond, tzinfo=UTC)
