"""A walk brings each order of its shard, whatever the platform cannot give at once; the cases are the module's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Answer
from fetcher.connector.clock import PlatformClock
from fetcher.connector.operations import OrdersOperation, OrdersRequest
from fetcher.connector.room import Lease, Room
from fetcher.connector.types import parse_utc
from fetcher.errors import (
    AccessDeniedError,
    BadResponseError,
    InvalidRequestError,
    PlatformError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.loading.cursors import Cursors
from fetcher.loading.page_size import Learned
from fetcher.loading.walk import Finished, Lineage, Outcome, Scope, Split, Step, Walk
from fetcher.planning.checkpoint import Position
from fetcher.planning.shards import Shard
from fetcher.planning.sifting import Sieve
from fetcher.planning.windows import Window
from tests.virtual import run_virtually

START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2024, 3, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, tzinfo=UTC)
ROOM = 3
PATH = OrdersOperation().path


def service(number: int) -> str:
    return str(UUID(int=number + 1))


def order(number: int, updated: datetime, of: int = 0) -> dict[str, Any]:
    nobody = str(UUID(int=0))
    return {
        "Id": str(UUID(int=1000 + number)),
        "ServiceId": service(of),
        "AccountId": nobody,
        "AccountType": "Customer",
        "CreatorProfileId": nobody,
        "UpdaterProfileId": nobody,
        "Number": str(number),
        "State": "Confirmed",
        "Origin": "Connector",
        "CreatedUtc": "2020-01-01T00:00:00Z",
        "UpdatedUtc": f"{updated:%Y-%m-%dT%H:%M:%SZ}",
        "Options": dict.fromkeys(
            ["OwnerCheckedIn", "AllCompanionsCheckedIn", "AnyCompanionCheckedIn", "ConnectorCheckIn"], False
        ),
    }


def hourly(count: int, services: int = 1) -> list[dict[str, Any]]:
    return [order(number, START + timedelta(hours=number), number % services) for number in range(count)]


class Trouble:
    """What a platform cannot give; `None` and 0 are no limit. Called with each request, and with what it matches."""

    def __init__(self, *, count: int = 0, seconds: float = 0, services: int = 0, status: int | None = 408) -> None:
        self.count = count
        self.seconds = seconds
        self.services = services
        self.status = status

    def __call__(self, request: OrdersRequest, _matching: int) -> None:
        if self.services and len(request.service_ids) > self.services:
            raise TooHeavyError(PATH, "too many", status=413)
        assert request.updated_utc is not None
        long = (parse_utc(request.updated_utc.end_utc) - parse_utc(request.updated_utc.start_utc)).total_seconds()
        if (self.count and request.limitation.count > self.count) or (self.seconds and long > self.seconds):
            raise TooHeavyError(PATH, "too heavy", status=self.status)


class FakePlatform:
    def __init__(self) -> None:
        self.clock = PlatformClock(lambda: 0.0)
        self.clock.observe(format_datetime(NOW, usegmt=True))


class FakeConnector:
    """A connector whose platform is a list of orders: newest first, behind cursors, as the contract says."""

    def __init__(
        self, orders: Iterable[dict[str, Any]], trouble: Callable[[OrdersRequest, int], None] | None = None
    ) -> None:
        self.orders = sorted(orders, key=lambda one: (one["UpdatedUtc"], one["Id"]), reverse=True)
        self._places = {one["Id"]: (parse_utc(one["UpdatedUtc"]), UUID(one["Id"]).int) for one in self.orders}
        self.platform = FakePlatform()
        self.budget = RequestBudget(200, 30)
        self.requests: list[OrdersRequest] = []
        self.created: dict[str, int] | None = None
        self.strict = False  # whether a cursor that is none of what is asked for is refused
        self.cursor: Callable[[str | None], str | None] = lambda cursor: cursor
        self._trouble = trouble or Trouble()

    async def call(self, operation: OrdersOperation, request: OrdersRequest, lease: Lease | None = None) -> Answer[Any]:
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        interval, services = request.updated_utc, set(request.service_ids)
        assert interval is not None
        first, last = parse_utc(interval.start_utc), parse_utc(interval.end_utc)
        found = [
            one for one in self.orders if one["ServiceId"] in services and first <= self._places[one["Id"]][0] < last
        ]
        self._trouble(request, len(found))
        if self.strict and request.limitation.cursor not in (None, *(one["Id"] for one in found)):
            raise InvalidRequestError(PATH, "Invalid Cursor", status=400)
        if self.created is not None:  # that is what "newest" means, then
            created = self.created
            found.sort(key=lambda one: created[one["Id"]], reverse=True)
            if (cursor := request.limitation.cursor) is not None:
                found = [one for one in found if created[one["Id"]] < created[cursor]]
        elif request.limitation.cursor is not None:
            at = self._places[request.limitation.cursor]
            found = [one for one in found if self._places[one["Id"]] < at]
        page = found[: request.limitation.count]
        body = json.dumps(
            {"ProductServiceOrders": page, "Cursor": self.cursor(page[-1]["Id"] if page else None)}
        ).encode()
        if lease is not None:
            await lease.acquire()
        return Answer(operation.decode(body), body, self.platform.clock.now())


class Trail:
    """The walk of a shard, and of all that it is split into; what they delivered, and how they ended."""

    def __init__(self, connector: FakeConnector, page_size: int = 100, *, splits: bool = False) -> None:
        self.connector = connector
        self.room = Room(ROOM)
        self.scope = Scope(
            portfolio="north",
            connector=connector,  # type: ignore[arg-type]
            operation=OrdersOperation(),
            enterprise_ids={},
            states=None,
            page_size=page_size,
            learned=Learned(page_size),
            cursors=Cursors(),
            settled="2024-05-01T00:00:00",
            room=self.room,
            splits=splits,
        )
        self.steps: list[Step] = []
        self.shards: list[Shard] = []
        self.walk: Walk | None = None

    async def deliver(self, step: Step) -> None:
        self.steps.append(step)
        step.lease.release()

    async def one(self, shard: Shard, position: Position | None = None, lineage: Lineage | None = None) -> Outcome:
        self.shards.append(shard)
        at = position or Position(None, self.scope.page_size)
        self.walk = Walk(self.scope, shard, at, lineage or Lineage())
        return await self.walk.run(self.deliver)

    async def all(self, shard: Shard, position: Position | None = None, lineage: Lineage | None = None) -> Outcome:
        lineage = lineage or Lineage()
        outcome = await self.one(shard, position, lineage)
        if isinstance(outcome, Split):
            for part, where in outcome.parts:
                await self.all(part, where, lineage)
        return outcome

    @property
    def ids(self) -> list[str]:
        return [one.id for step in self.steps for one in step.page.orders]

    @property
    def counts(self) -> list[int]:
        return [request.limitation.count for request in self.connector.requests]


def shard(services: int = 1, window: Window | None = None, **options: Any) -> Shard:
    ids = tuple(service(number) for number in range(services))
    return Shard(service_ids=ids, window=window or Window(START, END), settled=NOW, **options)


def walked(connector: FakeConnector, what: Shard, page_size: int = 100) -> Trail:
    async def walk() -> Trail:
        trail = Trail(connector, page_size)
        await trail.all(what)
        assert trail.room.free == ROOM, "what was delivered gave its room back"
        return trail

    return run_virtually(walk)


def refused(connector: FakeConnector, what: Shard, page_size: int = 100) -> tuple[PlatformError, Trail]:
    async def walk() -> tuple[PlatformError, Trail]:
        trail = Trail(connector, page_size)
        with pytest.raises(PlatformError) as caught:
            await trail.all(what)
        assert trail.room.free == ROOM, "a walk that fails gives its room back"
        return caught.value, trail

    return run_virtually(walk)


def ids(orders: Iterable[dict[str, Any]]) -> list[str]:
    return [one["Id"] for one in orders]


# 1. A page


@pytest.mark.parametrize(("orders", "requests"), [(0, 1), (1, 1), (9, 1), (10, 2), (25, 3), (30, 4)])
def test_a_short_page_ends_the_walk_without_another_request(orders: int, requests: int) -> None:
    connector = FakeConnector(hourly(orders))
    trail = walked(connector, shard(), page_size=10)
    assert len(connector.requests) == requests
    assert trail.ids == ids(connector.orders)
    assert trail.steps[-1].position is None


def test_each_page_but_the_last_says_where_its_walk_goes_on() -> None:
    trail = walked(FakeConnector(hourly(25)), shard(), page_size=10)
    assert [step.position and step.position.cursor for step in trail.steps] == [
        trail.steps[0].page.orders[-1].id,
        trail.steps[1].page.orders[-1].id,
        None,
    ]


def test_a_walk_goes_on_from_its_position_and_asks_for_nothing_before_it() -> None:
    connector = FakeConnector(hourly(25))
    at = connector.orders[9]["Id"]

    async def walk() -> list[str]:
        trail = Trail(connector)
        await trail.all(shard(), Position(at, 10))
        return trail.ids

    assert run_virtually(walk) == ids(connector.orders[10:])


def test_only_one_request_for_all_from_the_start_is_at_once() -> None:
    async def walk(orders: int, position: Position, **options: Any) -> Outcome:
        return await Trail(FakeConnector(hourly(orders)), 10).one(shard(**options), position)

    assert run_virtually(walk, 5, Position(None, 10)) == Finished(at_once=False)  # its end is long past
    for orders, cursor, at_once in ((5, None, True), (15, None, False), (5, ids(hourly(5))[4], False)):

        async def open_ended(orders: int = orders, cursor: str | None = cursor) -> Outcome:
            window = Window(NOW - timedelta(days=60), NOW)
            what = shard(window=window, open_ended=True)
            moved = [order(number, window.start + timedelta(hours=number)) for number in range(orders)]
            return await Trail(FakeConnector(moved), 10).one(what, Position(cursor, 10))

        assert run_virtually(open_ended) == Finished(at_once=at_once)


@pytest.mark.parametrize("age", [1, 20, 89, 91.5])
def test_an_open_end_reads_beyond_now_and_never_more_than_three_months(age: float) -> None:
    window = Window(NOW - timedelta(days=age), NOW - timedelta(minutes=1))
    connector = FakeConnector([])
    walked(connector, shard(window=window, open_ended=True))
    (request,) = connector.requests
    assert request.updated_utc is not None
    until = parse_utc(request.updated_utc.end_utc)
    assert NOW < until <= NOW + Walk.AHEAD
    assert until <= window.start + timedelta(days=92)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("where", ["sifting", "handing over", "cancelled while handing over"])
def test_a_page_that_does_not_come_to_its_end_gives_its_place_back(
    where: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk() -> None:
        trail = Trail(FakeConnector(hourly(25)), 10)
        came: list[object] = []

        def breaking(then: Callable[..., Any]) -> Callable[..., Any]:
            def once(*arguments: Any) -> Any:
                came.append(None)
                assert trail.room.free == ROOM - 1
                if len(came) < number:
                    return then(*arguments)
                if where.startswith("cancelled"):
                    return anyio.sleep_forever()
                raise OSError

            return once

        if where == "sifting":
            monkeypatch.setattr(Sieve, "sift", breaking(Sieve.sift))
        else:
            trail.deliver = breaking(trail.deliver)  # type: ignore[method-assign]
        with anyio.move_on_after(1) as scope, suppress(OSError):
            await trail.one(shard())
        assert scope.cancelled_caught == where.startswith("cancelled")
        assert (len(trail.steps), trail.room.free) == (number - 1, ROOM)

    run_virtually(walk)


# 2. Too heavy


@pytest.mark.parametrize("status", [408, None])
def test_what_is_too_heavy_is_asked_for_in_smaller_pages_and_then_in_larger_ones_again(status: int | None) -> None:
    heavy = [True]

    def trouble(request: OrdersRequest, _matching: int) -> None:
        if request.limitation.count > 60 and heavy:
            raise TooHeavyError(PATH, "too heavy", status=status)
        if request.limitation.count <= 60:
            heavy.clear()

    connector = FakeConnector(hourly(1200), trouble)
    trail = walked(connector, shard(), page_size=1000)
    assert trail.shards == [shard()]
    assert trail.ids == ids(connector.orders)
    assert trail.counts[:3] == [1000, 250, 62]
    assert min(trail.counts) == 50
    assert max(trail.counts[4:]) > 50


def test_then_half_of_the_window_is_asked_for_and_no_page_that_came_again() -> None:
    limit = timedelta(days=20).total_seconds()
    came: list[OrdersRequest] = []

    def trouble(request: OrdersRequest, matching: int) -> None:
        if len(came) >= 3:  # then it becomes slow
            Trouble(seconds=limit)(request, matching)
        came.append(request)

    connector = FakeConnector(hourly(600), trouble)
    trail = walked(connector, shard(), page_size=50)
    assert sorted(trail.ids) == sorted(ids(connector.orders))
    assert (trail.shards[1].window.end, trail.shards[-1].window.start) == (END, START)
    assert trail.shards[1].window.start == START + (END - START) / 2
    assert all(not part.repeats for part in trail.shards)
    cursors = [request.limitation.cursor for request in connector.requests[:3]]
    assert cursors[0] is None
    assert all(request.limitation.cursor is not None for request in connector.requests[1:])


def test_then_half_of_the_services_where_the_window_is_a_single_second() -> None:
    second = Window(START, START + timedelta(seconds=1))
    orders = [order(number, START, number % 8) for number in range(100)]

    def trouble(request: OrdersRequest, _matching: int) -> None:
        if len(request.service_ids) > 2:
            raise TooHeavyError(PATH, "too heavy", status=408)

    connector = FakeConnector(orders, trouble)
    trail = walked(connector, shard(8, second), page_size=20)
    assert sorted(trail.ids) == sorted(ids(orders))
    assert {len(part.service_ids) for part in trail.shards} == {8, 4, 2}
    assert {part.window for part in trail.shards} == {second}


def test_too_many_ids_are_fewer_services_at_once_whatever_the_page_and_the_window() -> None:
    connector = FakeConnector(hourly(300, 16), Trouble(services=3))
    trail = walked(connector, shard(16))
    assert sorted(trail.ids) == sorted(ids(connector.orders))
    assert {part.window for part in trail.shards} == {Window(START, END)}
    assert set(trail.counts) == {100}


def test_what_cannot_be_made_smaller_is_the_caller_s_to_report() -> None:
    second = Window(START, START + timedelta(seconds=1))
    for status in (408, 413, None):

        def trouble(_request: OrdersRequest, _matching: int, status: int | None = status) -> None:
            raise TooHeavyError(PATH, "too heavy", status=status)

        error, _ = refused(FakeConnector([order(1, START)], trouble), shard(1, second), page_size=10)
        assert isinstance(error, TooHeavyError)
        assert error.status == status


def test_a_shard_that_is_always_too_heavy_is_not_halved_into_millions_of_seconds() -> None:
    async def walk() -> int:
        trail = Trail(FakeConnector([], Trouble(seconds=0.5)), 1000)
        parts, lineage = [(shard(1000), Position(None, 1000))], Lineage()
        while parts:
            with suppress(TooHeavyError):  # the others are walked all the same
                outcome = await trail.one(*parts.pop(), lineage)
                parts += outcome.parts if isinstance(outcome, Split) else ()
        return len(trail.connector.requests)

    assert run_virtually(walk) <= 2 * Lineage.MOST_FRUITLESS


def test_the_same_request_is_never_asked_again_after_it_was_too_heavy() -> None:
    connector = FakeConnector(hourly(700, 5), Trouble(count=60, seconds=86_400 * 4, services=2))
    walked(connector, shard(5), page_size=1000)
    asked = [msgspec.json.encode(request) for request in connector.requests]
    assert len(asked) == len(set(asked))


# 3. The cursor is gone, or leads nowhere


@pytest.mark.parametrize("status", [408, 413])
def test_that_a_cursor_leads_on_elsewhere_is_found_out_also_if_the_first_request_is_too_much(status: int) -> None:
    # The cursor's order is of service 0; the part, of the others, is halved before it is answered.
    orders = hourly(60, 5)
    trouble = Trouble(seconds=86_400 * 40) if status == 408 else Trouble(services=3)
    connector = FakeConnector(orders, trouble)
    part = msgspec.structs.replace(shard(), service_ids=tuple(service(number) for number in range(1, 5)))

    async def walk() -> Trail:
        trail = Trail(connector, 10)
        trail.scope.cursors.trying()
        await trail.all(part, Position(orders[-5]["Id"], 10, elsewhere=True))
        return trail

    assert run_virtually(walk).scope.cursors.most(7) == 7


class Forgetful:
    """Refuses cursors, as often as it is told to."""

    def __init__(self, times: int, window: timedelta = timedelta(0)) -> None:
        self.left = times
        self.window = window

    def __call__(self, request: OrdersRequest, _matching: int) -> None:
        assert request.updated_utc is not None
        long = parse_utc(request.updated_utc.end_utc) - parse_utc(request.updated_utc.start_utc)
        if request.limitation.cursor is not None and self.left and long > self.window:
            self.left -= 1
            raise InvalidRequestError(PATH, "Invalid Cursor", status=400)


def test_a_walk_whose_cursor_is_gone_begins_again_once_and_says_that_its_orders_may_come_twice() -> None:
    connector = FakeConnector(hourly(25), Forgetful(1))
    trail = walked(connector, shard(), page_size=10)
    assert len(trail.shards) == 1
    assert [step.page.repeats for step in trail.steps] == [False, True, True, True]
    assert [request.limitation.cursor is None for request in connector.requests] == [True, False, True, False, False]
    assert trail.ids[10:] == ids(connector.orders)


def test_the_second_time_halves_of_the_window_are_read_from_their_start() -> None:
    connector = FakeConnector(hourly(60), Forgetful(10**6, timedelta(days=3)))
    trail = walked(connector, shard(), page_size=10)
    assert set(trail.ids) == set(ids(connector.orders))
    assert all(part.repeats for part in trail.shards[1:])
    assert [request.limitation.cursor is None for request in connector.requests[:5]] == [True, False] * 2 + [True]
    repeated = [one.id for step in trail.steps if not step.page.repeats for one in step.page.orders]
    assert len(repeated) == len(set(repeated))


@pytest.mark.parametrize("leads_to", [lambda _: None, lambda _: ids(hourly(60))[-1]], ids=["nowhere", "in a circle"])
def test_a_cursor_that_leads_nowhere_is_as_good_as_gone(leads_to: Callable[[str | None], str | None]) -> None:
    connector = FakeConnector([order(number, START) for number in range(60)])
    connector.cursor = leads_to
    error, trail = refused(connector, shard(window=Window(START, START + timedelta(seconds=1))), page_size=10)
    assert isinstance(error, BadResponseError)
    assert error.operation == PATH
    assert len(trail.connector.requests) <= 4


def test_a_cursor_that_is_refused_in_a_single_second_is_the_caller_s_to_report() -> None:
    connector = FakeConnector([order(number, START) for number in range(60)], Forgetful(10**6))
    error, _ = refused(connector, shard(window=Window(START, START + timedelta(seconds=1))), page_size=10)
    assert isinstance(error, InvalidRequestError)
    assert error.names_cursor


# 4. and 5. What is the caller's


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError(PATH, "Invalid ServiceIds", status=400),
        InvalidRequestError(PATH, "Invalid Cursor", status=400),  # of a request that has none
        AccessDeniedError(PATH, "no", status=403),
        UnavailableError(PATH, "down"),
        BadResponseError(PATH, "no JSON"),
    ],
    ids=["service", "cursor", "access", "down", "bad"],
)
def test_what_else_is_refused_comes_out_as_it_is_and_the_walk_knows_where_it_stood(error: PlatformError) -> None:
    def trouble(request: OrdersRequest, _matching: int) -> None:
        if (request.limitation.cursor is None) == error.detail.endswith("Cursor"):
            raise error

    connector = FakeConnector(hourly(25), trouble)
    caught, trail = refused(connector, shard(), page_size=10)
    assert caught is error
    assert trail.walk is not None
    at = trail.walk.position.cursor
    assert len(connector.requests) == 1 + len(trail.steps)
    assert at == (trail.steps[-1].page.orders[-1].id if trail.steps else None)


# All of it together


@given(
    st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(0, 5)), max_size=120),
    st.integers(1, 70),
    st.sampled_from([0, 1, 3, 55]),
    st.sampled_from([0, 86_400 * 9]),
    st.sampled_from([0, 1, 4]),
    st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_whatever_the_platform_cannot_give_every_order_comes_and_twice_only_where_it_is_said(
    made: list[tuple[int, int]], page_size: int, count: int, seconds: int, services: int, forgets: int
) -> None:
    orders = [order(number, START + timedelta(seconds=at), of) for number, (at, of) in enumerate(made)]
    forgetful, limits = Forgetful(forgets), Trouble(seconds=seconds, services=services)

    def trouble(request: OrdersRequest, matching: int) -> None:
        limits(request, matching)
        if count and request.limitation.count > max(count, 50) and matching > count:
            raise TooHeavyError(PATH, "too heavy", status=408)
        forgetful(request, matching)

    trail = walked(FakeConnector(orders, trouble), shard(6), page_size)
    assert set(trail.ids) == set(ids(orders))
    first = [one.id for step in trail.steps if not step.page.repeats for one in step.page.orders]
    assert len(first) == len(set(first))
