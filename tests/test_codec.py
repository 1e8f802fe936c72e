"""Every kind of bad record has its reason, keeps its bytes, and raises nothing."""

from __future__ import annotations

import datetime as dt
import json
import math

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.codec import (
    BLOCK_EVENTS,
    MAX_DEPTH,
    MAX_DETAIL,
    CodecLimits,
    decode_event,
    decode_events,
)
from schemas.event import Event, Received
from schemas.rejection import Reason, Rejected
from tests.support.events import (
    KEYS,
    NOW_MS,
    UNKNOWN,
    Json,
    any_events,
    make_event,
    make_raw,
    to_bytes,
    valid_events,
)

DAY_MS = 86_400_000
YEAR_MS = 366 * DAY_MS
PLAIN = make_raw()


def extend(member: str | bytes) -> bytes:
    """The plain event with one more member, written as it is given."""
    return PLAIN[:-1] + b"," + (member if isinstance(member, bytes) else member.encode()) + b"}"


def decode(raw: bytes | None, written_ms: int = NOW_MS) -> Received | Rejected:
    return decode_event(raw, written_ms)


def refusal_of(raw: bytes, written_ms: int = NOW_MS) -> Rejected:
    """Decode what must be refused."""
    before = bytes(raw)
    result = decode(raw, written_ms)
    assert isinstance(result, Rejected)
    assert result.raw == before
    assert 0 < len(result.detail) <= MAX_DETAIL
    return result


def acceptance_of(raw: bytes, written_ms: int = NOW_MS) -> Received:
    """Decode what must be accepted."""
    result = decode(raw, written_ms)
    assert isinstance(result, Received), result
    return result


# --- One bad record, one reason --------------------------------------------------------------


def test_a_tombstone() -> None:
    assert decode(None) == Rejected(Reason.TOMBSTONE, "the record has no value", b"")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="white space"),
        pytest.param(b"hello", id="words"),
        pytest.param(b"event.id=1", id="logfmt"),
        pytest.param(b"{'event.id': 'e'}", id="single quotes"),
        pytest.param(b"\x00\x01\x02", id="binary"),
        pytest.param(PLAIN[:-1], id="cut off"),
        pytest.param(PLAIN[:-9], id="cut off in a string"),
        pytest.param(PLAIN + b"x", id="trailing garbage"),
        pytest.param(PLAIN + PLAIN, id="two events"),
        pytest.param(PLAIN[:-1] + b",}", id="trailing comma"),
        pytest.param(b"/* event */" + PLAIN, id="comment"),
        pytest.param(b"\xef\xbb\xbf" + PLAIN, id="byte order mark"),
        pytest.param(extend('"gen_ai.request.temperature":NaN'), id="NaN"),
        pytest.param(extend('"gen_ai.request.temperature":Infinity'), id="Infinity"),
        pytest.param(extend('"gen_ai.request.temperature":-Infinity'), id="-Infinity"),
        pytest.param(extend('"prompt.embedding":[NaN]'), id="NaN in a vector"),
        pytest.param(extend('"unknown":NaN'), id="NaN under an unknown key"),
        pytest.param(extend('"prompt.text":"a\nb"'), id="raw line feed"),
        pytest.param(extend('"prompt.text":"a\0b"'), id="raw NUL"),
        pytest.param(extend('"unknown":"a\0b"'), id="raw NUL under an unknown key"),
        pytest.param(extend('"unknown":1,"more":'), id="cut off after an unknown key"),
        pytest.param(extend('"prompt.text":"\\\\ud800')[:-1], id="cut off, looks like surrogate"),
    ],
)
def test_what_is_not_json(raw: bytes) -> None:
    assert refusal_of(raw).reason is Reason.INVALID_JSON


