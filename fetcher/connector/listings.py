"""Enterprises and services as they are listed: nothing is read of them but their ids.

What the job does not use it does not decode: names that are null, flags that are missing, half of a surrogate pair in
some text are no reason to leave a hotel out. What has no readable id cannot be asked for; it spoils no other.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar, cast

import msgspec

from fetcher.connector.operations import Listing, Operation
from fetcher.connector.rejecting import reason_of, reject
from fetcher.connector.types import Enterprise, RejectedOrder, Service

T = TypeVar("T", Enterprise, Service)


class ListOperation(Operation[T]):
    """An operation that lists what has ids. What has no readable one is rejected, alone."""

    def __init__(self, path: str, list_name: str, item: type[T]) -> None:
        super().__init__(path, list_name, item)
        self._list_name = list_name
        self._item = item

    def decode(self, body: bytes) -> Listing[T]:
        """See `Operation.decode`."""
        try:
            return super().decode(body)
        except msgspec.ValidationError:
            listing = self.salvage(body)
            if listing is None:
                raise
            return listing

    def salvage(self, body: bytes) -> Listing[T] | None:
        """See `Operation.salvage`."""
        try:
            page = json.loads(body)  # it takes half of a surrogate pair
        except (ValueError, RecursionError):
            return None
        if not isinstance(page, dict):
            return None
        document = cast(dict[str, Any], page)
        listed, cursor = document.get(self._list_name), document.get("Cursor")
        if not isinstance(listed, list) or not isinstance(cursor, str | None):
            return None
        items: list[T] = []
        rejected: dict[int, RejectedOrder] = {}
        for place, item in enumerate(cast(list[Any], listed)):
            try:
                read = msgspec.convert(item, self._item)
                msgspec.json.encode(read)  # an id that is no text could not be asked for
                items.append(read)
            except (msgspec.ValidationError, UnicodeEncodeError) as error:
                rejected[place] = reject(json.dumps(item).encode(), _reason(error))
        return Listing(items, cursor, rejected)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "an id is no text"
    if "length" in str(error):
        return "an id is empty"
    return reason_of(str(error)).replace("the order", "it")


ENTERPRISES = ListOperation("enterprises/getAll", "Enterprises", Enterprise)
SERVICES = ListOperation("services/getAll", "Services", Service)
