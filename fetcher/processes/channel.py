"""What the processes of one run tell each other, and the socket over which they do.

    the run ─▶ worker      Start, then Opened, Granted for each Claim and each Settle, and Stop
    worker ─▶ the run      Claim, Settle, Leave, Parcel, Told, and at last End

Messages are pickled, since both ends are this program. What is large in them (a page's bytes, its columns) is not
copied into the pickle, and arrives in memory that is used again once nobody looks at it any more: to get new memory for
each page costs more than to bring it here.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from fetcher.loading.claims import Claimed
from fetcher.report import Tally
from fetcher.sinks.base import EncodedPage, Progress


class Start(msgspec.Struct, frozen=True):
    """These portfolios are to be loaded: prepare for it, and ask for what takes no progress."""

    config: bytes
    """As `fetcher.config.to_wire` gives it: with the tokens in the clear."""
    full: bool
    log_level: int

    def __repr__(self) -> str:
        return "Start(...)"


class Opened(msgspec.Struct, frozen=True):
    """Load them."""

    records: Progress
    """All that the sink holds."""


class Stop(msgspec.Struct, frozen=True):
    """End soon, and in order."""


class Granted(msgspec.Struct, frozen=True):
    """The answer to what the portfolio asked last."""

    portfolio: str
    claimed: Claimed


class Claim(msgspec.Struct, frozen=True):
    """See `Claims.claim`."""

    portfolio: str
    service_ids: Sequence[str]


class Settle(msgspec.Struct, frozen=True):
    """See `Claims.settle`."""

    portfolio: str
    refused: Sequence[str]
    begun: Sequence[str]


class Leave(msgspec.Struct, frozen=True):
    """See `Claims.leave`; there is no answer."""

    portfolio: str
    begun: Sequence[str] | None
    for_others: bool


class Parcel(msgspec.Struct, frozen=True):
    """A page, and the records that change with it (see `Delivery.accept`)."""

    portfolio: str
    page: EncodedPage | None
    changes: Mapping[str, str | None]


class Told(msgspec.Struct, frozen=True):
    """How far the portfolios are, and what is to be logged: levels and texts."""

    tallies: Sequence[Tally]
    """Of what failed, only that which was not told before."""
    lines: Sequence[tuple[int, str]]


class End(msgspec.Struct, frozen=True):
    """Everything was sent."""

    settled: Mapping[str, str]
    """See `fetcher.job.Loader`."""


Message = Start | Opened | Stop | Granted | Claim | Settle | Leave | Parcel | Told | End

_HEAD = struct.Struct("<IIQ")
"""Count of large parts, length of the pickle, length of all parts."""
_LENGTH = struct.Struct("<Q")


class Channel:
    """One end of the socket between a run and a worker; each end sends and receives.

    Args:
        end: connected, for this object alone.
    """

    BUFFER_BYTES = 2**20
    """What the system may hold on the way: a page and a half."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.BUFFER_BYTES)
        self._socket = end
        self._sending = asyncio.Lock()
        self._memory = _Memory()

    async def send(self, message: Message) -> None:
        """Send a message, after those that are being sent. Cancelled in the middle, the channel is of no more use.

        Raises:
            OSError: the other end is gone.
        """
        parts: list[memoryview] = []
        data = pickle.dumps(message, protocol=5, buffer_callback=lambda part: parts.append(part.raw()))
        lengths = b"".join([_LENGTH.pack(len(part)) for part in parts])
        head = _HEAD.pack(len(parts), len(data), sum(map(len, parts)))
        async with self._sending:
            await self._send_all([head, lengths, data, *parts])

    async def receive(self) -> Message | None:
        """The next message; `None` once the other end is gone."""
        loop = asyncio.get_running_loop()
        try:
            head = await self._exactly(loop, memoryview(bytearray(_HEAD.size)))
            count, length, total = _HEAD.unpack(head)
            rest = await self._exactly(loop, memoryview(bytearray(count * _LENGTH.size + length)))
            body = await self._exactly(loop, self._memory.take(total)) if total else memoryview(b"")
        except (EOFError, ConnectionError):
            return None
        parts: list[memoryview] = []
        place = 0
        for (size,) in _LENGTH.iter_unpack(rest[: count * _LENGTH.size]):
            parts.append(body[place : place + size])
            place += size
        return pickle.loads(rest[count * _LENGTH.size :], buffers=parts)  # noqa: S301 from our own process

    def close(self) -> None:
        """Let the socket go; the other end is told so."""
        self._socket.close()

    async def _send_all(self, pieces: list[bytes | memoryview]) -> None:
        loop = asyncio.get_running_loop()
        try:
            sent = self._socket.sendmsg(pieces)  # most often that is all of it
        except BlockingIOError:
            sent = 0
        for piece in pieces:
            if sent < len(piece):
                await loop.sock_sendall(self._socket, memoryview(piece)[sent:])
            sent = max(0, sent - len(piece))

    async def _exactly(self, loop: asyncio.AbstractEventLoop, place: memoryview) -> memoryview:
        filled = 0
        while filled < len(place):
            count = await loop.sock_recv_into(self._socket, place[filled:])
            if not count:
                raise EOFError
            filled += count
        return place


class _Memory:
    """Buffers that are used again, oldest first: pages are let go in the order in which they came.

    There are as many as were in use at once, none of them more than twice as large as what it is used for.
    """

    LEAST = 2**16
    """Less is not worth keeping."""

    def __init__(self) -> None:
        self._buffers: deque[bytearray] = deque()

    def take(self, size: int) -> memoryview:
        """Memory of `size` bytes that nobody else refers to."""
        if size < self.LEAST:
            return memoryview(bytearray(size))
        buffer = self._buffers.popleft() if self._buffers and _is_free(self._buffers[0]) else None
        if buffer is None or not size <= len(buffer) <= 2 * size:
            buffer = bytearray(size + size // 8)  # the next page may be a little larger
        self._buffers.append(buffer)
        return memoryview(buffer)[:size]


def _is_free(buffer: bytearray) -> bool:
    """Whether nobody has a view of it: then, and only then, its length can be changed."""
    try:
        del buffer[-1:]
        buffer.append(0)
    except BufferError:
        return False
    return True


def pair() -> tuple[Channel, socket.socket]:
    """Our end, and the one that the other process is to have."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs
