"""Every mistake names its place, its cause and its cure, and no message shows a value."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fetcher.config import Token, ca_file_of, check_address, load_config, make_config, parse_instant, resolved
from fetcher.errors import ConfigError
from fetcher.sinks import make_sink

GOOD: dict[str, Any] = {
    "platform": {"client_token": "C" * 8},
    "portfolios": [{"name": "north", "access_token": {"env": "TOKEN"}}],
    "orders": {"updated_from": datetime(2023, 1, 1, tzinfo=UTC)},
    "sink": {"url": "null:"},
}
ID = "3fa85f64-5717-4562-b3fc-2c963f66afa6"


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    *folders, last = path.split(".")
    place: Any = document
    for name in folders:
        place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def test_what_is_not_said_has_a_sensible_default() -> None:
    config = make_config(GOOD)
    assert (config.limits.requests, config.limits.per_seconds, config.limits.walks) == (200, 30, 16)
    assert config.platform.address == "https://api.mews.com"
    assert config.portfolios[0].enterprise_ids is None


def test_the_example_in_the_repository_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEWS_CLIENT_TOKEN", "one")
    monkeypatch.setenv("MEWS_ACCESS_TOKEN", "two")
    config = load_config(Path(__file__).parent.parent / "config.toml")
    assert config.portfolios[0].access_token.resolve("x").reveal() == "two"
    assert config.platform.address == "https://api.mews-demo.com"


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("limits.requests", "many", "limits.requests"),
        ("limits.requests", 0, "limits.requests"),
        ("limits.page_size", 1001, "limits.page_size"),
        ("limits.window_months", 4, "limits.window_months"),
        ("limits.shard_by", "SECRET", "limits.shard_by"),
        ("limits.speed", 3, "limits.speed"),
        ("extra", {}, "extra"),
        ("orders.updated_from", None, "orders.updated_from"),
        ("orders.updated_from", datetime(2023, 1, 1), "orders.updated_from"),
        ("orders.updated_from", datetime(2023, 1, 1, microsecond=1, tzinfo=UTC), "orders.updated_from"),
        ("orders.updated_until", datetime(2022, 1, 1, tzinfo=UTC), "orders.updated_until"),
        ("orders.states", [], "orders.states"),
        ("portfolios", [], "portfolios"),
        ("portfolios.0.name", "a/b", "portfolios[0].name"),
        ("portfolios.0.access_token", 3, "portfolios[0].access_token"),
        ("portfolios.0.access_token", {"envy": "SECRET"}, "portfolios[0].access_token"),
        ("portfolios.0.enterprise_ids", ["SECRET"], "portfolios[0].enterprise_ids[0]"),
        ("portfolios.0.service_ids", [], "portfolios[0].service_ids"),
        ("platform.client_token", None, "platform.client_token"),
        ("platform.address", "http://api.mews.com", "platform.address"),
        ("platform.address", "https://SECRET:x@api.mews.com", "platform.address"),
        ("platform.address", "ftp://x", "platform.address"),
    ],
)
def test_a_mistake_names_its_place_and_a_cure(path: str, value: Any, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(changed(path, value))
    assert caught.value.place == place
    assert caught.value.cure
    assert "SECRET" not in str(caught.value)


def test_two_portfolios_need_two_names() -> None:
    with pytest.raises(ConfigError, match="twice"):
        make_config({**GOOD, "portfolios": GOOD["portfolios"] * 2})


def test_ids_have_one_form_and_come_once() -> None:
    config = make_config(changed("portfolios.0.service_ids", [ID.upper(), ID]))
    assert config.portfolios[0].service_ids == [ID]


@pytest.mark.parametrize("address", ["http://localhost:1", "http://127.0.0.1:8080", "http://[::1]:80", "https://x.y/"])
def test_plain_http_is_for_this_machine(address: str) -> None:
    assert check_address(address) == address.rstrip("/")


def test_a_file_that_is_no_toml_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('access_token = "SECRET\n')
    with pytest.raises(ConfigError, match="line 1") as caught:
        load_config(path)
    assert "SECRET" not in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config("nowhere.toml")


def test_a_token_is_looked_up_late_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("FROM-FILE\n")
    monkeypatch.setenv("TOKEN", " FROM-ENV ")
    for source, text in (("TEXT", "TEXT"), ({"env": "TOKEN"}, "FROM-ENV"), ({"file": "token"}, "FROM-FILE")):
        token = Token(source).beside(tmp_path)
        secret = token.resolve("somewhere")
        assert secret.reveal() == text
        assert text not in repr((token, secret))
        with pytest.raises(TypeError):
            pickle.dumps(secret)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ({"env": "UNSET"}, "not set"),
        ({"file": "/nowhere/token"}, "cannot be read"),
        ("a b", "no token"),
        (" ", "empty"),
    ],
)
def test_a_token_that_is_not_there_is_told(source: Any, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause) as caught:
        Token(source).resolve("portfolios.north.access_token")
    assert caught.value.place == "portfolios.north.access_token"


def test_a_password_in_the_sink_is_not_in_the_configuration_s_repr() -> None:
    config = make_config(changed("sink.url", "postgresql://u:SECRET@h/d"))
    assert "SECRET" not in repr(config)


def test_times_on_the_command_line_may_be_days() -> None:
    assert parse_instant("2024-02-29", "--from") == datetime(2024, 2, 29, tzinfo=UTC)
    with pytest.raises(ConfigError, match="--until"):
        parse_instant("tomorrow", "--until")


TEXT = """
[platform]
client_token = { file = "token" }
[[portfolios]]
name = "Zürich"
access_token = "AAAA"
[orders]
updated_from = 2023-01-01T00:00:00Z
"""


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_mistake(mark: bytes, ends: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(mark + TEXT.replace("\n", ends).encode())
    (tmp_path / "token").write_bytes(mark + f"FROM-FILE{ends}".encode())
    config = resolved(load_config(tmp_path / "config.toml"))
    assert config.portfolios[0].name == "Zürich"
    assert config.platform.client_token.resolve("x").reveal() == "FROM-FILE"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_is_told_as_that(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(TEXT.encode(encoding))
    with pytest.raises(ConfigError, match="Save it as UTF-8") as caught:
        load_config(tmp_path / "config.toml")
    assert ("it is UTF-16 text" in str(caught.value)) == (encoding != "latin-1")
    (tmp_path / "token").write_bytes("SECRÉT".encode(encoding))
    with pytest.raises(ConfigError, match="Save it as UTF-8") as caught:
        Token({"file": str(tmp_path / "token")}).resolve("platform.client_token")
    assert caught.value.place == "platform.client_token"
    assert "SECR" not in str(caught.value)


def test_a_tilde_is_the_home_folder_whatever_folder_the_configuration_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("AT-HOME")
    (tmp_path / "config.toml").write_text(
        TEXT.replace('"token"', '"~/token"').replace("[platform]", '[platform]\nca_file = "~/ca.pem"'), "utf-8"
    )
    config = load_config(tmp_path / "config.toml")
    assert config.platform.client_token.resolve("x").reveal() == "AT-HOME"
    assert ca_file_of(config.platform) == str(tmp_path / "home" / "ca.pem")


@pytest.mark.parametrize(("given", "found"), [("ca.pem", "ca.pem"), ("/etc/ca.pem", "/etc/ca.pem"), ("../x", "../x")])
def test_a_ca_file_is_relative_to_the_configuration(given: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(TEXT.replace("[platform]", f'[platform]\nca_file = "{given}"'), "utf-8")
    assert ca_file_of(load_config(tmp_path / "config.toml").platform) == str(tmp_path / found)


@pytest.mark.parametrize("home", ["~nobody-of-that-name", "~"])
@pytest.mark.parametrize("sink", ["jsonl:{}/x", "parquet:{}/x", "duckdb:{}/x", "jsonl:{}/x.gz"])
def test_a_home_that_nobody_knows_is_told(sink: str, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"duckdb": "duckdb", "parquet": "pyarrow"}.get(sink.partition(":")[0], "json"))
    without_home(monkeypatch)
    with pytest.raises(ConfigError, match=f"home folder for {home}\\.") as caught:
        make_sink(sink.format(home))
    assert caught.value.place == "sink.url"
    with pytest.raises(ConfigError, match="Set HOME") as caught:
        Token({"file": f"{home}/x"}).beside(Path("/etc")).resolve("platform.client_token")
    assert caught.value.place == "platform.client_token"
    with pytest.raises(ConfigError, match="Set HOME"):
        ca_file_of(make_config(changed("platform.ca_file", f"{home}/x")).platform)


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is in no list."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987_654)
