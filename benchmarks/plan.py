"""What a plan costs: requests and seconds against the least possible, and a second run with nothing new.

The job is the real one, with the real limit. Its platform is in memory and its time is virtual, so that minutes pass in
moments: what counts is latency (lognormal) and the budget. With `--real` the platform is a process, and the clock the
one on the wall. Each row is loaded several times, with other latencies and other luck, `shard_by = "auto"` and
`"enterprise"` in turn; of the latter only what takes less than a minute.

`_worlds.py` has the worlds, their least and their goals. A load that does not bring exactly what the platform holds has
no time, and fails.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from math import inf
from statistics import median
from typing import Any, Protocol, TypeVar, get_args

import anyio
import msgspec
from _common import expect, run, tell_machine, work_folder
from _worlds import QUICK, SPREAD, WALKS, Case, cases

from fetcher.config import Config, make_config
from fetcher.job import Job
from fetcher.planning.shards import ShardBy
from fetcher.report import Report
from fetcher.simulator import Latency, SimulatedPlatform, Simulator, Stats, World, parse_faults, start_process
from fetcher.simulator.process import config_document
from fetcher.simulator.virtual import MemoryTransport, run_virtually
from fetcher.simulator.world import MICROS, micros
from fetcher.sinks import Batch, EncodedPage, Holdings, Page, Progress, Sink
from fetcher.sinks.base import note_changes

T = TypeVar("T")

NOW = micros(datetime(2026, 3, 31, 12, tzinfo=UTC)) / MICROS
"""When a virtual world's newest orders were updated; runs begin an hour later, so that nothing is new."""
PAUSE = 600.0
"""Virtual seconds between a run and the next one."""
PATIENCE = 60.0
"""Seconds of a load by enterprise, which is there to be compared with."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one load, and the next one, came to."""

    requests: int
    seconds: float
    throttled: int
    """429s."""
    pause_seconds: float
    """For how long those asked to wait."""
    nothing_new: int
    """Requests of the next run, ..."""
    nothing_new_seconds: float
    wrong: str = ""
    """What was not right, if anything; then the seconds mean nothing."""


class Recorder(Sink):
    """Keeps which orders came, and the progress; that outlives a run."""

    batch_rows = 20_000

    def __init__(self) -> None:
        super().__init__("null:")
        self.rows: dict[str, str] = {}
        self.progress: Progress = {}

    def probe(self) -> None:
        """Always usable."""

    def open(self) -> Progress:
        return dict(self.progress)

    def encode(self, page: Page) -> EncodedPage:
        payload = [(order.id, order.updated_utc) for order in page.orders]
        return EncodedPage.of(page, rows=len(payload), size=0, payload=payload)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        new: Counter[str] = Counter()
        for page in batch.pages:
            new[page.portfolio] += sum(self.rows.get(id_) != updated for id_, updated in page.payload)
            self.rows.update(page.payload)
        note_changes(self.progress, batch.progress)
        return new

    def holdings(self) -> Holdings:
        return Holdings(rows=len(self.rows), newest=None, progress=dict(self.progress))

    def close(self) -> None:
        """Nothing to let go."""


