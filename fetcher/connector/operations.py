"""The operations of the main job as data: where to call, what may be asked, and how the answer reads.

The rule that cannot be broken: a request that the contract forbids cannot be made. Each request checks itself
when it is created (contract, "The three operations of the main job"), so that nothing past this module has to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Generic, TypeVar, cast

import msgspec

from fetcher.connector.rejecting import cut_items, damage_of, reason_of, reject
from fetcher.connector.types import OrderOptions, ProductServiceOrder, RejectedOrder, utc_text
from fetcher.planning.windows import add_months

MAX_IDS = 1000
MAX_COUNT = 1000
MAX_MONTHS = 3

T = TypeVar("T")


class Limitation(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """At most `count` items (1 to 1000), older than the item with the id `cursor` (`None`: from the newest)."""

    count: int
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"a page has 1 to {MAX_COUNT} items, not {self.count}")


class Interval(msgspec.Struct, frozen=True, rename="pascal"):
    """Times from `start_utc` to `end_utc`, at most three calendar months; whether the end belongs to it is unknown."""

    start_utc: str
    end_utc: str

    @classmethod
    def between(cls, start: datetime, end: datetime) -> Interval:
        """The interval of two instants.

        Raises:
            ValueError: it ends before it begins, or is longer than three calendar months.
        """
        if not start <= end <= add_months(start, MAX_MONTHS):
            raise ValueError(f"an interval has 0 to {MAX_MONTHS} months, not {start} to {end}")
        return cls(utc_text(start), utc_text(end))


class EnterprisesRequest(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """Which enterprises: those of `enterprise_ids`, or (`None`) all that the token can see."""

    limitation: Limitation
    enterprise_ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_ids(self.enterprise_ids)


class ServicesRequest(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """Which services: of the enterprises, and among the services, that are named; `None` is no filter."""

    limitation: Limitation
    enterprise_ids: Sequence[str] | None = None
    service_ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_ids(self.enterprise_ids)
        _check_ids(self.service_ids)


class OrdersRequest(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """Which orders: of 1 to 1000 services, updated in an interval, in one of the states (`None`: any).

    Or, where no interval is given, those of 1 to 1000 ids.
    """

    limitation: Limitation
    service_ids: Sequence[str]
    updated_utc: Interval | None = None
    states: Sequence[str] | None = None
    product_service_order_ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_ids(self.service_ids)
        _check_ids(self.product_service_order_ids)
        if self.updated_utc is None and self.product_service_order_ids is None:
            raise ValueError("orders are asked for by an interval, or by their ids")
        if self.states is not None and not self.states:
            raise ValueError("an empty list of states is an error at the platform; None is no filter")


Request = EnterprisesRequest | ServicesRequest | OrdersRequest


def _check_ids(ids: Sequence[str] | None) -> None:
    if ids is not None and not 1 <= len(ids) <= MAX_IDS:
        raise ValueError(f"a list has 1 to {MAX_IDS} ids, not {len(ids)}")


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """One page of an operation's answer."""

    items: list[T]
    cursor: str | None = None
    """Id of the oldest item; what is older is got with it. `None` only where the page is empty, or by mistake."""
    rejected: Mapping[int, RejectedOrder] = {}
    """By its place in the answer, each item that cannot be read; they are not in `items`."""

    @property
    def count(self) -> int:
        """How many items the answer has, readable or not."""
        return len(self.items) + len(self.rejected)

    def places(self, skipped: frozenset[int]) -> frozenset[int]:
        """Places in the answer of items that are rejected, or whose positions in `items` are `skipped`."""
        if not self.rejected:
            return skipped
        readable = [place for place in range(self.count) if place not in self.rejected]
        return frozenset(self.rejected) | {readable[position] for position in skipped}


class Operation(Generic[T]):
    """One operation: its path below the connector's root, and how a page of its answer decodes."""

    def __init__(self, path: str, list_name: str, item: type[T]) -> None:
        self.path = path
        self._decoder = msgspec.json.Decoder(_listing_type(list_name, item))

    def decode(self, body: bytes) -> Listing[T]:
        """The page in `body`.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not a page of this operation.
        """
        return Listing(*msgspec.structs.astuple(self._decoder.decode(body)))

    def salvage(self, body: bytes) -> Listing[T] | None:
        """The page in a `body` that is no JSON because of single items in it, which are rejected.

        `None` if it is no such page. The body may have been damaged on its way: ask again before you believe it.
        """
        del body
        return None


