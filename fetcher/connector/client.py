"""One call to the platform: budget, send, decode, retry, errors translated.

Everything that is known of the platform's behaviour under stress is decided here, so that whoever calls gets
either a page or one of the package's own errors. The cases of an answer, in `_try`:

1. no answer: unsent, broken, timed out (a time-out is "too heavy" once, and the platform's fault if it stays)
2. 429: everybody who uses the token waits, as long as the platform says
3. 5xx, and bodies that cannot be used: again, after a while
4. 408, 413: too heavy, for the caller to ask for less
5. 401, 403 and every other status: an error at once
6. 200, 204: a page
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import formatdate
from typing import Any, Generic, TypedDict, TypeVar

import anyio
import msgspec
from aiolimiter import AsyncLimiter

from fetcher.connector.budget import RequestBudget, Slot
from fetcher.connector.circuit import Circuit
from fetcher.connector.clock import PlatformClock, parse_http_date
from fetcher.connector.operations import Listing, Operation, Request
from fetcher.connector.transport import Reply, Transport, TransportError, brings_page
from fetcher.errors import (
    AccessDeniedError,
    BadResponseError,
    InvalidRequestError,
    PlatformError,
    SetupError,
    TooHeavyError,
    UnavailableError,
)
from fetcher.progress import Tally

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
        outage_seconds: how long a platform that is down is waited for.
        chance: where jitter comes from.
    """

    BURST = 20
    """Requests opened at once, before the pace counts."""

    def __init__(
        self, transport: Transport, *, opens_per_second: float, outage_seconds: float, chance: random.Random
    ) -> None:
        self.transport = transport
        self.pacer = AsyncLimiter(self.BURST, self.BURST / opens_per_second)
        self.clock = PlatformClock(asyncio.get_running_loop().time)
        self.circuit = Circuit(outage_seconds, chance)
        self.chance = chance


class Answer(msgspec.Struct, Generic[T], frozen=True):
    """A page, and what came with it."""

    listing: Listing[T]
    body: bytes
    """The page as it came, decompressed; empty for 204."""
    fetched_utc: datetime
    """When it came, by the platform's clock."""


class Connector:
    """Calls the platform for one access token.

    Args:
        platform: what it shares with other tokens.
        credentials: the token's.
        budget: the token's.
        tally: where calls are counted.
    """

    TRIES = 7
    """With `BACKOFF_SECONDS` and `LONGEST_BACKOFF`: a fault that stays is reported after about a minute."""
    BACKOFF_SECONDS = 0.5
    LONGEST_BACKOFF = 30.0
    LONGEST_PAUSE = 900.0
    """A Retry-After beyond it is taken as this: no window is that long, so it is a mistake or a ban."""
    MOST_THROTTLED = 50
    """Refusals of one call in a row, each after the pause that was asked for, until it is given up."""

    def __init__(self, platform: Platform, credentials: Credentials, budget: RequestBudget, tally: Tally) -> None:
        self.platform = platform
        self.budget = budget
        self._credentials = credentials
        self._tally = tally

    async def call(self, operation: Operation[T], request: Request, room: anyio.Semaphore | None = None) -> Answer[T]:
        """Make one call, as often as is worth it.

        Args:
            operation: what to call.
            request: what to ask.
            room: acquired before the page is received, and to be released by whoever has done with it; `None`: there
                is always room. When an error is raised, it is released already.

        Raises:
            AccessDeniedError: 401 or 403.
            TooHeavyError: 408, 413, or twice no answer in time.
            InvalidRequestError: another 4xx, or a redirect.
            UnavailableError: the platform is down, or refuses, for longer than anybody should wait.
            SetupError: a proxy or a certificate keeps requests from leaving; no other try would.
            BadResponseError: its answers cannot be used, however often.
        """
        body = self._credentials.sign(request)
        retry = _Retry()
        while True:
            try:
                return await self._try(operation, body, room, retry)
            except _AgainError as failed:
                again = failed
            if self.platform.circuit.down_seconds is None:  # an outage is no fault of this request
                retry.count(again)
            if retry.exhausted(self) or self.platform.circuit.given_up:
                raise again.error
            self._tally.retries += 1
            pause = self._pause(again, retry)
            if not again.throttled:  # else the budget pauses every walk of the token, this one too
                await anyio.sleep(pause)

    def _pause(self, again: _AgainError, retry: _Retry) -> float:
        """How long to wait before the next try, in seconds: as told, or full jitter below an exponential bound."""
        tries = retry.throttled if again.throttled else retry.tries
        bound = min(self.LONGEST_BACKOFF, self.BACKOFF_SECONDS * 2.0 ** min(tries, 16))
        pause = self.platform.chance.uniform(0, bound)
        if again.throttled:
            # Zero is not taken literally: the window has no room, so asking at once is asking in vain.
            pause = min(again.retry_after, self.LONGEST_PAUSE) if again.retry_after else max(pause, 0.05)
            self.budget.pause(pause)
        return pause

    async def _try(
        self, operation: Operation[T], body: bytes, room: anyio.Semaphore | None, retry: _Retry
    ) -> Answer[T]:
        path = operation.path
        reply = await self._send(path, body, room)
        if reply.status == 204:  # an empty page, where the platform honours `Prefer: return=minimal`
            return Answer(Listing[T]([], None), b"", self._now())
        if reply.status == 200:
            try:
                return self._page(operation, reply, retry)
            except _AgainError as found:
                error: Exception = found
        else:
            error = _translate(path, reply)
        if room is not None and brings_page(reply.status):
            room.release()
        raise error

    async def _send(self, path: str, body: bytes, room: anyio.Semaphore | None) -> Reply:
        """Send once, under the budget; settles the slot whatever happens."""
        circuit = self.platform.circuit
        await circuit.ready()
        if circuit.given_up:
            raise UnavailableError(path, f"{circuit.describe(self.platform.clock)}; waited long enough")
        slot: Slot | None = None
        settled = False
        try:
            slot = await self.budget.acquire()
            await self.platform.pacer.acquire()
            while self.budget.paused_seconds:  # meanwhile the platform asked to wait
                slot.unsent()
                slot = None
                slot = await self.budget.acquire()
            self._tally.requests += 1
            settled = True  # from here on, only `_post` knows whether it left
            return await self._post(path, body, slot, room)
        except anyio.get_cancelled_exc_class():
            circuit.abandoned()
            if slot is not None and not settled:
                slot.unsent()
            raise

    async def _post(self, path: str, body: bytes, slot: Slot, room: anyio.Semaphore | None) -> Reply:
        circuit = self.platform.circuit
        begun: tuple[int, Mapping[str, str]] | None = None

        def heard(status: int, headers: Mapping[str, str]) -> None:
            # The request arrived before its answer began; how long the body takes, or waits for room, is no matter.
            nonlocal begun
            begun = status, headers
            if status == 429:
                self._tally.throttled += 1
                slot.refused()
            else:
                slot.answered()

        try:
            reply = await self.platform.transport.post(path, body, heard, room)
        except TransportError as error:
            if error.kind == "misconfigured":  # no outage, and no other try would leave either
                slot.unsent()
                circuit.abandoned()
                raise SetupError(path, error.detail, error.cure) from None
            if begun is None:
                slot.unsent() if error.kind == "unsent" else slot.broken()
                circuit.failed()
            elif begun[0] >= 500:
                circuit.failed()
            else:
                circuit.alive()
            failure = _unanswered(path, error)
            if begun is not None and begun[0] == 429:  # its body is no matter, and it has to be heeded
                raise _AgainError(failure, throttled=True, retry_after=_retry_after(begun[1])) from None
            raise _AgainError(failure, heavy=error.kind == "timeout") from None
        except BaseException:  # cancelled, too: it may have left
            if begun is None:
                slot.broken()
            raise
        if begun is None:  # a transport that only gives whole answers
            heard(reply.status, reply.headers)
        if reply.status >= 500:
            circuit.failed()
        else:
            circuit.alive()
        self.platform.clock.observe(reply.headers.get("Date"))
        return reply

    def _page(self, operation: Operation[T], reply: Reply, retry: _Retry) -> Answer[T]:
        try:
            return Answer(operation.decode(reply.body), reply.body, self._now())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # What a network damaged comes whole the next time; what the platform holds comes the same.
            salvaged = operation.salvage(reply.body)
            if salvaged is not None and retry.same_damage(salvaged):
                return Answer(salvaged, reply.body, self._now())
            detail = _DECODING.get(type(error), "the body is no page of this operation")
            request_id = reply.headers.get("Request-Id")
            raise _AgainError(
                BadResponseError(operation.path, detail, status=reply.status, request_id=_clean(request_id))
            ) from None

    def _now(self) -> datetime:
        clock = self.platform.clock
        if not clock.known:  # no Date on any answer: no platform that we know does that, and ours must do
            clock.observe(formatdate(usegmt=True))
        return clock.now()


