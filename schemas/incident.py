"""Incidents: one cause, one incident, one page."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct

from schemas.alarm import Alarm, Rate
from schemas.signal import Family


class Status(StrEnum):
    OPEN = "open"
    RESOLVED = "resolved"


class Severity(StrEnum):
    """PagerDuty's four, by its own names."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Cause(Struct, frozen=True):
    """The slice of traffic that carries the excess."""

    #: Dimension → value; more than one only where the slice needs both (prompt name and version).
    labels: dict[str, str]
    #: Share of the excess that lies in this slice, 0 to 1.
    share: float
    #: Rates inside the slice, before and since the change point.
    before: Rate
    after: Rate


class Incident(Struct, frozen=True, kw_only=True):
    """An incident as it stands; every change makes a new one with a higher `version`."""

    incident_id: str
    version: int
    status: Status
    severity: Severity
    family: Family
    opened_ms: int
    updated_ms: int
    resolved_ms: int | None = None
    #: Estimated start of the change.
    change_time_ms: int
    summary: str
    suggestion: str
    #: Features of the answers that moved most, in words; empty where none was looked at.
    moved: str = ""
    cause: Cause
    #: The alarm that opened it comes first.
    alarms: tuple[Alarm, ...]
    #: Ids of the alarms that have cleared since.
    cleared: tuple[str, ...] = ()
    example_event_ids: tuple[str, ...] = ()


class Action(StrEnum):
    """What a destination is told."""

    TRIGGER = "trigger"
    UPDATE = "update"
    RESOLVE = "resolve"


class Notification(Struct, frozen=True, kw_only=True):
    """One message to one destination: stored as pending before it is sent, then as sent.

    Sent in the order of `sequence` for each incident and destination.
    """

    incident_id: str
    destination: str
    sequence: int
    action: Action
    #: The incident as it was when the notification was made.
    incident: Incident
    sent_ms: int | None = None
    attempts: int = 0
    #: The permanent refusal that ended the attempts, if one did.
    failure: str = ""


_incident_decoder = msgspec.json.Decoder(Incident)
_notification_decoder = msgspec.json.Decoder(Notification)


def encode_incident(incident: Incident) -> bytes:
    """Return the incident as JSON."""
    return msgspec.json.encode(incident)


def decode_incident(raw: bytes | str) -> Incident:
    """Inverse of `encode_incident`; raises msgspec.MsgspecError for anything else."""
    return _incident_decoder.decode(raw)


def encode_notification(notification: Notification) -> bytes:
    """Return the notification as JSON."""
    return msgspec.json.encode(notification)


def decode_notification(raw: bytes | str) -> Notification:
    """Inverse of `encode_notification`; raises msgspec.MsgspecError for anything else."""
    return _notification_decoder.decode(raw)
