"""One call: whatever comes back, only a page or one of our own errors goes on."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from email.utils import formatdate
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Connector, Credentials, Platform
from fetcher.connector.listings import ENTERPRISES
from fetcher.connector.operations import (
    EnterprisesRequest,
    Interval,
    Limitation,
    OrdersOperation,
    OrdersRequest,
    ServicesRequest,
)
from fetcher.connector.room import Lease, Room
from fetcher.connector.transport import Heard, Reply, TransportError
from fetcher.errors import (
    FetcherError,
    InvalidRequestError,
    PausedError,
    SetupError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.report import Tally
from tests.virtual import run_virtually

EXAMPLES = int(os.environ.get("FETCHER_EXAMPLES", "150"))
ORDERS = OrdersOperation()
REQUEST = EnterprisesRequest(Limitation(1000))
ORDERS_REQUEST = OrdersRequest(Limitation(10), ["a"], Interval("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"))


class Answers:
    """Answers with what it was given, the last one for ever, and keeps the time of each request."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.times: list[float] = []
        self.bodies: list[bytes] = []
        self.body_seconds = 0.0

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        self.times.append(anyio.current_time())
        self.bodies.append(body)
        answer = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        heard(answer.status, answer.headers)
        await anyio.sleep(self.body_seconds)
        return answer


def reply(status: int, body: bytes = b"", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"Date": "Tue, 24 Nov 2026 10:00:00 GMT", "Request-Id": "r-1", **named}, body)


EMPTY = reply(200, b'{"Enterprises":[],"Cursor":null}')


def make_platform(answers: Any) -> Platform:
    return Platform(answers, opens_per_second=1000, outage_seconds=300, chance=random.Random(1))


def connected(answers: Any, budget: RequestBudget, tally: Tally | None = None) -> Connector:
    """A connector to these answers; within a running loop."""
    return Connector(
        make_platform(answers), Credentials("C-SECRET", "A-SECRET", "t"), budget, tally or Tally(portfolio="north")
    )


def call(answers: Answers, operation: Any = ENTERPRISES, request: Any = REQUEST) -> tuple[Any, Tally]:
    tally = Tally(portfolio="north")

    async def scenario() -> Any:
        return await connected(answers, RequestBudget(200, 0.05), tally).call(operation, request)

    return run_virtually(scenario), tally


def test_the_tokens_travel_in_the_body() -> None:
    answers = Answers(EMPTY)
    call(answers)
    sent = msgspec.json.decode(answers.bodies[0])
    assert sent == {
        "ClientToken": "C-SECRET",
        "AccessToken": "A-SECRET",
        "Client": "t",
        "Limitation": {"Count": 1000},
    }


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7.1),
        ("Tue, 24 Nov 2026 10:00:09 GMT", 9, 9.1),
        (None, 0, 1.1),
        ("0", 0.04, 1.1),
        ("Tue, 24 Nov 2026 09:59:00 GMT", 0.04, 1.1),
    ],
)
def test_a_429_is_waited_out_as_it_says(header: str | None, least: float, most: float) -> None:
    headers = {} if header is None else {"Retry_After": header}
    answers = Answers(reply(429, **headers), EMPTY)
    _, tally = call(answers)
    assert least <= answers.times[1] - answers.times[0] <= most
    assert (tally.requests, tally.retries, tally.throttled) == (2, 1, 1)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120), ("Tue, 24 Nov 2026 10:02:00 GMT", 120), ("1.5", 1.5), ("299", 299)],
)
def test_a_retry_after_is_heeded_whatever_the_status_as_seconds_and_as_a_date(
    status: int, header: str, seconds: float
) -> None:
    answers = Answers(reply(status, Retry_After=header), EMPTY)
    call(answers)
    assert answers.times[1] - answers.times[0] == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("header", ["0", "Tue, 24 Nov 2026 09:00:00 GMT", "-5", "soon", ""])
def test_a_retry_after_of_nothing_is_as_if_it_were_not_there(header: str) -> None:
    answers = Answers(reply(503, Retry_After=header), EMPTY)
    call(answers)
    assert 0 <= answers.times[1] - answers.times[0] <= 1.1


@pytest.mark.parametrize("status", [408, 413, 403, 400])
def test_a_retry_after_of_what_is_not_tried_again_holds_the_token_s_next_request(status: int) -> None:
    answers = Answers(reply(status, b'{"Message":"no"}', Retry_After="40"), EMPTY)

    async def scenario() -> None:
        connector = connected(answers, RequestBudget(200, 0.05))
        with pytest.raises(FetcherError):
            await connector.call(ENTERPRISES, REQUEST)
        await connector.call(ENTERPRISES, REQUEST)

    run_virtually(scenario)
    assert answers.times[1] - answers.times[0] == pytest.approx(40, abs=0.1)


