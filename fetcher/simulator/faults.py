"""What a misbehaving platform does, by name and share, from a seed. Pure.

    faults = parse_faults("500=0.02,reset=0.01,heavy-pages=400,revoke=60")

Kinds with a share (0 to 1) strike requests at random; kinds with a number set up a condition that stays.
`all=0.1` gives each kind that strikes an equal part of a share of 0.1.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

STRIKES = {
    "500": "an error of the platform",
    "502": "a proxy answers with HTML",
    "503": "unavailable, with or without Retry-After",
    "408": "the request is called too heavy",
    "429": "refused though there is room: others use the token",
    "401": "a token is refused once, by mistake",
    "reset": "the connection breaks before the answer",
    "lost": "the connection breaks before the request arrives",
    "stall": "no answer comes, for as long as anybody waits",
    "truncated": "the body ends early, and the connection with it",
    "corrupt": "bytes of the body are damaged",
    "gzip": "the body claims to be gzip, and is damaged",
    "not-utf8": "the body is not UTF-8",
    "not-json": "200, with a page of HTML",
    "nested": "200, with JSON that is nested very deep",
    "cursor": "the cursor is no longer known",
    "circle": "the page's cursor is the one that was asked with",
    "twice": "an order is twice in a page",
    "outside": "an order of another time is in the page",
    "unasked": "an order of another service is in the page",
}
"""Kinds that strike one request, by their share."""

HOSTILE = {
    "bomb": "a small gzip body that inflates to gigabytes",
    "large": "a body beyond every bound",
    "endless": "a body that never ends",
    "redirect": "the answer redirects elsewhere",
    "type": "one order has a number where text should be",
}
"""Kinds that strike like those, and that no retry gets over if their share is 1; not part of `all`."""

CONDITIONS = {
    "bad-services": "as many services of each portfolio are refused, unnamed, and spoil their request",
    "bad-enterprises": "as many enterprises of each portfolio, likewise, when services are asked for; "
    "theirs are not in a list that names no enterprises",
    "429-seconds": "a 429 that strikes asks to wait exactly as many whole seconds (at least 1), not 1 to 3 at random",
    "heavy-pages": "408 for every page of more orders than this",
    "heavy-stalls": "no answer, for as long as anybody waits, for every page of more orders than this",
    "heavy-windows": "408 for every query that matches more orders than this, but for pages of at most 50",
    "heavy-ids": "413 for every request with more ids than this",
    "revoke": "the first portfolio's token is refused after as many requests",
    "forbid": "the first portfolio's token may not read orders: 403 (any number)",
    "forbid-services": "it may not read those of as many services: 403, unnamed",
    "forbid-enterprises": "it may not read those of any service of as many enterprises, likewise",
    "shared": "every token sees the enterprises of the first portfolio, too (any number)",
    "others": "other programs send as many requests a second with each token",
    "outage-after": "the platform is down after as many requests, ...",
    "outage-seconds": "... for as many seconds (default 10)",
    "outage-pause": "as the outage begins, the first portfolio's token is told to wait as many seconds (a 503)",
    "retry-after": "every 408, 413, 429 and 5xx asks to wait at least as many seconds",
    "clock-skew": "a share of the answers, of the platform and of its proxy, bears a Date that is hours ahead; 1: all",
    "skew-first": "so do as many of the first answers",
    "skew-hours": "how many hours those are ahead (default 2)",
    "changes": "as many orders change every second",
    "late": "changes say that they happened up to as many seconds before they can be read",
    "same-second": "what changes does so once more within the same second, under the same UpdatedUtc (any number)",
    "bad-order": "as large a share of the orders cannot be read, or not be kept by every sink",
    "capitals": "as large a share of the answers has its ids in capitals",
    "unknown": "every page's orders have a property that is not documented (any number)",
    "invalid-cursors": "a cursor whose order has left the filter is refused (any number)",
}
"""Kinds that set up a condition, by their number."""


class Faults(msgspec.Struct, frozen=True):
    """Shares of what strikes at random, and conditions; both by kind."""

    strikes: Mapping[str, float] = {}
    conditions: Mapping[str, float] = {}

    def __post_init__(self) -> None:
        if sum(self.strikes.values()) > 1.000001:
            raise ValueError("the shares of the faults add up to more than 1")

    def draw(self, chance: random.Random) -> str | None:
        """The kind that strikes a request, if one does."""
        if not self.strikes:
            return None
        left = chance.random()
        for kind, share in self.strikes.items():
            left -= share
            if left < 0:
                return kind
        return None

    def condition(self, kind: str, default: float = 0) -> float:
        """The number of a condition; `default` if it is not set up."""
        return self.conditions.get(kind, default)


def parse_faults(text: str) -> Faults:
    """Faults from `kind=number,kind=number,...`; an empty text is none.

    Raises:
        ValueError: a kind is unknown, or its number is none that it can have.
    """
    strikes: dict[str, float] = {}
    conditions: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, number_text = part.partition("=")
        try:
            number = float(number_text or "nan")
        except ValueError:
            number = float("nan")
        if kind == "all" and 0 <= number <= 1:
            strikes.update(dict.fromkeys(STRIKES, number / len(STRIKES)))
        elif kind in STRIKES or kind in HOSTILE:
            if not 0 <= number <= 1:
                raise ValueError(f"{kind} needs a share from 0 to 1, e.g. {kind}=0.01")
            strikes[kind] = number
        elif kind in CONDITIONS:
            if not number >= 0:
                raise ValueError(f"{kind} needs a number, e.g. {kind}=1")
            conditions[kind] = number
        else:
            raise ValueError(f"there is no fault {kind!r}; there are: {', '.join(known_kinds())}")
    return Faults(strikes, conditions)


def known_kinds() -> list[str]:
    """Every kind, in the order of their description."""
    return ["all", *STRIKES, *HOSTILE, *CONDITIONS]
