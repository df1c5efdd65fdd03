"""A run of several processes: the same rows, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socketpair
from typing import NoReturn

import anyio
import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import fetcher
import fetcher.processes.supervisor
from fetcher.config import Config, from_wire, make_config, parse_instant, resolved, to_wire
from fetcher.errors import SinkError
from fetcher.job import Job
from fetcher.loading.claims import Claimed, FirstCome
from fetcher.processes.channel import Channel, _Memory
from fetcher.processes.dealing import deal
from fetcher.processes.local import LocalLoader, command
from fetcher.processes.messages import Claim, End, Granted, Load, Message, Parcel, Settle
from fetcher.processes.supervisor import Crew, _Member, processes_for
from fetcher.processes.worker import RemoteClaims, Worker
from fetcher.simulator import Latency, parse_faults
from fetcher.sinks import Batch, EncodedPage, make_sink
from fetcher.sinks.writer import Writer
from tests.held import contents, held, rows, twice
from tests.http import SMALL, Site, site
from tests.sinks.test_sinks import order, page


def config_of(tokens: list[str], **limits: object) -> Config:
    return make_config(
        {
            "platform": {"address": "http://127.0.0.1:1", "client_token": "C"},
            "portfolios": [{"name": f"p{number}", "access_token": token} for number, token in enumerate(tokens)],
            "orders": {"updated_from": parse_instant("2024-01-01", "")},
            "sink": {"url": "null:"},
            "limits": limits,
        }
    )


def ids_in(path: Path) -> list[str]:
    if path.suffix == ".jsonl":
        return [json.loads(line)["Id"] for line in path.read_bytes().splitlines()]
    if path.suffix == ".duckdb":
        with duckdb.connect(path, read_only=True) as db:
            return [id_ for (id_,) in db.execute("SELECT id::varchar FROM product_service_orders").fetchall()]
    return pq.read_table(path, columns=["id"])["id"].to_pylist()


@given(tokens=st.lists(st.sampled_from("ABCDEFGH"), min_size=1, max_size=20), processes=st.integers(1, 9))
def test_each_token_is_one_process_s_and_no_process_has_none(tokens: list[str], processes: int) -> None:
    config = config_of(tokens)
    hands = deal(config, processes)
    assert len(hands) == min(processes, len(set(tokens)))
    dealt = [portfolio for hand in hands for portfolio in hand.portfolios]
    assert sorted(portfolio.name for portfolio in dealt) == sorted(portfolio.name for portfolio in config.portfolios)
    seen = [{portfolio.access_token.resolve("").reveal() for portfolio in hand.portfolios} for hand in hands]
    assert all(seen)
    assert sum(map(len, seen)) == len(set(tokens))
    opens = sum(hand.limits.opens_per_second for hand in hands)
    assert opens == pytest.approx(config.limits.opens_per_second)


def test_there_are_as_many_processes_as_the_limits_keep_busy() -> None:
    few, many = list("ABC"), [f"T{number}" for number in range(400)]
    assert processes_for(config_of(few)) == 1  # 20 thousand orders a second at most
    assert processes_for(config_of(few, processes=2)) == 2
    assert processes_for(config_of(few, processes=8)) == 3
    assert processes_for(config_of(["A"], requests=100_000)) == 1
    assert processes_for(config_of(many, processes=1)) == 1
    cores = processes_for(config_of(many, requests=100_000))
    assert processes_for(config_of(many)) == min(cores, 27)  # 2.7 million orders a second


def test_messages_arrive_whole_and_in_order_and_pages_stay_as_they_came() -> None:
    async def check() -> None:
        ours, other = map(Channel, socketpair())
        encode = make_sink("jsonl:none.jsonl").encode
        sizes = [number * 7919 % 900 for number in range(150)]  # orders of a page; about 600 bytes each
        pages = [encode(page([order(at, "2024-01-01T00:00:00Z") for at in range(size)])) for size in sizes]

        async def send() -> None:
            for number, one in enumerate(pages):
                await other.send(Parcel(f"p{number}", one, {"a": None, "b": str(number)}))
            await other.send(End())
            other.close()

        kept: dict[int, EncodedPage] = {}
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            for number in range(len(pages)):
                message = await ours.receive()
                assert isinstance(message, Parcel)
                assert (message.portfolio, message.changes) == (f"p{number}", {"a": None, "b": str(number)})
                assert message.page is not None
                kept[number] = message.page
                if number >= 5 and number % 3:  # most are let go, and their memory is used again; a third stays
                    del kept[number - 5]
            assert await ours.receive() == End()
            assert await ours.receive() is None
        ours.close()
        assert len(kept) > 50
        for number, one in kept.items():
            assert bytes(one.payload.text) == bytes(pages[number].payload.text)
            assert (one.rows, one.payload.versions) == (sizes[number], pages[number].payload.versions)

    anyio.run(check)


def test_memory_for_messages_follows_what_is_in_use() -> None:
    memory = _Memory()
    for _ in range(5000):  # pages of an order or two
        assert len(memory.take(700)) == 700
    assert not memory._buffers
    in_use: deque[memoryview] = deque(maxlen=20)
    for number in range(600):
        in_use.append(memory.take(16_000_000 if number % 41 == 0 else 700_000 + number))
    assert len(memory._buffers) <= 21
    assert sum(map(len, memory._buffers)) < 20 * 900_000 + 20_000_000
    in_use.append(memory.take(700_000))
    assert sum(len(buffer) > 10_000_000 for buffer in memory._buffers) <= 1


def test_what_a_worker_sends_is_whole_even_if_the_sender_is_cancelled() -> None:
    async def check() -> None:
        ours, other = map(Channel, socketpair())
        worker = Worker(other, _gone)
        ids = [f"{number:036}" for number in range(200_000)]  # more than the system holds on the way
        async with anyio.create_task_group() as group:
            group.start_soon(worker._send, Claim("p", ids))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert await ours.receive() == Claim("p", ids)
        await worker._send(End())
        assert await ours.receive() == End()
        ours.close()
        other.close()

    anyio.run(check)


def test_a_configuration_arrives_as_it_was_sent_and_shows_its_tokens_to_nobody_else() -> None:
    config = config_of(["A-token", "B-token"], outage_minutes=float("inf"), processes=2)
    sent = resolved(config)
    arrived = from_wire(to_wire(sent))
    assert arrived.limits == config.limits
    assert [one.access_token.resolve("").reveal() for one in arrived.portfolios] == ["A-token", "B-token"]
    assert structs.replace(arrived, portfolios=[], platform=config.platform) == structs.replace(config, portfolios=[])
    load = Load(to_wire(sent), None)
    assert "-token" not in f"{load!r}{load}{sent!r}{arrived!r}"


def test_each_portfolio_gets_the_answer_to_what_it_asked_however_late() -> None:
    async def check() -> None:
        sent: list[Claim | Settle] = []

        async def send(message: Message) -> None:
            await asyncio.sleep(0)
            assert isinstance(message, Claim | Settle)
            sent.append(message)

        claims, first_come = RemoteClaims(send), FirstCome()
        granted: dict[str, Claimed] = {}

        async def claim(name: str) -> None:
            granted[name] = await claims.claim(name, [name, "both"])

        async def settle(name: str, refused: list[str]) -> None:
            granted[name] = await claims.settle(name, refused, refused)

        async def answer(message: Claim | Settle) -> None:
            if isinstance(message, Claim):
                claimed = await first_come.claim(message.portfolio, message.service_ids)
            else:
                claimed = await first_come.settle(message.portfolio, message.refused, message.begun)
            claims.granted(Granted(message.portfolio, claimed))

        async def answered() -> None:
            while sent:
                group.start_soon(answer, sent.pop(0))
                await asyncio.sleep(0)

        async with anyio.create_task_group() as group:
            for name in "ab":
                group.start_soon(claim, name)
            await asyncio.sleep(0.01)
            await answered()
            await asyncio.sleep(0.01)
            assert granted == {"a": {"a": False, "both": False}, "b": {"b": False}}
            granted.clear()
            group.start_soon(settle, "b", [])
            await asyncio.sleep(0.01)
            await answered()
            assert granted == {}  # a may give something back
            group.start_soon(settle, "a", ["both"])
            await asyncio.sleep(0.01)
            await answered()
            await asyncio.sleep(0.01)
            assert granted == {"a": {}, "b": {"both": True}}

    anyio.run(check)


def _gone() -> NoReturn:
    raise AssertionError("the run is there")


def process_of(member: _Member) -> Process:
    assert isinstance(member.loader, LocalLoader)
    return member.loader.process


WIDE = structs.replace(SMALL, portfolios=4, enterprises=9)


@pytest.mark.parametrize("url", ["jsonl:o.jsonl", "parquet:o", "duckdb:o.duckdb"])
def test_the_rows_are_those_of_a_run_of_one_process(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with site(WIDE, faults=parse_faults("unknown=1")) as here:
            with caplog.at_level(logging.INFO):
                report = await fetcher.run(here.config(url, processes=3))
            assert (report.complete, report.failed, report.orders) == (True, [], len(here.truth()))
            assert report.throttled == here.platform.stats.against_contract_count == 0
            assert sorted(ids_in(Path(url.partition(":")[2]))) == sorted(here.truth())
            assert {name: one.orders for name, one in report.portfolios.items()} == {
                owner.name: sum(1 for _ in here.platform.world.truth(owner.name))
                for owner in here.platform.world.portfolios.values()
            }
            assert "3 processes load 4 portfolios" in caplog.text
            assert "orders have a property 'LoyaltyTier'" in caplog.text  # what workers log is logged here
            again = await fetcher.run(here.config(url))
            assert (again.complete, again.orders) == (True, 0)
            assert again.pages < report.pages

    monkeypatch.chdir(tmp_path)
    anyio.run(check)


@asynccontextmanager
async def half_done(here: Site, url: str) -> AsyncIterator[tuple[Job, Crew]]:
    """A job of two processes, and its crew, to be done something to when a part is loaded."""
    config = here.config(url, processes=2, walks=2, page_size=10)
    async with Job(config, sink=make_sink(url), processes=2) as job:
        assert job._crew is not None
        yield job, job._crew


async def loaded(job: Job, orders: int) -> None:
    while sum(tally.orders for tally in job.tallies) < orders:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["jsonl", "duckdb", "postgresql"])
def test_what_a_process_had_that_is_killed_goes_on_in_another(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        url = {"jsonl": f"jsonl:{tmp_path / 'o.jsonl'}", "duckdb": f"duckdb:{tmp_path / 'o.duckdb'}"}.get(kind)
        url = url or request.getfixturevalue("schema_url")
        async with site(WIDE, latency=Latency(0.02)) as here:
            async with half_done(here, url) as (job, crew):

                async def kill() -> None:
                    await loaded(job, 50)
                    process_of(crew._members[1]).kill()

                async with anyio.create_task_group() as group:
                    group.start_soon(kill)
                    report = await job.run()
            assert "was killed by signal 9: what it loaded" in caplog.text
            assert report.failed == []
            assert report.complete
            assert not twice(rows(url), keyed=kind != "jsonl")
            assert held(url) == contents(here.platform.world.bodies)
            assert len(here.truth()) - 200 < report.orders <= len(here.truth())
            again = await fetcher.run(here.config(url))
            assert (again.complete, again.orders) == (True, 0)

    anyio.run(check)


def test_a_portfolio_that_ends_every_process_is_given_up_and_named_and_the_next_run_takes_it_up(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        url = f"jsonl:{tmp_path / 'o.jsonl'}"
        async with site(WIDE, latency=Latency(0.02)) as here:
            async with half_done(here, url) as (job, crew):

                async def kill_all() -> None:
                    await loaded(job, 50)
                    while True:
                        for member in list(crew._members.values()):
                            member.loader.kill()
                        await asyncio.sleep(0.1)

                async with anyio.create_task_group() as group:
                    group.start_soon(kill_all)
                    report = await job.run()
                    group.cancel_scope.cancel()
            failed = {failure.portfolio: failure.error for failure in report.failed}
            assert failed
            assert all("was killed by signal 9, and so did those before" in error for error in failed.values())
            assert all("run again" in error for error in failed.values())
            assert all(one.complete for name, one in report.portfolios.items() if name not in failed)
            assert (await fetcher.run(here.config(url))).complete
            assert sorted(ids_in(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)


def test_stopping_commits_what_is_in_hand(tmp_path: Path) -> None:
    async def check() -> None:
        url = f"jsonl:{tmp_path / 'o.jsonl'}"
        async with site(WIDE) as here:
            async with half_done(here, url) as (job, _):

                async def stop() -> None:
                    await loaded(job, 50)
                    job.stop()

                async with anyio.create_task_group() as group:
                    group.start_soon(stop)
                    report = await job.run()
            assert report.interrupted
            assert report.failed == []
            assert 50 <= report.orders == len(ids_in(tmp_path / "o.jsonl")) <= len(here.truth())
            assert (await fetcher.run(here.config(url))).complete
            assert sorted(ids_in(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)


def test_stopping_keeps_what_a_worker_sent_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker ends when all that it sent was taken: then it is in the batch that is committed last, and only there.
    monkeypatch.setattr(Writer, "FIRST_SECONDS", 60.0)

    async def check() -> None:
        url = f"jsonl:{tmp_path / 'o.jsonl'}"
        async with site(WIDE) as here:
            sink = make_sink(url)
            commit, stopped = sink.commit, threading.Event()

            def late(batch: Batch) -> Mapping[str, int]:
                assert stopped.wait(60)
                return commit(batch)

            sink.commit = late  # type: ignore[method-assign]
            async with Job(here.config(url, page_size=1000), sink=sink, processes=2) as job:
                assert job._crew is not None

                async def stop(crew: Crew) -> None:
                    for member in crew._members.values():
                        await process_of(member).wait()
                    job.stop()
                    await asyncio.sleep(0)
                    stopped.set()

                async with anyio.create_task_group() as group:
                    group.start_soon(stop, job._crew)
                    report = await job.run()
            assert report.failed == []
            assert report.orders == len(ids_in(tmp_path / "o.jsonl")) == len(here.truth())

    anyio.run(check)


def test_a_worker_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        url = f"jsonl:{tmp_path / 'o.jsonl'}"
        async with site(WIDE) as here:
            before = await fetcher.run(here.config(url, processes=1))
            async with half_done(here, url) as (job, crew):
                for member in crew._members.values():
                    process_of(member).send_signal(signal.SIGSTOP)
                job.stop()
                report = await job.run()
            assert report.interrupted
            assert report.failed == []
            assert report.watermark == before.watermark  # as the sink has it
            assert {tally.phase for tally in job.tallies} == {"stopped"}

    monkeypatch.setattr(fetcher.processes.supervisor, "STOP_SECONDS", 0.2)
    anyio.run(check)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.6, 0.8])
def test_cancelling_leaves_no_process_behind(seconds: float, tmp_path: Path) -> None:
    async def check() -> None:
        url = f"jsonl:{tmp_path / 'o.jsonl'}"
        async with site(WIDE) as here:
            job = Job(here.config(url, page_size=10, walks=2), sink=make_sink(url), processes=2)
            assert job._crew is not None
            with anyio.move_on_after(seconds):
                async with job:
                    await job.run()
            assert seconds < 0.05 or len(job._crew._members) == 2
            for member in job._crew._members.values():
                assert process_of(member).returncode is not None
            assert (await fetcher.run(here.config(url))).complete
            assert sorted(ids_in(tmp_path / "o.jsonl")) == sorted(here.truth())

    anyio.run(check)


def test_a_sink_that_fails_is_what_is_told(tmp_path: Path) -> None:
    async def check() -> None:
        url = f"jsonl:{tmp_path / 'o.jsonl'}"
        async with site(WIDE) as here:

            def fail(_batch: Batch) -> dict[str, int]:
                raise SinkError(url, "the disk is full", "Make room")

            sink = make_sink(url)
            sink.commit = fail  # type: ignore[method-assign]
            job = Job(here.config(url), sink=sink, processes=2)
            with pytest.raises(SinkError, match="disk is full"):
                async with job:
                    await job.run()
            assert job._crew is not None
            assert all(process_of(member).returncode is not None for member in job._crew._members.values())

    anyio.run(check)


def command_lines(crew: Crew) -> bytes:
    lines: list[bytes] = []
    for member in crew._members.values():
        while not (line := Path(f"/proc/{process_of(member).pid}/cmdline").read_bytes()):
            pass  # its program is being loaded
        lines.append(line)
    return b"".join(lines)


def test_workers_are_told_their_tokens_where_nobody_else_reads(tmp_path: Path) -> None:
    async def check() -> None:
        async with site(WIDE) as here, half_done(here, f"jsonl:{tmp_path / 'o.jsonl'}") as (job, crew):
            seen = command_lines(crew)
            await job.run()
        assert seen.count(b"fetcher.processes.worker") == 2
        assert not any(token.encode() in seen for token in here.platform.world.portfolios)

    anyio.run(check)


def test_a_worker_leaves_signals_to_the_run_and_ends_when_that_is_gone() -> None:
    ours, theirs = socketpair()
    with theirs:
        worker = subprocess.Popen(command(theirs.fileno()), pass_fds=[theirs.fileno()])
    with ours:
        ignored = 0
        while not ignored & 1 << (signal.SIGTERM - 1):
            status = Path(f"/proc/{worker.pid}/status").read_text()
            ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(1)
    assert worker.wait(30) == 0


def test_workers_take_no_module_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with site(WIDE) as here:
            assert (await fetcher.run(here.config("null:", processes=2))).complete

    for name in ("platform", "signal", "json", "uuid"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    anyio.run(check)


def test_what_other_processes_cannot_have_is_refused() -> None:
    config = config_of(["A", "B"])
    for options in ({"processes": 0}, {"processes": 2, "chance": random.Random(1)}):
        with pytest.raises(ValueError, match="process"):
            Job(config, **options)
