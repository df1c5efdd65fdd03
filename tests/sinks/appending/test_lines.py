"""However a page is written, its lines are the orders' own bytes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.connector.operations import OrdersOperation
from fetcher.sinks.appending.lines import cut_in_place, lines_of
from fetcher.sinks.base import Page

TEXT = st.text(st.sampled_from('ab{}[]",\\:é東\n\r '), max_size=8)
FLAGS = ("OwnerCheckedIn", "AllCompanionsCheckedIn", "AnyCompanionCheckedIn", "ConnectorCheckIn")


def order(number: int, details: str | None = None, **unknown: Any) -> dict[str, Any]:
    texts = [
        "ServiceId",
        "AccountId",
        "AccountType",
        "CreatorProfileId",
        "UpdaterProfileId",
        "Number",
        "State",
        "Origin",
    ]
    known: dict[str, Any] = {"Id": str(number), **dict.fromkeys(texts, "x"), "OriginDetails": details}
    times = dict.fromkeys(("CreatedUtc", "UpdatedUtc"), "2024-01-01T00:00:00Z")
    known["Origin"] = "Connector"
    return {**known, **times, **unknown, "Options": dict.fromkeys(FLAGS, True)}


def text_of(*orders: dict[str, Any], cursor: str | None = "9", **style: Any) -> bytes:
    style = {"separators": (",", ":"), "ensure_ascii": False} | style
    return json.dumps({"ProductServiceOrders": list(orders), "Cursor": cursor}, **style).encode()


def page(body: bytes, skipped: frozenset[int] = frozenset()) -> Page:
    orders = OrdersOperation().decode(body).items
    kept = [one for position, one in enumerate(orders) if position not in skipped]
    return Page(
        portfolio="north", enterprise_ids={}, orders=kept, body=body, skipped=skipped, latest="",
        fetched_utc=datetime(2024, 1, 2, tzinfo=UTC), settled="",
    )  # fmt: skip


@given(st.lists(TEXT | st.none(), max_size=5), TEXT)
def test_texts_of_any_kind_stay_in_their_line(details: list[str | None], cursor: str) -> None:
    orders = [order(number, text) for number, text in enumerate(details)]
    lines = bytes(lines_of(page(text_of(*orders, cursor=cursor)))).split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == orders
    assert lines == [json.dumps(one, separators=(",", ":"), ensure_ascii=False).encode() for one in orders]


@pytest.mark.parametrize(
    "body",
    [
        text_of(order(1, Extra={"a": [1, 2]}), order(2, Extra={})),
        text_of(order(1, Extra=[{"Id": "1"}, {"Id": "2"}]), order(2)),
        text_of(order(1), order(2), indent=2),
        text_of(order(1), order(2), separators=(" ,", ": ")),
        b'{"Cursor":"]}","Extra":["}"],"ProductServiceOrders":' + text_of(order(1), order(2))[24:-14] + b"}",
        text_of(order(1)),
        text_of(),
    ],
)
def test_pages_of_every_shape_have_the_same_lines(body: bytes) -> None:
    given = page(body)
    assert bytes(lines_of(given)) == b"".join(bytes(line) + b"\n" for line in given.lines())
    assert len(given.lines()) == len(given.orders)


def test_what_was_sifted_out_has_no_line() -> None:
    lines = bytes(lines_of(page(text_of(order(1), order(2), order(3)), skipped=frozenset({1})))).splitlines()
    assert [json.loads(line)["Id"] for line in lines] == ["1", "3"]


def test_an_ordinary_page_is_not_parsed_again() -> None:
    body = text_of(order(1), order(2, "東京"), order(3))
    assert cut_in_place(body, 3) is not None
    assert cut_in_place(body, 2) is None
    assert cut_in_place(text_of(order(1, "{")), 1) is None
