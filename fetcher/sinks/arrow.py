"""Pages of structs as Arrow record batches, with the columns of the table `product_service_orders`.

Shared by every sink that takes Arrow. A page is converted column by column, each by the way that measured
fastest: one comprehension a column, times cast from text by Arrow, required ids joined into one buffer.
"""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pickle import PickleBuffer
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fetcher.connector.rejecting import reject
from fetcher.connector.types import ProductServiceOrder, parse_utc
from fetcher.errors import DataError
from fetcher.sinks.base import Page, RejectedRow, rejected_row

_TEXT = pa.string()
_TIME = pa.timestamp("us", tz="UTC")
_FLAG = pa.bool_()

SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("id", _TEXT, nullable=False),
        pa.field("service_id", _TEXT, nullable=False),
        pa.field("account_id", _TEXT, nullable=False),
        pa.field("account_type", _TEXT, nullable=False),
        pa.field("creator_profile_id", _TEXT, nullable=False),
        pa.field("updater_profile_id", _TEXT, nullable=False),
        pa.field("booker_id", _TEXT),
        pa.field("number", _TEXT, nullable=False),
        pa.field("state", _TEXT, nullable=False),
        pa.field("origin", _TEXT, nullable=False),
        pa.field("commander_origin", _TEXT),
        pa.field("origin_details", _TEXT),
        pa.field("created_utc", _TIME, nullable=False),
        pa.field("updated_utc", _TIME, nullable=False),
        pa.field("cancelled_utc", _TIME),
        pa.field("voucher_id", _TEXT),
        pa.field("business_segment_id", _TEXT),
        pa.field("linked_reservation_id", _TEXT),
        pa.field("options_owner_checked_in", _FLAG, nullable=False),
        pa.field("options_all_companions_checked_in", _FLAG, nullable=False),
        pa.field("options_any_companion_checked_in", _FLAG, nullable=False),
        pa.field("options_connector_check_in", _FLAG, nullable=False),
        pa.field("portfolio", _TEXT, nullable=False),
        pa.field("enterprise_id", _TEXT),
        pa.field("fetched_utc", _TIME, nullable=False),
    ]
)
"""The table's columns: ids and enumerations as text, times in UTC with microseconds. Nullable is what the
platform may leave out, and `enterprise_id`, for an order of a service that discovery did not see."""

ID_COLUMNS = (
    "id",
    "service_id",
    "account_id",
    "creator_profile_id",
    "updater_profile_id",
    "booker_id",
    "voucher_id",
    "business_segment_id",
    "linked_reservation_id",
    "enterprise_id",
)
"""Columns that a database keeps as UUIDs."""

POOL = pa.system_memory_pool()
"""Where columns are kept: Arrow's own allocators hold on to a fifth more, batch after batch, and are no faster here."""


class Columns(msgspec.Struct, frozen=True):
    """A page's rows."""

    batch: pa.RecordBatch

    def __reduce__(self) -> tuple[Callable[[memoryview], Columns], tuple[PickleBuffer]]:
        """For another process: in one piece, beside the pickle and not in it."""
        return _columns_from, (PickleBuffer(self.batch.serialize(memory_pool=POOL)),)


def _columns_from(data: memoryview) -> Columns:
    return Columns(pa.ipc.read_record_batch(pa.py_buffer(data), SCHEMA))


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LONGEST_TIME = len("2023-01-31T23:59:59.123456Z")
_YEAR_1 = -62_135_596_800_000_000
"""Microseconds from 1970 back to the year 1, before which Python, and PostgreSQL as it is written here, know none."""
_PAGE = 1000
_ID_LENGTH = 36
# Where each id begins in the joined text of a page: always the same, and slower to make than the text.
_OFFSETS = pa.array(range(0, _ID_LENGTH * (_PAGE + 1), _ID_LENGTH), pa.int32()).buffers()[1]
_OFFSET_BYTES = _OFFSETS.to_pybytes()


_array = partial(pa.array, memory_pool=POOL)


