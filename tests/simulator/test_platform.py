"""The simulated platform keeps the contract as strictly as a real one would."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import msgspec
import pytest

from fetcher.simulator import Behaviour, Latency, SimulatedPlatform, Size, World, parse_faults
from fetcher.simulator.process import parse_hotels
from fetcher.simulator.world import MICROS, micros

NOW = micros(datetime(2026, 3, 31, 12, tzinfo=UTC))
SIZE = Size(portfolios=2, enterprises=5, services=40, orders=600, years=0.5)
HEADERS = {"Content-Type": "application/json"}
ORDERS, SERVICES, ENTERPRISES = "productServiceOrders/getAll", "services/getAll", "enterprises/getAll"


class Asker:
    """Asks one platform, as the first portfolio."""

    def __init__(self, **behaviour: Any) -> None:
        self.world = World(3, SIZE, NOW)
        self.platform = SimulatedPlatform(self.world, Behaviour(**behaviour))
        self.token = next(iter(self.world.portfolios))
        self.portfolio = self.world.portfolios[self.token]
        numbers = [number for enterprise in self.portfolio.enterprises.values() for number in enterprise.services]
        self.services = [self.world.service_ids[number] for number in numbers]
        self.now = NOW / MICROS

    def ask(self, path: str = ORDERS, *, headers: dict[str, str] = HEADERS, **changes: Any) -> tuple[int, Any]:
        request = {
            "ClientToken": self.world.client_token,
            "AccessToken": self.token,
            "Client": "test",
            "Limitation": {"Count": 100},
            **({"ServiceIds": self.services} if path == ORDERS else {}),
            **changes,
        }
        body = {name: value for name, value in request.items() if value is not ...}
        response = self.platform.handle(path, headers, msgspec.json.encode(body), self.now)
        return response.status, msgspec.json.decode(response.body) if response.body else None

    def walk(self, count: int, **changes: Any) -> list[str]:
        ids: list[str] = []
        cursor = None
        while True:
            _, page = self.ask(Limitation={"Count": count, "Cursor": cursor}, **changes)
            ids += [order["Id"] for order in page["ProductServiceOrders"]]
            cursor = page["Cursor"]
            if len(page["ProductServiceOrders"]) < count:
                return ids


@pytest.mark.parametrize(
    ("path", "changes", "status", "message"),
    [
        ("ProductServiceOrders/getAll", {}, 404, "Not found"),
        (ORDERS, {"ClientToken": "x"}, 401, "Invalid ClientToken"),
        (ORDERS, {"AccessToken": "x"}, 401, "Invalid AccessToken"),
        (ORDERS, {"Client": ...}, 400, "missing"),
        (ORDERS, {"Limitation": ...}, 400, "missing"),
        (ORDERS, {"Limitation": {"Count": 0}}, 400, ">= 1"),
        (ORDERS, {"Limitation": {"Count": 1001}}, 400, "<= 1000"),
        (ORDERS, {"Limitation": {"Count": 1, "Cursor": "x"}}, 400, "Invalid Cursor"),
        (ORDERS, {"Surprise": 1}, 400, "unknown field"),
        (ORDERS, {"ServiceIds": ...}, 400, "missing"),
        (ORDERS, {"ServiceIds": []}, 400, "Invalid ServiceIds"),
        (ORDERS, {"ServiceIds": ["x"]}, 400, "Invalid ServiceIds"),
        (ORDERS, {"ServiceIds": ["3fa85f64-5717-4562-b3fc-2c963f66afa6"]}, 400, "Invalid ServiceIds"),
        (ORDERS, {"ServiceIds": ["3fa85f64-5717-4562-b3fc-2c963f66afa6"] * 1001}, 400, "1 to 1000"),
        (ORDERS, {"States": []}, 400, "Invalid States"),
        (ORDERS, {"LanguageCode": "en"}, 400, "come together"),
        (ORDERS, {"UpdatedUtc": {"StartUtc": "2026-01-01T00:00:00Z"}}, 400, "missing"),
        (ORDERS, {"UpdatedUtc": {"StartUtc": "2026-01-02T00:00:00Z", "EndUtc": "2026-01-01T00:00:00Z"}}, 400, "ends"),
        (ORDERS, {"UpdatedUtc": {"StartUtc": "2026-01-01T00:00:00Z", "EndUtc": "2026-04-01T00:00:01Z"}}, 400, "longer"),
        (ORDERS, {"UpdatedUtc": {"StartUtc": "2026-01-01T00:00:00", "EndUtc": "2026-01-02T00:00:00Z"}}, 400, "UTC"),
        (ENTERPRISES, {"EnterpriseIds": []}, 400, "Invalid EnterpriseIds"),
        (SERVICES, {"EnterpriseIds": ["3fa85f64-5717-4562-b3fc-2c963f66afa6"]}, 400, "Invalid EnterpriseIds"),
        (SERVICES, {"ServiceType": "Other"}, 400, "Invalid ServiceType"),
    ],
)
def test_what_a_real_platform_would_refuse_is_refused(
    path: str, changes: dict[str, Any], status: int, message: str
) -> None:
    got, body = Asker().ask(path, **changes)
    assert (got, message in body["Message"]) == (status, True), body


def test_another_content_type_is_refused() -> None:
    assert Asker().ask(headers={"Content-Type": "text/plain"})[0] == 415


@pytest.mark.parametrize("by_creation", [False, True])
@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_a_walk_brings_each_order_once_newest_first(count: int, by_creation: bool) -> None:
    asker = Asker(by_creation=by_creation, requests=10_000)
    ids = asker.walk(count)
    assert len(ids) == len(set(ids))
    assert set(ids) == {id_ for id_, _ in asker.world.truth(asker.portfolio.name)}
    key = asker.world.created if by_creation else asker.world.updated
    keys = [key[asker.world.order_number(id_) or 0] for id_ in ids]
    assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize("inclusive", [False, True])
def test_both_readings_of_an_interval(inclusive: bool) -> None:
    asker = Asker(inclusive=inclusive, minimal=False)
    number = asker.world.order_number(asker.walk(1000)[5]) or 0
    asker.world.update(number, NOW + 7 * MICROS, "Canceled")
    start, edge, after = "2026-03-31T12:00:01Z", "2026-03-31T12:00:07Z", "2026-03-31T12:00:08Z"
    found = [
        bool(asker.ask(UpdatedUtc={"StartUtc": first, "EndUtc": last})[1]["ProductServiceOrders"])
        for first, last in ((start, edge), (edge, after), (edge, edge), (start, start))
    ]
    assert found == [inclusive, True, True, False]


def test_the_window_slides_and_is_exact() -> None:
    asker = Asker(requests=5, per_seconds=10.0)
    statuses: list[int] = []
    for seconds in (0, 1, 2, 3, 4, 5, 9.9, 10, 10.5, 11):
        asker.now = NOW / MICROS + seconds
        statuses.append(asker.ask()[0])
    assert statuses == [200, 200, 200, 200, 200, 429, 429, 200, 429, 200]


def test_a_cursor_whose_order_moved_goes_on_or_is_refused() -> None:
    asker = Asker()
    _, page = asker.ask(Limitation={"Count": 10})
    rest = asker.walk(1000)[10:]
    asker.world.update(asker.world.order_number(page["Cursor"]) or 0, NOW, "Canceled")
    _, after = asker.ask(Limitation={"Count": 1000, "Cursor": page["Cursor"]})
    assert [order["Id"] for order in after["ProductServiceOrders"]] == rest
    asker.platform.faults = parse_faults("invalid-cursors=1")
    assert asker.ask(Limitation={"Count": 1000, "Cursor": page["Cursor"]})[1]["Message"] == "Invalid Cursor"


@pytest.mark.parametrize("refuses_all", [False, True])
def test_a_bad_enterprise_is_refused_by_its_name_and_spoils_the_list_of_all_or_is_not_in_it(refuses_all: bool) -> None:
    asker = Asker(refuses_all=refuses_all)
    asker.platform.faults = parse_faults("bad-enterprises=1")
    (bad,) = asker.platform.bad_enterprises(asker.portfolio.name)
    assert asker.ask(SERVICES, EnterpriseIds=[bad])[0] == 400
    status, page = asker.ask(SERVICES, Limitation={"Count": 1000})
    assert status == (400 if refuses_all else 200)
    if not refuses_all:
        listed = {service["EnterpriseId"] for service in page["Services"]}
        assert listed == asker.portfolio.enterprises.keys() - {bad}


def test_an_empty_page_may_be_204() -> None:
    interval = {"StartUtc": "2020-01-01T00:00:00Z", "EndUtc": "2020-01-02T00:00:00Z"}
    assert Asker().ask(UpdatedUtc=interval, headers={**HEADERS, "Prefer": "return=minimal"}) == (204, None)
    assert Asker().ask(UpdatedUtc=interval) == (200, {"ProductServiceOrders": [], "Cursor": None})


def test_the_same_seed_makes_the_same_world() -> None:
    assert World(3, SIZE, NOW).bodies == World(3, SIZE, NOW).bodies
    assert World(3, SIZE, NOW).bodies != World(4, SIZE, NOW).bodies


def test_the_same_seed_makes_the_world_that_it_always_made() -> None:
    digest = blake2b(b"".join(World(3, SIZE, NOW).bodies), digest_size=8).hexdigest()
    assert digest == "64ff6f3f57d795d0"


def test_a_world_of_given_hotels_has_exactly_those() -> None:
    hotels = ((1, 500), (4, 0), (5, 20), (4, 0), (5, 20))
    world = World(1, Size(portfolios=2, hotels=hotels, years=0.1), NOW)
    shapes = [[len(one.services) for one in owner.enterprises.values()] for owner in world.portfolios.values()]
    assert shapes == [[1, 5, 5], [4, 4]]
    assert [len(list(world.truth(owner.name))) for owner in world.portfolios.values()] == [540, 0]
    large = world.service_ids[0]
    assert sum(world.service_of(id_) == large for id_, _ in world.truth()) == 500


def test_hotels_are_read_one_by_one() -> None:
    assert parse_hotels("1x5x60000,3x4x0") == ((5, 60_000), (4, 0), (4, 0), (4, 0))
    assert parse_hotels("") == ()


@pytest.mark.parametrize("text", ["1x5", "1x5x7x9", "0x5x7", "1x0x7", "1x5x-7", "axbxc"])
def test_hotels_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="COUNTxSERVICESxORDERS"):
        parse_hotels(text)


def test_a_spread_stretches_the_latency_and_keeps_its_mean() -> None:
    latency, chance = Latency(0.2, spread=0.5), random.Random(1)
    drawn = [latency.draw(chance) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.2, rel=0.02)
    assert min(drawn) > 0
    assert max(drawn) > 0.8


def test_a_refusal_at_random_asks_to_wait_as_long_as_it_is_told() -> None:
    asker = Asker()
    asker.platform.faults = parse_faults("429=1,429-seconds=1")
    tokens = {"ClientToken": asker.world.client_token, "AccessToken": asker.token, "Client": "test"}
    body = msgspec.json.encode({**tokens, "Limitation": {"Count": 100}, "ServiceIds": asker.services})
    answers = [asker.platform.handle(ORDERS, HEADERS, body, asker.now) for _ in range(20)]
    assert {(answer.status, answer.headers["Retry-After"]) for answer in answers} == {(429, "1")}
    count = asker.platform.stats.portfolios[asker.portfolio.name]
    assert (count.throttled, count.pause_seconds) == (20, pytest.approx(1))  # all at once
    asker.platform.handle(ORDERS, HEADERS, body, asker.now + 0.5)
    assert count.pause_seconds == pytest.approx(1.5)


def test_a_world_is_as_varied_as_the_contract_says() -> None:
    world = World(1, Size(orders=30_000), NOW)
    bodies = b"".join(world.bodies)
    assert all(text.encode() in bodies for text in ("Enquired", "Waitlisted", "Kiosk", "東京", "🥐"))
    assert Counter(world.updated).most_common(1)[0][1] >= 500
    assert sum(moment % (86_400 * MICROS) == 0 for moment in world.updated) > 50
    sizes = sorted(len(one.services) for owner in world.portfolios.values() for one in owner.enterprises.values())
    assert sizes[0] == 0
    assert sizes[-1] > 2000


@pytest.mark.parametrize("text", ["gremlins=1", "500=2", "500", "500=x", "bad-services=-1", "500=0.7,reset=0.7"])
def test_faults_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_faults(text)
