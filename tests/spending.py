"""What a simulated run may send: the least of its world, and what else is worth its requests.

Every request for orders that is answered is a full page, or the end of a walk. So a run spends what its lists take, the
full pages of its world, one more for each walk, and what failed. Here is how many walks there may be.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from fetcher.config import Config
from fetcher.connector.transport import Reply
from fetcher.simulator import World
from fetcher.simulator.world import Portfolio, instant

ORDERS = "productServiceOrders/getAll"
ROUNDS = 8
"""Of closing, at most."""
_TICK = timedelta(microseconds=1)


class Traffic:
    """What a run sent, by what came of it."""

    def __init__(self) -> None:
        self.lists = 0
        self.pages = 0
        """Of orders: as many as were asked for."""
        self.ends = 0
        """Of walks: fewer orders than were asked for."""
        self.by_id = 0
        """For orders that are kept aside."""
        self.failed = 0
        """Without an answer, or refused."""
        self.smallest = 1000
        """Of the pages that were asked for."""

    @property
    def sent(self) -> int:
        """All of it."""
        return self.lists + self.pages + self.ends + self.by_id + self.failed

    def note(self, path: str, body: bytes, reply: Reply | None) -> None:
        """A request, and its answer, if there is one."""
        asked = json.loads(body)
        count = asked["Limitation"]["Count"]
        if path == ORDERS and "ProductServiceOrderIds" not in asked:
            self.smallest = min(self.smallest, count)
        if reply is None or reply.status >= 400:
            self.failed += 1
        elif path != ORDERS:
            self.lists += 1
        elif "ProductServiceOrderIds" in asked:
            self.by_id += 1
        elif reply.body.count(b'"ServiceId"') < count:
            self.ends += 1
        else:
            self.pages += 1


class Allowance(msgspec.Struct, frozen=True):
    """What a run of one portfolio may send, in requests."""

    lists: int
    walks: int
    """That are planned at the least: one for each window, or for each enterprise's if each is walked apart."""
    pages: int
    """Full ones of these walks."""
    given: int
    """Walks that may be given away."""
    closing: int
    """Walks that end the run."""
    services: int
    """How many services the portfolio has."""

    @property
    def requests(self) -> int:
        """All of it."""
        return self.least + self.given + self.closing

    @property
    def least(self) -> int:
        """What nobody can do without."""
        return self.lists + self.walks + self.pages


def allowance(
    world: World, config: Config, portfolio: Portfolio, *, until: datetime, size: int, inclusive: bool
) -> Allowance:
    """What a run that reads everything may send, if nothing goes wrong.

    Walks given away: a part is to be worth more than a page, so there are no more of them than full pages. But orders
    may be elsewhere than the pages so far said. Then all parts but one are in vain: as many as there are walkers, or
    twice that (where pages are not in the order of updates, parts are smaller). The next guess is about the one that is
    left, so only so many can be wrong until that is a second.

    Args:
        world: what there is to read.
        config: the run's.
        portfolio: whose.
        until: the run's end.
        size: of a page.
        inclusive: whether the platform sends what is on a window's end in that window, too.
    """
    limits = config.limits
    hotels = [hotel for hotel in portfolio.enterprises.values() if hotel.services]
    lists = 2 + (len(hotels) < len(portfolio.enterprises))
    if not hotels:
        return Allowance(lists, 0, 0, 0, 0, 0)
    apart = [hotel.services for hotel in hotels]
    packs = apart if limits.shard_by == "enterprise" else [[one for services in apart for one in services]]
    windows = _windows(config.orders.updated_from, until, limits.window_months)
    pages = given = 0
    for services in packs:
        for count in _orders_in(world, services, config.orders.updated_from, limits.window_months, inclusive).values():
            full = count // size
            pages += full
            if full and limits.shard_by != "portfolio" and limits.walks > 1:
                wrong = math.ceil(math.log(limits.window_months * 31 * 86_400, limits.walks))
                given += full + min(full, wrong) * 2 * limits.walks
    return Allowance(lists, len(packs) * windows, pages, given, 1, sum(map(len, apart)))


def more_for_faults(
    allowed: Allowance, traffic: Traffic, size: int, *, struck: int, changed: int, unreadable: bool
) -> int:
    """What a run of one portfolio may send beyond its allowance, for what went wrong.

    - each failure is asked again, or as two halves; and so is an answer that is called good and is not
    - walks whose cursors are lost, or lead nowhere, start again, once, and then as halves: all of their pages
    - what changed is read again by each closing round, which asks for fewer services each time
    - what cannot be read may have been damaged on its way: it is asked for again, and later by its id

    Args:
        allowed: what it may send if nothing goes wrong.
        traffic: what was sent, of all portfolios.
        size: of a page.
        struck: how many answers faults have struck.
        changed: how many orders changed meanwhile.
        unreadable: whether there are orders that cannot be read.
    """
    failed = traffic.failed + struck
    more = 2 * failed + traffic.by_id
    if failed:
        more += 2 * allowed.pages
    if changed:
        more += sum(-(-allowed.services // max(1000 >> number, 8)) for number in range(ROUNDS))
        more += ROUNDS * (changed // size)
    if unreadable:
        more += allowed.walks + allowed.pages
    return more


def allowance_again(portfolio: Portfolio, config: Config, *, since: datetime, until: datetime) -> int:
    """What a run may send that finds nothing new: lists, and a request for each pack.

    Where a month begins meanwhile, each pack is asked twice, and closed.
    """
    hotels = sum(bool(hotel.services) for hotel in portfolio.enterprises.values())
    lists = 2 + (hotels < len(portfolio.enterprises))
    packs = hotels if config.limits.shard_by == "enterprise" else min(1, hotels)
    windows = _windows(since, until, config.limits.window_months)
    return lists + packs * windows + (windows > 1)


def _windows(start: datetime, end: datetime, months: int) -> int:
    """How many windows of the calendar's grid there are."""
    return _cell(end, months) - _cell(start, months) + 1


def _cell(moment: datetime, months: int) -> int:
    return (moment.year * 12 + moment.month - 1) // months


def _orders_in(world: World, services: Sequence[int], start: datetime, months: int, inclusive: bool) -> Counter[int]:
    """How many orders are sent, by the window that they are sent in; what is on an edge may be in two."""
    found = world.query(services, None, None, inclusive=True, states=None, by_creation=False)
    times = [moment for key in found.keys if (moment := instant(key)) >= start]
    sent = Counter(_cell(moment, months) for moment in times)
    if inclusive:
        # One instant is enough for a bulk change: it may fill a page of the window before.
        edges = [moment for moment in times if _cell(moment - _TICK, months) < _cell(moment, months)]
        sent.update(_cell(moment, months) - 1 for moment in edges if moment > start)
    return sent