def to_record_batch(page: Page) -> pa.RecordBatch:
    """The orders of `page` as one record batch of `SCHEMA`, in the same order.

    Digits of fraction beyond the sixth are cut off; a time without a zone is taken for UTC.

    Raises:
        DataError: an order has a value that the table cannot hold. Names order, property and types.
    """
    orders = page.orders
    try:
        options = [order.options for order in orders]
        services = [order.service_id for order in orders]
        columns = [
            _ids([order.id for order in orders]),
            _ids(services),
            _ids([order.account_id for order in orders]),
            _array([order.account_type for order in orders], _TEXT),
            _ids([order.creator_profile_id for order in orders]),
            _ids([order.updater_profile_id for order in orders]),
            _array([order.booker_id for order in orders], _TEXT),
            _array([order.number for order in orders], _TEXT),
            _array([order.state for order in orders], _TEXT),
            _array([order.origin for order in orders], _TEXT),
            _array([order.commander_origin for order in orders], _TEXT),
            _array([order.origin_details for order in orders], _TEXT),
            _times([order.created_utc for order in orders]),
            _times([order.updated_utc for order in orders]),
            _times([order.cancelled_utc for order in orders]),
            _array([order.voucher_id for order in orders], _TEXT),
            _array([order.business_segment_id for order in orders], _TEXT),
            _array([order.linked_reservation_id for order in orders], _TEXT),
            _array([option.owner_checked_in for option in options], _FLAG),
            _array([option.all_companions_checked_in for option in options], _FLAG),
            _array([option.any_companion_checked_in for option in options], _FLAG),
            _array([option.connector_check_in for option in options], _FLAG),
            pa.repeat(pa.scalar(page.portfolio, _TEXT), len(orders), POOL),
            _enterprises(services, page.enterprise_ids),
            pa.repeat(pa.scalar(page.fetched_utc, _TIME), len(orders), POOL),
        ]
    except (AttributeError, TypeError, ValueError, OverflowError) as exc:  # Arrow's are two of these
        for order in orders:
            _check(order, exc)
        raise DataError(None, "a property", "what the table can hold", "something else") from exc
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


Check = Callable[[pa.RecordBatch], None]
"""Raises `DataError` for a row that the sink cannot hold."""


def fitting(page: Page, *checks: Check) -> tuple[pa.RecordBatch, list[RejectedRow]]:
    """The orders of `page` that the table, and the sink by its `checks`, can hold; and the others, to be kept aside.

    As fast as the conversion where all fit. Where some do not, they are found by halves.
    """
    rejected = [rejected_row(page, order) for order in page.rejected]
    try:
        return _checked(page, checks), rejected
    except DataError:
        pass
    misfits = dict(_misfits(page, checks, range(len(page.orders))))
    lines = page.lines()
    rejected += [rejected_row(page, reject(bytes(lines[place]), misfits[place])) for place in sorted(misfits)]
    orders = [order for place, order in enumerate(page.orders) if place not in misfits]
    return to_record_batch(msgspec.structs.replace(page, orders=orders)), rejected


def _misfits(page: Page, checks: Sequence[Check], places: range) -> Iterator[tuple[int, str]]:
    """The places among `places` of orders that do not fit, and why not."""
    try:
        _checked(msgspec.structs.replace(page, orders=page.orders[places.start : places.stop]), checks)
    except DataError as error:
        if len(places) == 1:
            yield places.start, error.reason
            return
        middle = (places.start + places.stop) // 2
        yield from _misfits(page, checks, range(places.start, middle))
        yield from _misfits(page, checks, range(middle, places.stop))


def _checked(page: Page, checks: Sequence[Check]) -> pa.RecordBatch:
    batch = to_record_batch(page)
    for check in checks:
        check(batch)
    return batch


def require_uuids(batch: pa.RecordBatch) -> None:
    """Make sure that every id of a batch can go into a database's UUID column.

    Raises:
        DataError: one cannot. Names order and property.
    """
    for name in ID_COLUMNS:
        if not _all_uuids(batch.column(name)):
            for order_id, value in zip(batch["id"].to_pylist(), batch[name].to_pylist(), strict=True):
                if value is not None and not _UUID.fullmatch(value):
                    label = name.title().replace("_", "")
                    raise DataError(None if name == "id" else order_id, label, "a UUID", "other text")


def require_no_nul(batch: pa.RecordBatch) -> None:
    """Make sure that no text of a batch has the character NUL, which PostgreSQL cannot store.

    Raises:
        DataError: one has. Names order and property.
    """
    for field in batch.schema:
        if field.type != _TEXT:
            continue
        column = batch[field.name]
        text = column.buffers()[2]
        if text is not None and b"\x00" in memoryview(text).tobytes():
            for order_id, value in zip(batch["id"].to_pylist(), column.to_pylist(), strict=True):
                if value is not None and "\x00" in value:
                    label = field.name.title().replace("_", "")
                    raise DataError(order_id, label, "text that a database can store", "text with the character NUL")


