"""What the database sinks share: the table's columns as a database has them, and how a table that differs is told."""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pyarrow as pa

from fetcher.sinks.table import ID_COLUMNS, SCHEMA

TABLE = "product_service_orders"
PROGRESS = "fetcher_progress"


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


def difference(found: Mapping[str, str], types: ColumnTypes) -> str | None:
    """How a table that is there differs from what is needed; `None` if it does not. Further columns are fine."""
    expected = columns(types)
    missing = [name for name in expected if name not in found]
    if missing:
        return f"its table {TABLE} has no column {', '.join(missing)}"
    wrong = [
        f"{name} is {found[name].lower()} instead of {type_.lower()}"
        for name, type_ in expected.items()
        if found[name].lower() != type_.lower()
    ]
    return f"in its table {TABLE}, {'; '.join(wrong)}" if wrong else None


def _type(field: pa.Field, types: ColumnTypes) -> str:
    return {pa.string(): types.text, pa.bool_(): types.flag}.get(field.type, types.time)
