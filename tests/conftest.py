"""What tests share: a state folder of their own, and a PostgreSQL server for those who ask.

Tests run side by side in several processes (`-n`): each process has a server of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import Server, running_server

# Tests start hundreds of processes: they are not to compile this project each for itself, whatever the machine says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Every run tries the same examples, however busy the machine is; `--hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case of bytes by its argument: gzip has the time in it, and processes have to agree on the names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def schema_url(postgres: Server, tmp_path: Path) -> str:
    """A schema of the test's own, which does not exist yet."""
    return f"{postgres.url}?schema=test_{abs(hash(tmp_path)):x}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many a test waits for a server, or for a process that starts."""
    return (os.cpu_count() or 1) + 1
