"""Pages as lines: each order as the bytes that came. Pure.

A page is one JSON document, and its orders are found without parsing it a second time. An order and its options are
the only objects in it, so if it has just twice as many opening braces as orders, and one more, then none of them
stands in a text or belongs to a property that nobody knows, and every second one begins an order. The comma before it,
right behind the order before, becomes that order's line end. Pages of another shape (a brace in a text, white space
between the orders) are parsed.
"""

from __future__ import annotations

import msgspec

from fetcher.sinks.base import Page

_OPEN, _CLOSE, _COMMA, _LINE_END = b"{},\n"


def lines_of(page: Page) -> bytes | bytearray:
    """The orders of a page, in the same order, a line each; line breaks between tokens are spaces."""
    body = page.body
    if body and not page.skipped and b"\n" not in body and b"\r" not in body:
        text = cut_in_place(body, len(page.orders))
        if text is not None:
            return text
    return b"\n".join([*page.lines(), b""])


def cut_in_place(body: bytes, orders: int) -> bytearray | None:
    """A copy of `body` whose commas between orders are line ends, less what is around the orders.

    Args:
        body: a page with no line break in it.
        orders: how many it has.

    Returns `None` where it is not of the shape for that.
    """
    if not orders or body[0] != _OPEN:
        return None
    find = body.find
    first = place = find(b"{", 1)
    text = bytearray(body)
    for _ in range(orders - 1):
        place = find(b"{", find(b"{", place + 1) + 1)  # past the options, to the next order; 0 if there is none
        if body[place - 1] != _COMMA or body[place - 2] != _CLOSE:
            return None
        text[place - 1] = _LINE_END
    options = find(b"{", place + 1)
    if options < 0 or find(b"{", options + 1) >= 0:
        return None
    text[place + _length_of_last(body[place:]) :] = b"\n"
    del text[:first]
    return text


def _length_of_last(tail: bytes) -> int:
    """The length of the last order, which `tail` begins with; what comes behind it is the end of the page."""
    (last,) = _ORDERS.decode(b'{"ProductServiceOrders":[' + tail).items
    return len(memoryview(last))


class _Orders(msgspec.Struct):
    items: list[msgspec.Raw] = msgspec.field(name="ProductServiceOrders")


_ORDERS = msgspec.json.Decoder(_Orders)
