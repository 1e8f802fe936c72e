"""Spans of OpenTelemetry become events: names old and new, both forms, and what cannot be read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pipeline.core.dedup import SeenIds
from pipeline.core.step import admit
from pipeline.core.wire import Decoded, Record, Wire, decode_records
from schemas.codec import DEFAULT_LIMITS, decode_event
from schemas.event import Event, Received
from schemas.genai import include_cached
from schemas.rejection import Reason, Rejected
from schemas.wire import WireFormat
from tests.support.events import NOW_MS, make_chunk
from tests.support.otlp import CHAT, make_span, to_json, to_proto

JSON, PROTO = Wire(WireFormat.OTLP_JSON), Wire(WireFormat.OTLP_PROTO)
both = pytest.mark.parametrize(("wire", "write"), [(JSON, to_json), (PROTO, to_proto)])


def decode(raw: bytes | None, wire: Wire = JSON) -> Decoded:
    return decode_records([Record(7, NOW_MS, raw)], wire, DEFAULT_LIMITS)


def read(attributes: dict[str, Any], wire: Wire = JSON, **span: Any) -> Event:
    """The event of one span that must be valid."""
    (result,) = decode(to_json([make_span(1, attributes, **span)]), wire).results
    assert isinstance(result, Received), result
    return result.event


def refuse(raw: bytes | None, wire: Wire = JSON) -> Rejected:
    (result,) = decode(raw, wire).results
    assert isinstance(result, Rejected), result
    return result


# --- What a span says --------------------------------------------------------------------------


@both
def test_a_span_is_an_event(wire: Wire, write: Any) -> None:
    (result,) = decode(write([make_span()]), wire).results
    assert isinstance(result, Received)
    event = result.event
    assert event.event_id == f"{1:032x}-{1:016x}"
    assert (event.operation, event.provider, event.request_model) == ("chat", "openai", "gpt-4o")
    assert (event.input_tokens, event.output_tokens) == (812, 164)
    assert (event.duration_s, result.time_ms) == (3.2, NOW_MS)
    assert (event.route, event.region, event.error_type) == ("support", "eu-west", None)
    assert result.attributes == {}


@both
def test_a_record_of_many_spans_is_as_many_events(wire: Wire, write: Any) -> None:
    spans = [make_span(n) for n in (3, 1, 2)]
    spans.append(make_span(4, {"http.request.method": "GET"}))
    spans.append(make_span(5, {**CHAT, "gen_ai.operation.name": "invoke_agent"}))
    decoded = decode(write(spans), wire)
    ids = [r.event.event_id for r in decoded.results if isinstance(r, Received)]
    assert ids == [f"{n:032x}-{n:016x}" for n in (1, 2, 3)]
    assert (decoded.skipped, [r.offset for r in decoded.records]) == (2, [7, 7, 7])


OLD = {
    "gen_ai.system": "az.ai.openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.usage.prompt_tokens": 10,
    "gen_ai.usage.completion_tokens": "20",
    "gen_ai.usage.reasoning_tokens": 5.0,
    "gen_ai.response.finish_reason": "length",
}
TRACELOOP = {
    "llm.request.type": "completion",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o",
    "llm.is_streaming": True,
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": "Be brief.",
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": "Why?",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": "Because.",
    "gen_ai.completion.0.finish_reason": "stop",
}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.system": "openai",
    "llm.model_name": "gpt-4o",
    "llm.token_count.prompt": 10,
    "llm.token_count.completion": 20,
    "llm.token_count.prompt_details.cache_read": 4,
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "Why?",
    "llm.output_messages.0.message.content": "Because.",
}


def test_old_names_are_understood() -> None:
    event = read(OLD)
    assert (event.provider, event.input_tokens, event.output_tokens) == ("azure.ai.openai", 10, 20)
    assert (event.reasoning_tokens, event.finish_reasons) == (5, ["length"])


def test_the_newest_name_counts() -> None:
    event = read({**OLD, "gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 11})
    assert (event.provider, event.input_tokens) == ("openai", 11)


def test_openllmetry_is_understood() -> None:
    event = read(TRACELOOP)
    assert (event.operation, event.stream) == ("text_completion", True)
    assert (event.prompt_text, event.response_text) == ("Why?", "Because.")
    assert event.finish_reasons == ["stop"]


def test_openinference_is_understood() -> None:
    event = read(OPENINFERENCE, events=[("First Token Stream Event", {})])
    assert (event.operation, event.provider, event.request_model) == ("chat", "openai", "gpt-4o")
    assert (event.input_tokens, event.cache_read_tokens, event.output_tokens) == (10, 4, 20)
    assert (event.prompt_text, event.response_text) == ("Why?", "Because.")
    assert event.time_to_first_chunk_s == 0.4


@pytest.mark.parametrize(
    "attributes",
    [
        {"openinference.span.kind": "TOOL", "llm.model_name": "gpt-4o"},
        {"traceloop.span.kind": "workflow", "gen_ai.request.model": "gpt-4o"},
        {"gen_ai.operation.name": "execute_tool", "gen_ai.request.model": "gpt-4o"},
        {"db.system.name": "postgresql"},
    ],
)
def test_what_is_no_request_to_a_model_is_passed_over(attributes: dict[str, Any]) -> None:
    decoded = decode(to_json([make_span(1, attributes)]))
    assert (decoded.results, decoded.skipped) == ([], 1)


MESSAGES = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {"role": "user", "parts": [{"type": "text", "content": "First"}]},
    {"role": "assistant", "parts": [{"type": "text", "content": "Well"}]},
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "なぜ？"},
            {"type": "blob", "mime_type": "image/png", "data": "AAAA"},
            {"type": "text", "content": "Say why."},
        ],
    },
]
ANSWERS = [
    {
        "role": "assistant",
        "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "So."}],
        "finish_reason": "stop",
    }
]


@pytest.mark.parametrize("dump", [json.dumps, lambda value: value], ids=["text", "structured"])
@pytest.mark.parametrize("inside", ["span", "event"])
def test_messages_become_the_last_user_turn_and_the_answer(dump: Any, inside: str) -> None:
    held = {"gen_ai.input.messages": dump(MESSAGES), "gen_ai.output.messages": dump(ANSWERS)}
    if inside == "span":
        event = read({**CHAT, **held})
    else:
        event = read(CHAT, events=[("gen_ai.client.inference.operation.details", held)])
    assert event.prompt_text == "なぜ？\nSay why."
    assert (event.response_text, event.finish_reasons) == ("So.", ["stop"])


@pytest.mark.parametrize(
    "events",
    [
        [
            ("gen_ai.content.prompt", {"gen_ai.prompt": '[{"role": "user", "content": "Why?"}]'}),
            ("gen_ai.content.completion", {"gen_ai.completion": '[{"content": "So."}]'}),
        ],
        [
            ("gen_ai.content.prompt", {"gen_ai.prompt": "Why?"}),
            ("gen_ai.content.completion", {"gen_ai.completion": "So."}),
        ],
        [
            ("gen_ai.system.message", {"content": "Be brief."}),
            ("gen_ai.user.message", {"content": "Why?"}),
            ("gen_ai.choice", {"message": '{"content": "So."}', "finish_reason": "stop"}),
        ],
    ],
    ids=["messages", "text", "one event each"],
)
def test_texts_in_the_older_events_are_found(events: list[tuple[str, dict[str, Any]]]) -> None:
    event = read(CHAT, events=events)
    assert (event.prompt_text, event.response_text) == ("Why?", "So.")


def test_an_answer_that_is_json_is_a_text() -> None:
    answer = '[{"name": "Ada"}]'
    held = {"gen_ai.output.messages": json.dumps([{"role": "assistant", "content": answer}])}
    assert read({**CHAT, **held}).response_text == answer


def test_a_refusal_in_a_message_is_the_providers_word() -> None:
    answer = [{"role": "assistant", "parts": [{"type": "refusal", "content": "No."}]}]
    assert read({**CHAT, "gen_ai.output.messages": json.dumps(answer)}).refusal is True


def test_a_failed_span_has_an_error_type() -> None:
    assert read({**CHAT, "error.type": "429"}, failed=True).error_type == "429"
    thrown = [("exception", {"exception.type": "openai.RateLimitError"})]
    assert read(CHAT, events=thrown, failed=True).error_type == "openai.RateLimitError"
    assert read(CHAT, failed=True).error_type == "_OTHER"
    assert read(CHAT, events=thrown).error_type is None


def test_attributes_get_meanings_and_are_kept_by_configuration() -> None:
    wire = Wire(WireFormat.OTLP_JSON, {"x-team": "gateway.tenant"}, ("deployment.environment",))
    attributes = {**CHAT, "x-team": "acme", "deployment.environment": "prod", "secret": "s"}
    (result,) = decode(to_json([make_span(1, attributes)]), wire).results
    assert isinstance(result, Received)
    assert result.event.tenant == "acme"
    assert result.attributes == {"deployment.environment": "prod"}


# --- One rule of usage -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "tokens"),
    [
        # By the conventions of today the input holds what came from a cache.
        ({"gen_ai.provider.name": "anthropic", "gen_ai.usage.cache_read.input_tokens": 60}, 100),
        # The names before them were given what Anthropic says, which does not.
        ({"gen_ai.system": "anthropic", "gen_ai.usage.cache_read_input_tokens": 60}, 160),
        ({"gen_ai.system": "openai", "gen_ai.usage.cache_read_input_tokens": 60}, 100),
        # Whatever the name: the whole is no smaller than its part.
        ({"gen_ai.provider.name": "anthropic", "gen_ai.usage.cache_read.input_tokens": 900}, 1_000),
    ],
)
def test_input_includes_cached_tokens(attributes: dict[str, Any], tokens: int) -> None:
    event = read(
        {"gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 100, **attributes},
    )
    assert event.input_tokens == tokens


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_the_input_is_never_less_than_its_cached_part(i: int, cached: int, exclusive: bool) -> None:
    assert include_cached(i, cached, exclusive=exclusive) >= max(i, cached)


# --- What cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "wire", "reason"),
    [
        (None, JSON, Reason.TOMBSTONE),
        (b"not json", JSON, Reason.INVALID_JSON),
        (b"\xff\xfe", JSON, Reason.INVALID_JSON),
        (b"[]", JSON, Reason.INVALID_FIELD),
        (b'{"resourceSpans": 3}', JSON, Reason.INVALID_FIELD),
        (b"\xff\xff\xff\xff", PROTO, Reason.INVALID_PROTOBUF),
    ],
)
def test_a_record_that_is_no_request_is_refused_whole(
    raw: bytes | None, wire: Wire, reason: Reason
) -> None:
    refused = refuse(raw, wire)
    assert (refused.reason, refused.raw) == (reason, b""), "nobody can tell what is private in it"
    kept = refuse(raw, structs.replace(wire, keep_unread=True))
    assert kept.raw == (raw or b"")


BAD: list[tuple[dict[str, Any], Reason, str]] = [
    ({"gen_ai.operation.name": "chat"}, Reason.MISSING_FIELD, "gen_ai.request.model"),
    ({**CHAT, "gen_ai.usage.input_tokens": -1}, Reason.INVALID_FIELD, "input_tokens"),
    ({**CHAT, "gen_ai.usage.input_tokens": "many"}, Reason.INVALID_FIELD, "input_tokens"),
    ({**CHAT, "gateway.route": "r" * 300}, Reason.INVALID_FIELD, "gateway.route"),
    ({**CHAT, "gateway.route": "a\0b"}, Reason.CONTROL_CHARACTER, "route"),
]


@both
@pytest.mark.parametrize(("attributes", "reason", "names"), BAD)
def test_a_bad_span_is_refused_alone_as_the_event_that_it_would_have_been(
    wire: Wire, write: Any, attributes: dict[str, Any], reason: Reason, names: str
) -> None:
    results = decode(write([make_span(1), make_span(2, attributes), make_span(3)]), wire).results
    (refused,) = (r for r in results if isinstance(r, Rejected))
    assert len(results) == 3
    assert refused.reason is reason
    assert names in refused.detail
    again = decode_event(refused.raw, NOW_MS)
    assert isinstance(again, Rejected)
    assert (again.reason, again.detail) == (refused.reason, refused.detail)
    assert json.loads(refused.raw)["event.id"] == f"{2:032x}-{2:016x}"


@pytest.mark.parametrize(
    "change",
    [
        {"traceId": "xyz"},
        {"attributes": [{"key": "a", "value": {"intValue": "1e3"}}]},
        {"attributes": [{"key": "a", "value": {"intValue": str(2**63)}}]},
        {"attributes": [{"key": "a", "value": {"bytesValue": "?"}}]},
        {"endTimeUnixNano": "-5"},
        {"events": 3},
    ],
)
def test_a_span_that_is_not_well_formed_leaves_its_neighbours(change: dict[str, Any]) -> None:
    results = decode(to_json([make_span(1), make_span(2) | change])).results
    assert [type(each) for each in results] == [Received, Rejected]
    assert isinstance(results[1], Rejected)
    assert results[1].reason is Reason.INVALID_FIELD


@pytest.mark.parametrize(("trace", "span"), [("0" * 32, "1" * 16), ("1" * 32, "0" * 16), ("", "")])
def test_a_span_without_ids_is_no_event(trace: str, span: str) -> None:
    refused = refuse(to_json([make_span() | {"traceId": trace, "spanId": span}]))
    assert (refused.reason, "event.id" in refused.detail) == (Reason.MISSING_FIELD, True)


def test_a_span_from_the_future_is_refused_against_the_time_of_writing() -> None:
    late = make_span(1, end_ms=NOW_MS + 10 * 86_400_000)
    assert refuse(to_json([late])).reason is Reason.TIME_OUT_OF_RANGE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [*CHAT, *OLD, *TRACELOOP, *OPENINFERENCE, "gen_ai.input.messages", "gen_ai.output.messages"]
)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9)
plain_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(), scalars)


@given(st.dictionaries(KEYS, plain_values, max_size=4))
def test_any_attributes_give_an_event_or_a_reason(attributes: dict[str, Any]) -> None:
    span = make_span(1, attributes)
    decoded = decode(to_proto([span]), PROTO)
    assert len(decoded.results) + decoded.skipped == 1


@given(st.binary(max_size=200), st.sampled_from([JSON, PROTO]))
def test_any_bytes_give_results(raw: bytes, wire: Wire) -> None:
    decode(raw, wire)


@given(json_values)
def test_any_json_in_place_of_a_span_gives_a_result(value: Any) -> None:
    decode(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [value]}]}]}).encode())


# --- In a chunk --------------------------------------------------------------------------------


def test_a_chunk_of_spans_keeps_its_books() -> None:
    bad = make_span(9, {"gen_ai.operation.name": "chat"})
    worse = make_span(10, {**CHAT, "gen_ai.usage.input_tokens": -1})
    records = [
        to_json([make_span(1), bad, worse, make_span(2), make_span(3, {"a": 1})]),
        to_json([make_span(2), make_span(4)]),
    ]
    admission = admit(make_chunk(records), DEFAULT_LIMITS, SeenIds(100), JSON)
    assert (admission.read, admission.skipped, admission.duplicates) == (6, 1, 1)
    assert [r.offset for r in admission.records] == [0, 0, 1]
    assert [(d.record.offset, d.item) for d in admission.deadletters] == [(0, 0), (0, 1)]
    refused = admission.without({0: "too odd"}).deadletters
    assert [(d.record.offset, d.item) for d in refused] == [(0, 0), (0, 1), (0, 2)]
