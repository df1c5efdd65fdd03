"""One call: whatever comes back, only a page or one of our own errors goes on."""

from __future__ import annotations

import os
import random
from email.utils import formatdate
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Connector, Credentials, Platform
from fetcher.connector.operations import (
    ENTERPRISES,
    EnterprisesRequest,
    Interval,
    Limitation,
    OrdersOperation,
    OrdersRequest,
    ServicesRequest,
)
from fetcher.connector.transport import Heard, Reply, TransportError
from fetcher.errors import FetcherError, InvalidRequestError, SetupError, TooHeavyError, UnavailableError
from fetcher.progress import Tally
from tests.virtual import run_virtually

EXAMPLES = int(os.environ.get("FETCHER_EXAMPLES", "150"))
REQUEST = EnterprisesRequest(Limitation(1000))
ORDERS_REQUEST = OrdersRequest(Limitation(10), ["a"], Interval("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"))


class Answers:
    """Answers with what it was given, the last one for ever, and keeps the time of each request."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.times: list[float] = []
        self.bodies: list[bytes] = []
        self.body_seconds = 0.0

    async def post(self, path: str, body: bytes, heard: Heard, room: anyio.Semaphore | None = None) -> Reply:
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


def connected(answers: Answers, budget: RequestBudget, tally: Tally | None = None) -> Connector:
    """A connector to these answers; within a running loop."""
    platform = Platform(answers, opens_per_second=1000, outage_seconds=300, chance=random.Random(1))
    return Connector(platform, Credentials("C-SECRET", "A-SECRET", "t"), budget, tally or Tally(portfolio="north"))


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

    async def post(self, path: str, body: bytes, heard: Heard, room: anyio.Semaphore | None = None) -> Reply:
        last = len(self.replies) == 1
        answer = await super().post(path, body, heard, room)
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


class Whole(Answers):
    """A transport that only gives whole answers."""

    async def post(self, path: str, body: bytes, heard: Heard, room: anyio.Semaphore | None = None) -> Reply:
        return await super().post(path, body, lambda _status, _headers: None, room)


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
def test_headers_are_not_trusted(text: str) -> None:
    strange = Reply(429, {"Date": text, "Retry-After": text, "Request-Id": text}, text.encode("utf-8", "replace"))
    fine = Reply(200, {"Date": formatdate(usegmt=True)}, EMPTY.body)
    answer, tally = call(Answers(strange, fine))
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

    async def post(self, path: str, body: bytes, heard: Heard, room: anyio.Semaphore | None = None) -> Reply:
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
                await connector.call(ENTERPRISES, REQUEST, anyio.Semaphore(1))
            assert blocked.tries == number
        assert caught.value.cure == "Write it into https_proxy"
        assert str(caught.value).endswith("the proxy p:1 wants a password (407). Write it into https_proxy")
        assert platform.circuit.down_seconds is None
        assert budget.used == 0  # nothing was sent
        assert anyio.current_time() - begun < 0.01

    run_virtually(scenario)
