"""`config.toml` as values: decoded once, checked whole, secrets resolved late.

The rules that cannot be broken: a mistake names the place, the cause and the cure, and no message or repr shows a
value that might be a token. Tokens leave a `Token` only through `Secret.reveal`: where a request is signed, and on the
way to another process of ours.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from fetcher.connector.types import parse_utc
from fetcher.errors import ConfigError
from fetcher.planning.shards import ShardBy

T = TypeVar("T")

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Secret:
    """A token's text. Printing, logging or pickling it shows nothing."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(...)"

    def reveal(self) -> str:
        """The text itself: only for signing a request."""
        return self._text

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


class Token:
    """Where a token is to be had: `{ env = "NAME" }`, `{ file = "path" }`, or the text itself."""

    __slots__ = ("_kind", "_value")

    def __init__(self, source: str | Mapping[str, str]) -> None:
        """Take what the configuration says.

        Raises:
            ValueError: it is none of the three forms.
        """
        if isinstance(source, str):
            kind, value = "text", source
        elif len(source) == 1 and (kind := next(iter(source))) in ("env", "file") and source[kind]:
            value = source[kind]
        else:
            raise ValueError
        self._kind = kind
        self._value: str | Secret = Secret(value) if kind == "text" else value

    def __repr__(self) -> str:
        return f"Token({self._kind})"

    def beside(self, folder: Path) -> Token:
        """The same, with a file's path taken as relative to `folder`."""
        return Token({"file": _path_beside(folder, str(self._value))}) if self._kind == "file" else self

    def resolve(self, place: str) -> Secret:
        """Get it from where it is; surrounding white space is cut off.

        Raises:
            ConfigError: there is none, named by `place`.
        """
        if isinstance(self._value, Secret):
            return _checked(self._value.reveal(), place, "the text is", "Give the token's text")
        if self._kind == "env":
            text = os.environ.get(self._value)
            if text is None:
                cure = f"Set it, e.g.: export {self._value}=..."
                raise ConfigError(place, f"the environment variable {self._value} is not set", cure)
            return _checked(text, place, f"the environment variable {self._value} is", "Set it to the token")
        try:
            text = _decoded(expand_home(self._value, place).read_bytes())
        except OSError as error:
            cause = f"the token file {self._value} cannot be read ({error.strerror})"
            raise ConfigError(place, cause, "Write the token into it, readable for this user") from None
        except UnicodeError as error:
            cause = f"the token file {self._value} cannot be read ({error.args[-1]})"
            raise ConfigError(place, cause, "Save it as UTF-8, with the token and nothing else") from None
        return _checked(text, place, f"the token file {self._value} is", "Write the token into it")


def _checked(text: str, place: str, what: str, cure: str) -> Secret:
    text = text.strip()
    if not text:
        raise ConfigError(place, f"{what} empty", cure)
    if not text.isprintable() or " " in text:
        raise ConfigError(place, f"{what} no token: it holds white space or control characters", cure)
    return Secret(text)


