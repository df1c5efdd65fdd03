"""Orders that are kept aside are asked for by their ids, after the walks; what is gone is given up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from fetcher.connector.client import Answer
from fetcher.connector.operations import MAX_IDS, OrdersOperation, OrdersRequest
from fetcher.connector.room import Lease
from fetcher.errors import PlatformError, TooHeavyError, UnavailableError
from fetcher.loading.aside import Aside
from fetcher.loading.asking import Asking
from fetcher.loading.cursors import Cursors
from fetcher.loading.page_size import Learned
from fetcher.loading.walk import Scope
from fetcher.planning.checkpoint import Checkpoint, owners_of
from fetcher.planning.shards import Shard
from fetcher.planning.windows import Window
from fetcher.sinks import EncodedPage, Page
from fetcher.sinks.writer import Delivery
from tests.loading.test_aside import TIMES, bad, encode, good, key
from tests.loading.test_beginning import FROM, NOW
from tests.loading.test_handover import Case
from tests.loading.test_walk import PATH, FakePlatform
from tests.orders import SERVICE
from tests.virtual import run_virtually


class ById:
    """A connector whose platform has some orders, and gives them by their ids, in pages that are not too heavy."""

    def __init__(
        self, orders: Sequence[dict[str, Any]], heavy: int = 10**6, error: PlatformError | None = None
    ) -> None:
        self.orders = {one["Id"].lower(): one for one in orders}
        self.platform = FakePlatform()
        self.requests: list[OrdersRequest] = []
        self._heavy = heavy
        self._error = error

    async def call(self, operation: OrdersOperation, request: OrdersRequest, lease: Lease) -> Answer[Any]:
        self.requests.append(request)
        if self._error is not None:
            raise self._error
        if request.limitation.count > self._heavy:
            raise TooHeavyError(PATH, "too heavy", status=408)
        assert request.product_service_order_ids is not None
        found = [one for id_ in request.product_service_order_ids if (one := self.orders.get(id_.lower()))]
        first = int(request.limitation.cursor or 0)
        part = found[first : first + request.limitation.count]
        body = json.dumps({"ProductServiceOrders": part, "Cursor": str(first + len(part))}).encode()
        await lease.acquire()
        return Answer(operation.decode(body), body, NOW)


class Accepting(Case):
    """A handover to somebody who accepts at once what comes, and keeps the orders' ids."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda page: structs.replace(encode(page), payload=[one.id for one in page.orders]), **options)
        self.ids: list[str] = []

    async def take(self, delivery: Delivery) -> None:
        if isinstance(delivery.page, EncodedPage):
            self.ids += delivery.page.payload or ()
        delivery.accept()


def scope_of(case: Case, connector: ById, page_size: int) -> Scope:
    case.repeats.remember_from(datetime(2026, 4, 30, tzinfo=UTC), [])
    return Scope(
        portfolio="north",
        connector=connector,  # type: ignore[arg-type]
        operation=case.operation,
        enterprise_ids={},
        states=None,
        page_size=page_size,
        learned=Learned(page_size),
        cursors=Cursors(),
        settled=case.repeats.remembered_from,
        room=case.room,
    )


def asked(
    connector: ById,
    kept: Sequence[dict[str, Any]],
    covered: bool = True,
    page_size: int = 100,
    elsewhere: Sequence[str] = (),
) -> tuple[Case, list[str]]:
    """A run that finds these kept aside; and the ids of the orders that it hands over."""

    async def play() -> tuple[Case, list[str]]:
        earlier = Accepting()
        await earlier.page(*kept)
        for service in ([SERVICE] if covered else []) + list(elsewhere):
            earlier.checkpoint.finish(Shard(service_ids=(service,), window=Window(FROM, NOW), settled=NOW))
        case = Accepting(checkpoint=earlier.checkpoint)
        scope = scope_of(case, connector, page_size)
        await Asking(case.aside, case.handover, case.checkpoint, case.repeats, case.tally).ask(
            [SERVICE], scope, whole=True
        )
        assert case.room.free == 1, "every page gives its room back"
        return case, case.ids

    return run_virtually(play)


def test_what_is_readable_now_comes_and_is_kept_aside_no_longer() -> None:
    connector = ById([good(1), good(2)])
    case, came = asked(connector, [bad(1), bad(2)])
    assert came == [good(1)["Id"], good(2)["Id"]]
    assert case.checkpoint.aside() == {}
    assert len(connector.requests) == 1


