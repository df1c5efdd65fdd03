"""The whole job in virtual time, against a simulated platform in memory; schedules, faults and kills from a seed.

    python -m tests.simulation 42            # replay one seed, and tell what happened
    python -m tests.simulation 1000 3000     # run a range of seeds

What each seed checks, by the promises' numbers:

P1  a run that ends complete holds every order that was there when it began, at that version or a newer one
P2  nothing twice: one version of an order in a keyed sink, each version once in an appending one
P3  after kills, the next runs complete it, and the rows are then the truth exactly: not only the times of the orders,
    but what they say
P4  no window of the platform ever held more than the limit: whoever is alone is never refused; and no request is spent
    that need not be (`spending.py` has what a run may send)
P5  nothing is sent while the platform asked to wait
P6  no more pages are in memory than there is room for, and all of the room is given back
P7  what is refused for good is named, and everything else is there; an order that cannot be read is kept aside, and is
    there once it can
P8  what is called too heavy is not asked again and again
P9  who stops or cancels a run has it end within 5 seconds
P10 a property that is not documented stops nothing, is told, and is whole in JSONL
P11 no token is in a report, an error, a record of progress or a log line
P12 the tallies count what was asked, received and committed, while the run lasts
"""

from __future__ import annotations

import gc
import json
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

from fetcher.config import Config, make_config
from fetcher.connector.room import Lease, Room
from fetcher.connector.transport import Heard, Reply, brings_page
from fetcher.errors import SinkError
from fetcher.job import Job
from fetcher.loading.portfolios import Portfolios
from fetcher.report import Report
from fetcher.simulator import Behaviour, Faults, Latency, SimulatedPlatform, Size, World
from fetcher.simulator.faults import STRIKES
from fetcher.simulator.platform import RETRY_AFTER
from fetcher.simulator.process import config_document
from fetcher.simulator.virtual import MemoryTransport
from fetcher.simulator.world import DAY, MICROS, micros
from fetcher.sinks import Batch, EncodedPage, Holdings, Page, Progress, Sink, make_sink
from fetcher.sinks.appending.versions import normal_time, version_of_line
from fetcher.sinks.base import RejectedRow, kept_aside, note_changes, rejected_row
from tests.spending import Traffic, allowance, allowance_again, more_for_faults
from tests.virtual import run_virtually

T = TypeVar("T")

BEGIN = micros(datetime(2026, 3, 31, 11, 59, 30, tzinfo=UTC)) / MICROS
MOST_SECONDS = 24 * 3600.0
"""Virtual seconds in which a run must end, whatever goes wrong."""
MOST_PAGES = Portfolios.ROOM
"""In memory at once, as they came."""
MOST_HEAVY = 2
"""How often one request may be called too heavy in one run: a walk that starts again meets its first page again."""
END_SECONDS = 5.0


class BrokenPromiseError(AssertionError):
    """A seed found a bug."""


class Body(bytes):
    """A page as it came, which tells its transport how many of them are in memory."""

    def __new__(cls, transport: VirtualTransport, body: bytes) -> Body:
        made = super().__new__(cls, body)
        made.transport = transport
        transport.pages += 1
        return made

    transport: VirtualTransport

    def __del__(self) -> None:
        self.transport.pages -= 1


