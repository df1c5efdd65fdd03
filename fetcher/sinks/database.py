"""What the database sinks share: tables as a database has them, how one that differs is told, what is kept aside."""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec
import pyarrow as pa

from fetcher.sinks.arrow import ID_COLUMNS, SCHEMA
from fetcher.sinks.base import Batch, Extent, Progress, RejectedRow, RowCount, kept_aside

TABLE = "product_service_orders"
PROGRESS = "fetcher_progress"
REJECTED = "fetcher_rejected"

CONTENT = tuple(name for name in SCHEMA.names if name not in ("portfolio", "enterprise_id", "fetched_utc"))
"""The columns that are the platform's: two rows that agree in them are the same version of an order."""
_REJECTED_TEXT = ("id", "portfolio", "enterprise_id", "stream", "reason", "raw")
COUNTED = (
    "SELECT portfolio, lower(CAST(enterprise_id AS VARCHAR)), date_trunc('month', updated_utc), "
    "date_trunc('day', updated_utc), count(*) FROM {table} GROUP BY GROUPING SETS ((1, 2, 3), (1, 4))"
)
"""What `extent_of` takes, in one pass over the table; in a session whose time zone is UTC."""
REJECTED_NAMES = (*_REJECTED_TEXT, "rejected_utc")


class ColumnTypes(msgspec.Struct, frozen=True):
    """A database's names for the types of the table's columns, as its own catalogue spells them."""

    id: str
    text: str
    time: str
    flag: str


def columns(types: ColumnTypes) -> dict[str, str]:
    """Each column's type, in the table's order."""
    return {field.name: types.id if field.name in ID_COLUMNS else _type(field, types) for field in SCHEMA}


def definition(types: ColumnTypes) -> str:
    """The columns as `CREATE TABLE` takes them."""
    return ", ".join(
        f"{name} {type_}{'' if SCHEMA.field(name).nullable else ' NOT NULL'}" for name, type_ in columns(types).items()
    )


def rejected_columns(types: ColumnTypes) -> dict[str, str]:
    """Each column's type of the table of what is kept aside, in its order."""
    return {name: types.time if name == "rejected_utc" else types.text for name in REJECTED_NAMES}


def rejected_definition(types: ColumnTypes) -> str:
    """The columns of the table of what is kept aside, as `CREATE TABLE` takes them."""
    return ", ".join(
        f"{name} {type_}{'' if name == 'enterprise_id' else ' NOT NULL'}"
        for name, type_ in rejected_columns(types).items()
    )


def missing_columns(found: Mapping[str, str], types: ColumnTypes) -> dict[str, str]:
    """What a table of an earlier version lacks and can be given: columns that may be null, with their types."""
    return {name: type_ for name, type_ in columns(types).items() if name not in found and SCHEMA.field(name).nullable}


def difference(found: Mapping[str, str], types: ColumnTypes) -> str | None:
    """How a table that is there differs from what is needed; `None` if it does not.

    Further columns are fine, and so is what `missing_columns` tells. A column that cannot be null is never given to a
    table that lacks it: no version of this project made such a table, so it is somebody else's.
    """
    expected = columns(types)
    addable = missing_columns(found, types)
    missing = [name for name in expected if name not in found and name not in addable]
    if missing:
        return f"its table {TABLE} has no column {', '.join(missing)}"
    wrong = [
        f"{name} is {found[name].lower()} instead of {type_.lower()}"
        for name, type_ in expected.items()
        if name in found and found[name].lower() != type_.lower()
    ]
    return f"in its table {TABLE}, {'; '.join(wrong)}" if wrong else None


def extent_of(
    held: Iterable[tuple[str, str | None, datetime | None, datetime | None, int]], progress: Progress
) -> Extent:
    """What `COUNTED` gave: portfolio, enterprise, month, day and rows; month or day is null."""
    counts: list[RowCount] = []
    days: dict[str, dict[datetime, int]] = {}
    for portfolio, enterprise, month, day, rows in held:
        if day is not None:
            days.setdefault(portfolio, {})[day.astimezone(UTC)] = rows
        elif month is not None:
            month = month.astimezone(UTC)
            counts.append(RowCount(portfolio=portfolio, enterprise_id=enterprise, month=month, rows=rows))
    return Extent(rows=counts, days=days, progress=progress)


def states_of(batch: Batch) -> tuple[str, ...] | None:
    """The states by which a batch's orders are brought in (`Page.states`): a run has one answer for all its pages."""
    return next((page.states for page in batch.pages if page.states is not None), None)


def full_since_of(batch: Batch) -> datetime | None:
    """Since when what the table holds is from this run (`Page.full_since`); one answer for all pages, too."""
    return next((page.full_since for page in batch.pages if page.full_since is not None), None)


def gone_and_come(batch: Batch) -> tuple[list[tuple[str, str]], list[tuple[str | None, ...]]]:
    """What a batch changes in the table of what is kept aside; empty lists, as a rule.

    Portfolio, and id in small letters, of what goes first; then what comes: the texts of `REJECTED_NAMES`, the time in
    ISO 8601.
    """
    gone, rows = kept_aside(batch.pages)
    return sorted((portfolio, _storable(key)) for portfolio, key in gone), [_texts(row) for row in rows]


def _texts(row: RejectedRow) -> tuple[str | None, ...]:
    values: list[str | None] = [getattr(row, name) for name in _REJECTED_TEXT]
    return (*(None if value is None else _storable(value) for value in values), row.rejected_utc.isoformat())


def _storable(text: str) -> str:
    """`text` as every database takes it: what cannot be stored (NUL, half of a surrogate pair) is written out."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _type(field: pa.Field, types: ColumnTypes) -> str:
    return {pa.string(): types.text, pa.bool_(): types.flag}.get(field.type, types.time)
