"""The worlds of `plan.py`: how hard each is, what it costs at least, and what it may cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from fetcher.simulator import Behaviour, Size
from fetcher.simulator.process import parse_hotels

MOST = 1000
"""Orders of a page, and ids of a request."""
WALKS = 16
SPREAD = 0.25
"""Of the latency's logarithm: one answer in 40 takes 1.6 times as long as the middle one."""
YEARS, DAYS = 2.5, 25 / 365.25

ORDERS = {
    "update": (False, ""),
    "creation, lenient": (True, ""),
    "creation, strict": (True, "invalid-cursors=1"),
}
"""By which time the platform sorts, and whether it refuses a cursor whose order the filter does not match."""


class Goal(msgspec.Struct, frozen=True):
    """At most as many times the least."""

    requests: float
    seconds: float
    nothing_new: float | None = 1.5


class Least(msgspec.Struct, frozen=True):
    """What a case costs at least."""

    requests: int
    seconds: float
    nothing_new: int


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A world, a platform for it, and what a load of it may cost."""

    name: str
    hotels: str
    """See `parse_hotels`."""
    portfolios: int = 1
    years: float
    latency: float
    """Seconds, at the mean."""
    newest_by: str = "update"
    """A key of `ORDERS`."""
    requests: int = 200
    per_seconds: float = 30.0
    refusals: str = ""
    """Faults that refuse requests at random. The least time is that of a load without them, and of their pauses."""
    binds: bool = False
    """Whether it is the limit that binds. The least time is that of what was sent: how well the limit is used."""
    goal: Goal

    @property
    def size(self) -> Size:
        """Of its world."""
        return Size(portfolios=self.portfolios, hotels=parse_hotels(self.hotels), years=self.years)

    @property
    def behaviour(self) -> Behaviour:
        """Of its platform."""
        by_creation, _ = ORDERS[self.newest_by]
        return Behaviour(requests=self.requests, per_seconds=self.per_seconds, by_creation=by_creation)

    @property
    def faults(self) -> str:
        """As `--faults` takes them."""
        return ",".join(filter(None, (ORDERS[self.newest_by][1], self.refusals)))

    def least(self) -> Least:
        """Its least, for whoever knows beforehand where the orders are.

        Requests: one for each thousand orders, and what lists enterprises and services (of a thousand, a list takes
        one more request that says so). Seconds: what the limit allows, or two answers for the lists, and 16 walks side
        by side; of several portfolios the longest one's. With nothing new: the lists, and one for each thousand
        services.
        """
        requests = nothing_new = 0
        seconds = 0.0
        for first in range(self.portfolios):
            hotels = parse_hotels(self.hotels)[first :: self.portfolios]  # they are dealt in turn
            services = sum(services for services, _ in hotels)
            pages = math.ceil(sum(orders for _, orders in hotels) / MOST)
            lists = len(hotels) // MOST + 1 + services // MOST + 1
            requests += lists + pages
            nothing_new += lists + math.ceil(services / MOST)
            walked = (2 + math.ceil(pages / WALKS)) * self.latency
            seconds = max(seconds, walked, self.least_by_budget(lists + pages))
        return Least(requests, seconds, nothing_new)

    def least_by_budget(self, requests: int) -> float:
        """The least seconds in which the limit lets as many requests of one token through.

        A slot is free a window after its answer: `fetcher/connector/budget.py` says why no less is safe.
        """
        full = math.ceil(requests / self.requests) - 1
        rest = math.ceil((requests - full * self.requests) / WALKS) * self.latency
        return full * (self.per_seconds + self.latency) + rest


ONE_PORTFOLIO = {
    "update": Goal(1.2, 2.0),
    "creation, lenient": Goal(1.35, 2.2),
    "creation, strict": Goal(1.8, 3.0),
}
PORTFOLIOS = Goal(1.25, 1.3)
BOUND = "40 in 3 s, 150 pages"
REFUSED = "8 % refused, 60 pages"
QUICK = ("200 hotels", BOUND, REFUSED)
"""Of a short run."""


def cases() -> Iterator[Case]:
    """All of them; those of one world come together, so that it is made once."""
    for name, hotels, years, latency in (
        ("200 hotels", "200x5x300", YEARS, 0.2),
        ("one beside 100", "1x5x60000,100x5x200", YEARS, 0.4),
        ("one, 25 days", "1x5x90000", DAYS, 0.8),
        ("one service, 25 days", "1x1x60000,20x5x200", DAYS, 0.8),
        ("one, 2.5 years", "1x5x90000", YEARS, 0.4),
    ):
        for newest_by, goal in ONE_PORTFOLIO.items():
            yield Case(name=name, hotels=hotels, years=years, latency=latency, newest_by=newest_by, goal=goal)
    for name, years in (("8 portfolios", YEARS), ("8 portfolios, 25 days", DAYS)):
        yield Case(name=name, hotels=_of_each_size(), portfolios=8, years=years, latency=0.2, goal=PORTFOLIOS)
    yield Case(
        name=BOUND,
        hotels="30x5x5000",
        years=YEARS,
        latency=0.05,
        requests=40,
        per_seconds=3.0,
        binds=True,
        goal=Goal(1.15, 1.05, None),
    )
    yield Case(
        name=REFUSED,
        hotels="1x5x60000",
        years=YEARS,
        latency=0.02,
        refusals="429=0.08,429-seconds=1",
        goal=Goal(1.4, 2.0, None),
    )


def _of_each_size() -> str:
    """8 portfolios of 30 hotels: 30 of 2,000 orders, one of 60,000 or 90,000 beside 29 of 200, one large service."""
    alike = "1x5x2000"
    first = (alike, "1x5x60000", "1x5x90000", "1x1x60000", "1x5x90000", alike, "1x5x60000", "1x5x90000")
    others = tuple(alike if one == alike else "1x5x200" for one in first)
    return ",".join(first + 29 * others)