class VirtualTransport:
    """Carries requests to a platform in memory, in virtual time, and watches what is sent and kept."""

    def __init__(self, platform: SimulatedPlatform, latency: Latency, chance: random.Random, seconds: float) -> None:
        self.platform = platform
        self._memory = MemoryTransport(platform, latency, chance, began=BEGIN, seconds=seconds, body_share=0.5)
        self._paused: dict[str, float] = {}
        self._heavy: Counter[bytes] = Counter()
        self.room: Room | None = None
        """The room for pages, once a page was asked for."""
        self.pages = 0
        """In memory, as they came."""
        self.traffic = Traffic()

    @property
    def offset(self) -> float:
        """Seconds that passed between runs."""
        return self._memory.began - BEGIN

    @offset.setter
    def offset(self, seconds: float) -> None:
        self._memory.began = BEGIN + seconds

    def start(self) -> None:
        """Another run begins."""
        self._heavy.clear()
        self.room = None
        self.traffic = Traffic()

    def forget(self) -> None:
        """Another process sends from now on, which does not know what the last one was told."""
        self._paused.clear()

    def now(self) -> float:
        """The platform's time, in seconds since 1970."""
        return self._memory.now()

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        """See `Transport.post`."""
        token = json.loads(body)["AccessToken"]
        if self._paused.get(token, 0) > self.now() + 1e-6:
            raise BrokenPromiseError("P5: a request was sent while the platform asked to wait")
        if lease is not None:
            self.room = lease.room

        def watched(status: int, headers: Mapping[str, str]) -> None:
            if status >= 400 and (pause := _pause(headers)):
                self._paused[token] = max(self._paused.get(token, 0), self.now() + pause)
            heard(status, headers)
            self._weigh(path, body, status)

        reply: Reply | None = None
        try:
            reply = await self._memory.post(path, body, watched, lease)
        finally:
            self.traffic.note(path, body, reply)
        if lease is None or not brings_page(reply.status):
            return reply
        return Reply(reply.status, reply.headers, self._page(reply.body))

    def _weigh(self, path: str, body: bytes, status: int) -> None:
        self._heavy[body] += status in (408, 413)
        if self._heavy[body] > MOST_HEAVY and path.startswith("productServiceOrders"):
            raise BrokenPromiseError("P8: what is too heavy is asked again and again")

    def _page(self, body: bytes) -> Body:
        page = Body(self, body)
        if self.pages > MOST_PAGES:
            gc.collect()  # tracebacks of earlier failures hold what their frames held
            if self.pages > MOST_PAGES:
                raise BrokenPromiseError(f"P6: {self.pages} pages are in memory")
        return page


class Held(msgspec.Struct, frozen=True, order=True):
    """A version of an order: its time, normalised, and a digest of what it says."""

    updated: str
    content: bytes


def _pause(headers: Mapping[str, str]) -> float:
    """How long a refusal asks to wait, in seconds."""
    text = headers.get("Retry-After", "")
    if not text or text.isdigit():
        return float(text or 0)
    return (parsedate_to_datetime(text) - parsedate_to_datetime(headers["Date"])).total_seconds()


class KeyedSink(Sink):
    """Keeps the newest version of each order in memory; what was committed outlives the sink."""

    batch_rows = 60

    def __init__(self) -> None:
        super().__init__("memory:")
        self.rows: dict[str, Held] = {}
        self.fetched: dict[str, datetime] = {}
        self.aside: dict[tuple[str, str], RejectedRow] = {}
        self.progress: Progress = {}

    def probe(self) -> None:
        """Always usable."""

    def open(self) -> Progress:
        return dict(self.progress)

    def encode(self, page: Page) -> EncodedPage:
        payload = [(*_held(bytes(line)), page.fetched_utc) for line in page.lines()]
        rejected = [rejected_row(page, order) for order in page.rejected]
        return EncodedPage.of(page, rows=len(payload), size=0, payload=payload, rejected=rejected)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        new: Counter[str] = Counter()
        for page in batch.pages:
            for id_, version, fetched in page.payload:
                known = self.rows.get(id_)
                newer = known is None or known.updated < version.updated
                other = known is not None and known.updated == version.updated and known.content != version.content
                gone_back = page.full_since is not None and self.fetched.get(id_, fetched) < page.full_since
                if newer or other or gone_back:
                    new[page.portfolio] += known != version
                    self.rows[id_] = version
                    self.fetched[id_] = fetched
        gone, rows = kept_aside(batch.pages)
        for key in gone:
            self.aside.pop(key, None)
        self.aside |= {(row.portfolio, row.key): row for row in rows}
        note_changes(self.progress, batch.progress)
        return new

    def holdings(self) -> Holdings:
        return Holdings(rows=None, newest=None, progress=dict(self.progress))

    def close(self) -> None:
        """Nothing to let go."""

    def versions(self) -> list[tuple[str, Held, bytes]]:
        """Every version that it holds."""
        return [(id_, version, version.content) for id_, version in self.rows.items()]

    def kept_aside(self) -> set[str]:
        """The keys of what is kept aside."""
        return {key for _, key in self.aside}