class _AgainError(Exception):
    """A try failed in a way that may pass; `error` is what to raise if it does not."""

    def __init__(
        self,
        error: PlatformError,
        *,
        throttled: bool = False,
        retry_after: float | None = None,
        heavy: bool = False,
    ) -> None:
        super().__init__()
        self.error = error
        self.throttled = throttled
        self.retry_after = retry_after
        self.heavy = heavy


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
        """Whether the answer before was damaged in the same items, byte for byte."""
        before, self._damage = self._damage, frozenset(order.raw for order in listing.rejected.values())
        return before == self._damage

    def exhausted(self, limits: Connector) -> bool:
        # A second time-out: more of the same would only weigh on a platform that struggles; the caller asks for less.
        return self.tries >= limits.TRIES or self.throttled >= limits.MOST_THROTTLED or self.heavy >= 2


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


_ERROR = msgspec.json.Decoder(_ErrorBody)


def _unanswered(path: str, error: TransportError) -> PlatformError:
    if error.kind == "timeout":
        return TooHeavyError(path, error.detail)
    if error.kind in ("too large", "corrupt"):
        return BadResponseError(path, error.detail)
    return UnavailableError(path, error.detail)


def _translate(path: str, reply: Reply) -> Exception:
    """The error for an answer that is neither a page nor empty."""
    status = reply.status
    facts = _Facts(status=status, request_id=_clean(reply.headers.get("Request-Id")))
    detail = _detail(reply)
    if status == 429:
        return _AgainError(
            UnavailableError(path, detail, **facts), throttled=True, retry_after=_retry_after(reply.headers)
        )
    if status >= 500:
        return _AgainError(UnavailableError(path, detail, **facts))
    if status in (408, 413):
        return TooHeavyError(path, detail, **facts)
    if status in (401, 403):
        return AccessDeniedError(path, detail, **facts)
    if status >= 400:
        return InvalidRequestError(path, detail, **facts)
    if status >= 300:
        return InvalidRequestError(path, "it redirects, and the tokens are not sent elsewhere", **facts)
    return _AgainError(BadResponseError(path, "an answer without a page", **facts))


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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the Retry-After header; `None` if it is absent, cannot be read, or not in the future."""
    text = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,12}(\.\d+)?", text):
        seconds = float(text)
    elif (until := parse_http_date(text)) is not None:
        now = parse_http_date(headers.get("Date"))
        if now is None:
            return None
        seconds = (until - now).total_seconds()
    else:
        return None
    return seconds if seconds > 0 else None
