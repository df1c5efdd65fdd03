"""Where the orders go: `make_sink` gives the sink for a URL."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from fetcher.errors import ConfigError
from fetcher.sinks.base import Batch, EncodedPage, Extent, Holdings, Page, Progress, RowCount, Sink

__all__ = ["Batch", "EncodedPage", "Extent", "Holdings", "Page", "Progress", "RowCount", "Sink", "make_sink"]

# Each module defines `make(url) -> Sink` and imports what only it needs, so that an extra is missed only by its users.
_MODULES = {
    "null": "fetcher.sinks.null",
    "jsonl": "fetcher.sinks.appending.jsonl",
    "parquet": "fetcher.sinks.appending.parquet",
    "duckdb": "fetcher.sinks.duckdb",
    "postgresql": "fetcher.sinks.postgres",
    "postgres": "fetcher.sinks.postgres",
}


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
