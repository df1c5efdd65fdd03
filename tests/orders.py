"""Orders as the platform sends them, for tests."""

from __future__ import annotations

from typing import Any

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
