"""What both databases promise: versions by content, states, what is kept aside, tables that are not quite ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import psycopg
import pytest

from fetcher.connector.types import RejectedOrder
from fetcher.errors import SinkError
from fetcher.sinks import Batch, EncodedPage, Page, Sink, make_sink
from tests.orders import SERVICE, order, page
from tests.sinks.test_sinks import commit

SECOND = "2024-03-01T10:00:00Z"
EARLIER = Path(__file__).parents[1] / "earlier" / "1.0"
BEGAN = datetime(2024, 5, 1, tzinfo=UTC)


class Database:
    """A database, as the sink and as somebody else sees it."""

    def __init__(self, kind: str, url: str, admin: str = "") -> None:
        self.kind = kind
        self.url = url
        self.admin = admin or url

    def sink(self) -> Sink:
        return make_sink(self.url)

    def opened(self) -> Sink:
        sink = self.sink()
        sink.open()
        return sink

    def execute(self, *statements: str) -> list[Any]:
        """The rows of the last statement. Of DuckDB while no sink has the file."""
        if self.kind == "duckdb":
            with duckdb.connect(self.url.partition(":")[2]) as db:
                return [db.execute(statement).fetchall() for statement in statements][-1]
        address, _, schema = self.admin.partition("?schema=")
        with psycopg.connect(address, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")  # type: ignore[arg-type]
            db.execute(f"SET search_path TO {schema}")  # type: ignore[arg-type]
            found = [db.execute(statement) for statement in statements][-1]  # type: ignore[arg-type]
            return found.fetchall() if found.description is not None else []

    def states(self) -> dict[int, str]:
        """The state of each order, by its number."""
        rows = self.execute("SELECT number, state FROM product_service_orders")
        assert len(rows) == len(dict(rows))
        return {int(number): state for number, state in rows}

    def rejected(self) -> list[tuple[str, str, str]]:
        return sorted(self.execute("SELECT id, portfolio, reason FROM fetcher_rejected"))


@pytest.fixture(params=["duckdb", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "duckdb":
        return Database("duckdb", f"duckdb:{tmp_path / 'orders.duckdb'}")
    return Database("postgresql", request.getfixturevalue("schema_url"))


@pytest.fixture(params=["duckdb", "postgresql", "postgresql without TEMP"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Each way in which rows come into a database."""
    if request.param == "duckdb":
        yield Database("duckdb", f"duckdb:{tmp_path / 'orders.duckdb'}")
        return
    url = request.getfixturevalue("schema_url")
    if request.param == "postgresql":
        yield Database("postgresql", url)
        return
    server = request.getfixturevalue("postgres")
    database = Database("postgresql", url)
    database.execute("SELECT 1")
    schema = url.partition("?schema=")[2]
    server.execute("REVOKE TEMP ON DATABASE postgres FROM PUBLIC")
    role = request.getfixturevalue("role")
    server.execute(f"GRANT ALL ON SCHEMA {schema} TO {role}", f"GRANT CREATE ON DATABASE postgres TO {role}")
    yield Database("postgresql", f"{server.address(user=role)}?schema={schema}", url)
    server.execute("GRANT TEMP ON DATABASE postgres TO PUBLIC")


