"""One request, over real sockets: what comes back is an answer, or an error that says what is known, and what to do."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from fetcher.connector.room import Room
from fetcher.connector.route import parse_proxy
from fetcher.connector.transport import HttpTransport, Reply, TransportError
from fetcher.errors import ConfigError
from tests.connector.servers import answering, page, proxying, serving

PASSWORD = "bWU6UEBzczpTRUNSRVQ="
"""me:P@ss:SECRET, as Basic has it."""


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_tls(authority: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1")), **options).configure_cert(context)
    return context


def closed_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


def unheard(_status: int, _headers: Mapping[str, str]) -> None:
    pass


async def post(address: str, *, seconds: float = 10, body_bytes: int = 1000, ca_file: str | None = None) -> Reply:
    async with HttpTransport(address, seconds=seconds, body_bytes=body_bytes, ca_file=ca_file) as transport:
        return await transport.post("x", b"{}", unheard)


async def failing(address: str, **options: Any) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await post(address, **options)
    assert "SECRET" not in f"{caught.value!r} {caught.value.cure}"
    return caught.value


def run(check: Callable[[], Awaitable[None]]) -> None:
    anyio.run(check)


# An answer, and when it is heard of


def test_an_answer_is_heard_before_its_body_has_come() -> None:
    rest = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nRequest-Id: r-7\r\nContent-Length: 4\r\n\r\n[1")
        await writer.drain()
        await rest.wait()
        writer.write(b",2")
        await writer.drain()

    async def check() -> None:
        told: list[tuple[int, str]] = []

        def heard(status: int, headers: Mapping[str, str]) -> None:
            told.append((status, headers["request-id"]))
            rest.set()  # only now the rest is sent: without being heard, there is no answer

        async with serving(serve) as port:
            async with HttpTransport(f"http://127.0.0.1:{port}", seconds=5, body_bytes=100) as transport:
                reply = await transport.post("x", b"{}", heard)
        assert told == [(200, "r-7")]
        assert reply.body == b"[1,2"

    run(check)


def test_no_more_connections_are_open_than_are_allowed() -> None:
    open_now: set[asyncio.StreamWriter] = set()
    most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        open_now.add(writer)
        most = max(most, len(open_now))
        try:
            await reader.readuntil(b"{}")
            writer.write(page(b"[]", "Connection: close"))
            await writer.drain()
        finally:
            open_now.discard(writer)

    async def check() -> None:
        async with serving(serve) as port:
            address = f"http://127.0.0.1:{port}"
            async with HttpTransport(address, seconds=5, body_bytes=100, connections=2) as transport:
                replies = await asyncio.gather(*(transport.post("x", b"{}", unheard) for _ in range(12)))
        assert [reply.body for reply in replies] == [b"[]"] * 12

    run(check)
    assert most == 2


# How long it may take


async def _silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.get_running_loop().create_future()


def test_a_connection_that_is_not_made_in_time_is_unsent() -> None:
    async def check() -> None:
        async with serving(_silent) as port:  # accepts, and does not begin with TLS
            error = await failing(f"https://127.0.0.1:{port}", seconds=0.1)
        assert (error.kind, error.detail) == ("unsent", "no connection within the time-out")

    run(check)


def test_an_answer_that_does_not_begin_in_time_has_probably_arrived() -> None:
    async def check() -> None:
        async with serving(_silent) as port:
            assert (await failing(f"http://127.0.0.1:{port}", seconds=0.1)).kind == "timeout"

    run(check)


@pytest.mark.parametrize("length", ["Content-Length: 9", "Transfer-Encoding: chunked"])
def test_an_answer_that_stops_in_its_middle_is_timed_out_after_it_was_heard(length: str) -> None:
    heard: list[int] = []

    async def check() -> None:
        begun = f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n2\r\n[1\r\n".encode()
        async with serving(answering(begun)) as port:
            async with HttpTransport(f"http://127.0.0.1:{port}", seconds=0.1, body_bytes=100) as transport:
                lease = Room(1).lease()
                with pytest.raises(TransportError) as caught:
                    await transport.post("x", b"{}", lambda status, _: heard.append(status), lease)
                assert lease.room.free == 0, "its body was being received"
        assert caught.value.kind == "timeout"
        assert heard == [200]

    run(check)


def test_a_port_that_is_closed_is_unsent_and_may_be_an_outage() -> None:
    async def check() -> None:
        error = await failing(f"http://127.0.0.1:{closed_port()}")
        assert error.kind == "unsent"
        assert "refused" in error.detail or "Connect call failed" in error.detail

    run(check)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1", b"SECRET\r\n\r\n"])
def test_an_answer_that_breaks_off_or_is_no_http_is_broken_and_not_quoted(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def check() -> None:
        async with serving(serve) as port:
            assert (await failing(f"http://127.0.0.1:{port}")).kind == "broken"

    run(check)


# Compressed


@pytest.mark.parametrize("members", [1, 2, 7])
def test_an_answer_may_be_of_several_gzip_members(members: int) -> None:
    async def check() -> None:
        data = b"".join(gzip.compress(f"part {number};".encode()) for number in range(members))
        async with serving(answering(page(data, "Content-Encoding: gzip"))) as port:
            reply = await post(f"http://127.0.0.1:{port}")
        assert reply.body.decode() == "".join(f"part {number};" for number in range(members))

    run(check)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(b"[1]")[:-3], "corrupt"),
        (gzip.compress(b"[1]") + gzip.compress(b"[2]")[:-1], "corrupt"),
        (gzip.compress(b"[1]") + b"SECRET", "corrupt"),
        (b"SECRET", "corrupt"),
        (gzip.compress(b"0" * 1001), "too large"),
        (gzip.compress(b"0" * 600) + gzip.compress(b"0" * 401), "too large"),
        (gzip.compress(b"0" * 50_000_000), "too large"),
    ],
)
def test_what_does_not_decompress_within_the_bound_is_told(data: bytes, kind: str) -> None:
    async def check() -> None:
        async with serving(answering(page(data, "Content-Encoding: gzip"))) as port:
            assert (await failing(f"http://127.0.0.1:{port}", body_bytes=1000)).kind == kind

    run(check)


@pytest.mark.parametrize("size", [1000, 1001])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_bound_holds_for_what_is_not_compressed(size: int, chunked: bool) -> None:
    async def check() -> None:
        body = b"0" * size
        chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        async with serving(answering(chunk if chunked else page(body))) as port:
            address = f"http://127.0.0.1:{port}"
            if size > 1000:
                assert (await failing(address, body_bytes=1000)).kind == "too large"
            else:
                assert (await post(address, body_bytes=1000)).body == body

    run(check)


# Whom it trusts


def test_a_ca_file_is_trusted(authority: trustme.CA, ca_file: str) -> None:
    async def check() -> None:
        async with serving(answering(page(b"[]")), server_tls(authority)) as port:
            for host in ("localhost", "127.0.0.1"):
                assert (await post(f"https://{host}:{port}", ca_file=ca_file)).body == b"[]"

    run(check)


def test_the_environment_s_certificates_are_trusted_as_well(
    authority: trustme.CA, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)

    async def check() -> None:
        async with serving(answering(page(b"[]")), server_tls(authority)) as port:
            for more in (None, str(other)):
                assert (await post(f"https://localhost:{port}", ca_file=more)).body == b"[]"

    run(check)


def _some_days_ago() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {"not_before": now - datetime.timedelta(9), "not_after": now - datetime.timedelta(2)}


@pytest.mark.parametrize(
    ("names", "options", "trusted", "detail", "cure"),
    [
        ((), {}, False, "is not trusted", "ca_file"),
        (("other.example",), {}, True, "is for another host", "platform.address"),
        (("127.0.0.2",), {}, True, "is for another host", "platform.address"),
        ((), _some_days_ago(), True, "has expired", "clock"),
    ],
)
def test_a_certificate_that_will_not_do_is_told_at_once_with_its_cure(
    names: tuple[str, ...],
    options: dict[str, Any],
    trusted: bool,
    detail: str,
    cure: str,
    authority: trustme.CA,
    ca_file: str,
) -> None:
    async def check() -> None:
        async with serving(answering(page(b"[]")), server_tls(authority, *names, **options)) as port:
            error = await failing(f"https://127.0.0.1:{port}", ca_file=ca_file if trusted else None)
        assert error.kind == "misconfigured"
        assert detail in error.detail
        assert f"127.0.0.1:{port}" in error.detail
        assert cure in error.cure

    run(check)


def test_a_port_without_tls_is_told_at_once() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.get_running_loop().create_future()

    async def check() -> None:
        async with serving(serve) as port:
            error = await failing(f"https://127.0.0.1:{port}")
        assert error.kind == "misconfigured"
        assert "platform.address" in error.cure

    run(check)


@pytest.mark.parametrize(
    ("content", "cause"), [(None, "No such file"), (b"SECRET", "PEM"), (b"\x30\x82\x00", "PEM"), (b"", "PEM")]
)
def test_a_ca_file_without_a_certificate_is_a_mistake(content: bytes | None, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    async def check() -> None:
        with pytest.raises(ConfigError, match=cause) as caught:
            await post("https://127.0.0.1:1", ca_file=str(path))
        assert caught.value.place == "platform.ca_file"
        assert str(path) in caught.value.cause
        assert "SECRET" not in str(caught.value)

    run(check)


# What is sent of the environment: nothing


@pytest.mark.parametrize(
    "netrc",
    [
        "default login me password SECRET\n",
        "machine localhost login me password SECRET\n",
        "machine 127.0.0.1 login me account SECRET password SECRET\ndefault login you password SECRET\n",
    ],
)
@pytest.mark.parametrize("proxied", [False, True])
def test_a_netrc_is_never_sent(
    netrc: str, proxied: bool, authority: trustme.CA, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text(netrc)
    monkeypatch.setenv("HOME", str(tmp_path))
    heads: list[str] = []

    async def check() -> None:
        async with (
            serving(answering(page(b"[]"), heads=heads), server_tls(authority)) as port,
            serving(proxying(heads)) as proxy,
        ):
            if proxied:
                monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy}")
            await post(f"https://localhost:{port}", ca_file=ca_file)

    run(check)
    assert len(heads) == 1 + proxied
    assert not [head for head in heads if "authorization" in head.lower()]


# Through a proxy


@pytest.mark.parametrize("form", ["http://{}127.0.0.1:{}", "{}127.0.0.1:{}", "HTTP://{}127.0.0.1:{}/"])
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_tls_goes_through_a_proxy_that_wants_a_password(
    form: str, variable: str, authority: trustme.CA, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    sent: list[str] = []

    async def check() -> None:
        async with (
            serving(answering(page(b"[]"), heads=sent), server_tls(authority)) as port,
            serving(proxying(asked, password=PASSWORD)) as proxy,
        ):
            monkeypatch.setenv(variable, form.format("me:P%40ss%3ASECRET@", proxy))
            async with HttpTransport(f"https://localhost:{port}", seconds=9, body_bytes=9, ca_file=ca_file) as way:
                for _ in range(3):
                    assert (await way.post("x", b"{}", unheard)).body == b"[]"
        assert asked[0].startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n")

    run(check)
    assert len(asked) == 1
    assert len(sent) == 3
    assert not [head for head in sent if "Authorization" in head]


def test_a_proxy_may_itself_be_spoken_to_over_tls(
    authority: trustme.CA, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with (
            serving(answering(page(b"[]")), server_tls(authority)) as port,
            serving(proxying([]), server_tls(authority)) as proxy,
        ):
            monkeypatch.setenv("https_proxy", f"https://localhost:{proxy}")
            assert (await post(f"https://localhost:{port}", ca_file=ca_file)).body == b"[]"

    run(check)


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "other.example,127.0.0.1"])
def test_what_no_proxy_names_is_reached_without_one(
    exempt: str, authority: trustme.CA, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("no_proxy", exempt)

    async def check() -> None:
        async with serving(answering(page(b"[]")), server_tls(authority)) as port:
            assert (await post(f"https://127.0.0.1:{port}", ca_file=ca_file)).body == b"[]"

    run(check)


def test_plain_http_to_this_machine_goes_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{closed_port()}")

    async def check() -> None:
        async with serving(answering(page(b"[]"))) as port:
            assert (await post(f"http://127.0.0.1:{port}")).body == b"[]"

    run(check)


NTLM = b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kind", "detail", "cure"),
    [
        (None, "misconfigured", "does not accept the user and password", "%40"),  # the proxy wants another
        (NTLM, "misconfigured", "a way of logging in", "helper"),
        (b"HTTP/1.1 407\r\n\r\n", "misconfigured", "user and password", "%40"),
        (b"HTTP/1.1 403 No\r\n\r\n", "misconfigured", "does not allow", "no_proxy"),
        (b"HTTP/1.1 405 No\r\n\r\n", "misconfigured", "does not connect", "https_proxy"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://SECRET/\r\n\r\n", "misconfigured", "does not connect", "https_proxy"),
        (b"SSH-2.0-SECRET\r\n\r\n", "misconfigured", "as an HTTP proxy does", "https_proxy"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "misconfigured", "as an HTTP proxy does", "https_proxy"),
        (b"", "misconfigured", "as an HTTP proxy does", "https_proxy"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "unsent", "cannot connect to", ""),
        (b"HTTP/1.1 503 No\r\n\r\n", "unsent", "cannot connect to", ""),
    ],
)
def test_a_proxy_that_refuses_is_named_with_the_cure_and_without_its_password(
    answer: bytes | None, kind: str, detail: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = proxying([], password="other") if answer is None else proxying([], answer)

    async def check() -> None:
        async with serving(handler) as proxy:
            monkeypatch.setenv("https_proxy", f"http://SECRET:SECRET@127.0.0.1:{proxy}")
            error = await failing("https://api.mews.com")
        assert error.kind == kind
        assert detail in error.detail
        assert f"127.0.0.1:{proxy}" in error.detail
        assert cure in error.cure

    run(check)


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "proxy.invalid:{}", "http://proxy.invalid:{}"])
def test_a_proxy_that_is_closed_or_unknown_is_named_with_the_cure(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = host.format(closed_port())
    monkeypatch.setenv("https_proxy", named)

    async def check() -> None:
        error = await failing("https://api.mews.com")
        assert error.kind == "misconfigured"
        assert f"the proxy {named.removeprefix('http://')}" in error.detail
        assert "https_proxy" in error.cure

    run(check)


def test_a_proxy_without_tls_that_is_named_with_https_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.get_running_loop().create_future()

    async def check() -> None:
        async with serving(serve) as proxy:
            monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{proxy}")
            error = await failing("https://api.mews.com")
        assert error.kind == "misconfigured"
        assert f"the proxy 127.0.0.1:{proxy} does not speak TLS" in error.detail
        assert error.cure == "Write http:// in https_proxy"

    run(check)


def test_a_certificate_behind_a_proxy_is_the_platform_s(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with (
            serving(answering(page(b"[]")), server_tls(authority)) as port,
            serving(proxying([])) as proxy,
        ):
            monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy}")
            error = await failing(f"https://localhost:{port}")
        assert error.kind == "misconfigured"
        assert f"the certificate of localhost:{port} is not trusted" in error.detail

    run(check)


def test_a_silent_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with serving(_silent) as proxy:
            monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy}")
            error = await failing("https://api.mews.com", seconds=0.1)
        assert error.kind in ("unsent", "timeout")
        assert f"the proxy 127.0.0.1:{proxy}" in error.detail

    run(check)


def test_a_proxy_that_worked_and_is_gone_is_an_outage(
    authority: trustme.CA, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with serving(answering(page(b"[]", "Connection: close")), server_tls(authority)) as port:
            async with serving(proxying([])) as proxy:
                monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy}")
                way = HttpTransport(f"https://localhost:{port}", seconds=9, body_bytes=9, ca_file=ca_file)
                await way.__aenter__()
                await way.post("x", b"{}", unheard)
            with pytest.raises(TransportError) as caught:
                await way.post("x", b"{}", unheard)
            await way.__aexit__(None, None, None)
        assert caught.value.kind == "unsent"
        assert f"the proxy 127.0.0.1:{proxy}" in caught.value.detail

    run(check)


@pytest.mark.parametrize(
    "text",
    ["http://", "http://SECRET:SECRET@", "a b:3128", "host:port", "host:70000", "socks5://host:1", "http://h/SECRET"],
)
def test_what_is_no_proxy_s_address_is_a_mistake_of_the_variable(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_proxy(text, "https_proxy")
    assert caught.value.place == "https_proxy"
    assert caught.value.cure
    assert "SECRET" not in str(caught.value)


def test_a_proxy_s_repr_shows_no_password() -> None:
    proxy = parse_proxy("me:SECRET@proxy.corp:3128", "https_proxy")
    assert proxy.url == "http://proxy.corp:3128"
    assert "SECRET" not in f"{proxy!r} {proxy}"
    assert proxy.authorization is not None
    assert proxy.authorization not in repr(proxy)
