"""What kind of incident is it: the symptom, and where its cause most likely lies. Pure.

The classes are those of Yan et al., "An Empirical Study of Production Incidents in
Generative AI Cloud Services" (arXiv 2504.08865); which evidence speaks for which is
ours, and docs/incidents.md has it as a table. The root cause is a first guess by
what most often breaks where the excess lies, and never more than that.
"""

from __future__ import annotations

import re

from schemas.alarm import Alarm
from schemas.incident import Cause, RootCause, Symptom
from schemas.signal import Family

#: With fewer events than this before the change, a slice has no rate to compare with …
HARDLY_ANY = 20
#: … nor with a smaller part than this of what it has had since.
HARDLY_ANY_SHARE = 0.1
#: From this share of failures on, a thing is not slow or shaky: it is not there.
GONE = 0.9

#: Families that speak about how well an answer is served; all others about the answer.
_SERVING = frozenset({"error", "latency", "cost", "cache"})
#: Families whose alarms tell of callers.
_CALLERS = frozenset({"topic"})
#: Families that a setting moves more often than a model does.
_SETTINGS = frozenset({"truncation", "guardrail", "cache"})
#: What an `error.type` tells, the first that fits; by OpenTelemetry it is a status code, an
#: exception's name, or a low-cardinality word of the gateway's own.
_ERROR_CAUSES: tuple[tuple[re.Pattern[str], RootCause], ...] = (
    (re.compile(r"rate.?limit|quota|too.?many|throttl|\b429\b", re.I), RootCause.EXTERNAL_USAGE),
    (
        re.compile(r"auth|permission|forbidden|api.?key|billing|credential|\b40[123]\b", re.I),
        RootCause.OPERATION,
    ),
    (
        re.compile(r"not.?found|deployment|unknown.?model|\b404\b|\b410\b", re.I),
        RootCause.CONFIGURATION,
    ),
    (
        re.compile(r"invalid|bad.?request|validation|context.?length|too.?large|\b4\d\d\b", re.I),
        RootCause.CODE,
    ),
    (
        re.compile(r"time.?out|server|overload|unavailable|connect|network|dns|\b5\d\d\b", re.I),
        RootCause.INFRASTRUCTURE,
    ),
)


def is_new(cause: Cause) -> bool:
    """True for a slice that had hardly any traffic before the change."""
    return cause.before.total < max(HARDLY_ANY, HARDLY_ANY_SHARE * cause.after.total)


def classify_symptom(alarm: Alarm, cause: Cause) -> Symptom:
    """Return what users notice of it."""
    if alarm.family not in _SERVING:
        return Symptom.INVALID_INFERENCE
    is_gone = cause.after.value >= GONE or (bool(cause.labels) and is_new(cause))
    if alarm.family is Family.ERROR and is_gone:
        return Symptom.DEPLOYMENT_FAILURE
    return Symptom.DEGRADED_PERFORMANCE


def classify_root_cause(
    alarm: Alarm, cause: Cause, *, is_mix_shift: bool = False, error_type: str = ""
) -> RootCause:
    """Return the class in which such causes mostly lie; `error_type` is what failures say."""
    if is_mix_shift or alarm.family in _CALLERS:
        return RootCause.EXTERNAL_USAGE
    if alarm.family is Family.ERROR and (told := _read_error_type(error_type)):
        return told
    if "guardrail" in cause.labels or alarm.family in _SETTINGS:
        return RootCause.CONFIGURATION
    if "prompt_version" in cause.labels:
        return RootCause.CONFIGURATION if is_new(cause) else RootCause.CODE
    if "tenant" in cause.labels:
        return RootCause.EXTERNAL_USAGE
    if cause.labels.keys() & {"provider", "region", "request_model", "response_model"}:
        serves = alarm.family in _SERVING
        return RootCause.INFRASTRUCTURE if serves else RootCause.CODE
    if cause.labels:
        return RootCause.CODE
    return RootCause.OPERATION if alarm.family is Family.ERROR else RootCause.INFRASTRUCTURE


def _read_error_type(error_type: str) -> RootCause | None:
    return next((cause for pattern, cause in _ERROR_CAUSES if pattern.search(error_type)), None)
