"""Feedback on the wire: what is taken, what is refused with which reason, and the schema of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pipeline.receiving import judge_feedback
from schemas.codec import DEFAULT_LIMITS, MAX_DETAIL
from schemas.feedback import (
    BYTES_MAX,
    ReceivedFeedback,
    decode_feedback,
    name_value,
    plain_name,
    split_value,
)
from schemas.json_schema import FEEDBACK, FILE, build_schema, main, render_schema
from schemas.rejection import Reason, Rejected
from tests.support.events import JSON_VALUES, NOW_MS, Json, to_bytes
from tests.support.feedback import KEYS, feedback_raw, make_feedback, valid_feedback

SCHEMA = FILE.with_name("feedback.schema.json")
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
DAY_S = 86_400


def decode(raw: bytes | None) -> ReceivedFeedback | Rejected:
    return decode_feedback(raw, NOW_MS, DEFAULT_LIMITS)


def reason_of(raw: bytes | None) -> Reason:
    result = decode(raw)
    assert isinstance(result, Rejected), result
    assert 0 < len(result.detail) <= MAX_DETAIL
    assert result.raw == (raw or b"")
    return result.reason


@settings(max_examples=200, deadline=None)
@given(valid_feedback(), st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=2))
def test_valid_feedback_is_taken_as_it_is(feedback: Json, unknown: Json) -> None:
    unknown = {k: v for k, v in unknown.items() if k not in KEYS.values()}
    result = decode(to_bytes(unknown | feedback))
    assert isinstance(result, ReceivedFeedback), result
    assert result.time_ms == pytest.approx(feedback["feedback.time"] * 1000, abs=1)
    told = {KEYS[k]: v for k, v in msgspec.structs.asdict(result.feedback).items()}
    assert {k: v for k, v in told.items() if v is not None} == feedback
    VALIDATOR.validate(feedback)


@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_or_taken_and_nothing_is_raised(raw: bytes) -> None:
    assert isinstance(decode(raw), Rejected | ReceivedFeedback)


@settings(max_examples=200, deadline=None)
@given(
    valid_feedback(),
    st.dictionaries(st.sampled_from(sorted(KEYS.values())), JSON_VALUES, max_size=2),
)
def test_what_is_taken_is_valid_by_the_schema(feedback: Json, others: Json) -> None:
    if isinstance(decode(to_bytes(feedback | others)), ReceivedFeedback):
        VALIDATOR.validate(feedback | others)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, Reason.TOMBSTONE),
        (b"", Reason.INVALID_JSON),
        (b"[]", Reason.NOT_AN_OBJECT),
        (b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", Reason.TOO_DEEP),
        (feedback_raw()[:-2] + b"\xe3\x81", Reason.INVALID_UTF8),
        (feedback_raw(explanation="x" * BYTES_MAX), Reason.TOO_LARGE),
        (feedback_raw()[:-1] + b', "gateway.user": "\\ud800"}', Reason.LONE_SURROGATE),
        (feedback_raw(None), Reason.MISSING_FIELD),
        (feedback_raw(about=None), Reason.MISSING_FIELD),
        (feedback_raw(about=""), Reason.MISSING_FIELD),
        (feedback_raw(score=None), Reason.MISSING_FIELD),
        (feedback_raw(score=None, label=""), Reason.MISSING_FIELD),
        (feedback_raw(name=None), Reason.MISSING_FIELD),
        (feedback_raw(name=""), Reason.INVALID_FIELD),
        (feedback_raw(name="x" * 65), Reason.INVALID_FIELD),
        (feedback_raw(score="good"), Reason.INVALID_FIELD),
        (feedback_raw(score=True), Reason.INVALID_FIELD),
        (feedback_raw(score=1e13), Reason.INVALID_FIELD),
        (feedback_raw(user="a\0b"), Reason.CONTROL_CHARACTER),
        (feedback_raw(explanation="a\0b"), Reason.CONTROL_CHARACTER),
        (feedback_raw(feedback_time="2025-10-09T08:53:20"), Reason.INVALID_FIELD),
        (feedback_raw(feedback_time=NOW_MS / 1000 + 2 * DAY_S), Reason.TIME_OUT_OF_RANGE),
        (feedback_raw(feedback_time=0), Reason.TIME_OUT_OF_RANGE),
    ],
)
def test_each_bad_record_has_its_reason(raw: bytes | None, reason: Reason) -> None:
    assert reason_of(raw) is reason


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_a_score_that_is_no_number_is_refused(number: str) -> None:
    raw = feedback_raw(score=None)[:-1] + b', "%b": %b}' % (
        KEYS["score"].encode(),
        number.encode(),
    )
    assert reason_of(raw) in {Reason.INVALID_JSON, Reason.INVALID_FIELD}


def test_the_detail_quotes_nothing_of_what_somebody_wrote() -> None:
    for fields in ({"score": "my secret"}, {"name": "my secret" * 9}, {"source": ["my secret"]}):
        result = decode(feedback_raw(explanation="my secret", **fields))  # type: ignore[arg-type]
        assert isinstance(result, Rejected)
        assert "secret" not in result.detail


# --- The schema --------------------------------------------------------------------------------


def test_the_committed_file_is_what_the_code_says() -> None:
    told = "run python -m schemas.json_schema"
    assert SCHEMA.read_text(encoding="utf-8") == render_schema(FEEDBACK), told


def test_the_module_rewrites_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("schemas.json_schema.FILE", tmp_path / "event.schema.json")
    main()
    assert (tmp_path / SCHEMA.name).read_text(encoding="utf-8") == render_schema(FEEDBACK)


def test_it_is_a_schema_of_all_keys() -> None:
    schema = build_schema(FEEDBACK)
    Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == set(KEYS.values())
    assert "given" in schema["properties"]["feedback.time"]["description"]
    assert not VALIDATOR.is_valid(make_feedback(about=None))
    assert not VALIDATOR.is_valid(make_feedback(score=None))


# --- Names in monitors, and the door -----------------------------------------------------------


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_an_evaluation_and_a_value_come_out_of_a_monitor_as_they_went_in(
    name: str, value: str
) -> None:
    assert split_value(name_value(name, value)) == (plain_name(name), value)
    assert name_value(name, "") == ""


def test_the_door_judges_by_the_same_rules_and_keys_by_the_id() -> None:
    judge = judge_feedback(NOW_MS, DEFAULT_LIMITS)
    raw = feedback_raw("f-7")
    assert judge(raw) == (b"f-7", raw)
    refused = judge(feedback_raw(about=None))
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.MISSING_FIELD