@pytest.mark.parametrize(("where", "told_by_reading"), [("nowhere", False), ("by another", True), ("dropped", True)])
def test_what_may_have_been_delivered_already_is_told_by_reading(where: str, told_by_reading: bool) -> None:
    other = Checkpoint("south", None, {}, {})
    other.finish(Shard(service_ids=(SERVICE,), window=Window(FROM, NOW), settled=NOW))
    records = {name: text for name, text in other.take_changes().items() if text is not None}
    owners = owners_of(records if where == "by another" else {})

    async def play() -> list[bool]:
        case = Accepting(checkpoint=Checkpoint("north", None, {}, owners))
        await case.page(bad(1))
        case.checkpoint.finish(Shard(service_ids=(SERVICE,), window=Window(FROM, NOW), settled=NOW))
        if where == "dropped":
            case.checkpoint.forget()
        repeats: list[bool] = []

        def keeping(page: Page) -> EncodedPage:
            repeats.append(page.repeats)
            return encode(page)

        case.handover._encode = keeping
        scope = scope_of(case, ById([good(1)]), 100)
        asking = Asking(Aside(case.checkpoint), case.handover, case.checkpoint, case.repeats, case.tally)
        await asking.ask([SERVICE], scope, whole=True)
        return repeats

    assert run_virtually(play) == [told_by_reading]


def test_what_is_as_it_was_stays_and_what_the_platform_has_no_longer_is_given_up() -> None:
    case, came = asked(ById([bad(1)]), [bad(1), bad(2)])
    assert came == []
    assert case.checkpoint.aside().keys() == {key(1)}
    assert case.tally.failed == []


@pytest.mark.parametrize("where", ["received", "handed over"])
def test_a_page_that_cannot_be_received_or_handed_over_gives_its_room_back(where: str) -> None:
    class Breaking(ById):
        async def call(self, operation: OrdersOperation, request: OrdersRequest, lease: Lease) -> Answer[Any]:
            answer = await super().call(operation, request, lease)
            if where == "received":
                raise OSError("broken")
            return answer

    class Failing(Accepting):
        failing = False

        async def take(self, delivery: Delivery) -> None:
            if self.failing:
                raise OSError("broken")
            await super().take(delivery)

    async def play() -> None:
        case = Failing()
        await case.page(bad(1))
        case.failing = True
        aside = Aside(case.checkpoint)  # of the next run
        scope = scope_of(case, Breaking([good(1)]), 100)
        with pytest.raises(OSError, match="broken"):
            await Asking(aside, case.handover, case.checkpoint, case.repeats, case.tally).ask(
                [SERVICE], scope, whole=True
            )
        assert case.room.free == 1

    run_virtually(play)


@pytest.mark.parametrize("elsewhere", [[], ["99999999-9999-4999-a999-999999999999"]])
def test_one_of_an_unknown_service_is_given_up_only_where_all_that_were_read_could_be_asked(
    elsewhere: list[str],
) -> None:
    case, _ = asked(ById([]), [bad(1), bad(2, ServiceId=None)], elsewhere=elsewhere)
    assert case.checkpoint.aside().keys() == ({key(2)} if elsewhere else set())


def test_what_a_walk_is_still_to_bring_is_left_to_it() -> None:
    case, came = asked(ById([good(1, TIMES[2])]), [bad(1)], covered=False)
    assert came == []
    assert case.checkpoint.aside().keys() == {key(1)}


def test_many_are_asked_for_a_thousand_ids_at_once_and_page_by_page() -> None:
    numbers = range(MAX_IDS + 50)
    connector = ById([good(number) for number in numbers])
    case, came = asked(connector, [bad(number) for number in numbers], page_size=400)
    assert sorted(came) == sorted(good(number)["Id"] for number in numbers)
    assert [len(request.product_service_order_ids or ()) for request in connector.requests] == [1000, 1000, 1000, 50]
    assert case.checkpoint.aside() == {}


def test_a_platform_that_gives_the_same_page_again_is_not_asked_for_ever() -> None:
    class Stuck(ById):
        async def call(self, operation: OrdersOperation, request: OrdersRequest, lease: Lease) -> Answer[Any]:
            assert len(self.requests) < 9
            first = structs.replace(request.limitation, cursor=None)
            return await super().call(operation, structs.replace(request, limitation=first), lease)

    connector = Stuck([good(number) for number in range(60)])
    _, came = asked(connector, [bad(number) for number in range(60)], page_size=50)
    assert len(connector.requests) == 2
    assert set(came) == {good(number)["Id"] for number in range(50)}


def test_pages_that_are_too_heavy_are_asked_for_smaller() -> None:
    connector = ById([good(number) for number in range(60)], heavy=60)
    _, came = asked(connector, [bad(number) for number in range(60)], page_size=400)
    assert len(came) == 60
    assert [request.limitation.count for request in connector.requests][:3] == [400, 100, 50]


@pytest.mark.parametrize(
    "error", [UnavailableError(PATH, "down"), TooHeavyError(PATH, "too heavy", status=408)], ids=["down", "too heavy"]
)
def test_where_they_cannot_be_asked_for_they_stay_and_it_is_named(error: PlatformError) -> None:
    case, _ = asked(ById([], error=error), [bad(1)])
    assert case.checkpoint.aside().keys() == {key(1)}
    assert ["could not be asked for again" in failure.error for failure in case.tally.failed] == [True]
