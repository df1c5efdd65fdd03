"""What a portfolio has: nothing is read but ids, an id is an id whatever its case, and nothing is left out unnamed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import structs

import fetcher
from fetcher.connector.budget import RequestBudget
from fetcher.connector.client import Connector, Credentials, Platform
from fetcher.connector.room import Lease
from fetcher.connector.transport import Heard, Reply
from fetcher.errors import AccessDeniedError, BadResponseError
from fetcher.loading.discovery import Discovered, discover, why_nothing
from fetcher.planning.checkpoint import Checkpoint, Position, owners_of
from fetcher.planning.shards import ServiceRef, Shard
from fetcher.planning.windows import Window
from fetcher.report import Tally
from fetcher.simulator import Size
from tests.http import SMALL, site
from tests.planning.test_shards import YEARS
from tests.virtual import run_virtually

HEADERS = {"Date": "Tue, 24 Nov 2026 10:00:00 GMT", "Request-Id": "r-1"}


class Hotels:
    """Lists what it was given, to those who ask for it in any case; `refuses` says what it does not take."""

    def __init__(
        self,
        enterprises: Sequence[Any],
        services: Sequence[Any],
        refuses: Callable[[str, list[str]], tuple[int, str] | None] = lambda _path, _ids: None,
        most: int = 1000,
    ) -> None:
        self._lists = {"enterprises/getAll": ("Enterprises", enterprises), "services/getAll": ("Services", services)}
        self._refuses = refuses
        self._most = most
        self.asked: list[tuple[str, list[str]]] = []
        self.filters = False
        """Whether services are listed of the enterprises that are named alone."""

    async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
        document = json.loads(body)
        named = document.get("EnterpriseIds")
        ids = document.get("EnterpriseIds") or document.get("ServiceIds") or []
        self.asked.append((path, ids))
        heard(200, HEADERS)
        if (refusal := self._refuses(path, ids)) is not None:
            return Reply(refusal[0], HEADERS, json.dumps({"Message": refusal[1]}).encode())
        name, items = self._lists[path]
        if self.filters and named is not None and path.startswith("services"):
            items = [item for item in items if item["EnterpriseId"] in named]
        first = int(document["Limitation"].get("Cursor") or 0)
        count = document["Limitation"]["Count"]
        part = list(items[first : first + count])
        text = json.dumps({name: part, "Cursor": str(first + len(part)) if part else None})
        return Reply(200, HEADERS, text.encode())


def found(
    hotels: Hotels,
    enterprise_ids: Sequence[str] | None = None,
    service_ids: Sequence[str] | None = None,
    expected: int = 0,
) -> Discovered:
    async def scenario() -> Discovered:
        platform = Platform(hotels, opens_per_second=1000, outage_seconds=300, chance=random.Random(1))
        connector = Connector(
            platform, Credentials("C", "A", "t"), RequestBudget(10_000, 0.05), Tally(portfolio="north")
        )
        return await discover(connector, enterprise_ids, service_ids, expected)

    return run_virtually(scenario)


def service(id_: Any, enterprise: Any, **more: Any) -> dict[str, Any]:
    return {"Id": id_, "EnterpriseId": enterprise, **more}


@pytest.mark.parametrize(
    "more",
    [
        {"Names": None},
        {"IsActive": None},
        {"Names": "one", "IsActive": "yes"},
        {"Data": 7},
        {"Data": {"Discriminator": None}, "Ordering": [[]]},
        {"Names": {"en": "\ud83d"}},  # half of a surrogate pair
    ],
)
def test_what_the_job_does_not_use_it_does_not_decode(more: dict[str, Any]) -> None:
    hotels = Hotels([{"Id": "e", "Name": None}], [service("s", "e", **more), service("t", "e")])
    assert found(hotels) == Discovered(("e",), (ServiceRef("e", "s"), ServiceRef("e", "t")), {})


@pytest.mark.parametrize(
    ("odd", "name", "reason"),
    [
        ({"EnterpriseId": "e"}, "number 2", "Id should be there"),
        (service(None, "e"), "number 2", "Id should be text"),
        (service(7, "e"), "number 2", "Id should be text"),
        (service("", "e"), "number 2", "an id is empty"),
        (service("\ud83d", "e"), "number 2", "no text"),
        (service("s", None), "s", "EnterpriseId should be text"),
        (service("s", {}), "s", "EnterpriseId should be text"),
        (None, "number 2", "it should be an object"),
    ],
)
def test_a_service_without_a_readable_id_is_named_and_spoils_no_other(odd: Any, name: str, reason: str) -> None:
    hotels = Hotels([{"Id": "e"}], [service("a", "e"), odd, service("b", "e")])
    result = found(hotels)
    assert [one.id for one in result.services] == ["a", "b"]
    assert len(result.refused) == 1
    (id_, error), *_ = result.refused.items()
    assert id_.startswith(name)
    assert isinstance(error, BadResponseError)
    assert "cannot be read" in str(error)
    assert reason in str(error)


def test_an_enterprise_without_a_readable_id_is_named_and_spoils_no_other() -> None:
    result = found(Hotels([{"Id": 5}, {"Id": "e", "Name": 7}], [service("s", "e")]))
    assert result.enterprises == ("e",)
    assert [one.id for one in result.services] == ["s"]
    assert len(result.refused) == 1


def test_an_enterprise_is_the_same_whatever_the_case_and_is_kept_as_it_was_sent() -> None:
    hotels = Hotels(
        [{"Id": "E-ONE"}, {"Id": "e-two"}],
        [service("S-A", "e-one"), service("s-b", "E-ONE"), service("S-C", "E-TWO"), service("s-c", "e-two")],
    )
    result = found(hotels)
    assert result.enterprises == ("E-ONE", "e-two")
    assert result.services == (ServiceRef("E-ONE", "S-A"), ServiceRef("E-ONE", "s-b"), ServiceRef("e-two", "S-C"))
    assert result.refused == {}


def test_configured_ids_are_small_and_what_is_listed_in_capitals_is_what_they_mean() -> None:
    hotels = Hotels([{"Id": "E-ONE"}], [service("S-A", "e-one"), service("S-B", "E-One")])
    result = found(hotels, ["e-one"], ["s-a", "s-b"])
    assert [one.id for one in result.services] == ["S-A", "S-B"]
    assert result.refused == {}


def test_a_configured_id_that_is_not_listed_is_named() -> None:
    hotels = Hotels([{"Id": "e"}], [service("s", "e"), service("other", "elsewhere")])
    result = found(hotels, ["e", "gone"], ["s", "lost", "other"])
    assert [one.id for one in result.services] == ["s"]
    assert sorted(result.refused) == ["gone", "lost", "other"]


def test_more_than_a_thousand_are_listed_page_by_page() -> None:
    hotels = Hotels([{"Id": "e"}], [service(f"s{number:05}", "e") for number in range(2500)])
    assert len(found(hotels).services) == 2500


@pytest.mark.parametrize("status", [400, 403])
def test_an_enterprise_that_is_refused_alone_is_found_by_halves(status: int) -> None:
    enterprises = [{"Id": f"e{number:03}"} for number in range(300)]

    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return (status, "Invalid EnterpriseIds") if path.startswith("services") and "e211" in ids else None

    hotels = Hotels(enterprises, [service("s", "e007")], refuses)
    result = found(hotels)
    assert list(result.refused) == ["e211"]
    assert [one.id for one in result.services] == ["s"]
    assert len(hotels.asked) < 35


def test_services_that_may_not_be_listed_at_all_cost_a_handful_of_requests() -> None:
    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return (403, "Insufficient permissions") if path.startswith("services") else None

    hotels = Hotels([{"Id": f"e{number}"} for number in range(300)], [], refuses)
    with pytest.raises(AccessDeniedError):
        found(hotels)
    assert len(hotels.asked) < 12


def test_all_configured_enterprises_refused_leave_nothing_and_are_named() -> None:
    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return 400, "Invalid EnterpriseIds"

    result = found(Hotels([], [], refuses), ["a", "b"])
    assert (result.enterprises, result.services) == ((), ())
    assert sorted(result.refused) == ["a", "b"]


@pytest.mark.parametrize(
    ("enterprises", "services", "before", "told"),
    [
        (0, 0, 0, "sees no enterprise"),
        (1, 0, 0, "the enterprise it sees has not a service"),
        (3, 0, 7, "Earlier runs loaded 7 services"),
        (3, 1, 7, None),
    ],
)
def test_nothing_is_suspicious(enterprises: int, services: int, before: int, told: str | None) -> None:
    refs = tuple(ServiceRef("e0", f"s{number}") for number in range(services))
    reason = why_nothing(Discovered(tuple(f"e{number}" for number in range(enterprises)), refs, {}), before)
    assert (reason is None) if told is None else (reason is not None and told in reason)


@pytest.mark.parametrize("what", ["no enterprise", "no service"])
def test_a_run_that_finds_nothing_is_not_whole_and_keeps_what_was_known(what: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(SMALL) as here:
            config = here.config(f"jsonl:{tmp_path / 'o.jsonl'}")
            before = await fetcher.run(config)
            assert before.complete
            first = next(iter(here.platform.world.portfolios.values()))
            kept = dict(first.enterprises)
            if what == "no enterprise":
                first.enterprises.clear()
            else:
                first.enterprises.update({id_: structs.replace(one, services=[]) for id_, one in kept.items()})
            report = await fetcher.run(config)
            assert not report.complete
            (failure,) = report.failed
            assert failure.portfolio == "portfolio-1"
            assert "there is nothing to load" in failure.error
            assert "Earlier runs loaded" in failure.error
            assert report.portfolios["portfolio-1"].watermark == before.portfolios["portfolio-1"].watermark
            assert report.portfolios["portfolio-2"].complete
            full = await fetcher.run(config, full=True)
            assert not full.complete
            first.enterprises.update(kept)
            again = await fetcher.run(config)
            assert again.complete
            assert again.orders == 0
            assert again.portfolios["portfolio-1"].pages < before.portfolios["portfolio-1"].pages

    anyio.run(scenario)


def test_a_token_that_never_saw_anything_has_no_watermark() -> None:
    async def scenario() -> None:
        async with site(Size(portfolios=1, enterprises=1, services=3, orders=10)) as here:
            next(iter(here.platform.world.portfolios.values())).enterprises.clear()
            report = await here.run()
            assert (report.complete, report.watermark, report.orders) == (False, None, 0)

    anyio.run(scenario)


def test_progress_goes_on_though_ids_are_listed_in_another_case() -> None:
    window = Window(YEARS.start, YEARS.end)
    first = Checkpoint("p", None, {}, {})
    done = Shard(service_ids=("AA-1", "bb-2"), window=window, settled=window.end, enterprise_id="e")
    begun = Shard(service_ids=("bb-2", "cc-3"), window=window, settled=window.end, enterprise_id="e")
    first.finish(done)
    first.advance(begun, Position("c", 10))
    first.mark_bad("DD-4", window.end)
    records = {name: text for name, text in first.take_changes().items() if text is not None}
    later = Checkpoint("p", None, records, owners_of(records))
    spelled = ["aa-1", "BB-2", "cc-3", "dd-4"]
    later.spell(spelled)
    assert later.covered() == first.covered()
    ((shard, position),) = later.begun()
    assert (shard.service_ids, position) == (("BB-2", "cc-3"), Position("c", 10))
    assert list(later.bad_services()) == ["dd-4"]
    assert not later.elsewhere("AA-1")
    later.drop(shard)
    records.update({name: text for name, text in later.take_changes().items() if text is not None})
    assert later.begun() == []
    later.spell(spelled)
    assert later.take_changes() == {}  # once is enough


def test_a_service_that_cannot_be_read_counts_against_whole_and_the_others_are_loaded() -> None:
    async def scenario() -> None:
        async with site(SMALL) as here:
            world = here.platform.world
            world.service_bodies[0] = json.dumps({"Id": world.service_ids[0], "EnterpriseId": None}).encode()
            world.service_bodies[1] = json.dumps(
                {"Id": world.service_ids[1], "EnterpriseId": json.loads(world.service_bodies[1])["EnterpriseId"]}
                | {"Names": None, "IsActive": None}
            ).encode()
            report = await here.run()
            assert not report.complete
            assert [world.service_ids[0] in failure.error for failure in report.failed] == [True]
            missing = sum(1 for id_ in here.truth() if world.service_of(id_) == world.service_ids[0])
            assert report.orders == len(here.truth()) - missing

    anyio.run(scenario)


def test_a_run_waits_for_one_answer_of_discovery_and_spends_the_least_requests_on_it() -> None:
    began: list[float] = []

    class Slow(Hotels):
        async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
            began.append(anyio.current_time())
            await anyio.sleep(1)
            return await super().post(path, body, heard, lease)

    hotels = Slow(
        [{"Id": f"e{number}"} for number in range(200)], [service(f"s{n}", f"e{n % 200}") for n in range(999)]
    )
    assert len(found(hotels).services) == 999
    assert sorted(path for path, _ in hotels.asked) == ["enterprises/getAll", "services/getAll"]
    assert max(began) - min(began) < 0.5  # seconds: neither waited for the other


def test_an_enterprise_that_the_unfiltered_list_lacks_is_asked_for_by_its_id() -> None:
    class Forgetful(Hotels):
        async def post(self, path: str, body: bytes, heard: Heard, lease: Lease | None = None) -> Reply:
            named = json.loads(body).get("EnterpriseIds")
            services = [service("a", "e"), service("b", "f")]
            self._lists["services/getAll"] = ("Services", services[1:] if named == ["f"] else services[:1])
            return await super().post(path, body, heard, lease)

    hotels = Forgetful([{"Id": "e"}, {"Id": "f"}], [])
    assert [one.id for one in found(hotels).services] == ["a", "b"]
    assert hotels.asked[-1] == ("services/getAll", ["f"])


@pytest.mark.parametrize("refusal", [(400, "Invalid EnterpriseIds"), (403, "Insufficient permissions")])
def test_where_the_unfiltered_list_is_refused_services_are_asked_for_by_enterprises(refusal: tuple[int, str]) -> None:
    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return refusal if path.startswith("services") and not ids else None

    result = found(Hotels([{"Id": "e"}, {"Id": "f"}], [service("a", "e"), service("b", "f")], refuses))
    assert [one.id for one in result.services] == ["a", "b"]
    assert result.refused == {}


def of_each(enterprises: int, each: int) -> tuple[list[Any], list[Any]]:
    names = [f"e{number:04}" for number in range(enterprises)]
    return [{"Id": name} for name in names], [service(f"{name}-{n}", name) for name in names for n in range(each)]


def requests_of(hotels: Hotels) -> list[int]:
    """How many there were of each kind: enterprises, then services."""
    return [sum(path.startswith(kind) for path, _ in hotels.asked) for kind in ("enterprises", "services")]


@pytest.mark.parametrize(("enterprises", "each", "pages"), [(200, 5, [1, 2]), (999, 1, [1, 1]), (500, 9, [1, 5])])
def test_a_first_run_asks_for_no_page_of_services_more_than_there_are(
    enterprises: int, each: int, pages: list[int]
) -> None:
    hotels = Hotels(*of_each(enterprises, each))  # a page that is full, and then an empty one: nobody could know
    assert len(found(hotels).services) == enterprises * each
    assert requests_of(hotels) == pages


@pytest.mark.parametrize(("enterprises", "each"), [(2000, 6), (3, 4500), (700, 14)])
def test_many_services_that_are_known_are_asked_for_in_lists_side_by_side_each_for_one_request_more_at_the_most(
    enterprises: int, each: int
) -> None:
    count = enterprises * each
    hotels = Hotels(*of_each(enterprises, each))
    hotels.filters = True
    result = found(hotels, expected=count)
    assert len(result.services) == count
    assert result.refused == {}
    lists = {tuple(ids) for path, ids in hotels.asked if path.startswith("services")}
    assert () not in lists
    assert 3 <= len(lists) <= count / 3000
    assert requests_of(hotels)[1] <= -(-count // 1000) + len(lists)


@pytest.mark.parametrize("gone", ["not listed", "refused"])
def test_services_of_configured_enterprises_are_not_searched_for_what_the_list_of_enterprises_tells(gone: str) -> None:
    enterprises, services = of_each(300, 1)

    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        bad = "e0211" in ids and (gone == "refused" or path.startswith("services"))
        return (400, "Invalid EnterpriseIds") if bad else None

    hotels = Hotels([one for one in enterprises if one["Id"] != "e0211"], services, refuses)
    hotels.filters = True
    result = found(hotels, [one["Id"] for one in enterprises])
    assert list(result.refused) == ["e0211"]
    assert len(result.services) == 299
    assert requests_of(hotels)[1] == 2


def test_enterprises_and_services_that_are_configured_are_asked_for_at_once() -> None:
    enterprises, services = of_each(10, 3)
    hotels = Hotels(enterprises, services)
    assert len(found(hotels, ["e0001", "e0002"], ["e0001-0", "e0002-2"]).services) == 30
    assert requests_of(hotels) == [1, 1]


@pytest.mark.parametrize("denied", [["e0007"], ["e0007", "e0008"]])
def test_enterprises_that_the_list_of_all_lacks_and_that_are_denied_are_named_and_cost_the_others_nothing(
    denied: list[str],
) -> None:
    enterprises, services = of_each(20, 2)

    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        wrong = path.startswith("services") and not set(denied).isdisjoint(ids)
        return (403, "Insufficient permissions") if wrong else None

    hotels = Hotels(enterprises, [one for one in services if one["EnterpriseId"] not in denied], refuses)
    result = found(hotels)
    assert sorted(result.refused) == denied
    assert all(isinstance(error, AccessDeniedError) for error in result.refused.values())
    assert len(result.services) == 40 - 2 * len(denied)


def test_an_enterprise_that_has_a_list_of_its_own_and_is_denied_is_named_and_costs_the_others_nothing() -> None:
    enterprises, services = of_each(3, 3000)

    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return (403, "Insufficient permissions") if path.startswith("services") and "e0001" in ids else None

    hotels = Hotels(enterprises, services, refuses)
    hotels.filters = True
    result = found(hotels, expected=9000)
    assert list(result.refused) == ["e0001"]
    assert len(result.services) == 6000


def test_services_of_an_enterprise_that_is_not_listed_are_nobodys() -> None:
    result = found(Hotels([{"Id": "e"}], [service("a", "e"), service("b", "elsewhere")]))
    assert [one.id for one in result.services] == ["a"]


def test_where_the_list_of_all_is_too_heavy_thousands_of_enterprises_are_asked_for_in_lists() -> None:
    enterprises, services = of_each(1500, 1)

    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return (408, "Request timed out") if path.startswith("services") and not ids else None

    hotels = Hotels(enterprises, services, refuses)
    hotels.filters = True
    assert len(found(hotels).services) == 1500
    assert requests_of(hotels)[1] <= 12 + 2


def test_services_that_are_not_told_matter_only_where_there_are_enterprises() -> None:
    def refuses(path: str, ids: list[str]) -> tuple[int, str] | None:
        return (403, "Insufficient permissions") if path.startswith("services") else None

    assert found(Hotels([], [], refuses)) == Discovered((), (), {})
