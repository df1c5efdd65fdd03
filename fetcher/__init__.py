"""Loads every product service order of many hotels from the Mews Connector API into a file or a database.

report = await fetcher.run("config.toml")                 # into the configured sink

async with fetcher.open("config.toml") as job:            # or take the pages yourself
    async for page in job.pages():
        for order in page.orders: ...

table = fetcher.load("config.toml")                       # notebooks: a pyarrow.Table, no event loop
"""

# pyarrow ships no types, so that everything of it is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import sys

if sys.platform == "win32":
    raise ImportError("fetcher runs on POSIX systems alone (Linux, macOS): on Windows, install it within WSL")

from pathlib import Path
from typing import TYPE_CHECKING

from fetcher.config import Config, load_config
from fetcher.connector.types import OrderOptions, ProductServiceOrder
from fetcher.errors import (
    AccessDeniedError,
    BadResponseError,
    ConfigError,
    DataError,
    FetcherError,
    IncompleteError,
    InvalidRequestError,
    InvalidStatesError,
    MissingExtraError,
    PausedError,
    PlatformError,
    SetupError,
    SinkBusyError,
    SinkError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.job import Job
from fetcher.processes.supervisor import processes_for
from fetcher.report import Failure, PortfolioReport, Report, Tally
from fetcher.sinks import Page, make_sink

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

__all__ = [
    "AccessDeniedError",
    "BadResponseError",
    "Config",
    "ConfigError",
    "DataError",
    "Failure",
    "FetcherError",
    "IncompleteError",
    "InvalidRequestError",
    "InvalidStatesError",
    "Job",
    "MissingExtraError",
    "OrderOptions",
    "Page",
    "PausedError",
    "PlatformError",
    "PortfolioReport",
    "ProductServiceOrder",
    "Report",
    "SetupError",
    "SinkBusyError",
    "SinkError",
    "Tally",
    "TooHeavyError",
    "UnavailableError",
    "load",
    "load_config",
    "open",
    "run",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # read from the installed package, which takes 20 ms that a run can do without
        from importlib.metadata import version

        return version("fetcher")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


async def run(config: str | Path | Config, *, full: bool = False) -> Report:
    """Load every order of the selection into the configured sink; cancel it, and what was committed stays.

    Args:
        config: a file, or what `load_config` gave.
        full: read everything again, whatever the sink holds already.

    Raises:
        ConfigError: the configuration is wrong, or a token is missing.
        MissingExtraError: the sink needs a package that is not installed.
        SinkError: the sink cannot be used, or failed.

    What failed at the platform raises nothing: see the report's `complete` and `failed`.
    """
    settings = _config(config)
    processes = settings.limits.processes and processes_for(settings)
    async with Job(settings, sink=make_sink(settings.sink_url), full=full, processes=processes) as job:
        return await job.run()


def open(config: str | Path | Config) -> Job:  # noqa: A001 `fetcher.open` reads as it should
    """A job whose pages you take yourself: `async with fetcher.open(...) as job`, then `async for page in job.pages()`.

    Raises:
        ConfigError: the configuration is wrong; a missing token is told on entering.
    """
    return Job(_config(config))


def load(config: str | Path | Config) -> pa.Table:
    """Every order of the selection as one pyarrow.Table, one row an order; the sink is not used.

    For notebooks and scripts: it needs no event loop, and works where one is running. Memory grows with the orders,
    about 450 bytes each. Ctrl-C ends it within 5 seconds, with KeyboardInterrupt.

    Raises:
        ConfigError: the configuration is wrong, or a token is missing.
        MissingExtraError: pyarrow is not installed.
        IncompleteError: part of the selection could not be had; its attribute `table` has the rest.
    """
    from fetcher.notebook import load_table  # pyarrow is an extra

    return load_table(_config(config))


def _config(config: str | Path | Config) -> Config:
    return config if isinstance(config, Config) else load_config(config)
