"""Incidents on a real fleet: PagerDuty's people and the command line, and a crash between."""

from __future__ import annotations

import datetime as dt
import json
import time
import urllib.request
from collections.abc import Callable
from urllib.error import URLError

import pytest

from pipeline import commanding
from pipeline.commanding import Outcome
from pipeline.config import Config, TopicSettings
from pipeline.pagerduty_webhook import PATH, SIGNATURE_HEADER, sign
from schemas.alarm import encode_alarm
from schemas.command import Command, Verb
from tests.support.alarms import make_alarm
from tests.support.pagerduty import ROUTING_KEY, FakePagerDuty
from tests.support.workers import Stack, free_port

pytestmark = pytest.mark.kafka
SECRET = "a secret of this test"


@pytest.fixture
def stack(start_stack: Callable[..., Stack]) -> Stack:
    return start_stack(TopicSettings(partitions=1, signals_partitions=1))


def tell_webhook(port: int, kind: str, event_id: str, data: dict[str, object]) -> int:
    now = dt.datetime.now(dt.UTC).isoformat()
    event = {"id": event_id, "event_type": kind, "occurred_at": now, "data": data}
    event["agent"] = {"id": "P1", "summary": "Aiko Mori"}
    body = json.dumps({"event": event}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}", body, {SIGNATURE_HEADER: sign(SECRET, body)}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 — ours
        return int(answer.status)


def listens(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2):
            return True
    except URLError:
        return False


def send_alarm(stack: Stack) -> str:
    from kafka import KafkaProducer

    from pipeline.topics import client_settings

    now_ms = round(time.time() * 1000)
    alarm = make_alarm(1, {"route": "chat"}, time_ms=now_ms, change_time_ms=now_ms - 60_000)
    producer = KafkaProducer(**client_settings(stack.kafka))
    producer.send(stack.kafka.alarms_topic, encode_alarm(alarm), partition=0).get(timeout=10)
    producer.close()
    return f"inc-{alarm.alarm_id}"


def test_people_take_part_from_both_sides_and_a_crash_loses_nothing(
    stack: Stack, pagerduty: FakePagerDuty
) -> None:
    port = free_port()
    stack.extra = {
        "KIZASHI_NOTIFY__PAGERDUTY__ROUTING_KEY": ROUTING_KEY,
        "KIZASHI_NOTIFY__PAGERDUTY__URL": pagerduty.url,
        "KIZASHI_NOTIFY__PAGERDUTY__WEBHOOK_SECRET": SECRET,
        "KIZASHI_WEB__PORT": str(port),
    }
    incident_id = send_alarm(stack)
    worker = stack.worker()
    stack.wait(lambda: pagerduty.actions == ["trigger"], 60, "the page")
    stack.wait(lambda: listens(port), 30, "the page's server")

    data = {"id": "PGR0VU2", "incident_key": pagerduty.accepted[0]["dedup_key"]}
    assert tell_webhook(port, "incident.acknowledged", "e1", data) == 202
    note = {"id": "N1", "content": "on it", "incident": {"id": "PGR0VU2"}}
    assert tell_webhook(port, "incident.annotated", "e2", note) == 202
    noted = "SELECT count() FROM incidents WHERE stage = 'acknowledged' AND incident LIKE '%on it%'"
    stack.wait(lambda: stack.count(noted) == 1, 30, "the acknowledgement and the note")
    who = stack.store.rows("SELECT acknowledged_by FROM incidents")
    assert who == [("Aiko Mori",)]

    worker.kill()
    config = Config(kafka=stack.kafka, clickhouse=stack.clickhouse)
    patience, commanding.EFFECT_TIMEOUT_S = commanding.EFFECT_TIMEOUT_S, 0.1
    command = Command(
        command_id="c1",
        verb=Verb.RESOLVE,
        incident_id=incident_id[:8],
        time_ms=round(time.time() * 1000),
        by="ben",
    )
    try:
        outcome, _ = commanding.give(config, command)
    finally:
        commanding.EFFECT_TIMEOUT_S = patience
    assert outcome is Outcome.WAITING
    commanding.publish(config, Command(**{**_fields(command), "incident_id": incident_id}))
    worker.start()
    resolved = "SELECT count() FROM incidents WHERE stage = 'resolved'"
    stack.wait(lambda: stack.count(resolved) == 1, 60, "the resolution")
    stack.wait(lambda: pagerduty.actions == ["trigger", "resolve"], 30, "the end of the page")
    assert pagerduty.open_alerts == []


def _fields(command: Command) -> dict[str, object]:
    return {name: getattr(command, name) for name in command.__struct_fields__}
