"""Who walks next, and what becomes of each walk: nothing is lost on the way, whatever is split, refused or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from msgspec import structs

from fetcher.connector.budget import RequestBudget
from fetcher.connector.operations import EnterprisesRequest, OrdersOperation, OrdersRequest
from fetcher.errors import (
    AccessDeniedError,
    BadResponseError,
    InvalidRequestError,
    PausedError,
    PlatformError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.loading.aside import Aside
from fetcher.loading.beginning import Beginning
from fetcher.loading.handover import Handover
from fetcher.loading.pool import Pool
from fetcher.loading.refusals import PortfolioFailedError, Refusals
from fetcher.loading.remaining import remaining
from fetcher.planning.checkpoint import Checkpoint, Position
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import ServiceRef, Shard, Target
from fetcher.planning.windows import Window, union
from fetcher.report import Tally
from fetcher.sinks import Page
from fetcher.sinks.writer import Delivery
from tests.loading.test_beginning import config
from tests.loading.test_walk import (
    END,
    NOW,
    PATH,
    ROOM,
    START,
    FakeConnector,
    Trail,
    Trouble,
    hourly,
    ids,
    order,
    service,
)
from tests.virtual import run_virtually

SERVICES = 6


class Case:
    """A pool, and all that it uses; whatever it hands over is accepted at once."""

    def __init__(self, connector: FakeConnector, walks: int = 16, page_size: int = 10, *, splits: bool = False) -> None:
        self.connector = connector
        connector.platform.circuit = SimpleNamespace(given_up=False)  # type: ignore[attr-defined]
        trail = Trail(connector, page_size, splits=splits)
        self.scope, self.room = trail.scope, trail.room
        self.checkpoint = Checkpoint("north", None, {}, {})
        self.tally = Tally(portfolio="north")
        self.orders: list[str] = []
        self.records: dict[str, str | None] = {}
        operation = self.scope.operation
        self.refusals = Refusals(connector, operation, self.checkpoint, self.tally)  # type: ignore[arg-type]
        self.refusals.expect([ServiceRef("e", service(number)) for number in range(SERVICES)])
        beginning = Beginning(config(), connector.platform.clock, self.checkpoint, Repeats(self.checkpoint))
        self.handover = Handover(
            self.take,
            lambda page: page,
            operation,
            beginning,
            Aside(self.checkpoint),
            self.checkpoint,
            self.tally,
        )
        self.pool = Pool(walks, self.refusals, self.handover, self.checkpoint, self.tally)

    async def take(self, delivery: Delivery) -> None:
        if isinstance(delivery.page, Page):
            self.orders += [order.id for order in delivery.page.orders]
        self.records |= delivery.accept()

    async def walk(self, *shards: Shard, **options: Any) -> set[str]:
        at = Position(None, self.scope.page_size)
        try:
            return await self.pool.walk([(one, at) for one in shards], self.scope, **options)
        finally:
            assert self.room.free == ROOM, "every page gives its room back"


def shards(*numbers: int, **options: Any) -> list[Shard]:
    """One for each of these services."""
    return [
        Shard(service_ids=(service(number),), window=Window(START, END), settled=END, **options) for number in numbers
    ]


def together() -> Shard:
    """One for all of them."""
    return Shard(service_ids=tuple(map(service, range(SERVICES))), window=Window(START, END), settled=END)


def played(connector: FakeConnector, *walks: Shard, **options: Any) -> tuple[Case, set[str]]:
    async def play() -> tuple[Case, set[str]]:
        case = Case(connector)
        return case, await case.walk(*walks, **options)

    return run_virtually(play)


def test_every_order_of_every_shard_is_handed_over_once_and_the_shards_are_done() -> None:
    connector = FakeConnector(hourly(100, SERVICES))
    case, _ = played(connector, *shards(*range(SERVICES)))
    assert sorted(case.orders) == sorted(ids(connector.orders))
    assert (case.tally.shards_planned, case.tally.shards_done) == (SERVICES, SERVICES)
    assert case.checkpoint.begun() == []
    assert set(case.checkpoint.covered()) == {service(number) for number in range(SERVICES)}
    assert case.handover.begun == {service(number) for number in range(SERVICES)}


def test_services_of_which_not_all_could_be_read_are_told() -> None:
    def trouble(request: OrdersRequest, _matching: int) -> None:
        if service(1) in request.service_ids:
            raise TooHeavyError(PATH, "too heavy", status=408)

    case, moving = played(FakeConnector(hourly(100, SERVICES), trouble), *shards(0, 1, 2))
    assert case.pool.failed == {service(1)} <= moving
    assert service(1) not in case.checkpoint.covered()


def test_what_closes_a_run_leaves_no_record() -> None:
    case, _ = played(FakeConnector(hourly(100, SERVICES)), *shards(0, 1), closing=True)
    assert case.orders
    assert case.records == {}


@pytest.mark.parametrize(
    ("walks", "moving"),
    [
        (shards(0, open_ended=True), ""),
        (shards(0), "0"),  # its end is long past
        ([*shards(0, open_ended=True), *shards(0, open_ended=True)], "0"),
        ([*shards(0, open_ended=True), *shards(1, open_ended=True)], ""),
    ],
    ids=["at once", "not to the newest", "two of one service", "one of each"],
)
def test_only_a_service_that_was_read_at_once_has_not_moved_unseen(walks: Sequence[Shard], moving: str) -> None:
    recent = Window(NOW - timedelta(days=60), NOW)
    walks = [Shard(service_ids=one.service_ids, window=recent, settled=NOW, open_ended=one.open_ended) for one in walks]
    assert played(FakeConnector([]), *walks)[1] == {service(int(number)) for number in moving}


def test_one_that_is_split_has_moved_and_loses_nothing() -> None:
    connector = FakeConnector(hourly(300, SERVICES), Trouble(services=2))
    case, moving = played(connector, together())
    assert sorted(case.orders) == sorted(ids(connector.orders))
    assert moving == set(together().service_ids)
    assert case.tally.shards_planned == case.tally.shards_done > 1


def test_one_that_is_split_has_moved_though_each_part_was_read_at_once() -> None:
    recent = Window(NOW - timedelta(days=60), NOW)
    whole = structs.replace(together(), window=recent, settled=NOW, open_ended=True)
    assert played(FakeConnector([], Trouble(services=2)), whole)[1] == set(whole.service_ids)


def test_until_the_platform_has_taken_one_only_a_few_walk_side_by_side() -> None:
    class Counting(FakeConnector):
        asking = 0
        at_answers: tuple[int, ...] = ()

        async def call(self, operation: OrdersOperation, request: OrdersRequest, lease: Any = None) -> Any:
            self.asking += 1
            await anyio.sleep(1)
            self.at_answers += (self.asking,)
            try:
                return await super().call(operation, request, lease)
            finally:
                self.asking -= 1

    connector = Counting(hourly(100, SERVICES))
    played(connector, *shards(*range(SERVICES)))
    assert connector.at_answers[0] == Pool.FIRST_WALKS
    assert max(connector.at_answers) == SERVICES


def test_a_refused_service_is_left_out_and_the_others_go_on() -> None:
    def trouble(request: OrdersRequest, _matching: int) -> None:
        if service(2) in request.service_ids:
            raise InvalidRequestError(PATH, "Invalid ServiceIds", status=400)

    connector = FakeConnector(hourly(100, SERVICES), trouble)
    case, _ = played(connector, together())
    assert sorted(case.orders) == sorted(one["Id"] for one in connector.orders if one["ServiceId"] != service(2))
    assert case.refusals.bad == {service(2)}
    assert [failure.services for failure in case.tally.failed] == [(service(2),)]
    assert (case.tally.shards_planned, case.tally.shards_done) == (1, 1)


def test_a_shard_of_nothing_but_refused_services_is_not_walked() -> None:
    async def play() -> Case:
        case = Case(FakeConnector(hourly(20)))
        case.checkpoint.mark_bad(service(0), NOW + timedelta(days=1))
        case.refusals.expect([ServiceRef("e", service(0))])
        await case.walk(*shards(0))
        return case

    case = run_virtually(play)
    assert case.connector.requests == []
    assert (case.tally.shards_planned, case.tally.shards_done) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [BadResponseError(PATH, "no JSON"), InvalidRequestError(PATH, "Invalid State", status=400)],
    ids=["bad", "as a whole"],
)
def test_a_shard_that_fails_is_named_with_its_window_and_spoils_no_other(error: PlatformError) -> None:
    def trouble(request: OrdersRequest, _matching: int) -> None:
        if service(2) in request.service_ids:
            raise error

    connector = FakeConnector(hourly(100, SERVICES), trouble)
    case, _ = played(connector, *shards(*range(SERVICES)))
    assert sorted(case.orders) == sorted(one["Id"] for one in connector.orders if one["ServiceId"] != service(2))
    assert [(failure.services, failure.window) for failure in case.tally.failed] == [((service(2),), (START, END))]
    assert case.refusals.bad == set()


def test_a_token_that_is_refused_altogether_ends_all_walks() -> None:
    class Revoked(FakeConnector):
        async def call(self, operation: Any, request: Any, lease: Any = None) -> Any:
            await anyio.lowlevel.checkpoint()
            assert isinstance(request, EnterprisesRequest | OrdersRequest)
            raise AccessDeniedError(PATH, "revoked", status=401)

    async def play() -> None:
        case = Case(Revoked([]))
        with pytest.raises(PortfolioFailedError):
            await case.walk(*shards(*range(SERVICES)))
        assert case.tally.failed == []  # it is for the portfolio to name

    run_virtually(play)


def test_a_pause_that_is_longer_than_a_run_waits_ends_all_walks() -> None:
    def trouble(_request: OrdersRequest, _matching: int) -> None:
        raise PausedError(PATH, NOW + timedelta(hours=5))

    async def play() -> None:
        case = Case(FakeConnector([], trouble))
        with pytest.raises(PortfolioFailedError) as caught:
            await case.walk(*shards(*range(SERVICES)))
        assert isinstance(caught.value.error, PausedError)

    run_virtually(play)


def shared(connector: FakeConnector, walks: int = 16, *, splits: bool = True) -> Case:
    async def play() -> Case:
        case = Case(connector, walks, splits=splits)
        await case.walk(together())
        return case

    return run_virtually(play)


@pytest.mark.parametrize("late", [None, 0, 3, 60])
def test_walkers_with_nothing_to_do_share_what_is_left_and_every_order_comes_once(late: int | None) -> None:
    connector = FakeConnector(hourly(400, SERVICES))
    if late is not None:  # created up to so many orders before they were updated
        chance = Random(late)
        ranked = sorted(enumerate(reversed(connector.orders)), key=lambda one: one[0] - chance.random() * late)
        connector.created = {one["Id"]: place for place, (_, one) in enumerate(ranked)}
    case = shared(connector)
    assert sorted(case.orders) == sorted(ids(connector.orders))
    assert len(connector.requests) <= 40 * 1.5
    assert case.checkpoint.begun() == []
    assert case.tally.shards_planned == case.tally.shards_done > 1
    assert {union(windows) for windows in case.checkpoint.covered().values()} == {(Window(START, END),)}


class Counting(FakeConnector):
    """Notes the cursors that were refused."""

    def __init__(self, orders: Iterable[dict[str, Any]], *, strict: bool) -> None:
        super().__init__(orders)
        self.strict = strict
        self.refused = 0

    async def call(self, operation: Any, request: Any, room: Any = None) -> Any:
        try:
            return await super().call(operation, request, room)
        except InvalidRequestError:
            self.refused += 1
            raise


def by_creation(*, strict: bool) -> Counting:
    """400 orders that were updated any time after they were created, the newest creation first."""
    connector = Counting(hourly(400, SERVICES), strict=strict)
    chance = Random(7)
    connector.created = {one["Id"]: chance.randrange(10**9) for one in connector.orders}
    return connector


def in_one_second(*, strict: bool) -> Counting:
    """400 orders with one and the same time."""
    return Counting(
        [order(number, START + timedelta(days=9), number % SERVICES) for number in range(400)], strict=strict
    )


@pytest.mark.parametrize("world", [by_creation, in_one_second])
def test_where_time_does_not_tell_what_is_left_parts_go_on_at_the_cursor_and_every_order_comes_once(
    world: Callable[..., Counting],
) -> None:
    connector = world(strict=False)
    case = shared(connector)
    assert sorted(case.orders) == sorted(ids(connector.orders))
    assert len(connector.requests) <= 40 * 1.5
    assert case.tally.shards_done >= 6
    assert case.checkpoint.begun() == []


@pytest.mark.parametrize("world", [by_creation, in_one_second])
def test_a_platform_that_refuses_such_a_cursor_is_asked_once(world: Callable[..., Counting]) -> None:
    connector = world(strict=True)
    case = shared(connector)
    assert connector.refused == 1
    assert set(case.orders) == set(ids(connector.orders))
    assert len(connector.requests) <= 40 * 1.5
    assert case.checkpoint.begun() == []


@pytest.mark.parametrize(
    "error",
    [UnavailableError(PATH, "down"), InvalidRequestError(PATH, "Invalid ServiceIds", status=400)],
    ids=["fails", "is left out"],
)
def test_a_cursor_that_was_not_answered_elsewhere_is_tried_by_another_walk(error: PlatformError) -> None:
    tried, others = shards(0)[0], shards(*range(1, SERVICES))

    def trouble(request: OrdersRequest, _matching: int) -> None:
        if service(0) in request.service_ids:
            raise error

    connector = FakeConnector(hourly(60, SERVICES), trouble)

    async def play() -> Case:
        case = Case(connector)
        await case.walk(*others)
        case.scope.cursors.trying()
        await case.pool.walk([(tried, Position(connector.orders[0]["Id"], 10, elsewhere=True))], case.scope)
        return case

    case = run_virtually(play)
    assert case.tally.shards_done == len(others)
    assert case.scope.cursors.most(7) == 1


def test_what_goes_on_at_a_cursor_survives_an_order_whose_time_cannot_be_read() -> None:
    connector = by_creation(strict=False)
    spoilt = connector.orders[200]["Id"]
    case = Case(connector, splits=True)
    decode = case.scope.operation.decode

    def decoded(body: bytes) -> Any:
        listing = decode(body)
        items = [structs.replace(one, updated_utc="soon") if one.id == spoilt else one for one in listing.items]
        return structs.replace(listing, items=items)

    case.scope.operation.decode = decoded  # type: ignore[method-assign]

    async def play() -> None:
        await case.walk(together())

    run_virtually(play)
    assert sorted(case.orders) == sorted(set(ids(connector.orders)) - {spoilt})


def test_nothing_is_given_away_where_walks_are_not_to_be_split_or_the_budget_binds_or_nobody_is_idle() -> None:
    assert len(shared(FakeConnector(hourly(400, SERVICES)), splits=False).connector.requests) == 41
    assert len(shared(FakeConnector(hourly(400, SERVICES)), walks=1).connector.requests) == 41
    bound = FakeConnector(hourly(400, SERVICES))
    bound.budget = RequestBudget(1, 30)
    assert len(shared(bound).connector.requests) == 41


def test_a_load_that_is_killed_while_it_is_split_goes_on_without_a_gap_and_without_a_page_twice() -> None:
    class KilledError(Exception):
        pass

    def killed_after(pages: int) -> Case:
        async def play() -> Case:
            case = Case(FakeConnector(hourly(400, SERVICES)), splits=True)
            take = case.take

            async def until(delivery: Delivery) -> None:
                if case.tally.pages > pages:
                    raise KilledError
                await take(delivery)

            case.handover._send = until
            with suppress(BaseException):
                await case.pool.walk([(together(), Position(None, 10))], case.scope)
            return case

        return run_virtually(play)

    for pages in (1, 2, 5, 9, 20):
        before = killed_after(pages)

        async def go_on(before: Case = before) -> Case:
            records = {name: text for name, text in before.records.items() if text is not None}
            after = Case(FakeConnector(hourly(400, SERVICES)), splits=True)
            after.checkpoint = Checkpoint("north", None, records, {})
            window = Window(START, END)
            target = Target(window=window, settled=END, open_ended=False, months=3, shard_by="auto")
            services = [ServiceRef("e", service(number)) for number in range(SERVICES)]
            missing, going_on = remaining(
                after.checkpoint, services, target, Repeats(after.checkpoint), by_states=False
            )
            fresh = [(shard, Position(None, 10)) for shard in missing]
            await after.pool.walk([*going_on, *fresh], after.scope)
            return after

        after = run_virtually(go_on)
        assert sorted([*before.orders, *after.orders]) == sorted(ids(after.connector.orders))
