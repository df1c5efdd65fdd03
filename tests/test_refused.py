"""Finding the bad ids among many, with few questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.errors import InvalidRequestError, PlatformError
from fetcher.refused import find_refused


def search(ids: list[str], bad: set[str]) -> tuple[set[str], int]:
    asked = 0

    async def probe(part: Sequence[str]) -> PlatformError | None:
        nonlocal asked
        asked += 1
        return InvalidRequestError("x", "Invalid ServiceIds", status=400) if bad & set(part) else None

    async def scenario() -> set[str]:
        return set(await find_refused(ids, probe))

    return anyio.run(scenario), asked


@given(number=st.integers(1, 60), data=st.data())
def test_exactly_the_bad_ids_are_found(number: int, data: st.DataObject) -> None:
    ids = [str(place) for place in range(number)]
    bad = data.draw(st.sets(st.sampled_from(ids)))
    assert search(ids, bad)[0] == bad


@pytest.mark.parametrize("bad", [1, 3])
def test_a_bad_id_among_a_thousand_costs_about_twice_its_logarithm(bad: int) -> None:
    ids = [str(place) for place in range(1000)]
    found, asked = search(ids, {str(311 * place + 5) for place in range(bad)})
    assert len(found) == bad
    assert asked <= bad * (2 * math.ceil(math.log2(1000)) + 2)