def test_a_retry_after_is_for_its_token_alone() -> None:
    answers = Answers(reply(503, Retry_After="120"), EMPTY)

    async def scenario() -> None:
        platform = make_platform(answers)
        first, other = (
            Connector(platform, Credentials("C", token, "t"), RequestBudget(9, 1), Tally(portfolio=token))
            for token in ("A", "B")
        )
        async with anyio.create_task_group() as group:
            group.start_soon(first.call, ENTERPRISES, REQUEST)
            await anyio.sleep(1)
            await other.call(ENTERPRISES, REQUEST)

    run_virtually(scenario)
    assert [round(time - answers.times[0]) for time in answers.times] == [0, 1, 120]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "until"),
    [
        ("3600", "2026-11-24 11:00:0"),
        ("Tue, 24 Nov 2026 12:30:00 GMT", "2026-11-24 12:30:0"),
        ("9" * 12, "2036-11-2"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "2036-11-2"),
    ],
)
def test_a_pause_longer_than_anybody_waits_says_when_to_come_back(status: int, header: str, until: str) -> None:
    answers = Answers(EMPTY, reply(status, Retry_After=header), EMPTY)

    async def scenario() -> None:
        connector = connected(answers, RequestBudget(200, 30))
        await connector.call(ENTERPRISES, REQUEST)
        started = anyio.current_time()
        with pytest.raises(PausedError, match=until) as caught:
            await connector.call(ENTERPRISES, REQUEST)
        assert f"answered {status}" in str(caught.value)
        assert "UTC" in str(caught.value)
        with pytest.raises(PausedError):  # nor does anybody else of the token ask
            await connector.call(ENTERPRISES, REQUEST)
        assert anyio.current_time() - started < 0.1

    run_virtually(scenario)
    assert len(answers.times) == 2


class Hangs:
    """Answers nothing that is heavier than `most` items, and says nothing at all while it is down."""

    SECONDS = 60.0

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[tuple[str, int]] = []
        self.down = False

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        count = msgspec.json.decode(body)["Limitation"]["Count"]
        self.asked.append((path, count))
        if self.down or (path == ORDERS.path and count > self.most):
            await anyio.sleep(self.SECONDS)
            raise TransportError("timeout", "no answer within 60 seconds")
        await anyio.sleep(0.1)
        listing = b'{"ProductServiceOrders":[],"Cursor":null}' if path == ORDERS.path else EMPTY.body
        answer = reply(200, listing)
        heard(answer.status, answer.headers)
        return answer


def orders(count: int) -> OrdersRequest:
    return msgspec.structs.replace(ORDERS_REQUEST, limitation=Limitation(count))


def test_a_heavy_request_that_hangs_is_too_heavy_at_once_and_one_light_request_shows_that_it_is_no_outage() -> None:
    platform = Hangs(100)

    async def scenario() -> float:
        connector = connected(platform, RequestBudget(200, 30))
        started = anyio.current_time()

        async def heavy() -> None:
            with pytest.raises(TooHeavyError):
                await connector.call(ORDERS, orders(1000))

        async with anyio.create_task_group() as group:
            for _ in range(48):
                group.start_soon(heavy)
        assert connector.platform.circuit.down_seconds is None
        return anyio.current_time() - started

    assert run_virtually(scenario) == pytest.approx(60.1, abs=0.1)
    assert platform.asked.count((ORDERS.path, 1000)) == 48
    assert platform.asked[48:] == [(ENTERPRISES.path, 1)]


def test_where_others_are_answered_no_light_request_is_spent() -> None:
    platform = Hangs(100)

    async def scenario() -> None:
        connector = connected(platform, RequestBudget(200, 30))

        async def heavy() -> None:
            with pytest.raises(TooHeavyError):
                await connector.call(ORDERS, orders(1000))

        async with anyio.create_task_group() as group:
            group.start_soon(heavy)
            await anyio.sleep(30)
            await connector.call(ORDERS, orders(100))

    run_virtually(scenario)
    assert platform.asked == [(ORDERS.path, 1000), (ORDERS.path, 100)]


def test_heavy_requests_that_hang_while_light_ones_do_too_are_an_outage_that_is_waited_for() -> None:
    platform = Hangs(100)
    platform.down = True

    async def scenario() -> None:
        connector = connected(platform, RequestBudget(200, 30))
        failed: list[Exception] = []

        async def heavy() -> None:
            try:
                await connector.call(ORDERS, orders(50))
            except TooHeavyError as error:
                failed.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(heavy)
            await anyio.sleep(130)
            assert connector.platform.circuit.down_seconds is not None
            assert not failed
            platform.down = False
        assert connector.platform.circuit.down_seconds is None

    run_virtually(scenario)
    assert all(count == 1 for path, count in platform.asked if path == ENTERPRISES.path)


