"""A page has one place, from before its body comes until it is accepted or comes to nothing."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from fetcher.connector.room import Room
from tests.virtual import run_virtually


def test_a_lease_holds_no_place_before_it_is_acquired() -> None:
    async def check() -> None:
        room = Room(1)
        lease = room.lease()
        assert room.free == 1
        await lease.acquire()
        assert room.free == 0

    run_virtually(check)


def test_a_place_is_given_back_once_however_often_it_is_released() -> None:
    async def check() -> None:
        room = Room(2)
        first, second = room.lease(), room.lease()
        await first.acquire()
        await second.acquire()
        first.release()
        first.release()
        assert room.free == 1, "the other's place is the other's"
        room.lease().release()
        assert room.free == 1, "what was never acquired gives nothing back"

    run_virtually(check)


def test_a_place_that_is_given_back_is_the_next_ones() -> None:
    async def check() -> None:
        room = Room(1)
        first, second = room.lease(), room.lease()
        await first.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(second.acquire)
            await anyio.sleep(1)
            first.release()
        assert room.free == 0
        second.release()
        await first.acquire()  # as the next try of the same call does
        assert room.free == 0

    run_virtually(check)


def test_a_page_takes_one_place() -> None:
    async def check() -> None:
        room = Room(2)
        lease = room.lease()
        await lease.acquire()
        with pytest.raises(RuntimeError, match="one place"):
            await lease.acquire()
        assert room.free == 1

    run_virtually(check)


@pytest.mark.parametrize("fails", [True, False])
def test_whoever_fails_gives_the_place_back_and_whoever_does_not_has_handed_it_on(fails: bool) -> None:
    async def check() -> None:
        room = Room(1)
        with suppress(OSError), room.lease() as lease:
            await lease.acquire()
            if fails:
                raise OSError
        assert room.free == int(fails)

    run_virtually(check)


def test_whoever_is_cancelled_while_waiting_takes_no_place() -> None:
    async def check() -> None:
        room = Room(1)
        first = room.lease()
        await first.acquire()
        with anyio.move_on_after(1), room.lease() as lease:
            await lease.acquire()
        assert room.free == 0
        first.release()
        assert room.free == 1

    run_virtually(check)
