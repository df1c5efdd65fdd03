"""Of a process that was stopped itself it must not be said that others were silent."""

from __future__ import annotations

import asyncio
from typing import cast

import anyio
import pytest

from fetcher.processes.silence import move_on_after_awake
from tests.virtual import VirtualLoop, run_virtually


def test_silence_ends_the_wait_after_so_many_seconds() -> None:
    async def scenario() -> float:
        began = anyio.current_time()
        with move_on_after_awake(20.0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        return anyio.current_time() - began

    assert run_virtually(scenario) == pytest.approx(20.0)


@pytest.mark.parametrize("stopped", [25.0, 3600.0])
def test_what_came_while_this_process_was_stopped_is_heard(stopped: float) -> None:
    async def scenario() -> bool:
        loop = cast("VirtualLoop", asyncio.get_running_loop())

        async def hear() -> None:
            for _ in range(3):  # of a message that comes in pieces
                await anyio.sleep(0.1)

        async with anyio.create_task_group():
            with move_on_after_awake(20.0) as scope:
                await anyio.sleep(5)
                loop.passed += stopped
                await hear()
        return scope.cancelled_caught

    assert not run_virtually(scenario)


def test_a_wait_that_is_over_leaves_no_timer() -> None:
    async def scenario() -> None:
        with move_on_after_awake(20.0) as scope:
            await anyio.sleep(15)
        await anyio.sleep(100)
        assert not scope.cancel_called

    run_virtually(scenario)