class FileSink:
    """A real JSONL sink, opened anew for each run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "orders.jsonl"

    def fresh(self) -> Sink:
        """The sink as a new process would open it."""
        sink = make_sink(f"jsonl:{self.path}")
        sink.batch_rows = 60  # type: ignore[misc] of this one alone
        return sink

    def versions(self) -> list[tuple[str, Held, bytes]]:
        """Every version that it holds, in the order in which they came; and what they say, unknown properties too."""
        return [(*_held(line), _said(line)) for line in self.lines()]

    def lines(self) -> list[bytes]:
        """Every line of the file."""
        return self.path.read_bytes().splitlines() if self.path.exists() else []

    def kept_aside(self) -> set[str]:
        """The keys of what is kept aside."""
        path = self.path.with_name("orders.rejected.jsonl")
        lines = path.read_bytes().splitlines() if path.exists() else []
        return {json.loads(line)["id"].lower() for line in lines}


class KilledError(Exception):
    """The process is gone."""


def breaking(sink: Sink, at: int, error: Exception, *, before: bool) -> Sink:
    """Have the sink's commit number `at` raise `error`, just before or just after it is durable."""
    commit = sink.commit
    count = 0

    def broken(batch: Batch) -> Mapping[str, int]:
        nonlocal count
        count += 1
        if count == at and before:
            raise error
        new = commit(batch)
        if count == at:
            raise error
        return new

    sink.commit = broken  # type: ignore[method-assign]
    return sink


