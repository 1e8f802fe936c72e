"""A fake PagerDuty: a real HTTP server on loopback that holds events to the published rules.

The rules are those of the Events API v2 (PagerDuty/api-schema,
``reference/events-v2/openapiv3.json``, and the pages "Overview" and "Trigger
Events" of its documentation): required fields, enumerations, lengths, 512 KB.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from msgspec import structs

from schemas.alarm import Alarm, Direction, Rate, Transition
from schemas.incident import (
    Action,
    Attribution,
    Cause,
    Incident,
    Notification,
    RootCause,
    Severity,
    Status,
    Symptom,
)
from schemas.signal import Family, Signal
from tests.support.loopback import LoopbackHandler, LoopbackServer

PATH = "/v2/enqueue"
BYTES_MAX = 512 * 1024
ROUTING_KEY = "R0000000000000000000000000000KEY"

_LINK = {
    "type": "object",
    "required": ["href"],
    "additionalProperties": False,
    "properties": {
        "href": {"type": "string", "pattern": "^https?://"},
        "text": {"type": "string"},
    },
}
_IMAGE = {
    "type": "object",
    "required": ["src"],
    "additionalProperties": False,
    "properties": {
        "src": {"type": "string", "pattern": "^https://"},
        "href": {"type": "string", "pattern": "^https?://"},
        "alt": {"type": "string"},
    },
}
#: Stricter than PagerDuty in one thing: a field that it would pass over is a mistake here.
EVENT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "PagerDuty Events API v2: alert event",
    "type": "object",
    "required": ["routing_key", "event_action"],
    "additionalProperties": False,
    "properties": {
        "routing_key": {"type": "string", "minLength": 32, "maxLength": 32},
        "event_action": {"enum": ["trigger", "acknowledge", "resolve"]},
        "dedup_key": {"type": "string", "minLength": 1, "maxLength": 255},
        "payload": {
            "type": "object",
            "required": ["summary", "source", "severity"],
            "additionalProperties": False,
            "properties": {
                "summary": {"type": "string", "minLength": 1, "maxLength": 1024},
                "source": {"type": "string", "minLength": 1},
                "severity": {"enum": ["critical", "error", "warning", "info"]},
                "timestamp": {
                    "type": "string",
                    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)$",
                },
                "component": {"type": "string"},
                "group": {"type": "string"},
                "class": {"type": "string"},
                "custom_details": {"type": "object"},
            },
        },
        "client": {"type": "string"},
        "client_url": {"type": "string", "pattern": "^https?://"},
        "links": {"type": "array", "items": _LINK},
        "images": {"type": "array", "items": _IMAGE},
    },
    "if": {"properties": {"event_action": {"const": "trigger"}}},
    "then": {"required": ["payload"]},
    "else": {"required": ["dedup_key"]},
}
_VALIDATOR = Draft202012Validator(EVENT_SCHEMA, format_checker=FormatChecker())


def validate_event(event: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError for an event that is against the published rules."""
    _VALIDATOR.validate(event)


@dataclass(frozen=True)
class Received:
    """One request as it came in, and what was answered (None: nothing)."""

    status: int | None
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Alert:
    """What a person sees: all events with one key from its first trigger to its resolve."""

    dedup_key: str
    status: str = "triggered"
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def severity(self) -> str:
        return [e for e in self.events if e["event_action"] == "trigger"][-1]["payload"]["severity"]


@dataclass(frozen=True)
class Fault:
    """How a request goes wrong."""

    #: Answer this instead of handling the event.
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    #: Handle the event before going wrong.
    accept: bool = False
    #: Keep the connection open without a word, instead of closing it.
    hang: bool = False


