"""What people do in PagerDuty comes back, once, and from PagerDuty only."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SinkUnavailable
from pipeline.pagerduty_webhook import (
    AGE_MAX_S,
    AHEAD_MAX_S,
    BODY_BYTES_MAX,
    PATH,
    SIGNATURE_HEADER,
    PagerDutyHook,
    is_signed,
    sign,
)
from schemas.command import Command, Verb

SECRET = "a secret that PagerDuty made"
NOW_S = 1_760_000_000.0
#: As the documentation shows an event about an incident, shortened to what is looked at.
ACKNOWLEDGED: dict[str, Any] = {
    "event": {
        "id": "01AAAAAAAAAAAAAAAAAAAAAAAA",
        "event_type": "incident.acknowledged",
        "resource_type": "incident",
        "occurred_at": "2025-10-09T08:53:10.123Z",
        "agent": {"id": "PLH1HKV", "summary": "Aiko Mori", "type": "user_reference"},
        "client": None,
        "data": {
            "id": "PGR0VU2",
            "type": "incident",
            "number": 2,
            "status": "acknowledged",
            "incident_key": "kizashi/inc-1",
            "resolve_reason": None,
        },
    }
}
ANNOTATED: dict[str, Any] = {
    "event": {
        **ACKNOWLEDGED["event"],
        "event_type": "incident.annotated",
        "data": {
            "incident": {"id": "PGR0VU2", "summary": "Refusals rose", "type": "incident_reference"},
            "id": "P2LA89X",
            "content": "rolling back v7",
            "trimmed": False,
            "type": "incident_note",
        },
    }
}


class Desk:
    """A hook behind a real server, and the commands that it handed on."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.now_s = NOW_S
        self.away = 0
        self.commands: list[Command] = []

    async def submit(self, commands: Sequence[Command]) -> None:
        if self.away:
            self.away -= 1
            raise SinkUnavailable("the broker is away")
        self.commands += commands

    async def post(self, payload: Any, signature: str | None = None) -> int:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        headers = {SIGNATURE_HEADER: sign(SECRET, body) if signature is None else signature}
        async with self.session.post(self.url, data=body, headers=headers) as answer:
            return answer.status


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with ClientSession() as session:
        desk = Desk(session, "")
        app = web.Application(client_max_size=8 * BODY_BYTES_MAX)
        PagerDutyHook(SECRET, desk.submit, lambda: desk.now_s)(app)
        async with TestServer(app) as server:
            desk.url = str(server.make_url(PATH))
            yield desk


def event(**changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(ACKNOWLEDGED)
    changed["event"] |= changes
    return changed


async def test_an_acknowledgement_becomes_a_command(desk: Desk) -> None:
    assert await desk.post(ACKNOWLEDGED) == 202
    assert desk.commands == [
        Command(
            command_id="pagerduty/01AAAAAAAAAAAAAAAAAAAAAAAA",
            verb=Verb.ACKNOWLEDGE,
            incident_id="inc-1",
            time_ms=1_759_999_990_123,
            by="Aiko Mori",
            via="pagerduty",
            external_id="PGR0VU2",
        )
    ]


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        ("incident.triggered", Verb.LINK),
        ("incident.unacknowledged", Verb.UNACKNOWLEDGE),
        ("incident.resolved", Verb.RESOLVE),
        ("incident.reopened", Verb.REOPEN),
    ],
)
async def test_each_kind_of_event_has_its_verb(desk: Desk, kind: str, verb: Verb) -> None:
    assert await desk.post(event(event_type=kind, agent=None)) == 202
    (command,) = desk.commands
    assert (command.verb, command.by) == (verb, "pagerduty")


async def test_a_note_is_known_by_pagerdutys_own_id(desk: Desk) -> None:
    assert await desk.post(ANNOTATED) == 202
    (command,) = desk.commands
    assert (command.verb, command.text) == (Verb.NOTE, "rolling back v7")
    assert (command.incident_id, command.external_id) == ("", "PGR0VU2")


async def test_what_is_none_of_ours_is_taken_and_forgotten(desk: Desk) -> None:
    others = event(data={**ACKNOWLEDGED["event"]["data"], "incident_key": "of-another-tool"})
    for payload in (others, event(event_type="service.updated"), event(data={"id": "P1"})):
        assert await desk.post(payload) == 202
    assert desk.commands == []


@pytest.mark.parametrize("signature", ["", "v1=", "v1=00", "nonsense", "v0=" + "0" * 64, "ü,ß"])
async def test_without_our_signature_nothing_is_read(desk: Desk, signature: str) -> None:
    assert await desk.post(ACKNOWLEDGED, signature) == 401
    assert await desk.post(b"\xff", signature) == 401
    assert desk.commands == []


async def test_a_signature_of_another_body_or_secret_is_none(desk: Desk) -> None:
    body = json.dumps(ACKNOWLEDGED).encode()
    assert await desk.post(body, sign(SECRET, body + b" ")) == 401
    assert await desk.post(body, sign("another", body)) == 401
    assert await desk.post(body, f"{sign('another', body)}, {sign(SECRET, body)}") == 202


async def test_a_replay_of_an_old_request_is_refused(desk: Desk) -> None:
    desk.now_s = NOW_S + AGE_MAX_S
    assert await desk.post(ACKNOWLEDGED) == 403
    desk.now_s = NOW_S - AHEAD_MAX_S - 60
    assert await desk.post(ACKNOWLEDGED) == 403
    assert desk.commands == []


async def test_a_repeat_is_answered_and_not_handed_on(desk: Desk) -> None:
    for _ in range(3):
        assert await desk.post(ACKNOWLEDGED) == 202
    assert len(desk.commands) == 1


async def test_what_is_too_large_is_refused(desk: Desk) -> None:
    assert await desk.post(b"x" * (BODY_BYTES_MAX + 1)) == 413
    assert await desk.post(b"x" * BODY_BYTES_MAX) == 400

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2 * BODY_BYTES_MAX // 4_096):
            yield b"x" * 4_096

    async with desk.session.post(desk.url, data=endless()) as answer:
        assert answer.status == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"event": {}}',
        b'{"event": {"id": 1}}',
        json.dumps(event(occurred_at="2025-10-09T08:53:10")).encode(),
        json.dumps(event(occurred_at="yesterday")).encode(),
    ],
)
async def test_a_signed_body_that_is_no_event_is_refused(desk: Desk, body: bytes) -> None:
    assert await desk.post(body) == 400


async def test_while_the_broker_is_away_pagerduty_is_asked_to_come_again(desk: Desk) -> None:
    desk.away = 1
    assert await desk.post(ACKNOWLEDGED) == 503
    assert await desk.post(ACKNOWLEDGED) == 202
    assert len(desk.commands) == 1


async def test_many_at_once_are_each_handed_on(desk: Desk) -> None:
    statuses = await asyncio.gather(*(desk.post(event(id=f"e{i}")) for i in range(50)))
    assert set(statuses) == {202}
    assert len({c.command_id for c in desk.commands}) == 50


def test_without_a_secret_there_is_no_hook() -> None:
    async def submit(commands: Sequence[Command]) -> None: ...

    with pytest.raises(ValueError, match="secret"):
        PagerDutyHook("", submit, lambda: NOW_S)


@given(st.text(min_size=1), st.binary(), st.lists(st.text()))
def test_only_the_right_signature_is_believed(secret: str, body: bytes, others: list[str]) -> None:
    header = ",".join(o.replace(",", "") for o in others[:10])
    assert not is_signed("another " + secret, sign(secret, body), body)
    assert is_signed(secret, f"{header},{sign(secret, body)}", body)
