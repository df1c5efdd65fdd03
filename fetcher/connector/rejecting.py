"""Orders that cannot be read: what can be told of them all the same, and how a damaged page is cut into orders. Pure.

The rule that cannot be broken: no reason ever repeats a value (promise P10); the value is in the raw order alone, which
is kept where the orders are.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from fetcher.connector.types import RejectedOrder, parse_utc

LONGEST_ID = 200
"""Characters; the platform's have 36."""

_MISMATCH = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<found>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_ID = re.compile(rb'"Id"\s*:\s*"([0-9A-Za-z-]{1,200})"')
_STEP = re.compile(rb'(?>[^"{}\[\]]+|"(?>[^"\\]+|\\.)*+")*+([{}\[\]])', re.DOTALL)
"""Up to the next brace or bracket that is in no text, in one go: what was passed is never looked at again, so that a
body that is cut off within a text takes no longer than another."""


def reason_of(message: str) -> str:
    """What msgspec found, as property, what was expected and what was found; its messages never hold values."""
    if found := _MISMATCH.match(message):
        expected, came = (_in_words(kinds) for kinds in (found["expected"], found["found"]))
        return f"{found['path'] or 'the order'} should be {expected}, found {came}"
    if found := _MISSING.match(message):
        path = f"{found['path']}." if found["path"] else ""
        return f"{path}{found['name']} should be there, found nothing"
    return "a property should be as documented, found something else"


def damage_of(error: Exception) -> str:
    """What makes an order no JSON, by what its reader says; values never appear in its messages."""
    if isinstance(error, UnicodeDecodeError):
        return "bytes that are no UTF-8"
    if isinstance(error, RecursionError):
        return "more levels than can be read"
    message = str(error)
    return next((words for sign, words in _DAMAGES.items() if sign in message), "other bytes")


_DAMAGES = {
    "surrogate": "half of a letter (a surrogate without its other half)",
    "invalid character": "a control character within a text, or a stray one",
    "escape": "an escape that is none",
}


def _in_words(kinds: str) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds.split(" | "))


_KINDS = {
    "str": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def reject(raw: bytes, reason: str) -> RejectedOrder:
    """An order that cannot be read, with what of it can.

    Args:
        raw: the order as it came.
        reason: see `RejectedOrder.reason`.
    """
    line = raw.replace(b"\n", b" ").replace(b"\r", b" ")  # never within a JSON string: there they are escaped
    order, is_json = _loosely(line)
    id_ = _text(order.get("Id"))
    if id_ is None and not order and (found := _ID.search(line)):
        id_ = found[1].decode()
    updated = _text(order.get("UpdatedUtc"))
    return RejectedOrder(
        id=id_,
        service_id=_text(order.get("ServiceId")),
        updated_utc=updated if updated is not None and _is_time(updated) else None,
        reason=reason,
        raw=line,
        is_json=is_json,
    )


def _loosely(line: bytes) -> tuple[dict[str, Any], bool]:
    """The order as Python's reader takes it, which is more lenient; and whether that reader takes it as it is."""
    for text, strict in ((line, True), (line.decode("utf-8", "replace"), False)):
        try:
            order = json.loads(text, strict=strict)
        except (ValueError, RecursionError):
            continue
        return (cast(dict[str, Any], order) if isinstance(order, dict) else {}), strict
    return {}, False


def _text(value: Any) -> str | None:
    """`value` if it may be an id or a time."""
    usable = isinstance(value, str) and 0 < len(value) <= LONGEST_ID and value.isprintable() and value.isascii()
    return value if usable else None


def _is_time(text: str) -> bool:
    try:
        parse_utc(text)
    except (ValueError, OverflowError):
        return False
    return True


def cut_items(body: bytes, name: str) -> tuple[list[bytes], bytes] | None:
    """The objects in the list `name` of a JSON object, each as its bytes, and the body with an empty list instead.

    Braces and quotes are all that is looked at, so that what is wrong within an item does not matter. `None` if the
    body does not have that shape: it was cut off, say.
    """
    found = re.search(rb'"' + re.escape(name.encode()) + rb'"\s*:\s*\[', body)
    if found is None:
        return None
    items: list[bytes] = []
    depth, begin, after, place = 0, found.end(), found.end(), found.end()
    while (step := _STEP.match(body, place)) is not None:
        kind, at, place = step[1], step.start(1), step.end()
        if not depth:
            between = body[after:at].strip(b" \t\r\n")
            if kind not in b"{]" or between != (b"," if items and kind == b"{" else b""):
                return None
            if kind == b"]":
                return items, body[: found.end()] + body[at:]
        if kind in b"{[":
            begin = begin if depth else at
            depth += 1
        else:
            depth -= 1
            if not depth:
                after = place
                items.append(body[begin:after])
    return None
