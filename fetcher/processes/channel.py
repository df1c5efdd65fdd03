"""The socket over which a run and its loaders on one machine tell each other what `messages` holds.

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

from fetcher.processes.messages import Message

_HEAD = struct.Struct("<IIQ")
"""Count of large parts, length of the pickle, length of all parts."""
_LENGTH = struct.Struct("<Q")


class Channel:
    """One end of the socket between a run and a loader; see `Link`.

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
        """See `Link`."""
        parts: list[memoryview] = []
        data = pickle.dumps(message, protocol=5, buffer_callback=lambda part: parts.append(part.raw()))
        lengths = b"".join([_LENGTH.pack(len(part)) for part in parts])
        head = _HEAD.pack(len(parts), len(data), sum(map(len, parts)))
        async with self._sending:
            await self._send_all([head, lengths, data, *parts])

    async def receive(self) -> Message | None:
        """See `Link`."""
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
