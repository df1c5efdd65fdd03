"""Where the orders go: `make_sink` gives the sink for a URL."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import msgspec

from fetcher.errors import ConfigError, MissingExtraError
from fetcher.sinks.base import Batch, EncodedPage, Extent, Holdings, Page, Progress, RowCount, Sink
from fetcher.sinks.places import place_of

__all__ = [
    "Batch",
    "EncodedPage",
    "Extent",
    "Holdings",
    "LaterSink",
    "Page",
    "Progress",
    "RowCount",
    "Sink",
    "later_sink",
    "make_sink",
]

# Each module defines `make(url) -> Sink` and imports what only it needs, so that an extra is missed only by its users.
_MODULES = {
    "null": "fetcher.sinks.null",
    "jsonl": "fetcher.sinks.appending.jsonl",
    "parquet": "fetcher.sinks.appending.parquet",
    "duckdb": "fetcher.sinks.duckdb",
    "postgresql": "fetcher.sinks.postgres",
    "postgres": "fetcher.sinks.postgres",
}
_SLOW = {"parquet": ("pyarrow",), "duckdb": ("duckdb", "pyarrow")}
"""By scheme, packages that take a tenth of a second to import."""
_SHARED = frozenset({"postgresql", "postgres"})
"""Schemes of sinks that are `Sink.shared`."""


class LaterSink(msgspec.Struct, frozen=True):
    """A sink that is yet to be made: what can be wrong with its URL is told already, what takes time is not done."""

    url: str

    @property
    def shared(self) -> bool:
        """See `Sink.shared`."""
        return self.url.partition(":")[0] in _SHARED

    def make(self) -> Sink:
        """Make it. Imports what it needs, so that it is for a thread.

        Raises:
            MissingExtraError: a package that it needs is there, and cannot be imported.
        """
        return make_sink(self.url)


def later_sink(url: str) -> Sink | LaterSink:
    """The sink that `url` names, or what makes it if that takes a while.

    Raises:
        ConfigError, MissingExtraError: as for `make_sink`.
    """
    scheme = url.partition(":")[0]
    if scheme not in _SLOW:
        return make_sink(url)
    if any(find_spec(package) is None for package in _SLOW[scheme]):
        raise MissingExtraError(f"{scheme}:", scheme)
    place_of(url)
    return LaterSink(url)


def make_sink(url: str) -> Sink:
    """The sink that `url` names, not yet opened: `scheme:rest`, as in the configuration's `[sink] url`.

    Raises:
        ConfigError: the scheme is unknown, or what follows it is not what the scheme needs.
        MissingExtraError: the sink needs a package that is not installed.
    """
    scheme, colon, _ = url.partition(":")
    module = _MODULES.get(scheme)
    if not colon or module is None:
        schemes = ", ".join(f"{name}:" for name in _MODULES if name != "postgres")
        raise ConfigError(
            "sink.url",
            f"its scheme {scheme[:20]!r} is none that can be written to",
            f"Begin it with one of {schemes}",
        )
    make: Callable[[str], Sink] = import_module(module).make
    return make(url)