class Down:
    """Down until a time; one token is asked to wait for long as that begins."""

    def __init__(self, until: float, pause: str) -> None:
        self.until = until
        self.pause = pause
        self.times: dict[str, list[float]] = {}

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        token = msgspec.json.decode(body)["AccessToken"]
        now = anyio.current_time()
        self.times.setdefault(token, []).append(now)
        if now < self.until and token == "A" and len(self.times[token]) == 1:
            answer = reply(503, Retry_After=self.pause)
        elif now < self.until:
            raise TransportError("broken", "the connection broke")
        else:
            answer = EMPTY
        heard(answer.status, answer.headers)
        return answer


@pytest.mark.parametrize("pause", [600, 60, 299])
def test_after_an_outage_those_go_on_who_may_ask_whatever_token_is_paused(pause: int) -> None:
    async def scenario() -> dict[str, list[float]]:
        platform = Down(anyio.current_time() + 20, str(pause))
        shared = Platform(platform, opens_per_second=1000, outage_seconds=900, chance=random.Random(1))
        started = anyio.current_time()
        ended: dict[str, list[float]] = {"A": [], "B": [], "C": []}

        async def one(token: str, connector: Connector) -> None:
            await connector.call(ENTERPRISES, REQUEST)
            ended[token].append(anyio.current_time() - started)

        async with anyio.create_task_group() as group:
            for token in ended:
                connector = Connector(
                    shared, Credentials("C", token, "t"), RequestBudget(20, 1), Tally(portfolio=token)
                )
                for _ in range(4):
                    group.start_soon(one, token, connector)
        return ended

    ended = run_virtually(scenario)
    assert all(20 <= time < 60 for time in (*ended["B"], *ended["C"]))
    assert all(pause <= time < pause + 5 for time in ended["A"])


def test_a_slot_of_the_budget_is_not_kept_while_the_platform_is_down() -> None:
    async def scenario() -> int:
        platform = Down(anyio.current_time() + 100, "0")
        connector = connected(platform, RequestBudget(20, 1))
        async with anyio.create_task_group() as group:
            for _ in range(15):
                group.start_soon(connector.call, ENTERPRISES, REQUEST)
            await anyio.sleep(90)
            return connector.budget.used

    assert run_virtually(scenario) <= 3  # of the probes, which may still arrive


def date(seconds: float) -> str:
    return formatdate(1_800_000_000 + seconds, usegmt=True)


HOURS = 3600.0
AHEAD = reply(200, EMPTY.body, Date=date(2 * HOURS))
RIGHT = reply(200, EMPTY.body, Date=date(0))


@pytest.mark.parametrize(
    "answers",
    [
        [reply(502, b"<html>", Date=date(2 * HOURS)), RIGHT],
        [RIGHT, reply(502, b"<html>", Date=date(2 * HOURS)), RIGHT],
        [reply(200, b"<html>", Date=date(2 * HOURS)), RIGHT],
        [reply(503, b'{"Message":"Unavailable"}', Date=date(2 * HOURS)), RIGHT],
        [AHEAD, RIGHT],
        [RIGHT, AHEAD],
        [AHEAD, AHEAD, AHEAD, RIGHT],
        [AHEAD, reply(400, b'{"Message":"Invalid EnterpriseIds"}', Date=date(0))],
        [RIGHT, reply(403, b"<html>", Date=date(-2 * HOURS))],
    ],
)
def test_only_the_platform_s_own_answers_tell_the_time_and_the_earlier_one_counts(answers: list[Reply]) -> None:
    async def scenario() -> float:
        given = Answers(*answers)
        connector = connected(given, RequestBudget(200, 0.05))
        stamps = []
        while len(given.times) < len(answers):
            with suppress(FetcherError):
                stamps.append((await connector.call(ENTERPRISES, REQUEST)).fetched_utc)
        assert stamps == sorted(set(stamps))
        passed = anyio.current_time() - given.times[0]
        return connector.platform.clock.now().timestamp() - 1_800_000_000 - passed

    assert -20 < run_virtually(scenario) < 1.1


