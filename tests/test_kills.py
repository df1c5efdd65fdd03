"""A few SIGKILLs into every sink; `python -m tests.kills 200` does it at length."""

from __future__ import annotations

import pytest

from tests.kills import survive
from tests.postgres import Server


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "duckdb", "postgresql"])
def test_killed_again_and_again_it_ends_with_the_truth(kind: str, postgres: Server) -> None:
    assert survive(kind, 7, postgres) > 0
