"""The webhook: signed, numbered, and never led astray by a name or a redirect."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import ssl
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import WebhookSettings
from pipeline.errors import ConfigError, DeliveryDeferred, DeliveryRefused
from pipeline.sinks.webhook import (
    PinnedTransport,
    Webhook,
    delivery_id,
    is_public,
    resolve_host,
    sign,
    verify_signature,
)
from schemas.incident import Action, decode_incident
from tests.support.pagerduty import (
    FakePagerDuty,
    make_incident,
    make_notification,
)

NOW_S = 1_760_000_000.0
SECRET = "CANARY-of-the-webhook"
NOTIFICATION = make_notification(destination="webhook")


def make_webhook(url: str, *, allow_private: bool = True, timeout_s: float = 5.0) -> Webhook:
    settings = WebhookSettings.model_validate(
        {"url": url, "secret": SECRET, "allow_private": allow_private}
    )
    return Webhook(settings, timeout_s, clock=lambda: NOW_S)


@pytest.fixture
async def webhook(pagerduty: FakePagerDuty) -> AsyncIterator[Webhook]:
    """Sends to a receiver that takes any POST while a test tells it so."""
    webhook = make_webhook(pagerduty.url)
    yield webhook
    await webhook.close()


# --- What is sent --------------------------------------------------------------------------------


async def test_the_body_is_the_documented_one(pagerduty: FakePagerDuty, webhook: Webhook) -> None:
    pagerduty.answer(200)
    await webhook.send(NOTIFICATION)
    (request,) = pagerduty.received
    body = json.loads(request.body)
    incident = decode_incident(json.dumps(body.pop("incident")))
    assert incident == NOTIFICATION.incident
    assert body == {
        "version": 1,
        "action": "trigger",
        "notification_id": delivery_id(NOTIFICATION),
        "sent_at": "2025-10-09T08:53:20.000Z",
    }
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Kizashi-Delivery"] == delivery_id(NOTIFICATION)


async def test_the_signature_is_over_the_bytes_that_arrive(
    pagerduty: FakePagerDuty, webhook: Webhook
) -> None:
    pagerduty.answer(204)
    await webhook.send(NOTIFICATION)
    (request,) = pagerduty.received
    header = request.headers["X-Kizashi-Signature"]
    mac = hmac.new(SECRET.encode(), b"1760000000." + request.body, hashlib.sha256).hexdigest()
    assert header == f"t=1760000000,v1={mac}"
    assert verify_signature(SECRET, header, request.body, NOW_S)


def test_a_delivery_id_is_the_same_for_every_attempt_and_for_nothing_else() -> None:
    later = make_notification(Action.UPDATE, make_incident(version=2), "webhook")
    others = [later, make_notification(destination="other"), make_notification()]
    ids = {delivery_id(n) for n in [NOTIFICATION, *others[:2]]}
    assert len(ids) == 3
    assert delivery_id(NOTIFICATION) == delivery_id(make_notification(destination="webhook"))


async def test_prose_is_neutral_and_labels_are_as_they_were_counted(
    pagerduty: FakePagerDuty, webhook: Webhook
) -> None:
    pagerduty.answer(200)
    hostile = "a\nb\u202e <http://evil.example>"
    incident = make_incident(summary=hostile, example_event_ids=(hostile,))
    await webhook.send(make_notification(incident=incident, destination="webhook"))
    sent = json.loads(pagerduty.received[0].body)["incident"]
    assert sent["summary"] == "a b <http[:]//evil.example>"
    assert sent["example_event_ids"] == [hostile]


# --- Signatures ----------------------------------------------------------------------------------


@given(st.binary(), st.text(min_size=1).filter(lambda s: s.isprintable()), st.integers(0, 2**40))
def test_a_signature_verifies_for_its_own_secret_body_and_time(
    body: bytes, secret: str, time_s: int
) -> None:
    header = sign(secret, body, time_s)
    assert verify_signature(secret, header, body, time_s)
    assert verify_signature(secret, header, body, time_s + 300)
    assert not verify_signature(secret, header, body, time_s + 301)
    assert not verify_signature(secret, header, body, time_s - 301)
    assert not verify_signature(secret, header, body + b" ", time_s)
    assert not verify_signature(secret + "x", header, body, time_s)
    other_time = header.replace(f"t={time_s},", f"t={time_s + 1},")
    assert not verify_signature(secret, other_time, body, time_s)


@given(st.text())
def test_a_malformed_header_is_false_and_nothing_worse(header: str) -> None:
    assert verify_signature("secret", header, b"body", 0.0) is False


@pytest.mark.parametrize(
    "header",
    [
        "",
        "t=1",
        "v1=",
        "t=,v1=ab",
        "t=1,v1=é",
        "t=１,v1=ab",
        "t=1,t=2,v1=ab",
        "t=-1,v1=ab",
        "=,=,=",
    ],
)
def test_broken_headers_do_not_pass(header: str) -> None:
    assert verify_signature("secret", header, b"", 1.0) is False


def test_two_secrets_are_valid_while_one_replaces_the_other() -> None:
    old, new = sign("old", b"{}", 5), sign("new", b"{}", 5).partition(",")[2]
    assert verify_signature("old", f"{old},{new}", b"{}", 5)
    assert verify_signature("new", f"{old},{new}", b"{}", 5)
    assert not verify_signature("else", f"{old},{new}", b"{}", 5)


def test_a_clock_that_is_not_a_number_verifies_nothing() -> None:
    assert not verify_signature("s", sign("s", b"", 5), b"", float("nan"))


@pytest.mark.parametrize("now_s", [1_000.0, 1_300.0, 1_301.0])
@pytest.mark.parametrize("secret", ["secret", "else"])
@pytest.mark.parametrize("body", [b"{}", b"{} "])
def test_the_documented_receiver_decides_alike(now_s: float, secret: str, body: bytes) -> None:
    page = (Path(__file__).parents[1] / "docs/notifications.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 — our own page
    for header in (sign("secret", b"{}", 1_000), sign("secret", b"{}", 1_000) + ",v1=é", "", "t=x"):
        expected = verify_signature(secret, header, body, now_s)
        assert names["is_genuine"](secret, header, body, now_s) is expected
    genuine = verify_signature(secret, sign("secret", b"{}", 1_000), body, now_s)
    assert genuine is (secret == "secret" and body == b"{}" and now_s <= 1_300)


# --- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_is_success(pagerduty: FakePagerDuty, webhook: Webhook, status: int) -> None:
    pagerduty.answer(status)
    await webhook.send(NOTIFICATION)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 599])
async def test_what_may_pass_is_deferred(
    pagerduty: FakePagerDuty, webhook: Webhook, status: int
) -> None:
    pagerduty.answer(status, retry_after="7")
    with pytest.raises(DeliveryDeferred, match=f"answered {status}") as caught:
        await webhook.send(NOTIFICATION)
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422, 301, 302, 307, 308])
async def test_anything_else_is_a_refusal(
    pagerduty: FakePagerDuty, webhook: Webhook, status: int
) -> None:
    pagerduty.answer(status, body=b"go\naway", headers={"Location": pagerduty.url})
    with pytest.raises(DeliveryRefused, match=f"answered {status}: go away"):
        await webhook.send(NOTIFICATION)
    assert len(pagerduty.received) == 1


async def test_an_endless_answer_ends_with_the_timeout() -> None:
    """Each byte is in time for httpx, which limits single reads only."""

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    webhook = make_webhook(f"http://127.0.0.1:{port}/", timeout_s=0.2)
    with pytest.raises(DeliveryDeferred, match="no answer"):
        await webhook.send(NOTIFICATION)
    await webhook.close()
    server.close()


async def test_secrets_show_nowhere(
    pagerduty: FakePagerDuty, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the secret nor the URL, which for many receivers is one."""
    caplog.set_level(logging.DEBUG)
    webhook = make_webhook(pagerduty.url + "?token=CANARY-in-the-url", timeout_s=0.1)
    texts = [repr(webhook), str(webhook)]
    pagerduty.hang(times=1)
    pagerduty.drop(times=1)
    pagerduty.answer(500, times=1)
    pagerduty.answer(403, times=1)
    for _ in range(4):
        with pytest.raises((DeliveryDeferred, DeliveryRefused)) as caught:
            await webhook.send(NOTIFICATION)
        texts += traceback.format_exception(caught.value)
    await webhook.close()
    assert len(pagerduty.received) == 4
    assert "CANARY" not in "".join(texts) + caplog.text


