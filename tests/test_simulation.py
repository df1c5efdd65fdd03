"""The whole job under random schedules, faults and kills; see `tests/simulation.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
import pytest

from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Connector
from fetcher.connector.clock import PlatformClock
from fetcher.connector.operations import OrdersOperation
from fetcher.connector.room import Lease
from fetcher.errors import PlatformError
from fetcher.loading.aside import Aside
from fetcher.loading.beginning import Beginning
from fetcher.loading.closing import Closing
from fetcher.loading.handover import Handover
from fetcher.loading.page_size import PageSize
from fetcher.loading.pool import Pool
from fetcher.loading.portfolio import PortfolioLoad
from fetcher.loading.portfolios import Portfolios
from fetcher.loading.walk import Split, Walk
from fetcher.planning import shards
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.sifting import Sieve, Sifted
from fetcher.report import Tally
from fetcher.simulator import parse_faults
from fetcher.simulator.faults import STRIKES
from fetcher.sinks import Page
from fetcher.sinks.appending.memory import Memory
from fetcher.sinks.writer import Writer
from tests.simulation import BrokenPromiseError, simulate

SEEDS = int(os.environ.get("FETCHER_SEEDS", "1000"))
TOGETHER = 50
"""Seeds of one test: enough of them that tests which run side by side come to an end at about the same time."""

MOST_SPENT = 1.25
"""Times the least, together, of the runs that read everything while nothing went wrong; of a thousand seeds it is 1.08,
and of each fifty at most 1.18. In these worlds most orders lie in a few days of months, or in seconds."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_every_promise_holds_for_every_seed(first: int) -> None:
    found: list[str] = []
    spent = least = 0
    for seed in range(first, min(first + TOGETHER, SEEDS)):
        try:
            story = simulate(seed)
            spent, least = spent + story.spent, least + story.least
        except Exception as error:
            found.append("\n".join([repr(error), *getattr(error, "__notes__", [])]))
    assert not found, "\n\n".join(found[:3])
    assert spent <= MOST_SPENT * least, f"{spent} requests, of {least} at the least, read everything"


def test_a_bulk_change_on_the_edge_of_two_windows_may_fill_a_page_of_both() -> None:
    simulate(700_082)  # an order more or less, and no page is full: few seeds have it


ALONE = [*(f"{kind}=0.1" for kind in STRIKES), "all=0.1"]
CONDITIONS_ALONE = [
    *("bad-services=2", "bad-enterprises=1", "heavy-pages=15", "heavy-windows=30", "heavy-ids=4", "revoke=15"),
    *("forbid=1", "others=1", "outage-after=10", "outage-after=10,outage-seconds=2000", "changes=1,late=4"),
    *("heavy-stalls=15", "heavy-stalls=3", "clock-skew=0.5,changes=1", "clock-skew=1", "skew-first=3,changes=1"),
    *("clock-skew=0.2,skew-hours=40,502=0.2,changes=2,late=4", "outage-after=10,outage-pause=600,outage-seconds=20"),
    *("retry-after=40,503=0.1,408=0.1", "retry-after=1000,500=0.02", "retry-after=3,others=1,heavy-pages=15"),
    *("unknown=1", "invalid-cursors=1,changes=1", "all=0.1,changes=1,bad-services=1,invalid-cursors=1"),
    *("forbid-services=2", "forbid-enterprises=1", "shared=1,forbid=1", "shared=1,forbid-services=2"),
    *("same-second=1,changes=3", "bad-order=0.1", "bad-order=0.3,same-second=1,changes=1", "capitals=0.5"),
    *("capitals=0.5,bad-services=2", "bad-order=0.3,all=0.1,changes=1,late=4"),
    *("shared=1,revoke=15,changes=1,late=4", "shared=1,forbid-services=2,all=0.1,changes=1"),
]