def expand_home(path: str, place: str) -> Path:
    """`path`, with `~` and `~user` at its beginning as that user's home folder.

    Raises:
        ConfigError: there is none; `place` says where the path was given.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        cause = f"nobody knows the home folder for {Path(path).parts[0]}"
        raise ConfigError(place, cause, "Set HOME, or write the whole path") from None


def _path_beside(folder: Path, path: str) -> str:
    return path if path.startswith("~") else str(folder / path)


def _decoded(data: bytes) -> str:
    """A file's text: UTF-8, whether or not an editor put a byte order mark before it.

    Raises:
        UnicodeError: it is none; the last argument says what it seems to be.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise UnicodeError("it is UTF-16 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnicodeError("it is not UTF-8 text") from None


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; an unknown key is a mistake."""


class PlatformConfig(_Section, frozen=True, kw_only=True):
    """Where the platform is, and who calls it."""

    address: str = "https://api.mews.com"
    client: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "fetcher 1.0.0"
    client_token: Token
    ca_file: str | None = None
    """Certificates (PEM) that are trusted besides the system's; `None`: none."""


class PortfolioConfig(_Section, frozen=True, kw_only=True):
    """One access token, and what to load of what it can see (`None`: all)."""

    name: str
    access_token: Token
    enterprise_ids: list[str] | None = None
    service_ids: list[str] | None = None


class OrdersConfig(_Section, frozen=True, kw_only=True):
    """Which orders, by when they were updated and by state."""

    updated_from: Instant
    updated_until: Instant | None = None
    """`None`: the platform's now, at each run."""
    states: list[str] | None = None
    settle_seconds: NotNegative = 30.0
    """A run ends this long before the platform's now: what commits late there is not missed."""
    overlap_seconds: NotNegative = 300.0
    """The next run starts this long before the watermark."""


class LimitsConfig(_Section, frozen=True, kw_only=True):
    """How hard to press."""

    requests: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200
    """Of one access token, in any `per_seconds`."""
    per_seconds: Positive = 30.0
    walks: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    """Concurrent cursor walks of one portfolio."""
    page_size: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    window_months: Annotated[int, msgspec.Meta(ge=1, le=3)] = 3
    shard_by: ShardBy = "auto"
    request_seconds: Positive = 60.0
    """How long one request and its answer may take."""
    body_mebibytes: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    """How large an answer may be, decompressed."""
    opens_per_second: Positive = 1000.0
    """How fast requests are opened, all portfolios together."""
    outage_minutes: NotNegative = 15.0
    """How long a platform that is down is waited for."""
    processes: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    """How many processes load, each some of the access tokens; `None`: as many as the limits can keep busy."""


class SinkConfig(_Section, frozen=True, kw_only=True):
    """Where the orders go."""

    url: str | None = None

    def __repr__(self) -> str:
        scheme = (self.url or "").partition(":")[0]
        return f"SinkConfig({scheme}:...)"  # the rest may hold a password


class Config(_Section, frozen=True, kw_only=True):
    """The whole configuration."""

    platform: PlatformConfig
    portfolios: Annotated[list[PortfolioConfig], msgspec.Meta(min_length=1)]
    orders: OrdersConfig
    limits: LimitsConfig = LimitsConfig()
    sink: SinkConfig = SinkConfig()

    @property
    def sink_url(self) -> str:
        """Where the orders go.

        Raises:
            ConfigError: it does not say.
        """
        if self.sink.url is None:
            raise ConfigError("sink.url", "it is missing", 'Say where orders go, e.g. url = "jsonl:orders.jsonl"')
        return self.sink.url


def load_config(path: str | Path) -> Config:
    """Read and check a configuration file. Tokens are not looked up yet.

    Raises:
        ConfigError: a mistake, with the file, the key, what was expected, and what to do.
    """
    path = Path(path)
    try:
        text = _decoded(path.read_bytes())
    except OSError as error:
        raise ConfigError(str(path), f"it cannot be read ({error.strerror})", "Name a configuration file") from None
    except UnicodeError as error:
        cure = "Save it as UTF-8, or name a configuration file"
        raise ConfigError(str(path), f"it cannot be read ({error.args[-1]})", cure) from None
    if not text.strip():
        raise ConfigError(str(path), "it is empty", "Wait for whatever writes it, or name another file")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), f"it is no TOML: {_toml_reason(error)}", "Mend that line") from None
    try:
        return make_config(document, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.place}", error.cause, error.cure) from None


def make_config(document: Mapping[str, Any], folder: Path | None = None) -> Config:
    """Check a configuration that is already a mapping, as `tomllib` gives it; relative token files are in `folder`.

    Raises:
        ConfigError: a mistake, with the key, what was expected, and what to do.
    """
    try:
        config = msgspec.convert(document, Config, dec_hook=_decode_token)
    except msgspec.ValidationError as error:
        raise _mistake(str(error)) from None
    return check_config(_beside(config, folder) if folder is not None else config)


def resolved(config: Config) -> Config:
    """`config` with every token as its text, wherever it was to be had, and no path that depends on who reads it.

    Raises:
        ConfigError: there is none.
    """
    platform, portfolios = config.platform, config.portfolios
    client_token = platform.client_token.resolve("platform.client_token")
    return msgspec.structs.replace(
        config,
        platform=msgspec.structs.replace(
            platform, client_token=Token(client_token.reveal()), ca_file=ca_file_of(platform)
        ),
        portfolios=[
            msgspec.structs.replace(
                portfolio,
                access_token=Token(
                    portfolio.access_token.resolve(f"portfolios.{portfolio.name}.access_token").reveal()
                ),
            )
            for portfolio in portfolios
        ],
    )


