"""The published schema: it is the code's, and it says the same as the decoder."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from schemas.codec import decode_event
from schemas.event import Received
from schemas.json_schema import FILE, build_schema, main, render_schema
from schemas.rejection import Reason, Rejected
from tests.support.events import (
    KEYS,
    NOW_MS,
    UNKNOWN,
    Json,
    any_events,
    make_event,
    make_traffic,
    to_bytes,
    valid_events,
)

VALIDATOR = Draft202012Validator(json.loads(FILE.read_text(encoding="utf-8")))
#: What the decoder may refuse although the schema has nothing against it.
BEYOND_A_SCHEMA = {Reason.TIME_OUT_OF_RANGE, Reason.TOO_MANY_ATTRIBUTES, Reason.TOO_DEEP}


def decode(event: Json) -> Received | Rejected:
    return decode_event(to_bytes(event), NOW_MS)


# --- The file --------------------------------------------------------------------------------


def test_the_committed_file_is_what_the_code_says() -> None:
    assert FILE.read_text(encoding="utf-8") == render_schema(), "run python -m schemas.json_schema"


def test_the_module_rewrites_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("schemas.json_schema.FILE", tmp_path / "event.schema.json")
    main()
    assert (tmp_path / "event.schema.json").read_text(encoding="utf-8") == render_schema()


def test_it_is_a_schema_with_a_name_of_its_own() -> None:
    schema = build_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$id"].startswith("urn:")
    assert schema["title"]
    assert set(schema["properties"]) == set(KEYS.values())


def test_it_hands_on_what_the_code_says_about_a_key() -> None:
    properties = build_schema()["properties"]
    assert "Inclusive of cached tokens" in properties["gen_ai.usage.input_tokens"]["description"]
    assert "seconds" in properties["gen_ai.client.operation.duration"]["description"]
    assert "time_ms" not in json.dumps(properties)


# --- The schema and the decoder --------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        make_event(),
        make_event(event_time="2025-10-09T08:53:20Z"),
        make_event(event_time="2025-10-09t08:53:20.123456+09:00"),
        make_event(event_time="2025-10-09 08:53:20-0330"),
        make_event(event_time=1_760_000_000),
        make_event("あ" * 256),
        make_event(route="😀" * 256),
        make_event(input_tokens=0, output_tokens=2**31 - 1),
        make_event(finish_reasons=[]) | {"gateway.route": None},
        make_event() | {"a key of their own": {"deep": [1, None]}, "": 1},
        *make_traffic(1, 50),
    ],
    ids=lambda e: e["event.id"][:10],
)
def test_both_take(event: Json) -> None:
    assert isinstance(decode(event), Received)
    VALIDATOR.validate(event)


def without(name: str) -> Json:
    return {k: v for k, v in make_event().items() if k != KEYS[name]}


@pytest.mark.parametrize(
    "event",
    [
        {},
        without("event_id"),
        without("event_time"),
        without("request_model"),
        make_event(""),
        make_event("x" * 257),
        make_event() | {"event.id": 7},
        make_event() | {"event.id": None},
        make_event(request_model=""),
        make_event(event_time="2025-10-09T08:53:20"),
        make_event(event_time="2025-10-09"),
        make_event(event_time="2025-13-09T08:53:20Z"),
        make_event(event_time="2025-10-09T24:00:00Z"),
        make_event(event_time="2025-10-09T08:53:60Z"),
        make_event(event_time="2025-10-09T08:53:20+24:00"),
        make_event(event_time="２０２５-10-09T08:53:20Z"),
        make_event(event_time="1760000000"),
        make_event(event_time=NOW_MS),
        make_event(event_time=True),
        make_event(event_time=[1_760_000_000]),
        make_event(route="x" * 257),
        make_event(route=1),
        make_event(input_tokens=-1),
        make_event(input_tokens=2**31),
        make_event(input_tokens=2**63),
        make_event(input_tokens=1.5),
        make_event(input_tokens="5"),
        make_event(input_tokens=True),
        make_event(duration_s=-0.001),
        make_event(duration_s=86_401),
        make_event(duration_s="1s"),
        make_event(attempts=1001),
        make_event(cache="maybe"),
        make_event(refusal="no"),
        make_event(stream=1),
        make_event(finish_reasons="stop"),
        make_event(finish_reasons=["x" * 65]),
        make_event(finish_reasons=["stop"] * 65),
        make_event(prompt_embedding=[0.0] * 4097),
        make_event(prompt_embedding=[None]),
        make_event(response_text=["hello"]),
    ],
    ids=lambda e: str(e)[-60:],
)
def test_both_refuse(event: Json) -> None:
    assert isinstance(decode(event), Rejected)
    assert not VALIDATOR.is_valid(event)


@pytest.mark.parametrize("event", [[], None, 1, "event", True], ids=str)
def test_both_refuse_what_is_no_object(event: Any) -> None:
    assert isinstance(decode(event), Rejected)
    assert not VALIDATOR.is_valid(event)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        pytest.param(make_event(event_time=0), Reason.TIME_OUT_OF_RANGE, id="the time range"),
        pytest.param(
            make_event(event_time="2025-02-30T00:00:00Z"), Reason.INVALID_FIELD, id="30/2"
        ),
        pytest.param(make_event(route="a\0b"), Reason.CONTROL_CHARACTER, id="NUL"),
        pytest.param(make_event(prompt_text="x" * 10**6), Reason.TOO_LARGE, id="the size"),
        pytest.param(
            make_event() | {f"key {i}": i for i in range(65)},
            Reason.TOO_MANY_ATTRIBUTES,
            id="how many unknown keys",
        ),
        pytest.param(
            make_event() | {"key": "x" * 16_384},
            Reason.TOO_MANY_ATTRIBUTES,
            id="the size of unknown keys",
        ),
        pytest.param(
            make_event() | {"key": json.loads("[" * 33 + "]" * 33)}, Reason.TOO_DEEP, id="depth"
        ),
        # JSON Schema sees numbers, not how they are written.
        pytest.param(make_event(input_tokens=1.0), Reason.INVALID_FIELD, id="1.0 for 1"),
    ],
)
def test_a_rule_that_a_schema_cannot_say(event: Json, reason: Reason) -> None:
    result = decode(event)
    assert isinstance(result, Rejected)
    assert result.reason is reason
    VALIDATOR.validate(event)


@settings(max_examples=150, deadline=None)
@given(valid_events(), UNKNOWN)
def test_a_valid_event_is_valid_for_both(event: Json, unknown: Json) -> None:
    VALIDATOR.validate(event | unknown)
    assert isinstance(decode(event | unknown), Received)


@settings(max_examples=300, deadline=None)
@given(any_events())
def test_both_judge_alike(event: Json) -> None:
    result = decode(event)
    if isinstance(result, Received):
        VALIDATOR.validate(event)
    elif not any(isinstance(v, float) and v.is_integer() for v in event.values()):
        assert result.reason in BEYOND_A_SCHEMA or not VALIDATOR.is_valid(event)
