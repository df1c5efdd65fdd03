"""One order that cannot be read spoils no other: field.md's inputs, and more of their kind."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.connector.operations import Listing, OrdersOperation, raw_orders
from fetcher.connector.rejecting import cut_items
from fetcher.connector.types import ProductServiceOrder
from tests.orders import order

GOOD, BAD, LAST = order(1, "2024-01-01T00:00:00Z"), order(2, "2024-01-02T00:00:00Z"), order(3, "2024-01-03T00:00:00Z")


def body(*orders: bytes) -> bytes:
    return b'{"ProductServiceOrders":[%b],"Cursor":"c"}' % b",".join(orders)


def text(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def read(data: bytes) -> Listing[ProductServiceOrder]:
    operation = OrdersOperation()
    try:
        return operation.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        salvaged = operation.salvage(data)
        assert salvaged is not None
        return salvaged


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in BAD.items() if key != name}


SPOILED: dict[str, tuple[bytes, str]] = {
    "required property null": (text({**BAD, "Number": None}), "Number should be text, found null"),
    "required property missing": (text(without("Number")), "Number should be there, found nothing"),
    "no options": (text(without("Options")), "Options should be there"),
    "a number for text": (text({**BAD, "Number": 7}), "Number should be text, found a number"),
    "an object for text": (
        text({**BAD, "OriginDetails": {"a": 1}}),
        "OriginDetails should be text or null, found an object",
    ),
    "a list for text": (text({**BAD, "State": ["x"]}), "State should be text, found a list"),
    "text for a flag": (text({**BAD, "Options": {**BAD["Options"], "OwnerCheckedIn": "yes"}}), "OwnerCheckedIn"),
    "text for options": (text({**BAD, "Options": "none"}), "Options should be an object, found text"),
    "a lone surrogate": (text({**BAD, "OriginDetails": "@"}).replace(b"@", b"\\ud83d"), "JSON text"),
    "the other half alone": (text({**BAD, "OriginDetails": "@"}).replace(b"@", b"\\udc00x"), "JSON text"),
    "a surrogate before another escape": (text({**BAD, "Number": "@"}).replace(b"@", b"\\ud83d\\n"), "JSON text"),
    "a control character": (text({**BAD, "OriginDetails": "@"}).replace(b"@", b"a\tb"), "JSON text"),
    "a NUL": (text({**BAD, "OriginDetails": "@"}).replace(b"@", b"\0"), "JSON text"),
    "bytes that are no UTF-8": (text({**BAD, "OriginDetails": "@"}).replace(b"@", b"\xff"), "JSON text"),
    "an escape that is none": (text({**BAD, "OriginDetails": "@"}).replace(b"@", b"\\x"), "JSON text"),
    "an order that is null": (b"null", "the order should be an object, found null"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_all_others_are_there_and_this_one_is_kept_raw_with_its_reason(kind: str) -> None:
    raw, reason = SPOILED[kind]
    if kind == "an order that is null":
        listing = OrdersOperation().decode(body(text(GOOD), raw, text(LAST)))
    else:
        listing = read(body(text(GOOD), raw, text(LAST)))
    assert [one.id for one in listing.items] == [GOOD["Id"], LAST["Id"]]
    assert listing.cursor == "c"
    assert listing.count == 3
    (place, rejected), *more = listing.rejected.items()
    assert (place, more) == (1, [])
    assert rejected.raw == raw
    assert reason in rejected.reason
    if raw != b"null":
        assert rejected.id == BAD["Id"]
    assert listing.places(frozenset({1})) == {1, 2}
    assert bytes(raw_orders(body(text(GOOD), raw, text(LAST)))[2]) == text(LAST)


def test_a_reason_never_repeats_a_value() -> None:
    for value in (7.123, {"secret": "7.123"}, ["7.123"], True):
        listing = read(body(text({**BAD, "Number": value})))
        assert "7.123" not in listing.rejected[0].reason


@pytest.mark.parametrize(
    ("changes", "id_", "updated"),
    [
        ({"Id": None}, None, BAD["UpdatedUtc"]),
        ({"Id": 7}, None, BAD["UpdatedUtc"]),
        ({"Id": "x" * 201}, None, BAD["UpdatedUtc"]),
        ({"UpdatedUtc": "soon"}, BAD["Id"], None),
        ({"UpdatedUtc": 7}, BAD["Id"], None),
    ],
)
def test_of_an_order_that_cannot_be_read_is_told_what_can(
    changes: dict[str, Any], id_: str | None, updated: str | None
) -> None:
    (rejected,) = read(body(text({**BAD, "Number": 7, **changes}))).rejected.values()
    assert (rejected.id, rejected.updated_utc) == (id_, updated)


def test_a_line_of_its_own_is_what_an_order_is_kept_as() -> None:
    raw = json.dumps({**BAD, "Number": 7}, indent=1).encode()
    (rejected,) = read(body(raw)).rejected.values()
    assert b"\n" not in rejected.raw
    assert json.loads(rejected.raw) == {**BAD, "Number": 7}


def test_a_page_of_which_one_order_is_nested_too_deep_is_cut_into_the_bytes_of_each() -> None:
    deep = text(GOOD)[:-1] + b',"Deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    page = body(text(GOOD), deep, text(LAST))
    operation = OrdersOperation()
    with pytest.raises(RecursionError):
        operation.decode(page)
    listing = operation.salvage(page)
    assert listing is not None
    assert (len(listing.items), list(listing.rejected)) == (2, [1])
    assert [bytes(raw) for raw in raw_orders(page)] == [text(GOOD), deep, text(LAST)]


def test_unknown_properties_are_noticed_beside_an_order_that_cannot_be_read() -> None:
    operation = OrdersOperation()
    listing = operation.decode(body(text({**BAD, "Number": 7}), text({**GOOD, "Tier": "gold"})))
    assert (len(listing.items), operation.unknown) == (1, ["Tier"])


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b'{"ProductServiceOrders":[{"Id":"a"}',
        b'{"ProductServiceOrders":[{"Id":"a},{"Id":"b"}],"Cursor":null}',
        b'{"ProductServiceOrders":[{"Id":"a"}{"Id":"b"}],"Cursor":null}',
        b'{"ProductServiceOrders":[{"Id":"a"},],"Cursor":null}',
        b'{"ProductServiceOrders":[1],"Cursor":null}',
        b'{"ProductServiceOrders":[{"Id":"a"}],"Cursor":"\xff"}',
        b"<html>",
    ],
)
def test_a_page_that_is_cut_off_is_no_page(damaged: bytes) -> None:
    assert OrdersOperation().salvage(damaged) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("end", [b"", b"\\", b"\\\\", b"x"])
def test_a_body_cut_off_within_a_text_is_looked_through_once(end: bytes) -> None:
    started = time.process_time()
    assert cut_items(b'{"ProductServiceOrders":[{"Id":"' + b'\\"' * 500_000 + end, "ProductServiceOrders") is None
    assert time.process_time() - started < 5  # else hours


@given(st.lists(st.dictionaries(st.text(max_size=5), values, max_size=4), max_size=5), st.sampled_from([None, 1]))
def test_cutting_finds_what_a_parser_finds(items: list[dict[str, Any]], indent: int | None) -> None:
    data = json.dumps({"ProductServiceOrders": items, "Cursor": "]}"}, indent=indent).encode()
    cut = cut_items(data, "ProductServiceOrders")
    assert cut is not None
    assert [json.loads(raw) for raw in cut[0]] == items
    assert json.loads(cut[1]) == {"ProductServiceOrders": [], "Cursor": "]}"}