@pytest.mark.parametrize("faults", [*ALONE, *CONDITIONS_ALONE])
def test_each_kind_of_fault_alone_and_all_together(faults: str) -> None:
    for seed in range(50_000, 50_000 + -(-SEEDS // 100)):
        simulate(seed, parse_faults(faults))  # raises where a promise is broken


def _drop_the_last(sift: Callable[..., Sifted]) -> Callable[..., Sifted]:
    def dropping(self: Sieve, listing: Any) -> Sifted:
        kept = sift(self, listing)
        if not kept.kept or kept.rejected or kept.unreadable:
            return kept
        return Sifted(kept.kept[:-1], kept.skipped | {len(listing.items) - 1}, kept.oddities, kept.latest)

    return dropping


def _believe_the_latest(self: Any, date: str | None, _sent: float, began: float) -> None:
    told = self._seconds(date)
    if told is not None:
        self._least = self._latest = max(self._least or 0.0, told - began)


def _free_all(budget: Any) -> None:
    while budget._held:
        budget._places.append(budget._held.pop()[1])


def _keep_the_room(accept: Callable[..., Any]) -> Callable[..., Any]:
    def accepting(self: Any, lease: Lease, *arguments: Any) -> Any:
        return accept(self, lease.room.lease(), *arguments)  # another's

    return accepting


def _release_what_is_not_held(lease: Any) -> None:
    lease._held = False
    lease.room.places.release()


def _keep_the_pages(encode: Callable[..., Any]) -> Callable[..., Any]:
    kept: list[Page] = []

    def keeping(self: Any, *arguments: Any) -> Any:
        step = encode(self, *arguments)
        kept.append(step.page)
        return step

    return keeping


def _linger(call: Callable[..., Any]) -> Callable[..., Any]:
    async def lingering(self: Connector, *arguments: Any) -> Any:
        try:
            return await call(self, *arguments)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(30)
            raise

    return lingering


def _show_the_token(call: Callable[..., Any]) -> Callable[..., Any]:
    async def showing(self: Connector, *arguments: Any) -> Any:
        try:
            return await call(self, *arguments)
        except PlatformError as error:
            error.args = (f"{error} It was sent {self._credentials._prefix!r}",)
            raise

    return showing


def _count_no_requests(call: Callable[..., Any]) -> Callable[..., Any]:
    async def uncounted(self: Connector, *arguments: Any) -> Any:
        try:
            return await call(self, *arguments)
        finally:
            self._tally.requests = 0

    return uncounted


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def _whatever_it_says(known: Callable[..., bytes | None]) -> Callable[..., Any]:
    def blind(self: Memory, key: bytes, *, recent: bool) -> Any:
        return None if known(self, key, recent=recent) is None else _Anything()

    return blind


def _give_what_was_read(give_away: Callable[..., Any]) -> Callable[..., Any]:
    def generous(self: Walk, *arguments: Any) -> Any:
        self._oldest = self._newest
        return give_away(self, *arguments)

    return generous


def _keep_nothing(give_away: Callable[..., Any]) -> Callable[..., Any]:
    def careless(self: Walk, *arguments: Any) -> Any:
        split = give_away(self, *arguments)
        return None if split is None else Split(split.parts[:-1], helped=True)

    return careless


async def _close_all(self: Closing, services: Any, target: Any, _moving: Any, bad: Any, walk: Any) -> None:
    await CLOSE(self, services, target, {service.id for service in services}, bad, walk)


CLOSE, GRID = Closing.close, shards.grid


def _give_crumbs(give_below: Callable[..., Any]) -> Callable[..., Any]:
    def generous(self: Walk, *_: Any) -> Any:
        return give_below(self, 200, 1e6) if self._scope.splits else None

    return generous


def _ask_twice(call: Callable[..., Any]) -> Callable[..., Any]:
    async def asking(self: Connector, operation: Any, request: Any, room: Any = None) -> Any:
        await call(self, operation, request)
        return await call(self, operation, request, room)

    return asking


async def _commit_uncounted(self: Writer, batch: Any, awaited: Any) -> None:
    await self._offload(self._sink.commit, batch)
    for tell in awaited:
        tell()
    self._turn.release()


class Sabotage(NamedTuple):
    """Our own code, broken on purpose, and by which words it is found out."""

    owner: Any
    """A class, or a module."""
    name: str
    replacement: Any
    found: str
    faults: str | None = None
    """Instead of those that a seed draws."""


SABOTAGE = {
    "an order is dropped": Sabotage(Sieve, "sift", _drop_the_last(Sieve.sift), "P1"),
    "versions are not remembered": Sabotage(Memory, "unseen", lambda *_: None, "P2"),
    "a walk counts as finished with its first page": Sabotage(
        Checkpoint, "advance", lambda self, shard, _position: self.finish(shard), "P1|P3"
    ),
    "the latest Date is believed": Sabotage(
        PlatformClock, "observe", _believe_the_latest, "P1|P2|P3", "clock-skew=0.3,changes=1"
    ),
    "what a clock that was ahead had written down stays": Sabotage(
        Beginning, "heed_clock", lambda _: None, "P1|P2|P3", "skew-first=3,changes=1"
    ),
    "two changes within one second are one version": Sabotage(
        Memory, "_known", _whatever_it_says(Memory._known), "P1|P3", "same-second=1,changes=2"
    ),
    "what is kept aside is not asked for": Sabotage(Aside, "to_ask_for", lambda *_, **__: [], "P3|P7", "bad-order=0.2"),
    "what is kept aside is not told": Sabotage(
        PortfolioLoad, "_name_what_is_left_out", lambda _: None, "P1|P7", "bad-order=0.2"
    ),
    "what was read is given away": Sabotage(Walk, "_give_away", _give_what_was_read(Walk._give_away), "P2"),
    "a part that is given away is lost": Sabotage(Walk, "_give_away", _keep_nothing(Walk._give_away), "P1|P3"),
    "parts are given away that are worth nothing": Sabotage(
        Walk, "_give_below", _give_crumbs(Walk._give_below), "P4: .* were sent, of"
    ),
    "a closing round covers what cannot have moved": Sabotage(Closing, "close", _close_all, "P4: .* with nothing new"),
    "enterprises do not share walks": Sabotage(shards, "pack", lambda some: [(one.id,) for one in some], "P4: .* sent"),
    "windows are shorter than they may be": Sabotage(
        shards, "grid", lambda window, _months: GRID(window, 1), "P4: .* were sent, of"
    ),
    "everything is asked twice": Sabotage(Connector, "call", _ask_twice(Connector.call), "P4: .* were sent"),
    "a slot is free at once": Sabotage(RequestBudget, "_release", _free_all, "P4"),
    "a pause is ignored": Sabotage(RequestBudget, "pause", lambda *_: None, "P5"),
    "the room for a page is not given back": Sabotage(
        Handover, "_accept_page", _keep_the_room(Handover._accept_page), "P6|a run does not end"
    ),
    "the room for what comes to nothing is not given back": Sabotage(
        Lease, "__exit__", lambda *_: None, "P6|a run does not end", "circle=0.1"
    ),
    "room is given back that nobody had": Sabotage(Lease, "release", _release_what_is_not_held, "P6"),
    "pages are kept": Sabotage(Walk, "_step", _keep_the_pages(Walk._step), "P6"),
    "there is room for any number of pages": Sabotage(Portfolios, "ROOM", 10**6, "P6"),
    "a failure is not told": Sabotage(Tally, "fail", lambda *_, **__: None, "P7"),
    "a shard that fails is not told": Sabotage(Pool, "_fail", lambda *_: None, "P7|P12"),
    "what is too heavy is asked again": Sabotage(PageSize, "shrink", lambda *_, **__: True, "P8"),
    "a call goes on though it is cancelled": Sabotage(Connector, "call", _linger(Connector.call), "P9"),
    "a property that is not documented spoils its order": Sabotage(
        OrdersOperation, "_note_unknown", lambda *_: False, "P10", "unknown=1"
    ),
    "a property that is not documented is not told": Sabotage(
        Handover, "_report_unknown", lambda _: None, "P10", "unknown=1"
    ),
    "an error shows the token": Sabotage(Connector, "call", _show_the_token(Connector.call), "P11"),
    "what is committed is not counted": Sabotage(Writer, "_commit", _commit_uncounted, "P12"),
    "requests are not counted": Sabotage(Connector, "_send", _count_no_requests(Connector._send), "P12"),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", SABOTAGE)
def test_a_broken_promise_is_caught(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage = SABOTAGE[what]
    monkeypatch.setattr(sabotage.owner, sabotage.name, sabotage.replacement)
    with pytest.raises(BrokenPromiseError, match=f"^({sabotage.found})"):
        play_until_it_breaks(400, sabotage.faults)


def play_until_it_breaks(seeds: int, faults: str | None) -> None:
    for seed in range(seeds):
        simulate(seed, None if faults is None else parse_faults(faults))