def ca_file_of(platform: PlatformConfig) -> str | None:
    """The file of further certificates, with `~` expanded.

    Raises:
        ConfigError: there is no such home.
    """
    return None if platform.ca_file is None else str(expand_home(platform.ca_file, "platform.ca_file"))


def to_wire(config: Config) -> bytes:
    """A resolved configuration with its tokens in the clear: for another process of ours, and for nothing else.

    Of a file's name that is no text there is an approximation in it: other processes have no use for it.
    """
    url = config.sink.url
    sink = SinkConfig(url=None if url is None else url.encode("utf-8", "replace").decode())
    return msgspec.msgpack.encode(msgspec.structs.replace(config, sink=sink), enc_hook=_encode_token)


def from_wire(data: bytes) -> Config:
    """What `to_wire` was given."""
    return msgspec.msgpack.decode(data, type=Config, dec_hook=_decode_token)


def check_config(config: Config) -> Config:
    """`config`, with what types cannot say checked too, and ids and address in their one form.

    Raises:
        ConfigError: a mistake.
    """
    names: set[str] = set()
    portfolios: list[PortfolioConfig] = []
    for number, portfolio in enumerate(config.portfolios):
        place = f"portfolios[{number}]"
        if not re.fullmatch(r"[\w.-][\w. -]{0,63}", portfolio.name):
            what = "it is not made of 1 to 64 letters, digits, spaces and . _ -"
            raise ConfigError(f"{place}.name", what, "Name it simply: progress is kept under this name")
        if portfolio.name in names:
            raise ConfigError(f"{place}.name", f"{portfolio.name!r} is there twice", "Give each portfolio its own name")
        names.add(portfolio.name)
        ids = _ids(portfolio.enterprise_ids, f"{place}.enterprise_ids")
        services = _ids(portfolio.service_ids, f"{place}.service_ids")
        portfolios.append(msgspec.structs.replace(portfolio, enterprise_ids=ids, service_ids=services))
    return msgspec.structs.replace(
        config,
        platform=msgspec.structs.replace(config.platform, address=check_address(config.platform.address)),
        portfolios=portfolios,
        orders=_check_orders(config.orders),
    )


def check_address(address: str) -> str:
    """The platform's address without a trailing slash.

    Raises:
        ConfigError: it is no `https://host`, or `http://` to a host that is not this machine.
    """
    place = "platform.address"
    cure = "Write it like https://api.mews.com"
    try:
        parts = urlsplit(address)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        raise ConfigError(place, "it is no address", cure) from None
    if parts.scheme not in ("https", "http") or not parts.hostname or not port_ok:
        raise ConfigError(place, "it is no https:// address", cure)
    if parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/"):
        raise ConfigError(place, "it has more than scheme, host and port", cure)
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        cause = "plain http would send the tokens in the clear, so it is for this machine only"
        raise ConfigError(place, cause, "Write https:// instead")
    return f"{parts.scheme}://{parts.netloc}"


def parse_instant(text: str, place: str) -> datetime:
    """A time from the command line: ISO 8601; a date is its midnight, and without a zone it is UTC.

    Raises:
        ConfigError: it is none.
    """
    try:
        return parse_utc(text)
    except ValueError:
        raise ConfigError(place, "it is no time", "Write it like 2024-01-31 or 2024-01-31T12:00:00Z") from None


def _check_orders(orders: OrdersConfig) -> OrdersConfig:
    for key in ("updated_from", "updated_until"):
        instant = cast(datetime | None, getattr(orders, key))
        if instant is not None and instant.microsecond:
            raise ConfigError(f"orders.{key}", "it has a fraction of a second", "Write a whole second")
    start = orders.updated_from.astimezone(UTC)
    until = None if orders.updated_until is None else orders.updated_until.astimezone(UTC)
    if start.year < 1900 or (until is not None and until.year > 9000):
        raise ConfigError("orders", "its window lies outside of what the platform can know", "Narrow it")
    if until is not None and until <= start:
        cause = "the window ends before it begins: it is not after orders.updated_from"
        raise ConfigError("orders.updated_until", cause, "Make it later, or leave it out for: until now")
    if orders.states is not None and (not orders.states or not all(orders.states)):
        raise ConfigError("orders.states", "it is empty", "Leave it out for every state")
    states = None if orders.states is None else sorted(set(orders.states))
    return msgspec.structs.replace(orders, updated_from=start, updated_until=until, states=states)