@pytest.mark.parametrize("raw", [b"[]", b"null", b"1", b"-0.5", b'"text"', b"true", b"[{}]"])
def test_json_that_is_no_object(raw: bytes) -> None:
    assert refusal_of(raw).reason is Reason.NOT_AN_OBJECT


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(make_raw(prompt_text="あ")[:-3], id="record cut off in a character"),
        pytest.param(extend(b'"prompt.text":"\xe3\x81"'), id="character cut off"),
        pytest.param(extend(b'"prompt.text":"\xff"'), id="no such byte"),
        pytest.param(extend(b'"prompt.text":"\xc0\xaf"'), id="overlong"),
        pytest.param(extend(b'"prompt.text":"\xed\xa0\x80"'), id="raw surrogate"),
        pytest.param(extend(b'"unknown":"\xed\xa0\x80"'), id="raw surrogate, unknown key"),
        pytest.param(extend(b'"unknown":{"a":["\xe3\x81"]}'), id="deep under an unknown key"),
        pytest.param(extend(b'"\xe3\x81":1'), id="in a key"),
        pytest.param(make_raw(prompt_text="é").decode().encode("latin-1"), id="Latin-1"),
        pytest.param(make_raw(prompt_text="日本").decode().encode("shift_jis"), id="Shift JIS"),
        pytest.param(PLAIN.decode().encode("utf-16"), id="UTF-16"),
    ],
)
def test_what_is_not_utf8(raw: bytes) -> None:
    assert refusal_of(raw).reason is Reason.INVALID_UTF8


@pytest.mark.parametrize(
    "member",
    [
        r'"prompt.text":"\ud800"',
        r'"prompt.text":"\uDFFF"',
        r'"prompt.text":"\ud800\ud800"',
        r'"prompt.text":"\ud800\u0041"',
        r'"prompt.text":"\ud83d\\\ude00"',
        r'"unknown":"\udc00x"',
        r'"unknown":{"\ud800":1}',
        r'"\ud800":1',
    ],
)
def test_half_of_a_surrogate_pair(member: str) -> None:
    assert refusal_of(extend(member)).reason is Reason.LONE_SURROGATE


@pytest.mark.parametrize("name", ["event_id", "event_time", "request_model"])
@pytest.mark.parametrize("unknown", [{}, {"unknown": 1}], ids=["known keys", "unknown key"])
def test_a_required_key_is_missing(name: str, unknown: Json) -> None:
    event = make_event() | unknown
    del event[KEYS[name]]
    rejected = refusal_of(to_bytes(event))
    assert rejected.reason is Reason.MISSING_FIELD
    assert KEYS[name] in rejected.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_id", 7),
        ("event_id", None),
        ("event_id", ""),
        ("event_id", "x" * 257),
        ("request_model", ["gpt-4o"]),
        ("route", {"name": "support"}),
        ("tenant", "x" * 257),
        ("input_tokens", -1),
        ("output_tokens", 2**31),
        ("output_tokens", 2**63),
        ("output_tokens", 2**64),
        ("output_tokens", 10**400),
        ("input_tokens", 1.5),
        ("input_tokens", 1.0),
        ("input_tokens", "5"),
        ("input_tokens", True),
        ("duration_s", -1),
        ("duration_s", 86_401),
        ("duration_s", 10**400),
        ("attempts", 2**16),
        ("cache", "maybe"),
        ("refusal", "yes"),
        ("finish_reasons", "stop"),
        ("prompt_embedding", [0.0] * 4097),
        ("event_time", None),
        ("event_time", True),
        ("event_time", "yesterday"),
        ("event_time", "1760000000"),
        ("event_time", "2025-10-09"),
        ("event_time", "2025-10-09T08:53:20"),
        ("event_time", "2025-02-30T00:00:00Z"),
        ("event_time", NOW_MS),
        ("event_time", 1e300),
        ("event_time", 10**400),
        ("event_time", -(10**400)),
    ],
    ids=lambda v: str(v)[:24],
)
@pytest.mark.parametrize("unknown", [{}, {"unknown": 1}], ids=["known keys", "unknown key"])
def test_a_wrong_value(name: str, value: object, unknown: Json) -> None:
    raw = to_bytes(make_event() | {KEYS[name]: value} | unknown)
    assert refusal_of(raw).reason is Reason.INVALID_FIELD


