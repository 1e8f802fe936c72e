"""All that can be said about an alarm from what is stored, put together once. Pure."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.incidents.explain import Investigation
from pipeline.incidents.triage import classify_root_cause, classify_symptom
from pipeline.incidents.wording import (
    describe_moved,
    rate_severity,
    suggest,
    summarise,
    summarise_mix_shift,
)
from schemas.alarm import Alarm
from schemas.incident import Attribution, Cause, RootCause, Severity, Symptom


class Diagnosis(NamedTuple):
    """What an alarm means, as far as is known."""

    cause: Cause
    #: The cause first.
    explanation: tuple[Attribution, ...]
    symptom: Symptom
    root_cause: RootCause
    severity: Severity
    is_mix_shift: bool
    #: False while nothing is stored of what the alarm saw.
    is_known: bool
    moved: str
    summary: str
    suggestion: str


def diagnose(alarm: Alarm, found: Investigation) -> Diagnosis:
    """Return what the alarm means, by what was found stored about it."""
    cause, attributions = found.explain(alarm)
    mixed = found.is_mix_shift(alarm)
    root_cause = classify_root_cause(alarm, cause, is_mix_shift=mixed, error_type=found.error_type)
    moved = describe_moved(found.moved)
    return Diagnosis(
        cause=cause,
        explanation=attributions,
        symptom=classify_symptom(alarm, cause),
        root_cause=root_cause,
        severity=Severity.INFO if mixed else rate_severity(alarm, cause),
        is_mix_shift=mixed,
        is_known=not found.is_empty,
        moved=moved,
        summary=summarise_mix_shift(alarm) if mixed else summarise(alarm, cause, moved),
        suggestion="" if mixed else suggest(alarm, cause, root_cause),
    )
