"""A platform in memory, in virtual time: hours of a job take seconds, and every run is the same.

Time passes only while nobody has anything to do. Nothing may use threads or sockets meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply, TransportError, brings_page
from fetcher.simulator.platform import SimulatedPlatform
from fetcher.simulator.server import Latency

T = TypeVar("T")

MOMENT = 1e-9
"""Every turn of the loop takes as long: whoever is woken a rounding error early must not find the same time again."""


class _Selector(selectors.SelectSelector):
    """Instead of waiting for a timer, moves the clock there."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else: nothing will ever happen again")
        self.loop.passed += timeout + MOMENT
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 1000 seconds. Nothing in it may use threads or sockets."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.passed = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.passed


def run_virtually(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run a coroutine function to its end in virtual time."""
    return anyio.run(function, *arguments, backend_options={"loop_factory": VirtualLoop})


class MemoryTransport:
    """Carries requests to a platform in memory, for `Job(transport=...)`; what takes time is the way there and back.

    Args:
        platform: answers.
        latency: of a request and its answer, together.
        chance: draws it.
        began: the platform's time when the loop's was 0, in seconds since 1970.
        seconds: how long an answer is waited for.
        body_share: how long a page takes to arrive once its answer began, as a share of another latency.
    """

    def __init__(
        self,
        platform: SimulatedPlatform,
        latency: Latency,
        chance: random.Random,
        *,
        began: float,
        seconds: float = 60.0,
        body_share: float = 0.0,
    ) -> None:
        self.platform = platform
        self.began = began
        """Later, if time is to have passed between two runs."""
        self._latency = latency
        self._chance = chance
        self._seconds = seconds
        self._body_share = body_share

    def now(self) -> float:
        """The platform's time, in seconds since 1970."""
        return self.began + anyio.current_time()

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        """See `Transport.post`."""
        delay = self._latency.draw(self._chance)
        await anyio.sleep(delay / 2)
        headers = {"Content-Type": "application/json", "Prefer": "return=minimal"}
        response = self.platform.handle(path, headers, body, self.now())
        if response.delivery == "stall" or delay > self._seconds:
            await anyio.sleep(self._seconds)
            raise TransportError("timeout", "no answer")
        await anyio.sleep(delay / 2)
        if response.delivery in ("lost", "reset"):
            raise TransportError("broken", "the connection broke")
        heard(response.status, response.headers)
        page = lease if brings_page(response.status) else None
        if page is not None and self._body_share:
            await anyio.sleep(self._latency.draw(self._chance) * self._body_share)
        if response.delivery != "whole":
            raise TransportError("broken", "the connection broke")
        if response.headers.get("Content-Encoding") == "gzip":  # a platform in memory compresses only what is damaged
            raise TransportError("corrupt", "gzip")
        if page is not None:
            await page.acquire()
        return Reply(response.status, response.headers, response.body)
