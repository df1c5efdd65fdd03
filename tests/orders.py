"""Orders as the platform sends them, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fetcher.connector.operations import OrdersOperation, raw_orders
from fetcher.planning.shards import Shard
from fetcher.planning.sifting import Sieve, unreadable_time
from fetcher.planning.windows import Window
from fetcher.sinks import Page

SETTLED = "2024-01-01T00:00:00"
SERVICE = "11111111-1111-4111-a111-111111111111"


def order(number: int, updated: str, **changes: Any) -> dict[str, Any]:
    """The order with that number, as a mapping of its properties."""
    return {
        "Id": f"{number:08x}-0000-4000-a000-000000000000",
        "ServiceId": SERVICE,
        "AccountId": SERVICE,
        "AccountType": "Customer",
        "CreatorProfileId": SERVICE,
        "UpdaterProfileId": SERVICE,
        "Number": str(number),
        "State": "Confirmed",
        "Origin": "Connector",
        "OriginDetails": 'Ünï"c,o\\dé\n🥐',
        "CreatedUtc": "2020-01-01T00:00:00Z",
        "UpdatedUtc": updated,
        "Options": {
            "OwnerCheckedIn": True,
            "AllCompanionsCheckedIn": False,
            "AnyCompanionCheckedIn": True,
            "ConnectorCheckIn": False,
        },
        **changes,
    }


def page(orders: Iterable[dict[str, Any]], *, repeats: bool = False, settled: str = SETTLED) -> Page:
    """A page of them, as a walk would give it to a sink."""
    items = list(orders)
    body = json.dumps({"ProductServiceOrders": items, "Cursor": None}).encode()
    listing = OrdersOperation().decode(body)
    services = tuple(sorted({item["ServiceId"] for item in items if item["ServiceId"]}))
    window = Window(datetime(1990, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC))
    sifted = Sieve(Shard(service_ids=services, window=window, settled=window.end)).sift(listing)
    readable = [place for place in range(listing.count) if place not in listing.rejected]
    raws = raw_orders(body)
    return Page(
        portfolio="north",
        enterprise_ids={SERVICE: "22222222-2222-4222-a222-222222222222"},
        orders=sifted.kept,
        body=body,
        skipped=listing.places(sifted.skipped),
        latest=sifted.latest,
        fetched_utc=datetime(2024, 1, 2, tzinfo=UTC),
        settled=settled,
        repeats=repeats,
        rejected=[*sifted.rejected, *(unreadable_time(bytes(raws[readable[place]])) for place in sifted.unreadable)],
    )
