"""What a sink holds, as a reader finds it who knows nothing of fetcher; and the truth in the same form."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from fetcher.connector.types import parse_utc


class Row(msgspec.Struct, frozen=True):
    """A version of an order, by what every sink has of it."""

    updated: datetime
    state: str
    number: str
    updater: str
    voucher: str | None
    details: str | None
    cancelled: datetime | str | None


def contents(bodies: Iterable[bytes]) -> dict[str, Row]:
    """Orders as the platform sends them, by id."""
    return {order["Id"]: _of_json(order) for order in map(json.loads, bodies)}


def held(url: str) -> dict[str, Row]:
    """Of each order what a reader takes: the newest `updated_utc`, of equal ones what came last."""
    newest: dict[str, Row] = {}
    for id_, row in rows(url):
        if id_ not in newest or newest[id_].updated <= row.updated:
            newest[id_] = row
    return newest


def twice(found: Iterable[tuple[str, Row]], *, keyed: bool) -> list[str]:
    """The ids of orders that a sink holds twice: any, if it is keyed; else with one version again behind itself."""
    last: dict[object, Row] = {}
    wrong: list[str] = []
    for id_, row in found:
        key: object = id_ if keyed else (id_, row.updated)
        if key in last and (keyed or last[key] == row):
            wrong.append(id_)
        last[key] = row
    return wrong


def rows(url: str) -> list[tuple[str, Row]]:
    """Every row, in the order in which they came."""
    scheme, _, place = url.partition(":")
    if scheme == "jsonl":
        return [(order["Id"], _of_json(order)) for order in map(json.loads, _lines(Path(place)))]
    if scheme == "parquet":
        import pyarrow.parquet as pq

        parts = [pq.read_table(part, columns=_COLUMNS) for part in sorted(Path(place).glob("*.parquet"))]
        return [_of_row(tuple(row.values())) for part in parts for row in part.to_pylist()]
    columns = ", ".join(f"{name}::varchar" if name.endswith("id") else name for name in _COLUMNS)
    query = f"SELECT {columns} FROM product_service_orders"
    if scheme == "duckdb":
        import duckdb

        with duckdb.connect(place, read_only=True) as db:
            return [_of_row(row) for row in db.execute(query).fetchall()]
    import psycopg

    address, _, schema = url.partition("?schema=")
    with psycopg.connect(address) as db:
        db.execute(f"SET search_path TO {schema}")
        return [_of_row(row) for row in db.execute(query).fetchall()]


_COLUMNS = [
    "id",
    "updated_utc",
    "state",
    "number",
    "updater_profile_id",
    "voucher_id",
    "origin_details",
    "cancelled_utc",
]


def _lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    return data.splitlines()


def _of_json(order: dict[str, Any]) -> Row:
    return Row(
        parse_utc(order["UpdatedUtc"]),
        order["State"],
        str(order.get("Number")),
        order["UpdaterProfileId"],
        order.get("VoucherId"),
        order.get("OriginDetails"),
        parse_utc(order["CancelledUtc"]) if order.get("CancelledUtc") else order.get("CancelledUtc"),
    )


def _of_row(row: tuple[Any, ...]) -> tuple[str, Row]:
    id_, updated, state, number, updater, voucher, details, cancelled = row
    instant = None if cancelled is None else cancelled.astimezone(UTC)
    return id_, Row(updated.astimezone(UTC), state, number, updater, voucher, details, instant)
