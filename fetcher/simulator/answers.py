"""Answers, and how they go wrong: faults that need no page, damage to a page, and orders that cannot be read. Pure."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Literal

import msgspec

Delivery = Literal["whole", "reset", "lost", "stall", "truncated", "endless"]
"""How an answer reaches its caller; `lost`: the request did not even arrive."""


class Response(msgspec.Struct, frozen=True):
    """An answer, not compressed unless its headers say so."""

    status: int
    headers: dict[str, str]
    body: bytes
    delivery: Delivery = "whole"


JSON = {"Content-Type": "application/json; charset=utf-8"}
"""The headers of an answer in JSON."""


def message(text: str) -> bytes:
    """The body of an error."""
    return msgspec.json.encode({"Message": text, "RequestId": None, "Details": None})


_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502</h1><p>nginx</p></body></html>"

SIMPLE: dict[str | None, Response] = {
    "500": Response(500, JSON, message("Internal error")),
    "502": Response(502, {"Content-Type": "text/html"}, _HTML),
    "408": Response(408, JSON, message("Request timed out")),
    "401": Response(401, JSON, message("Invalid AccessToken")),
    "not-json": Response(200, {"Content-Type": "text/html"}, _HTML),
    "nested": Response(200, JSON, b'{"ProductServiceOrders":' + b"[" * 200_000),
    "redirect": Response(307, {"Location": "https://example.com/elsewhere"}, b""),
    "reset": Response(200, JSON, b"", "reset"),
    "stall": Response(200, JSON, b"", "stall"),
    "endless": Response(200, JSON, b'{"ProductServiceOrders":[', "endless"),
}
"""By kind of fault, answers that need no page."""


_OF_NUMBER = re.compile(rb'"Number":"\d+"')
_OF_VOUCHER = re.compile(rb'"VoucherId":(?:null|"[^"]*")')
_OF_CANCELLED = re.compile(rb'"CancelledUtc":(?:null|"[^"]*")')
_OF_UPDATER = re.compile(rb'"UpdaterProfileId":"([^"]*)"')

SPOILS: dict[str, Callable[[bytes], bytes]] = {
    "a number for text": lambda body: _OF_NUMBER.sub(b'"Number":7', body),
    "a required property is missing": lambda body: _OF_NUMBER.sub(b"", body).replace(b",,", b",", 1),
    "a required property is null": lambda body: _OF_NUMBER.sub(b'"Number":null', body),
    "half of a surrogate pair": lambda body: _OF_NUMBER.sub(rb'"Number":"\\ud83d"', body),
    "a raw control character": lambda body: _OF_NUMBER.sub(b'"Number":"\x01"', body),
    "UpdatedUtc is no time": lambda body: body.replace(b'"UpdatedUtc":"', b'"UpdatedUtc":"soon, after ', 1),
    "NUL in text": lambda body: _OF_NUMBER.sub(rb'"Number":"7\\u0000"', body),
    "an empty id": lambda body: _OF_VOUCHER.sub(b'"VoucherId":""', body),
    "an id in braces": lambda body: _OF_UPDATER.sub(rb'"UpdaterProfileId":"{\1}"', body),
    "an empty time": lambda body: _OF_CANCELLED.sub(b'"CancelledUtc":""', body),
}
"""Ways in which an order can be spoiled, by name; the last four can be read, and kept by some sinks."""


def spoil_order(body: bytes, share: float) -> bytes:
    """The order, spoiled if it is among that share of all; always the same ones, each always in the same way."""
    number = int.from_bytes(blake2b(body[7:43], digest_size=8).digest(), "big")
    if number % 1_000_000 >= share * 1_000_000:
        return body
    return list(SPOILS.values())[number // 1_000_000 % len(SPOILS)](body)


def _zero_middle(page: bytes, chance: random.Random) -> bytes:
    """A piece of `page` damaged so that nobody can take it for data."""
    at = chance.randrange(max(1, len(page) - 40))
    return page[:at] + b"\x00" * min(40, len(page)) + page[at + 40 :]


def _large(page: bytes, _chance: random.Random) -> Response:
    return Response(200, JSON, b'{"Padding":"' + b"x" * (80 * 2**20) + b'",' + page[1:])


def _bomb(_page: bytes, _chance: random.Random) -> Response:
    return Response(200, {**JSON, "Content-Encoding": "gzip"}, _zeros())


@cache
def _zeros() -> bytes:
    """256 MiB of nothing, as gzip: it takes a while to make, and is always the same."""
    pieces = zlib.compressobj(9, wbits=31)
    zeros = bytes(2**20)
    return b"".join([pieces.compress(zeros) for _ in range(256)]) + pieces.flush()


DAMAGES: dict[str | None, Callable[[bytes, random.Random], Response]] = {
    "truncated": lambda page, _: Response(200, JSON, page, "truncated"),
    "corrupt": lambda page, chance: Response(200, JSON, _zero_middle(page, chance)),
    "gzip": lambda page, chance: Response(
        200, {**JSON, "Content-Encoding": "gzip"}, _zero_middle(gzip.compress(page, 1), chance)
    ),
    "not-utf8": lambda page, _: Response(200, JSON, page[:-2] + b'\xff\xfe"}'),
    "bomb": _bomb,
    "large": _large,
}
"""By kind of fault, what is done to a page."""
