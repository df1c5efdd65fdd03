"""Which loader loads what. Pure.

The rule that cannot be broken: a token is one loader's at a time, with all the portfolios that have it, for so is its
budget. What is dealt together is a *hand*: a configuration with some of the portfolios.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping

import msgspec

from fetcher.config import Config, PortfolioConfig


def deal(config: Config, processes: int) -> list[Config]:
    """A hand for each process: each token is in one of them, and none is without.

    Args:
        config: with every token resolved.
        processes: as many at most.
    """
    by_token = _by_token(config)
    hands: list[list[PortfolioConfig]] = [[] for _ in range(min(processes, len(by_token)))]
    for number, portfolios in enumerate(by_token):
        hands[number % len(hands)] += portfolios
    limits = config.limits  # of the whole run
    share = msgspec.structs.replace(limits, opens_per_second=limits.opens_per_second / len(hands))
    return [msgspec.structs.replace(config, portfolios=hand, limits=share) for hand in hands]


def one_by_one(config: Config, at_once: int, sizes: Mapping[str, float]) -> list[Config]:
    """A hand for each token, the large first.

    Args:
        config: with every token resolved.
        at_once: how many are loaded at once, by all loaders together.
        sizes: by portfolio, how much there is to load, in any measure; those that are not named may be of any size, and
            go before all others.
    """
    tokens = _by_token(config)
    tokens.sort(key=lambda portfolios: -sum(sizes.get(one.name, float("inf")) for one in portfolios))
    limits = config.limits
    opens = limits.opens_per_second / max(1, min(at_once, len(tokens)))
    share = msgspec.structs.replace(limits, opens_per_second=opens)
    return [msgspec.structs.replace(config, portfolios=portfolios, limits=share) for portfolios in tokens]


class Dealing:
    """Who has what, and what nobody has yet. Loaders are numbers.

    Args:
        hands: to be dealt, in turn.
        at_once: hands that a loader has at once, at most; the others wait for one that has room. `None`: any number.
    """

    def __init__(self, hands: Iterable[Config], at_once: int | None = None) -> None:
        self._at_once = at_once
        # All mutable state; a hand is in one place.
        self._waiting = deque(hands)
        self._held: dict[int, list[Config]] = {}  # by loader
        self._next = 0

    def join(self) -> int:
        """Another loader is there."""
        self._next += 1
        self._held[self._next] = []
        return self._next

    def deal(self) -> list[tuple[int, Config]]:
        """Give what waits to whoever has the least, as long as somebody has room; returns who gets what."""
        given: list[tuple[int, Config]] = []
        while self._waiting:
            free = [one for one, hands in self._held.items() if self._at_once is None or len(hands) < self._at_once]
            if not free:
                break
            loader = min(free, key=lambda one: sum(len(hand.portfolios) for hand in self._held[one]))
            hand = self._waiting.popleft()
            self._held[loader].append(hand)
            given.append((loader, hand))
        return given

    def done(self, loader: int, portfolios: Collection[str]) -> None:
        """A hand is loaded: the one of these portfolios."""
        self._held[loader] = [hand for hand in self._held[loader] if not names_of(hand) & set(portfolios)]

    def leave(self, loader: int, dropped: Collection[str]) -> None:
        """A loader is gone. What it had is dealt again, token by token, before all others, but for what is dropped."""
        for hand in reversed(self._held.pop(loader)):
            for portfolios in reversed(_by_token(hand)):
                if left := [one for one in portfolios if one.name not in dropped]:
                    self._waiting.appendleft(msgspec.structs.replace(hand, portfolios=left))

    def drop(self) -> set[str]:
        """Nothing more is dealt; returns the portfolios that nobody has."""
        dropped = {name for hand in self._waiting for name in names_of(hand)}
        self._waiting.clear()
        return dropped

    def held(self, loader: int) -> set[str]:
        """The portfolios that a loader has."""
        return {name for hand in self._held[loader] for name in names_of(hand)}


def names_of(hand: Config) -> set[str]:
    """Its portfolios."""
    return {portfolio.name for portfolio in hand.portfolios}


def _by_token(config: Config) -> list[list[PortfolioConfig]]:
    by_token: dict[str, list[PortfolioConfig]] = {}
    for portfolio in config.portfolios:
        by_token.setdefault(portfolio.access_token.resolve(portfolio.name).reveal(), []).append(portfolio)
    return list(by_token.values())
