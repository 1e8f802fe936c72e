"""OpenTelemetry's evaluations: the same feedback from Protobuf and JSON, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.proto.logs.v1 import logs_pb2

from pipeline.core.dedup import SeenIds
from pipeline.core.feedback import FeedbackAdmission, FeedbackConfig, admit_feedback
from pipeline.core.wire import Wire
from schemas.evaluation import EVENT_NAME
from schemas.monitor import Dimension
from schemas.rejection import Reason
from schemas.wire import WireFormat
from tests.support.events import NOW_MS, Json
from tests.support.feedback import feedback_chunk
from tests.support.otlp import _pair, _plain, to_pairs

CONFIG = FeedbackConfig(((Dimension.REQUEST_MODEL,),))
RESULT = {
    "gen_ai.evaluation.name": "Relevance",
    "gen_ai.evaluation.score.value": 0.2,
    "gen_ai.evaluation.score.label": "fail",
    "gen_ai.evaluation.explanation": "Beside the point.",
    "gen_ai.response.id": "r-1",
}


def make_log(
    attributes: Mapping[str, Any] = RESULT,
    *,
    name: str = EVENT_NAME,
    span: int = 7,
    time_ms: int = NOW_MS,
) -> Json:
    """Return a log record in the JSON form of OTLP."""
    return {
        "eventName": name,
        "traceId": f"{span:032x}",
        "spanId": f"{span:016x}",
        "timeUnixNano": str(time_ms * 1_000_000),
        "attributes": to_pairs(attributes),
    }


def to_json(logs: Sequence[Any]) -> bytes:
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": list(logs)}]}]}).encode()


def to_proto(logs: Sequence[Json]) -> bytes:
    data = logs_pb2.LogsData()
    scope = data.resource_logs.add().scope_logs.add()
    scope.log_records.extend(
        logs_pb2.LogRecord(
            event_name=log["eventName"],
            trace_id=bytes.fromhex(log["traceId"]),
            span_id=bytes.fromhex(log["spanId"]),
            time_unix_nano=int(log["timeUnixNano"]),
            attributes=[_pair(p["key"], _plain(p["value"])) for p in log["attributes"]],
        )
        for log in logs
    )
    raw: bytes = data.SerializeToString()
    return raw


FORMS = pytest.mark.parametrize(
    ("wire", "write"),
    [(WireFormat.OTLP_JSON, to_json), (WireFormat.OTLP_PROTO, to_proto)],
    ids=["json", "proto"],
)


def admit(values: list[bytes | None], wire: WireFormat) -> FeedbackAdmission:
    config = structs.replace(CONFIG, wires={"feedback": Wire(wire)})
    return admit_feedback(feedback_chunk(values), config, SeenIds(100))


@FORMS
def test_an_evaluation_becomes_feedback(wire: WireFormat, write: Any) -> None:
    (received,) = admit([write([make_log()])], wire).received
    told = received.feedback
    assert (told.name, told.score, told.label) == ("Relevance", 0.2, "fail")
    assert (told.response_id, told.event_id, told.source) == ("r-1", None, "evaluator")
    assert received.time_ms == NOW_MS


@FORMS
def test_without_a_response_the_span_is_meant(wire: WireFormat, write: Any) -> None:
    bare = {key: value for key, value in RESULT.items() if key != "gen_ai.response.id"}
    (received,) = admit([write([make_log(bare)])], wire).received
    # As `schemas.genai` names the event of that span.
    assert received.feedback.event_id == f"{7:032x}-{7:016x}"
    nowhere = admit([write([make_log(bare, span=0)])], wire)
    assert [letter.rejected.reason for letter in nowhere.deadletters] == [Reason.MISSING_FIELD]


@FORMS
def test_what_is_no_evaluation_is_passed_over_and_its_neighbours_are_taken(
    wire: WireFormat, write: Any
) -> None:
    named = make_log(RESULT | {"event.name": EVENT_NAME}, name="", span=2)
    bad = make_log(RESULT | {"gen_ai.evaluation.score.value": "good"}, span=3)
    line = make_log(name="")
    admission = admit([write([line, named, bad, make_log(), make_log()])], wire)
    assert admission.counts == (4, 2, 1, 1, 1)
    (letter,) = admission.deadletters
    assert letter.rejected.reason is Reason.INVALID_FIELD
    ids = [received.feedback.feedback_id for received in admission.received]
    assert ids == sorted(ids), "they are read back in the order of their ids"


@FORMS
def test_what_comes_again_has_the_same_id_and_another_has_not(wire: WireFormat, write: Any) -> None:
    values = [write([make_log()]), write([make_log()]), write([make_log(time_ms=NOW_MS + 1)])]
    assert admit(values, wire).counts == (3, 2, 0, 1, 0)


@pytest.mark.parametrize(
    ("raw", "wire", "reason"),
    [
        (b"\xff\xff", WireFormat.OTLP_PROTO, Reason.INVALID_PROTOBUF),
        (b"no", WireFormat.OTLP_JSON, Reason.INVALID_JSON),
        (b'{"resourceLogs": 1}', WireFormat.OTLP_JSON, Reason.INVALID_FIELD),
        (to_json([{"traceId": 7}]), WireFormat.OTLP_JSON, Reason.INVALID_FIELD),
        (None, WireFormat.OTLP_PROTO, Reason.TOMBSTONE),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter_without_its_bytes(
    raw: bytes | None, wire: WireFormat, reason: Reason
) -> None:
    (letter,) = admit([raw], wire).deadletters
    assert (letter.rejected.reason, letter.rejected.raw) == (reason, b"")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([WireFormat.OTLP_JSON, WireFormat.OTLP_PROTO]))
def test_any_bytes_are_taken_or_refused_and_nothing_is_raised(raw: bytes, wire: WireFormat) -> None:
    admission = admit([raw], wire)
    assert admission.counts.stored == 0