class Story:
    """One seed: a world, a platform with its moods (drawn, or `faults`), and the runs against it."""

    def __init__(self, seed: int, folder: Path, faults: Faults | None = None) -> None:
        chance = self.chance = random.Random(seed)
        portfolios = chance.choice((1, 1, 2, 3))
        size = Size(
            portfolios=portfolios,
            enterprises=portfolios + chance.randrange(5),
            services=chance.choice((portfolios + 5, 12, 40)),
            orders=chance.choice((0, 60, 150, 300)),
            years=chance.choice((0.02, 0.3, 1.2)),
        )
        self.world = World(seed, size, int((BEGIN + 900) * MICROS))
        drawn = _faults(chance)
        self.faulty = drawn if faults is None else faults
        self.behaviour = Behaviour(
            requests=chance.choice((5, 20, 60)),
            per_seconds=chance.choice((2.0, 7.0)),
            inclusive=chance.random() < 0.5,
            by_creation=chance.random() < 0.5,
            retry_after=chance.choice(RETRY_AFTER),
            minimal=chance.random() < 0.5,
            refuses_all=seed % 2 == 0,
        )
        self.platform = SimulatedPlatform(self.world, self.behaviour, self.faulty, seed)
        latency = Latency(chance.choice((0.001, 0.05, 0.8)), chance.choice((0.0, 1.0)))
        self.transport = VirtualTransport(self.platform, latency, chance, seconds=30)
        self.keyed = KeyedSink() if chance.random() < 0.5 else None
        self.file = FileSink(folder)
        self.log: list[str] = [f"{size}", f"{self.behaviour}", f"{self.faulty}"]
        self.said: list[str] = []
        """What the run logged, at every level."""
        self.new = 0
        """Orders that the sink called new in this run."""
        self.to_end_at: float | None = None
        """When the run was told to end."""
        self.until = datetime.fromtimestamp(BEGIN, UTC)
        """When the latest run began."""
        self.struck = self.changed = 0
        """Faults that had struck, and orders that had changed, by then."""
        self.spent = self.least = 0
        """Requests of runs that read everything, while nothing went wrong; and the least of their worlds."""

    def config(self) -> Config:
        """The fetcher's configuration: another one for each run, of the same selection."""
        chance = self.chance
        document = config_document(self.platform, "http://127.0.0.1:1")
        return make_config(
            {
                **document,
                "orders": {"updated_from": "2024-11-30T00:00:00Z", "settle_seconds": 5, "overlap_seconds": 20},
                "limits": {
                    "requests": self.behaviour.requests,
                    "per_seconds": self.behaviour.per_seconds,
                    "walks": chance.choice((1, 3, 16)),
                    "page_size": chance.choice((7, 20, 100)),
                    "window_months": chance.choice((1, 3)),
                    "shard_by": chance.choice(("auto", "auto", "enterprise", "portfolio")),
                    "request_seconds": 30,
                    "outage_minutes": 5,
                },
            }
        )

    async def tell(self) -> None:
        """All of it: runs that go wrong, then runs that do not, until everything is there."""
        for _ in range(self.chance.randrange(4)):
            await self.run(self._trouble())
            self.wait(self.chance.choice((100, 4000)))
        self.platform.faults = Faults()
        self.log.append("no more faults")
        await self.complete(full=False)
        if left := self.kept_aside():
            raise BrokenPromiseError(f"P7: orders are kept aside that can be read: {left}")
        if self.faulty.condition("bad-order"):
            # What could be read, and was kept as it came, has changed without another `UpdatedUtc`.
            self.wait(100)
            await self.complete(full=True)
        if self.keyed is not None:  # whichever sink it is: this one takes no time
            await self.spend()
        if self.portfolio_truth() != self.held():
            held, truth = self.held(), self.portfolio_truth()
            wrong = [(id_, held.get(id_), truth[id_]) for id_ in truth if held.get(id_) != truth[id_]]
            raise BrokenPromiseError(f"P3: the rows are not the truth: {wrong[:3]}, {held.keys() - truth.keys()}")

    async def spend(self) -> None:
        """A run with nothing new, and one that reads everything again: both send no more than they need."""
        self.wait(4000)
        await self.complete(full=False)
        self.wait(4000)
        report = await self.run(None, full=False, nothing_new=True)
        if report is None or not report.complete:
            raise BrokenPromiseError(f"P3: with nothing new it does not complete: {report and report.failed}")
        self.wait(4000)
        await self.complete(full=True)

    def now(self) -> datetime:
        """The platform's time."""
        return datetime.fromtimestamp(self.transport.now(), UTC)

    async def complete(self, *, full: bool) -> None:
        """Run until all is there."""
        report: Report | None = None
        for _ in range(3):
            report = await self.run(None, full=full)
            if report is not None and report.complete:
                return
            self.wait(DAY / MICROS + 60)  # refused services are tried again
        raise BrokenPromiseError(f"P3: without faults it does not complete: {report and report.failed}")

    def wait(self, seconds: float) -> None:
        """Time passes between two runs."""
        self.transport.offset += seconds

    async def run(
        self,
        trouble: Callable[[Job, Sink], Awaitable[None]] | None,
        *,
        full: bool | None = None,
        nothing_new: bool = False,
    ) -> Report | None:
        """One run, to its end or its violent end; checks what must hold."""
        sink: Sink = self.keyed if self.keyed is not None else self.file.fresh()
        began = anyio.current_time()
        self.transport.start()
        self.new, self.to_end_at = 0, None
        config, since, until = self.config(), self.until, self.now()
        self.until = until
        full = self.chance.random() < 0.1 if full is None else full
        whole = full or not (self.keyed.progress if self.keyed is not None else self.file.path.exists())
        self.struck, self.changed = sum(self.platform.stats.faults.values()), self.platform.stats.changes
        lines = len(self.file.lines())
        if trouble is None and self.keyed is not None:
            sink.__dict__.pop("commit", None)
        self.transport.forget()
        report: Report | None = None
        before = dict(self.truth_now())
        try:
            with anyio.fail_after(MOST_SECONDS):
                async with Job(
                    config,
                    sink=sink,
                    full=full,
                    transport=self.transport,
                    offload=inline,
                    chance=self.chance,
                    ours=lambda: self.transport.now() - 5 * 3600,
                ) as job:
                    report = await self._run_job(job, sink, trouble)
        except TimeoutError:
            raise BrokenPromiseError("a run does not end") from None
        sink.__dict__.pop("commit", None)
        took = anyio.current_time() - began
        if self.to_end_at is not None and anyio.current_time() - self.to_end_at > END_SECONDS:
            raise BrokenPromiseError("P9: it was told to end, and went on")
        if report is not None:
            self.check_counts(report)
            self.check_unknown(report, self.file.lines()[lines:], troubled=trouble is not None)
            self.log.append(f"{'complete' if report.complete else 'incomplete'} in {took:.0f} s, {report.failed}")
            if whole and not report.interrupted:
                self.check_spending(config, until)
            if nothing_new:
                self.check_nothing_new(config, since, until)
            if report.complete:
                self.check_complete(before)
            elif not report.interrupted:
                self.check_named(before, report)
        self.check_always()
        return report

    async def _run_job(
        self, job: Job, sink: Sink, trouble: Callable[[Job, Sink], Awaitable[None]] | None
    ) -> Report | None:
        report: Report | None = None
        self.watch(job, sink)
        async with anyio.create_task_group() as group:
            if trouble is not None:
                group.start_soon(trouble, job, sink)
            try:
                with anyio.CancelScope() as self.scope:
                    report = await job.run()
            except (SinkError, KilledError) as error:
                self.log.append(repr(error))
            group.cancel_scope.cancel()
        if any(tally.phase == "done" and tally.shards_done != tally.shards_planned for tally in job.tallies):
            raise BrokenPromiseError("P12: all is done, but for some shards")
        self.check_secrets(job, sink, report)
        return report

    def watch(self, job: Job, sink: Sink) -> None:
        """Compare what the job tells of itself with what the sink gets, at every commit."""
        commit = sink.commit

        def watched(batch: Batch) -> Mapping[str, int]:
            new = commit(batch)
            self.new += sum(new.values())
            if sum(tally.orders for tally in job.tallies) < self.new:
                raise BrokenPromiseError("P12: the tallies have fewer orders than the sink")
            for tally in job.tallies:
                if not 0 <= tally.shards_done <= tally.shards_planned:
                    raise BrokenPromiseError("P12: more shards are done than there are")
            return new

        sink.commit = watched  # type: ignore[method-assign]

    def _trouble(self) -> Callable[[Job, Sink], Awaitable[None]]:
        chance = self.chance
        kind = chance.choice(("none", "kill", "fail", "stop", "cancel"))
        when = chance.uniform(0, 1) ** 3 * 300
        at, before = chance.randrange(1, 12), chance.random() < 0.5

        async def trouble(job: Job, sink: Sink) -> None:
            if kind == "kill":
                breaking(sink, at, KilledError(), before=before)
            elif kind == "fail":
                breaking(sink, at, SinkError("memory:", "the disk is full", "Make room"), before=True)
            elif kind != "none":
                await anyio.sleep(when)
                self.to_end_at = anyio.current_time()
                if kind == "stop":
                    job.stop()
                else:
                    self.scope.cancel()

        self.log.append(f"trouble: {kind}")
        return trouble

    def truth_now(self) -> dict[str, Held]:
        """Every order's version now, by its id."""
        return dict(map(_held, self.world.bodies))

    def portfolio_truth(self) -> dict[str, Held]:
        """What the sink should hold in the end."""
        return self.truth_now()

    def held(self) -> dict[str, Held]:
        """What the sink holds: of each order the newest version, of equal times the last."""
        newest: dict[str, Held] = {}
        for id_, version, _ in self.versions():
            if id_ not in newest or newest[id_].updated <= version.updated:
                newest[id_] = version
        return newest

    def versions(self) -> list[tuple[str, Held, bytes]]:
        """Every version in the sink."""
        return self.keyed.versions() if self.keyed is not None else self.file.versions()

    def kept_aside(self) -> set[str]:
        """The keys of what is kept aside."""
        return self.keyed.kept_aside() if self.keyed is not None else self.file.kept_aside()

    def lacking(self, before: Mapping[str, Held]) -> list[str]:
        """The ids of orders of which the sink has neither this version nor a newer one."""
        held, now = self.held(), self.truth_now()
        whole = not self.faulty.condition(
            "bad-order"
        )  # or a spoiled one was kept as it came, and has been mended since
        return [
            id_
            for id_, version in before.items()
            if (known := held.get(id_)) is None
            or known.updated < version.updated
            or (whole and now[id_] == version != known)  # it has the right time, and says something else
        ]

    def check_complete(self, before: Mapping[str, Held]) -> None:
        """P1, after a run that says that it is complete."""
        for id_ in self.lacking(before):
            raise BrokenPromiseError(f"P1: order {id_} of {before[id_]}: the sink has {self.held().get(id_)}")
        if left := self.kept_aside():
            raise BrokenPromiseError(f"P7: complete, and orders are kept aside: {left}")

    def check_named(self, before: Mapping[str, Held], report: Report) -> None:
        """P7, after a run that is not complete: what is missing is what it names."""
        if not report.failed:
            raise BrokenPromiseError("P7: incomplete, and nothing is named")
        portfolios = {failure.portfolio for failure in report.failed if not failure.services}
        services = {service.lower() for failure in report.failed for service in failure.services}
        aside = self.kept_aside()
        for id_ in self.lacking(before):
            service = self.world.service_of(id_)
            named = id_ in aside or service in services or self.world.owner_of(service).name in portfolios
            if not named:
                raise BrokenPromiseError(f"P7: order {id_} is missing, and nothing that is named has it")

    def check_counts(self, report: Report) -> None:
        """P6 and P12, after a run that came to its end."""
        room = self.transport.room
        if room is not None and room.free != MOST_PAGES:
            raise BrokenPromiseError(f"P6: of {MOST_PAGES} places for pages {room.free} were given back")
        told, true = (report.orders, report.requests), (self.new, self.transport.traffic.sent)
        if told != true:
            raise BrokenPromiseError(f"P12: {told} orders and requests are told, of {true}")
        if any(not one.complete for one in report.portfolios.values()) == report.complete:
            raise BrokenPromiseError("P12: the whole is told to be other than its parts")

    def check_spending(self, config: Config, until: datetime) -> None:
        """P4, after a run that read everything: it sent what its world takes; where something failed, for that, too."""
        if self.platform.faults.condition("shared"):
            return  # which portfolio loads what is found out as they go
        traffic, faulty = self.transport.traffic, self.platform.faults != Faults()
        size = min(config.limits.page_size, traffic.smallest)  # in force
        portfolios = self.world.portfolios.values()
        inclusive = self.behaviour.inclusive
        allowed = [
            allowance(self.world, config, one, until=until, size=size, inclusive=inclusive) for one in portfolios
        ]
        most = sum(one.requests for one in allowed)
        if faulty:
            met = {
                "struck": sum(self.platform.stats.faults.values()) - self.struck,
                "changed": self.platform.stats.changes - self.changed,
                "unreadable": self.faulty.condition("bad-order") > 0,
            }
            most += sum(more_for_faults(one, traffic, size, **met) for one in allowed)
        else:
            self.spent += traffic.sent
            self.least += sum(one.least for one in allowed)
        if traffic.sent > most:
            raise BrokenPromiseError(f"P4: {traffic.sent} requests were sent, of {most}: {vars(traffic)}, {allowed}")

    def check_nothing_new(self, config: Config, since: datetime, until: datetime) -> None:
        """P4, after a run with nothing new: it sent what it takes to know that."""
        since -= timedelta(seconds=config.orders.settle_seconds + config.orders.overlap_seconds)
        portfolios = self.world.portfolios.values()
        most = sum(allowance_again(one, config, since=since, until=until) for one in portfolios)
        if (sent := self.transport.traffic.sent) > most:
            raise BrokenPromiseError(f"P4: {sent} requests were sent with nothing new, of {most}")

    def check_unknown(self, report: Report, lines: list[bytes], *, troubled: bool) -> None:
        """P10, where every order has a property that is not documented."""
        faults = self.platform.faults
        if not faults.condition("unknown"):
            return
        if not (faults.strikes or faults.conditions.keys() - {"unknown"} or troubled or report.complete):
            raise BrokenPromiseError(f"P10: a property that is not documented spoils the run: {report.failed}")
        for portfolio in report.portfolios.values():
            told = [name for name in portfolio.unknown_properties if name != "Was"]  # of an order that cannot be read
            if portfolio.orders and told != ["LoyaltyTier"]:
                raise BrokenPromiseError(f"P10: a property that is not documented is not told, or not once: {told}")
        if any(b'"LoyaltyTier":{"Name":"gold","Points":[1,2]}' not in line for line in lines):
            raise BrokenPromiseError("P10: a property that is not documented is lost")

    def check_secrets(self, job: Job, sink: Sink, report: Report | None) -> None:
        """P11: whatever the run showed of itself."""
        progress = self.keyed.progress if self.keyed is not None else sink.holdings().progress
        shown = "\n".join([*self.log, *self.said, *progress, *progress.values(), repr(report), repr(job.tallies)])
        for token in (self.world.client_token, *self.world.portfolios):
            if token[:20] in shown:
                raise BrokenPromiseError("P11: a token is shown")

    def check_always(self) -> None:
        """P2, P4, and that no request broke the contract."""
        last: dict[tuple[str, str], bytes] = {}
        for id_, version, content in self.versions():
            # From one content to another and back within a second: these are three versions.
            if last.get((id_, version.updated)) == content:
                raise BrokenPromiseError(f"P2: twice: {id_} {version}")
            last[id_, version.updated] = content
        stats = self.platform.stats
        if stats.against_contract_count:
            raise BrokenPromiseError(f"against the contract: {stats.against_contract}")
        throttled = sum(count.throttled for count in stats.portfolios.values())
        if not self.faulty.condition("others") and throttled > stats.faults.get("429", 0):
            raise BrokenPromiseError("P4: the platform refused a request that was one too many")