def test_a_slot_is_free_a_window_after_the_answer_began_however_long_its_body_takes() -> None:
    answers = Answers(EMPTY)
    answers.body_seconds = 9.0

    async def scenario() -> None:
        budget = RequestBudget(1, 30)
        connector = connected(answers, budget)
        await connector.call(ENTERPRISES, REQUEST)
        await connector.call(ENTERPRISES, REQUEST)
        assert budget.used == 1

    run_virtually(scenario)
    assert answers.times[1] - answers.times[0] == pytest.approx(30, abs=0.01)


class BreaksOff(Answers):
    """Begins each answer, and breaks off after the second that its body takes; the last one is whole."""

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        last = len(self.replies) == 1
        answer = await super().post(path, body, heard, lease)
        if not last:
            raise TransportError("broken", "the connection broke")
        return answer


@pytest.mark.parametrize(("status", "throttled"), [(200, 0), (429, 1), (503, 0)])
def test_an_answer_that_breaks_off_has_settled_its_slot_when_it_began(status: int, throttled: int) -> None:
    answers = BreaksOff(reply(status, Retry_After="40"), EMPTY)
    answers.body_seconds = 1.0
    tally = Tally(portfolio="north")

    async def scenario() -> None:
        budget = RequestBudget(1, 30)
        connector = connected(answers, budget, tally)
        await connector.call(ENTERPRISES, REQUEST)
        assert budget.used == 1
        await anyio.sleep(29.1)
        assert budget.used == 0

    run_virtually(scenario)
    # A slot is free 30 seconds after the headers; what a refusal asked for is heeded, though its body is missing.
    assert answers.times[1] - answers.times[0] == pytest.approx(30 if status == 200 else 40, abs=0.01)
    assert tally.throttled == throttled


def test_a_call_that_is_cancelled_while_its_answer_comes_gives_its_slot_back_once() -> None:
    answers = Answers(EMPTY)
    answers.body_seconds = 9.0

    async def scenario() -> None:
        budget = RequestBudget(2, 30)
        connector = connected(answers, budget)
        with anyio.move_on_after(5):
            await connector.call(ENTERPRISES, REQUEST)
        assert budget.used == 1
        await anyio.sleep(26)
        assert budget.used == 0

    run_virtually(scenario)


class Received(Answers):
    """Gives what was received, each in its place; `None` breaks off. Notes how much room there was before each try."""

    def __init__(self, room: Room, *replies: Reply | None) -> None:
        super().__init__()
        self.room = room
        self.left = list(replies)
        self.free: list[int] = []

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        self.free.append(self.room.free)
        answer = self.left.pop(0)
        heard(200 if answer is None else answer.status, {})
        assert lease is not None
        if answer is None or answer.status < 300:
            await lease.acquire()
        if answer is None:
            raise TransportError("broken", "the connection broke")
        return answer


@pytest.mark.parametrize("first", [None, reply(200, b"<html>"), reply(200, b'{"Enterprises":'), reply(503)])
def test_what_is_tried_again_has_given_its_place_back_before_and_a_page_keeps_it(first: Reply | None) -> None:
    async def scenario() -> None:
        room = Room(1)
        answers = Received(room, first, first, EMPTY)
        lease = room.lease()
        await connected(answers, RequestBudget(200, 30)).call(ENTERPRISES, REQUEST, lease)
        assert answers.free == [1, 1, 1]
        assert room.free == 0
        lease.release()
        assert room.free == 1

    run_virtually(scenario)


class Whole(Answers):
    """A transport that only gives whole answers."""

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        return await super().post(path, body, lambda _status, _headers: None, lease)


def test_a_transport_that_tells_no_beginning_gives_its_slots_back_too() -> None:
    answers = Whole(EMPTY)

    async def scenario() -> None:
        connector = connected(answers, RequestBudget(2, 30))
        for _ in range(5):
            await connector.call(ENTERPRISES, REQUEST)

    run_virtually(scenario)
    assert len(answers.times) == 5


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    answers = Answers(reply(status, b"<html>"), reply(status), EMPTY)
    assert call(answers)[1].retries == 2


@pytest.mark.parametrize(
    ("status", "error"), [(401, FetcherError), (403, FetcherError), (404, InvalidRequestError), (408, TooHeavyError)]
)
def test_what_does_not_pass_is_told_at_once(status: int, error: type[Exception]) -> None:
    answers = Answers(
        reply(status, b'{"Message":"Bad A-SECRET \\n 0123456789ABCDEF0123456789ABCDEF-0123456789ABCDEF"}')
    )
    with pytest.raises(error, match="r-1") as caught:
        call(answers)
    assert len(answers.times) == 1
    assert "0123456789ABCDEF" not in str(caught.value)


def test_a_platform_that_stays_away_is_given_up() -> None:
    with pytest.raises(UnavailableError):
        call(Answers(reply(503)))


