"""The circuit opens, and stays open, only on evidence that a light request fails."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio
import pytest

from fetcher.connector.circuit import Circuit
from tests.virtual import run_virtually


def play(scenario: Callable[[Circuit], Awaitable[None]], outage_seconds: float = 300) -> None:
    async def within() -> None:
        await scenario(Circuit(outage_seconds, random.Random(1)))

    run_virtually(within)


def open_(circuit: Circuit) -> None:
    for _ in range(Circuit.FAILURES_TO_OPEN):
        circuit.failed(light=True)
    assert circuit.down_seconds == 0


def test_light_requests_that_fail_in_a_row_open_it_and_any_answer_between_them_does_not_let_it() -> None:
    async def scenario(circuit: Circuit) -> None:
        for _ in range(Circuit.FAILURES_TO_OPEN - 1):
            circuit.failed(light=True)
        circuit.alive()
        for _ in range(Circuit.FAILURES_TO_OPEN - 1):
            circuit.failed(light=True)
        assert circuit.admit() == "all"
        circuit.failed(light=True)
        assert circuit.admit() is None

    play(scenario)


def test_heavy_requests_that_fail_put_it_in_doubt_and_a_light_one_decides() -> None:
    async def scenario(circuit: Circuit) -> None:
        for _ in range(100):
            circuit.failed(light=False)
        assert circuit.down_seconds is None
        await circuit.ready()
        assert circuit.admit() == "probe"
        assert circuit.admit() is None  # one at a time
        circuit.alive()
        assert circuit.admit() == "all"
        for _ in range(100):
            circuit.failed(light=False)
        assert circuit.admit() == "probe"
        circuit.failed(light=True, probe=True)
        assert circuit.down_seconds == 0

    play(scenario)


def test_a_doubt_is_for_a_platform_that_nobody_heard_of() -> None:
    async def scenario(circuit: Circuit) -> None:
        sent = anyio.current_time()
        await anyio.sleep(1)
        circuit.alive()
        assert circuit.alive_since(sent)
        await anyio.sleep(1)
        assert not circuit.alive_since(anyio.current_time())
        circuit.doubt()
        assert circuit.admit() == "probe"

    play(scenario)


def test_open_one_probe_at_a_time_passes_after_pauses_that_grow_to_a_minute() -> None:
    async def scenario(circuit: Circuit) -> None:
        open_(circuit)
        pauses: list[float] = []
        for _ in range(10):
            started = anyio.current_time()
            await circuit.ready()
            pauses.append(anyio.current_time() - started)
            assert circuit.admit() == "probe"
            circuit.failed(light=False)  # sent before it opened: no matter
            assert circuit.admit() is None
            circuit.failed(light=True, probe=True)
        assert 0.75 <= pauses[0] <= 1.25
        assert 1.5 <= pauses[1] <= 2.5
        assert 45 <= pauses[-1] <= 75

    play(scenario, 3000)


def test_a_sign_of_life_of_anybody_wakes_all_at_once() -> None:
    async def scenario(circuit: Circuit) -> None:
        open_(circuit)
        await circuit.ready()
        assert circuit.admit() == "probe"
        times: list[float] = []

        async def wait() -> None:
            await circuit.ready()
            assert circuit.admit() == "all"
            times.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
            await anyio.sleep(7)
            now = anyio.current_time()
            circuit.alive()
        assert times == pytest.approx([now] * 5, abs=0.001)
        circuit.failed(light=True, probe=True)  # the probe itself, after somebody else's answer: one failure, no more
        assert circuit.admit() == "all"

    play(scenario)


def test_a_probe_that_is_cancelled_lets_the_next_one_pass() -> None:
    async def scenario(circuit: Circuit) -> None:
        open_(circuit)
        await circuit.ready()
        assert circuit.admit() == "probe"
        async with anyio.create_task_group() as group:
            group.start_soon(circuit.ready)
            await anyio.sleep(0.5)
            circuit.abandoned()
        assert circuit.admit() == "probe"

    play(scenario)


def test_it_is_given_up_on_time_and_whoever_waits_is_told() -> None:
    async def scenario(circuit: Circuit) -> None:
        open_(circuit)
        await circuit.ready()
        assert circuit.admit() == "probe"  # and nothing is ever heard of it
        started = anyio.current_time()
        await circuit.ready()
        assert circuit.given_up
        assert anyio.current_time() - started == pytest.approx(19, abs=0.3)

    play(scenario, 20)
