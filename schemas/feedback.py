"""Feedback: what somebody thought of an answer, as one JSON object on `llm.gateway.feedback`.

The names are those of OpenTelemetry's event ``gen_ai.evaluation.result`` (semantic conventions
for generative AI, status Development); what it lacks (an id, a source, a user) stands under
``feedback.`` and ``gateway.``.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from schemas.codec import DECODE_ERRORS, NUL, CodecLimits, explain_error, settle_time
from schemas.event import Identifier, Label
from schemas.rejection import Reason, Rejected

#: Before the values of the dimensions of its monitors, and before the evaluation.
PREFIX = "feedback/"
#: An opinion is no longer than this, its explanation included.
BYTES_MAX = 64 * 1024
#: Infinity is no score.
Score = Annotated[float, Meta(ge=-1e12, le=1e12)]
#: Becomes part of a monitor's key.
EvaluationName = Annotated[str, Meta(min_length=1, max_length=64)]


class Feedback(Struct, frozen=True, kw_only=True, gc=False):
    """Decoded feedback: `decode_feedback` builds it and holds the rules. Other keys are left."""

    #: Feedback that comes again with the same id counts once.
    feedback_id: Identifier = field(name="feedback.id")
    #: When it was given.
    feedback_time: dt.datetime | float | int = field(name="feedback.time")

    #: The request that it is about: the event's own id, or the response's. One has to be there.
    event_id: Label | None = field(name="event.id", default=None)
    response_id: Label | None = field(name="gen_ai.response.id", default=None)

    #: What was judged: ``thumbs``, ``relevance``.
    name: EvaluationName = field(name="gen_ai.evaluation.name")
    #: A score, a label, or both.
    score: Score | None = field(name="gen_ai.evaluation.score.value", default=None)
    label: Label | None = field(name="gen_ai.evaluation.score.label", default=None)
    #: Why, in somebody's own words: left out unless it is asked for, and then redacted.
    explanation: str | None = field(name="gen_ai.evaluation.explanation", default=None)

    #: Who judged: ``user``, ``evaluator``, …
    source: Label | None = field(name="feedback.source", default=None)
    user: Label | None = field(name="gateway.user", default=None)
    #: Where it is given, only a request of this tenant's can be meant.
    tenant: Label | None = field(name="gateway.tenant", default=None)


class ReceivedFeedback(Struct, frozen=True, gc=False):
    """Feedback that was accepted, and when it was given, in milliseconds since the epoch."""

    feedback: Feedback
    time_ms: int


_decode = msgspec.json.Decoder(Feedback).decode
_TEXTS = tuple(
    f.name for f in msgspec.structs.fields(Feedback) if f.name not in {"feedback_time", "score"}
)


def decode_feedback(
    raw: bytes | None, written_ms: int, limits: CodecLimits
) -> ReceivedFeedback | Rejected:
    """Decode one record that was written at `written_ms`; any bytes give one of the two.

    Of `limits` the bounds of the time count.
    """
    if raw is None:
        return Rejected(Reason.TOMBSTONE, "the record has no value", b"")
    if len(raw) > BYTES_MAX:
        detail = f"{len(raw)} bytes are over the limit of {BYTES_MAX}"
        return Rejected(Reason.TOO_LARGE, detail, raw)
    try:
        feedback = _decode(raw)
    except DECODE_ERRORS as error:
        return explain_error(error, raw)
    if missing := _find_missing(feedback):
        return Rejected(Reason.MISSING_FIELD, missing, raw)
    if NUL in raw and (name := _find_nul(feedback)) is not None:
        return Rejected(Reason.CONTROL_CHARACTER, f"NUL in {name}", raw)
    time_ms = settle_time("feedback.time", feedback.feedback_time, written_ms, limits, raw)
    return time_ms if isinstance(time_ms, Rejected) else ReceivedFeedback(feedback, time_ms)


def _find_missing(feedback: Feedback) -> str:
    """The rules that a schema cannot say; empty when they are kept."""
    if not feedback.event_id and not feedback.response_id:
        return "neither `event.id` nor `gen_ai.response.id`: about which request?"
    if feedback.score is None and not feedback.label:
        return "neither `gen_ai.evaluation.score.value` nor `gen_ai.evaluation.score.label`"
    return ""


def _find_nul(feedback: Feedback) -> str | None:
    return next((n for n in _TEXTS if "\0" in (getattr(feedback, n) or "")), None)


def name_value(name: str, value: str) -> str:
    """Return a dimension's value as the monitors of an evaluation have it; empty stays empty."""
    return f"{PREFIX}{plain_name(name)}/{value}" if value else ""


def split_value(value: str) -> tuple[str, str]:
    """Inverse of `name_value`: the evaluation (empty where there is none) and the value."""
    if not value.startswith(PREFIX):
        return "", value
    name, _, plain = value.removeprefix(PREFIX).partition("/")
    return name, plain


def plain_name(name: str) -> str:
    """Return an evaluation's name as it stands in a monitor's: without what divides the two."""
    return name.replace("/", ":")
