"""How bytes get to the platform and back: one small interface, and its implementation over aiohttp.

The rules that cannot be broken: no redirect is followed (it would carry the tokens elsewhere), an answer takes
bounded memory however it is compressed, and no error repeats anything of a request.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Literal, Protocol

import aiohttp
import anyio
import msgspec

from fetcher.connector.room import Lease
from fetcher.connector.route import Route, find_route, obstacle

try:
    from isal import isal_zlib as inflate  # the `speed` extra: a quarter of zlib's time
except ImportError:
    inflate: Any = zlib


class Reply(msgspec.Struct, frozen=True):
    """An answer, whole: its body decompressed."""

    status: int
    headers: Mapping[str, str]
    """By case-insensitive name."""
    body: bytes


Kind = Literal["unsent", "broken", "timeout", "too large", "corrupt", "misconfigured"]


class TransportError(Exception):
    """There is no usable answer. `kind` tells what is known of the request.

    `unsent`: it never left. `broken`: it may have arrived. `timeout`: it probably arrived, and took too long.
    `too large`, `corrupt`: it was answered, with a body over the bound, or one that does not decompress.
    `misconfigured`: it never left, nor will it before what is set up here is changed; `cure` tells how.
    """

    def __init__(self, kind: Kind, detail: str, cure: str = "") -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.cure = cure


Heard = Callable[[int, Mapping[str, str]], None]


class Transport(Protocol):
    """Posts a JSON body to a path below the platform's connector root."""

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        """Send it once, and receive the whole answer.

        Args:
            path: below the connector's root.
            body: JSON.
            heard: called once an answer begins, before its body is received, with its status and headers.
            lease: acquired once an answer that `brings_page` begins, before its body is received; the caller releases
                it, whatever comes of the answer. `None`: there is always room.

        Raises:
            TransportError: there is no usable answer.
        """
        ...


def brings_page(status: int) -> bool:
    """Whether an answer with this status is received only when there is room for a page."""
    return status < 300


class HttpTransport:
    """Transport over HTTP. Use it as an async context manager.

    Args:
        address: scheme, host and port.
        seconds: how long the platform may take to answer, and then to send the answer's body.
        body_bytes: how large an answer may be, decompressed.
        connections: how many may be open at once; whoever wants one more waits for it.
        ca_file: certificates that are trusted besides the system's.
    """

    CONNECT_SECONDS = 15.0
    """For a name, a connection and its TLS: beyond it the platform is out of reach, not slow."""
    CONNECT_SHARE = 0.75
    """Of `seconds`, at most: were it all, nobody could tell afterwards whether the request had left."""

    def __init__(
        self, address: str, *, seconds: float, body_bytes: int, connections: int = 1000, ca_file: str | None = None
    ) -> None:
        self._address = address
        self._root = f"{address}/api/connector/v1/"
        self._seconds = seconds
        self._body_bytes = body_bytes
        self._ca_file = ca_file
        # Not the pool's own limit: waiting for that would count as waiting for the platform.
        self._free = anyio.Semaphore(connections, fast_acquire=True)
        self._session: aiohttp.ClientSession | None = None
        self._route = Route("")
        self._options: dict[str, Any] = {}
        self._reached = False
        """Whether there was ever an answer: then what is set up here is right, and what goes wrong is an outage."""

    async def __aenter__(self) -> HttpTransport:
        """Find the way there.

        Raises:
            ConfigError: see `find_route`.
        """
        self._route = await find_route(self._address, self._ca_file)
        self._options = self._route.options()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=min(self._seconds * self.CONNECT_SHARE, self.CONNECT_SECONDS)
            ),
            headers={
                "Content-Type": "application/json",
                "Accept-Encoding": "gzip",
                "Prefer": "return=minimal",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # so that the bound is ours, and ISA-L may do it
            trace_configs=[] if self._route.proxy is None else [_watch_connecting()],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        """See `Transport.post`."""
        if self._session is None:
            raise RuntimeError("HttpTransport is used outside its `async with`")
        async with self._free:
            return await self._post(self._session, path, body, heard, lease)

    async def _post(
        self, session: aiohttp.ClientSession, path: str, body: bytes, heard: Heard, lease: Lease | None
    ) -> Reply:
        way = _Way()
        try:
            async with asyncio.timeout(self._seconds):
                response = await session.post(
                    self._root + path, data=body, allow_redirects=False, trace_request_ctx=way, **self._options
                )
            async with response:
                self._reached = True
                heard(response.status, response.headers)
                if lease is not None and brings_page(response.status):
                    await lease.acquire()  # however long that takes: it is not the platform that we wait for
                async with asyncio.timeout(self._seconds):
                    raw = await self._read(response)
                encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
                return Reply(response.status, response.headers, self._decompress(raw, encoding))
        except (aiohttp.ClientError, OSError, ssl.SSLError) as error:  # a TimeoutError is an OSError
            raise self._translated(error, way) from None

    def _translated(self, error: Exception, way: _Way) -> TransportError:
        found = obstacle(self._route, error, connecting=way.connecting)
        if found is not None:
            if found.cure is None or self._reached:
                return TransportError("unsent", found.detail)
            return TransportError("misconfigured", found.detail, found.cure)
        if isinstance(error, TimeoutError):
            return TransportError("timeout", f"no answer within {self._seconds:g} seconds")
        # The text of other errors may quote what was received: the kind must do.
        return TransportError("broken", f"the connection broke ({type(error).__name__})")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        announced = response.content_length
        if announced is not None and announced <= self._body_bytes:
            return await response.read()
        chunks: list[bytes] = []
        size = 0
        if announced is None:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                chunks.append(chunk)
                if size > self._body_bytes:
                    break
            else:
                return b"".join(chunks)
        response.close()  # what is left of the body is not read, so the connection cannot be used again
        raise self._too_large()

    def _decompress(self, raw: bytes, encoding: str) -> bytes:
        if encoding in ("identity", "") or not raw:
            return raw
        if encoding not in ("gzip", "x-gzip"):
            raise TransportError("corrupt", "the answer is compressed in a way that was not asked for")
        pieces: list[bytes] = []
        room = self._body_bytes
        while raw:
            member = inflate.decompressobj(wbits=31)
            try:
                piece = member.decompress(raw, room + 1)
            except (zlib.error, inflate.error):
                raise TransportError("corrupt", "the answer's gzip data is corrupt") from None
            room -= len(piece)
            if room < 0:
                raise self._too_large()
            if not member.eof:
                raise TransportError("corrupt", "the answer's gzip data is cut off")
            pieces.append(piece)
            raw = member.unused_data
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> TransportError:
        limit = self._body_bytes / 2**20
        return TransportError("too large", f"the answer is larger than {limit:g} MiB (limits.body_mebibytes)")


class _Way:
    """How far a request is that goes through a proxy."""

    def __init__(self) -> None:
        self.connecting = False


def _watch_connecting() -> aiohttp.TraceConfig:
    """Tells what aiohttp's errors do not: whether there was a connection through the proxy yet."""

    async def begun(_session: aiohttp.ClientSession, context: SimpleNamespace, _: object) -> None:
        context.trace_request_ctx.connecting = True

    async def ended(_session: aiohttp.ClientSession, context: SimpleNamespace, _: object) -> None:
        context.trace_request_ctx.connecting = False

    config = aiohttp.TraceConfig()
    config.on_connection_create_start.append(begun)
    config.on_connection_create_end.append(ended)
    return config
