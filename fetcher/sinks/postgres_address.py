"""The address of a PostgreSQL database: what libpq takes is passed on as it is, but for `schema`, which is ours.

Read here are only the parts that are shown, by libpq's own rules (which are not those of web addresses: the first `@`
ends user and password, `+` is no space, `#` is a letter like any other).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

import msgspec
import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from fetcher.errors import ConfigError

_CURE = 'Write it like "postgresql://user@host:5432/database?schema=public"'
_SCHEMA = re.compile(r"[^\x00]{1,63}")

_DEFAULTS: Mapping[str, tuple[str, str]] = {
    "fallback_application_name": ("fetcher", ""),  # libpq's own way to be overruled by the environment, too
    "connect_timeout": ("15", "PGCONNECT_TIMEOUT"),
    # A server that is gone without a word is found out within a minute or two, not after hours.
    "keepalives_idle": ("30", ""),
    "keepalives_interval": ("10", ""),
    "keepalives_count": ("3", ""),
    "tcp_user_timeout": ("60000", ""),
}
"""What is said where the user does not: parameter, its value, and the environment's variable that says it as well."""


class Address(msgspec.Struct, frozen=True):
    """Where a database is."""

    shown: str
    """For messages: no password, and nothing else of the query than the schema."""
    conninfo: str
    """As libpq takes it; may hold a password."""
    schema: str

    def parameters(self) -> dict[str, str]:
        """What is said beside `conninfo`: our defaults, and the encoding in which we send text, always."""
        said = conninfo_to_dict(self.conninfo)
        chosen = {"client_encoding": "UTF8"}
        if "service" in said or os.environ.get("PGSERVICE"):
            return chosen  # a service file may say any of the others, and would be overruled
        for name, (value, variable) in _DEFAULTS.items():
            if name not in said and not os.environ.get(variable):
                chosen[name] = value
        return chosen


def read_address(url: str) -> Address:
    """Where the database of `postgresql://user:password@host:port/database?schema=name` is.

    Raises:
        ConfigError: libpq would not take it. Never repeats what may be part of a password.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in ("postgresql", "postgres"):
        raise ConfigError("sink.url", "it is no address of a database", _CURE)
    place, question, query = _split_query(rest)
    options = [part for part in query.split("&") if part]
    ours = [part for part in options if part.partition("=")[0] == "schema"]
    theirs = [part for part in options if part.partition("=")[0] != "schema"]
    schema = unquote(ours[-1].partition("=")[2]) if ours else "public"
    if not _SCHEMA.fullmatch(schema):
        raise ConfigError("sink.url", "its schema is no name", _CURE)
    conninfo = f"postgresql://{place}{question if theirs else ''}{'&'.join(theirs)}"
    _require_readable(conninfo, theirs)
    shown = "postgresql://" + _without_password(place) + (f"?schema={schema}" if schema != "public" else "")
    return Address(shown, conninfo, schema)


def _split_query(rest: str) -> tuple[str, str, str]:
    """What comes before the query, and the query; a question mark in a password begins none."""
    credentials, at, after = _split_credentials(rest)
    place, question, query = after.partition("?")
    return credentials + at + place, question, query


def _split_credentials(place: str) -> tuple[str, str, str]:
    """User and password, `@`, and what follows."""
    slash = place.find("/")
    at = place.find("@", 0, slash if slash >= 0 else None)
    return ("", "", place) if at < 0 else (place[:at], "@", place[at + 1 :])


def _without_password(place: str) -> str:
    credentials, at, after = _split_credentials(place)
    user = credentials.partition(":")[0]
    return f"{user}{at if user else ''}{after}"


def _require_readable(conninfo: str, options: list[str]) -> None:
    """Make sure that libpq reads it, and as it was meant: what is left of a torn password would be shown."""
    _, _, after = _split_credentials(conninfo.partition("://")[2])
    if "@" in after.partition("?")[0]:
        raise ConfigError("sink.url", "its password has an @ or a slash", "Write %40 for an @, %2F for a slash")
    try:
        read = conninfo_to_dict(conninfo)
    except psycopg.Error:
        names = [unquote(part.partition("=")[0]) for part in options]
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} | {"ssl"}
        unknown = [name for name in names if name not in known]
        if unknown and not {"password", "sslpassword"} & set(names):  # or it may be the rest of one
            cause = f"it has an option that PostgreSQL does not know, {unknown[0][:40]!r}"
            raise ConfigError("sink.url", cause, _CURE) from None
        cure = "Write % / @ : ? & and spaces in names, passwords and options as %25 %2F %40 %3A %3F %26 %20"
        raise ConfigError("sink.url", "libpq cannot read it", cure) from None
    if not re.fullmatch(r"[0-9,]*", str(read.get("port") or "")):
        raise ConfigError("sink.url", "its port is no number", _CURE)