class FakePagerDuty(LoopbackServer):
    """Use as a context manager; everything it holds may be read from any thread.

    Faults set for a number of requests are used up in order; one set without a
    number stays until `recover`.
    """

    def __init__(self, routing_keys: tuple[str, ...] = (ROUTING_KEY,)) -> None:
        super().__init__(_Handler)
        self.routing_keys = routing_keys
        self.received: list[Received] = []
        self.accepted: list[dict[str, Any]] = []
        self.alerts: list[Alert] = []
        self._faults: deque[Fault] = deque()
        self._outage: Fault | None = None
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"{self.origin}{PATH}"

    # What it shall do next.

    def answer(
        self,
        status: int,
        *,
        times: int | None = None,
        retry_after: str | None = None,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Answer `status` to the next `times` requests, or until `recover`."""
        named = dict(headers or {}) | ({"Retry-After": retry_after} if retry_after else {})
        self._fail(Fault(status, tuple(named.items()), body), times)

    def hang(self, *, times: int | None = None, accept: bool = False) -> None:
        """Answer nothing, and keep the connection open; with `accept`, take the event first."""
        self._fail(Fault(accept=accept, hang=True), times)

    def drop(self, *, times: int | None = None, accept: bool = True) -> None:
        """Take the event, and close the connection without an answer."""
        self._fail(Fault(accept=accept), times)

    def recover(self) -> None:
        """Work again."""
        with self._lock:
            self._faults.clear()
            self._outage = None

    def _fail(self, fault: Fault, times: int | None) -> None:
        with self._lock:
            if times is None:
                self._outage = fault
            else:
                self._faults.extend([fault] * times)

    # What it holds.

    @property
    def actions(self) -> list[str]:
        return [event["event_action"] for event in self.accepted]

    @property
    def open_alerts(self) -> list[Alert]:
        return [alert for alert in self.alerts if alert.status != "resolved"]

    def find_open(self, dedup_key: str) -> Alert | None:
        return next((a for a in self.open_alerts if a.dedup_key == dedup_key), None)

    # How it handles a request.

    def take(
        self, body: bytes, headers: dict[str, str]
    ) -> tuple[Fault | None, int, dict[str, Any]]:
        """Return the fault to act out, if any, and the answer."""
        with self._lock:
            fault = self._faults.popleft() if self._faults else self._outage
            status, answer = (0, {}) if fault and not fault.accept else self._handle(body)
            shown = status if fault is None else fault.status
            self.received.append(Received(shown, headers, body))
            return fault, status, answer

    def _handle(self, body: bytes) -> tuple[int, dict[str, Any]]:
        try:
            event = json.loads(body)
        except ValueError:
            return 400, _refuse(
                "Unrecognized object", "Event object format is unrecognized", ["JSON parse error"]
            )
        errors = [f"{e.json_path}: {e.message}" for e in _VALIDATOR.iter_errors(event)]
        if len(body) > BYTES_MAX:
            errors.append(f"the event is {len(body)} bytes; at most {BYTES_MAX} are taken")
        if not errors and event["routing_key"] not in self.routing_keys:
            errors.append("Invalid routing key")
        if errors:
            return 400, _refuse("invalid event", "Event object is invalid", errors)
        return 202, self._accept(event)

    def _accept(self, event: dict[str, Any]) -> dict[str, Any]:
        key = event.get("dedup_key") or f"{len(self.accepted):032x}"
        self.accepted.append(event)
        alert = self.find_open(key)
        if event["event_action"] == "trigger" and alert is None:
            alert = Alert(key)
            self.alerts.append(alert)
        if alert is not None:
            alert.events.append(event)
            changed = {"acknowledge": "acknowledged", "resolve": "resolved"}
            alert.status = changed.get(event["event_action"], alert.status)
        return {"status": "success", "message": "Event processed", "dedup_key": key}


def _refuse(status: str, message: str, errors: list[str]) -> dict[str, Any]:
    return {"status": status, "message": message, "errors": errors}


class _Handler(LoopbackHandler):
    fake: FakePagerDuty

    def respond(self) -> None:
        body = self.read_body()
        if urlsplit(self.path).path != PATH:
            self.answer(404, b"")
            return
        fault, status, answer = self.fake.take(body, dict(self.headers.items()))
        if fault is None:
            self.answer(status, json.dumps(answer).encode())
        elif fault.status is not None:
            self.answer(fault.status, fault.body, *fault.headers)
        else:
            if fault.hang:
                self.fake.wait_for_close()
            self.hang_up()


@pytest.fixture(name="pagerduty")
def pagerduty_fixture() -> Iterator[FakePagerDuty]:
    """A PagerDuty that works until a test tells it otherwise."""
    with FakePagerDuty() as pagerduty:
        yield pagerduty


OPENED_MS = 1_760_000_000_000
ALARM = Alarm(
    alarm_id="a1",
    transition=Transition.RAISED,
    event_index=12_345,
    time_ms=OPENED_MS,
    grouping="request_model,route",
    monitor={"request_model": "gpt-4o", "route": "support"},
    family=Family.REFUSAL,
    signal=Signal.REFUSAL,
    direction=Direction.RISE,
    e_value=3.2e6,
    threshold=1e6,
    baseline=Rate(210, 10_000),
    current=Rate(64, 1_000),
    change_time_ms=OPENED_MS - 60_000,
)
INCIDENT = Incident(
    incident_id="inc-1",
    version=1,
    status=Status.OPEN,
    severity=Severity.ERROR,
    family=Family.REFUSAL,
    symptom=Symptom.INVALID_INFERENCE,
    root_cause=RootCause.CONFIGURATION,
    opened_ms=OPENED_MS,
    updated_ms=OPENED_MS,
    explained_ms=OPENED_MS,
    last_alarm_ms=OPENED_MS,
    change_time_ms=OPENED_MS - 60_000,
    summary="Refusals rose from 2.1% to 6.4% for prompt_version=7",
    suggestion="Roll the prompt template back to the version before this one.",
    cause=Cause({"prompt_version": "7"}, 0.83, Rate(19, 1_000), Rate(60, 270)),
    explanation=(
        Attribution({"prompt_version": "7"}, 0.83, 0.31, Rate(19, 1_000), Rate(60, 270)),
        Attribution({}, 1.0, 0.0, Rate(210, 10_000), Rate(64, 1_000)),
    ),
    alarms=(ALARM,),
    example_event_ids=("e-1", "e-2"),
)


def make_incident(incident_id: str = "inc-1", version: int = 1, **changes: Any) -> Incident:
    """An incident to tell about; each version a second later than the last."""
    if changes.get("status") is Status.RESOLVED:
        changes.setdefault("resolved_ms", OPENED_MS + version * 1_000)
    return structs.replace(
        INCIDENT,
        incident_id=incident_id,
        version=version,
        updated_ms=OPENED_MS + version * 1_000,
        **changes,
    )


def make_notification(
    action: Action = Action.TRIGGER, incident: Incident = INCIDENT, destination: str = "pagerduty"
) -> Notification:
    return Notification(
        incident_id=incident.incident_id,
        destination=destination,
        sequence=incident.version,
        action=action,
        incident=incident,
    )