def require_years(batch: pa.RecordBatch) -> None:
    """Make sure that every time of a batch is in a year that every reader of a database knows: 1 to 9999.

    Raises:
        DataError: one is not. Names order and property.
    """
    for name in ("created_utc", "updated_utc", "cancelled_utc"):
        earliest = pc.min(batch[name]).value  # Arrow reads no year of five digits, but the year 0
        if earliest is not None and earliest < _YEAR_1:
            for order_id, value in zip(batch["id"].to_pylist(), batch[name].cast(pa.int64()).to_pylist(), strict=True):
                if value is not None and value < _YEAR_1:
                    raise DataError(order_id, name.title().replace("_", ""), "a time from the year 1 on", "an earlier")


def _all_uuids(column: pa.Array) -> bool:
    """Whether a column that `to_record_batch` made has nothing but nulls and UUIDs: ten times faster than a regex."""
    count = len(column) - column.null_count
    if not count:
        return True
    _, offsets, data = column.buffers()
    text = data.to_pybytes()[: count * _ID_LENGTH]
    regular = offsets.to_pybytes()[: 4 * (count + 1)] == _OFFSET_BYTES[: 4 * (count + 1)] if count <= _PAGE else False
    return (
        (regular or pc.min_max(pc.binary_length(column)).as_py() == {"min": _ID_LENGTH, "max": _ID_LENGTH})
        and not text.translate(None, b"0123456789abcdefABCDEF-")
        and all(text[place::_ID_LENGTH] == b"-" * count for place in (8, 13, 18, 23))
        and text.count(b"-") == 4 * count
    )


def _ids(values: list[str]) -> pa.Array:
    """A column of ids. Where all have the length of a UUID, as is usual, one join makes the buffer."""
    text = "".join(values)
    if len(values) > _PAGE or not text.isascii() or set(map(len, values)) != {_ID_LENGTH}:
        return _array(values, _TEXT)
    return pa.StringArray.from_buffers(len(values), _OFFSETS, pa.py_buffer(text.encode()))


def _enterprises(services: list[str], enterprise_ids: Mapping[str, str]) -> pa.Array:
    """The enterprise of each order, by its service; most pages have orders of a single one."""
    of_service = {service: enterprise_ids.get(service.lower()) for service in set(services)}
    names = set(of_service.values())
    if len(names) == 1:
        return pa.repeat(pa.scalar(names.pop(), _TEXT), len(services), POOL)
    return _array(map(of_service.get, services), _TEXT)


def _times(values: Sequence[str | None]) -> pa.Array:
    """A column of times. Arrow's cast wants a zone and at most 6 digits of fraction.

    1. Fractions of `Z` times are cut to 6 digits where one is longer.
    2. What only Python can read is read one by one.
    """
    if max(map(len, filter(None, values)), default=0) > _LONGEST_TIME:
        values = [
            f"{value[:26]}Z" if value is not None and len(value) > _LONGEST_TIME and value[-1] == "Z" else value
            for value in values
        ]
    try:
        return _array(values, _TEXT).cast(_TIME, memory_pool=POOL)
    except pa.ArrowInvalid:
        return _array([None if value is None else parse_utc(value) for value in values], _TIME)


def _check(order: ProductServiceOrder, cause: Exception) -> None:
    """Raise `DataError` for the first value of `order` that the table cannot hold, if there is one."""
    for field in SCHEMA:
        if field.name in _ADDED:
            continue
        *path, name = _path(field.name)
        value: Any = getattr(order.options if path else order, name, None)
        if value is None and field.nullable:
            continue
        kind, expected, fits = _KINDS[field.type]
        if isinstance(value, kind) and fits(value):
            continue
        found = "other text" if isinstance(value, str) and kind is str else type(value).__name__
        label = ".".join(part.title().replace("_", "") for part in (*path, name))
        raise DataError(order.id, label, expected, found) from cause


def _path(column: str) -> list[str]:
    """Where an order has what the column holds: `options_x` is `options.x`."""
    group, _, name = column.partition("_")
    return [group, name] if group == "options" else [column]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_time(value: str) -> bool:
    try:
        parse_utc(value)
    except (ValueError, OverflowError):
        return False
    return True


_ADDED = frozenset({"portfolio", "enterprise_id", "fetched_utc"})
_KINDS: dict[Any, tuple[type, str, Callable[[Any], bool]]] = {
    _TEXT: (str, "text", _is_text),
    _TIME: (str, "an ISO 8601 time", _is_time),
    _FLAG: (bool, "a boolean", lambda _: True),
}
