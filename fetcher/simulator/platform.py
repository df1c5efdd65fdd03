"""The platform itself: a request comes in, an answer goes out, and it keeps count. Pure: time is told, bytes are given.

The order in which a request is looked at, as a real platform's layers would:

1. whether it arrives at all (outages, broken connections)
2. its form: method and content type
3. its tokens
4. the sliding window of its access token
5. faults that strike at random, and heaviness
6. whether it keeps to the contract
7. the page
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import formatdate
from hashlib import blake2b

import msgspec

from fetcher.simulator.answers import DAMAGES, JSON, SIMPLE, Response, message, spoil_order
from fetcher.simulator.contract import (
    CALLS,
    Call,
    EnterprisesCall,
    Limitation,
    OrdersCall,
    RefusedError,
    ServicesCall,
    check_ids,
    check_states,
    read_call,
    read_ids,
    read_interval,
)
from fetcher.simulator.faults import Faults
from fetcher.simulator.window import SlidingWindow
from fetcher.simulator.world import MICROS, STATES, Enterprise, Found, Portfolio, World, micros

RETRY_AFTER = ("seconds", "date", "absent", "zero")


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What the contract leaves open, and the limits."""

    requests: int = 200
    per_seconds: float = 30.0
    inclusive: bool = False
    """Whether intervals include their end (the older documentation)."""
    by_creation: bool = False
    """Whether "newest first" means created, rather than updated."""
    retry_after: str = "seconds"
    """How a 429 tells when to come again: one of `RETRY_AFTER`."""
    minimal: bool = True
    """Whether an empty page is 204 where the request prefers it."""
    refuses_all: bool = False
    """Whether a list of services that names no enterprises is refused for a bad one; else it lacks that one's."""


class Count(msgspec.Struct):
    """What one access token's requests came to."""

    requests: int = 0
    pages: int = 0
    orders: int = 0
    throttled: int = 0
    pause_seconds: float = 0.0
    """For how long 429s asked to wait; of pauses that overlap, each second once."""
    statuses: dict[str, int] = {}
    most_in_window: int = 0


class Stats(msgspec.Struct):
    """What the platform has seen so far."""

    portfolios: dict[str, Count] = {}
    faults: dict[str, int] = {}
    """How often each kind of fault struck."""
    against_contract: list[str] = []
    """What was refused because no real platform would take it (the first 20)."""
    against_contract_count: int = 0
    heaviest_repeat: int = 0
    """How often one and the same request was called too heavy, at the most."""
    changes: int = 0


class _StalledError(Exception):
    """No answer ever comes."""


class _Query(msgspec.Struct):
    """What a query found while its portfolio had changed so often."""

    changes: int
    found: Found