# --- Where it connects ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "203.0.113.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a00:1::1"),
        *("2001:db8::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "100::1"),
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "2130706433"]
)
def test_a_private_address_in_the_configuration_stops_the_start(host: str) -> None:
    with pytest.raises(ConfigError, match="allow_private"):
        make_webhook(f"http://{host}/hook", allow_private=False)


class Names:
    """A resolver that is told what to say; it remembers what it was asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0)


class Recorder(httpx.AsyncBaseTransport):
    """In place of the network: remembers the requests that got through the check."""

    def __init__(self, *unreachable: str) -> None:
        self.unreachable = unreachable
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        if request.url.host in self.unreachable:
            raise httpx.ConnectError("unreachable")
        return httpx.Response(200)


async def send_through(transport: httpx.AsyncBaseTransport, url: str) -> None:
    settings = WebhookSettings.model_validate({"url": url, "secret": SECRET})
    await Webhook(settings, 5.0, clock=lambda: NOW_S, transport=transport).send(NOTIFICATION)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["10.1.2.3"], ["169.254.169.254"], ["8.8.8.8", "127.0.0.1"]],
)
async def test_a_name_that_leads_inside_is_refused_before_any_connection(
    addresses: list[str],
) -> None:
    recorder = Recorder()
    transport = PinnedTransport(resolve=Names(addresses), inner=recorder)
    with pytest.raises(DeliveryRefused, match="private or reserved"):
        await send_through(transport, "https://hook.example/in")
    assert recorder.requests == []


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1"])
async def test_names_of_this_machine_are_refused_by_the_systems_own_resolver(
    pagerduty: FakePagerDuty, host: str
) -> None:
    url = pagerduty.url.replace("127.0.0.1", host)
    with pytest.raises((DeliveryRefused, ConfigError), match="private or reserved"):
        await make_webhook(url, allow_private=False).send(NOTIFICATION)
    assert pagerduty.received == []


async def test_a_redirect_to_the_inside_is_not_followed(pagerduty: FakePagerDuty) -> None:
    with FakePagerDuty() as inside:
        pagerduty.answer(307, headers={"Location": inside.url})
        webhook = make_webhook(pagerduty.url)
        with pytest.raises(DeliveryRefused, match="answered 307"):
            await webhook.send(NOTIFICATION)
        await webhook.close()
        assert len(pagerduty.received) == 1
        assert inside.received == []


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A second answer, which DNS rebinding would give, is never asked for."""
    recorder, names = Recorder(), Names(["8.8.8.8"], ["127.0.0.1"])
    transport = PinnedTransport(resolve=names, inner=recorder)
    await send_through(transport, "https://hook.example:8443/in?x=1")
    (request,) = recorder.requests
    assert str(request.url) == "https://8.8.8.8:8443/in?x=1"
    assert request.headers["Host"] == "hook.example:8443"
    assert request.extensions["sni_hostname"] == "hook.example"
    assert names.asked == ["hook.example"]
    assert json.loads(request.content)["action"] == "trigger"