@pytest.mark.parametrize("literal", ["1e999", "-1e999", "9" * 5_000])
@pytest.mark.parametrize("key", ["gen_ai.request.temperature", "unknown", "event.time"])
def test_a_number_that_nothing_can_hold(key: str, literal: str) -> None:
    assert refusal_of(extend(f'"{key}":{literal}')).reason is Reason.INVALID_FIELD


@pytest.mark.parametrize("name", sorted(set(KEYS) - {"event_time"}))
def test_a_detail_names_the_key_and_quotes_no_value(name: str) -> None:
    """What a record says may be a secret."""
    for value in ("s3cret - at `s3cret`" * 100, {"s3cret": "s3cret"}, ["s3cret", 1]):
        result = decode(to_bytes(make_event() | {KEYS[name]: value}))
        if isinstance(result, Rejected):
            assert "s3cret" not in result.detail
            assert KEYS[name] in result.detail


@pytest.mark.parametrize(
    "member",
    [
        r'"prompt.text":"a\u0000"',
        r'"gateway.user":"\u0000"',
        r'"gen_ai.response.finish_reasons":["stop","\u0000"]',
        r'"unknown":"a\u0000"',
        r'"a\u0000":1',
    ],
)
def test_a_nul(member: str) -> None:
    assert refusal_of(extend(member)).reason is Reason.CONTROL_CHARACTER


def test_a_megabyte_of_text() -> None:
    rejected = refusal_of(make_raw(prompt_text="x" * 1_000_000))
    assert rejected.reason is Reason.TOO_LARGE


def test_the_size_is_in_bytes_and_its_limit_is_taken() -> None:
    fits = make_raw(prompt_text="あ" * 10)
    limits = CodecLimits(event_bytes=len(fits))
    assert isinstance(decode_event(fits, NOW_MS, limits), Received)
    over = decode_event(fits + b" ", NOW_MS, limits)
    assert isinstance(over, Rejected)
    assert over.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 200, 1_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_under_an_unknown_key(depth: int, opening: str, closing: str) -> None:
    raw = extend(f'"unknown":{opening * depth}1{closing * depth}')
    assert refusal_of(raw).reason is Reason.TOO_DEEP


@pytest.mark.parametrize("depth", [2, 1_000, 100_000])
@pytest.mark.parametrize("key", ["prompt.embedding", "prompt.text", "event.time", "event.id"])
def test_deep_nesting_under_a_known_key(depth: int, key: str) -> None:
    raw = extend(f'"{key}":{"[" * depth}{"]" * depth}')
    assert refusal_of(raw).reason in {Reason.INVALID_FIELD, Reason.TOO_DEEP}


@pytest.mark.parametrize(("raw", "reason"), [
    (b"[" * 100_000, Reason.NOT_AN_OBJECT),
    (b'{"a":' * 100_000, Reason.TOO_DEEP),
    (extend('"unknown":' + "[" * 100_000), Reason.TOO_DEEP),
])  # fmt: skip
def test_deep_nesting_without_an_end(raw: bytes, reason: Reason) -> None:
    assert refusal_of(raw).reason is reason


def test_unknown_keys_are_capped() -> None:
    keys = {f"key {i}": i for i in range(64)}
    assert len(acceptance_of(to_bytes(make_event() | keys)).attributes) == 64
    rejected = refusal_of(to_bytes(make_event() | keys | {"one more": 1}))
    assert rejected.reason is Reason.TOO_MANY_ATTRIBUTES
    long = refusal_of(to_bytes(make_event() | {"key": "x" * 16_384}))
    assert long.reason is Reason.TOO_MANY_ATTRIBUTES


# --- Times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [-10, 10])
def test_ten_years_away(years: int) -> None:
    rejected = refusal_of(make_raw(time_ms=NOW_MS + years * YEAR_MS))
    assert rejected.reason is Reason.TIME_OUT_OF_RANGE


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59-12:00"])
def test_the_ends_of_the_calendar(text: str) -> None:
    assert refusal_of(make_raw(event_time=text)).reason is Reason.TIME_OUT_OF_RANGE