def _faults(chance: random.Random) -> Faults:
    strikes: dict[str, float] = {}
    if chance.random() < 0.7:
        kinds = chance.sample(sorted(STRIKES), chance.randrange(1, 6))
        share = chance.choice((0.02, 0.1, 0.3))
        strikes = {kind: share / len(kinds) for kind in kinds}
    conditions: dict[str, float] = {}
    options = {
        "changes": (0.2, 2.0),
        "late": (4.0,),
        "heavy-pages": (5, 30),
        "heavy-windows": (20, 60),
        "heavy-ids": (3, 10),
        "invalid-cursors": (1,),
        "bad-services": (1, 3),
        "bad-enterprises": (1,),
        "unknown": (1,),
        "others": (1.0,),
        "outage-after": (5, 40),
        "revoke": (10, 40),
        "forbid": (1,),
        "same-second": (1,),
        "bad-order": (0.02, 0.3),
        "capitals": (0.5, 1),
        "heavy-stalls": (5, 30),
        "clock-skew": (0.1, 0.5),
        "skew-first": (2, 3, 6),
        "retry-after": (3, 40, 1000),
    }
    often = ("changes", "late", "invalid-cursors", "same-second")
    for kind, numbers in options.items():
        if chance.random() < (0.5 if kind in often else 0.08):
            conditions[kind] = chance.choice(numbers)
    if chance.random() < 0.2:
        conditions["outage-seconds"] = chance.choice((3.0, 1000.0))
    if chance.random() < 0.2:
        conditions["outage-pause"] = chance.choice((60.0, 600.0))
    return Faults(strikes, conditions)


