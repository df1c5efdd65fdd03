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

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa  # type: ignore[import-untyped]

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
    from fetcher.report import Failure, PortfolioReport, Report, Tally
    from fetcher.sinks.base import Page

    __version__: str

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

# Where each name is defined: imported when it is first asked for, since whatever starts a run imports this module,
# and a worker of it, say, needs few of them.
_MODULES = {
    "fetcher.config": ("Config", "load_config"),
    "fetcher.connector.types": ("OrderOptions", "ProductServiceOrder"),
    "fetcher.errors": (
        "AccessDeniedError",
        "BadResponseError",
        "ConfigError",
        "DataError",
        "FetcherError",
        "IncompleteError",
        "InvalidRequestError",
        "InvalidStatesError",
        "MissingExtraError",
        "PausedError",
        "PlatformError",
        "SetupError",
        "SinkBusyError",
        "SinkError",
        "TooHeavyError",
        "UnavailableError",
    ),
    "fetcher.job": ("Job",),
    "fetcher.report": ("Failure", "PortfolioReport", "Report", "Tally"),
    "fetcher.sinks.base": ("Page",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = {"config", "connector", "errors", "job", "loading", "planning", "processes", "report", "sinks"}
"""What is there without being imported by name, as it always was."""


if not TYPE_CHECKING:  # a checker would take it for a module that has every name

    def __getattr__(name: str) -> object:
        if name == "__version__":  # read from the installed package, which takes 20 ms that a run can do without
            from importlib.metadata import version

            return version("fetcher")
        if name in _SUBMODULES:
            return import_module(f"fetcher.{name}")
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_SUBMODULES, "__version__"})


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
    from fetcher.job import Job
    from fetcher.processes.supervisor import processes_for
    from fetcher.sinks import later_sink

    settings = _config(config)
    processes = settings.limits.processes and processes_for(settings)
    async with Job(settings, sink=later_sink(settings.sink_url), full=full, processes=processes) as job:
        return await job.run()


def open(config: str | Path | Config) -> Job:  # noqa: A001 `fetcher.open` reads as it should
    """A job whose pages you take yourself: `async with fetcher.open(...) as job`, then `async for page in job.pages()`.

    Raises:
        ConfigError: the configuration is wrong; a missing token is told on entering.
    """
    from fetcher.job import Job

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
    from fetcher.config import Config, load_config

    return config if isinstance(config, Config) else load_config(config)
