"""Requests as the contract allows them; everything else is refused, with a message. Pure.

The rule that cannot be broken: what a real platform would refuse, this one refuses (contract, "Calling it", "The three
operations of the main job", "Pages", "Time intervals").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from fetcher.planning.windows import add_months
from fetcher.simulator.world import STATES

MAX_IDS = 1000
MAX_MONTHS = 3


class RefusedError(Exception):
    """The request is refused with `status` and `message`; `fault` is whether it broke the contract."""

    def __init__(self, status: int, message: str, *, fault: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fault = fault


class Limitation(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """How many items, and older than which."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    cursor: str | None = None


class Interval(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """Between two times, as text."""

    start_utc: str
    end_utc: str


class _Call(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, kw_only=True):
    client_token: str
    access_token: str
    client: Annotated[str, msgspec.Meta(min_length=1)]
    language_code: str | None = None
    culture_code: str | None = None
    limitation: Limitation


class EnterprisesCall(_Call, rename="pascal", forbid_unknown_fields=True, kw_only=True):
    """`enterprises/getAll`."""

    enterprise_ids: list[str] | None = None
    external_identifiers: list[str] | None = None
    linked_utc: Interval | None = None
    updated_utc: Interval | None = None


class ServicesCall(_Call, rename="pascal", forbid_unknown_fields=True, kw_only=True):
    """`services/getAll`."""

    enterprise_ids: list[str] | None = None
    service_ids: list[str] | None = None
    service_type: str | None = None
    updated_utc: Interval | None = None


class OrdersCall(_Call, rename="pascal", forbid_unknown_fields=True, kw_only=True):
    """`productServiceOrders/getAll`; the ids as they came, because the same ones come again and again."""

    service_ids: msgspec.Raw
    enterprise_ids: list[str] | None = None
    product_service_order_ids: list[str] | None = None
    account_ids: list[str] | None = None
    linked_reservation_ids: list[str] | None = None
    updated_utc: Interval | None = None
    states: list[str] | None = None


Call = EnterprisesCall | ServicesCall | OrdersCall

CALLS: dict[str, msgspec.json.Decoder[Any]] = {
    "enterprises/getAll": msgspec.json.Decoder(EnterprisesCall),
    "services/getAll": msgspec.json.Decoder(ServicesCall),
    "productServiceOrders/getAll": msgspec.json.Decoder(OrdersCall),
}
"""By path below the connector's root; exact and case-sensitive."""

_IDS = msgspec.json.Decoder(list[str])
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


def read_call(path: str, body: bytes) -> Call:
    """The request in `body`.

    Raises:
        RefusedError: there is no such operation, or the body is none of its requests.
    """
    decoder = CALLS.get(path)
    if decoder is None:
        raise RefusedError(404, "Not found")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RefusedError(400, f"Invalid request: {error}") from None
    except msgspec.DecodeError:
        raise RefusedError(400, "Invalid JSON") from None


def check_ids(ids: Sequence[str] | None, name: str) -> None:
    """A list of ids has 1 to 1000 of them, each a UUID.

    Raises:
        RefusedError: it has not.
    """
    if ids is None:
        return
    if not 1 <= len(ids) <= MAX_IDS:
        raise RefusedError(400, f"Invalid {name}: 1 to {MAX_IDS} ids are allowed")
    if not all(map(_UUID.fullmatch, ids)):
        raise RefusedError(400, f"Invalid {name}: not a unique identifier")


def read_ids(raw: bytes, name: str) -> list[str]:
    """A required list of ids.

    Raises:
        RefusedError: it is none.
    """
    try:
        ids = _IDS.decode(raw)
    except msgspec.DecodeError:
        raise RefusedError(400, f"Invalid {name}") from None
    check_ids(ids, name)
    return ids


def read_interval(interval: Interval | None, name: str) -> tuple[datetime, datetime] | None:
    """Start and end of an interval of at most three calendar months.

    Raises:
        RefusedError: it is none.
    """
    if interval is None:
        return None
    start, end = (_time(text, name) for text in (interval.start_utc, interval.end_utc))
    if end < start:
        raise RefusedError(400, f"Invalid {name}: it ends before it begins")
    if end > add_months(start, MAX_MONTHS):
        raise RefusedError(400, f"Invalid {name}: longer than {MAX_MONTHS} months")
    return start, end


def check_states(states: Sequence[str] | None) -> None:
    """A filter by states has one or more, all of them known.

    Raises:
        RefusedError: it has not.
    """
    if states is not None and (not states or not set(STATES).issuperset(states)):
        raise RefusedError(400, "Invalid States")


def _time(text: str, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RefusedError(400, f"Invalid {name}: not a time") from None
    if moment.tzinfo is None:
        raise RefusedError(400, f"Invalid {name}: not in UTC")
    return moment.astimezone(UTC)
