"""Connections follow from the walks and from how many files may be open; each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import logging, resource, sys
from fetcher.config import make_config
from fetcher.errors import ConfigError
from fetcher.processes.open_files import connections_for
portfolios, walks, soft, hard = map(int, sys.argv[1:])
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
config = make_config({
    "platform": {"client_token": "C" * 8},
    "portfolios": [{"name": f"p{number}", "access_token": "A" * 8} for number in range(portfolios)],
    "orders": {"updated_from": "2023-01-01T00:00:00Z"},
    "limits": {"walks": walks},
})
try:
    print(connections_for(config), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except ConfigError as error:
    print(error)
"""


def connections(portfolios: int, walks: int, soft: int, hard: int) -> tuple[str, str]:
    arguments = [str(number) for number in (portfolios, walks, soft, hard)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize(("portfolios", "walks"), [(90, 16), (40, 32), (1, 256)])
def test_the_soft_limit_is_raised_to_what_is_needed(portfolios: int, walks: int) -> None:
    told, warned = connections(portfolios, walks, 256, 4096)
    count, soft = map(int, told.split())
    assert count == portfolios * walks
    assert portfolios * (walks + 2) < soft < portfolios * (walks + 2) + 200
    assert not warned


def test_a_limit_that_suffices_is_left_alone() -> None:
    assert connections(3, 16, 1024, 4096) == ("48 1024", "")


def test_there_are_fewer_connections_where_the_hard_limit_is_lower_and_it_is_said() -> None:
    told, warned = connections(90, 16, 256, 1024)
    count, soft = map(int, told.split())
    assert soft == 1024
    assert 600 < count < 1024 - 180
    assert "ulimit -n" in warned
    assert "1024" in warned


@pytest.mark.parametrize(("portfolios", "hard"), [(90, 250), (500, 1024), (1, 64)])
def test_a_limit_below_the_least_names_itself_and_the_cure(portfolios: int, hard: int) -> None:
    told, _ = connections(portfolios, 16, hard, hard)
    assert f"open files: this process may have {hard} open" in told
    assert "ulimit -n" in told
