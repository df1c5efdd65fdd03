"""One call to the platform: budget, send, decode, retry, errors translated.

Everything that is known of the platform's behaviour under stress is decided here, so that whoever calls gets
either a page or one of the package's own errors. The cases of an answer, in `_try`:

1. no answer: unsent or broken, so again; timed out: too heavy at once if the request was a heavy one, and a light one
   is answered; a light request is tried again once
2. 429: everybody who uses the token waits, as long as the platform says
3. 5xx, and bodies that cannot be used: again, after a while; 504 is a time-out
4. 408, 413: too heavy, for the caller to ask for less
5. 401, 403 and every other status: an error at once
6. 200, 204: a page

`Retry-After` is heeded whatever the status, by everybody who uses the token. Others who call the platform are told by
their own answers: another token's pause is none of theirs.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import anyio
import msgspec
from aiolimiter import AsyncLimiter

from fetcher.connector.budget import RequestBudget, Slot
from fetcher.connector.circuit import Circuit
from fetcher.connector.clock import PlatformClock, parse_http_date
from fetcher.connector.listings import ENTERPRISES
from fetcher.connector.operations import (
    EnterprisesRequest,
    Limitation,
    Listing,
    Operation,
    OrdersRequest,
    Request,
)
from fetcher.connector.room import Lease
from fetcher.connector.transport import Reply, Transport, TransportError, brings_page
from fetcher.errors import (
    AccessDeniedError,
    BadResponseError,
    InvalidRequestError,
    InvalidStatesError,
    PausedError,
    PlatformError,
    SetupError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.report import Tally

T = TypeVar("T")


class Credentials:
    """The tokens of every request, ready to send. Nothing shows them."""

    __slots__ = ("_prefix",)

    def __init__(self, client_token: str, access_token: str, client: str) -> None:
        tokens = {"ClientToken": client_token, "AccessToken": access_token, "Client": client}
        self._prefix = msgspec.json.encode(tokens)[:-1] + b","

    def sign(self, request: Request) -> bytes:
        """The body to send: the tokens, then the request's own properties."""
        return self._prefix + msgspec.json.encode(request)[1:]


class Platform:
    """What all calls of one process share: the transport, the pace, the platform's clock and whether it is up.

    Args:
        transport: how bytes get there.
        opens_per_second: how fast requests are opened. It shapes: a burst of 200 on cold connections helps nobody.
            It is no guard; that is each token's `RequestBudget`.
        outage_seconds: how long a platform that is down, or asks to wait, is waited for.
        chance: where jitter comes from.
        ours: this machine's time, in seconds since 1970.
    """

    BURST = 20
    """Requests opened at once, before the pace counts."""

    def __init__(
        self,
        transport: Transport,
        *,
        opens_per_second: float,
        outage_seconds: float,
        chance: random.Random,
        ours: Callable[[], float] = time.time,
    ) -> None:
        self.transport = transport
        self.pacer = AsyncLimiter(self.BURST, self.BURST / opens_per_second)
        self.clock = PlatformClock(asyncio.get_running_loop().time, ours)
        self.circuit = Circuit(outage_seconds, chance)
        self.outage_seconds = outage_seconds
        self.chance = chance


class Answer(msgspec.Struct, Generic[T], frozen=True):
    """A page, and what came with it."""

    listing: Listing[T]
    body: bytes
    """The page as it came, decompressed; empty for 204."""
    fetched_utc: datetime
    """When it came, by the platform's clock."""
    seconds: float = 0.0
    """From when its request was sent until it was there."""