@pytest.fixture
def role(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A user with no rights at all."""
    name = f"role_{abs(hash(tmp_path)):x}"
    with request.getfixturevalue("postgres").role(name):
        yield name


def confirmed(number: int, updated: str = SECOND, **changes: Any) -> dict[str, Any]:
    return order(number, updated, State="Confirmed", **changes)


def canceled(number: int, updated: str = SECOND, **changes: Any) -> dict[str, Any]:
    return order(number, updated, State="Canceled", **changes)


def at(when: datetime, *orders: dict[str, Any], **changes: Any) -> Page:
    """A page that the platform answered then."""
    return msgspec.structs.replace(page(orders), fetched_utc=when, **changes)


def test_how_much_there_is_is_told_by_enterprise_and_month_and_by_day(way: Database) -> None:
    sink = way.opened()
    updates = ["2024-02-29T23:59:59.9Z", "2024-03-01T00:00:00Z", SECOND]
    commit(sink, page([order(number, updated) for number, updated in enumerate(updates)]))
    sink.close()
    extent = way.sink().extent()
    enterprise = "22222222-2222-4222-a222-222222222222"
    months = {(count.portfolio, count.enterprise_id, count.month): count.rows for count in extent.rows or ()}
    assert months == {
        ("north", enterprise, datetime(2024, 2, 1, tzinfo=UTC)): 1,
        ("north", enterprise, datetime(2024, 3, 1, tzinfo=UTC)): 2,
    }
    assert extent.days == {"north": {datetime(2024, 2, 29, tzinfo=UTC): 1, datetime(2024, 3, 1, tzinfo=UTC): 2}}
    assert extent.progress == way.sink().holdings().progress


# Versions


@pytest.mark.parametrize(
    "changes",
    [
        {"State": "Canceled"},
        {"BookerId": SERVICE},
        {"OriginDetails": None},
        {"CancelledUtc": "2024-03-01T10:00:00Z"},
        {"CreatedUtc": "2019-01-01T00:00:00Z"},
        {"Options": {**order(1, SECOND)["Options"], "ConnectorCheckIn": True}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_of_two_changes_within_a_second_the_later_stays(way: Database, changes: dict[str, Any]) -> None:
    sink = way.opened()
    assert commit(sink, page([order(1, SECOND), order(2, SECOND)])) == 2
    assert commit(sink, page([order(1, SECOND, **changes)])) == 1
    assert commit(sink, page([order(1, SECOND, **changes)])) == 0
    sink.close()
    other = Database(way.kind, f"{way.url}x", "" if way.kind == "duckdb" else f"{way.admin}x")
    sink = other.opened()
    commit(sink, page([order(1, SECOND, **changes), order(2, SECOND)]))
    sink.close()
    rows = "SELECT * FROM product_service_orders ORDER BY id"
    assert way.execute(rows) == other.execute(rows)


def test_within_a_batch_the_later_page_and_the_later_place_count(way: Database) -> None:
    sink = way.opened()
    new = commit(
        sink,
        page([confirmed(1), confirmed(2), canceled(3)]),
        page([canceled(1), canceled(2), confirmed(2), confirmed(3), canceled(4, "2024-01-01T00:00:00Z"), confirmed(4)]),
        page([canceled(4, "2024-02-01T00:00:00Z")]),
    )
    sink.close()
    assert new == 4
    assert way.states() == {1: "Canceled", 2: "Confirmed", 3: "Confirmed", 4: "Confirmed"}


def test_the_same_content_again_leaves_the_row_alone(database: Database) -> None:
    sink = database.opened()
    commit(sink, at(BEGAN, confirmed(1)))
    assert commit(sink, at(BEGAN + timedelta(hours=1), confirmed(1), portfolio="south")) == 0
    sink.close()
    ((fetched, portfolio),) = database.execute("SELECT fetched_utc, portfolio FROM product_service_orders")
    assert (fetched, portfolio) == (BEGAN, "north")


def test_ids_in_capitals_are_the_same_ids(database: Database) -> None:
    sink = database.opened()
    small = order(0xABC, SECOND)
    assert commit(sink, page([small])) == 1
    assert commit(sink, page([{**small, "Id": small["Id"].upper(), "AccountId": small["AccountId"].upper()}])) == 0
    sink.close()


def test_a_full_run_brings_what_changed_without_its_time(way: Database) -> None:
    sink = way.opened()
    commit(sink, at(BEGAN - timedelta(days=1), *map(confirmed, range(4))))
    assert commit(sink, at(BEGAN, canceled(1), confirmed(2), full_since=BEGAN)) == 1
    sink.close()
    assert way.states() == {0: "Confirmed", 1: "Canceled", 2: "Confirmed", 3: "Confirmed"}


def test_a_full_run_follows_a_platform_that_went_back(way: Database) -> None:
    sink = way.opened()
    commit(sink, at(BEGAN - timedelta(days=1), confirmed(1), confirmed(2), confirmed(3)))
    older = [canceled(number, "2024-02-01T00:00:00Z") for number in (1, 2)]
    assert commit(sink, at(BEGAN, *older)) == 0
    assert commit(sink, at(BEGAN, *older, full_since=BEGAN)) == 2
    # What this run has brought already is replaced by newer versions alone.
    assert commit(sink, at(BEGAN, confirmed(1, "2024-01-01T00:00:00Z"), full_since=BEGAN)) == 0
    sink.close()
    assert way.states() == {1: "Canceled", 2: "Canceled", 3: "Confirmed"}


# States


def test_of_other_states_only_what_is_held_is_kept(way: Database) -> None:
    sink = way.opened()
    wanted = ("Confirmed", "Started")
    commit(sink, at(BEGAN, confirmed(1), confirmed(2), order(3, SECOND, State="Started"), states=wanted))
    later = "2024-03-02T00:00:00Z"
    new = commit(sink, at(BEGAN, canceled(1, later), canceled(4, later), order(5, later, State="New"), states=wanted))
    sink.close()
    assert new == 1
    assert way.states() == {1: "Canceled", 2: "Confirmed", 3: "Started"}


def test_an_order_that_leaves_its_state_within_a_batch_is_kept(way: Database) -> None:
    sink = way.opened()
    later = "2024-03-02T00:00:00Z"
    pages = [at(BEGAN, confirmed(1), canceled(2), states=("Confirmed",)), at(BEGAN, canceled(1, later), canceled(3))]
    assert commit(sink, *pages) == 1
    sink.close()
    assert way.states() == {1: "Canceled"}


# What is kept aside


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"VoucherId": ""}, "VoucherId should be a UUID"),
    ({"AccountId": "{11111111-1111-4111-a111-111111111111}"}, "AccountId should be a UUID"),
    ({"LinkedReservationId": "x" * 36}, "LinkedReservationId should be a UUID"),
    ({"CancelledUtc": ""}, "CancelledUtc should be an ISO 8601 time"),
    ({"CreatedUtc": "soon"}, "CreatedUtc should be an ISO 8601 time"),
    ({"CreatedUtc": "0000-01-01T00:00:00Z"}, "CreatedUtc should be a"),
    ({"CancelledUtc": "12024-01-01T00:00:00Z"}, "CancelledUtc should be a"),
]


@pytest.mark.parametrize(("changes", "reason"), MISFITS, ids=[f"{next(iter(c.items()))}" for c, _ in MISFITS])
def test_what_cannot_be_held_is_kept_aside_and_the_others_are_loaded(
    database: Database, changes: dict[str, Any], reason: str
) -> None:
    sink = database.opened()
    bad = order(9, SECOND, **changes)
    assert commit(sink, page([*map(confirmed, range(5)), bad, confirmed(5)])) == 6
    sink.close()
    assert sorted(database.states()) == [0, 1, 2, 3, 4, 5]
    ((id_, portfolio, said),) = database.rejected()
    assert (id_, portfolio) == (bad["Id"], "north")
    assert reason in said
    ((enterprise, stream, raw, when),) = database.execute(
        "SELECT enterprise_id, stream, raw, rejected_utc FROM fetcher_rejected"
    )
    assert (enterprise, stream) == ("22222222-2222-4222-a222-222222222222", "product_service_orders")
    assert msgspec.json.decode(raw) == bad
    assert when == datetime(2024, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize("text", ["a\0b", "\0", "end\0"])
def test_a_nul_is_kept_aside_by_the_database_that_cannot_hold_it(database: Database, text: str) -> None:
    sink = database.opened()
    commit(sink, page([order(1, SECOND, OriginDetails=text), order(2, SECOND)]))
    sink.close()
    if database.kind == "postgresql":
        assert sorted(database.states()) == [2]
        assert "NUL" in database.rejected()[0][2]
    else:
        rows = database.execute("SELECT origin_details FROM product_service_orders WHERE number = '1'")
        assert rows == [(text,)]


@pytest.mark.parametrize(
    "text", ["", "NULL", '"', "\\", '\\"', "a\n\\.\nb", "{}", "a,b", "'", "\r\n", "\t", "日本 🥐", "\ufeff\uffff", " "]
)
def test_text_arrives_as_it_was_sent(way: Database, text: str) -> None:
    sink = way.opened()
    commit(sink, page([order(1, SECOND, OriginDetails=text, State=text), order(2, SECOND, OriginDetails=None)]))
    sink.close()
    rows = way.execute("SELECT origin_details, state FROM product_service_orders ORDER BY number")
    assert rows == [(text, text), (None, "Confirmed")]


def rejecting(*rejected: RejectedOrder, portfolio: str = "north") -> Page:
    return msgspec.structs.replace(page([]), rejected=rejected, portfolio=portfolio)


def unreadable(id_: str | None, reason: str, raw: bytes = b"{}") -> RejectedOrder:
    return RejectedOrder(id=id_, service_id=SERVICE, reason=reason, raw=raw)


def test_what_is_rejected_again_is_there_once_with_the_latest_reason(database: Database) -> None:
    sink = database.opened()
    commit(sink, rejecting(unreadable("AB", "first"), unreadable("cd", "only"), unreadable(None, "torn", b"x\xff")))
    commit(sink, rejecting(unreadable("ab", "second"), unreadable(None, "torn again", b"x\xff")))
    commit(sink, rejecting(unreadable("ab", "elsewhere"), portfolio="south"))
    sink.close()
    names = [(id_.partition("-")[0], portfolio, reason) for id_, portfolio, reason in database.rejected()]
    assert names == [
        ("ab", "north", "second"),
        ("ab", "south", "elsewhere"),
        ("cd", "north", "only"),
        ("unreadable", "north", "torn again"),
    ]
    assert ("x\\xff",) in database.execute("SELECT raw FROM fetcher_rejected")


def test_what_is_mended_leaves_with_its_page_and_of_its_portfolio_alone(database: Database) -> None:
    sink = database.opened()
    commit(sink, rejecting(unreadable("AB", "a"), unreadable("cd", "b")))
    commit(sink, rejecting(unreadable("AB", "c"), portfolio="south"))
    mended = msgspec.structs.replace(sink.encode(page([confirmed(1)])), mended=["ab"])
    assert sink.commit(Batch(pages=[mended], progress={})) == {"north": 1}
    sink.close()
    assert database.rejected() == [("AB", "south", "c"), ("cd", "north", "b")]


def test_within_a_batch_the_last_page_says_whether_an_order_is_aside(database: Database) -> None:
    sink = database.opened()
    first = sink.encode(rejecting(unreadable("ab", "a")))
    second = sink.encode(rejecting(unreadable("cd", "b")))
    mended = EncodedPage(portfolio="north", rows=0, size=0, payload=None, mended=["ab", "cd"])
    sink.commit(Batch(pages=[first, mended, second], progress={"at": "1"}))
    sink.close()
    assert database.rejected() == [("cd", "north", "b")]


@pytest.mark.parametrize("id_", ["a\0b", "half \ud83d", "'; DROP TABLE fetcher_rejected; --"])
def test_an_id_that_no_database_can_hold_is_kept_aside_all_the_same(database: Database, id_: str) -> None:
    sink = database.opened()
    commit(sink, rejecting(unreadable(id_, "a")))
    commit(sink, rejecting(unreadable(id_, "b")))
    mended = EncodedPage(portfolio="north", rows=0, size=0, payload=None, mended=[id_.lower()])
    assert [reason for _, _, reason in _rejected_of(database, sink)] == ["b"]
    sink = database.opened()
    sink.commit(Batch(pages=[mended], progress={}))
    sink.close()
    assert database.rejected() == []


def _rejected_of(database: Database, sink: Sink) -> list[tuple[str, str, str]]:
    sink.close()
    return database.rejected()


def test_what_is_kept_aside_goes_with_its_commit_or_not_at_all(database: Database) -> None:
    sink = database.opened()
    good = sink.encode(rejecting(unreadable("ab", "a")))
    broken = msgspec.structs.replace(sink.encode(page([confirmed(1)])), payload=None)
    with pytest.raises((AttributeError, TypeError)):
        sink.commit(Batch(pages=[good, broken], progress={"at": "1"}))
    sink.close()
    assert database.rejected() == []
    assert database.states() == {}


# Tables that are not quite ours


@pytest.mark.parametrize(
    ("column", "value"), [("note text", "'mine'"), ("checked boolean DEFAULT true", "false"), ("x integer", "7")]
)
def test_a_column_that_the_user_added_keeps_its_values(way: Database, column: str, value: str) -> None:
    sink = way.opened()
    commit(sink, page(map(confirmed, range(5))))
    sink.close()
    name = column.partition(" ")[0]
    way.execute(f"ALTER TABLE product_service_orders ADD COLUMN {column}")
    way.execute(f"UPDATE product_service_orders SET {name} = {value} WHERE number IN ('1', '2')")
    sink = way.opened()
    assert commit(sink, page([canceled(1), confirmed(2, "2024-09-01T00:00:00Z"), confirmed(3), confirmed(7)])) == 3
    sink.close()
    mine = way.execute(f"SELECT number FROM product_service_orders WHERE {name} = {value} ORDER BY number")
    assert mine == [("1",), ("2",)]
    assert way.states() == {**dict.fromkeys([0, 2, 3, 4, 7], "Confirmed"), 1: "Canceled"}
    if "DEFAULT" in column:
        assert way.execute(f"SELECT {name} FROM product_service_orders WHERE number = '7'") == [(True,)]


@pytest.mark.parametrize("dropped", [["linked_reservation_id"], ["cancelled_utc"], ["voucher_id", "enterprise_id"]])
def test_a_column_of_a_later_version_is_added(database: Database, dropped: list[str]) -> None:
    sink = database.opened()
    commit(sink, page(map(confirmed, range(3))))
    sink.close()
    for name in dropped:
        database.execute(f"ALTER TABLE product_service_orders DROP COLUMN {name}")
    database.sink().probe()
    sink = database.opened()
    assert commit(sink, page([confirmed(3, LinkedReservationId=SERVICE, VoucherId=SERVICE)])) == 1
    sink.close()
    assert len(database.execute(f"SELECT {', '.join(dropped)} FROM product_service_orders")) == 4


def test_a_column_that_cannot_be_null_is_not_made_up(database: Database) -> None:
    database.opened().close()
    database.execute("ALTER TABLE product_service_orders DROP COLUMN state")
    for method in (database.sink().probe, database.sink().open):
        with pytest.raises(SinkError, match="has no column state"):
            method()


@pytest.fixture
def earlier(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Database]:
    """A database as version 1.0 left it."""

    def place(kind: str) -> Database:
        if kind == "duckdb":
            shutil.copy(EARLIER / "orders.duckdb", tmp_path)
            try:
                duckdb.connect(tmp_path / "orders.duckdb", read_only=True).close()
            except duckdb.Error:
                pytest.skip("the file is of a newer DuckDB than this one")
            return Database(kind, f"duckdb:{tmp_path / 'orders.duckdb'}")
        server = request.getfixturevalue("postgres")
        dump = (EARLIER / "orders.sql").read_text()
        server.execute("DROP SCHEMA IF EXISTS earlier CASCADE", dump)
        return Database(kind, f"{server.url}?schema=earlier")

    return place


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_what_version_1_0_left_goes_on(earlier: Callable[[str], Database], kind: str) -> None:
    database = earlier(kind)
    before = database.sink().holdings()
    assert before.rows is not None
    database.sink().probe()
    sink = database.opened()
    bad = order(0xBAD, SECOND, VoucherId="")
    assert commit(sink, page([confirmed(1), bad]), progress={"new": "1"}) == 1
    sink.close()
    after = database.sink().holdings()
    assert after.rows == {**before.rows, "north": before.rows.get("north", 0) + 1}
    assert after.progress == {**before.progress, "new": "1"}
    assert [id_ for id_, _, _ in database.rejected()] == [bad["Id"]]
