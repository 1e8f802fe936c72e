"""What people do in PagerDuty comes back: its V3 webhooks become commands.

The facts are those of PagerDuty's developer documentation ("Webhooks: Overview",
"Verifying Signatures", "Behavior").

Delivery guarantee: 202 means that the command is where the responder will find it.
What could not be handed on is answered 503, and PagerDuty sends it again; a repeat makes
a command of the same id, which changes nothing. Nothing is read of a request that is not
signed, is larger than `BODY_BYTES_MAX`, or takes longer than `READ_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web
from msgspec import Struct

from pipeline.errors import RetryableError
from pipeline.sinks.pagerduty import KEY_PREFIX, PagerDuty
from schemas.command import NAME_CHARS, TEXT_CHARS, Command, Verb

logger = logging.getLogger(__name__)

PATH = "/hooks/pagerduty"
SIGNATURE_HEADER = "X-PagerDuty-Signature"
#: PagerDuty drops what is larger than this itself.
BODY_BYTES_MAX = 256 * 1024
READ_TIMEOUT_S = 5.0
#: It goes on trying for some 20 minutes, with others waiting behind; what is older is a replay.
AGE_MAX_S = 3_600.0
#: A clock may be ahead of ours by this.
AHEAD_MAX_S = 300.0
#: Events that were taken are known again, the latest so many.
REMEMBERED = 4_096
_SIGNATURES_MAX = 16

_VERBS = {
    "incident.triggered": Verb.LINK,
    "incident.acknowledged": Verb.ACKNOWLEDGE,
    "incident.unacknowledged": Verb.UNACKNOWLEDGE,
    "incident.resolved": Verb.RESOLVE,
    "incident.reopened": Verb.REOPEN,
    "incident.annotated": Verb.NOTE,
}

Submit = Callable[[Sequence[Command]], Awaitable[None]]


class _Named(Struct):
    id: str = ""
    summary: str | None = None


class _Data(Struct):
    """An incident; for a note, the note with the incident inside."""

    id: str = ""
    incident_key: str | None = None
    incident: _Named | None = None
    content: str | None = None


class _Event(Struct):
    id: str
    event_type: str
    occurred_at: dt.datetime
    agent: _Named | None = None
    data: _Data = msgspec.field(default_factory=_Data)


class _Payload(Struct):
    event: _Event


_decode = msgspec.json.Decoder(_Payload).decode


def sign(secret: str, body: bytes) -> str:
    """Return one signature as PagerDuty writes it: ``v1=`` and the hex HMAC-SHA256 of the body."""
    return "v1=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def is_signed(secret: str, header: str, body: bytes) -> bool:
    """Say whether one of the signatures is ours; there are several while a secret is changed."""
    expected = sign(secret, body).encode()
    items = header.encode("utf-8", "surrogateescape").split(b",", _SIGNATURES_MAX)
    return any(hmac.compare_digest(expected, item.strip()) for item in items[:_SIGNATURES_MAX])


def read_command(event: _Event) -> Command | None:
    """Return what the event wants done; None for what is none of ours.

    A note does not carry our key but only PagerDuty's own id of the incident, which every
    other event of it carries beside the key.
    """
    verb = _VERBS.get(event.event_type)
    if verb is None:
        return None
    data = event.data
    is_note = verb is Verb.NOTE
    key = (data.incident_key or "") if not is_note else ""
    external = (data.incident.id if data.incident else "") if is_note else data.id
    if not (external if is_note else key.startswith(KEY_PREFIX)):
        return None
    return Command(
        command_id=f"{PagerDuty.name}/{event.id}"[:NAME_CHARS],
        verb=verb,
        incident_id=key.removeprefix(KEY_PREFIX)[:NAME_CHARS],
        time_ms=round(event.occurred_at.timestamp() * 1000),
        by=((event.agent.summary if event.agent else None) or PagerDuty.name)[:NAME_CHARS],
        text=(data.content or "")[:TEXT_CHARS],
        via=PagerDuty.name,
        external_id=external[:NAME_CHARS],
    )


class PagerDutyHook:
    """The handler of one secret. Calling it adds its route to an aiohttp application."""

    def __init__(self, secret: str, submit: Submit, clock: Callable[[], float]) -> None:
        """`clock` gives unix seconds; `submit` raises RetryableError while it cannot hand on."""
        if not secret:
            raise ValueError("without a secret anyone could sign")
        self._secret = secret
        self._submit = submit
        self._clock = clock
        self._taken: OrderedDict[str, None] = OrderedDict()

    def __call__(self, app: web.Application) -> None:
        app.router.add_post(PATH, self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await _read_body(request)
        except TimeoutError:
            return _refuse(408, "too slow")
        if body is None:
            return _refuse(413, "too large")
        if not is_signed(self._secret, request.headers.get(SIGNATURE_HEADER, ""), body):
            return _refuse(401, "not signed, or not with our secret")
        return await self._take(body)

    async def _take(self, body: bytes) -> web.Response:
        try:
            event = _decode(body).event
        except msgspec.MsgspecError:
            return _refuse(400, "not an event of a V3 webhook")
        if event.occurred_at.tzinfo is None:
            return _refuse(400, "a time without its zone")
        age_s = self._clock() - event.occurred_at.timestamp()
        if not -AHEAD_MAX_S <= age_s <= AGE_MAX_S:
            return _refuse(403, "too old, or from the future: perhaps a replay")
        command = read_command(event)
        if command is None or event.id in self._taken:
            return web.Response(status=202)
        try:
            await self._submit([command])
        except RetryableError as error:
            logger.warning("a command from PagerDuty could not be handed on: %s", error)
            return web.Response(status=503, headers={"Retry-After": "5"})
        self._remember(event.id)
        return web.Response(status=202)

    def _remember(self, event_id: str) -> None:
        self._taken[event_id] = None
        while len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)


async def _read_body(request: web.Request) -> bytes | None:
    """Return the raw body; None as soon as it is too large, whatever the application allows."""
    if (request.content_length or 0) > BODY_BYTES_MAX:
        return None
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > BODY_BYTES_MAX:
            return None
    return bytes(body)


def _refuse(status: int, reason: str) -> web.Response:
    logger.info("a request to %s was refused: %s", PATH, reason)
    return web.Response(status=status, text=reason)
