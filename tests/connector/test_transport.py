"""An answer is heard of when it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import anyio

from fetcher.connector.transport import HttpTransport


def test_an_answer_is_heard_before_its_body_has_come() -> None:
    rest = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nRequest-Id: r-7\r\nContent-Length: 4\r\n\r\n[1")
        await writer.drain()
        await rest.wait()
        writer.write(b",2")
        writer.close()

    async def check() -> None:
        told: list[tuple[int, str]] = []

        def heard(status: int, headers: Mapping[str, str]) -> None:
            told.append((status, headers["request-id"]))
            rest.set()  # only now the rest is sent: without being heard, there is no answer

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with HttpTransport(f"http://127.0.0.1:{port}", seconds=5, body_bytes=100) as transport:
                reply = await transport.post("x", b"{}", heard)
        assert told == [(200, "r-7")]
        assert reply.body == b"[1,2"

    anyio.run(check)