def test_the_bounds_are_taken_against_the_time_of_writing() -> None:
    """A replay years later must decide the same way, so no clock is asked."""
    old = make_raw(time_ms=NOW_MS - 20 * YEAR_MS)
    assert acceptance_of(old, NOW_MS - 20 * YEAR_MS).time_ms == NOW_MS - 20 * YEAR_MS
    limits = CodecLimits()
    edges = (-limits.age_ms, limits.ahead_ms)
    for edge, beyond in zip(edges, (-1_000, 1_000), strict=True):
        acceptance_of(make_raw(time_ms=NOW_MS + edge))
        refused = refusal_of(make_raw(time_ms=NOW_MS + edge + beyond))
        assert refused.reason is Reason.TIME_OUT_OF_RANGE


@pytest.mark.parametrize("time_ms", [-1_000, 2**32 * 1000])
def test_a_forged_time_of_writing_lets_nothing_through_that_no_column_can_hold(
    time_ms: int,
) -> None:
    assert refusal_of(make_raw(time_ms=time_ms), time_ms).reason is Reason.TIME_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("value", "time_ms"),
    [
        ("2025-10-09T08:53:20Z", NOW_MS),
        ("2025-10-09T17:53:20+09:00", NOW_MS),
        ("2025-10-09t08:53:20.123456789z", NOW_MS + 123),
        (1_760_000_000, NOW_MS),
        (1_760_000_000.001, NOW_MS + 1),
        (1_759_999_999.9999, NOW_MS - 1),
    ],
)
def test_times_are_milliseconds_rounded_down(value: object, time_ms: int) -> None:
    assert acceptance_of(make_raw(event_time=value)).time_ms == time_ms


# --- What is taken ---------------------------------------------------------------------------


def test_unknown_keys_are_kept_as_text() -> None:
    unknown = {"a": "text", "b": 1, "c": 1.5, "d": None, "e": {"い": [True]}, "f": 10**30, "": "x"}
    assert acceptance_of(to_bytes(make_event() | unknown)).attributes == {
        "a": "text",
        "b": "1",
        "c": "1.5",
        "d": "null",
        "e": '{"い":[true]}',
        "f": str(10**30),
        "": "x",
    }


@pytest.mark.parametrize("depth", [1, MAX_DEPTH])
def test_unknown_keys_may_nest(depth: int) -> None:
    value = "[" * depth + "]" * depth
    assert acceptance_of(extend(f'"unknown":{value}')).attributes == {"unknown": value}


def test_an_escaped_pair_and_an_escaped_backslash_are_text() -> None:
    received = acceptance_of(extend(r'"prompt.text":"\ud83d\ude00 \\ud800 \\u0000"'))
    assert received.event.prompt_text == "😀 \\ud800 \\u0000"


def test_white_space_around_an_event_is_json() -> None:
    acceptance_of(b"\r\n " + PLAIN + b"\t\n")


def test_of_a_repeated_key_the_last_counts_and_all_are_checked() -> None:
    assert acceptance_of(extend('"event.id":"second"')).event.event_id == "second"
    for unknown in ("", ',"unknown":1'):
        twice = '"gateway.attempts":"x","gateway.attempts":1' + unknown
        assert refusal_of(extend(twice)).reason is Reason.INVALID_FIELD
    assert acceptance_of(extend('"unknown":1,"unknown":2')).attributes == {"unknown": "2"}


# --- For all inputs --------------------------------------------------------------------------


def check_total(raw: bytes) -> None:
    before = bytes(raw)
    result = decode_event(raw, NOW_MS)
    assert isinstance(result, Received | Rejected)
    if isinstance(result, Rejected):
        assert result.raw == before
        assert len(result.detail) <= MAX_DETAIL
    else:
        # What is accepted can be stored: UTF-8 without NUL, a time in range.
        json.dumps(result.attributes, ensure_ascii=False).encode()
        assert "\0" not in result.event.event_id
        assert abs(result.time_ms - NOW_MS) <= CodecLimits().age_ms


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b'{"event.id":"\\ud800"')
def test_any_bytes_are_judged(raw: bytes) -> None:
    check_total(raw)


