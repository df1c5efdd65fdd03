"""What is kept aside, until a readable version comes; the records say what was accepted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.loading.aside import Aside
from fetcher.planning.checkpoint import Checkpoint
from fetcher.report import Tally
from fetcher.sinks import EncodedPage, Page
from fetcher.sinks.base import rejected_row
from tests.orders import SERVICE, order, page

TIMES = ["2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:01.5Z"]


def fresh() -> tuple[Aside, Checkpoint]:
    checkpoint = Checkpoint("north", None, {}, {})
    return Aside(checkpoint), checkpoint


def good(number: int, updated: str = TIMES[1]) -> dict[str, Any]:
    return order(number, updated)


def bad(number: int, updated: str | None = TIMES[1], **changes: Any) -> dict[str, Any]:
    return order(number, updated, **{"Number": None, **changes})  # type: ignore[arg-type]


def key(number: int) -> str:
    return good(number)["Id"].lower()


def bring(aside: Aside, *orders: dict[str, Any]) -> list[str]:
    """Have a page of these orders come, and be accepted; what the sink is told to be mended."""
    encoded, change = aside.sift(of := page(orders), encode(of))
    if change is not None:
        aside.note(change)
    assert isinstance(encoded, EncodedPage)
    return list(encoded.mended)


def encode(of: Page) -> EncodedPage:
    return EncodedPage.of(of, rows=0, size=0, payload=None, rejected=[rejected_row(of, one) for one in of.rejected])


def test_a_page_without_anything_to_keep_aside_changes_nothing_and_is_handed_on_as_it_is() -> None:
    aside, _ = fresh()
    encoded = encode(of := page([good(1), good(2)]))
    assert aside.sift(of, encoded) == (encoded, None)
    assert aside.absent == []


def test_what_came_is_recorded_when_it_is_accepted_and_not_before() -> None:
    aside, checkpoint = fresh()
    _, change = aside.sift(of := page([bad(1), good(2)]), encode(of))
    assert checkpoint.aside() == {}
    assert change is not None
    aside.note(change)
    assert [(kept, record.service_id) for kept, record in checkpoint.aside().items()] == [(key(1), SERVICE)]
    assert "Number" in checkpoint.aside()[key(1)].reason


def test_those_who_take_the_pages_as_they_are_have_the_same_records() -> None:
    aside, checkpoint = fresh()
    encoded, change = aside.sift(of := page([bad(1)]), of)
    assert encoded is of
    assert change is not None
    aside.note(change)
    assert checkpoint.aside().keys() == {key(1)}


def test_a_version_of_the_same_time_or_a_newer_one_mends_it_and_an_older_one_does_not() -> None:
    for place, updated in enumerate(TIMES):
        aside, checkpoint = fresh()
        bring(aside, bad(1))
        assert bring(aside, good(1, updated)) == ([] if place == 0 else [key(1)])
        assert (key(1) in checkpoint.aside()) == (place == 0)


def test_whatever_comes_mends_what_came_without_a_time_and_its_id_is_an_id_in_capitals_too() -> None:
    aside, checkpoint = fresh()
    bring(aside, bad(0xAB, None))
    assert bring(aside, {**good(0xAB, TIMES[0]), "Id": good(0xAB)["Id"].upper()}) == [key(0xAB)]
    assert checkpoint.aside() == {}


def test_in_one_page_what_cannot_be_read_counts_against_what_can() -> None:
    aside, checkpoint = fresh()
    bring(aside, bad(1))
    assert bring(aside, good(1, TIMES[2]), bad(1)) == []
    assert checkpoint.aside().keys() == {key(1)}


def test_one_that_a_faulty_platform_sends_twice_in_one_page_is_mended_once() -> None:
    for versions in ([1, 1], [1, 2], [2, 1], [0, 1], [2, 0], [1, 1, 1]):
        aside, checkpoint = fresh()
        bring(aside, bad(1))
        assert bring(aside, *(good(1, TIMES[version]) for version in versions)) == [key(1)]
        assert checkpoint.aside() == {}


def test_absent_is_what_earlier_runs_kept_and_did_not_come_in_this_one() -> None:
    aside, checkpoint = fresh()
    bring(aside, bad(1), bad(2), bad(3))
    assert aside.absent == []
    later = Aside(checkpoint)
    bring(later, bad(2), good(3))
    assert later.absent == [key(1)]
    assert [record.id.lower() for record in later.to_ask_for({SERVICE}, whole=False)] == [key(1)]


def test_asked_for_are_orders_of_the_services_and_of_unknown_ones_only_if_the_services_are_all() -> None:
    aside, checkpoint = fresh()
    bring(aside, bad(1), bad(2, ServiceId=None), bad(3, Id=None))
    later = Aside(checkpoint)

    def asked(services: set[str], *, whole: bool) -> list[str]:
        return [record.id.lower() for record in later.to_ask_for(services, whole=whole)]

    assert len(later.absent) == 3
    assert asked({SERVICE}, whole=False) == [key(1)]
    assert asked({"another"}, whole=False) == []
    assert asked({SERVICE}, whole=True) == [key(2), key(1)]  # an id that was made up here is of no use to the platform


@pytest.mark.parametrize("odd", ["{%s}", "%s0", "x", "%s-%s"])
def test_an_id_that_is_none_is_not_asked_for_as_all_others_would_be_refused_with_it(odd: str) -> None:
    aside, checkpoint = fresh()
    name = odd.replace("%s", key(2))
    bring(aside, bad(1), bad(2, Id=name))
    assert [record.id.lower() for record in Aside(checkpoint).to_ask_for({SERVICE}, whole=True)] == [key(1)]
    aside.name_in(tally := Tally(portfolio="north"))
    assert ["--full" in failure.error for failure in tally.failed] == [False, True]


def test_what_is_given_up_is_kept_no_longer_and_of_what_is_not_kept_nothing_is_said() -> None:
    aside, checkpoint = fresh()
    bring(aside, bad(1), bad(2))
    assert aside.give_up([key(9)]) is None
    change = aside.give_up([key(1), key(9)])
    assert change is not None
    assert change.mended == (key(1),)
    aside.note(change)
    assert checkpoint.aside().keys() == {key(2)}
    assert aside.give_up([key(1)]) is None


def test_a_hundred_are_named_and_the_others_counted() -> None:
    aside, _ = fresh()
    bring(aside, *(bad(number) for number in range(Aside.MOST_NAMED + 1200)))
    tally = Tally(portfolio="north")
    aside.name_in(tally)
    assert len(tally.failed) == Aside.MOST_NAMED + 1
    assert all(failure.services == (SERVICE,) for failure in tally.failed[:-1])
    assert "1,200 more" in tally.failed[-1].error


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(TIMES), st.booleans()), max_size=12), st.integers(1, 4))
def test_kept_is_what_came_unreadable_and_not_readable_since_in_that_version_or_a_newer_one(
    versions: list[tuple[int, str, bool]], together: int
) -> None:
    aside, checkpoint = fresh()
    kept: dict[str, str] = {}
    for first in range(0, len(versions), together):
        part = versions[first : first + together]
        bring(aside, *((good if readable else bad)(number, updated) for number, updated, readable in part))
        spoiled = {key(number): updated for number, updated, readable in part if not readable}
        for number, updated, readable in part:
            mendable = readable and key(number) in kept.keys() - spoiled
            if mendable and updated.rstrip("Z") >= kept[key(number)].rstrip("Z"):
                del kept[key(number)]
        kept |= spoiled
    assert {name: record.updated_utc for name, record in checkpoint.aside().items()} == kept
