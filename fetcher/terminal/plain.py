"""The arguments of `fetcher run` where they are plain: as typer reads them, in none of the time.

To read a text, newer versions of typer import what converts values of all types, which takes a fifth of what a run has
until its first request. Whatever is to be explained to somebody, or is for another command, is left to typer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `fetcher run` is told; see its help."""

    config: Path = Path("config.toml")
    sink: str | None = None
    from_: str | None = None
    until: str | None = None
    full: bool = False
    as_json: bool = False
    quiet: bool = False


_TEXTS = {"--sink": "sink", "--from": "from_", "--until": "until"}
_FLAGS = {"--full": "full", "--json": "as_json", "--quiet": "quiet"}


def plain_run(arguments: Sequence[str]) -> RunOptions | None:
    """What the program's arguments tell `fetcher run`; `None`: typer is to read them."""
    if not arguments or arguments[0] != "run":
        return None
    found: dict[str, Any] = {}
    rest = iter(arguments[1:])
    for argument in rest:
        option, equals, value = argument.partition("=")
        if argument in _FLAGS:
            name, given = _FLAGS[argument], True
        elif option in _TEXTS:
            name, given = _TEXTS[option], value if equals else next(rest, "")
        else:
            name, given = "config", argument
        if name in found or (isinstance(given, str) and (not given or given.startswith("-"))):
            return None  # most probably a mistake
        found[name] = Path(str(given)) if name == "config" else given
    return RunOptions(**found)
