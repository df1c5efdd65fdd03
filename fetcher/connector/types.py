"""What the platform sends, as structs. Names and optionality are those of the contract's "Data" section.

Enumerations are plain text, because the platform leaves each of them open. Times are text, as they were sent:
parsing every one costs as much as decoding the whole order, and ISO 8601 in UTC sorts as text (see `utc_text`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec


class OrderOptions(msgspec.Struct, rename="pascal", frozen=True, gc=False, kw_only=True):
    """Check-in flags of a product service order."""

    owner_checked_in: bool
    all_companions_checked_in: bool
    any_companion_checked_in: bool
    connector_check_in: bool


class ProductServiceOrder(msgspec.Struct, rename="pascal", frozen=True, gc=False, kw_only=True):
    """A product service order, as the platform sent it (19 properties).

    Ids are 36-character UUID text; `*_utc` are ISO 8601 text in UTC with zero or more digits of fraction.
    `created_at`, `updated_at` and `cancelled_at` give them as `datetime`.
    """

    id: str
    service_id: str
    account_id: str
    account_type: str
    creator_profile_id: str
    updater_profile_id: str
    booker_id: str | None = None
    number: str
    state: str
    origin: str
    commander_origin: str | None = None
    origin_details: str | None = None
    created_utc: str
    updated_utc: str
    cancelled_utc: str | None = None
    voucher_id: str | None = None
    business_segment_id: str | None = None
    linked_reservation_id: str | None = None
    options: OrderOptions

    @property
    def created_at(self) -> datetime:
        """When the order was created, in UTC."""
        return parse_utc(self.created_utc)

    @property
    def updated_at(self) -> datetime:
        """When the order was last updated, in UTC: the version of the order."""
        return parse_utc(self.updated_utc)

    @property
    def cancelled_at(self) -> datetime | None:
        """When the order was cancelled, in UTC; `None` if it was not."""
        return None if self.cancelled_utc is None else parse_utc(self.cancelled_utc)


class RejectedOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order that cannot be read, as it came."""

    id: str | None = None
    service_id: str | None = None
    updated_utc: str | None = None
    """Each of the three as it was sent; `None` where it is none."""
    reason: str
    """The property, what was expected and what was found; never the value (promise P10)."""
    raw: bytes
    """The order's JSON, on one line."""
    is_json: bool = True
    """Whether another JSON reader takes it: text with half of a surrogate pair is such a case, a stray byte is none."""


Id = Annotated[str, msgspec.Meta(min_length=1)]


class Service(msgspec.Struct, rename="pascal", frozen=True, kw_only=True):
    """A service of an enterprise, as far as the job uses it; inactive ones still have history."""

    id: Id
    enterprise_id: Id


class Enterprise(msgspec.Struct, rename="pascal", frozen=True, kw_only=True):
    """A hotel that the access token can see, as far as the job uses it."""

    id: Id


def utc_text(instant: datetime) -> str:
    """`instant` as the platform writes times: `2023-04-01T00:00:00Z`, with a fraction only if there is one."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def parse_utc(text: str) -> datetime:
    """The instant that `text` names, in UTC; digits of fraction beyond the sixth are cut off.

    Raises:
        ValueError: `text` is no ISO 8601 time.
    """
    head, dot, fraction = text.partition(".")
    if dot:
        digits = len(fraction) - len(fraction.lstrip("0123456789"))
        text = f"{head}.{fraction[: min(digits, 6)]}{fraction[digits:]}"
    instant = datetime.fromisoformat(text)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
