"""Loaders that commit for themselves; and one that is cut off, and not dead: what it had goes on elsewhere, and nothing
of what it does counts any more.
"""

from __future__ import annotations

import asyncio
import signal

import anyio
import pytest

import fetcher
from fetcher.errors import SinkError
from fetcher.job import Job
from fetcher.processes.local import LocalLoader, hire_here
from fetcher.processes.messages import Message, Told
from fetcher.processes.supervisor import Crew
from fetcher.simulator import Latency
from fetcher.sinks import Batch, make_sink
from tests.held import contents, held, rows, twice
from tests.http import site
from tests.postgres import Server
from tests.processes.test_supervisor import WIDE, loaded, process_of

SECONDS = 60.0
"""Longer than any of this may take, what the database waits for a stopped process included."""


class Distant:
    """A loader on a machine that may be cut off: then nobody hears of it, and nobody can end it."""

    def __init__(self, loader: LocalLoader) -> None:
        self.loader = loader
        self.cut = anyio.Event()
        self._hearing: asyncio.Future[Message | None] | None = None

    async def send(self, message: Message) -> None:
        if self.cut.is_set():
            raise ConnectionError
        await self.loader.send(message)

    async def receive(self) -> Message | None:
        hearing = self._hearing = self._hearing or asyncio.ensure_future(self.loader.receive())
        cutting = asyncio.ensure_future(self.cut.wait())
        await asyncio.wait([hearing, cutting], return_when=asyncio.FIRST_COMPLETED)
        cutting.cancel()
        return None if self.cut.is_set() else await self.overhear()

    async def overhear(self) -> Message | None:
        """The next message, also of one that is cut off: it may have been half heard then, so that goes on."""
        hearing, self._hearing = self._hearing or asyncio.ensure_future(self.loader.receive()), None
        return await hearing

    def kill(self) -> None:
        if not self.cut.is_set():
            self.loader.kill()

    async def ended(self) -> str:
        return "was cut off" if self.cut.is_set() else await self.loader.ended()

    async def dismiss(self, seconds: float) -> None:
        if not self.cut.is_set():
            await self.loader.dismiss(seconds)


@pytest.mark.parametrize("orders", [30, 150, 400])
def test_a_loader_that_is_stopped_and_goes_on_later_commits_nothing_of_what_another_has_by_then(
    orders: int, schema_url: str
) -> None:
    async def check() -> None:
        async with site(WIDE, latency=Latency(0.03)) as here:
            config = here.config(schema_url, processes=2, walks=2, page_size=5)
            hired: list[Distant] = []

            async def hire() -> Distant:
                hired.append(Distant(await hire_here()))
                return hired[-1]

            job = Job(config, sink=make_sink(schema_url), processes=2)
            job._crew = crew = Crew(config, 2, commits=True, hire=hire)
            async with job:

                async def cut_off() -> None:
                    await loaded(job, orders)
                    hired[0].loader.process.send_signal(signal.SIGSTOP)
                    hired[0].cut.set()

                async with anyio.create_task_group() as group:
                    group.start_soon(cut_off)
                    report = await job.run()
            stopped = hired[0].loader
            try:
                assert report.complete, report.failed
                assert sum(crew._moves.values()) == 2
                truth = contents(here.platform.world.bodies)
                assert held(schema_url) == truth
                progress = make_sink(schema_url).holdings().progress
                stopped.process.send_signal(signal.SIGCONT)
                told: dict[str, str] = {}
                while len(told) < 2:
                    message = await hired[0].overhear()
                    assert message is not None, "it ended without a word"
                    for tally in message.tallies if isinstance(message, Told) else ():
                        for failure in tally.failed:
                            told[tally.portfolio] = failure.error
                assert all("has taken this over" in error for error in told.values())
            finally:
                await stopped.dismiss(0)
            assert make_sink(schema_url).holdings().progress == progress
            assert held(schema_url) == truth
            assert not twice(rows(schema_url), keyed=True)
            assert here.platform.stats.against_contract_count == 0

    async def in_time() -> None:
        with anyio.fail_after(SECONDS):
            await check()

    asyncio.run(in_time())


def test_no_row_comes_by_the_run_where_every_loader_may_write(schema_url: str) -> None:
    async def check() -> None:
        async with site(WIDE) as here:
            sink = make_sink(schema_url)
            sink.commit = _refuse  # type: ignore[method-assign]
            async with Job(here.config(schema_url), sink=sink, processes=3) as job:
                report = await job.run()
            assert (report.complete, report.failed, report.orders) == (True, [], len(here.truth()))
            assert held(schema_url) == contents(here.platform.world.bodies)
            assert {name: one.orders for name, one in report.portfolios.items()} == {
                owner.name: sum(1 for _ in here.platform.world.truth(owner.name))
                for owner in here.platform.world.portfolios.values()
            }

    asyncio.run(check())


def _refuse(_batch: Batch) -> dict[str, int]:
    raise AssertionError("the run commits")


def test_a_loader_s_sink_that_fails_is_what_is_told(schema_url: str, postgres: Server) -> None:
    async def check() -> None:
        async with site(WIDE, latency=Latency(0.02)) as here:
            config = here.config(schema_url, walks=1, page_size=5)
            job = Job(config, sink=make_sink(schema_url), processes=2)

            async def spoil() -> None:
                await loaded(job, 20)
                schema = schema_url.partition("?schema=")[2]
                postgres.execute(f"DROP TABLE {schema}.product_service_orders")

            async def load() -> None:
                async with job:
                    spoiling = asyncio.create_task(spoil())
                    await job.run()
                    await spoiling

            with pytest.raises(SinkError, match="product_service_orders") as failed:
                await load()
            assert "not-secret" not in str(failed.value)
            assert job._crew is not None
            assert all(process_of(member).returncode is not None for member in job._crew._members.values())

    asyncio.run(check())


def test_stopping_has_every_loader_commit_what_is_in_hand(schema_url: str) -> None:
    async def check() -> None:
        async with site(WIDE, latency=Latency(0.02)) as here:
            config = here.config(schema_url, walks=2, page_size=10)
            async with Job(config, sink=make_sink(schema_url), processes=2) as job:

                async def stop() -> None:
                    await loaded(job, 50)
                    job.stop()

                async with anyio.create_task_group() as group:
                    group.start_soon(stop)
                    report = await job.run()
            assert report.interrupted
            assert report.failed == []
            assert 50 <= report.orders == len(rows(schema_url)) <= len(here.truth())
            assert {tally.phase for tally in job.tallies} <= {"stopped", "done"}
            assert (await fetcher.run(here.config(schema_url))).complete
            assert held(schema_url) == contents(here.platform.world.bodies)

    asyncio.run(check())
