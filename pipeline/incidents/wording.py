"""What a page says: what, where, since when, how sure, what explains it, what to do."""

from __future__ import annotations

import datetime as dt

from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import Cause, Severity
from schemas.signal import Family, Signal

_SUBJECT = {
    Signal.REFUSAL: "Refusals",
    Signal.ERROR: "Errors",
    Signal.TRUNCATION: "Truncated answers",
    Signal.SLOW_FIRST_CHUNK: "Slow first chunks",
    Signal.SLOW_OUTPUT: "Slow output",
}
#: From these rates on, the family is critical, or an error; below it is a warning.
_SEVERITY_RATES = {
    Family.REFUSAL: (0.25, 0.05),
    Family.ERROR: (0.25, 0.05),
    Family.TRUNCATION: (1.01, 0.3),
    Family.LATENCY: (1.01, 0.3),
}


def rate_severity(alarm: Alarm, cause: Cause) -> Severity:
    """A fall informs, a rise pages by how far it has gone where it is worst."""
    if alarm.direction is Direction.FALL:
        return Severity.INFO
    critical, error = _SEVERITY_RATES[alarm.family]
    rate = max(alarm.current.value, cause.after.value)
    if rate >= critical:
        return Severity.CRITICAL
    return Severity.ERROR if rate >= error else Severity.WARNING


def summarise(alarm: Alarm, cause: Cause) -> str:
    """One sentence for the page's headline, one for the evidence."""
    verb = "rose" if alarm.direction is Direction.RISE else "fell"
    return (
        f"{_SUBJECT[alarm.signal]} {verb} from {_percent(cause.before)} to {_percent(cause.after)}"
        f" for {_where(cause.labels)} since {_clock(alarm.change_time_ms)}"
        f"{_slow(alarm)}: {cause.after.count:,} of {cause.after.total:,},"
        f" before {cause.before.count:,} of {cause.before.total:,}."
        f" First seen on {_where(alarm.monitor)}, of whose excess this explains {cause.share:.0%};"
        f" evidence {_magnitude(alarm.e_value)} against a threshold of"
        f" {_magnitude(alarm.threshold)}."
    )


def summarise_mix_shift(alarm: Alarm) -> str:
    """For a change that traffic explains: no slice of it behaves differently."""
    return (
        f"{_SUBJECT[alarm.signal]} changed from {_percent(alarm.baseline)} to"
        f" {_percent(alarm.current)} for {_where(alarm.monitor)} since"
        f" {_clock(alarm.change_time_ms)}, because traffic moved:"
        " no model, route or tenant behaves differently from before."
    )


def suggest(alarm: Alarm, cause: Cause) -> str:
    """The first thing to try, by what the cause is a value of."""
    if alarm.direction is Direction.FALL:
        return "Check whether a guardrail or a filter was switched off."
    labels = cause.labels
    if "prompt_version" in labels:
        return "Roll the prompt template back to the version before this one."
    if "response_model" in labels:
        return "Pin the model's previous snapshot, or route around this one."
    if "provider" in labels or "region" in labels:
        return "Fail over to another provider or region, and check the provider's status page."
    if "request_model" in labels:
        return "Route this model's traffic to its fallback."
    return f"Look at what changed for {_where(labels)} at that time."


def _where(labels: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def _percent(rate: Rate) -> str:
    value = rate.value * 100
    return f"{value:.1f}%" if value < 10 else f"{value:.0f}%"


def _clock(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _slow(alarm: Alarm) -> str:
    if alarm.slow_above is None:
        return ""
    if alarm.signal is Signal.SLOW_OUTPUT:
        return f" (above {alarm.slow_above / 1000:.1f} ms per token)"
    return f" (above {alarm.slow_above / 1000:.2f} s)"


def _magnitude(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
