"""What PgBouncer does to a session, and nothing else of it: for tests, on loopback.

It refuses parameters at the start of a session that it does not know, and (as with transaction pooling) hands each
transaction another session of the server.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import select

KNOWN = {"user", "database", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"}
KNOWN |= {"application_name"}
_PROTOCOL = 196608
_FIRST = struct.Struct("!ii")


class Pooler:
    """Counts the sessions of the server that it gave away."""

    def __init__(self, port: int, server_port: int) -> None:
        self.port = port
        self.sessions = 0
        self._server_port = server_port

    def serve(self, client: socket.socket) -> None:
        """Talk to one client until it leaves."""
        with client, suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            startup = _startup(client)
            names = startup[8:].split(b"\0")[::2]
            unknown = [name.decode() for name in names if name and name.decode() not in KNOWN]
            if unknown:
                client.sendall(_error(f"unsupported startup parameter: {unknown[0]}"))
                return
            server, greeting = self._session(startup)
            client.sendall(greeting)
            self._relay(client, server, startup)

    def _relay(self, client: socket.socket, server: socket.socket, startup: bytes) -> None:
        while True:
            ready, _, _ = select([client, server], [], [])
            if server in ready:
                message = _message(server)
                client.sendall(message)
                if message == b"Z\0\0\0\x05I":  # between two transactions
                    server.close()
                    server, _ = self._session(startup)
            elif client in ready:
                message = _message(client)
                if message[:1] == b"X":
                    server.close()
                    return
                server.sendall(message)

    def _session(self, startup: bytes) -> tuple[socket.socket, bytes]:
        """A new session, and what the server said until it was ready."""
        self.sessions += 1
        server = socket.create_connection(("127.0.0.1", self._server_port))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.sendall(startup)
        said = [_message(server)]
        while said[-1][:1] != b"Z":
            said.append(_message(server))
        return server, b"".join(said)


@contextmanager
def running_pooler(port: int, server_port: int) -> Iterator[Pooler]:
    """A pooler before a server that trusts its users."""
    pooler = Pooler(port, server_port)
    with socket.create_server(("127.0.0.1", port)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=pooler.serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield pooler
        listener.shutdown(socket.SHUT_RDWR)


def _startup(client: socket.socket) -> bytes:
    while True:
        length, code = _FIRST.unpack(head := _exactly(client, 8))
        if code == _PROTOCOL:
            return head + _exactly(client, length - 8)
        client.sendall(b"N")  # neither TLS nor GSSAPI


def _message(peer: socket.socket) -> bytes:
    head = _exactly(peer, 5)
    return head + _exactly(peer, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(peer: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = peer.recv(min(size, 65536))
        if not part:
            raise ConnectionError("gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _error(message: str) -> bytes:
    fields = b"SFATAL\0C08P01\0M" + message.encode() + b"\0\0"
    return b"E" + struct.pack("!i", len(fields) + 4) + fields
