"""From OpenTelemetry's event ``gen_ai.evaluation.result`` to feedback of ours.

Source: semantic conventions for generative AI, "Event: gen_ai.evaluation.result" (status
Development). The event is a log record; it names the response, or lies within the span of the
request that was evaluated.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from schemas.feedback import Feedback
from schemas.span import LogRecord

EVENT_NAME = "gen_ai.evaluation.result"
#: What evaluations without a source come from.
SOURCE = "evaluator"
_KEYS = frozenset(f.encode_name for f in msgspec.structs.fields(Feedback))
#: Old SDKs have the event's name here.
_NAME = "event.name"

Json = dict[str, Any]


def translate_evaluation(log: LogRecord) -> Json | None:
    """Return the log record as feedback on the wire; None for one that is no evaluation.

    Attributes outside the contract are left behind. Whether it is valid is not judged here.
    """
    if EVENT_NAME not in (log.name, log.attributes.get(_NAME)):
        return None
    feedback = {key: log.attributes[key] for key in sorted(_KEYS & log.attributes.keys())}
    feedback.setdefault("feedback.source", SOURCE)
    if log.time_ns:
        feedback.setdefault("feedback.time", log.time_ns // 1_000_000 / 1_000)
    # A span may be the evaluator's own: where the response is named, that counts.
    if not feedback.get("gen_ai.response.id") and _is_id(log.trace_id) and _is_id(log.span_id):
        feedback.setdefault("event.id", f"{log.trace_id}-{log.span_id}")
    feedback.setdefault("feedback.id", _make_id(log, feedback))
    return feedback


def _is_id(text: str) -> bool:
    """Zeros are no id (W3C)."""
    return bool(text.strip("0"))


def _make_id(log: LogRecord, feedback: Json) -> str:
    """The same evaluation has the same id, however often it is sent."""
    told = msgspec.json.encode((log.trace_id, log.span_id, log.time_ns, feedback), order="sorted")
    return hashlib.blake2b(told, digest_size=16).hexdigest()
