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


class Stage(StrEnum):
    """How far an incident has come; each has its time."""

    DETECTED = "detected"
    #: Its cause has been looked for in what is stored.
    TRIAGED = "triaged"
    #: A person has taken it on.
    ACKNOWLEDGED = "acknowledged"
    #: Nobody suffers from it any more: all its alarms have cleared, or a person says so.
    MITIGATED = "mitigated"
    RESOLVED = "resolved"


class Symptom(StrEnum):
    """What users notice: the classes of Yan et al., arXiv 2504.08865, section on symptoms."""

    #: What worked answers late, at a higher price, or fails some of the time.
    DEGRADED_PERFORMANCE = "degraded_performance"
    #: What was just put in place does not work, or what worked cannot be reached at all.
    DEPLOYMENT_FAILURE = "deployment_failure"
    #: Answers come, and are not what they should be.
    INVALID_INFERENCE = "invalid_inference"


class RootCause(StrEnum):
    """Where the cause most likely lies: the classes of the same study."""

    INFRASTRUCTURE = "infrastructure"
    CONFIGURATION = "configuration"
    CODE = "code"
    EXTERNAL_USAGE = "external_usage"
    OPERATION = "operation"


class Severity(StrEnum):
    """PagerDuty's four, by its own names."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """From 0, the least, upwards."""
        return _RANK[self]


_RANK = {severity: rank for rank, severity in enumerate(reversed(Severity))}


class Cause(Struct, frozen=True):
    """The slice of traffic that carries the excess."""

    #: Dimension → value; more than one only where the slice needs both (prompt name and version).
    labels: dict[str, str]
    #: Share of the excess that lies in this slice, 0 to 1.
    share: float
    #: Rates inside the slice, before and since the change point.
    before: Rate
    after: Rate


class Attribution(Struct, frozen=True):
    """How much of a change one slice of all traffic explains (Bhagwan et al., NSDI 2014)."""

    labels: dict[str, str]
    #: Its explanatory power: the share of the whole excess that lies in it, 0 to 1.
    share: float
    #: Its surprise: its term of the Jensen-Shannon divergence between where events would have
    #: counted had nothing changed and where they did; nats, 0 to ln 2.
    surprise: float
    #: Rates inside the slice, before and since the change point.
    before: Rate
    after: Rate


class Note(Struct, frozen=True):
    """What somebody wrote about an incident."""

    time_ms: int
    by: str
    text: str
    #: The outside system it came through; empty for our own command line.
    via: str = ""


class Silenced(Struct, frozen=True):
    """Why nobody is told of an incident (see `schemas.silence`)."""

    silence_id: str
    why: str
    by: str
    until_ms: int


class Incident(Struct, frozen=True, kw_only=True):
    """An incident as it stands; every change makes a new one with a higher `version`."""

    incident_id: str
    version: int
    status: Status
    severity: Severity
    family: Family
    symptom: Symptom
    root_cause: RootCause
    #: When it was detected.
    opened_ms: int
    triaged_ms: int | None = None
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    mitigated_ms: int | None = None
    #: Empty where the alarms cleared by themselves.
    mitigated_by: str = ""
    resolved_ms: int | None = None
    resolved_by: str = ""
    #: Who opened it again. From then on only a person resolves it.
    reopened_by: str = ""
    updated_ms: int
    #: Up to when what explains it has been looked for.
    explained_ms: int
    #: When the last of its alarms was raised or cleared.
    last_alarm_ms: int
    #: Estimated start of the change.
    change_time_ms: int
    summary: str
    suggestion: str
    #: Features of the answers that moved most, in words; empty where none was looked at.
    moved: str = ""
    cause: Cause
    #: What explains the change, the cause first and then by how well they do.
    explanation: tuple[Attribution, ...] = ()
    #: True where traffic moved and nothing behaves differently.
    is_mix_shift: bool = False
    #: The alarm that leads it comes first: the one that opened it, or the first that pages.
    alarms: tuple[Alarm, ...]
    #: Ids of the alarms that have cleared since.
    cleared: tuple[str, ...] = ()
    example_event_ids: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    #: Ids of the latest commands that were carried out, so that none is carried out twice.
    commands: tuple[str, ...] = ()
    #: Outside system → what it calls this incident.
    external_ids: dict[str, str] = {}
    #: The outside system through which this version came about; it need not be told.
    via: str = ""
    #: The incident that this one turned out to be a part of; empty for most.
    merged_into: str = ""
    #: The silence that it lies within, or lay within when it was over.
    silenced: Silenced | None = None

    @property
    def stage(self) -> Stage:
        """How far it has come."""
        if self.status is Status.RESOLVED:
            return Stage.RESOLVED
        if self.mitigated_ms is not None:
            return Stage.MITIGATED
        if self.acknowledged_ms is not None:
            return Stage.ACKNOWLEDGED
        return Stage.DETECTED if self.triaged_ms is None else Stage.TRIAGED


class Action(StrEnum):
    """What a destination is told."""

    TRIGGER = "trigger"
    #: Somebody works on it: nobody else need be woken.
    ACKNOWLEDGE = "acknowledge"
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


class Told(Struct, frozen=True, kw_only=True):
    """A notification without what it says: that is the whole incident, each time again."""

    incident_id: str
    destination: str
    sequence: int
    action: Action
    severity: Severity
    sent_ms: int | None = None
    failure: str = ""


def told_by(notification: Notification) -> Told:
    """Return what there is to remember of a notification."""
    return Told(
        incident_id=notification.incident_id,
        destination=notification.destination,
        sequence=notification.sequence,
        action=notification.action,
        severity=notification.incident.severity,
        sent_ms=notification.sent_ms,
        failure=notification.failure,
    )


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
