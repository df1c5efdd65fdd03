"""A loader may be anything that sends and receives: here a task of the test, that is neither process nor socket."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Iterator
from typing import NoReturn

import anyio
import pytest
from anyio.abc import TaskGroup

from fetcher.errors import MissingExtraError
from fetcher.job import Job
from fetcher.processes.messages import Message
from fetcher.processes.supervisor import Crew
from fetcher.processes.worker import Worker
from fetcher.simulator import Latency
from fetcher.sinks import _MODULES, LaterSink, make_sink
from tests.held import contents, held, rows, twice
from tests.http import site
from tests.processes.test_supervisor import WIDE, loaded


class Mailbox:
    """One end of a way for messages that is no socket; each is packed and unpacked, as for a machine far away."""

    def __init__(self, ours: list[Mailbox]) -> None:
        self._letters: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ends = ours
        ours.append(self)

    async def send(self, message: Message) -> None:
        other = next(end for end in self._ends if end is not self)
        if other.closed:
            raise ConnectionError
        other._letters.put_nowait(pickle.dumps(message, protocol=5))
        await asyncio.sleep(0)

    async def receive(self) -> Message | None:
        letter = await self._letters.get()
        return None if letter is None else pickle.loads(letter)

    closed = False

    def close(self) -> None:
        for end in self._ends:
            end.closed = True
            end._letters.put_nowait(None)


class Neighbour(Mailbox):
    """A loader beside its run, in the same event loop."""

    def __init__(self, group: TaskGroup) -> None:
        ends: list[Mailbox] = []
        super().__init__(ends)
        self._theirs = Mailbox(ends)
        self._life = anyio.CancelScope()
        self._over = anyio.Event()
        group.start_soon(self._live)

    async def _live(self) -> None:
        def abandon() -> NoReturn:
            raise asyncio.CancelledError

        try:
            with self._life:
                await Worker(self._theirs, abandon).run()
        finally:
            self.close()
            self._over.set()

    def kill(self) -> None:
        self._life.cancel()

    async def ended(self) -> str:
        return "was ended"

    async def dismiss(self, seconds: float) -> None:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(seconds):
                await self._over.wait()
            self.kill()
            await self._over.wait()


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A worker takes the log of its process for its own."""
    logger = logging.getLogger("fetcher")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("kind", ["postgresql", "jsonl"])
def test_the_rows_are_the_truth_whatever_brings_the_messages(
    kind: str, killed: bool, request: pytest.FixtureRequest, tmp_path: object
) -> None:
    async def check() -> None:
        url = f"jsonl:{tmp_path}/o.jsonl" if kind == "jsonl" else request.getfixturevalue("schema_url")
        async with site(WIDE, latency=Latency(0.02)) as here, anyio.create_task_group() as group:
            config = here.config(url, walks=2, page_size=10)
            hired: list[Neighbour] = []

            async def hire() -> Neighbour:
                hired.append(Neighbour(group))
                return hired[-1]

            sink = make_sink(url)
            job = Job(config, sink=sink, processes=2)
            job._crew = Crew(config, 2, commits=sink.shared, hire=hire, at_once=1)
            async with job, anyio.create_task_group() as trouble:

                async def kill() -> None:
                    await loaded(job, 50)
                    hired[0].kill()

                if killed:
                    trouble.start_soon(kill)
                report = await job.run()
            assert report.complete, report.failed
            assert held(url) == contents(here.platform.world.bodies)
            assert not twice(rows(url), keyed=kind != "jsonl")
            assert len(hired) == 2 + killed

    asyncio.run(check())


def test_a_sink_that_is_yet_to_be_made_knows_whether_it_is_shared(tmp_path: object) -> None:
    rests = {"postgresql": "//user@host/db", "postgres": "//user@host/db", "null": "", "parquet": f"{tmp_path}/p"}
    for scheme in _MODULES:
        url = f"{scheme}:{rests.get(scheme, f'{tmp_path}/o.{scheme}')}"
        try:
            sink = make_sink(url)
        except MissingExtraError:
            continue
        assert LaterSink(url).shared == sink.shared, url
