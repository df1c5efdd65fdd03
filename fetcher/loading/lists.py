"""All that a list operation gives: page by page, and for many ids in lists side by side.

What is refused of the ids is found out and left out, and what cannot be read is named; neither spoils the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import anyio
import msgspec

from fetcher.connector.client import Connector
from fetcher.connector.listings import ListOperation
from fetcher.connector.operations import MAX_COUNT, MAX_IDS, Limitation, Request
from fetcher.connector.types import Enterprise, Service
from fetcher.errors import (
    AccessDeniedError,
    BadResponseError,
    InvalidRequestError,
    PlatformError,
    TooHeavyError,
    first_error,
)
from fetcher.loading.page_size import PageSize
from fetcher.loading.refused import find_denied, find_refused

T = TypeVar("T", Enterprise, Service)

MOST_TOO_HEAVY = 12
"""Answers that a list is too heavy, until it is given up: four times down to the smallest page."""
MOST_SIDE_BY_SIDE = 8
"""Lists: their pages are in memory, a megabyte or so each."""

Make = Callable[[Sequence[str], Limitation], Request]
"""The request for the page of a list of ids."""
Narrow = Callable[[Sequence[str]], Awaitable[list[str]]]
"""What there is, of a list of ids that was refused, by what others have found out."""


class Listed(msgspec.Struct, Generic[T], frozen=True):
    """What was listed."""

    items: dict[str, T]
    """By its id in small letters."""
    refused: dict[str, PlatformError]
    """Ids that the platform does not take, and what was listed and cannot be read."""

    def add(self, other: Listed[T]) -> None:
        """Take what another list has; what is in both is here already."""
        self.items.update((id_, item) for id_, item in other.items.items() if id_ not in self.items)
        self.refused.update(other.refused)


async def list_pages(
    connector: Connector, operation: ListOperation[T], make: Callable[[Limitation], Request]
) -> Listed[T]:
    """Everything that one list gives, page by page.

    Raises:
        PlatformError: the platform does not tell, or its pages lead nowhere.
    """
    items: dict[str, T] = {}
    refused: dict[str, PlatformError] = {}
    cursor: str | None = None
    size = PageSize(MAX_COUNT, MAX_COUNT)
    too_heavy = 0
    cursors: set[str] = set()
    while True:
        count = size.count
        try:
            answer = await connector.call(operation, make(Limitation(count, cursor)))
        except TooHeavyError:
            too_heavy += 1
            if too_heavy > MOST_TOO_HEAVY or not size.shrink():
                raise
            continue
        size.went_well()
        listing = answer.listing
        known = len(items), len(refused)
        items.update((item.id.lower(), item) for item in listing.items if item.id.lower() not in items)
        for place, item in listing.rejected.items():
            name = item.id or f"number {place + 1} of the page after {cursor or 'none'}"
            refused[name] = BadResponseError(operation.path, f"it cannot be read: {item.reason}", status=200)
        if listing.count < count:
            return Listed(items, refused)
        cursor = listing.cursor
        if cursor is None or cursor in cursors or (len(items), len(refused)) == known:
            raise BadResponseError(operation.path, "a full page without a cursor that leads on", status=200)
        cursors.add(cursor)


async def list_by_ids(
    connector: Connector,
    operation: ListOperation[T],
    lists: Sequence[Sequence[str]],
    make: Make,
    narrow: Narrow | None = None,
) -> Listed[T]:
    """Everything that is listed for these ids, without those that are refused.

    Args:
        connector: calls for the token.
        operation: what lists.
        lists: of 1 to 1000 ids each; `cut` makes them. They are asked for side by side.
        make: the request.
        narrow: asked before it is searched which ids of a refused list are the bad ones; `None`: nobody knows.

    Raises:
        PlatformError: the platform does not tell, refuses the lists as such, or denies all of them.
    """
    found: list[Listed[T] | AccessDeniedError | None] = [None] * len(lists)
    limiter = anyio.CapacityLimiter(MOST_SIDE_BY_SIDE)

    async def ask(place: int, ids: Sequence[str]) -> None:
        async with limiter:
            try:
                found[place] = await _list_good(connector, operation, ids, make, narrow)
            except AccessDeniedError as error:
                found[place] = error

    try:
        async with anyio.create_task_group() as group:
            for place, ids in enumerate(lists):
                group.start_soon(ask, place, ids)
    except* PlatformError as errors:
        raise first_error(errors) from None
    denied = [error for error in found if isinstance(error, AccessDeniedError)]
    if denied and len(denied) == len(lists):
        raise denied[0]
    all_ = Listed[T]({}, {})
    for ids, outcome in zip(lists, found, strict=True):
        if isinstance(outcome, Listed):
            all_.add(outcome)
        elif outcome is not None:  # others were taken, so it is not the right to list that is missing
            all_.refused.update(dict.fromkeys(ids, outcome))
    return all_


def cut(ids: Sequence[str], lists: int = 1) -> list[Sequence[str]]:
    """`ids` in so many lists of about the same length, and in more if they would be longer than 1000."""
    count = max(min(lists, len(ids)), -(-len(ids) // MAX_IDS))
    return [ids[place * len(ids) // count : (place + 1) * len(ids) // count] for place in range(count)]


async def _list_good(
    connector: Connector, operation: ListOperation[T], ids: Sequence[str], make: Make, narrow: Narrow | None
) -> Listed[T]:
    """What is listed for those ids of one list that are not refused."""
    refused: dict[str, PlatformError] = {}
    left: list[str] = list(ids)
    while left:
        try:
            listed = await list_pages(connector, operation, partial(make, left))
        except (InvalidRequestError, AccessDeniedError) as error:
            if narrow is not None:
                rest, narrow = await narrow(left), None
                if rest != left:
                    left = rest
                    continue
            bad = await _find_bad(left, error, lambda some: _probe(connector, operation, make(some, Limitation(1))))
            if not bad:
                raise  # each is taken alone, and all together are not: nothing that we could leave out
            refused.update(bad)
            left = [id_ for id_ in left if id_ not in bad]
        else:
            return Listed(listed.items, {**refused, **listed.refused})
    return Listed[T]({}, refused)


async def _find_bad(
    ids: Sequence[str],
    error: InvalidRequestError | AccessDeniedError,
    probe: Callable[[Sequence[str]], Awaitable[PlatformError | None]],
) -> dict[str, PlatformError]:
    """Those of a refused list that are refused alone.

    Raises:
        PlatformError: it is not the ids that are refused.
    """
    if isinstance(error, InvalidRequestError):
        if not (error.names_enterprises or error.names_services):
            raise error
        return await find_refused(ids, probe)
    if len(ids) == 1:
        raise error
    denied = await find_denied(ids, {id_: [id_] for id_ in ids}, probe)
    if denied.everything is not None:
        raise denied.everything
    return {**denied.enterprises, **denied.ids}


async def _probe(connector: Connector, operation: ListOperation[T], request: Request) -> PlatformError | None:
    try:
        await connector.call(operation, request)
    except (InvalidRequestError, AccessDeniedError) as error:
        return error
    return None
