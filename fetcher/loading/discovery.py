"""Which enterprises and services a portfolio has, within what the configuration asks for.

Services count whether they are active or not, and whatever their kind: inactive ones still have history, and
which kinds have product service orders is unknown. An id is an id whatever its case; it is kept, and asked for, as the
platform wrote it.

Enterprises and services are asked for side by side, so that a run waits for one answer before it walks, and with the
least requests: one for each 1000 of either. Services are asked for

1. by their ids, if those are configured
2. by the enterprises' ids, if those are configured, in lists of at most 1000 side by side
3. else all that the token can see, in one list that names no enterprise. That it has the services of all of them is
   documented, and not relied on: an enterprise without a service in it is asked for by its id, and where the list is
   refused, all are. So an enterprise whose services cannot be listed is named, whatever such a list leaves out.

Pages come one after the other, each from the cursor of the one before. Where earlier runs found so many services that
this takes long, they are asked for by enterprises after all, in several lists side by side. Each list costs a request
more than the one cursor at the most (its last page is not full), so there is one for every `LIST_PAGES` pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio
import msgspec

from fetcher.connector.client import Connector
from fetcher.connector.listings import ENTERPRISES, SERVICES
from fetcher.connector.operations import MAX_COUNT, MAX_IDS, EnterprisesRequest, ServicesRequest
from fetcher.connector.types import Enterprise, Service
from fetcher.errors import (
    AccessDeniedError,
    InvalidRequestError,
    PlatformError,
    TooHeavyError,
    first_error,
)
from fetcher.loading.lists import Listed, cut, list_by_ids, list_pages
from fetcher.planning.shards import ServiceRef

LIST_PAGES = 3
"""Full pages of services that a list should have, for a request that is spent in vain: half of one, on the average."""


class Discovered(msgspec.Struct, frozen=True):
    """What a portfolio has."""

    enterprises: tuple[str, ...]
    services: tuple[ServiceRef, ...]
    """Sorted by enterprise, then service."""
    refused: dict[str, PlatformError]
    """Configured ids that the token may not see, or that do not exist, and what was listed and cannot be read."""


class AskedAhead:
    """The enterprises of a token, asked for before it is known what earlier runs found.

    Args:
        connector: calls for the token.
        enterprise_ids: see `discover`.
    """

    def __init__(self, connector: Connector, enterprise_ids: Sequence[str] | None) -> None:
        self._connector = connector
        self._ids = enterprise_ids
        # All mutable state: `ask` sets it, at its end.
        self._done = anyio.Event()
        self._listed: Listed[Enterprise] = Listed({}, {})
        self._error: PlatformError | None = None

    async def ask(self) -> None:
        """Ask for them. What the platform does not tell is raised by `listed` alone."""
        try:
            self._listed = await _enterprises(self._connector, self._ids)
        except PlatformError as error:
            self._error = error
        self._done.set()

    async def listed(self) -> Listed[Enterprise]:
        """The enterprises, once they are known.

        Raises:
            PlatformError: the platform does not tell.
        """
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._listed


async def discover(
    connector: Connector,
    enterprise_ids: Sequence[str] | None,
    service_ids: Sequence[str] | None,
    expected: int = 0,
    ahead: AskedAhead | None = None,
) -> Discovered:
    """All enterprises and services of a token, or those named.

    Args:
        connector: calls for the token.
        enterprise_ids: only these enterprises; `None`: all that the token can see.
        service_ids: only these services of those enterprises; `None`: all.
        expected: about how many services there are, by what earlier runs found; 0: nobody knows.
        ahead: the same enterprises, if they have been asked for.

    Raises:
        PlatformError: the platform does not tell.
    """
    visible = _Visible()
    asking = _Services(connector, visible, expected)
    enterprises: Listed[Enterprise] = Listed({}, {})
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(asking.ask, enterprise_ids, service_ids)
            enterprises = await (ahead.listed() if ahead else _enterprises(connector, enterprise_ids))
            visible.tell(enterprises.items.values())
    except* PlatformError as errors:
        raise first_error(errors) from None
    refused = enterprises.refused
    listed = list(enterprises.items.values())
    _note_missing(enterprise_ids, listed, refused, ENTERPRISES.path, "the enterprise is not among the token's")
    if not visible.ids:
        return Discovered((), (), refused)
    found = asking.found
    refused |= found.refused
    services = list(found.items.values())
    if enterprise_ids is not None:
        services = [service for service in services if visible.has(service.enterprise_id)]
    _note_missing(service_ids, services, refused, SERVICES.path, "the service is not among those of the enterprises")
    refs = sorted(ServiceRef(visible.spell(service.enterprise_id), service.id) for service in services)
    return Discovered(tuple(visible.ids), tuple(refs), refused)


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


class _Visible:
    """The enterprises that there are, for those who ask for services meanwhile."""

    def __init__(self) -> None:
        self._told = anyio.Event()
        self._spelling: dict[str, str] = {}

    def tell(self, enterprises: Iterable[Enterprise]) -> None:
        """These are all."""
        self._spelling = {enterprise.id.lower(): enterprise.id for enterprise in enterprises}
        self._told.set()

    async def all(self) -> list[str]:
        """Their ids, sorted, once they are known."""
        await self._told.wait()
        return self.ids

    async def among(self, ids: Sequence[str]) -> list[str]:
        """Which of these there are, as the platform writes them, once they are known."""
        await self._told.wait()
        return [self.spell(id_) for id_ in ids if self.has(id_)]

    @property
    def ids(self) -> list[str]:
        """Their ids, sorted."""
        return sorted(self._spelling.values())

    def has(self, id_: str) -> bool:
        """Whether it is one of them."""
        return id_.lower() in self._spelling

    def spell(self, id_: str) -> str:
        """The id as the platform writes it."""
        return self._spelling.get(id_.lower(), id_)


class _Services:
    """Asks for services while the enterprises are asked for.

    Args:
        connector: calls for the token.
        visible: the enterprises.
        expected: see `discover`.
    """

    def __init__(self, connector: Connector, visible: _Visible, expected: int) -> None:
        self._connector = connector
        self._visible = visible
        self._lists = max(1, expected // (LIST_PAGES * MAX_COUNT))
        # All mutable state: `ask` sets one of them, at its end.
        self._found: Listed[Service] = Listed({}, {})
        self._error: PlatformError | None = None

    @property
    def found(self) -> Listed[Service]:
        """What `ask` has found.

        Raises:
            PlatformError: the platform did not tell.
        """
        if self._error is not None:
            raise self._error
        return self._found

    async def ask(self, enterprise_ids: Sequence[str] | None, service_ids: Sequence[str] | None) -> None:
        """Ask for them, in one of three ways; see above. Raises nothing: without enterprises, none of it matters."""
        try:
            if service_ids is not None:
                self._found = await self._named(service_ids)
            elif enterprise_ids is not None:
                self._found = await self._of(enterprise_ids)
            elif self._lists > 1:
                self._found = await self._of(await self._visible.all())
            else:
                self._found = await self._of_all()
        except PlatformError as error:
            self._error = error

    async def _named(self, ids: Sequence[str]) -> Listed[Service]:
        return await list_by_ids(
            self._connector, SERVICES, cut(ids), lambda some, limitation: ServicesRequest(limitation, service_ids=some)
        )

    async def _of(self, enterprises: Sequence[str]) -> Listed[Service]:
        return await list_by_ids(
            self._connector,
            SERVICES,
            cut(enterprises, self._lists),
            lambda some, limitation: ServicesRequest(limitation, enterprise_ids=some),
            self._visible.among,
        )

    async def _of_all(self) -> Listed[Service]:
        try:
            listed = await list_pages(self._connector, SERVICES, ServicesRequest)
        except (InvalidRequestError, AccessDeniedError):
            return await self._of(await self._visible.all())
        except TooHeavyError:
            enterprises = await self._visible.all()
            if len(enterprises) <= MAX_IDS:
                raise  # they would be in one list again
            return await self._of(enterprises)
        enterprises = await self._visible.all()
        items = {key: service for key, service in listed.items.items() if self._visible.has(service.enterprise_id)}
        found = Listed(items, listed.refused)
        having = {service.enterprise_id.lower() for service in items.values()}
        without = [id_ for id_ in enterprises if id_.lower() not in having]
        try:
            found.add(await self._of(without))
        except AccessDeniedError as error:
            if not items:
                raise
            found.refused.update(dict.fromkeys(without, error))  # others were listed: it is not all that is denied
        return found


async def _enterprises(connector: Connector, ids: Sequence[str] | None) -> Listed[Enterprise]:
    if ids is None:
        return await list_pages(connector, ENTERPRISES, EnterprisesRequest)
    return await list_by_ids(
        connector, ENTERPRISES, cut(ids), lambda some, limitation: EnterprisesRequest(limitation, enterprise_ids=some)
    )


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