@st.composite
def mutated_events(draw: st.DrawFn) -> bytes:
    """A valid event with a few of its bytes cut, copied, overwritten or put in anew."""
    raw = to_bytes(draw(valid_events()) | draw(UNKNOWN))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = draw(st.integers(start, min(len(raw), start + 20)))
        put = draw(st.binary(max_size=4) | st.just(raw[start:end] * 2) | st.sampled_from(SPLICES))
        raw = raw[:start] + put + raw[end:]
    return raw


SPLICES = [b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"-1", b"9" * 400, b"[" * 40, b'","', b"\xe3"]


@settings(max_examples=400, deadline=None)
@given(mutated_events())
def test_a_mutated_event_is_judged(raw: bytes) -> None:
    check_total(raw)


@settings(max_examples=200, deadline=None)
@given(valid_events(), UNKNOWN)
def test_a_valid_event_comes_through_whole(event: Json, unknown: Json) -> None:
    received = acceptance_of(to_bytes(event | unknown))
    for field in msgspec.structs.fields(Event):
        value = getattr(received.event, field.name)
        if field.name != "event_time":
            assert value == event.get(field.encode_name)
    assert received.time_ms == expected_ms(event["event.time"])
    assert set(received.attributes) == set(unknown)
    for key, value in unknown.items():
        kept = received.attributes[key]
        assert kept == value if isinstance(value, str) else json.loads(kept) == value


def expected_ms(value: str | float) -> int:
    if not isinstance(value, str):
        return math.floor(value * 1000)
    since = dt.datetime.fromisoformat(value) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return since // dt.timedelta(milliseconds=1)


@settings(max_examples=300, deadline=None)
@given(any_events())
@example(make_event(event_time=10**400))
@example(make_event(input_tokens=1.0))
@example(make_event(input_tokens=-0.0))
def test_an_unknown_key_changes_nothing_about_the_known_ones(event: Json) -> None:
    fast = decode_event(to_bytes(event), NOW_MS)
    slow = decode_event(to_bytes(event | {"unknown": 1}), NOW_MS)
    if isinstance(fast, Received):
        assert isinstance(slow, Received)
        assert (slow.event, slow.time_ms) == (fast.event, fast.time_ms)
        assert type(slow.event) is Event
        assert (fast.attributes, slow.attributes) == ({}, {"unknown": "1"})
    else:
        assert isinstance(slow, Rejected)
        assert slow.reason is fast.reason


# --- A chunk at once -------------------------------------------------------------------------

RECORDS = st.one_of(
    st.just(PLAIN),
    st.none(),
    st.binary(max_size=40),
    mutated_events(),
    valid_events().map(to_bytes),
    st.sampled_from(
        [
            PLAIN + b" " * 1_000,
            extend('"prompt.text":"a\\u0000b"'),
            extend('"prompt.text":"a\\\\u0000b"'),
            extend('"unknown":"\\u0000"'),
            b'{"event.id":"\\',
            b"u0000",
        ]
    ),
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(-(10**320), 10**320),
        st.integers(NOW_MS // 1000 - 10**9, NOW_MS // 1000 + 10**6),
        st.datetimes().map(dt.datetime.isoformat),
        st.datetimes(timezones=st.just(dt.UTC)).map(dt.datetime.isoformat),
    ).map(lambda time: make_raw(event_time=time)),
)
WRITTEN = st.just(NOW_MS) | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(RECORDS, WRITTEN), max_size=12))
def test_a_chunk_is_decoded_as_its_records_are(records) -> None:
    limits = CodecLimits(event_bytes=900)
    raws, written_ms = [raw for raw, _ in records], [at for _, at in records]
    expected = [decode_event(raw, at, limits) for raw, at in records]
    assert decode_events(raws, written_ms, limits) == expected


def test_a_long_chunk_keeps_its_order() -> None:
    raws = [make_raw(event_id=str(number)) for number in range(2 * BLOCK_EVENTS + 1)]
    decoded = decode_events(raws, [NOW_MS] * len(raws))
    assert [r.event.event_id for r in decoded if isinstance(r, Received)] == [
        str(number) for number in range(len(raws))
    ]
    assert decode_events([], []) == []


def test_times_and_records_of_a_chunk_are_as_many() -> None:
    with pytest.raises(ValueError, match="length"):
        decode_events([PLAIN], [])
