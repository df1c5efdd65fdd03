"""`fetcher check` and `fetcher plan`: they try what a run needs, and end within seconds whatever is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec import structs

from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply
from fetcher.job import Job
from fetcher.prospect.check import Check
from fetcher.prospect.patience import DEADLINE_SECONDS
from fetcher.prospect.plan import PortfolioPlan
from fetcher.simulator import Behaviour, Size, parse_faults
from fetcher.simulator.answers import Response
from fetcher.sinks import Batch, EncodedPage, Holdings, Page, Progress, Sink, make_sink
from tests.http import Site, site
from tests.virtual import run_virtually

SIZE = Size(portfolios=3, enterprises=5, services=40, orders=300, years=0.4)


async def check(here: Site, sink: Sink | None = None) -> list[Check]:
    async with Job(here.config(), sink=sink, hurried=True) as job:
        return await job.check()


async def plans(here: Site) -> list[PortfolioPlan]:
    async with Job(here.config(), hurried=True) as job:
        return await job.plan()


def test_all_is_well_where_all_is_well(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(SIZE) as here:
            lines = await check(here, make_sink(f"jsonl:{tmp_path / 'o.jsonl'}"))
            assert [line.ok for line in lines] == [True] * 4
            assert [line.what.partition(" ")[0] for line in lines] == ["sink", "portfolio", "portfolio", "portfolio"]
            assert all("orders can be read" in line.message for line in lines[1:])
            assert not any(tmp_path.iterdir())  # noqa: ASYNC240 a folder of nothing
            # Enterprises, services, and one order, of each portfolio; nothing against the contract. The second has a
            # hotel without services, for which it asks by its id.
            assert [count.requests for count in here.platform.stats.portfolios.values()] == [3, 4, 3]
            assert here.platform.stats.against_contract == []

    anyio.run(scenario)


@pytest.mark.parametrize("faults", ["forbid=1", "forbid-enterprises=9"])
def test_the_operation_itself_is_tried(faults: str) -> None:
    async def scenario() -> None:
        async with site(SIZE, faults=parse_faults(faults)) as here:
            lines = await check(here)
            assert [line.ok for line in lines] == [False, True, True]
            assert "orders of each of 4 services that were tried cannot be read" in lines[0].message
            assert "403" in lines[0].message
            assert "Check the portfolio's access_token" in lines[0].message

    anyio.run(scenario)


def test_a_service_that_is_refused_is_named_and_another_one_tried() -> None:
    async def scenario() -> None:
        async with site(SIZE) as here:
            handle, refused = here.platform.handle, list[bytes]()

            def first_one_refused(path: str, headers: Any, body: bytes, now: float) -> Response:
                response = handle(path, headers, body, now)
                if path == "productServiceOrders/getAll" and not refused:
                    refused.append(body)
                    return structs.replace(response, status=400, body=b'{"Message":"Invalid ServiceIds"}')
                return response

            here.platform.handle = first_one_refused  # type: ignore[method-assign]
            lines = await check(here)
            assert [line.ok for line in lines].count(False) == 1
            wrong = next(line for line in lines if not line.ok)
            assert "service " in wrong.message
            assert "Invalid ServiceIds" in wrong.message
            assert sum("orders can be read" in line.message for line in lines if line.ok) == 3

    anyio.run(scenario)


def test_check_plan_and_run_agree_that_nothing_is_nothing() -> None:
    async def scenario() -> None:
        async with site(SIZE) as here:
            first = next(iter(here.platform.world.portfolios.values()))
            first.enterprises.clear()
            lines = await check(here)
            assert [line.ok for line in lines] == [False, True, True]
            assert "sees no enterprise" in lines[0].message
            planned = await plans(here)
            assert [bool(one.failed) for one in planned] == [True, False, False]
            report = await here.run()
            assert not report.complete
            assert [failure.error for failure in report.failed] == [lines[0].message] == list(planned[0].failed)

    anyio.run(scenario)


def test_a_plan_goes_on_from_what_was_loaded_of_the_same_states_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site() as here:
            url = f"jsonl:{tmp_path / 'o.jsonl'}"
            assert (await here.run(url)).complete
            config = here.config(url)
            confirmed = msgspec.structs.replace(
                config, orders=msgspec.structs.replace(config.orders, states=["Confirmed"])
            )
            for settings, whole in ((config, True), (confirmed, False)):
                async with Job(settings, sink=make_sink(url), hurried=True) as job:
                    planned = await job.plan()
                assert [one.resumes_from is not None for one in planned] == [whole] * len(planned)

    anyio.run(scenario)


@pytest.mark.parametrize(
    ("name", "basis"), [("duckdb:o", "rows by enterprise and month"), ("jsonl:o", "rows of the portfolio")]
)
def test_a_plan_tells_how_many_orders_there_are_by_what_the_sink_holds(tmp_path: Path, name: str, basis: str) -> None:
    async def scenario() -> None:
        async with site() as here:
            url = name.replace(":", f":{tmp_path}/")
            assert (await here.run(url)).complete
            for full, share in ((True, 1.0), (False, 0.0)):
                async with Job(here.config(url), sink=make_sink(url), hurried=True, full=full) as job:
                    planned = await job.plan()
                assert {one.basis for one in planned} == {basis}
                orders = sum(one.orders or 0 for one in planned)
                assert orders == pytest.approx(share * len(here.truth()), abs=0.05 * len(here.truth()))

    anyio.run(scenario)


def test_one_portfolio_s_failure_does_not_end_the_plan_of_the_others() -> None:
    async def scenario() -> None:
        async with site(SIZE, faults=parse_faults("revoke=0")) as here:
            planned = await plans(here)
            assert [one.portfolio for one in planned] == ["portfolio-1", "portfolio-2", "portfolio-3"]
            assert [bool(one.failed) for one in planned] == [True, False, False]
            assert "401" in planned[0].failed[0]
            assert planned[1].services > 0

    anyio.run(scenario)


def test_a_token_that_is_used_up_is_told_and_the_others_are_checked() -> None:
    class Busy:
        """A platform that has the first token wait for ten minutes."""

        async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
            headers = {"Date": "Tue, 24 Nov 2026 10:00:00 GMT", "Retry-After": "600"}
            status = 429 if b'"A0"' in body else 200
            heard(status, headers)
            text = b'{"Enterprises":[],"Services":[],"ProductServiceOrders":[],"Cursor":null}'
            return Reply(status, headers, text if status == 200 else b"")

    async def scenario() -> list[Check]:
        config = CONFIG(address="http://127.0.0.1:1")
        async with Job(config, transport=Busy(), offload=inline, hurried=True) as job:
            began = anyio.current_time()
            lines = await job.check()
            assert anyio.current_time() - began <= DEADLINE_SECONDS + 0.1
            return lines

    lines = run_virtually(scenario)
    assert "paused by the platform" in lines[0].message or "600" in lines[0].message or "429" in lines[0].message
    assert "sees no enterprise" in lines[1].message


def CONFIG(address: str, portfolios: int = 3) -> Any:  # noqa: N802 it stands for a constant
    from fetcher.config import make_config

    return make_config(
        {
            "platform": {"address": address, "client_token": "C"},
            "portfolios": [{"name": f"p{number}", "access_token": f"A{number}"} for number in range(portfolios)],
            "orders": {"updated_from": "2024-01-01T00:00:00Z"},
        }
    )


async def inline(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def test_a_sink_that_never_answers_is_told_and_the_portfolios_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetcher.prospect.patience.DEADLINE_SECONDS", 0.7)
    ended = threading.Event()

    class Silent(Sink):
        batch_rows = 1

        def probe(self) -> None:
            ended.wait(30)

        def open(self) -> Progress:
            raise NotImplementedError

        def encode(self, page: Page) -> EncodedPage:
            raise NotImplementedError

        def commit(self, batch: Batch) -> dict[str, int]:
            raise NotImplementedError

        def holdings(self) -> Holdings:
            raise NotImplementedError

        def close(self) -> None:
            raise NotImplementedError

    async def scenario() -> None:
        async with site(SIZE) as here:
            lines = await check(here, Silent("silent:"))
            assert [line.ok for line in lines] == [False, True, True, True]
            assert "did not answer within" in lines[0].message

    anyio.run(scenario)
    ended.set()


@contextmanager
def silent_host() -> Iterator[str]:
    """Takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    yield address


