"""What makes a version of an order, as digests: which order and time (`key`), and what it said (`content`). Pure.

The platform's times have whole seconds, so that two changes may share one: a version is its `UpdatedUtc` and its
content. The same content again is no version, however it is written: white space, the order of properties, null or
nothing, the case of an id and the digits of a fraction do not make another one.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Any

import msgspec

DIGEST_BYTES = 12
"""Two of a billion versions have the same digest once in 100 billion such loads."""


class Version(msgspec.Struct, frozen=True):
    """One version of an order."""

    key: bytes
    """Of the order's id and `UpdatedUtc`."""
    content: bytes
    id: bytes
    """Of the order's id alone."""
    updated: str
    """`UpdatedUtc` as text."""
    state: str


def digest(data: bytes) -> bytes:
    """A short name for `data`."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def normal_time(text: str) -> str:
    """A time in UTC without its zone, its fraction as short as it can be, and never longer than six digits."""
    text = text.removesuffix("Z").removesuffix("+00:00")
    if "." in text:
        head, _, fraction = text.partition(".")
        text = f"{head}.{fraction[:6]}".rstrip("0").rstrip(".")
    return text


def version(id_: str, updated: str, content: bytes, state: str) -> Version:
    """A version whose content's digest is known."""
    of_id = id_.lower().encode("utf-8", "replace")
    return Version(digest(of_id + normal_time(updated).encode()), content, digest(of_id), updated, state)


_UUID = re.compile(rb'"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"')
_TIMES = ("CreatedUtc", "UpdatedUtc", "CancelledUtc")


class _Key(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    updated: str = msgspec.field(name="UpdatedUtc")
    state: Any = msgspec.field(name="State", default="")


_KEY = msgspec.json.Decoder(_Key)
_ANY = msgspec.json.Decoder(dict[str, Any])
_SORTED = msgspec.json.Encoder(order="sorted")


def version_of_line(line: bytes) -> Version:
    """The version that a JSON line is.

    Raises:
        ValueError: it is no order.
    """
    try:
        key = _KEY.decode(line)
        id_, updated, state = key.id, key.updated, key.state
    except msgspec.MsgspecError:  # one that only a more lenient reader takes, kept as it came
        id_, updated, state = _leniently(line)
    try:
        order = {name: value for name, value in _ANY.decode(line).items() if value is not None}
        for name in _TIMES:
            if isinstance(time := order.get(name), str):
                order[name] = normal_time(time)
        content = _SORTED.encode(order)
    except (msgspec.MsgspecError, ValueError):  # likewise, or a number that no reader takes
        content = line.rstrip()
    return version(id_, updated, digest(_UUID.sub(_lower, content)), state if isinstance(state, str) else "")


def _leniently(line: bytes) -> tuple[str, str, Any]:
    order = json.loads(line)
    try:
        return order["Id"], order["UpdatedUtc"], order.get("State")
    except (KeyError, TypeError):
        raise ValueError("it is no order") from None


def _lower(found: re.Match[bytes]) -> bytes:
    return found[0].lower()
