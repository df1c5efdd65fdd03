"""How many files this process may have open, and how many connections that leaves room for."""

from __future__ import annotations

import logging
import resource
from contextlib import suppress
from pathlib import Path

from fetcher.config import Config
from fetcher.errors import ConfigError

log = logging.getLogger("fetcher")

FOR_A_PORTFOLIO = 2
"""Its token's record of requests: a descriptor, and the one that its memory map keeps."""
FOR_THE_REST = 64
"""The sink's, and whatever is open for a moment: names being looked up, libraries being loaded."""
LEAST_CONNECTIONS = 8
"""With fewer a load does not get anywhere."""


def connections_for(config: Config) -> int:
    """How many connections the portfolios of `config` may have in this process: one for each walk, if there is room.

    The soft limit of open files is raised to what that needs, where the hard one lets it; what is open stays open.

    Raises:
        ConfigError: not even the least that a load needs may be open.
    """
    portfolios = len(config.portfolios)
    wanted = portfolios * config.limits.walks
    fixed = _open_now() + portfolios * FOR_A_PORTFOLIO + FOR_THE_REST
    allowed = _allow(fixed + wanted)
    left = allowed - fixed
    if left >= wanted:
        return wanted
    if left < min(wanted, LEAST_CONNECTIONS):
        cause = f"this process may have {allowed} open, which is too few for {portfolios} portfolios"
        cure = f"Raise the limit (ulimit -n {fixed + wanted}), or load fewer portfolios in a run"
        raise ConfigError("open files", cause, cure)
    log.warning(
        "this process may have %d files open: of %d requests at once, %d are under way. Raise it: ulimit -n %d",
        *(allowed, wanted, left, fixed + wanted),
    )
    return left


def _allow(needed: int) -> int:
    """Have as many files allowed as are needed, if that can be; returns how many are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(ValueError, OSError):  # some systems have a lower limit than they tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        return target
    return soft


def _open_now() -> int:
    with suppress(OSError):
        return sum(1 for _ in Path("/dev/fd").iterdir())
    return 0
