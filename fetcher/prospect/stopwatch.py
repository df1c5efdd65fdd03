"""How long the platform takes to answer, by the answers that somebody asks for anyway."""

from __future__ import annotations

import asyncio
from statistics import median

from fetcher.connector.client import Platform
from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply, Transport


class Stopwatch:
    """A transport that takes the time of another one's good answers.

    Args:
        transport: what carries the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._seconds: list[float] = []

    @classmethod
    def on(cls, platform: Platform) -> Stopwatch:
        """One that takes the time of whatever is asked of the platform from now on."""
        stopwatch = cls(platform.transport)
        platform.transport = stopwatch
        return stopwatch

    @property
    def answer_seconds(self) -> float | None:
        """What an answer takes, from its request on: the middle one of all; `None`: there was none yet."""
        return median(self._seconds) if self._seconds else None

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        """See `Transport.post`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await self._transport.post(path, body, heard, lease)
        if reply.status == 200:
            self._seconds.append(loop.time() - began)
        return reply
