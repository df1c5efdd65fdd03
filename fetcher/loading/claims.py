"""Which portfolio loads a service that several tokens see: whoever asks first, and may read it.

A portfolio that cannot load what it has claimed gives it back, and the next one that sees it takes it over, in the
same run. So a load that is done with its own waits until nothing can come to it any more. Nobody waits for ever: who
waits holds nothing that is not loaded, and every load either waits, or works, or has left.

An id is an id whatever its case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import anyio

Claimed = Mapping[str, bool]
"""By service id, as the portfolio wrote it when it claimed: whether orders of it may have been loaded in this run."""


class Claims(Protocol):
    """Shared by all loads of a run."""

    async def claim(self, portfolio: str, service_ids: Iterable[str]) -> Claimed:
        """Those of `service_ids` that this portfolio is to load; nobody else does, unless they are given back."""
        ...

    async def settle(self, portfolio: str, refused: Collection[str], begun: Collection[str]) -> Claimed:
        """All that the portfolio had to load is loaded, but for what it may not read. Waits for what others give back.

        Args:
            portfolio: whose load has come so far; none of its pages comes after those that were delivered before.
            refused: what it has claimed and may not read, for others.
            begun: of `refused`, services of which orders may have been delivered.

        Returns: what it is to load now, after which it settles again. If that is nothing, nothing can come any more.
        """
        ...

    async def leave(self, portfolio: str, begun: Collection[str] | None, *, for_others: bool = True) -> None:
        """The portfolio's load failed.

        Args:
            portfolio: whose load; none of its pages comes after those that were delivered before.
            begun: services of which orders may have been delivered; `None`: it may be any.
            for_others: whether others are to load what it has not; if not, it is for the next run.
        """
        ...


class _Service:
    """What is known of a service."""

    __slots__ = ("begun", "ids", "loaded", "owner")

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}  # by portfolio that sees it and may yet load it, in turn: how it writes the id
        self.owner: str | None = None
        self.begun = False
        self.loaded = False


class _Load:
    """What is known of a portfolio's load. The names are those of services, in small letters."""

    __slots__ = ("before", "changed", "held", "hoped", "loaded", "offered")

    def __init__(self) -> None:
        self.before: set[str] = set()  # of `held`, what it has not claimed since it began again
        self.held: dict[str, None] = {}  # it is to load these
        self.loaded: dict[str, None] = {}  # it has loaded these
        self.offered: dict[str, None] = {}  # given back by others, and its own as soon as it asks
        self.hoped: set[str] = set()  # it sees these, others hold them, and may give them back
        self.changed = anyio.Event()  # new whenever `offered` or `hoped` has changed


class FirstCome:
    """The claims of a run, kept in this process."""

    def __init__(self) -> None:
        # All mutable state; every method but `settle` changes it at once, and `settle` before and after it waits.
        self._services: dict[str, _Service] = {}
        self._loads: dict[str, _Load] = {}

    async def claim(self, portfolio: str, service_ids: Iterable[str]) -> Claimed:
        """See `Claims`."""
        load = self._loads.setdefault(portfolio, _Load())
        granted: dict[str, bool] = {}
        for id_ in service_ids:
            name = id_.lower()
            service = self._services.setdefault(name, _Service())
            if service.loaded:
                continue
            service.ids[portfolio] = id_
            if service.owner is None or name in load.before:
                load.before.discard(name)
                service.owner = portfolio
                load.held[name] = None
                granted[id_] = service.begun
            elif service.owner != portfolio:
                load.hoped.add(name)
        gone, load.before = load.before, set()
        self._give_back(portfolio, load, gone, gone)  # it sees them no more
        return granted

    def begin_again(self, portfolio: str) -> None:
        """The portfolio's load is gone, and begins anew: what it had to load, loaded or not, is its own as before."""
        load = self._loads.pop(portfolio, None)
        if load is None:
            return
        for name in load.hoped:
            del self._services[name].ids[portfolio]
        again = self._loads[portfolio] = _Load()
        again.held = load.held | load.offered | load.loaded
        again.before = set(again.held)
        for name in load.loaded:
            self._services[name].loaded = False

    async def settle(self, portfolio: str, refused: Collection[str], begun: Collection[str]) -> Claimed:
        """See `Claims`."""
        load = self._loads.setdefault(portfolio, _Load())
        self._give_back(portfolio, load, {id_.lower() for id_ in refused}, {id_.lower() for id_ in begun})
        self._loaded(load)
        while load.hoped and not load.offered:
            load.changed = anyio.Event()
            await load.changed.wait()
        offered, load.offered = load.offered, {}
        load.held.update(offered)
        return {self._services[name].ids[portfolio]: self._services[name].begun for name in offered}

    async def leave(self, portfolio: str, begun: Collection[str] | None, *, for_others: bool = True) -> None:
        """See `Claims`."""
        load = self._loads.get(portfolio)
        if load is None:
            return
        for name in load.hoped:
            del self._services[name].ids[portfolio]
        if not for_others:
            self._loaded(load)
        some = set(load.held) if begun is None else {id_.lower() for id_ in begun}
        self._give_back(portfolio, load, load.held.keys() | load.offered.keys(), some)
        del self._loads[portfolio]

    def _give_back(self, portfolio: str, load: _Load, names: Collection[str], begun: Collection[str]) -> None:
        """Offer what the portfolio cannot load to the next one of those that see it."""
        for name in sorted(names):
            if name not in load.held and name not in load.offered:
                continue
            load.held.pop(name, None)
            load.offered.pop(name, None)
            service = self._services[name]
            service.begun |= name in begun
            del service.ids[portfolio]
            service.owner = next(iter(service.ids), None)
            if service.owner is not None:
                heir = self._loads[service.owner]
                heir.hoped.discard(name)
                heir.offered[name] = None
                heir.changed.set()

    def _loaded(self, load: _Load) -> None:
        """What the load holds is loaded: nobody else needs it."""
        for name in load.held:
            service = self._services[name]
            service.loaded = True
            for other in service.ids:
                if name in (hoped := self._loads[other].hoped):
                    hoped.discard(name)
                    self._loads[other].changed.set()
        load.loaded |= load.held
        load.held.clear()