class Connector:
    """Calls the platform for one access token.

    Args:
        platform: what it shares with other tokens.
        credentials: the token's.
        budget: the token's.
        tally: where calls are counted.
        tries: of a call that fails for a while; `None`: `TRIES`.
    """

    TRIES = 7
    """With `BACKOFF_SECONDS` and `LONGEST_BACKOFF`: a fault that stays is reported after about a minute."""
    BACKOFF_SECONDS = 0.5
    LONGEST_BACKOFF = 30.0
    LONGEST_PAUSE = 10 * 365 * 86_400.0
    """Whatever is longer is as good as for ever; times beyond the year 9999 cannot be told."""
    MOST_THROTTLED = 50
    """Refusals of one call in a row, each after the pause that was asked for, until it is given up."""

    def __init__(
        self,
        platform: Platform,
        credentials: Credentials,
        budget: RequestBudget,
        tally: Tally,
        *,
        tries: int | None = None,
    ) -> None:
        self.platform = platform
        self.tries = tries or self.TRIES
        self.budget = budget
        self._credentials = credentials
        self._tally = tally

    async def call(self, operation: Operation[T], request: Request, lease: Lease | None = None) -> Answer[T]:
        """Make one call, as often as is worth it.

        Args:
            operation: what to call.
            request: what to ask.
            lease: acquired before the page is received; the caller releases it, whether there is a page or an error.
                `None`: there is always room.

        Raises:
            AccessDeniedError: 401 or 403.
            TooHeavyError: 408, 413, or no answer in time though the platform answers others (a light request: twice).
            PausedError: the platform asks to wait for longer than anybody should.
            InvalidRequestError: another 4xx, or a redirect.
            UnavailableError: the platform is down, or refuses, for longer than anybody should wait.
            SetupError: a proxy or a certificate keeps requests from leaving; no other try would.
            BadResponseError: its answers cannot be used, however often.
        """
        what = _Call(operation.path, self._credentials.sign(request), is_light(request))
        retry = _Retry()
        while True:
            try:
                return await self._try(operation, what, lease, retry)
            except _AgainError as failed:
                again = failed.with_traceback(None)
                again.__context__ = None  # either would hold the body, for which there is no room any more
            if lease is not None:
                lease.release()
            self._check_pause(what.path, again.error.status)
            if again.heavy and not what.light:
                await self._reassure(what.path, what.sent_at)
                raise again.error
            if self.platform.circuit.down_seconds is None:  # an outage is no fault of this request
                retry.count(again)
            if retry.exhausted(self) or self.platform.circuit.given_up:
                raise again.error
            self._tally.retries += 1
            pause = self._pause(again, retry)
            if not (again.throttled or self.budget.paused_seconds):  # else every walk of the token waits, this one too
                await anyio.sleep(pause)

    def _pause(self, again: _AgainError, retry: _Retry) -> float:
        """How long to wait before the next try, in seconds: full jitter below an exponential bound."""
        if again.at_once and retry.tries == 1:
            return 0.0
        tries = retry.throttled if again.throttled else retry.tries
        bound = min(self.LONGEST_BACKOFF, self.BACKOFF_SECONDS * 2.0 ** min(tries, 16))
        pause = self.platform.chance.uniform(0, bound)
        if again.throttled and not self.budget.paused_seconds:
            # Zero is not taken literally: the window has no room, so asking at once is asking in vain.
            self.budget.pause(max(pause, 0.05))
        return pause

    async def _try(self, operation: Operation[T], what: _Call, lease: Lease | None, retry: _Retry) -> Answer[T]:
        got = await self._send(what, lease)
        reply = got.reply
        if reply.status == 204:  # an empty page, where the platform honours `Prefer: return=minimal`
            self._observe(got)
            return Answer(Listing[T]([], None), b"", self.platform.clock.stamp())
        if reply.status == 200:
            try:
                return self._page(operation, got, retry)
            except _AgainError as found:
                error: Exception = found
        else:
            if _is_refusal(reply):
                self._observe(got)
            error = _translate(what, reply)
        raise error

    async def _send(self, what: _Call, lease: Lease | None) -> _Got:
        """Send once, under the budget, when the platform is up; settles the slot whatever happens."""
        while True:
            slot, probe = await self._enter(what.path)
            if what.light or not probe:
                return await self._post(what, slot, lease, probe=probe)
            await self._probe(slot)

    async def _probe(self, slot: Slot) -> None:
        """Ask for as little as can be asked, to see whether the platform is up."""
        request = EnterprisesRequest(Limitation(1))
        what = _Call(ENTERPRISES.path, self._credentials.sign(request), light=True)
        with suppress(_AgainError):  # the circuit knows
            await self._post(what, slot, None, probe=True)

    async def _reassure(self, path: str, since: float) -> None:
        """Return once the platform has answered anybody since then; if nobody else asks, this does, lightly.

        Raises:
            UnavailableError: it does not answer, for longer than anybody should wait.
        """
        circuit = self.platform.circuit
        if not circuit.alive_since(since):
            circuit.doubt()
        while not circuit.alive_since(since):
            slot, probe = await self._enter(path)
            if probe:
                await self._probe(slot)
            else:
                slot.unsent()

    async def _enter(self, path: str) -> tuple[Slot, bool]:
        """Wait until a request may be sent: a slot for it, and whether it has to be a probe.

        First the slot, then the circuit: whoever waits for a slot must not keep others from asking.
        """
        circuit = self.platform.circuit
        while True:
            await circuit.ready()
            if circuit.given_up:
                raise UnavailableError(path, circuit.verdict())
            self._check_pause(path)
            slot = await self.budget.acquire()
            try:
                await self.platform.pacer.acquire()
            except BaseException:  # cancelled, too: nothing was sent with the slot
                slot.unsent()
                raise
            # Meanwhile the platform may have asked to wait, or have gone down.
            if not (self.budget.paused_seconds or slot.stale) and (admitted := circuit.admit()) is not None:
                return slot, admitted == "probe"
            slot.unsent()

    def _check_pause(self, path: str, status: int | None = None) -> None:
        """Raise PausedError if the platform asked to be left alone for longer than anybody should wait."""
        pause = self.budget.paused_seconds
        if pause > self.platform.outage_seconds:
            raise PausedError(path, self.platform.clock.now() + timedelta(seconds=pause), status=status)

    async def _post(self, what: _Call, slot: Slot, lease: Lease | None, *, probe: bool) -> _Got:
        circuit = self.platform.circuit
        loop = asyncio.get_running_loop()
        begun: tuple[int, Mapping[str, str], float] | None = None

        def heard(status: int, headers: Mapping[str, str]) -> None:
            # The request arrived before its answer began; how long the body takes, or waits for room, is no matter.
            nonlocal begun
            begun = status, headers, loop.time()
            if status == 429:
                self._tally.throttled += 1
                slot.refused()
            else:
                slot.answered()
            if status >= 500:
                circuit.failed(light=what.light, probe=probe, reason=f"it answers {status}")
            else:
                circuit.alive()
            if not brings_page(status) and (pause := self._retry_after(headers)) is not None:
                self.budget.pause(pause)

        self._tally.requests += 1
        slot.leaves()
        what.sent_at = loop.time()
        try:
            reply = await self.platform.transport.post(what.path, what.body, heard, lease)
        except TransportError as error:
            raise self._no_answer(what, slot, error, None if begun is None else begun[0], probe=probe) from None
        except BaseException:  # cancelled, too: it may have left
            if begun is None:
                slot.broken()
                if probe:
                    circuit.abandoned()
            raise
        if begun is None:  # a transport that only gives whole answers
            heard(reply.status, reply.headers)
        return _Got(reply, what.sent_at, loop.time() if begun is None else begun[2])

    def _no_answer(
        self, what: _Call, slot: Slot, error: TransportError, status: int | None, *, probe: bool
    ) -> Exception:
        """What to raise where there is no usable answer; `status` if one began, which settled the slot."""
        circuit = self.platform.circuit
        if error.kind == "misconfigured":  # no outage, and no other try would leave either
            slot.unsent()
            if probe:
                circuit.abandoned()
            return SetupError(what.path, error.detail, error.cure)
        if status is None:
            slot.unsent() if error.kind == "unsent" else slot.broken()
            circuit.failed(light=what.light or error.kind == "unsent", probe=probe, reason=error.detail)
        # The body of a refusal is no matter, and it has to be heeded.
        heavy = error.kind == "timeout" and (status is None or status < 400)
        return _AgainError(_unanswered(what.path, error), throttled=status == 429, heavy=heavy)

    def _page(self, operation: Operation[T], got: _Got, retry: _Retry) -> Answer[T]:
        reply = got.reply
        try:
            listing = operation.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # What a network damaged comes whole the next time; what the platform holds comes the same.
            salvaged = operation.salvage(reply.body)
            if salvaged is not None and retry.same_damage(salvaged):
                return self._answer(salvaged, got)
            detail = _DECODING.get(type(error), "the body is no page of this operation")
            request_id = reply.headers.get("Request-Id")
            raise _AgainError(
                BadResponseError(operation.path, detail, status=reply.status, request_id=_clean(request_id)),
                at_once=salvaged is not None,
            ) from None
        return self._answer(listing, got)

    def _answer(self, listing: Listing[T], got: _Got) -> Answer[T]:
        self._observe(got)
        took = asyncio.get_running_loop().time() - got.sent
        return Answer(listing, got.reply.body, self.platform.clock.stamp(), took)

    def _observe(self, got: _Got) -> None:
        """The answer is the platform's own, so its `Date` tells the time."""
        self.platform.clock.observe(got.reply.headers.get("Date"), got.sent, got.began)

    def _retry_after(self, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait by the Retry-After header; `None` if it is absent, cannot be read, or not in the future."""
        text = (headers.get("Retry-After") or "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text):
            seconds = float(text)
        elif (until := parse_http_date(text)) is not None:
            # Both are of one clock, however wrong it is.
            seconds = (until - (parse_http_date(headers.get("Date")) or self.platform.clock.now())).total_seconds()
        else:
            return None
        return min(seconds, self.LONGEST_PAUSE) if seconds > 0 else None


class _Call(msgspec.Struct):
    """What is sent, and when it was sent last, in seconds of the event loop."""

    path: str
    body: bytes
    light: bool
    sent_at: float = 0.0


class _Got(NamedTuple):
    """An answer; when its request was sent, and when it began, in seconds of the event loop."""

    reply: Reply
    sent: float
    began: float


def is_light(request: Request) -> bool:
    """Whether a request is so light that only a platform that is down does not answer it in time."""
    return not isinstance(request, OrdersRequest) or request.limitation.count == 1


class _AgainError(Exception):
    """A try failed in a way that may pass; `error` is what to raise if it does not."""

    def __init__(
        self,
        error: PlatformError,
        *,
        throttled: bool = False,
        heavy: bool = False,
        at_once: bool = False,
    ) -> None:
        super().__init__()
        self.error = error
        self.throttled = throttled
        self.heavy = heavy
        self.at_once = at_once
        """Whether the first of the next tries need not wait: the platform is well, and a page of it is in doubt."""


class _Retry:
    """How often a call was tried, by what went wrong."""

    def __init__(self) -> None:
        self.tries = 0
        self.throttled = 0
        self.heavy = 0
        self._damage: frozenset[bytes] | None = None

    def count(self, again: _AgainError) -> None:
        self.tries += not again.throttled
        self.heavy += again.heavy
        # Refusals count only in a row: a call that gets through and fails otherwise is not being refused.
        self.throttled = self.throttled + 1 if again.throttled else 0

    def same_damage(self, listing: Listing[Any]) -> bool:
        """Whether the answer before was damaged in the same items, which say the same (in whatever case)."""
        before, self._damage = self._damage, frozenset(order.raw.lower() for order in listing.rejected.values())
        return before == self._damage

    def exhausted(self, limits: Connector) -> bool:
        # A second time-out: more of the same would only weigh on a platform that struggles; the caller asks for less.
        return self.tries >= limits.tries or self.throttled >= limits.MOST_THROTTLED or self.heavy >= 2


_DECODING: Mapping[type[Exception], str] = {
    msgspec.DecodeError: "the body is not JSON, or cut off",
    UnicodeDecodeError: "the body is not UTF-8",
    RecursionError: "the body is nested too deep",
}


class _Facts(TypedDict):
    status: int
    request_id: str | None


class _ErrorBody(msgspec.Struct):
    message: str | None = msgspec.field(name="Message", default=None)


class _OwnWords(msgspec.Struct):
    message: str | None = msgspec.field(name="Message")


_ERROR = msgspec.json.Decoder(_ErrorBody)
_OWN_WORDS = msgspec.json.Decoder(_OwnWords)


def _unanswered(path: str, error: TransportError) -> PlatformError:
    if error.kind == "timeout":
        return TooHeavyError(path, error.detail)
    if error.kind in ("too large", "corrupt"):
        return BadResponseError(path, error.detail)
    return UnavailableError(path, error.detail)


def _translate(what: _Call, reply: Reply) -> Exception:
    """The error for an answer that is neither a page nor empty."""
    path, status = what.path, reply.status
    facts = _Facts(status=status, request_id=_clean(reply.headers.get("Request-Id")))
    detail = _detail(reply)
    if status == 429:
        return _AgainError(UnavailableError(path, detail, **facts), throttled=True)
    if status == 504 and not what.light:  # a proxy waited for the platform as long as it does
        return _AgainError(TooHeavyError(path, detail, **facts), heavy=True)
    if status >= 500:
        return _AgainError(UnavailableError(path, detail, **facts))
    if status in (408, 413):
        return TooHeavyError(path, detail, **facts)
    if status in (401, 403):
        return AccessDeniedError(path, detail, **facts)
    if status == 400 and "states" in detail.lower():
        return InvalidStatesError(path, detail, **facts)
    if status >= 400:
        return InvalidRequestError(path, detail, **facts)
    if status >= 300:
        return InvalidRequestError(path, "it redirects, and the tokens are not sent elsewhere", **facts)
    return _AgainError(BadResponseError(path, "an answer without a page", **facts))


def _is_refusal(reply: Reply) -> bool:
    """Whether it is a refusal in the platform's own words, and not a proxy's."""
    if not 400 <= reply.status < 500:
        return False
    try:
        _OWN_WORDS.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _detail(reply: Reply) -> str:
    """The platform's own message: one line, at most 500 characters; never a page of a proxy's HTML."""
    try:
        message = _ERROR.decode(reply.body).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "without a message that can be read (a proxy's page, perhaps)"
    return _clean(message) or "without a message"


def _clean(text: str | None) -> str | None:
    """`text` as one line of at most 500 printable characters: it comes from outside, and goes to logs."""
    if not text:
        return None
    line = re.sub(r"[^\S ]+|[\x00-\x1f\x7f-\x9f]+", " ", text[:500]).strip()
    # Should a platform or a proxy ever echo a token, it goes no further.
    return re.sub(r"[0-9A-Fa-f]{28,}(-[0-9A-Fa-f]{8,})*", "(redacted)", line) or None