@contextmanager
def deaf_host() -> Iterator[str]:
    """Lets nobody in: the queue of connections is full, as if a firewall dropped them."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(address)
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for one in filling:
                one.close()


@contextmanager
def another_program() -> Iterator[str]:
    """Answers, and is no platform."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("command", "host"),
    [
        ("check", closed_port),
        ("check", silent_host),
        ("check", deaf_host),
        ("check", another_program),
        ("plan", closed_port),
        ("plan", silent_host),
    ],
)
def test_a_host_that_is_no_platform_is_told_within_15_seconds(command: str, host: Any, tmp_path: Path) -> None:
    with host() as address:
        portfolios = "".join(f'[[portfolios]]\nname = "p{n}"\naccess_token = "SECRET-{n}"\n' for n in range(3))
        (tmp_path / "config.toml").write_text(
            f'[platform]\naddress = "{address}"\nclient_token = "SECRET-C"\n{portfolios}'
            '[orders]\nupdated_from = 2024-01-01T00:00:00Z\n[sink]\nurl = "jsonl:o.jsonl"\n'
        )
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fetcher", command],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        took = time.monotonic() - began
    assert took < 15, done.stdout
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "SECRET" not in done.stdout + done.stderr
    mark = "FAIL  portfolio" if command == "check" else "failed:"
    lines = [line for line in done.stdout.splitlines() if line.startswith(mark)]
    assert [f"p{number}: " in line for number, line in enumerate(lines)] == [True] * 3
    assert all("platform.address" in line for line in lines)
    if command == "check":
        assert done.stdout.count("ok  sink") == 1 or "ok    sink" in done.stdout


def test_a_budget_that_another_run_has_used_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetcher.prospect.patience.DEADLINE_SECONDS", 1.0)

    async def scenario() -> None:
        async with site(SIZE, behaviour=Behaviour(requests=2, per_seconds=30)) as here:
            config = here.config(requests=2, per_seconds=30)
            async with Job(config, hurried=True) as job:
                lines = await job.check()
            assert [line.ok for line in lines] == [False] * 3
            assert all("used up" in line.message for line in lines)

    anyio.run(scenario)