class SimulatedPlatform:
    """Answers requests about a world.

    Args:
        world: what it holds.
        behaviour: what the contract leaves open.
        faults: what goes wrong; may be set anew at any time.
        seed: of the faults and changes.
        keep_bytes: memory for pages as they were sent, for measuring: who asks for the same ones again and again
            should not wait for them to be made, nor share a processor with that.
    """

    _QUERIES = 96
    """Queries whose results are kept: concurrent walks ask for the same ones page after page."""

    def __init__(
        self,
        world: World,
        behaviour: Behaviour | None = None,
        faults: Faults | None = None,
        seed: int = 0,
        keep_bytes: int = 0,
    ) -> None:
        self._keep_bytes = keep_bytes
        self.world = world
        self.behaviour = behaviour or Behaviour()
        self.faults = faults or Faults()
        self.stats = Stats(portfolios={portfolio.name: Count() for portfolio in world.portfolios.values()})
        self._chance = random.Random(seed)
        self._windows = {
            token: SlidingWindow(self.behaviour.requests, self.behaviour.per_seconds) for token in world.portfolios
        }
        self._found: OrderedDict[tuple[object, ...], _Query] = OrderedDict()
        self._kept: dict[tuple[str, int, tuple[int, ...]], bytes] = {}  # whatever query they were sent for
        self._kept_bytes = 0
        self._services: dict[bytes, list[int]] = {}
        self._cursors: dict[str, int] = {}  # by order id: the key at which it was given out as a cursor
        self._heavy: Counter[bytes] = Counter()
        self._requests = 0
        self._down_until = 0.0
        self._pausing = False  # the outage begins once the first portfolio's token was told to wait
        self._paused_until: dict[str, float] = {}  # by token: as the latest 429 told
        self._skewed = False  # whether the last answer that tells the time was ahead
        self._clocks: dict[str, float] = {}  # up to when others' requests, and changes, were played
        self._bad: dict[str, frozenset[str]] = {}
        self._echoes: list[tuple[float, int, int]] = []  # changes to come: when, order, and its time

    def handle(self, path: str, headers: Mapping[str, str], body: bytes, now: float) -> Response:
        """Answer one POST to `path` (below the connector's root) that arrives at `now` (seconds since 1970)."""
        self._play_changes(now)
        self._requests += 1
        if self._is_down(now):
            self._struck("outage")
            return Response(0, {}, b"", "lost")
        fault = self.faults.draw(self._chance)
        if fault == "lost":
            self._struck(fault)
            return Response(0, {}, b"", "lost")
        portfolio: Portfolio | None = None
        try:
            call, portfolio = self._admit(path, headers, body, now)
            response = (
                self._pause_first(portfolio, now)
                or self._throttle(portfolio, fault, now)
                or self._answer(call, portfolio, headers, fault)
            )
        except RefusedError as error:
            response = self._refuse(error, path)
        except _StalledError:
            self._struck("heavy-stalls")
            self._count_heavy(body)
            response = SIMPLE["stall"]
        if response.status == 408:
            self._count_heavy(body)
        if portfolio is not None:
            self._count(self.stats.portfolios[portfolio.name], response)
        date = now + self._ahead(response, fault)
        stamped = {**response.headers, "Date": formatdate(date, usegmt=True), "Request-Id": self._request_id()}
        longer = self.faults.condition("retry-after")
        if longer and (response.status in (408, 413, 429) or response.status >= 500):
            known = stamped.pop("Retry-After", "")
            stamped |= self._retry_after(max(longer, float(known) if known.isdigit() else 0), date)
        return msgspec.structs.replace(response, headers=stamped)

    def _ahead(self, response: Response, fault: str | None) -> float:
        """By how many seconds the `Date` of an answer is ahead.

        Several machines answer, and one of them is ahead: it does not answer twice in succession, of the answers that
        tell anybody the time.
        """
        share = self.faults.condition("clock-skew")
        first = self._requests <= self.faults.condition("skew-first")
        skewed = first or (share > 0 and self._chance.random() < share)
        if fault is None and response.status < 500 and response.delivery == "whole":
            skewed = skewed and (first or share >= 1 or not self._skewed)
            self._skewed = skewed
        if not skewed:
            return 0.0
        self._struck("clock-skew")
        return 3600 * self.faults.condition("skew-hours", 2)

    def bad_services(self, portfolio: str) -> frozenset[str]:
        """The services that are refused, of a portfolio (by name)."""
        return self._chosen("bad-services", portfolio)

    def bad_enterprises(self, portfolio: str) -> frozenset[str]:
        """The enterprises that are refused, of a portfolio (by name)."""
        return self._chosen("bad-enterprises", portfolio)

    def forbidden_services(self) -> frozenset[str]:
        """The services that the first portfolio's token may not read orders of."""
        first = self._first
        of_enterprises = [
            self.world.service_ids[service]
            for id_ in self._chosen("forbid-enterprises", first.name)
            for service in first.enterprises[id_].services
        ]
        return self._chosen("forbid-services", first.name).union(of_enterprises)

    # 1. Whether it arrives

    def _is_down(self, now: float) -> bool:
        after = self.faults.condition("outage-after", -1)
        if after >= 0 and self._requests > after and not self._down_until:
            if self.faults.condition("outage-pause"):
                self._pausing = True
            else:
                self._go_down(now)
        return now < self._down_until

    def _go_down(self, now: float) -> None:
        self._down_until = now + self.faults.condition("outage-seconds", 10)

    def _play_changes(self, now: float) -> None:
        rate = self.faults.condition("changes")
        for moment in self._passed("changes", rate, now):
            late = int(self.faults.condition("late") * MICROS)
            number = self.world.change(int(moment * MICROS), self._chance, late=late)
            self.stats.changes += 1
            if self.faults.condition("same-second"):
                again = moment + self._chance.random() * (1 - moment % 1)
                self._echoes.append((again, number, self.world.updated[number]))
        due = [echo for echo in self._echoes if echo[0] <= now]
        self._echoes = [echo for echo in self._echoes if echo[0] > now]
        for _, number, updated in sorted(due):
            if self.world.updated[number] == updated:  # else it changed otherwise meanwhile
                self.world.update(number, updated, self._chance.choice(STATES[:7]), same_second=True)
                self.stats.changes += 1

    def _passed(self, clock: str, rate: float, now: float) -> list[float]:
        """The moments since the last call at which something happens `rate` times a second; at most 10,000."""
        last = self._clocks.setdefault(clock, now)
        if not rate:
            self._clocks[clock] = now
            return []
        number = min(10_000, int((now - last) * rate))
        self._clocks[clock] = last + number / rate
        return [last + (place + 1) / rate for place in range(number)]

    # 2. to 4. Form, tokens, window

    def _admit(self, path: str, headers: Mapping[str, str], body: bytes, now: float) -> tuple[Call, Portfolio]:
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, "The content type must be application/json")
        call = read_call(path, body)
        if call.client_token != self.world.client_token:
            raise RefusedError(401, "Invalid ClientToken", fault=False)
        portfolio = self.world.portfolios.get(call.access_token)
        if portfolio is None:
            raise RefusedError(401, "Invalid AccessToken", fault=False)
        if (call.language_code is None) != (call.culture_code is None):
            raise RefusedError(400, "LanguageCode and CultureCode come together")
        return call, portfolio

    def _throttle(self, portfolio: Portfolio, fault: str | None, now: float) -> Response | None:
        window = self._windows[portfolio.access_token]
        for moment in self._passed(f"others {portfolio.name}", self.faults.condition("others"), now):
            window.admit(moment)
        wait = window.admit(now)
        count = self.stats.portfolios[portfolio.name]
        count.most_in_window = window.most
        if wait is None and fault == "429":
            self._struck(fault)
            fixed = self.faults.condition("429-seconds")
            wait = max(0.0, fixed - 1) if fixed else self._chance.uniform(0, 3)  # one second is added when it is told
        if wait is None:
            return None
        if self.behaviour.retry_after in ("seconds", "date"):
            until, paused = now + int(wait) + 1, max(now, self._paused_until.get(portfolio.access_token, now))
            count.pause_seconds += max(0.0, until - paused)
            self._paused_until[portfolio.access_token] = max(until, paused)
        return Response(429, {**JSON, **self._retry_after(wait, now)}, message("Request limit exceeded"))

    def _retry_after(self, wait: float, now: float) -> dict[str, str]:
        """The header that tells to wait `wait` seconds, as this platform tells it."""
        kind = self.behaviour.retry_after
        if kind == "seconds":
            return {"Retry-After": str(int(wait) + 1)}
        if kind == "date":
            return {"Retry-After": formatdate(now + wait + 1, usegmt=True)}
        return {"Retry-After": "0"} if kind == "zero" else {}

    def _pause_first(self, portfolio: Portfolio, now: float) -> Response | None:
        """The last answer before an outage, which asks the first portfolio to wait for longer than that takes."""
        if not self._pausing or portfolio is not next(iter(self.world.portfolios.values())):
            return None
        self._pausing = False
        self._struck("outage-pause")
        self._go_down(now)
        headers = {**JSON, "Retry-After": str(int(self.faults.condition("outage-pause")))}
        return Response(503, headers, message("Unavailable"))

    # 5. Faults

    def _answer(self, call: Call, portfolio: Portfolio, headers: Mapping[str, str], fault: str | None) -> Response:
        self._check_access(call, portfolio)
        if fault is not None and fault in SIMPLE:
            self._struck(fault)
            return SIMPLE[fault]
        if fault == "503":
            self._struck(fault)
            after = {"Retry-After": "1"} if self._chance.random() < 0.5 else {}
            return Response(503, {**JSON, **after}, message("Unavailable"))
        page = self._page(call, portfolio, fault)
        capitals = self.faults.condition("capitals")
        if page is not None and capitals and self._chance.random() < capitals:
            page = _UUID.sub(lambda found: found[0].upper(), page)
        if page is None:
            if self.behaviour.minimal and headers.get("Prefer", "").replace(" ", "") == "return=minimal":
                return Response(204, {}, b"")
            page = msgspec.json.encode({_LISTS[type(call)]: [], "Cursor": None})
        if fault is not None and fault in DAMAGES:
            self._struck(fault)
            return DAMAGES[fault](page, self._chance)
        return Response(200, JSON, page)

    @property
    def _first(self) -> Portfolio:
        return next(iter(self.world.portfolios.values()))

    def _visible(self, portfolio: Portfolio) -> Mapping[str, Enterprise]:
        """The enterprises that a portfolio's token sees, by id."""
        shared = self._first.enterprises if self.faults.condition("shared") else {}
        return {**portfolio.enterprises, **shared}

    def _check_access(self, call: Call, portfolio: Portfolio) -> None:
        first = self._first is portfolio
        revoked = self.faults.condition("revoke", -1)
        if first and 0 <= revoked < self.stats.portfolios[portfolio.name].requests:
            raise RefusedError(401, "Invalid AccessToken", fault=False)
        if first and self.faults.condition("forbid") and isinstance(call, OrdersCall):
            raise RefusedError(403, "Insufficient permissions", fault=False)

    def _chosen(self, condition: str, portfolio: str) -> frozenset[str]:
        """As many ids of a portfolio as the condition says: always the same ones."""
        number = int(self.faults.condition(condition))
        key = f"{condition} {number} {portfolio}"
        if key not in self._bad:
            owner = next(owner for owner in self.world.portfolios.values() if owner.name == portfolio)
            ids = sorted(owner.enterprises)
            if condition.endswith("-services"):
                enterprises = owner.enterprises.values()
                ids = [self.world.service_ids[service] for enterprise in enterprises for service in enterprise.services]
            self._bad[key] = frozenset(random.Random(key).sample(ids, min(number, len(ids)))) if number else frozenset()
        return self._bad[key]

    # 6. and 7. The contract, and the page

    def _page(self, call: Call, portfolio: Portfolio, fault: str | None) -> bytes | None:
        """The page; `None` if it is empty."""
        if isinstance(call, EnterprisesCall):
            return self._enterprises_page(call, portfolio)
        if isinstance(call, ServicesCall):
            return self._services_page(call, portfolio)
        return self._orders_page(call, portfolio, fault)

    def _enterprises_page(self, call: EnterprisesCall, portfolio: Portfolio) -> bytes | None:
        check_ids(call.enterprise_ids, "EnterpriseIds")
        read_interval(call.linked_utc, "LinkedUtc")
        read_interval(call.updated_utc, "UpdatedUtc")
        enterprises = self._visible(portfolio)
        ids = self._in_scope(call.enterprise_ids, enterprises, "EnterpriseIds")
        bodies = [(id_, enterprises[id_].body) for id_ in enterprises if ids is None or id_ in ids]
        return _slice("Enterprises", bodies, call.limitation)

    def _services_page(self, call: ServicesCall, portfolio: Portfolio) -> bytes | None:
        check_ids(call.enterprise_ids, "EnterpriseIds")
        check_ids(call.service_ids, "ServiceIds")
        read_interval(call.updated_utc, "UpdatedUtc")
        if call.service_type not in (None, "Bookable", "Additional"):
            raise RefusedError(400, "Invalid ServiceType")
        visible = self._visible(portfolio)
        enterprises = self._in_scope(call.enterprise_ids, visible, "EnterpriseIds")
        bad = self.bad_enterprises(portfolio.name)
        if enterprises is None and call.service_ids is None:
            enterprises = set(visible) if self.behaviour.refuses_all else visible.keys() - bad
        if enterprises is not None and not enterprises.isdisjoint(bad):
            raise RefusedError(400, "Invalid EnterpriseIds", fault=False)
        numbers = [
            service
            for id_, enterprise in visible.items()
            if enterprises is None or id_ in enterprises
            for service in enterprise.services
        ]
        if call.service_ids is not None:
            wanted = set(self._service_numbers(call.service_ids, portfolio))
            numbers = [number for number in numbers if number in wanted]
        if call.service_type is not None:
            mark = f'"Discriminator":"{call.service_type}"'.encode()
            numbers = [number for number in numbers if mark in self.world.service_bodies[number]]
        bodies = [(self.world.service_ids[number], self.world.service_bodies[number]) for number in numbers]
        return _slice("Services", bodies, call.limitation)

    def _orders_page(self, call: OrdersCall, portfolio: Portfolio, fault: str | None) -> bytes | None:
        check_ids(call.product_service_order_ids, "ProductServiceOrderIds")
        for name, ids in (
            ("EnterpriseIds", call.enterprise_ids),
            ("AccountIds", call.account_ids),
            ("LinkedReservationIds", call.linked_reservation_ids),
        ):
            check_ids(ids, name)
            if ids is not None:
                raise RefusedError(501, f"The simulator does not filter by {name}")
        check_states(call.states)
        interval = read_interval(call.updated_utc, "UpdatedUtc")
        services = self._services_of(bytes(call.service_ids), portfolio)
        query = self._query(bytes(call.service_ids), services, interval, call.states, portfolio)
        found = query.found
        if call.product_service_order_ids is not None:
            wanted = {self.world.order_number(id_) for id_ in call.product_service_order_ids}
            places = [place for place, number in enumerate(found.numbers) if number in wanted]
            found = Found([found.numbers[place] for place in places], [found.keys[place] for place in places])
        count = call.limitation.count
        self._check_weight(found, services, interval, count)
        first = 0 if call.limitation.cursor is None else self._after(call, found, services, interval, fault)
        numbers = found.numbers[first : first + count]
        if not numbers:
            return None
        cursor = self.world.order_id(numbers[-1])
        self._cursors[cursor] = found.keys[first + len(numbers) - 1]
        self.stats.portfolios[portfolio.name].pages += 1
        self.stats.portfolios[portfolio.name].orders += len(numbers)
        spoiled = self.faults.condition("bad-order")
        if fault is None and not self.faults.condition("unknown") and not spoiled:
            return self._render(portfolio, numbers, cursor)
        bodies = [self.world.bodies[number] for number in numbers]
        if spoiled:
            bodies = [spoil_order(body, spoiled) for body in bodies]
        if fault in ("twice", "outside", "unasked", "type"):
            self._spoil(fault, bodies, services)
        if fault == "circle" and len(numbers) == count and call.limitation.cursor is not None:
            self._struck(fault)
            cursor = call.limitation.cursor
        page = _orders(bodies, cursor)
        if self.faults.condition("unknown"):
            page = page.replace(b'{"Id":"', b'{"LoyaltyTier":{"Name":"gold","Points":[1,2]},"Id":"')
        return page

    def _render(self, portfolio: Portfolio, numbers: Sequence[int], cursor: str) -> bytes:
        """The page of these orders; kept while there is room."""
        if not self._keep_bytes:
            return _orders([self.world.bodies[number] for number in numbers], cursor)
        key = (portfolio.name, portfolio.changes + self._first.changes, tuple(numbers))
        page = self._kept.get(key)
        if page is None:
            page = _orders([self.world.bodies[number] for number in numbers], cursor)
            if self._kept_bytes + len(page) <= self._keep_bytes:
                self._kept[key] = page
                self._kept_bytes += len(page)
        return page

    def _services_of(self, raw: bytes, portfolio: Portfolio) -> list[int]:
        key = portfolio.access_token.encode() + raw
        services = self._services.get(key)
        if services is None:
            services = self._service_numbers(read_ids(raw, "ServiceIds"), portfolio)
            if len(self._services) >= 512:
                self._services.clear()
            self._services[key] = services
        heavy = self.faults.condition("heavy-ids")
        if heavy and len(services) > heavy:
            raise RefusedError(413, "Request entity too large", fault=False)
        if bad := self.bad_services(portfolio.name):
            names = self.world.service_ids
            if any(names[service] in bad for service in services):
                raise RefusedError(400, "Invalid ServiceIds", fault=False)
        if portfolio is self._first and (forbidden := self.forbidden_services()):
            names = self.world.service_ids
            if any(names[service] in forbidden for service in services):
                raise RefusedError(403, "Insufficient permissions", fault=False)
        return services

    def _service_numbers(self, ids: Sequence[str], portfolio: Portfolio) -> list[int]:
        numbers = [self.world.service_numbers.get(id_.lower(), -1) for id_ in ids]
        owners = [self._first, portfolio] if self.faults.condition("shared") else [portfolio]
        if -1 in numbers or any(self.world.portfolio_of(number) not in owners for number in numbers):
            raise RefusedError(400, "Invalid ServiceIds")
        return numbers

    def _in_scope(self, ids: Sequence[str] | None, known: Mapping[str, object], name: str) -> set[str] | None:
        ids = None if ids is None else [id_.lower() for id_ in ids]
        if ids is not None and not known.keys() >= set(ids):
            raise RefusedError(400, f"Invalid {name}")
        return None if ids is None else set(ids)

    def _query(
        self,
        raw: bytes,
        services: Sequence[int],
        interval: tuple[datetime, datetime] | None,
        states: Sequence[str] | None,
        portfolio: Portfolio,
    ) -> _Query:
        key = (portfolio.name, raw, interval, None if states is None else tuple(states))
        known = self._found.get(key)
        changes = portfolio.changes + self._first.changes  # it may see the first one's orders, too
        if known is not None and known.changes == changes:
            self._found.move_to_end(key)
            return known
        found = self.world.query(
            services,
            None if interval is None else micros(interval[0]),
            None if interval is None else micros(interval[1]),
            inclusive=self.behaviour.inclusive,
            states=states,
            by_creation=self.behaviour.by_creation,
        )
        query = self._found[key] = _Query(changes, found)
        self._found.move_to_end(key)
        if len(self._found) > self._QUERIES:
            self._found.popitem(last=False)
        return query

    def _check_weight(
        self, found: Found, services: Sequence[int], interval: tuple[datetime, datetime] | None, count: int
    ) -> None:
        pages = self.faults.condition("heavy-pages")
        if pages and min(count, len(found.numbers)) > pages:
            raise RefusedError(408, "Request timed out", fault=False)
        stalls = self.faults.condition("heavy-stalls")
        if stalls and min(count, len(found.numbers)) > stalls:
            raise _StalledError
        windows = self.faults.condition("heavy-windows")
        long = interval is None or (interval[1] - interval[0]).total_seconds() > 1
        if windows and len(found.numbers) > windows and (long or len(services) > 1):
            raise RefusedError(408, "Request timed out", fault=False)

    def _after(
        self,
        call: OrdersCall,
        found: Found,
        services: Sequence[int],
        interval: tuple[datetime, datetime] | None,
        fault: str | None,
    ) -> int:
        """Where in `found` the items older than the cursor begin."""
        cursor = (call.limitation.cursor or "").lower()
        number = self.world.order_number(cursor) if len(cursor) == 36 else None
        if number is None or fault == "cursor":
            if fault == "cursor":
                self._struck(fault)
            raise RefusedError(400, "Invalid Cursor", fault=fault != "cursor")
        times = self.world.created if self.behaviour.by_creation else self.world.updated
        key = self._cursors.get(cursor, times[number])
        moved = key != times[number] or (
            interval is not None
            and not self.world.matches(number, set(services), micros(interval[0]), micros(interval[1]))
        )
        if moved and self.faults.condition("invalid-cursors"):
            raise RefusedError(400, "Invalid Cursor", fault=False)
        place = (-key, -number)
        return bisect_right(
            range(len(found.numbers)), place, key=lambda item: (-found.keys[item], -found.numbers[item])
        )

    def _spoil(self, fault: str, bodies: list[bytes], services: Sequence[int]) -> None:
        """Put into a page what does not belong there; the page's own orders stay."""
        self._struck(fault)
        if fault == "type":
            bodies[0] = bodies[0].replace(b'"Number":"', b'"Number":7,"Was":"', 1)
            return
        extra = bodies[-1]
        if fault == "outside":
            extra = extra.replace(b'"UpdatedUtc":"20', b'"UpdatedUtc":"19', 1)
        elif fault == "unasked":
            asked = set(services)
            other = next((number for number in range(len(self.world.service_ids)) if number not in asked), None)
            if other is None:
                return
            at = extra.index(b'"ServiceId":"') + 13
            extra = extra[:at] + self.world.service_ids[other].encode() + extra[at + 36 :]
        bodies.insert(0, extra)

    # Counting

    def _refuse(self, error: RefusedError, path: str) -> Response:
        if error.fault:
            self.stats.against_contract_count += 1
            if len(self.stats.against_contract) < 20:
                self.stats.against_contract.append(f"{path if path in CALLS else '(no operation)'}: {error.message}")
        return Response(error.status, JSON, message(error.message))

    def _count(self, count: Count, response: Response) -> None:
        count.requests += 1
        count.throttled += response.status == 429
        count.statuses[str(response.status)] = count.statuses.get(str(response.status), 0) + 1

    def _count_heavy(self, body: bytes) -> None:
        digest = blake2b(body, digest_size=16).digest()
        self._heavy[digest] += 1
        self.stats.heaviest_repeat = max(self.stats.heaviest_repeat, self._heavy[digest])

    def _struck(self, fault: str) -> None:
        self.stats.faults[fault] = self.stats.faults.get(fault, 0) + 1

    def _request_id(self) -> str:
        return f"{self._requests:08x}-5157-4000-8000-{self._chance.getrandbits(48):012x}"


_UUID = re.compile(rb'"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"')
_LISTS: dict[type, str] = {
    EnterprisesCall: "Enterprises",
    ServicesCall: "Services",
    OrdersCall: "ProductServiceOrders",
}


def _orders(bodies: Sequence[bytes], cursor: str) -> bytes:
    return b'{"ProductServiceOrders":[%b],"Cursor":"%b"}' % (b",".join(bodies), cursor.encode())


def _slice(name: str, items: Sequence[tuple[str, bytes]], limitation: Limitation) -> bytes | None:
    """A page of enterprises or services, which never change here; `None` if it is empty."""
    first = 0
    if limitation.cursor is not None:
        places = [place for place, (id_, _) in enumerate(items) if id_ == limitation.cursor.lower()]
        if not places:
            raise RefusedError(400, "Invalid Cursor")
        first = places[0] + 1
    part = items[first : first + limitation.count]
    if not part:
        return None
    bodies = b",".join(body for _, body in part)
    return b'{"%b":[%b],"Cursor":"%b"}' % (name.encode(), bodies, part[-1][0].encode())
