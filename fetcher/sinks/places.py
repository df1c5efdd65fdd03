"""Where sinks of files are, by their URLs: found out without importing what it takes to write there."""

from __future__ import annotations

from pathlib import Path

from fetcher.config import expand_home
from fetcher.errors import ConfigError


def place_of(url: str) -> Path:
    """The file or the folder that `jsonl:`, `parquet:` or `duckdb:` is followed by.

    Raises:
        ConfigError: it is none.
    """
    scheme, _, name = url.partition(":")
    place = "sink.url"
    if scheme == "jsonl" and (not name or name.endswith("/")):
        raise ConfigError(place, "jsonl: needs a file", 'Write it like "jsonl:orders.jsonl" or "jsonl:-"')
    if scheme == "duckdb" and (not name or name.startswith(":")):
        raise ConfigError(place, "duckdb: needs a file", 'Write it like "duckdb:orders.duckdb"')
    if scheme == "parquet" and (not name or name == "-"):
        raise ConfigError(place, "parquet: needs a folder", 'Write it like "parquet:orders/"')
    path = expand_home(name, place)
    if scheme == "parquet" and path.is_file():
        raise ConfigError(place, f"{name} is a file, and parquet: needs a folder", "Name a folder")
    return path


def is_blank(url: str) -> bool:
    """Whether it is certain, without opening the sink, that it holds no progress. Blocks for a look at a folder.

    What belongs to a file or folder lies beside it, under names that contain its own.
    """
    scheme = url.partition(":")[0]
    if scheme == "null" or url == "jsonl:-":
        return True
    if scheme not in ("jsonl", "parquet", "duckdb"):
        return False
    try:
        path = place_of(url).absolute()
        return ".." not in path.parts and not any(path.name in entry.name for entry in path.parent.iterdir())
    except (ConfigError, OSError):  # told by the sink, which has more to say
        return False