class Place(Protocol):
    """Where a case is loaded from: a platform, and a clock."""

    document: Mapping[str, Any]
    """The configuration for it, less limits and sink."""
    options: Mapping[str, Any]
    """Of the job."""

    def play(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it by this clock."""
        ...

    def wait(self) -> None:
        """Time passes until the next run."""

    def truth(self) -> dict[str, str]:
        """The `UpdatedUtc` of every order that the platform holds, by its id."""
        ...

    def stats(self) -> Stats: ...


class Memory:
    """A platform in memory, in virtual time."""

    def __init__(self, case: Case, world: World, seed: int) -> None:
        chance = random.Random(seed)
        self._world = world
        self._platform = SimulatedPlatform(world, case.behaviour, parse_faults(case.faults), seed)
        latency = Latency(case.latency, spread=SPREAD)
        self._passed = 0.0
        self._transport = MemoryTransport(self._platform, latency, chance, began=NOW + 3600)
        self.document = config_document(self._platform, "http://127.0.0.1:1")
        self.options = {
            "transport": self._transport,
            "offload": inline,
            "chance": chance,
            "ours": self._transport.now,
        }

    def play(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def played() -> T:
            began = anyio.current_time()
            try:
                return await function()
            finally:
                self._passed = anyio.current_time() - began

        return run_virtually(played)

    def wait(self) -> None:
        self._transport.began += self._passed + PAUSE  # every loop's time begins anew

    def truth(self) -> dict[str, str]:
        return dict(self._world.truth())

    def stats(self) -> Stats:
        return self._platform.stats


class Process:
    """A platform that is a process, over HTTP, by the clock on the wall."""

    def __init__(self, simulator: Simulator, seed: int) -> None:
        self._simulator = simulator
        self.document = simulator.document
        self.options = {"chance": random.Random(seed)}

    def play(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run(function())

    def wait(self) -> None:
        """Nothing is new at once."""

    def truth(self) -> dict[str, str]:
        return {id_: updated for _, id_, updated in self._simulator.truth()}

    def stats(self) -> Stats:
        return self._simulator.stats()


async def inline(function: Callable[..., T], *arguments: Any) -> T:
    """In virtual time the sink takes none."""
    return function(*arguments)


def options_of(case: Case, seed: int) -> list[str]:
    """The case as the simulator's command line takes it."""
    arguments = ["--years", str(case.years), "--latency", str(case.latency * 1000), "--spread", str(SPREAD)]
    arguments += ["--requests", str(case.requests), "--per-seconds", str(case.per_seconds), "--seed", str(seed)]
    arguments += ["--hotels", case.hotels, "--portfolios", str(case.portfolios), f"--faults={case.faults}"]
    return [*arguments, *(["--by-creation"] if case.behaviour.by_creation else [])]


def load(case: Case, way: str, world: World | None, seed: int, only: int | None = None) -> Load | None:
    """Load the case, and once more.

    Args:
        case: what to load.
        way: `shard_by`.
        world: in virtual time; `None`: by the clock on the wall.
        seed: of latencies and luck.
        only: the number of a portfolio; `None`: all of them.

    Returns: `None` if it was given up.
    """
    with ExitStack() as stack:
        if world is None:
            stack.enter_context(work_folder())
            place: Place = Process(stack.enter_context(start_process(options_of(case, seed))), seed)
        else:
            place = Memory(case, world, seed)
        return load_from(place, case, way, only)


def load_from(place: Place, case: Case, way: str, only: int | None) -> Load | None:
    document = dict(place.document)
    if only is not None:
        document["portfolios"] = document["portfolios"][only : only + 1]
    limits = {"requests": case.requests, "per_seconds": case.per_seconds, "walks": WALKS, "shard_by": way}
    config = make_config({**document, "sink": {"url": "null:"}, "limits": limits})
    sink = Recorder()
    first = play(place, config, sink, PATIENCE if way == "enterprise" else None)
    if first is None:
        return None
    pause_seconds = sum(count.pause_seconds for count in place.stats().portfolios.values())
    place.wait()
    second = play(place, config, sink)
    wrong = ""
    if second is None or not (first.complete and second.complete):
        wrong = f"not complete: {[failure.error for failure in first.failed][:1]}"
    elif only is None and sink.rows != (truth := place.truth()):
        missing = sum(sink.rows.get(id_) != updated for id_, updated in truth.items())
        wrong = f"not exact: {missing} orders are missing, {len(sink.rows.keys() - truth.keys())} are none"
    elif first.throttled and not case.refusals:
        wrong = f"{first.throttled} requests were refused"
    return Load(
        requests=first.requests,
        seconds=first.seconds,
        throttled=first.throttled,
        pause_seconds=pause_seconds,
        nothing_new=second.requests if second else 0,
        nothing_new_seconds=second.seconds if second else 0,
        wrong=wrong,
    )


def play(place: Place, config: Config, sink: Sink, most_seconds: float | None = None) -> Report | None:
    """One run; `None`: it took too long."""

    async def once() -> Report | None:
        with anyio.move_on_after(most_seconds):
            async with Job(config, sink=sink, **place.options) as job:
                return await job.run()
        return None

    return place.play(once)


class Figure(msgspec.Struct, frozen=True):
    """One measure of several loads, over the least."""

    middle: float
    worst: float
    goal: float | None

    @property
    def held(self) -> bool:
        """Whether the middle one is within the goal."""
        return self.goal is None or self.middle <= self.goal

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"{self.goal:g}" + ("" if self.held else " NOT")
        return f"{self.middle:>7.2f}{self.worst:>6.2f} {goal:<9}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What several loads of one case came to, one way. Requests and seconds are the middle ones."""

    world: str
    newest_by: str
    shard_by: str
    loads: int
    sent: float
    least_requests: int
    requests: Figure
    seconds: float
    least_seconds: float
    time: Figure
    nothing_new_sent: float
    least_nothing_new: int
    nothing_new: Figure
    nothing_new_seconds: float
    throttled: float
    pause_seconds: float
    wrong: str = ""

    @property
    def label(self) -> str:
        return f"{self.world}, newest by {self.newest_by}, {self.shard_by}"


def row(case: Case, way: str, loads: Sequence[Load], least_seconds: Sequence[float]) -> Row:
    """What they came to, each over its own least time; goals are for `auto`, the others are there to be compared."""
    least, goal = case.least(), case.goal if way == "auto" else None
    wrong = next((one.wrong for one in loads if one.wrong), "")

    def figure(ratios: Sequence[float], most: float | None) -> Figure:
        return Figure(median(ratios), max(ratios), most)

    seconds = [inf if one.wrong else one.seconds for one in loads]
    return Row(
        world=case.name,
        newest_by=case.newest_by,
        shard_by=way,
        loads=len(loads),
        sent=median(one.requests for one in loads),
        least_requests=least.requests,
        requests=figure([one.requests / least.requests for one in loads], goal and goal.requests),
        seconds=median(seconds),
        least_seconds=median(least_seconds),
        time=figure([took / most for took, most in zip(seconds, least_seconds, strict=True)], goal and goal.seconds),
        nothing_new_sent=median(one.nothing_new for one in loads),
        least_nothing_new=least.nothing_new,
        nothing_new=figure([one.nothing_new / least.nothing_new for one in loads], goal and goal.nothing_new),
        nothing_new_seconds=median(one.nothing_new_seconds for one in loads),
        throttled=median(one.throttled for one in loads),
        pause_seconds=median(one.pause_seconds for one in loads),
        wrong=wrong,
    )


def least_seconds(case: Case, way: str, world: World | None, seed: int, loaded: Load) -> float:
    """What the case takes at least; with refusals, where the limit binds, that depends on what the load met."""
    if case.refusals:
        well = load(msgspec.structs.replace(case, refusals=""), way, world, seed)
        return (well.seconds if well else 0.0) + loaded.pause_seconds
    if case.binds:
        return case.least_by_budget(loaded.requests)
    return case.least().seconds


def measure(case: Case, ways: Sequence[str], world: World | None, seeds: Sequence[int]) -> tuple[list[Row], list[str]]:
    """A case, each way in turn; and remarks. A way that takes too long is not tried again."""
    loads: dict[str, list[Load]] = {way: [] for way in ways}
    least: dict[str, list[float]] = {way: [] for way in ways}
    remarks: list[str] = []
    for seed in seeds:
        for way in list(loads):
            if (loaded := load(case, way, world, seed)) is not None:
                loads[way].append(loaded)
                least[way].append(least_seconds(case, way, world, seed, loaded))
            else:
                remarks.append(f"{case.name}, {way}: over {PATIENCE:g} s, not waited for")
                del loads[way]
    rows = [row(case, way, loads[way], least[way]) for way in loads]
    return rows, [*remarks, *remarks_on(case, rows, world)]


def remarks_on(case: Case, rows: Sequence[Row], world: World | None) -> Iterator[str]:
    """What bounds a figure, where that is not the least that the table shows."""
    for found in rows:
        if case.refusals:
            well = found.least_seconds - found.pause_seconds
            yield (
                f"{found.label}: {found.throttled:g} refusals asked to wait, {found.pause_seconds:.1f} s in all;"
                f" without them it takes {well:.1f} s: together that is the least"
            )
        if case.binds:
            yield (
                f"{found.label}: the least is that of the requests that were sent;"
                f" of {found.least_requests} it is {case.least().seconds:.1f} s"
            )
        if case.portfolios > 1 and found.shard_by == "auto":
            each = [load(case, found.shard_by, world, 1, only) for only in range(case.portfolios)]
            slowest = max(one.seconds for one in each if one is not None)
            yield f"{found.label}: the slowest portfolio takes {slowest:.1f} s when it is alone"


GROUP = f"{'sent':>6}{'least':>6}{'mid':>7}{'worst':>6} {'goal':<9}"
HEADING = (
    f"{'':52}{'requests, over the least':<34}{'seconds, over the least':<34}requests with nothing new, over the least\n"
    f"{'world':<22}{'newest by':<19}{'shard_by':<11}{GROUP}{GROUP.replace('sent', 'took')}{GROUP}seconds"
)


def tell(found: Row) -> None:
    """Print it."""
    print(
        f"{found.world:<22}{found.newest_by:<19}{found.shard_by:<11}"
        f"{found.sent:>6g}{found.least_requests:>6}{found.requests}"
        f"{found.seconds:>6.1f}{found.least_seconds:>6.1f}{found.time}"
        f"{found.nothing_new_sent:>6g}{found.least_nothing_new:>6}{found.nothing_new}{found.nothing_new_seconds:>7.1f}",
        flush=True,
    )


def judge(found: Row, *, short: bool, told: bool) -> None:
    """Whether it is exact, and within its goals."""
    if found.wrong or found.shard_by != "auto":
        expect(not found.wrong, f"{found.label}: {found.wrong or 'exact'}", told=told)
        return
    figures = {"requests": found.requests, "seconds": found.time, "nothing new": found.nothing_new}
    missed = [f"{name} {one.middle:.2f}, not {one.goal:g}" for name, one in figures.items() if not one.held]
    but = f", but for {'; '.join(missed)}" if missed else ""
    expect(not missed, f"{found.label}: exact, and within its goals{but}", short=short, told=told)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="three rows, once, to see that it works")
    parser.add_argument("--real", action="store_true", help="by the clock on the wall, with the platform as a process")
    parser.add_argument("--json", action="store_true", help="one JSON line for each row, and nothing else")
    parser.add_argument("--loads", type=int, help="of each row; default: 5, and 1 by the clock on the wall")
    parser.add_argument("--world", action="append", help="only rows in whose world's name this is; may be repeated")
    parser.add_argument("--way", action="append", choices=get_args(ShardBy), help="default: auto and enterprise")
    return parser.parse_args()


