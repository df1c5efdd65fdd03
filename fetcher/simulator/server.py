"""The simulated platform as an HTTP server on this machine, and as a process of its own.

Beside the platform's own paths it has four of the simulator's, for tests and demonstrations:

    GET  /simulator/truth?portfolio=NAME    each order's portfolio, id and UpdatedUtc, one a line, tab-separated
    GET  /simulator/orders                  each order's portfolio and JSON, likewise
    GET  /simulator/stats                   what it has seen so far, as JSON
    POST /simulator/faults                  new faults, as `--faults` takes them
"""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from fetcher.simulator.answers import Response
from fetcher.simulator.faults import parse_faults
from fetcher.simulator.platform import SimulatedPlatform

try:
    from isal import igzip as _gzip  # the `speed` extra
except ImportError:
    _gzip: Any = gzip

_ROOT = "/api/connector/v1/"
_STALL_SECONDS = 300.0


class Latency(msgspec.Struct, frozen=True):
    """How long a request and its answer take on their ways together, in seconds.

    `jitter` 0 is always `seconds`; 1 is anything from 0 to twice that. `spread` stretches it as networks do, seldom and
    far: by a lognormal factor whose mean is 1, and whose logarithm has this standard deviation; 0: not at all.
    """

    seconds: float = 0.0
    jitter: float = 0.0
    spread: float = 0.0

    def draw(self, chance: random.Random) -> float:
        """The latency of one request, in seconds."""
        drawn = self.seconds * (1 + self.jitter * chance.uniform(-1, 1))
        return drawn * chance.lognormvariate(-(self.spread**2) / 2, self.spread) if self.spread else drawn


class SimulatorServer:
    """Serves one platform over HTTP.

    Args:
        platform: what answers.
        latency: of every request.
        compress: whether answers are compressed for those who accept gzip.
        clock: the platform's time, in seconds since 1970.
    """

    def __init__(
        self,
        platform: SimulatedPlatform,
        *,
        latency: Latency | None = None,
        compress: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.platform = platform
        self._latency = latency or Latency()
        self._compress = compress
        self._clock = clock
        self._chance = random.Random(0)

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncGenerator[str]:
        """Listen on a loopback port (0: any) within an `async with`; gives the address."""
        server = web.Server(self._handle, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/simulator/"):
            return await self._control(request)
        if request.method != "POST":
            return web.Response(status=405, text="Method not allowed")
        body = await request.read()
        delay = self._latency.draw(self._chance)
        if delay:
            await asyncio.sleep(delay / 2)
        path = request.path.removeprefix(_ROOT) if request.path.startswith(_ROOT) else ""
        response = self.platform.handle(path, request.headers, body, self._clock())
        if delay:
            await asyncio.sleep(delay / 2)
        return await self._deliver(request, response)

    async def _deliver(self, request: web.BaseRequest, response: Response) -> web.StreamResponse:
        if response.delivery in ("reset", "lost"):
            return _cut(request)
        if response.delivery == "stall":
            await asyncio.sleep(_STALL_SECONDS)
            return _cut(request)
        if response.delivery in ("truncated", "endless"):
            return await self._stream(request, response)
        body, headers = response.body, response.headers
        accepts = "gzip" in request.headers.get("Accept-Encoding", "")
        if self._compress and accepts and len(body) > 500 and "Content-Encoding" not in headers:
            body = _gzip.compress(body, 1)
            headers = {**headers, "Content-Encoding": "gzip"}
        return web.Response(status=response.status, headers=headers, body=body)

    async def _stream(self, request: web.BaseRequest, response: Response) -> web.StreamResponse:
        """Half of a body whose whole length was announced, or a body without an end."""
        stream = web.StreamResponse(status=response.status, headers=response.headers)
        if response.delivery == "truncated":
            stream.content_length = len(response.body)
            await stream.prepare(request)
            await stream.write(response.body[: len(response.body) // 2])
            return _cut(request)
        await stream.prepare(request)
        try:
            await stream.write(response.body)
            while True:
                await stream.write(b" " * 65536)
        except (ConnectionError, OSError):
            return stream

    async def _control(self, request: web.BaseRequest) -> web.StreamResponse:
        platform = self.platform
        if request.path == "/simulator/stats":
            return web.Response(body=msgspec.json.encode(platform.stats), content_type="application/json")
        if request.path == "/simulator/truth":
            name = request.query.get("portfolio")
            owners = [owner.name for owner in platform.world.portfolios.values() if name in (None, owner.name)]
            lines = [f"{owner}\t{id_}\t{updated}" for owner in owners for id_, updated in platform.world.truth(owner)]
            return web.Response(text="\n".join(lines))
        if request.path == "/simulator/orders":
            owners = [owner.name for owner in platform.world.portfolios.values()]
            lines = [b"%b\t%b" % (owner.encode(), body) for owner in owners for body in platform.world.orders(owner)]
            return web.Response(body=b"\n".join(lines))
        if request.path == "/simulator/faults" and request.method == "POST":
            try:
                platform.faults = parse_faults(await request.text())
            except ValueError as error:
                return web.Response(status=400, text=str(error))
            return web.Response(text="ok")
        return web.Response(status=404, text="Not found")


def _cut(request: web.BaseRequest) -> web.StreamResponse:
    """Break the connection off, as a network does."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