async def inline(function: Callable[..., T], *arguments: Any) -> T:
    """Like the sink's thread: what was begun is done, whoever is cancelled meanwhile, and others go on beside it."""
    try:
        return function(*arguments)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.002)


@lru_cache(4096)  # of one world: the same orders are looked at after every run
def _said(line: bytes) -> bytes:
    """A digest of what a line says, with properties that are not documented."""
    return version_of_line(line).content


@lru_cache(4096)
def _held(line: bytes) -> tuple[str, Held]:
    """An order's id, in small letters, and its version; properties that are not documented do not count."""
    order = json.loads(line)
    order.pop("LoyaltyTier", None)
    version = version_of_line(json.dumps(order).encode())
    return order["Id"].lower(), Held(normal_time(order["UpdatedUtc"]), version.content)


def simulate(seed: int, faults: Faults | None = None) -> Story:
    """Play one seed; `faults` instead of those that it draws.

    Raises:
        BrokenPromiseError: it found a bug.
    """
    shared = Path("/dev/shm")  # syncing costs nothing there
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        story = Story(seed, Path(folder), faults)
        try:
            with _listening(story.said):
                run_virtually(story.tell)
        except BaseException as error:
            found = _first(error)
            found.add_note(f"seed {seed}; replay with: python -m tests.simulation {seed}\n" + "\n".join(story.log))
            raise found from None
        return story


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Hear what this project logs, at every level, instead of anybody else."""
    logger = logging.getLogger("fetcher")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    first, last = int(sys.argv[1]), int(sys.argv[-1])
    spent = least = 0
    for seed in range(first, last + 1):
        with suppress(KeyboardInterrupt):
            story = simulate(seed)
            spent, least = spent + story.spent, least + story.least
    print("\n".join(story.log) if first == last else f"{last - first + 1} seeds held")
    print(f"where nothing went wrong, {spent} requests, of {least} at the least, read everything")
