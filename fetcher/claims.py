"""Which portfolio loads a service that several tokens see: whoever asks first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Claims(Protocol):
    """Shared by all loads of a run."""

    async def claim(self, portfolio: str, service_ids: Iterable[str]) -> frozenset[str]:
        """Those of `service_ids` that this portfolio is to load; nobody else will."""
        ...


class FirstCome:
    """The claims of a run, kept in this process."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    async def claim(self, portfolio: str, service_ids: Iterable[str]) -> frozenset[str]:
        """See `Claims`."""
        return frozenset(id_ for id_ in service_ids if self._owners.setdefault(id_, portfolio) == portfolio)