class OrdersOperation(Operation[ProductServiceOrder]):
    """The operation that the job is about. Its decoder notices properties that nobody told it of (promise P10).

    It decodes into a struct that forbids unknown properties, which costs nothing. The first page with a new one
    fails, its name is noted in `unknown`, and a struct that knows it takes over.
    """

    MOST_UNKNOWN = 64
    """Names noted before it stops looking: ever new ones must not make us build ever new types."""

    def __init__(self) -> None:
        super().__init__("productServiceOrders/getAll", _ORDERS, ProductServiceOrder)
        self._lenient = self._decoder
        self.unknown: list[str] = []
        self._learn()

    def decode(self, body: bytes) -> Listing[ProductServiceOrder]:
        """As for every operation; also notes unknown properties in `unknown`, as `Name` or `Options.Name`.

        Orders that cannot be read are rejected, each alone (promise P7).
        """
        while True:
            try:
                return super().decode(body)
            except msgspec.ValidationError as error:
                if not self._note_unknown(str(error)):
                    page = _RAW_PAGE.decode(body)  # raises where it is no page at all
                    return self._each(page.items, page.cursor)

    def salvage(self, body: bytes) -> Listing[ProductServiceOrder] | None:
        """See `Operation.salvage`."""
        cut = cut_items(body, _ORDERS)
        if cut is None:
            return None
        raws, rest = cut
        try:
            return self._each(raws, _RAW_PAGE.decode(rest).cursor)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _each(self, raws: Sequence[bytes | msgspec.Raw], cursor: str | None) -> Listing[ProductServiceOrder]:
        """A page read order by order."""
        items: list[ProductServiceOrder] = []
        rejected: dict[int, RejectedOrder] = {}
        for place, raw in enumerate(raws):
            order = self._one(raw)
            if isinstance(order, RejectedOrder):
                rejected[place] = order
            else:
                items.append(order)
        return Listing(items, cursor, rejected)

    def _one(self, raw: bytes | msgspec.Raw) -> ProductServiceOrder | RejectedOrder:
        while True:
            try:
                return cast(ProductServiceOrder, self._order_decoder.decode(raw))
            except msgspec.ValidationError as error:
                if not self._note_unknown(str(error)):
                    return reject(bytes(raw), reason_of(str(error)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                return reject(bytes(raw), f"the order should be JSON text, found {damage_of(error)}")

    def _note_unknown(self, message: str) -> bool:
        found = _UNKNOWN.match(message)
        if found is None:
            return False
        prefix = "Options." if (found["path"] or "").endswith(".Options") else ""
        self.unknown.append(f"{prefix}{found['name']}")
        self._learn()
        return True

    def _learn(self) -> None:
        """Take a struct that knows the properties noted so far, and forbids all others."""
        if len(self.unknown) >= self.MOST_UNKNOWN:
            self._decoder = self._lenient
            self._order_decoder = msgspec.json.Decoder(ProductServiceOrder)
            return
        inner = [name.removeprefix("Options.") for name in self.unknown if name.startswith("Options.")]
        outer = [name for name in self.unknown if not name.startswith("Options.")]
        options = _extended("Options", OrderOptions, inner, [])
        order = _extended("Order", ProductServiceOrder, outer, [("options", options)])
        self._decoder = msgspec.json.Decoder(_listing_type(_ORDERS, order))
        self._order_decoder = msgspec.json.Decoder(order)


_ORDERS = "ProductServiceOrders"
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`(?: - at `(?P<path>[^`]*)`)?")


def _listing_type(list_name: str, item: type[T]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        "Page",
        [
            ("items", list[item], msgspec.field(name=list_name)),
            ("cursor", str | None, msgspec.field(name="Cursor", default=None)),
        ],
        frozen=True,
    )


def _extended(
    name: str, base: type[msgspec.Struct], unknown: list[str], replaced: list[tuple[str, type]]
) -> type[msgspec.Struct]:
    """A subclass of `base` that also takes the properties `unknown` and forbids all others."""
    fields: list[tuple[str, type, object]] = [(field, type_, msgspec.field()) for field, type_ in replaced]
    for position, property_ in enumerate(unknown):
        # Raw is the cheapest type that takes any value; the page holds the body that it looks into anyway.
        fields.append((f"unknown_{position}", msgspec.Raw, msgspec.field(name=property_, default=msgspec.Raw())))
    return msgspec.defstruct(
        name,
        fields,
        bases=(base,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        gc=False,
        rename="pascal",
    )


class _RawPage(msgspec.Struct):
    items: list[msgspec.Raw] = msgspec.field(name=_ORDERS)
    cursor: str | None = msgspec.field(name="Cursor", default=None)


_RAW_PAGE = msgspec.json.Decoder(_RawPage)


def raw_orders(body: bytes) -> Sequence[bytes | msgspec.Raw]:
    """Each order of a page that was decoded or salvaged, as the bytes that came; none for an empty body (204)."""
    if not body:
        return []
    try:
        return _RAW_PAGE.decode(body).items
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        cut = cut_items(body, _ORDERS)
        return [] if cut is None else cut[0]