def main() -> None:
    parsed = arguments()
    logging.getLogger("fetcher").setLevel(logging.CRITICAL)
    seeds = range(1, 1 + (parsed.loads or (1 if parsed.real or parsed.short else 5)))
    ways = parsed.way or ["auto", "enterprise"]
    wanted = [case for case in cases() if not parsed.world or any(part in case.name for part in parsed.world)]
    if parsed.short:
        wanted = [case for case in wanted if case.name in QUICK]
    if not parsed.json:
        tell_machine(parsed.short)
        clock = "the clock on the wall" if parsed.real else "virtual time"
        print(f"\n{clock}, loads of each row: {len(seeds)}; latency lognormal\n\n{HEADING}")
    rows: list[Row] = []
    remarks: list[str] = []
    given_up: set[tuple[str, str]] = set()
    size, world = None, None
    for case in wanted:
        if not parsed.real and size != case.size:
            size, world = case.size, None
            gc.collect()  # a world is a gigabyte for each million orders
            world = World(1, size, int(NOW * MICROS))
        tried = [way for way in ways if (case.name, way) not in given_up]
        found, more = measure(case, tried, world, seeds)
        given_up |= {(case.name, way) for way in tried} - {(one.world, one.shard_by) for one in found}
        remarks += more
        rows += found
        for one in found:
            if parsed.json:
                print(msgspec.json.encode(one).decode(), flush=True)
            else:
                tell(one)
    if not parsed.json:
        print("", *remarks, "", sep="\n")
    for one in rows:
        judge(one, short=parsed.short, told=not parsed.json)


if __name__ == "__main__":
    run(main)
