"""Who loads what: a token is one loader's, whatever becomes of them; by itself, and with loaders that are imagined."""

from __future__ import annotations

import random
from collections import Counter

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.config import Config, from_wire
from fetcher.processes import supervisor
from fetcher.processes.dealing import Dealing, names_of, one_by_one
from fetcher.processes.messages import End, Finish, Load, Loaded, Message, Opened, Start, Told
from fetcher.processes.supervisor import Crew
from fetcher.report import Tally
from tests.processes.test_supervisor import config_of
from tests.virtual import run_virtually


def tokens_of(hand: Config) -> set[str]:
    return {one.access_token.resolve("").reveal() for one in hand.portfolios}


@given(
    tokens=st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=1, max_size=25),
    at_once=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_token_is_one_loader_s_at_a_time_and_all_are_loaded_once_whoever_goes(
    tokens: list[str], at_once: int, seed: int
) -> None:
    chance = random.Random(seed)
    dealing = Dealing(one_by_one(config_of(tokens), 9, {}), at_once)
    held: dict[int, list[Config]] = {dealing.join(): [] for _ in range(3)}
    loaded: Counter[str] = Counter()
    while True:
        for loader, hand in dealing.deal():
            assert not any(tokens_of(other) & tokens_of(hand) for hands in held.values() for other in hands)
            held[loader].append(hand)
            assert len(held[loader]) <= at_once
        busy = [loader for loader, hands in held.items() if hands]
        if not busy:
            break
        loader = chance.choice(busy)
        if chance.random() < 0.3:
            dealing.leave(loader, ())
            del held[loader]
            held[dealing.join()] = []
        else:
            hand = held[loader].pop(chance.randrange(len(held[loader])))
            loaded.update(names_of(hand))
            dealing.done(loader, names_of(hand))
    assert loaded == {f"p{number}": 1 for number in range(len(tokens))}


def test_the_large_go_first_and_before_them_what_nobody_knows() -> None:
    hands = one_by_one(config_of(list("ABCDA")), 2, {"p0": 5, "p1": 30, "p3": 20, "p4": 90})
    assert [sorted(names_of(hand)) for hand in hands] == [["p2"], ["p0", "p4"], ["p1"], ["p3"]]


class Imagined:
    """A loader that is imagined: each portfolio takes as many seconds as its size, and nobody else may load it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._send, self._receive = anyio.create_memory_object_stream[Message](10_000)
        self.busy: set[str] = set()
        self.dead = False

    async def send(self, message: Message) -> None:
        if self.dead:
            raise ConnectionError
        match message:
            case Load():
                for portfolio in from_wire(message.config).portfolios:
                    assert portfolio.name not in self._world.busy
                    self._world.busy.add(portfolio.name)
                    self.busy.add(portfolio.name)
                    self._world.group.start_soon(self._load, portfolio.name)
                self._world.most = max(self._world.most, len(self.busy))
            case Finish():
                await self._send.send(End())
            case _:
                assert isinstance(message, Start | Opened)

    async def receive(self) -> Message | None:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            return None

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self._send.close()
            self._world.busy -= self.busy

    async def ended(self) -> str:
        return "was lost with its machine"

    async def dismiss(self, seconds: float) -> None:
        self.kill()
        self._receive.close()

    async def _load(self, name: str) -> None:
        left, committed = self._world.sizes, 0  # what is durable stays so
        while left[name] > 0:
            step = min(left[name], supervisor.SILENT_SECONDS / 2)
            await anyio.sleep(step)
            if self.dead:
                return
            left[name] -= step
            committed += 1
            await self._send.send(Told([Tally(portfolio=name, phase="loading", committed=committed)], []))
        self._world.busy.discard(name)
        self.busy.discard(name)
        self._world.loaded[name] += 1
        await self._send.send(Told([Tally(portfolio=name, phase="done", committed=committed)], []))
        await self._send.send(Loaded([name], {}))


class World:
    """What imagined loaders share."""

    def __init__(self, sizes: dict[str, float]) -> None:
        self.sizes = sizes
        self.busy: set[str] = set()
        self.loaded: Counter[str] = Counter()
        self.loaders: list[Imagined] = []
        self.most = 0

    async def hire(self) -> Imagined:
        self.loaders.append(Imagined(self))
        return self.loaders[-1]

    async def lose_one_every(self, seconds: float, chance: random.Random) -> None:
        while True:
            await anyio.sleep(seconds)
            chance.choice([loader for loader in self.loaders if not loader.dead]).kill()


@pytest.mark.parametrize("every", [60.0, 1e9])
def test_many_tokens_of_very_different_size_are_loaded_in_little_more_than_the_least_time(every: float) -> None:
    tokens, loaders, at_once = 600, 12, 5
    chance = random.Random(7)
    sizes = {f"p{number}": 10 * chance.paretovariate(1.2) for number in range(tokens)}
    sizes = {name: min(size, 400.0) for name, size in sizes.items()}

    async def scenario() -> tuple[float, World, Crew]:
        world = World(dict(sizes))
        config = config_of([f"T{number}" for number in range(tokens)])
        crew = Crew(config, loaders, commits=True, hire=world.hire, at_once=at_once, sizes=sizes)
        async with anyio.create_task_group() as world.group:
            async with crew:
                began = anyio.current_time()
                world.group.start_soon(world.lose_one_every, every, chance)
                await crew.load_and_commit({})
                took = anyio.current_time() - began
            world.group.cancel_scope.cancel()
        return took, world, crew

    took, world, crew = run_virtually(scenario)
    assert {tally.phase for tally in crew.tallies.values()} == {"done"}
    assert set(world.loaded.values()) == {1}
    assert world.most <= at_once
    least = max(max(sizes.values()), sum(sizes.values()) / loaders / at_once)
    assert took < 1.2 * least


def test_where_no_loader_is_left_and_none_is_to_be_had_what_waits_is_named() -> None:
    async def scenario() -> Crew:
        world = World({"p0": 50.0, "p1": 50.0, "p2": 50.0})
        crew = Crew(config_of(list("ABC")), 1, commits=True, hire=world.hire, at_once=1)
        async with anyio.create_task_group() as world.group, crew:

            async def break_down() -> None:
                await anyio.sleep(70)
                crew._hire = refuse
                world.loaders[0].kill()

            world.group.start_soon(break_down)
            await crew.load_and_commit({})
        return crew

    async def refuse() -> Imagined:
        raise supervisor.ConfigError("cluster", "no machine is left", "Start one")

    crew = run_virtually(scenario)
    phases = Counter(tally.phase for tally in crew.tallies.values())
    assert phases == {"done": 1, "failed": 2}
    assert all("no machine is left" in one.failed[0].error for one in crew.tallies.values() if one.failed)
