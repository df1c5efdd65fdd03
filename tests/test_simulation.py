"""The whole job under random schedules, faults and kills; see `tests/simulation.py`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from fetcher.checkpoint import Checkpoint
from fetcher.connector.budget import RequestBudget
from fetcher.load import PortfolioLoad
from fetcher.sifting import Sieve, Sifted
from fetcher.sinks.ledger import Ledger
from tests.simulation import BrokenPromiseError, simulate

SEEDS = int(os.environ.get("FETCHER_SEEDS", "2000"))


def play(first: int, last: int) -> list[str]:
    """Play seeds; returns what was found, with the command to see it again."""
    logging.disable(logging.CRITICAL)
    found: list[str] = []
    for seed in range(first, last):
        try:
            simulate(seed)
        except Exception as error:
            found.append("\n".join([repr(error), *getattr(error, "__notes__", [])]))
    return found


@pytest.mark.timeout(600)
def test_every_promise_holds_for_every_seed() -> None:
    step = 50
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(play, first, min(first + step, SEEDS)) for first in range(0, SEEDS, step)]
        found = [text for part in parts for text in part.result()]
    assert not found, "\n\n".join(found[:3])


def _drop_the_last(sift: Callable[..., Sifted]) -> Callable[..., Sifted]:
    def dropping(self: Sieve, orders: list[Any]) -> Sifted:
        kept = sift(self, orders)
        return Sifted(kept.kept[:-1], kept.skipped | {len(orders) - 1}, kept.oddities) if kept.kept else kept

    return dropping


SABOTAGE: dict[str, tuple[type, str, Any]] = {
    "P1 an order is dropped": (Sieve, "sift", _drop_the_last(Sieve.sift)),
    "P2 versions are not remembered": (Ledger, "unseen", lambda *_: None),
    "P3 a walk counts as finished with its first page": (
        Checkpoint,
        "advance",
        lambda self, shard, _position: self.finish(shard),
    ),
    "P4 a slot is free at once": (RequestBudget, "_release", lambda self: _free_all(self)),
    "P5 a pause is ignored": (RequestBudget, "pause", lambda *_: None),
    "P7 a failure is not told": (PortfolioLoad, "_fail", lambda *_: None),
}


def _free_all(budget: Any) -> None:
    while budget._held:
        budget._places.append(budget._held.pop()[1])


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_broken_promise_is_caught(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement = SABOTAGE[what]
    monkeypatch.setattr(owner, name, replacement)  # our own code, broken on purpose
    with pytest.raises(BrokenPromiseError):
        play_until_it_breaks(400)


def play_until_it_breaks(seeds: int) -> None:
    for seed in range(seeds):
        simulate(seed)
