"""What is refused is found out once, whoever runs into it, and left out from then on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fetcher.connector.operations import EnterprisesRequest, OrdersOperation, OrdersRequest
from fetcher.errors import AccessDeniedError, InvalidRequestError, PlatformError, UnavailableError
from fetcher.loading.refusals import PortfolioFailedError, Refusals
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.shards import ServiceRef, Shard
from fetcher.planning.windows import Window
from fetcher.report import Tally
from tests.loading.test_walk import END, NOW, PATH, START, FakePlatform
from tests.virtual import run_virtually

SERVICES = [ServiceRef(f"e{number // 8}", f"s{number:02}") for number in range(24)]
IDS = tuple(service.id for service in SERVICES)
DENIED = AccessDeniedError(PATH, "Insufficient permissions", status=403)
INVALID = InvalidRequestError(PATH, "Invalid ServiceIds", status=400)


class Refusing:
    """A connector that refuses whatever has one of some services in it; `token`: with what it refuses all else."""

    def __init__(self, bad: Sequence[str], error: PlatformError, token: PlatformError | None = None) -> None:
        self.platform = FakePlatform()
        self.bad = set(bad)
        self.asked: list[int] = []
        self._error = error
        self._token = token

    async def call(self, _operation: Any, request: OrdersRequest | EnterprisesRequest, _room: Any = None) -> None:
        await anyio.sleep(0.1)
        if isinstance(request, EnterprisesRequest):
            if self._token is not None:
                raise self._token
            return
        self.asked.append(len(request.service_ids))
        if not self.bad.isdisjoint(request.service_ids):
            raise self._error


def shard(ids: Sequence[str] = IDS) -> Shard:
    return Shard(service_ids=tuple(ids), window=Window(START, END), settled=END)


class Case:
    def __init__(self, connector: Refusing) -> None:
        self.connector = connector
        self.checkpoint = Checkpoint("north", None, {}, {})
        self.tally = Tally(portfolio="north")
        self.refusals = Refusals(connector, OrdersOperation(), self.checkpoint, self.tally)  # type: ignore[arg-type]
        self.refusals.expect(SERVICES)


def played(connector: Refusing, scene: Callable[[Case], Awaitable[Any]]) -> Case:
    async def play() -> Case:
        case = Case(connector)
        await scene(case)
        return case

    return run_virtually(play)


def test_services_that_are_refused_are_named_left_out_and_remembered_for_a_day() -> None:
    async def scene(case: Case) -> None:
        assert await case.refusals.find_refused(shard(), 0, INVALID) == 1

    case = played(Refusing(IDS[3:5], INVALID), scene)
    assert case.refusals.bad == set(IDS[3:5])
    assert case.checkpoint.bad_services() == dict.fromkeys(IDS[3:5], NOW + Refusals.BAD_AGAIN)
    assert sorted(failure.services for failure in case.tally.failed) == [(IDS[3],), (IDS[4],)]
    assert {service.id for service in case.refusals.good_services} == set(IDS) - set(IDS[3:5])


@pytest.mark.parametrize(("after", "left_out"), [(timedelta(hours=-1), False), (timedelta(hours=1), True)])
def test_what_earlier_runs_found_is_left_out_until_its_time_has_come(after: timedelta, left_out: bool) -> None:
    async def scene(case: Case) -> None:
        case.checkpoint.mark_bad(IDS[3].upper(), NOW + after)
        case.refusals.expect(SERVICES)

    case = played(Refusing([], INVALID), scene)
    assert case.refusals.bad == ({IDS[3]} if left_out else set())
    assert [failure.services for failure in case.tally.failed] == ([(IDS[3],)] if left_out else [])
    assert bool(case.checkpoint.bad_services()) == left_out


def test_an_enterprise_that_is_denied_is_named_once_and_left_out_of_this_run_alone() -> None:
    async def scene(case: Case) -> None:
        assert await case.refusals.find_denied(shard(), 0, DENIED) == 1

    case = played(Refusing(IDS[8:16], DENIED), scene)
    assert case.refusals.bad == set(IDS[8:16])
    assert case.checkpoint.bad_services() == {}
    assert [(failure.enterprise, failure.services) for failure in case.tally.failed] == [("e1", ())]


@pytest.mark.parametrize("token", [DENIED, None])
def test_that_everything_is_denied_ends_the_portfolio(token: PlatformError | None) -> None:
    async def scene(case: Case) -> None:
        with pytest.raises(PortfolioFailedError) as caught:
            await case.refusals.find_denied(shard(), 0, DENIED)
        assert isinstance(caught.value.error, AccessDeniedError)
        assert len(case.connector.asked) <= 7

    assert played(Refusing(IDS, DENIED, token), scene).refusals.bad == set()


@pytest.mark.parametrize(("error", "bad"), [(DENIED, IDS[8:16]), (INVALID, IDS[8:16]), (DENIED, ())])
def test_those_who_are_refused_at_the_same_time_use_what_one_of_them_found(
    error: PlatformError, bad: Sequence[str]
) -> None:
    async def find(case: Case, part: Sequence[str]) -> None:
        if isinstance(error, AccessDeniedError):
            await case.refusals.find_denied(shard(part), 0, error)
        elif isinstance(error, InvalidRequestError):
            await case.refusals.find_refused(shard(part), 0, error)

    async def scene(case: Case) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(find, case, IDS[8:16])

    one = played(Refusing(bad, error), lambda case: find(case, IDS[8:16]))
    eight = played(Refusing(bad, error), scene)
    assert len(eight.connector.asked) == len(one.connector.asked) > 0
    assert eight.refusals.bad == set(bad)


@pytest.mark.parametrize("error", [DENIED, INVALID])
def test_what_is_refused_for_no_reason_that_can_be_found_is_given_up_at_the_third_attempt(error: PlatformError) -> None:
    async def scene(case: Case) -> None:
        find: Any = case.refusals.find_denied if error is DENIED else case.refusals.find_refused
        attempts = 0
        for _ in range(Refusals.ATTEMPTS - 1):
            attempts = await find(shard(IDS[:4]), attempts, error)
        with pytest.raises(type(error)):
            await find(shard(IDS[:4]), attempts, error)

    case = played(Refusing([], error), scene)
    assert case.refusals.bad == set()
    # What the token may not read may be read by another portfolio's; what is invalid is so for all.
    assert case.refusals.not_loaded == (set(IDS[:4]) if error is DENIED else set())


def test_what_cannot_be_found_out_now_comes_out_and_leaves_nothing_out() -> None:
    down = UnavailableError(PATH, "down")

    async def scene(case: Case) -> None:
        for find, error in ((case.refusals.find_denied, DENIED), (case.refusals.find_refused, INVALID)):
            with pytest.raises(UnavailableError):
                await find(shard(), 0, error)  # type: ignore[arg-type]

    case = played(Refusing(IDS, down, down), scene)
    assert case.refusals.not_loaded == set()
    assert case.tally.failed == []
