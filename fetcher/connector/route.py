"""The way to the platform: through which proxy, trusting whom, and what stands in the way when there is no connection.

The rules that cannot be broken: of the environment, proxies and trusted certificates are used, and nothing that would
be sent (no `~/.netrc`); and no text shows a proxy's user or password.

What keeps a connection from being made is either out there (an outage: it passes, so trying again helps) or here: a
proxy that is named wrongly, a certificate that nobody told us to trust. Then trying again is in vain, and the user is
to hear of it at once.
"""

from __future__ import annotations

import base64
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

import anyio.to_thread
import msgspec

from fetcher.errors import ConfigError

if TYPE_CHECKING:  # it takes a tenth of a second: a run that has workers load does without
    import aiohttp


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy, asked to connect (`CONNECT`) and then sees nothing but TLS."""

    url: str
    """Without user and password."""
    name: str
    """Host and port: for messages."""
    variable: str
    """What names it."""
    authorization: str | None
    """The header `Proxy-Authorization`; `None`: no user and password are known."""

    def __repr__(self) -> str:
        return f"Proxy({self.name})"

    def __str__(self) -> str:
        return f"the proxy {self.name}"


class Route(msgspec.Struct, frozen=True):
    """How to connect."""

    server: str
    """The platform's host and port: for messages."""
    proxy: Proxy | None = None
    trust: ssl.SSLContext | None = None
    """`None`: without TLS, which is for this machine only."""

    def options(self) -> dict[str, Any]:
        """What aiohttp is to be told with each request."""
        options: dict[str, Any] = {} if self.trust is None else {"ssl": self.trust}
        if self.proxy is not None:
            options["proxy"] = self.proxy.url
            if self.proxy.authorization is not None:
                options["proxy_headers"] = {"Proxy-Authorization": self.proxy.authorization}
        return options


class Obstacle(msgspec.Struct, frozen=True):
    """Why there is no connection."""

    detail: str
    cure: str | None = None
    """What is to be changed here; `None`: it is out there, and may pass."""


async def find_route(address: str, ca_file: str | None = None) -> Route:
    """The way to an address, by the environment and the configuration as they are now.

    Args:
        address: scheme, host and port.
        ca_file: a file of certificates (PEM) that are trusted besides the system's or those of SSL_CERT_FILE.

    Raises:
        ConfigError: the file has no certificate, or what names the proxy is no proxy's address.
    """
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    server = _name(parts.hostname or "", port)
    if parts.scheme != "https":  # a proxy would see what is not encrypted
        return Route(server)
    # In a thread: the system's certificates are many, and a Mac is asked for its proxies.
    return await anyio.to_thread.run_sync(lambda: Route(server, _find_proxy(server), _trust(ca_file)))


def _find_proxy(server: str) -> Proxy | None:
    from urllib.request import getproxies, proxy_bypass  # without TLS there is no proxy

    proxies = getproxies()
    kind = next((kind for kind in ("https", "all") if proxies.get(kind)), None)
    if kind is None or proxy_bypass(server):
        return None
    spellings = (f"{kind}_proxy", f"{kind.upper()}_PROXY")
    variable = next((name for name in spellings if name in os.environ), "the system's settings")
    return parse_proxy(proxies[kind], variable)


def parse_proxy(text: str, variable: str) -> Proxy:
    """The proxy that a variable names; without a scheme it is `http://`, as elsewhere.

    Raises:
        ConfigError: it names none that can be used.
    """
    cure = "Write it like http://host:3128, or http://user:password@host:3128 with @ and : of the password as %40, %3A"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise ConfigError(variable, "it is no proxy's address", cure) from None
    if parts.scheme not in ("http", "https"):
        raise ConfigError(variable, f"a proxy of the kind {parts.scheme[:10]}:// cannot be used", "Name an HTTP proxy")
    if not parts.hostname or any(letter.isspace() for letter in parts.hostname) or parts.path.strip("/"):
        raise ConfigError(variable, "it is no proxy's address", cure)
    name = _name(parts.hostname, port or (443 if parts.scheme == "https" else 80))
    return Proxy(f"{parts.scheme}://{name}", name, variable, _authorization(parts))


