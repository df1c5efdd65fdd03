"""Whose a portfolio is, and what of its budget goes with it (promise P4), in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from fetcher.connector.budget import RequestBudget
from fetcher.errors import SinkError, TakenOverError
from fetcher.loading.ownership import Ownership
from fetcher.simulator.window import SlidingWindow
from fetcher.sinks.base import Predecessor, Taken
from tests.simulation import KeyedSink, inline
from tests.virtual import run_virtually

T = TypeVar("T")
REQUESTS, PER_SECONDS, ARRIVAL_SECONDS = 20, 7.0, 12.0


class Register:
    """What a sink that many may write knows of its owners; one portfolio."""

    def __init__(self) -> None:
        self.epoch = 0
        self.place: str | None = None
        self.held: Sequence[float] | None = None
        self.at = 0.0


class RegisteredSink(KeyedSink):
    """A sink as one owner has it."""

    shared = True

    def __init__(self, register: Register) -> None:
        super().__init__()
        self.register = register
        self.epoch = 0
        self.reached = True
        """Whether the owner can reach the sink."""

    def take(self, portfolios: Collection[str], place: str | None) -> Taken:
        known = self.register
        before: dict[str, Predecessor] = {}
        if known.epoch:
            passed = anyio.current_time() - known.at
            held = None if known.held is None else [seconds - passed for seconds in known.held if seconds > passed]
            before = {name: Predecessor(known.place, held) for name in portfolios}
        known.epoch, known.place, known.held = known.epoch + 1, place, None
        self.epoch = known.epoch
        return Taken({}, before)

    def lost(self) -> Collection[str]:
        self._reach()
        return () if self.register.epoch == self.epoch else ("north",)

    def hand_over(self, held: Mapping[str, Sequence[float]]) -> None:
        self._reach()
        if self.register.epoch == self.epoch:
            self.register.held, self.register.at = held["north"], anyio.current_time()

    def _reach(self) -> None:
        if not self.reached:
            raise SinkError("memory:", "it is away", "Wait")


class Machine:
    """Sends whatever the budget allows, for as long as it believes that it is the owner."""

    place: str | None = None

    def __init__(self, window: SlidingWindow, chance: random.Random, world: TaskGroup) -> None:
        self.budget = RequestBudget(REQUESTS, PER_SECONDS, arrival_seconds=ARRIVAL_SECONDS)
        self.alive = anyio.CancelScope()
        self.told: TakenOverError | None = None
        self.sent = 0
        self._window = window
        self._chance = chance
        self._world = world

    def budgets(self) -> Mapping[str, RequestBudget]:
        return {"north": self.budget}

    def lose(self, error: TakenOverError) -> None:
        self.told = error
        self.alive.cancel()

    async def work(self) -> None:
        with self.alive:
            async with anyio.create_task_group() as group:
                for _ in range(30):
                    group.start_soon(self._send)

    async def _send(self) -> None:
        while True:
            slot = await self.budget.acquire()
            await anyio.sleep(self._chance.choice((0, 0, 0.3)))
            if slot.stale:
                slot.unsent()
                continue
            slot.leaves()
            self.sent += 1
            there = self._chance.choice((0.01, 0.2, ARRIVAL_SECONDS - 0.001))
            arrived = anyio.Event()
            self._world.start_soon(self._arrive, there, arrived)  # whatever becomes of its sender
            try:
                with anyio.fail_after(ARRIVAL_SECONDS):
                    await arrived.wait()
                    await anyio.sleep(self._chance.uniform(0, 0.3))
            except TimeoutError:
                slot.broken()
            except BaseException:
                slot.broken()
                raise
            else:
                slot.answered()

    async def _arrive(self, there: float, arrived: anyio.Event) -> None:
        await anyio.sleep(there)
        assert self._window.admit(anyio.current_time()) is None, "a request too many"
        arrived.set()


async def moves(seed: int, count: int, kinds: Sequence[str]) -> tuple[SlidingWindow, list[int]]:
    """One token that moves from machine to machine, each with a memory of its own; what each could send."""
    chance, register, window = random.Random(seed), Register(), SlidingWindow(REQUESTS, PER_SECONDS)
    sent: list[int] = []
    async with anyio.create_task_group() as world:

        async def have(seconds: float, kind: str, moved: Callable[[], None]) -> None:
            machine, sink = Machine(window, chance, world), RegisteredSink(register)
            try:
                async with Ownership(sink, inline, machine).held():
                    with anyio.CancelScope() as working:

                        async def end() -> None:
                            await anyio.sleep(seconds)
                            sent.append(machine.sent)
                            if kind == "cut off":  # it goes on, and finds out later
                                sink.reached = False
                                moved()
                                await anyio.sleep(chance.uniform(0, 60))
                                sink.reached = True
                                await anyio.sleep(60)
                                assert machine.told is not None or register.epoch == sink.epoch  # the last one
                            working.cancel()

                        async with anyio.create_task_group() as group:
                            group.start_soon(end)
                            await machine.work()
                            if kind != "cut off":
                                group.cancel_scope.cancel()
                    sink.reached = kind == "orderly"  # who is killed says nothing
            finally:
                moved()

        for _ in range(count):
            kind = chance.choice(kinds)
            moved = anyio.Event()
            world.start_soon(have, chance.uniform(1, 90), kind, moved.set)
            await moved.wait()
    return window, sent


@pytest.mark.parametrize("seed", range(6))
def test_the_window_never_holds_a_request_too_many_however_often_and_however_a_token_moves(seed: int) -> None:
    window, sent = run_virtually(moves, seed, 50, ("orderly", "killed", "cut off"))
    assert 0.8 * REQUESTS <= window.most <= REQUESTS
    assert len(sent) == 50
    assert sum(sent) > 500


def test_whoever_takes_what_was_handed_over_waits_no_longer_than_its_slots_are_held() -> None:
    _, sent = run_virtually(moves, 3, 50, ("orderly",))
    assert min(sent) > 0
    least = sum(sent) / 50
    assert least > 20  # of 45 seconds, with requests that are mostly slow


def test_nothing_is_sent_where_the_sink_does_not_say_whose_the_token_is() -> None:
    async def scenario() -> list[float]:
        budget, sink = RequestBudget(5, 1.0), RegisteredSink(Register())

        class Sender:
            place = None

            def budgets(self) -> Mapping[str, RequestBudget]:
                return {"north": budget}

            def lose(self, error: TakenOverError) -> None:
                raise error

        times: list[float] = []

        async def send() -> None:
            while True:
                slot = await budget.acquire()
                times.append(anyio.current_time())
                slot.answered()

        began = anyio.current_time()
        async with Ownership(sink, inline, Sender()).held(), anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.sleep(30)
            sink.reached = False
            await anyio.sleep(40)
            sink.reached = True
            await anyio.sleep(30)
            group.cancel_scope.cancel()
        return [time - began for time in times]

    times = run_virtually(scenario)
    silent = max(later - earlier for earlier, later in pairwise(times))
    last = max(time for time in times if time < 60)
    assert 40 < last <= 30 + Ownership.SECONDS
    assert silent > 15
    assert times[-1] > 98


def test_what_is_remembered_where_both_look_is_not_waited_for() -> None:
    async def scenario(place: str) -> int:
        register = Register()
        register.epoch, register.place = 1, "here"

        class There:
            def __init__(self) -> None:
                self.budget = RequestBudget(5, 1.0)
                self.place = place

            def budgets(self) -> Mapping[str, RequestBudget]:
                return {"north": self.budget}

            def lose(self, error: TakenOverError) -> None:
                raise error

        there = There()
        await Ownership(RegisteredSink(register), inline, there).take()
        return there.budget.used

    assert run_virtually(scenario, "here") == 0
    assert run_virtually(scenario, "elsewhere") == 5


def test_commits_that_take_longer_than_the_right_to_send_lasts_do_not_keep_an_owner_from_sending() -> None:
    async def scenario() -> int:
        register, turn, allowed = Register(), anyio.Lock(), 0

        async def offload(function: Callable[..., T], *arguments: object) -> T:
            async with turn:
                return function(*arguments)

        async def commit() -> None:
            while True:
                async with turn:
                    await anyio.sleep(Ownership.SECONDS + 5)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as world:
            machine = Machine(SlidingWindow(REQUESTS, PER_SECONDS), random.Random(1), world)
            async with Ownership(RegisteredSink(register), offload, machine).held():
                world.start_soon(commit)
                for _ in range(500):
                    await anyio.sleep(1)
                    allowed += machine.budget.allowed
                world.cancel_scope.cancel()
        return allowed

    assert run_virtually(scenario) > 350