async def test_the_next_address_is_tried_when_one_takes_no_connection() -> None:
    recorder = Recorder("2606:4700::1111")
    transport = PinnedTransport(resolve=Names(["2606:4700::1111", "1.1.1.1"]), inner=recorder)
    await send_through(transport, "https://hook.example/")
    assert [r.url.host for r in recorder.requests] == ["2606:4700::1111", "1.1.1.1"]


@pytest.mark.parametrize("addresses", [[], ["1.1.1.1", "8.8.8.8"]])
async def test_a_name_without_a_reachable_address_is_deferred(addresses: list[str]) -> None:
    transport = PinnedTransport(resolve=Names(addresses), inner=Recorder("1.1.1.1", "8.8.8.8"))
    with pytest.raises(DeliveryDeferred, match="no answer"):
        await send_through(transport, "https://hook.example/")


async def test_a_name_that_does_not_resolve_is_deferred() -> None:
    async def nothing(host: str, port: int) -> Sequence[str]:
        return await resolve_host("name-of-nothing.invalid", port)

    with pytest.raises(DeliveryDeferred, match="no answer"):
        await send_through(PinnedTransport(resolve=nothing), "https://hook.example/")


async def test_a_pinned_request_arrives_with_the_name_in_its_host_header(
    pagerduty: FakePagerDuty,
) -> None:
    pagerduty.answer(200)
    url = pagerduty.url.replace("127.0.0.1", "hook.example")
    transport = PinnedTransport(allow_private=True, resolve=Names(["127.0.0.1"]))
    await send_through(transport, url)
    await transport.aclose()
    assert pagerduty.received[0].headers["Host"] == httpx.URL(url).netloc.decode()


async def test_tls_asks_for_the_name_and_not_for_the_address() -> None:
    """The server has no certificate: the handshake fails, but first it hears the name."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    transport = PinnedTransport(allow_private=True, resolve=Names(["127.0.0.1"]))
    with pytest.raises(DeliveryDeferred, match="no answer"):
        await send_through(transport, f"https://hook.example:{port}/")
    await transport.aclose()
    server.close()
    assert asked == ["hook.example"]


# --- Configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"url": "https://h.example"}, {"secret": "s"}, {"url": "https://h.example", "secret": ""}],
)
def test_a_url_and_a_secret_belong_together(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="url and secret"):
        Webhook(WebhookSettings.model_validate(settings), 5.0)
