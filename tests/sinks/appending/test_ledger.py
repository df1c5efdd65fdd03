"""What file sinks remember: versions by portfolio, what is held, what is kept aside; and what 1.0 left them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec import structs

from fetcher.errors import SinkError
from fetcher.sinks import Batch, Sink, make_sink
from tests.orders import order, page
from tests.sinks.test_sinks import commit

AT = "2024-02-01T00:00:00Z"
"""After what the pages call settled: it may come again."""


class FileCase:
    """A JSONL file or a Parquet folder, opened as often as wanted."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.place = folder / ("orders" if kind == "parquet" else f"orders.{kind}")
        self.url = f"{kind.partition('.')[0]}:{self.place}"
        self.aside = folder / "orders.rejected.jsonl"

    def opened(self) -> Sink:
        sink = make_sink(self.url)
        sink.open()
        return sink

    def states(self) -> list[str]:
        """The state of each row, in the order in which they came."""
        if self.kind == "parquet":
            parts = sorted(self.place.glob("*.parquet"))
            return [row["state"] for part in parts for row in pq.read_table(part, columns=["state"]).to_pylist()]
        return [json.loads(line)["State"] for line in self.place.read_bytes().splitlines()]


@pytest.fixture(params=["jsonl", "parquet"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> FileCase:
    return FileCase(request.param, tmp_path)


def one(state: str, updated: str = AT, number: int = 1, **changes: Any) -> dict[str, Any]:
    return order(number, updated, State=state, **changes)


def test_two_changes_within_one_second_are_two_versions(case: FileCase) -> None:
    sink = case.opened()
    assert [commit(sink, page([one(state)])) for state in ("Confirmed", "Confirmed", "Started", "Started")] == [
        1, 0, 1, 0,
    ]  # fmt: skip
    sink.close()
    sink = case.opened()  # a later run reads them again
    assert commit(sink, page([one("Started")], settled="2024-03-01T00:00:00")) == 0
    assert commit(sink, page([one("Processed")], settled="2024-03-01T00:00:00")) == 1
    sink.close()
    assert case.states() == ["Confirmed", "Started", "Processed"]


def test_a_change_there_and_back_within_one_second_leaves_the_last_one_last(case: FileCase) -> None:
    sink = case.opened()
    commit(sink, page([one("Confirmed")]), page([one("Started")]), page([one("Confirmed")]))
    sink.close()
    assert case.states() == ["Confirmed", "Started", "Confirmed"]


@pytest.mark.parametrize("updated", [AT, "2023-05-01T00:00:00Z"])
def test_a_walk_that_starts_again_brings_what_changed_without_another_time(case: FileCase, updated: str) -> None:
    sink = case.opened()
    commit(sink, page([one("Confirmed", updated, number) for number in range(3)]))
    sink.close()
    sink = case.opened()
    again = [one("Confirmed", updated, 0), one("Canceled", updated, 1), one("Confirmed", updated, 2)]
    assert commit(sink, page(again, repeats=True)) == 1
    assert commit(sink, page(again, repeats=True)) == 0
    sink.close()
    assert case.states() == ["Confirmed"] * 3 + ["Canceled"]


def test_what_the_files_tell_to_be_a_repeat_is_remembered_for_the_walks_that_may_bring_it_again(case: FileCase) -> None:
    sink = case.opened()
    assert commit(sink, page([one("Confirmed")], settled="2024-03-01T00:00:00")) == 1  # the clock was ahead
    sink.close()
    for repeats in (True, False, False):  # the next run reads it again, and so do those that come soon after
        sink = case.opened()
        assert commit(sink, page([one("Confirmed")], settled="2024-01-31T00:00:00", repeats=repeats)) == 0
        sink.close()
    assert case.states() == ["Confirmed"]


def test_ids_in_capitals_are_the_same_ids(case: FileCase) -> None:
    sink = case.opened()
    commit(sink, page([one("Confirmed")]))
    assert commit(sink, page([one("Confirmed", Id=one("x")["Id"].upper())])) == 0
    sink.close()


def test_of_other_states_only_what_is_held_is_followed(case: FileCase) -> None:
    sink = case.opened()
    commit(sink, page([one("Confirmed", "2023-05-01T00:00:00Z"), one("Confirmed", AT, 2)]))
    sink.close()
    sink = case.opened()
    later = [
        one("Canceled", "2024-05-01T00:00:00Z"),
        one("Canceled", "2024-05-01T00:00:00Z", 3),
        one("Confirmed", AT, 4),
    ]
    assert commit(sink, structs.replace(page(later), states=("Confirmed",))) == 2
    assert commit(sink, structs.replace(page(later), states=("Confirmed",))) == 0
    sink.close()
    assert case.states() == ["Confirmed", "Confirmed", "Canceled", "Confirmed"]


def recent(folder: Path) -> int:
    (path,) = [*folder.glob(".orders.*fetcher"), *folder.glob(".orders.fetcher")][:1]
    db = sqlite3.connect(path)
    count = db.execute("SELECT count(*) FROM recent").fetchone()[0]
    db.close()
    return count


def test_what_is_remembered_belongs_to_a_portfolio_and_goes_with_its_walks(case: FileCase) -> None:
    sink = case.opened()
    north = page([one("Confirmed", f"2024-02-0{day}T00:00:00Z", day) for day in range(1, 9)])
    south = structs.replace(
        page([one("Confirmed", f"2024-02-0{day}T00:00:00Z", 10 + day) for day in range(1, 9)]), portfolio="south"
    )
    commit(sink, north, south)
    # South was taken out of the configuration: it stays as it is, and north's does not grow for it.
    commit(sink, progress={"a": "1"}, forget_before={"north": "2024-02-05T00:00:00"})
    sink.close()
    assert recent(case.place.parent) == 4 + 8
    sink = case.opened()
    commit(sink, progress={"a": "2"}, forget_before={"north": "2025-01-01T00:00:00", "south": "2025-01-01T00:00:00"})
    sink.close()
    assert recent(case.place.parent) == 0


def test_the_portfolio_s_page_is_told_by_what_that_portfolio_remembers(case: FileCase) -> None:
    sink = case.opened()
    commit(sink, page([one("Confirmed")]))
    commit(sink, progress={"a": "1"}, forget_before={"south": "2030-01-01T00:00:00"})
    assert commit(sink, page([one("Confirmed")])) == 0
    sink.close()


def test_what_cannot_be_kept_is_aside_in_the_same_commit_and_goes_when_it_is_mended(case: FileCase) -> None:
    spoiled = one("Confirmed", number=2, UpdatedUtc="soon")
    sink = case.opened()
    good, bad = page([one("Confirmed")]), page([one("Confirmed", number=3), spoiled])
    encoded = [sink.encode(good), sink.encode(bad)]
    assert [row.id for row in encoded[1].rejected] == ([spoiled["Id"]])
    sink.commit(Batch(pages=encoded, progress={}))
    (line,) = case.aside.read_bytes().splitlines()
    told = json.loads(line)
    assert (told["id"], told["portfolio"], told["stream"]) == (spoiled["Id"], "north", "product_service_orders")
    assert told["enterprise_id"] == "22222222-2222-4222-a222-222222222222"
    assert json.loads(told["raw"]) == spoiled
    assert "UpdatedUtc" in told["reason"]
    assert "soon" not in told["reason"]
    sink.close()
    case.aside.unlink()  # somebody removed it: it is shown again
    sink = case.opened()
    assert case.aside.read_bytes() == line + b"\n"
    mended = structs.replace(sink.encode(page([one("Confirmed", number=2)])), mended=[spoiled["Id"]])
    sink.commit(Batch(pages=[mended], progress={}))
    assert not case.aside.exists()
    sink.close()
    assert len(case.states()) == 3


def test_an_order_is_aside_once_with_what_it_said_last(case: FileCase) -> None:
    sink = case.opened()
    for number in ("soon", "later", "later"):
        commit(sink, page([one("Confirmed", UpdatedUtc=number)]))
    assert [json.loads(json.loads(line)["raw"])["UpdatedUtc"] for line in case.aside.read_bytes().splitlines()] == [
        "later"
    ]
    sink.close()


@pytest.mark.parametrize(
    ("changes", "jsonl_keeps_it"),
    [({"Number": 7}, True), ({"CancelledUtc": ""}, True), ({"Id": None}, False), ({"ServiceId": None}, False)],
)
def test_a_line_is_kept_if_one_can_tell_which_version_of_what_it_is(
    case: FileCase, changes: dict[str, Any], jsonl_keeps_it: bool
) -> None:
    sink = case.opened()
    encoded = sink.encode(page([one("Confirmed"), one("Confirmed", number=2, **changes)]))
    keeps = jsonl_keeps_it and case.kind == "jsonl"
    assert (encoded.rows, len(encoded.rejected)) == ((2, 0) if keeps else (1, 1))
    sink.commit(Batch(pages=[encoded], progress={}))
    if keeps:
        assert json.loads(case.place.read_bytes().splitlines()[1]) == one("Confirmed", number=2, **changes)
        assert commit(sink, page([one("Confirmed", number=2, **changes)])) == 0
    sink.close()


@pytest.mark.parametrize("state", [None, 5, {"Name": "Confirmed"}])
def test_where_states_are_asked_for_a_line_whose_state_cannot_be_told_is_kept_aside(state: Any, tmp_path: Path) -> None:
    sink = FileCase("jsonl", tmp_path).opened()
    asked = structs.replace(page([one(state), one("Started", number=2, Number=2)]), states=("Started",))
    encoded = sink.encode(asked)
    assert [row.id for row in encoded.rejected] == [one("")["Id"]]
    assert sum(sink.commit(Batch(pages=[encoded], progress={})).values()) == 1  # it tells its state, if not its number
    sink.close()


def test_a_file_of_that_name_that_is_somebody_s_own_is_not_touched(case: FileCase) -> None:
    case.aside.write_text("mine\n")
    sink = case.opened()
    commit(sink, page([one("Confirmed")]))
    sink.close()
    case.opened().close()
    assert case.aside.read_text() == "mine\n"


EARLIER = Path(__file__).parents[2] / "earlier" / "1.0"


def test_in_a_parquet_folder_is_nothing_but_data_files(tmp_path: Path) -> None:
    case = FileCase("parquet", tmp_path)
    sink = case.opened()
    commit(sink, page([one("Confirmed")]), page([one("Confirmed", number=2, UpdatedUtc="soon")]))
    assert [file.name for file in case.place.iterdir()] == ["part-000001.parquet"]
    sink.close()
    assert [file.name for file in case.place.iterdir()] == ["part-000001.parquet"]


def test_an_older_parquet_folder_is_taken_over(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "orders", tmp_path / "orders")
    case = FileCase("parquet", tmp_path)
    before = make_sink(case.url).holdings()
    assert before.rows is not None
    case.opened().close()
    assert {file.suffix for file in case.place.iterdir()} == {".parquet"}
    assert make_sink(case.url).holdings() == before
    (case.place / "part-000002.parquet").unlink()
    sink = make_sink(case.url)
    with pytest.raises(SinkError, match="not there any more"):
        sink.open()
    sink.close()


def test_a_parquet_folder_whose_parent_cannot_be_written_to_keeps_its_ledger_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = FileCase("parquet", tmp_path)
    case.place.mkdir()
    monkeypatch.setattr(
        "fetcher.sinks.appending.parquet.ParquetSink._can_be_beside", lambda self: False
    )  # we may be root
    sink = case.opened()
    commit(sink, page([one("Confirmed")]), progress={"a": "1"})
    sink.close()
    assert sorted(file.name for file in case.place.iterdir()) == [".fetcher", "part-000001.parquet"]
    monkeypatch.undo()
    sink = make_sink(case.url)
    assert sink.open() == {"a": "1"}  # and moves out once it can
    sink.close()
    assert [file.name for file in case.place.iterdir()] == ["part-000001.parquet"]


def test_parquet_files_that_are_all_gone_are_loaded_anew(tmp_path: Path) -> None:
    case = FileCase("parquet", tmp_path)
    sink = case.opened()
    commit(sink, page([one("Confirmed")]), progress={"a": "1"})
    sink.close()
    shutil.rmtree(case.place)
    sink = make_sink(case.url)
    assert sink.open() == {}
    assert commit(sink, page([one("Confirmed")])) == 1
    sink.close()


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_what_version_1_0_remembered_is_told_by_its_content_from_then_on(kind: str, tmp_path: Path) -> None:
    for source in EARLIER.glob("*" if kind == "parquet" else f"*orders.{kind}*"):
        if source.is_file():
            shutil.copy(source, tmp_path)
    shutil.copytree(EARLIER / "orders", tmp_path / "orders")
    case = FileCase(kind, tmp_path)
    lines = (EARLIER / "orders.jsonl").read_bytes().splitlines()
    newest = max((json.loads(line) for line in lines), key=lambda order: order["UpdatedUtc"])
    sink = case.opened()
    assert commit(sink, page([newest], settled="2026-03-31T12:10:00")) == 0
    assert commit(sink, page([{**newest, "State": "Requested"}], settled="2026-03-31T12:10:00")) == 1
    sink.close()


def test_what_version_1_0_remembered_of_several_portfolios_goes_when_all_of_them_have_no_need_of_it(
    tmp_path: Path,
) -> None:
    for name in ("orders.jsonl", ".orders.jsonl.fetcher"):
        shutil.copy(EARLIER / name, tmp_path)
    case = FileCase("jsonl", tmp_path)
    owners = make_sink(case.url).holdings().rows
    assert owners is not None
    assert len(owners) == 2, "whose it is the file does not tell"
    sink = case.opened()
    for owner in owners:
        commit(sink, progress={"a": "1"}, forget_before={owner: "2030-01-01T00:00:00"})
        assert recent(tmp_path) > 0
    commit(sink, progress={"a": "1"}, forget_before=dict.fromkeys(owners, "2030-01-01T00:00:00"))
    assert recent(tmp_path) == 0
    sink.close()
