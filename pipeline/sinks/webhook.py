"""A signed webhook, and the careful HTTP request under every destination.

`docs/notifications.md` describes the body and the signature for receivers.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import ipaddress
import math
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct, structs
from pydantic import SecretStr

from pipeline.config import WebhookSettings
from pipeline.errors import ConfigError, DeliveryDeferred, DeliveryRefused
from pipeline.sinks import text
from pipeline.sinks.times import to_rfc3339
from schemas.incident import Incident, Notification, Severity

BODY_VERSION = 1
SIGNATURE_HEADER = "X-Kizashi-Signature"
DELIVERY_HEADER = "X-Kizashi-Delivery"
#: A mistaken Retry-After must not keep a destination silent for longer than this.
RETRY_AFTER_MAX_S = 3_600.0
#: Answers besides 5xx that ask for another try.
_TRY_AGAIN = frozenset({408, 425, 429})
_EXCERPT_BYTES = 4_096
_MESSAGE_CHARS = 300
_ADDRESSES_MAX = 8
#: Hosts to which nothing travels over a wire.
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

#: Not private by name, and yet inside: the platforms of Azure and (with the rest of
#: RFC 6890's protocol assignments) of Oracle's cloud answer there.
_PLATFORMS = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
#: All of IPv6 that is handed out for the Internet (RFC 4291).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
#: Its last 32 bits are an IPv4 address (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_SIGNATURE_TIME = re.compile(r"t=([0-9]{1,15})")
_SIGNATURE_ITEMS_MAX = 16

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


# --- Signatures ----------------------------------------------------------------------------------


def sign(secret: str, body: bytes, time_s: int) -> str:
    """Return the signature header: ``t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">``."""
    return f"t={time_s},v1={_mac(secret, body, str(time_s))}"


def verify_signature(
    secret: str, header: str, body: bytes, now_s: float, tolerance_s: float = 300
) -> bool:
    """Say whether `header` signs exactly these bytes, not longer ago than `tolerance_s`.

    For receivers: pass the body as it came off the wire, before it is parsed.
    Several ``v1`` are allowed, so that a secret can be changed without a gap; one
    that matches is enough. Anything malformed is False; nothing is raised.
    """
    items = [item.strip() for item in header.split(",", _SIGNATURE_ITEMS_MAX)]
    times = [found[1] for item in items if (found := _SIGNATURE_TIME.fullmatch(item))]
    if len(times) != 1 or not abs(now_s - int(times[0])) <= tolerance_s:
        return False
    expected = _mac(secret, body, times[0]).encode()
    given = [item.removeprefix("v1=").encode() for item in items if item.startswith("v1=")]
    return any(hmac.compare_digest(expected, signature) for signature in given)


def _mac(secret: str, body: bytes, time_text: str) -> str:
    return hmac.new(secret.encode(), time_text.encode() + b"." + body, hashlib.sha256).hexdigest()


def delivery_id(notification: Notification) -> str:
    """Return the id that every attempt at this notification carries, and no other one."""
    identity = (notification.destination, notification.incident_id, notification.sequence)
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:32]


# --- Addresses -----------------------------------------------------------------------------------


