"""A world of hotels from a seed: portfolios, enterprises, services, and years of orders that may change. Pure.

Orders are kept as the bytes that the platform sends, about 1.1 KB each with their indexes, so that a page is one join.
An order's number in the world can be read off its id, so that a cursor needs no index.

The rule that cannot be broken: `truth` is what the world holds, whatever was asked of it before.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

MICROS = 1_000_000
DAY = 86_400 * MICROS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STATES = (
    "Confirmed",
    "Processed",
    "Canceled",
    "Started",
    "Requested",
    "Optional",
    "Inquired",
    "Enquired",
    "Waitlisted",
)
"""The documented ones, the older spelling of one, and one that no document knows."""
_STATE_SHARES = (30, 45, 12, 5, 3, 2, 2, 0.3, 0.2)
_ORIGINS = ("Distributor", "ChannelManager", "Commander", "Import", "Connector", "Navigator", "Kiosk")
_ORIGIN_SHARES = (22, 20, 35, 5, 10, 7.5, 0.5)
_COMMANDER = ("InPerson", "Channel", "Phone", "Email", "Website", "Message", "CallCenter", "RoomingList")
_DETAILS = (
    "",
    "Booking.com",
    "Expedia",
    "Zürich Ärzte-Kongress",
    "東京 旅行代理店",
    "Café — “petit déjeuner” 🥐",
    "Отель",
)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a world is. Every count is of the whole world, each at least 1; enterprises at least `portfolios`."""

    portfolios: int = 3
    enterprises: int = 14
    services: int = 7000
    orders: int = 200_000
    years: float = 3.0
    """How far back the orders reach."""
    skew: float = 1.15
    """How unequal the enterprises are: the n-th has n ** -skew of the first one's services and orders; 0: all alike."""
    hotels: tuple[tuple[int, int], ...] = ()
    """Services and orders of each enterprise, dealt to the portfolios in turn; the counts do not matter then."""


class Enterprise(msgspec.Struct):
    """A hotel and its services' numbers in the world."""

    id: str
    body: bytes
    services: list[int]


class Portfolio(msgspec.Struct):
    """What one access token can see."""

    name: str
    access_token: str
    enterprises: dict[str, Enterprise]
    changes: int = 0
    """Grows when any of its orders changes."""


class Found(msgspec.Struct, frozen=True):
    """What a query matches, newest first."""

    numbers: Sequence[int]
    keys: Sequence[int]
    """By which it is sorted: microseconds since 1970, of the update or the creation."""


