"""PagerDuty: events that the real one would take, and answers read for what they mean."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import structs
from pydantic import SecretStr

from pipeline.config import PagerDutySettings
from pipeline.errors import ConfigError, DeliveryDeferred, DeliveryRefused
from pipeline.sinks.pagerduty import PagerDuty, build_event, dedup_key
from schemas.alarm import Direction, Rate
from schemas.incident import Action, Cause, Incident, Severity, Status
from schemas.signal import Signal
from tests.support.pagerduty import (
    ALARM,
    EVENT_SCHEMA,
    INCIDENT,
    ROUTING_KEY,
    FakePagerDuty,
    make_incident,
    make_notification,
)

NOW_S = 1_760_000_000.0
LINK = "https://kizashi.example/incidents/{incident_id}?from=page"
LABELS = st.dictionaries(st.sampled_from(["route", "tenant", "request_model"]), st.text())


def make_destination(url: str, *, key: str = ROUTING_KEY, timeout_s: float = 5.0) -> PagerDuty:
    settings = PagerDutySettings.model_validate({"url": url, "routing_key": key})
    return PagerDuty(settings, timeout_s, LINK, clock=lambda: NOW_S)


@pytest.fixture
async def destination(pagerduty: FakePagerDuty) -> Any:
    destination = make_destination(pagerduty.url)
    yield destination
    await destination.close()


async def test_a_trigger_says_everything(pagerduty: FakePagerDuty, destination: PagerDuty) -> None:
    await destination.send(make_notification())
    (event,) = pagerduty.accepted
    href = "https://kizashi.example/incidents/inc-1?from=page"
    assert event == {
        "routing_key": ROUTING_KEY,
        "event_action": "trigger",
        "dedup_key": "kizashi/inc-1",
        "client": "Kizashi",
        "client_url": href,
        "links": [{"href": href, "text": "The incident in Kizashi"}],
        "payload": {
            "summary": "Refusals rose from 2.1% to 6.4% for prompt_version=7",
            "source": "prompt_version=7",
            "severity": "error",
            "timestamp": "2025-10-09T08:53:20.000Z",
            "component": "gpt-4o",
            "group": "support",
            "class": "refusal",
            "custom_details": {
                "incident_id": "inc-1",
                "what_changed": "refusals rose from 2.1% to 6.4%",
                "baseline": "210 of 10,000 (2.1%)",
                "current": "64 of 1,000 (6.4%)",
                "since": "2025-10-09T08:52:20.000Z",
                "evidence": "e-value 3.2 million, over the threshold of 1 million"
                " that keeps false pages within the budget",
                "cause": "prompt_version=7 carries 83% of the excess:"
                " 19 of 1,000 (1.9%) before, 60 of 270 (22%) since",
                "labels": {"prompt_version": "7"},
                "symptom": "invalid inference",
                "likely_root_cause": "configuration",
                "explanation": [
                    "prompt_version=7: 83% of the excess, surprise 0.31;"
                    " 19 of 1,000 (1.9%) before, 60 of 270 (22%) since",
                    "all traffic: 100% of the excess, surprise 0.00;"
                    " 210 of 10,000 (2.1%) before, 64 of 1,000 (6.4%) since",
                ],
                "suggestion": "Roll the prompt template back to the version before this one.",
                "example_event_ids": ["e-1", "e-2"],
                "alarms": ["request_model=gpt-4o, route=support: refusals rose from 2.1% to 6.4%"],
            },
        },
    }


async def test_an_incident_is_one_alert(pagerduty: FakePagerDuty, destination: PagerDuty) -> None:
    worse = make_incident(version=2, severity=Severity.CRITICAL)
    over = make_incident(version=3, status=Status.RESOLVED)
    await destination.send(make_notification())
    await destination.send(make_notification(Action.UPDATE, worse))
    (alert,) = pagerduty.open_alerts
    assert (alert.severity, len(alert.events)) == ("critical", 2)
    await destination.send(make_notification(Action.RESOLVE, over))
    assert pagerduty.open_alerts == []
    assert pagerduty.accepted[-1] == {
        "routing_key": ROUTING_KEY,
        "event_action": "resolve",
        "dedup_key": "kizashi/inc-1",
    }


@pytest.mark.parametrize(
    "incident_id", ["inc-1", "x" * 200, "x" * 201, "a b", "a\nb", "", "é", "a/b"]
)
def test_a_dedup_key_is_short_plain_and_the_same_each_time(incident_id: str) -> None:
    key = dedup_key(incident_id)
    assert key == dedup_key(incident_id)
    assert len(key) <= 255
    assert key.isascii()
    assert key.isprintable()


@given(
    st.text(st.sampled_from("ab:/ \n"), max_size=4), st.text(st.sampled_from("ab:/ \n"), max_size=4)
)
def test_two_incidents_never_share_a_key(one: str, other: str) -> None:
    assert (dedup_key(one) == dedup_key(other)) == (one == other)


# --- Answers -------------------------------------------------------------------------------------


async def test_a_refusal_carries_the_servers_words(pagerduty: FakePagerDuty) -> None:
    pagerduty.routing_keys = ()
    destination = make_destination(pagerduty.url)
    with pytest.raises(DeliveryRefused, match="400: Event object is invalid: Invalid routing key"):
        await destination.send(make_notification())
    await destination.close()


async def test_a_refusal_that_is_no_json_is_quoted_in_one_line(
    pagerduty: FakePagerDuty, destination: PagerDuty
) -> None:
    pagerduty.answer(400, times=1, body=b"<h1>no\n\x1b[31m</h1>" + b"x" * 10_000)
    with pytest.raises(DeliveryRefused) as caught:
        await destination.send(make_notification())
    assert str(caught.value).startswith("answered 400: <h1>no </h1>xxx")
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("120", 120.0),
        ("Thu, 09 Oct 2025 08:55:20 GMT", 120.0),
        ("Thu, 09 Oct 2025 08:00:00 GMT", 0.0),
        ("86400", 3_600.0),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        (None, None),
    ],
)
async def test_too_many_requests_says_when_to_come_back(
    pagerduty: FakePagerDuty, destination: PagerDuty, header: str | None, expected: float | None
) -> None:
    pagerduty.answer(429, times=1, retry_after=header)
    with pytest.raises(DeliveryDeferred) as caught:
        await destination.send(make_notification())
    assert caught.value.retry_after_s == expected


@pytest.mark.parametrize("status", [500, 502, 503, 504, 401, 403, 404, 407, 302])
async def test_what_is_not_pagerdutys_no_is_deferred(
    pagerduty: FakePagerDuty, destination: PagerDuty, status: int
) -> None:
    pagerduty.answer(status, times=1, headers={"Location": pagerduty.url})
    with pytest.raises(DeliveryDeferred, match=f"answered {status}"):
        await destination.send(make_notification())
    assert pagerduty.accepted == []
    assert len(pagerduty.received) == 1


async def test_silence_is_deferred(pagerduty: FakePagerDuty) -> None:
    destination = make_destination(pagerduty.url, timeout_s=0.1)
    pagerduty.hang(times=1)
    with pytest.raises(DeliveryDeferred, match="no answer"):
        await destination.send(make_notification())
    await destination.close()


async def test_a_dropped_connection_is_deferred_and_the_repeat_is_the_same_alert(
    pagerduty: FakePagerDuty, destination: PagerDuty
) -> None:
    pagerduty.drop(times=1, accept=True)
    with pytest.raises(DeliveryDeferred, match="no answer"):
        await destination.send(make_notification())
    await destination.send(make_notification())
    assert [e["dedup_key"] for e in pagerduty.accepted] == ["kizashi/inc-1"] * 2
    assert len(pagerduty.alerts) == 1


async def test_nobody_listening_is_deferred(pagerduty: FakePagerDuty) -> None:
    pagerduty.__exit__()
    destination = make_destination(pagerduty.url)
    with pytest.raises(DeliveryDeferred, match="no answer"):
        await destination.send(make_notification())
    await destination.close()


# --- Hostile texts and secrets -------------------------------------------------------------------

HOSTILE = "x\nRESOLVED\x1b[31m \u202etxet [click](http://evil.example)" + "y" * 10_000


async def test_hostile_texts_come_out_neutral(
    pagerduty: FakePagerDuty, destination: PagerDuty
) -> None:
    labels = {"route": HOSTILE, "tenant": HOSTILE, "request_model": HOSTILE}
    incident = make_incident(
        HOSTILE,
        summary=HOSTILE,
        suggestion=HOSTILE,
        cause=Cause(labels, 0.5, Rate(1, 2), Rate(3, 4)),
        alarms=(structs.replace(ALARM, monitor=labels),) * 50,
        example_event_ids=(HOSTILE,) * 50,
    )
    await destination.send(make_notification(incident=incident))
    (event,) = pagerduty.accepted
    assert len(event["payload"]["summary"]) == 1_024
    assert event["payload"]["summary"].startswith("x RESOLVED txet [click](http[:]//evil.example)y")
    assert len(pagerduty.received[0].body) < 64_000
    shown = [event["client_url"], *leaves(event["payload"])]
    assert not [text for text in shown if not text.isprintable()]
    assert not [text for text in leaves(event["payload"]) if "://" in text]
    assert event["client_url"].startswith("https://kizashi.example/incidents/x%0ARESOLVED")
    assert event["payload"]["custom_details"]["alarms"][-1] == "and 30 more"


def leaves(value: Any) -> list[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, dict):
        return [leaf for item in value.items() for part in item for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value] if isinstance(value, str) else []


ALARMS = st.builds(
    lambda **changes: structs.replace(ALARM, **changes),
    monitor=LABELS,
    signal=st.sampled_from(Signal),
    direction=st.sampled_from(Direction),
    e_value=st.floats(0, allow_nan=False),
    current=st.builds(Rate, st.integers(0, 10**9), st.integers(0, 10**9)),
    edge=st.none() | st.floats(0, 1e9),
)
INCIDENTS = st.builds(
    make_incident,
    incident_id=st.text(),
    severity=st.sampled_from(Severity),
    summary=st.text(),
    suggestion=st.text(),
    cause=st.builds(Cause, LABELS, st.floats(0, 1), st.just(Rate(0, 0)), st.just(Rate(1, 3))),
    alarms=st.lists(ALARMS, max_size=3).map(tuple),
)


@given(INCIDENTS, st.sampled_from(Action), st.sampled_from(["", LINK]))
def test_every_incident_makes_an_event_that_pagerduty_takes(
    incident: Incident, action: Action, link: str
) -> None:
    event = build_event(make_notification(action, incident), link)
    Draft202012Validator(EVENT_SCHEMA).validate({"routing_key": ROUTING_KEY, **event})


def test_without_a_configured_link_there_is_none() -> None:
    assert not {"links", "client_url"} & set(build_event(make_notification()))


async def test_the_routing_key_shows_nowhere(
    pagerduty: FakePagerDuty, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "CANARY00000000000000000000000000"
    destination = make_destination(pagerduty.url, key=canary, timeout_s=0.1)
    texts = [repr(destination), str(destination)]
    pagerduty.hang(times=1)
    pagerduty.drop(times=1)
    pagerduty.answer(500, times=1, body=canary.encode())
    pagerduty.answer(400, times=1, body=json.dumps({"message": f"bad key {canary}"}).encode())
    pagerduty.answer(400, times=1, body=canary.encode())
    for _ in range(5):
        with pytest.raises((DeliveryDeferred, DeliveryRefused)) as caught:
            await destination.send(make_notification())
        texts += [*traceback.format_exception(caught.value), repr(caught.value)]
    await destination.close()
    assert all(canary.encode() in request.body for request in pagerduty.received)
    assert len(pagerduty.received) == 5
    assert "bad key [routing key]" in "".join(texts)
    assert canary not in "".join(texts) + caplog.text


# --- Configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "routing_key"),
        ({"routing_key": "short"}, "32 characters"),
        ({"routing_key": ROUTING_KEY, "url": "http://events.example/v2/enqueue"}, "plain http"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(settings: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        PagerDuty(PagerDutySettings.model_validate(settings), 5.0)
    assert "short" not in str(caught.value)


def test_settings_hide_the_key() -> None:
    settings = PagerDutySettings(routing_key=SecretStr(ROUTING_KEY))
    assert ROUTING_KEY not in repr(settings)


async def test_the_fake_refuses_what_the_real_one_would(pagerduty: FakePagerDuty) -> None:
    """A fake that takes anything would prove nothing."""
    good = {"routing_key": ROUTING_KEY, **build_event(make_notification(incident=INCIDENT))}
    payload = good["payload"]
    bad = [
        {**good, "routing_key": "short"},
        {**good, "event_action": "update"},
        {**good, "dedup_key": "x" * 256},
        {**good, "payload": {**payload, "summary": "x" * 1_025}},
        {**good, "payload": {**payload, "severity": "high"}},
        {**good, "payload": {k: v for k, v in payload.items() if k != "source"}},
        {**good, "links": [{"text": "no address"}]},
        {k: v for k, v in good.items() if k != "payload"},
        {"routing_key": ROUTING_KEY, "event_action": "resolve"},
        {**good, "payload": {**payload, "custom_details": {"x": "x" * 600_000}}},
    ]
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.post(pagerduty.url, json=event) for event in bad]
        accepted = await client.post(pagerduty.url, json=good)
    assert [answer.status_code for answer in answers] == [400] * len(bad)
    assert all(answer.json()["errors"] for answer in answers)
    assert (accepted.status_code, accepted.json()) == (
        202,
        {"status": "success", "message": "Event processed", "dedup_key": "kizashi/inc-1"},
    )