def test_204_is_an_empty_page() -> None:
    answer, _ = call(Answers(reply(204)))
    assert (answer.listing.items, answer.listing.cursor) == ([], None)


def test_what_the_platform_damaged_is_believed_when_it_comes_the_same_again() -> None:
    bad = reply(200, b'{"ProductServiceOrders":[{"Id":"the-order","Number":"\\ud83d"}],"Cursor":null}')
    answers = Answers(bad)
    answer, tally = call(answers, OrdersOperation(), ORDERS_REQUEST)
    assert [order.id for order in answer.listing.rejected.values()] == ["the-order"]
    assert (len(answers.times), tally.retries) == (2, 1)
    assert answers.times[1] - answers.times[0] < 0.01  # it is no sign of trouble: nobody waits


def test_what_a_network_damaged_is_asked_for_again() -> None:
    first = reply(200, b'{"ProductServiceOrders":[{"Id":"\x00\x00"}],"Cursor":null}')
    other = reply(200, b'{"ProductServiceOrders":[{"Id":"\x00x"}],"Cursor":null}')
    whole = reply(200, b'{"ProductServiceOrders":[],"Cursor":null}')
    answers = Answers(first, other, whole)
    answer, _ = call(answers, OrdersOperation(), ORDERS_REQUEST)
    assert (answer.listing.count, len(answers.times)) == (0, 3)


bodies = st.one_of(
    st.binary(max_size=300),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["ProductServiceOrders", "Cursor", "Id", "Options", "x"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ).map(msgspec.json.encode),
    st.integers(1, 300_000).map(lambda depth: b'{"ProductServiceOrders":' + b"[" * depth),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(body=bodies, status=st.sampled_from([200, 200, 200, 201, 302, 400, 401, 408, 429, 500]))
def test_whatever_comes_only_our_own_errors_come_out(body: bytes, status: int) -> None:
    try:
        call(Answers(reply(status, body, Retry_After="1")), OrdersOperation(), ORDERS_REQUEST)
    except FetcherError as error:
        assert "SECRET" not in str(error)


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.text(max_size=40))
@example(text="310")
@example(text="3")
def test_headers_are_not_trusted(text: str) -> None:
    strange = Reply(429, {"Date": text, "Retry-After": text, "Request-Id": text}, text.encode("utf-8", "replace"))
    fine = Reply(200, {"Date": formatdate(usegmt=True)}, EMPTY.body)
    try:
        answer, tally = call(Answers(strange, fine))
    except PausedError:  # it was a time, or seconds, and longer than a run waits
        assert any(letter.isdigit() for letter in text)
    else:
        assert (answer.listing.items, tally.throttled) == ([], 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limitation(0),
        lambda: Limitation(1001),
        lambda: EnterprisesRequest(Limitation(1), enterprise_ids=[]),
        lambda: ServicesRequest(Limitation(1), service_ids=["x"] * 1001),
        lambda: OrdersRequest(Limitation(1), [], Interval("a", "b")),
        lambda: OrdersRequest(Limitation(1), ["x"], Interval("a", "b"), states=[]),
        lambda: OrdersRequest(Limitation(1), ["x"], product_service_order_ids=["x"] * 1001),
        lambda: OrdersRequest(Limitation(1), ["x"], product_service_order_ids=[]),
    ],
)
def test_a_request_that_the_contract_forbids_cannot_be_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\d|empty"):
        make()


class Blocked:
    """Nothing leaves, for a reason of our own."""

    def __init__(self) -> None:
        self.tries = 0

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        self.tries += 1
        raise TransportError("misconfigured", "the proxy p:1 wants a password (407)", "Write it into https_proxy")


def test_what_is_set_up_wrongly_here_is_told_at_once_and_is_no_outage() -> None:
    async def scenario() -> None:
        blocked = Blocked()
        platform = Platform(blocked, opens_per_second=1000, outage_seconds=300, chance=random.Random(1))
        budget = RequestBudget(20, 30)
        connector = Connector(platform, Credentials("C-SECRET", "A-SECRET", "t"), budget, Tally(portfolio="north"))
        begun = anyio.current_time()
        for number in range(1, 13):  # more than would open the circuit
            with pytest.raises(SetupError) as caught:
                await connector.call(ENTERPRISES, REQUEST, Room(1).lease())
            assert blocked.tries == number
        assert caught.value.cure == "Write it into https_proxy"
        assert str(caught.value).endswith("the proxy p:1 wants a password (407). Write it into https_proxy")
        assert platform.circuit.down_seconds is None
        assert budget.used == 0  # nothing was sent
        assert anyio.current_time() - begun < 0.01

    run_virtually(scenario)
