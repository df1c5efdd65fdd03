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
from fetcher.simulator import parse_faults
from fetcher.simulator.faults import STRIKES
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


ALONE = [*(f"{kind}=0.1" for kind in STRIKES), "all=0.1"]
CONDITIONS_ALONE = [
    *("bad-services=2", "bad-enterprises=1", "heavy-pages=15", "heavy-windows=30", "heavy-ids=4", "revoke=15"),
    *("forbid=1", "others=1", "outage-after=10", "outage-after=10,outage-seconds=2000", "changes=1,late=4"),
    *("heavy-stalls=15", "heavy-stalls=3", "clock-skew=0.5,changes=1", "clock-skew=1", "skew-first=3,changes=1"),
    *("clock-skew=0.2,skew-hours=40,502=0.2,changes=2,late=4", "outage-after=10,outage-pause=600,outage-seconds=20"),
    *("retry-after=40,503=0.1,408=0.1", "retry-after=1000,500=0.02", "retry-after=3,others=1,heavy-pages=15"),
    *("unknown=1", "invalid-cursors=1,changes=1", "all=0.1,changes=1,bad-services=1,invalid-cursors=1"),
    *("forbid-services=2", "forbid-enterprises=1", "shared=1,forbid=1", "shared=1,forbid-services=2"),
    *("shared=1,revoke=15,changes=1,late=4", "shared=1,forbid-services=2,all=0.1,changes=1"),
]


@pytest.mark.parametrize("faults", [*ALONE, *CONDITIONS_ALONE])
def test_each_kind_of_fault_alone_and_all_together(faults: str) -> None:
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(50_000, 50_020):
            simulate(seed, parse_faults(faults))  # raises where a promise is broken
    finally:
        logging.disable(logging.NOTSET)


def _drop_the_last(sift: Callable[..., Sifted]) -> Callable[..., Sifted]:
    def dropping(self: Sieve, orders: list[Any]) -> Sifted:
        kept = sift(self, orders)
        if not kept.kept:
            return kept
        return Sifted(kept.kept[:-1], kept.skipped | {len(orders) - 1}, kept.oddities, kept.latest)

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