def _authorization(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _trust(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()  # the system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        return context
    place = "platform.ca_file"
    try:
        Path(ca_file).read_bytes()  # for the system's reason, which OpenSSL would not tell
        context.load_verify_locations(ca_file)
    except ssl.SSLError:
        cause = f"the file {ca_file} holds no certificate in PEM form"
        cure = "If it is in DER form: openssl x509 -inform der -in FILE -out FILE.pem"
        raise ConfigError(place, cause, cure) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no path"
        cure = "Name a file with the certificate of your CA, readable for this user"
        raise ConfigError(place, f"the file {ca_file} cannot be read ({reason})", cure) from None
    return context


def obstacle(route: Route, error: Exception, *, connecting: bool) -> Obstacle | None:
    """What an error says of the way; `None` if a connection had been made.

    Args:
        route: the way that was taken.
        error: aiohttp's.
        connecting: whether a connection through a proxy was being made.

    1. a certificate, the proxy's or the platform's
    2. other faults of TLS
    3. the proxy is not reached
    4. the proxy answers, and refuses
    5. the proxy does not speak HTTP, or breaks off
    6. the platform is not reached
    """
    import aiohttp

    proxy = route.proxy
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(_whose(route, error), error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return _no_tls(route, error)
    if proxy is not None:
        if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientConnectorDNSError):
            detail = f"no connection to {proxy} ({_reason(error.os_error)})"
            return Obstacle(detail, f"Check what {proxy.variable} names, or unset it if there is no proxy")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return _refused(route.server, proxy, error)
        if connecting and not isinstance(error, TimeoutError):
            if isinstance(error, aiohttp.ClientConnectorError):  # the TLS with the platform broke off
                return Obstacle(f"the connection through {proxy} broke ({_reason(error.os_error)})")
            detail = f"{proxy} did not answer as an HTTP proxy does ({type(error).__name__})"
            return Obstacle(detail, f"Check what {proxy.variable} names: host, port, and http:// or https://")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Obstacle(f"no connection {f'through {proxy} ' if proxy else ''}within the time-out")
    if isinstance(error, aiohttp.ClientConnectorError):
        # Its text names host and port, which the user configured, and the system's reason.
        return Obstacle(f"no connection to the platform ({_reason(error.os_error)})")
    return None


EXPIRED, NOT_YET, OTHER_HOST, OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's numbers (X509_V_ERR_...), which are part of its interface; texts are not."""


def _certificate(whose: str, error: Exception) -> Obstacle:
    code: int = getattr(error, "verify_code", 0)
    if code in (EXPIRED, NOT_YET):
        state = "has expired" if code == EXPIRED else "is not valid yet"
        cure = "Check this machine's clock; if it is right, only whoever runs that server can help"
        return Obstacle(f"the certificate of {whose} {state}", cure)
    if code in (OTHER_HOST, OTHER_ADDRESS):
        cure = "Check platform.address; if it is right, something between here and there answers in its place"
        return Obstacle(f"the certificate of {whose} is for another host", cure)
    reason: str = getattr(error, "verify_message", "") or type(error).__name__
    cure = 'If it is your company\'s, name its CA: ca_file = "path" in [platform], or the variable SSL_CERT_FILE'
    return Obstacle(f"the certificate of {whose} is not trusted ({reason})", cure)


def _no_tls(route: Route, error: aiohttp.ClientConnectorError) -> Obstacle:
    whose = _whose(route, error)
    reason = getattr(error.os_error, "reason", None) or type(error.os_error).__name__
    if reason not in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return Obstacle(f"no TLS with {whose} ({reason})")
    proxy = route.proxy
    if proxy is not None and whose == str(proxy):
        return Obstacle(f"{whose} does not speak TLS ({reason})", f"Write http:// in {proxy.variable}")
    return Obstacle(f"{whose} does not speak TLS ({reason})", "Check host and port of platform.address")


def _refused(server: str, proxy: Proxy, error: aiohttp.ClientHttpProxyError) -> Obstacle:
    """By what the proxy answered to CONNECT."""
    status = error.status
    if status == 407:
        return _unauthorized(proxy, error)
    if status == 403:
        cure = f"Have it allowed there, or name the host in no_proxy if {server} can be reached without it"
        return Obstacle(f"{proxy} does not allow connections to {server} (403)", cure)
    if status == 429 or (status >= 500 and status != 501):
        return Obstacle(f"{proxy} cannot connect to {server} ({status})")
    return Obstacle(f"{proxy} does not connect to {server} ({status})", f"Check what {proxy.variable} names")


def _unauthorized(proxy: Proxy, error: aiohttp.ClientHttpProxyError) -> Obstacle:
    offers = error.headers.getall("Proxy-Authenticate", []) if error.headers else []
    schemes = {offer.split(" ")[0].lower() for offer in offers}
    if schemes and "basic" not in schemes:
        cure = "Only Basic is known here: have a helper on this machine log in, and name that helper as the proxy"
        return Obstacle(f"{proxy} wants a way of logging in that is not known here (407)", cure)
    form = "http://user:password@host:port, with @ and : of the password as %40, %3A"
    if proxy.authorization is None:
        return Obstacle(f"{proxy} wants a user and a password (407)", f"Write {proxy.variable} like {form}")
    return Obstacle(f"{proxy} does not accept the user and password (407)", f"Mend {proxy.variable}: {form}")


def _whose(route: Route, error: aiohttp.ClientConnectorError) -> str:
    name = _name(error.host, error.port or 443)
    return str(route.proxy) if route.proxy is not None and name == route.proxy.name else name


def _name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
