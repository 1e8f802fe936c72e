"""Incidents of Kizashi's own: a complaint opens one, a worse one makes it worse. Pure."""

from __future__ import annotations

from msgspec import structs

from pipeline.incidents.complaints import Complaint, Trouble
from schemas.alarm import Rate
from schemas.incident import Cause, Incident, RootCause, Severity, Status, Symptom
from schemas.signal import Family

#: The label that names the organ, where others name a slice of traffic.
LABEL = "kizashi"
_SEVERITIES = {
    Trouble.BLIND: Severity.CRITICAL,
    Trouble.BEHIND: Severity.ERROR,
    Trouble.SILENT: Severity.ERROR,
    Trouble.UNBALANCED: Severity.ERROR,
}


def open_own(complaint: Complaint) -> Incident:
    """Return the incident that a complaint opens. Nothing of the traffic is its cause."""
    books = complaint.trouble is Trouble.UNBALANCED
    return Incident(
        incident_id=complaint.name,
        version=0,
        status=Status.OPEN,
        severity=_SEVERITIES[complaint.trouble],
        family=Family.PIPELINE,
        symptom=Symptom.DEGRADED_PERFORMANCE,
        root_cause=RootCause.CODE if books else RootCause.INFRASTRUCTURE,
        opened_ms=complaint.found_ms,
        triaged_ms=complaint.found_ms,
        updated_ms=complaint.found_ms,
        explained_ms=complaint.found_ms,
        last_alarm_ms=complaint.found_ms,
        change_time_ms=complaint.since_ms,
        summary=complaint.summary,
        suggestion=complaint.suggestion,
        cause=Cause({LABEL: complaint.organ.value}, 1.0, Rate(0, 0), Rate(0, 0)),
        alarms=(),
    )


def worsen(incident: Incident, complaint: Complaint) -> Incident | None:
    """Return the incident as the complaint makes it; None where it is no worse."""
    if not _is_worse(complaint, incident):
        return None
    return structs.replace(
        incident,
        severity=_SEVERITIES[complaint.trouble],
        last_alarm_ms=complaint.found_ms,
        summary=complaint.summary,
        suggestion=complaint.suggestion,
        mitigated_ms=None,
        mitigated_by="",
    )


def end_own(incident: Incident, now_ms: int) -> Incident:
    """Return the incident as it is over."""
    return structs.replace(
        incident,
        status=Status.RESOLVED,
        resolved_ms=now_ms,
        mitigated_ms=now_ms if incident.mitigated_ms is None else incident.mitigated_ms,
    )


def is_own(incident: Incident) -> bool:
    """True for an incident that no alarm is behind."""
    return incident.family is Family.PIPELINE


def _is_worse(complaint: Complaint, incident: Incident) -> bool:
    ranks = tuple(Severity)
    return ranks.index(_SEVERITIES[complaint.trouble]) < ranks.index(incident.severity)
