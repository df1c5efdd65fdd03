"""Which enterprises and services a portfolio has, within what the configuration asks for.

Services count whether they are active or not, and whatever their kind: inactive ones still have history, and
which kinds have product service orders is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from fetcher.connector.client import Connector
from fetcher.connector.operations import (
    ENTERPRISES,
    MAX_COUNT,
    MAX_IDS,
    SERVICES,
    EnterprisesRequest,
    Limitation,
    Operation,
    Request,
    ServicesRequest,
)
from fetcher.connector.types import Enterprise, Service
from fetcher.errors import BadResponseError, InvalidRequestError, PlatformError, TooHeavyError
from fetcher.page_size import PageSize
from fetcher.plan import ServiceRef
from fetcher.refused import find_refused

T = TypeVar("T", Enterprise, Service)

MOST_TOO_HEAVY = 12
"""Answers that a list is too heavy, until it is given up: four times down to the smallest page."""


class Discovered(msgspec.Struct, frozen=True):
    """What a portfolio has."""

    enterprises: tuple[str, ...]
    services: tuple[ServiceRef, ...]
    """Sorted by enterprise, then service."""
    refused: dict[str, PlatformError]
    """Configured ids that the token may not see, or that do not exist."""


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
    visible = sorted({enterprise.id for enterprise in enterprises})
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
    wanted = set(visible)
    found = {ServiceRef(service.enterprise_id, service.id) for service in services if service.enterprise_id in wanted}
    if service_ids is not None:
        missing = set(service_ids) - {service.id for service in found} - refused.keys()
        for service_id in sorted(missing):
            refused[service_id] = InvalidRequestError(
                SERVICES.path, "the service is not among those of the enterprises"
            )
    return Discovered(tuple(visible), tuple(sorted(found)), refused)


async def _in_parts(
    connector: Connector,
    operation: Operation[T],
    ids: Sequence[str] | None,
    request: Callable[[Sequence[str] | None, Limitation], Request],
    refused: dict[str, PlatformError],
) -> list[T]:
    """Everything that the operation lists for `ids`, asked for in lists of at most 1000; refused ids are noted."""
    if ids is None:
        return await _all_pages(connector, operation, lambda limitation: request(None, limitation))
    items: list[T] = []
    for first in range(0, len(ids), MAX_IDS):
        part = ids[first : first + MAX_IDS]
        while part:
            try:
                items += await _all_pages(connector, operation, lambda limitation, part=part: request(part, limitation))
            except InvalidRequestError as error:
                if not (error.names_enterprises or error.names_services):
                    raise
                bad = await find_refused(part, lambda some: _probe(connector, operation, request(some, Limitation(1))))
                if not bad:
                    raise  # each is taken alone, and all together are not: nothing that we could leave out
                refused.update(bad)
                part = [id_ for id_ in part if id_ not in bad]
            else:
                break
    return items


async def _all_pages(
    connector: Connector, operation: Operation[T], request: Callable[[Limitation], Request]
) -> list[T]:
    items: dict[str, T] = {}
    cursor: str | None = None
    size = PageSize(MAX_COUNT, MAX_COUNT)
    too_heavy = 0
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
        page = answer.listing.items
        known = len(items)
        items.update((item.id, item) for item in page)
        if len(page) < count:
            return list(items.values())
        cursor = answer.listing.cursor
        if cursor is None or len(items) == known:
            raise BadResponseError(operation.path, "a full page without a cursor that leads on", status=200)


async def _probe(connector: Connector, operation: Operation[T], request: Request) -> PlatformError | None:
    try:
        await connector.call(operation, request)
    except InvalidRequestError as error:
        return error
    return None
