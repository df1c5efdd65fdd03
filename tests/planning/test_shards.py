"""For every service, shards and what is covered make up the target; nothing twice, nothing left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.connector.operations import MAX_IDS
from fetcher.planning.shards import (
    ServiceRef,
    Shard,
    ShardBy,
    Target,
    closing_shards,
    cut_at,
    cut_services,
    cut_window,
    give_away,
    least_seconds,
    pack,
    plan,
    split_services,
    split_window,
)
from fetcher.planning.windows import Window, Windows, subtract, union
from tests.planning.test_windows import SETS, WINDOWS
from tests.sets import intersection


def service(enterprise: int, number: int) -> ServiceRef:
    return ServiceRef(str(UUID(int=enterprise)), str(UUID(int=enterprise * 10_000 + number)))


def target(window: Window, shard_by: ShardBy = "enterprise", months: int = 3) -> Target:
    return Target(window=window, settled=window.end, open_ended=True, months=months, shard_by=shard_by)


YEARS = Window(datetime(2023, 1, 1, tzinfo=UTC), datetime(2026, 8, 15, tzinfo=UTC))
SERVICES = st.lists(st.integers(0, 12), max_size=5).map(
    lambda sizes: [service(number, position) for number, size in enumerate(sizes) for position in range(size)]
)


@given(WINDOWS, SERVICES, st.data(), st.sampled_from(["auto", "enterprise", "portfolio"]), st.integers(1, 3))
@settings(deadline=None)
def test_shards_and_what_is_covered_make_up_the_target_for_every_service(
    window: Window, services: list[ServiceRef], data: st.DataObject, shard_by: ShardBy, months: int
) -> None:
    covered: dict[str, Windows] = {ref.id: data.draw(SETS) for ref in services if data.draw(st.booleans())}
    shards = plan(services, covered, target(window, shard_by, months))
    for ref in services:
        mine = [shard.window for shard in shards if ref.id in shard.service_ids]
        assert union(mine) == subtract(window, covered.get(ref.id, ()))
        assert all(not intersection((one,), (other,)) for one in mine for other in mine if one is not other)
        assert all(len(shard.service_ids) <= MAX_IDS for shard in shards)


@given(SERVICES, st.randoms())
def test_a_plan_depends_on_nothing_but_its_input(services: list[ServiceRef], chance: object) -> None:
    shuffled = list(services)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, {}, target(YEARS)) == plan(services, {}, target(YEARS))


def test_an_enterprise_with_thousands_of_services_has_batches_of_a_thousand() -> None:
    shards = plan([service(1, number) for number in range(2300)], {}, target(YEARS))
    newest = [shard for shard in shards if shard.open_ended]
    assert [len(shard.service_ids) for shard in newest] == [1000, 1000, 300]


def test_each_enterprise_has_its_own_walks_unless_they_are_packed() -> None:
    services = [service(enterprise, number) for enterprise in range(50) for number in range(3)]
    own = plan(services, {}, target(YEARS))
    packed = plan(services, {}, target(YEARS, "portfolio"))
    assert len(own) == 50 * len(packed)
    assert all(shard.enterprise_id is not None for shard in own)
    assert all(shard.enterprise_id is None for shard in packed)


def test_the_newest_shards_come_first_and_enterprises_take_turns() -> None:
    shards = plan([service(enterprise, 0) for enterprise in range(3)], {}, target(YEARS))
    starts = [shard.window.start for shard in shards]
    assert starts == sorted(starts, reverse=True)
    assert len({shard.enterprise_id for shard in shards[:3]}) == 3


def test_only_the_newest_shards_read_on_beyond_their_end() -> None:
    shards = plan([service(1, 0)], {}, target(YEARS))
    assert [shard.open_ended for shard in shards] == [True] + [False] * (len(shards) - 1)


def test_a_shard_stands_for_no_more_than_what_is_settled() -> None:
    settled = datetime(2026, 8, 14, 23, 55, tzinfo=UTC)
    newest, *older = plan(
        [service(1, 0)], {}, Target(window=YEARS, settled=settled, open_ended=True, months=3, shard_by="enterprise")
    )
    assert newest.stands_for == (Window(newest.window.start, settled),)
    assert all(shard.stands_for == (shard.window,) for shard in older)


MOMENTS = st.integers(0, 5_000_000).map(lambda tenths: YEARS.start + timedelta(milliseconds=100 * tenths))


@given(WINDOWS, st.integers(1, 40))
def test_parts_of_a_window_meet_and_only_the_newest_reads_on(window: Window, cuts: int) -> None:
    shard = Shard(service_ids=("a",), window=window, settled=window.end, open_ended=True)
    assert split_window(shard) == cut_window(shard, 1)
    parts = cut_window(shard, cuts)
    if parts is None:
        assert (window.end - window.start).total_seconds() < 2
        return
    windows = [part.window for part in parts]
    assert 2 <= len(parts) <= cuts + 1
    assert (windows[0].end, windows[-1].start) == (window.end, window.start)
    assert all(newer.start == older.end for newer, older in pairwise(windows))
    assert [part.open_ended for part in parts] == [True, *[False] * (len(parts) - 1)]


@given(st.integers(1, 1000), st.integers(1, 40))
def test_parts_of_services_have_each_service_once(count: int, cuts: int) -> None:
    shard = Shard(service_ids=tuple(map(str, range(count))), window=YEARS, settled=YEARS.end)
    assert split_services(shard) == cut_services(shard, 1)
    parts = cut_services(shard, cuts)
    if count == 1:
        assert parts is None
        return
    assert parts is not None
    assert len(parts) == min(cuts + 1, count)
    assert sum((part.service_ids for part in parts), ()) == shard.service_ids
    sizes = [len(part.service_ids) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(MOMENTS)
def test_a_shard_is_cut_at_the_second_of_an_instant(instant: datetime) -> None:
    shard = Shard(service_ids=("a",), window=YEARS, settled=YEARS.end, open_ended=True)
    parts = cut_at(shard, instant)
    if parts is None:
        assert instant < YEARS.start + timedelta(seconds=1)
        return
    newer, older = parts
    assert newer.window == Window(older.window.end, YEARS.end)
    assert older.window.start == YEARS.start
    assert older.window.end <= instant < older.window.end + timedelta(seconds=1)
    assert (newer.open_ended, older.open_ended) == (True, False)


def test_the_closing_walks_are_packed_across_enterprises() -> None:
    services = [service(enterprise, number) for enterprise in range(300) for number in range(5)]
    shards = closing_shards(services, YEARS, YEARS.end)
    assert [len(shard.service_ids) for shard in shards] == [1000, 500]


def test_the_least_time_counts_the_windows_that_must_pass() -> None:
    assert [least_seconds(count, 200, 30.0) for count in (0, 1, 200, 201, 400, 401)] == [0, 0, 0, 30, 30, 60]


@given(st.lists(st.integers(1, 1400), max_size=12))
@settings(deadline=None)
def test_a_pack_takes_no_more_lists_than_it_must_and_has_every_service_once(sizes: list[int]) -> None:
    services = [service(number, place) for number, size in enumerate(sizes) for place in range(size)]
    lists = pack(services)
    assert sorted(id_ for ids in lists for id_ in ids) == sorted(ref.id for ref in services)
    assert all(len(ids) <= MAX_IDS for ids in lists)
    assert len(lists) == -(-len(services) // MAX_IDS)


def test_an_enterprise_stays_together_where_that_costs_no_list() -> None:
    services = [service(number, place) for number, size in enumerate([600, 300, 400, 700]) for place in range(size)]
    lists = pack(services)
    for number in range(4):
        assert sum(service(number, 0).id in ids and service(number, 299).id in ids for ids in lists) == 1
    assert [len(ids) for ids in lists] == [1000, 1000]


@given(MOMENTS, st.integers(1, 40), st.integers(1, 100_000))
def test_what_is_given_away_and_what_is_kept_make_up_the_shard_and_nothing_given_away_was_read(
    floor: datetime, parts: int, seconds: int
) -> None:
    end = floor.replace(microsecond=0) + timedelta(seconds=seconds)
    shard = Shard(service_ids=("s",), window=Window(YEARS.start, end), settled=end, open_ended=True, repeats=True)
    shares = give_away(shard, floor, parts)
    if shares is None:
        assert floor < YEARS.start + timedelta(seconds=1)
        return
    kept, *given_away = shares
    assert 1 <= len(given_away) <= parts
    windows = [share.window for share in shares]
    assert union(windows) == (shard.window,)
    assert sum(((one.end - one.start) for one in windows), timedelta()) == end - YEARS.start
    assert all(window.end <= floor and not window.end.microsecond for window in windows[1:])
    assert windows == sorted(windows, reverse=True)
    assert kept.open_ended
    assert not any(share.open_ended for share in given_away)
    assert all(share.repeats and share.settled == end for share in shares)
