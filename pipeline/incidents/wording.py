"""What a page says: what, where, since when, how sure, what explains it, what to do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from pipeline.incidents.explain import Moved
from pipeline.incidents.phrases import SUBJECTS, describe_edge
from pipeline.incidents.triage import HARDLY_ANY, is_new
from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import Cause, RootCause, Severity
from schemas.signal import INFORMING, Family

#: From these rates on, the family is critical, or an error; below it is a warning.
_SEVERITY_RATES = {
    Family.REFUSAL: (0.25, 0.05),
    Family.ERROR: (0.25, 0.05),
    Family.TRUNCATION: (1.01, 0.3),
    Family.LATENCY: (1.01, 0.3),
    Family.FINGERPRINT: (1.01, 0.5),
    Family.COST: (1.01, 0.5),
    Family.PARTIAL_REFUSAL: (1.01, 0.25),
    Family.EMPTY: (0.25, 0.05),
    Family.GUARDRAIL: (1.01, 0.25),
    Family.REPETITION: (0.25, 0.05),
    Family.RELEVANCE: (1.01, 0.5),
    Family.LANGUAGE: (1.01, 0.25),
    Family.CANARY: (1.01, 0.25),
    Family.FEEDBACK: (1.01, 0.25),
}
#: What failures themselves ask for, where they say more than where they happen.
_ERROR_MITIGATIONS: dict[RootCause | None, str] = {
    RootCause.EXTERNAL_USAGE: (
        "Slow down whoever sends too much, or raise the provider's quota; let others fail over."
    ),
    RootCause.OPERATION: "Check keys, permissions and bills of the account that is refused.",
}


def rate_severity(alarm: Alarm, cause: Cause) -> Severity:
    """A fall informs, a rise pages by how far it has gone where it is worst."""
    if alarm.detector:
        return Severity(alarm.severity)
    if alarm.family in INFORMING:
        return Severity.INFO
    if alarm.direction is Direction.FALL:
        # A guardrail that no longer steps in leaves what it guarded open.
        return Severity.WARNING if alarm.family is Family.GUARDRAIL else Severity.INFO
    critical, error = _SEVERITY_RATES[alarm.family]
    rate = max(alarm.current.value, cause.after.value)
    if rate >= critical:
        return Severity.CRITICAL
    return Severity.ERROR if rate >= error else Severity.WARNING


def summarise(alarm: Alarm, cause: Cause, moved: str = "") -> str:
    """What and where since when; how much of what was seen that explains; how sure it is."""
    parts = (
        _headline(alarm, cause),
        moved,
        _explanation(alarm, cause),
        _certainty(alarm),
    )
    return " ".join(part for part in parts if part)


def summarise_mix_shift(alarm: Alarm) -> str:
    """For a change that traffic explains: no slice of it behaves differently."""
    return (
        f"{_subject(alarm)} {_verb(alarm)} from {_percent(alarm.baseline)} to"
        f" {_percent(alarm.current)} for {_where(alarm.monitor)} since"
        f" {_clock(alarm.change_time_ms)}{describe_edge(alarm)}, because traffic moved:"
        " no model, route or tenant behaves differently from before."
    )


def suggest(alarm: Alarm, cause: Cause, root_cause: RootCause | None = None) -> str:
    """The first thing to try, by what the cause is a value of and where it likely lies."""
    if alarm.direction is Direction.FALL:
        return _suggest_for_fall(alarm)
    if alarm.family is Family.TOPIC:
        return "Callers ask something else; if that was not meant, look at who sends it."
    if alarm.family is Family.ERROR and root_cause in _ERROR_MITIGATIONS:
        return _ERROR_MITIGATIONS[root_cause]
    labels = cause.labels
    if "prompt_version" in labels and is_new(cause):
        return "Roll the prompt template back to the version before this one."
    if alarm.family is Family.FINGERPRINT:
        return (
            "Ask whether the model behind this name was changed, and pin its previous snapshot;"
            " if the change was meant, fit the reference anew."
        )
    if not labels:
        return "Look at what all traffic shares: the gateway, its network, a sole provider."
    if "response_model" in labels:
        return "Pin the model's previous snapshot, or route around this one."
    if "provider" in labels or "region" in labels:
        return "Fail over to another provider or region, and check the provider's status page."
    if "request_model" in labels:
        return "Route this model's traffic to its fallback."
    return f"Look at what changed for {_where(labels)} at that time."


def _suggest_for_fall(alarm: Alarm) -> str:
    if alarm.family in {Family.REFUSAL, Family.GUARDRAIL}:
        return "Check whether a guardrail or a filter was switched off."
    return "Check that this is an improvement, and not requests that are no longer measured."


def _headline(alarm: Alarm, cause: Cause) -> str:
    subject, where, since = (
        _subject(alarm),
        _where(cause.labels),
        _clock(alarm.change_time_ms),
    )
    before = cause.before
    if before.total < HARDLY_ANY and cause.labels == alarm.monitor:
        # Quiet for the last hour, but it has a past: the one it was judged by.
        before = alarm.baseline
    if before.total >= HARDLY_ANY:
        return (
            f"{subject} {_verb(alarm)} from {_percent(before)} to {_percent(cause.after)}"
            f" for {where} since {since}{describe_edge(alarm)}:"
            f" {_counts(cause.after)}, before {_counts(before)}."
        )
    past = "new" if before.total == 0 else f"all but new ({_counts(before)} before)"
    return (
        f"{subject} are at {_percent(cause.after)} ({_counts(cause.after)}) for {where},"
        f" which is {past}, since {since}{describe_edge(alarm)};"
        f" {_where(alarm.monitor)} was at {_percent(alarm.baseline)} ({_counts(alarm.baseline)})."
    )


def describe_moved(moved: Sequence[Moved]) -> str:
    """Which features moved most, as a sentence; empty where none did.

    One that moved by less than it can be written with is no news to anybody.
    """
    told = [text for each in moved if (text := _describe(each))]
    return f"What moved most: {'; '.join(told)}." if told else ""


def _describe(moved: Moved) -> str:
    write = _share if moved.is_share else _quantity
    before, after = write(moved.before), write(moved.after)
    if before == after:
        return ""
    # Of hardly anything, a multiple says nothing.
    multiple = not moved.is_share and moved.before >= 1
    change = f" ({moved.after / moved.before - 1:+.0%})" if multiple else ""
    return f"{moved.phrase} from {before} to {after}{change}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _quantity(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _explanation(alarm: Alarm, cause: Cause) -> str:
    seen = _where(alarm.monitor)
    if cause.labels == alarm.monitor:
        return ""
    if not cause.labels:
        return f"First seen on {seen}, but no part of the traffic stands out."
    change = "rise" if alarm.direction is Direction.RISE else "fall"
    return f"This explains {cause.share:.0%} of the {change} on {seen}, where it was first seen."


def _certainty(alarm: Alarm) -> str:
    if alarm.detector:
        return f"{alarm.detector} says so; how often it is wrong, nobody promises."
    # An e-value of E: without a change, one monitor's family passes it within
    # T weeks with probability at most T / E.
    return (
        f"By chance a monitor shows this less than once in {_magnitude(alarm.e_value)} weeks"
        f" (a page needs {_magnitude(alarm.threshold)})."
    )


def _subject(alarm: Alarm) -> str:
    subject = SUBJECTS[alarm.signal]
    return subject[0].upper() + subject[1:]


def _verb(alarm: Alarm) -> str:
    return "rose" if alarm.direction is Direction.RISE else "fell"


def _counts(rate: Rate) -> str:
    return f"{rate.count:,} of {rate.total:,}"


def _where(labels: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or "all traffic"


def _percent(rate: Rate) -> str:
    value = rate.value * 100
    return f"{value:.1f}%" if value < 10 else f"{value:.0f}%"


def _clock(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _magnitude(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
