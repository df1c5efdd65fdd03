"""How much is asked for at once, and what the walks of a portfolio learn of each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fetcher.loading.page_size import Learned, PageSize


def sizes(size: PageSize, pages: int) -> list[int]:
    got: list[int] = []
    for _ in range(pages):
        got.append(size.count)
        size.went_well(size.count)
    return got


def test_it_shrinks_fast_to_what_is_still_worth_a_request_and_says_when_there_is_no_less() -> None:
    size = PageSize(1000, 1000)
    got = [size.count]
    while size.shrink():
        got.append(size.count)
    assert got == [1000, 250, 62, 50]
    assert [size.shrink(last_resort=True), size.count] == [True, 12]
    while size.shrink(last_resort=True):
        pass
    assert size.count == 1


def test_it_grows_again_and_waits_longer_each_time_that_it_was_too_early() -> None:
    size = PageSize(1000, 1000)
    size.shrink()
    assert sizes(size, 6) == [250] * 2 + [500] * 2 + [1000] * 2
    size.shrink()
    assert sizes(size, 5) == [250] * 4 + [500]


def test_a_new_walk_begins_with_what_others_found_out() -> None:
    learned = Learned(1000)
    first = PageSize(1000, 1000, learned)
    first.shrink()
    first.shrink()
    sizes(first, 2)
    first.shrink()  # 124 were too many
    new = PageSize(1000, 1000, learned)
    assert new.count == 50
    assert sizes(new, 5) == [50] * 4 + [100]  # and as patiently


def test_whoever_asked_for_more_than_others_can_get_goes_down_at_once() -> None:
    learned = Learned(1000)
    first, second = PageSize(1000, 1000, learned), PageSize(1000, 1000, learned)
    first.shrink()
    first.shrink()
    second.shrink()
    assert second.count == 62


def test_a_page_that_came_shows_all_that_as_many_can_be_had() -> None:
    learned = Learned(1000)
    unlucky, other = PageSize(1000, 1000, learned), PageSize(1000, 1000, learned)
    unlucky.shrink()
    other.went_well(30)  # the last page of a walk: it shows nothing of 1000
    assert PageSize(1000, 1000, learned).count == 250
    other.went_well(1000)
    assert sizes(PageSize(1000, 1000, learned), 3) == [1000] * 3


@given(
    largest=st.integers(1, 1000),
    count=st.integers(0, 2000),
    heaviest=st.integers(1, 1000),
    walks=st.integers(1, 4),
)
def test_whatever_is_too_heavy_no_size_is_asked_for_again_and_again(
    largest: int, count: int, heaviest: int, walks: int
) -> None:
    learned = Learned(largest)
    sizes = [PageSize(largest, count, learned) for _ in range(walks)]
    refused = 0
    for _ in range(400):
        for size in sizes:
            assert 1 <= size.count <= largest
            if size.count > heaviest:
                refused += 1
                before = size.count
                size.shrink(last_resort=True)
                assert size.count < before
            else:
                size.went_well(size.count)
    assert refused <= walks * 20


def test_only_full_pages_tell_how_long_one_takes() -> None:
    learned = Learned(100)
    learned.took(99, 5.0)
    assert learned.page_seconds is None
    learned.took(100, 1.0)
    learned.took(100, 2.0)
    assert learned.page_seconds == 1.5