class World:
    """All that the simulated platform holds.

    Args:
        seed: the same seed, size and `now` make the same world.
        size: how large it is.
        now: microseconds since 1970; no order is newer.
    """

    def __init__(self, seed: int, size: Size, now: int) -> None:
        self._chance = random.Random(seed)
        self.size = size
        self.client_token = _token(self._chance)
        self.portfolios: dict[str, Portfolio] = {}
        """By access token."""
        self.service_ids: list[str] = []
        self.service_bodies: list[bytes] = []
        self.service_numbers: dict[str, int] = {}
        self._enterprise_of: list[Enterprise] = []  # by service number
        self._portfolio_of: dict[str, Portfolio] = {}  # by enterprise id
        self.bodies: list[bytes] = []
        self.updated = array("q")
        self.created = array("q")
        self._service = array("l")
        self._state = bytearray()
        self._by_update: dict[str, tuple[array[int], array[int]]] = {}  # by enterprise: update times, order numbers
        self._mix = self._chance.getrandbits(48) | 1
        self._unmix = pow(self._mix, -1, 1 << 48)
        self._now = now
        self._pools = _Pools(self._chance)  # of orders that come later
        self._populate()

    # Reading

    def query(
        self,
        services: Iterable[int],
        start: int | None,
        end: int | None,
        *,
        inclusive: bool,
        states: Sequence[str] | None,
        by_creation: bool,
    ) -> Found:
        """The orders of `services` updated from `start` to `end` (microseconds), newest first.

        Args:
            services: service numbers.
            start: first instant; `None`: since ever.
            end: the end of the interval, itself within it if `inclusive`, or if it equals `start`; `None`: no end.
            inclusive: see `end`.
            states: names of states to keep; `None`: all.
            by_creation: whether "newest" means created, rather than updated.
        """
        wanted = set(services)
        enterprises = {self._enterprise_of[service].id: self._enterprise_of[service] for service in wanted}
        state_numbers = None if states is None else {STATES.index(state) for state in states}
        numbers: list[int] = []
        for enterprise in enterprises.values():
            times, orders = self._by_update[enterprise.id]
            low = 0 if start is None else bisect_left(times, start)
            cut = bisect_right if inclusive or start == end else bisect_left
            part: Sequence[int] = orders[low : len(times) if end is None else cut(times, end)]
            if not wanted.issuperset(enterprise.services):
                part = [number for number in part if self._service[number] in wanted]
            numbers.extend(part)
        if state_numbers is not None:
            numbers = [number for number in numbers if self._state[number] in state_numbers]
        times = self.created if by_creation else self.updated
        if by_creation or len(enterprises) > 1:
            numbers.sort()
            numbers.sort(key=times.__getitem__)
        numbers.reverse()
        return Found(numbers, [times[number] for number in numbers])

    def order_id(self, number: int) -> str:
        """The id of the order with that number."""
        return self.bodies[number][7:43].decode()

    def order_number(self, order_id: str) -> int | None:
        """The number of the order with that id; `None` if there is none."""
        try:
            number = (int(order_id[-12:], 16) * self._unmix) % (1 << 48)
        except ValueError:
            return None
        return number if number < len(self.bodies) and self.order_id(number) == order_id.lower() else None

    def matches(self, number: int, services: set[int], start: int | None, end: int | None) -> bool:
        """Whether an order is of these services, and updated within `start` and `end`, both included."""
        updated = self.updated[number]
        inside = (start is None or start <= updated) and (end is None or updated <= end)
        return inside and self._service[number] in services

    def truth(
        self,
        portfolio: str | None = None,
        *,
        start: int | None = None,
        end: int | None = None,
        states: Sequence[str] | None = None,
    ) -> Iterator[tuple[str, str]]:
        """Each order's id and `UpdatedUtc` as sent, of one portfolio (by name) or all, updated in `start` to `end`."""
        for owner in self.portfolios.values():
            if portfolio is None or owner.name == portfolio:
                services = [number for enterprise in owner.enterprises.values() for number in enterprise.services]
                options = {"inclusive": False, "by_creation": False}
                found = self.query(services, start, end, states=states, **options)
                yield from ((self.order_id(number), self.updated_text(number)) for number in found.numbers)

    def updated_text(self, number: int) -> str:
        """The order's `UpdatedUtc`, as it is sent."""
        return _VERSION.decode(self.bodies[number]).updated

    def service_of(self, order_id: str) -> str:
        """The id of the service of an order that there is."""
        number = self.order_number(order_id)
        return "" if number is None else self.service_ids[self._service[number]]

    def owner_of(self, service_id: str) -> Portfolio:
        """The portfolio that a service (by id) belongs to."""
        return self.portfolio_of(self.service_numbers[service_id])

    def portfolio_of(self, service: int) -> Portfolio:
        """The portfolio that a service belongs to."""
        return self._portfolio_of[self._enterprise_of[service].id]

    # Changing

    def change(self, now: int, chance: random.Random, *, late: int = 0, fresh: float = 0.2) -> int:
        """Update a random order, or (with probability `fresh`) make a new one; returns its number.

        Args:
            now: when, in microseconds since 1970.
            chance: chooses.
            late: the update may say that it was up to as many microseconds ago: it is committed late.
            fresh: share of new orders.
        """
        moment = now - chance.randrange(late + 1)
        if chance.random() >= 0.25:
            moment -= moment % MICROS
        if not self.bodies or chance.random() < fresh:
            service = chance.randrange(len(self.service_ids))
            return self.add(service, created=moment, updated=moment, chance=chance)
        number = chance.randrange(len(self.bodies))
        self.update(number, moment, chance.choice(STATES[:7]))
        return number

    def orders(self, portfolio: str) -> Iterator[bytes]:
        """Each order of a portfolio (by name), as it is sent."""
        for number, body in enumerate(self.bodies):
            if self.portfolio_of(self._service[number]).name == portfolio:
                yield body

    def update(self, number: int, updated: int, state: str, *, same_second: bool = False) -> None:
        """Change an order's state at a time; it moves to its new place in every answer. Time never goes back.

        `same_second`: it may stand still, for a platform tells no fractions of a second.
        """
        updated = max(updated, self.updated[number] + (0 if same_second else 1))
        body = msgspec.json.decode(self.bodies[number])
        body.update({"State": state, "UpdatedUtc": _text(updated)})
        if state == "Canceled":
            body["CancelledUtc"] = _text(updated)
        enterprise = self._enterprise_of[self._service[number]]
        times, orders = self._by_update[enterprise.id]
        place = bisect_left(times, self.updated[number])
        while orders[place] != number:
            place += 1
        del times[place], orders[place]
        self.bodies[number] = msgspec.json.encode(body)
        self.updated[number] = updated
        self._state[number] = STATES.index(state)
        self._place(enterprise, number)

    def add(self, service: int, *, created: int, updated: int, chance: random.Random) -> int:
        """Make a new order of a service; returns its number."""
        number = self._render(service, created, updated, self._pools, chance)
        self._place(self._enterprise_of[service], number)
        return number

    def _place(self, enterprise: Enterprise, number: int) -> None:
        """Put an order into its enterprise's index: by time, then by number."""
        times, orders = self._by_update[enterprise.id]
        updated = self.updated[number]
        place = bisect_right(times, updated)
        while place and times[place - 1] == updated and orders[place - 1] > number:
            place -= 1
        times.insert(place, updated)
        orders.insert(place, number)
        self._portfolio_of[enterprise.id].changes += 1

    # Populating

    def _populate(self) -> None:
        chance, size = self._chance, self.size
        shares = _zipf(size.enterprises, size.skew)
        services = _portion(size.services, shares)
        orders = _portion(size.orders, shares)
        names = [f"portfolio-{number}" for number in range(1, size.portfolios + 1)]
        portfolios = [Portfolio(name, _token(chance), {}) for name in names]
        for portfolio in portfolios:
            self.portfolios[portfolio.access_token] = portfolio
        for rank, (services_of_it, orders_of_it) in enumerate(size.hotels):
            enterprise = self._add_enterprise(portfolios[rank % size.portfolios], rank, services_of_it)
            self._add_orders(enterprise, orders_of_it)
        for rank in range(0 if size.hotels else size.enterprises):
            # The smallest of a world that has enough of them has nothing: hotels begin so.
            empty = size.enterprises >= 4 and rank == size.enterprises - 1
            portfolio = portfolios[rank % size.portfolios]
            enterprise = self._add_enterprise(portfolio, rank, 0 if empty else max(1, services[rank]))
            if not empty:
                self._add_orders(enterprise, orders[rank] + (orders[-1] if rank == 0 and size.enterprises >= 4 else 0))
        self._index()

    def _add_enterprise(self, portfolio: Portfolio, rank: int, services: int) -> Enterprise:
        chance = self._chance
        id_ = _uuid(chance)
        name = ("Hotel Åre", "Grand Hôtel", "Pension Müller", "旅館 さくら")[rank % 4]
        body = msgspec.json.encode({"Id": id_, "Name": f"{name} {rank + 1}", "TimeZoneIdentifier": "Europe/Prague"})
        enterprise = Enterprise(id_, body, [])
        portfolio.enterprises[id_] = enterprise
        self._portfolio_of[id_] = portfolio
        self._by_update[id_] = (array("q"), array("l"))
        for number in range(services):
            service_id = _uuid(chance)
            service = {
                "Id": service_id,
                "EnterpriseId": id_,
                "IsActive": chance.random() < 0.8,
                "Names": {"en-US": f"Service {number + 1}", "de-DE": f"Dienst {number + 1} (Frühstück)"},
                "Data": {"Discriminator": "Bookable" if chance.random() < 0.15 else "Additional"},
            }
            enterprise.services.append(len(self.service_ids))
            self.service_numbers[service_id] = len(self.service_ids)
            self.service_ids.append(service_id)
            self.service_bodies.append(msgspec.json.encode(service))
            self._enterprise_of.append(enterprise)
        return enterprise

    def _add_orders(self, enterprise: Enterprise, count: int) -> None:
        """Orders of one enterprise: busy and idle services, growth over the years, seasons, bulk changes, edges."""
        chance, now = self._chance, self._now
        span = int(self.size.years * 365.25 * DAY)
        pools = _Pools(chance)
        weights = _cumulated(_zipf(len(enterprise.services), 0.8))
        bulk_size = min(3000, count // 12)
        bulk = now - int(span * chance.uniform(0.1, 0.6))
        bulk -= bulk % MICROS
        services = chance.choices(enterprise.services, cum_weights=weights, k=count)
        for place, service in enumerate(services):
            age = span * chance.random() ** 1.5  # more of them lately
            created = now - int(age)
            updated = created + int(chance.expovariate(1 / (9 * DAY)))
            if updated > now:
                updated = created + int((now - created) * chance.random())
            if place < bulk_size:
                created, updated = min(created, bulk - DAY), bulk
            elif place % 200 == 0:
                updated = _edge(updated)
                created = min(created, updated)
            elif place % 10:
                updated -= updated % MICROS
            created -= created % MICROS
            self._render(service, created, updated, pools, chance)

    def _render(self, service: int, created: int, updated: int, pools: _Pools, chance: random.Random) -> int:
        number = len(self.bodies)
        bits = chance.getrandbits(80)
        head = f"{bits:020x}"
        id_ = f"{head[:8]}-{head[8:12]}-4{head[13:16]}-a{head[17:20]}-{(number * self._mix) % (1 << 48):012x}"
        pick = bits % 1009
        state = pools.states[pick]
        cancelled = f'"{_text(updated)}"' if state == 2 else "null"
        self.bodies.append(
            (
                f'{{"Id":"{id_}","ServiceId":"{self.service_ids[service]}",{pools.people[bits % 4093]},'
                f'"Number":"{number + 1}","State":"{STATES[state]}",{pools.origins[pick]},'
                f'"CreatedUtc":"{_text(created)}","UpdatedUtc":"{_text(updated)}","CancelledUtc":{cancelled},'
                f"{pools.links[bits % 2039]},{pools.options[bits % 16]}}}"
            ).encode()
        )
        self.updated.append(updated)
        self.created.append(created)
        self._service.append(service)
        self._state.append(state)
        return number

    def _index(self) -> None:
        by_enterprise: dict[str, list[int]] = {}
        for number, service in enumerate(self._service):
            by_enterprise.setdefault(self._enterprise_of[service].id, []).append(number)
        for id_, numbers in by_enterprise.items():
            numbers.sort(key=self.updated.__getitem__)
            self._by_update[id_] = (array("q", [self.updated[number] for number in numbers]), array("l", numbers))


class _Pools:
    """Pieces of orders, rendered once: what many orders share."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.states = chance.choices(range(len(STATES)), _STATE_SHARES, k=1009)
        origins = chance.choices(_ORIGINS, _ORIGIN_SHARES, k=1009)
        self.origins = [self._origin(origin) for origin in origins]
        self.people = _Lazy(self._people)
        self.links = _Lazy(self._links)
        self.options = [
            '"Options":' + msgspec.json.encode(dict(zip(_OPTIONS, flags, strict=True))).decode()
            for flags in ([bool(bits >> place & 1) for place in range(4)] for bits in range(16))
        ]

    def _origin(self, origin: str) -> str:
        commander = f'"{self._chance.choice(_COMMANDER)}"' if origin == "Commander" else "null"
        details = self._chance.choice(_DETAILS)
        text = f',"OriginDetails":"{details}"' if details else ""
        return f'"Origin":"{origin}","CommanderOrigin":{commander}{text}'

    def _people(self) -> str:
        chance = self._chance
        kind = "Company" if chance.random() < 0.12 else "Customer"
        booker = f'"{_uuid(chance)}"' if chance.random() < 0.5 else "null"
        return (
            f'"AccountId":"{_uuid(chance)}","AccountType":"{kind}","CreatorProfileId":"{_uuid(chance)}",'
            f'"UpdaterProfileId":"{_uuid(chance)}","BookerId":{booker}'
        )

    def _links(self) -> str:
        chance = self._chance
        values = [f'"{_uuid(chance)}"' if chance.random() < share else "null" for share in (0.1, 0.6, 0.35)]
        return '"VoucherId":{},"BusinessSegmentId":{},"LinkedReservationId":{}'.format(*values)


class _Lazy:
    """Texts by number, each made when it is first used."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._texts: dict[int, str] = {}

    def __getitem__(self, number: int) -> str:
        text = self._texts.get(number)
        if text is None:
            text = self._texts[number] = self._make()
        return text


_OPTIONS = ("OwnerCheckedIn", "AllCompanionsCheckedIn", "AnyCompanionCheckedIn", "ConnectorCheckIn")


class _Version(msgspec.Struct):
    updated: str = msgspec.field(name="UpdatedUtc")


_VERSION = msgspec.json.Decoder(_Version)


def micros(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def instant(moment: int) -> datetime:
    """The inverse of `micros`."""
    return _EPOCH + timedelta(microseconds=moment)


def _uuid(chance: random.Random) -> str:
    text = f"{chance.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def _token(chance: random.Random) -> str:
    """A token of the platform's look: 32 and 31 hexadecimal digits."""
    return f"{chance.getrandbits(128):032X}-{chance.getrandbits(124):031X}"


_dates: dict[int, str] = {}
_times: dict[int, str] = {}


def _text(moment: int) -> str:
    """A time as the platform writes it; a fraction has six or seven digits, as .NET's has."""
    day, rest = divmod(moment, DAY)
    second, fraction = divmod(rest, MICROS)
    date = _dates.get(day)
    if date is None:
        date = _dates[day] = instant(day * DAY).date().isoformat()
    time = _times.get(second)
    if time is None:
        time = _times[second] = f"T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    if not fraction:
        return f"{date}{time}Z"
    return f"{date}{time}.{fraction:06}0Z" if fraction % 2 else f"{date}{time}.{fraction:06}Z"


def _edge(moment: int) -> int:
    """The midnight, or (one in two) the beginning of the quarter, at or before `moment`."""
    midnight = moment - moment % DAY
    if midnight // DAY % 2:
        return midnight
    day = instant(midnight)
    return micros(day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1))


def _zipf(count: int, exponent: float) -> list[float]:
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def _portion(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole parts by `shares`; the first takes what rounding leaves."""
    whole = sum(shares)
    parts = [int(total * share / whole) for share in shares]
    parts[0] += total - sum(parts)
    return parts


def _cumulated(shares: Sequence[float]) -> list[float]:
    total = 0.0
    sums: list[float] = []
    for share in shares:
        total += share
        sums.append(total)
    return sums
