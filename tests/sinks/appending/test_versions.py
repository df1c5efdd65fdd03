"""What makes a version: time and content, however they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fetcher.sinks.appending.versions import normal_time, version_of_line
from tests.orders import SERVICE, order

ONE = order(1, "2024-01-01T00:00:00Z", BookerId=None, State="Confirmed")


def line(**changes: Any) -> bytes:
    return json.dumps({**ONE, **changes}).encode()


@pytest.mark.parametrize(
    "same",
    [
        json.dumps(ONE, indent=2).replace("\n", " ").encode(),
        json.dumps(dict(reversed(ONE.items()))).encode(),
        json.dumps(ONE, ensure_ascii=False).encode(),
        json.dumps({name: value for name, value in ONE.items() if name != "BookerId"}).encode(),
        line(UpdatedUtc="2024-01-01T00:00:00.0000000Z", CreatedUtc="2020-01-01T00:00:00.000Z"),
        line(Id=ONE["Id"].upper(), ServiceId=SERVICE.upper()),
    ],
)
def test_the_same_content_is_the_same_version_however_it_is_written(same: bytes) -> None:
    assert version_of_line(same) == msgspec_like(version_of_line(line()), same)


def msgspec_like(version: Any, same: bytes) -> Any:
    """`version`, with the time as `same` has it: text for comparing, no part of what makes a version."""
    return type(version)(version.key, version.content, version.id, json.loads(same)["UpdatedUtc"], version.state)


@pytest.mark.parametrize(
    "other",
    [
        line(State="Canceled"),
        line(Number="01"),
        line(OriginDetails="ünï"),
        line(Options={**ONE["Options"], "ConnectorCheckIn": True}),
        line(Tier="gold"),
        line(BookerId=SERVICE),
    ],
)
def test_other_content_under_the_same_time_is_another_version_of_the_same_order_and_time(other: bytes) -> None:
    first, second = version_of_line(line()), version_of_line(other)
    assert (first.key, first.id) == (second.key, second.id)
    assert first.content != second.content


@pytest.mark.parametrize("value", ["1" * 5000, "-" + "9" * 100_000])
def test_a_property_that_no_reader_takes_is_part_of_the_content_as_it_came(value: str) -> None:
    odd = line()[:-1] + f',"Odd":{value}}}'.encode()
    assert version_of_line(odd).content == version_of_line(odd + b"\n").content != version_of_line(line()).content
    assert (version_of_line(odd).key, version_of_line(odd).state) == (version_of_line(line()).key, "Confirmed")


def test_another_time_is_another_version() -> None:
    assert version_of_line(line()).key != version_of_line(line(UpdatedUtc="2024-01-01T00:00:01Z")).key


def test_an_order_that_only_a_lenient_reader_takes_has_a_version_too() -> None:
    raw = line(Number="@").replace(b"@", b"\\ud83d")
    version = version_of_line(raw)
    assert version.key == version_of_line(line()).key
    assert version == version_of_line(raw + b"\n")
    assert version.content == version_of_line(raw).content != version_of_line(line()).content


def test_a_line_that_is_no_order_is_none() -> None:
    with pytest.raises(ValueError, match="order"):
        version_of_line(b'{"a": 1}')


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00"),
        ("2024-01-01T00:00:00.500Z", "2024-01-01T00:00:00.5"),
        ("2024-01-01T00:00:00.1234567Z", "2024-01-01T00:00:00.123456"),
        ("2024-01-01T00:00:00.0000000+00:00", "2024-01-01T00:00:00"),
    ],
)
def test_a_time_has_one_form(text: str, normal: str) -> None:
    assert normal_time(text) == normal