def _ids(ids: list[str] | None, place: str) -> list[str] | None:
    if ids is None:
        return None
    if not ids:
        raise ConfigError(place, "it is empty", "Leave it out for all of them")
    checked: dict[str, None] = {}
    for number, id_ in enumerate(ids):
        try:
            checked[str(UUID(id_))] = None
        except ValueError:
            cure = "Ids look like 3fa85f64-5717-4562-b3fc-2c963f66afa6"
            raise ConfigError(f"{place}[{number}]", "it is no UUID", cure) from None
    return list(checked)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _beside(config: Config, folder: Path) -> Config:
    ca_file = config.platform.ca_file
    platform = msgspec.structs.replace(
        config.platform,
        client_token=config.platform.client_token.beside(folder),
        ca_file=None if ca_file is None else _path_beside(folder, ca_file),
    )
    portfolios = [
        msgspec.structs.replace(portfolio, access_token=portfolio.access_token.beside(folder))
        for portfolio in config.portfolios
    ]
    return msgspec.structs.replace(config, platform=platform, portfolios=portfolios)


def _decode_token(kind: type[T], value: Any) -> T:
    if kind is Token and (isinstance(value, str) or _is_table_of_text(value)):
        return cast(T, Token(value))
    raise ValueError


def _encode_token(value: Any) -> str:
    if isinstance(value, Token):
        return value.resolve("token").reveal()
    raise TypeError("only tokens are encoded here")


def _is_table_of_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in cast(dict[str, object], value).values())


_HOW_TO_GIVE_IT = 'Write { env = "NAME" }, { file = "path" }, or the token as text'
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "datetime": "a time with a zone, like 2023-01-01T00:00:00Z",
    "date": "a day",
    "null": "nothing",
}


def _mistake(message: str) -> ConfigError:
    """What msgspec found, as place, cause and cure; values never appear in its messages but for enumerations."""
    found = _PATH.search(message)
    path = found["path"] if found else ""
    reason = message[: found.start()] if found else message
    place = path or "the file"
    if match := re.fullmatch(r"Object contains unknown field `([^`]*)`", reason):
        return ConfigError(f"{path}.{match[1]}".lstrip("."), "there is no such key", "Remove it, or mend its spelling")
    if match := re.fullmatch(r"Object missing required field `([^`]*)`", reason):
        cure = _CURES.get(match[1], "Add it")
        return ConfigError(f"{path}.{match[1]}".lstrip("."), "it is missing", cure)
    if path.endswith("token") or not reason:
        return ConfigError(place, "it is no token", _HOW_TO_GIVE_IT)
    if reason.startswith("Invalid enum value"):
        return ConfigError(place, "it is none of the words that are known", 'Write "enterprise" or "portfolio"')
    if match := re.fullmatch(r"Expected `([^`]*)`, got `([^`]*)`", reason):
        expected, got = (_in_words(kinds) for kinds in match.groups())
        return ConfigError(place, f"expected {expected}, found {got}", _VALUE_CURES.get(place, "Mend the value"))
    if match := re.fullmatch(r"Expected `([^`]*)` (.*)", reason):
        return ConfigError(
            place, f"expected {_in_words(match[1])} {match[2]}", _VALUE_CURES.get(place, "Mend the value")
        )
    return ConfigError(place, reason, "Mend the value")


_CURES = {
    "portfolios": 'Add a [[portfolios]] table with name = "..." and access_token = { env = "NAME" }',
    "access_token": _HOW_TO_GIVE_IT,
    "client_token": _HOW_TO_GIVE_IT,
    "updated_from": "Say from when on, e.g. updated_from = 2023-01-01T00:00:00Z",
    "orders": "Add an [orders] table with updated_from = 2023-01-01T00:00:00Z",
    "platform": 'Add a [platform] table with client_token = { env = "MEWS_CLIENT_TOKEN" }',
}

_VALUE_CURES = {
    "limits.processes": "Write 1 to 64, or leave it out for as many as the limits can keep busy",
}


def _in_words(kinds: str) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds.split(" | ") if kind != "null" or kinds == "null")


def _toml_reason(error: tomllib.TOMLDecodeError) -> str:
    """Where it is no TOML: the parser's text up to what it may quote."""
    match = re.search(r"\(at [^)]*\)", str(error))
    return f"a mistake {match[0]}" if match else "a mistake"
