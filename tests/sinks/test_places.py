"""What can be known of a sink before its packages are imported, and before it is opened."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from fetcher.errors import ConfigError, MissingExtraError
from fetcher.sinks import LaterSink, later_sink, make_sink
from fetcher.sinks.places import is_blank
from tests.http import site


@pytest.mark.parametrize("url", ["jsonl:o.jsonl", "jsonl:o.jsonl.gz", "parquet:o", "parquet:o/", "duckdb:o.duckdb"])
def test_files_are_blank_until_something_was_loaded_into_them(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load() -> None:
        async with site() as here:
            assert (await here.run(url)).complete

    monkeypatch.chdir(tmp_path)
    assert is_blank(url)
    anyio.run(load)
    assert not is_blank(url)
    assert make_sink(url).holdings().progress


def test_files_are_not_blank_as_long_as_their_progress_lies_beside(tmp_path: Path) -> None:
    (tmp_path / ".o.jsonl.fetcher").touch()
    assert not is_blank(f"jsonl:{tmp_path}/o.jsonl")
    assert is_blank(f"jsonl:{tmp_path}/other.jsonl")


@pytest.mark.parametrize(
    "url", ["postgresql://h/d", "postgres://h/d", "parquet:.", "duckdb:../o.duckdb", "jsonl:", "jsonl:none/o", "odd:"]
)
def test_what_nobody_can_tell_is_not_taken_for_blank(url: str) -> None:
    assert not is_blank(url)


@pytest.mark.parametrize("url", ["null:", "jsonl:-"])
def test_what_keeps_no_progress_is_blank(url: str) -> None:
    assert is_blank(url)


@pytest.mark.parametrize(("url", "package"), [("duckdb:o.duckdb", "duckdb"), ("parquet:o", "pyarrow")])
def test_a_package_that_is_missing_is_told_before_the_sink_is_made(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert later_sink(url) == LaterSink(url)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match="pip install"):
        later_sink(url)


@pytest.mark.parametrize("url", ["duckdb:", "duckdb::memory:", "parquet:", "parquet:-", "jsonl:", "odd:o"])
def test_a_mistake_in_the_url_is_told_before_the_sink_is_made(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sink\.url"):
        later_sink(url)