def is_public(address: str) -> bool:
    """Say whether an IP address lies outside this machine, its networks and cloud metadata.

    An IPv6 address that wraps an IPv4 address (mapped, 6to4, NAT64) is judged by
    the wrapped one as well. Raises ValueError for what is no address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not any(ip in n for n in _PLATFORMS)
    wrapped = ip.ipv4_mapped or ip.sixtofour
    if ip in _NAT64:
        wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if wrapped is not None:
        return is_public(str(wrapped))
    return ip.is_global and ip in _GLOBAL_UNICAST


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of `host`, in the resolver's order.

    Raises:
        httpx.ConnectError: the name does not resolve.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise httpx.ConnectError("the name does not resolve") from None
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class PinnedTransport(httpx.AsyncBaseTransport):
    """Resolves a name once, checks every address it gave, and connects to one of those.

    A check that is followed by an ordinary request would resolve the name again
    and could be shown another address (DNS rebinding). So the request that goes
    on carries the checked address in its URL, while the `Host` header and the
    TLS server name, and with it the certificate check, keep the name. All of
    that is httpx's public interface; an `AsyncClient` above it is left out,
    since it would look for proxies that resolve for themselves, and write the
    URL, which may be a secret, to the log.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        section: str = "notify.webhook",
        resolve: Resolve = resolve_host,
        inner: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._section = section
        self._resolve = resolve
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to the first checked address that takes a connection.

        Raises:
            DeliveryRefused: the name leads, if only in part, to an address that is not public.
            httpx.TransportError: as any transport.
        """
        host = request.url.raw_host.decode("ascii")
        port = request.url.port or {"http": 80, "https": 443}[request.url.scheme]
        addresses = list(await self._resolve(host, port))[:_ADDRESSES_MAX]
        if not self._allow_private and not all(map(is_public, addresses)):
            raise DeliveryRefused(
                "its address is private or reserved; "
                f"set {self._section}.allow_private if that is meant"
            )
        failure: httpx.TransportError = httpx.ConnectError("the name has no address")
        for address in addresses:
            try:
                return await self._inner.handle_async_request(_aim(request, host, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _aim(request: httpx.Request, host: str, address: str) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": host},
    )


# --- One request ---------------------------------------------------------------------------------


class Answer(Struct, frozen=True):
    """What came back, reduced to what decides."""

    status: int
    retry_after_s: float | None
    #: The beginning of the body, raw; empty after a success.
    excerpt: str

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def deferred(self) -> DeliveryDeferred:
        """Return the error that says: later, and not before `retry_after_s`."""
        return DeliveryDeferred(f"answered {self.status}", self.retry_after_s)

    def check(self) -> None:
        """Return after a success.

        Raises:
            DeliveryDeferred: another try may help: 408, 425, 429 and 5xx.
            DeliveryRefused: it never will; redirects too.
        """
        if self.is_success:
            return
        if asks_again(self.status):
            raise self.deferred()
        said = text.plain(self.excerpt, _MESSAGE_CHARS)
        raise DeliveryRefused(f"answered {self.status}: {said}")


def asks_again(status: int) -> bool:
    """Say whether an HTTP status asks for another try."""
    return status >= 500 or status in _TRY_AGAIN


async def post(
    transport: httpx.AsyncBaseTransport,
    url: str,
    body: bytes,
    headers: dict[str, str],
    timeout_s: float,
    clock: Callable[[], float],
) -> Answer:
    """POST a JSON body once. Redirects are answers like any other, never followed.

    `timeout_s` bounds the whole exchange: httpx's own limits are per step, and a
    server that sends a byte now and then would never meet them.

    Raises:
        DeliveryDeferred: no answer. It names the kind of failure only: httpx's
            messages may quote URLs and headers, and those may be secrets.
    """
    request = httpx.Request(
        "POST",
        url,
        content=body,
        headers={"Content-Type": "application/json", "User-Agent": "kizashi", **headers},
        extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
    )
    try:
        async with asyncio.timeout(timeout_s):
            response = await transport.handle_async_request(request)
            return await _read_answer(response, clock)
    except (TimeoutError, httpx.TransportError) as error:
        raise DeliveryDeferred(f"no answer ({type(error).__name__})") from None


async def _read_answer(response: httpx.Response, clock: Callable[[], float]) -> Answer:
    try:
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), clock())
        # A success is complete with its status line: a body that breaks off changes nothing.
        excerpt = "" if response.is_success else await _read_excerpt(response)
        return Answer(response.status_code, retry_after_s, excerpt)
    finally:
        await response.aclose()


async def _read_excerpt(response: httpx.Response) -> str:
    excerpt = b""
    async for part in response.aiter_raw():
        excerpt += part
        if len(excerpt) >= _EXCERPT_BYTES:
            break
    return excerpt[:_EXCERPT_BYTES].decode("utf-8", "replace")


def parse_retry_after(value: str | None, now_s: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), bounded.

    Seconds and dates are understood; None for anything else.
    """
    if value is None:
        return None
    seconds = _parse_seconds(value.strip(), now_s)
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _parse_seconds(value: str, now_s: float) -> float | None:
    if re.fullmatch(r"[0-9]{1,15}", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # HTTP dates are in GMT; the parser leaves the zone out for "-0000".
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() - now_s


# --- The destination -----------------------------------------------------------------------------


class Webhook:
    """Tells any HTTP receiver about an incident, as signed JSON.

    Delivery guarantee: at least once under the notifier; each attempt at one
    notification carries the same `X-Kizashi-Delivery`, by which the receiver
    drops repeats. 2xx is success; 408, 425, 429 and 5xx are tried again; any
    other answer, redirects included, is a refusal.
    """

    name = "webhook"
    every_update = True
    acknowledges = False
    repeat_s = None

    def __init__(
        self,
        settings: WebhookSettings,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Build it from settings that have a `url` and a `secret`.

        Raises:
            ConfigError: one of them is missing, or the URL names an address that is not public.
        """
        if (
            settings.url is None
            or settings.secret is None
            or not settings.secret.get_secret_value()
        ):
            raise ConfigError("notify.webhook: url and secret belong together; one is missing")
        if not settings.allow_private:
            check_literal(settings.url.host or "", "notify.webhook")
        self.min_severity = Severity(settings.min_severity)
        self._url = str(settings.url)
        self._secret = settings.secret
        self._timeout_s = timeout_s
        self._clock = clock
        self._transport = transport or PinnedTransport(allow_private=settings.allow_private)

    async def send(self, notification: Notification) -> None:
        """POST one notification; raises DeliveryDeferred or DeliveryRefused."""
        now_s = self._clock()
        body = encode_body(notification, now_s)
        headers = {
            SIGNATURE_HEADER: sign(self._secret.get_secret_value(), body, int(now_s)),
            DELIVERY_HEADER: delivery_id(notification),
        }
        answer = await post(self._transport, self._url, body, headers, self._timeout_s, self._clock)
        answer.check()

    async def close(self) -> None:
        """Release connections."""
        await self._transport.aclose()


def encode_body(notification: Notification, now_s: float) -> bytes:
    """Return the JSON body, version `BODY_VERSION`.

    Labels are passed on as they were counted, for machines to match; the prose,
    which receivers show to people, is neutralised. Numbers beyond JSON are null.
    """
    return msgspec.json.encode(
        {
            "version": BODY_VERSION,
            "action": notification.action,
            "incident": _neutralise(notification.incident),
            "notification_id": delivery_id(notification),
            "sent_at": to_rfc3339(int(now_s * 1_000)),
        }
    )


def _neutralise(incident: Incident) -> Incident:
    return structs.replace(
        incident,
        summary=text.plain(incident.summary, 1_024),
        suggestion=text.plain(incident.suggestion, 1_024),
    )


def check_literal(host: str, section: str) -> None:
    """Raise ConfigError where `host` is written as an address that is not public."""
    try:
        public = is_public(host.strip("[]"))
    except ValueError:
        return  # a name: checked when it has been resolved
    if not public:
        raise ConfigError(
            f"{section}.url: its address is private or reserved; "
            f"set {section}.allow_private if that is meant"
        )


def check_secret_url(
    secret: SecretStr, section: str, *, allow_private: bool, allow_plain: bool = False
) -> None:
    """Check an address that is a secret itself; what is said of it does not show it.

    Raises:
        ConfigError: it is no http(s) address, leads inside without `allow_private`, or would
            travel in clear text off this machine without `allow_plain`.
    """
    try:
        parts = urlsplit(secret.get_secret_value())
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(f"{section}.url: not an address") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"{section}.url: not an http(s) address")
    if not allow_private:
        check_literal(host, section)
    if parts.scheme == "http" and not (allow_plain or host in LOOPBACK):
        raise ConfigError(f"{section}.url: plain http would show it, and it is the secret")
