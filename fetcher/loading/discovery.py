"""Which enterprises and services a portfolio has, within what the configuration asks for.

Services count whether they are active or not, and whatever their kind: inactive ones still have history, and
which kinds have product service orders is unknown. An id is an id whatever its case; it is kept, and asked for, as the
platform wrote it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from fetcher.connector.client import Connector
from fetcher.connector.listings import ENTERPRISES, SERVICES, ListOperation
from fetcher.connector.operations import (
    MAX_COUNT,
    MAX_IDS,
    EnterprisesRequest,
    Limitation,
    Request,
    ServicesRequest,
)
from fetcher.connector.types import Enterprise, Service
from fetcher.errors import AccessDeniedError, BadResponseError, InvalidRequestError, PlatformError, TooHeavyError
from fetcher.loading.page_size import PageSize
from fetcher.loading.refused import find_denied, find_refused
from fetcher.planning.shards import ServiceRef

T = TypeVar("T", Enterprise, Service)

MOST_TOO_HEAVY = 12
"""Answers that a list is too heavy, until it is given up: four times down to the smallest page."""


class Discovered(msgspec.Struct, frozen=True):
    """What a portfolio has."""

    enterprises: tuple[str, ...]
    services: tuple[ServiceRef, ...]
    """Sorted by enterprise, then service."""
    refused: dict[str, PlatformError]
    """Configured ids that the token may not see, or that do not exist, and what was listed and cannot be read."""


async def discover(
    connector: Connector, enterprise_ids: Sequence[str] | None, service_ids: Sequence[str] | None
) -> Discovered:
    """All enterprises and services of a token, or those named.

    Args:
        connector: calls for the token.
        enterprise_ids: only these enterprises; `None`: all that the token can see.
        service_ids: only these services of those enterprises; `None`: all.

    Raises:
        PlatformError: the platform does not tell.
    """
    refused: dict[str, PlatformError] = {}
    enterprises = await _in_parts(
        connector,
        ENTERPRISES,
        enterprise_ids,
        lambda ids, limitation: EnterprisesRequest(limitation, enterprise_ids=ids),
        refused,
    )
    _note_missing(enterprise_ids, enterprises, refused, ENTERPRISES.path, "the enterprise is not among the token's")
    visible = sorted(enterprise.id for enterprise in enterprises)
    if not visible:
        return Discovered((), (), refused)
    if service_ids is None:
        services = await _in_parts(
            connector,
            SERVICES,
            visible,
            lambda ids, limitation: ServicesRequest(limitation, enterprise_ids=ids),
            refused,
        )
    else:
        services = await _in_parts(
            connector,
            SERVICES,
            service_ids,
            lambda ids, limitation: ServicesRequest(limitation, service_ids=ids),
            refused,
        )
    spelling = {id_.lower(): id_ for id_ in visible}
    if enterprise_ids is not None:
        services = [service for service in services if service.enterprise_id.lower() in spelling]
    _note_missing(service_ids, services, refused, SERVICES.path, "the service is not among those of the enterprises")
    found = [
        ServiceRef(spelling.get(service.enterprise_id.lower(), service.enterprise_id), service.id)
        for service in services
    ]
    return Discovered(tuple(visible), tuple(sorted(found)), refused)


def why_nothing(found: Discovered, before: int) -> str | None:
    """Why a run that has found nothing to load is not whole; `None` if it has found something.

    Args:
        found: what was found.
        before: how many services earlier runs have loaded.
    """
    if found.services:
        return None
    if found.enterprises:
        count = len(found.enterprises)
        what = f"none of the {count} enterprises that it may see has" if count > 1 else "the enterprise it sees has not"
        cause = f"there is nothing to load: the token is valid, but {what} a service that is asked for"
        cure = "Check enterprise_ids and service_ids, if they are set, and what the access token may see"
    else:
        cause = "there is nothing to load: the token is valid, but sees no enterprise that is asked for"
        cure = "Have an enterprise connected to the access token, or mend enterprise_ids, if they are set"
    if before:
        cause += f". Earlier runs loaded {before:,} services; what they loaded stays"
    return f"{cause}. {cure}"


def _note_missing(
    asked: Sequence[str] | None,
    listed: Sequence[Enterprise] | Sequence[Service],
    refused: dict[str, PlatformError],
    path: str,
    what: str,
) -> None:
    """Whatever is configured, and neither listed nor refused, is named."""
    known = {item.id.lower() for item in listed} | {id_.lower() for id_ in refused}
    for id_ in sorted(set(asked or ())):
        if id_.lower() not in known:
            refused[id_] = InvalidRequestError(path, what)


async def _in_parts(
    connector: Connector,
    operation: ListOperation[T],
    ids: Sequence[str] | None,
    request: Callable[[Sequence[str] | None, Limitation], Request],
    refused: dict[str, PlatformError],
) -> list[T]:
    """Everything that the operation lists for `ids`, asked for in lists of at most 1000; refused ids are noted."""
    items: dict[str, T] = {}
    if ids is None:
        await _all_pages(connector, operation, lambda limitation: request(None, limitation), items, refused)
        return list(items.values())
    for first in range(0, len(ids), MAX_IDS):
        part = ids[first : first + MAX_IDS]
        while part:
            try:
                await _all_pages(
                    connector, operation, lambda limitation, part=part: request(part, limitation), items, refused
                )
            except (InvalidRequestError, AccessDeniedError) as error:
                bad = await _find_bad(
                    part, error, lambda some: _probe(connector, operation, request(some, Limitation(1)))
                )
                if not bad:
                    raise  # each is taken alone, and all together are not: nothing that we could leave out
                refused.update(bad)
                part = [id_ for id_ in part if id_ not in bad]
            else:
                break
    return list(items.values())


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


async def _all_pages(
    connector: Connector,
    operation: ListOperation[T],
    request: Callable[[Limitation], Request],
    items: dict[str, T],
    refused: dict[str, PlatformError],
) -> None:
    """Put every item that is listed into `items`, by its id in small letters; what cannot be read into `refused`."""
    cursor: str | None = None
    size = PageSize(MAX_COUNT, MAX_COUNT)
    too_heavy = 0
    cursors: set[str] = set()
    while True:
        count = size.count
        try:
            answer = await connector.call(operation, request(Limitation(count, cursor)))
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
            return
        cursor = listing.cursor
        if cursor is None or cursor in cursors or (len(items), len(refused)) == known:
            raise BadResponseError(operation.path, "a full page without a cursor that leads on", status=200)
        cursors.add(cursor)


async def _probe(connector: Connector, operation: ListOperation[T], request: Request) -> PlatformError | None:
    try:
        await connector.call(operation, request)
    except (InvalidRequestError, AccessDeniedError) as error:
        return error
    return None
