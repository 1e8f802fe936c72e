"""Whatever comes in: nothing crashes, and each record is stored or dead-lettered for a true reason.

20,000 records here; as many as wanted with

    MALFORMED_RECORDS=100000 python -m pytest -n 0 tests/test_malformed.py

They are valid events broken at random from a seed: bytes, cuts, splices, types, sizes, depths. A
judge that shares no code with the codec (the standard library's parser) says what may be
the reason.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.core.chunk import Record
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.redaction import RecordPolicy, redact_record
from pipeline.core.step import StepConfig, admit, derive_effects
from pipeline.sinks.arrow import to_table
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.rejection import Reason
from tests.support.events import PRICES, make_chunk, make_event, make_traffic, to_bytes

RECORDS = int(os.environ.get("MALFORMED_RECORDS", "20000"))
CHUNK = 1_000
LIMITS = CodecLimits(event_bytes=20_000)
CONFIG = StepConfig(DEFAULT_GROUPINGS, LIMITS, store_texts=True)
MONITORS_MAX = 20

FRAGMENTS = (
    b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe3\x81",
    b"\x00", b"\n", b"\x1b[2J", b"NaN", b"-Infinity", b"1e999", b"-0", b"1" * 400, b"0x1f", b"null",
    b"[" * 40, b"{" * 40, b'{"a":' * 1_200, b"[" * 5_000, b"]", b"}", b'"', b"\\", b",", b":",
    b"/**/",     b'"event.id":"again",', b'"event.time":null,', b'"gen_ai.usage.input_tokens":-1,',
    b'"gen_ai.usage.output_tokens":9223372036854775808,', b'"x":{"y":[{}]},', b'"x' * 3,
    b'"gateway.route":"' + b"r" * 300 + b'",', b'"gateway.cache":"maybe",', b"\xef\xbb\xbf",
    b'"prompt.text":"a@example.com 4111111111111111",', b"\xe2\x80\xae", b"\xf0\x9f\x99\x82",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 1e308, -1e-300, "", "x" * 257, "\0", "\u202e", [], {}, [[]],
    ["a"] * 70, {"a": {"b": {"c": 1}}}, "2026-02-30T00:00:00Z", "1e5", [None],
    "9999-12-31T23:59:59Z",     1e18, -62135596800, "\ud800",
)  # fmt: skip


def deepen(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def flip(raw: bytes, rng: random.Random) -> bytes:
    broken = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken)


def splice(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + rng.choice(FRAGMENTS) + raw[at + rng.randint(0, 3) :]


def cut(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] if rng.random() < 0.5 else raw[at:]


def change(raw: bytes, rng: random.Random) -> bytes:
    event = json.loads(raw)
    for _ in range(rng.randint(1, 3)):
        event[rng.choice(list(event))] = rng.choice(VALUES)
    return json.dumps(event).encode()


def widen(raw: bytes, rng: random.Random) -> bytes:
    event = json.loads(raw)
    event |= {f"x.{i}": rng.choice(VALUES[:-1]) for i in range(rng.choice((1, 3, 64, 65, 200)))}
    return json.dumps(event).encode()


def nest(raw: bytes, rng: random.Random) -> bytes:
    event = json.loads(raw)
    event["x"] = deepen(rng.choice((31, 32, 33, 200)))
    return json.dumps(event).encode()


def drop(raw: bytes, rng: random.Random) -> bytes:
    event = json.loads(raw)
    del event[rng.choice(list(event))]
    return json.dumps(event if rng.random() < 0.8 else [event]).encode()


def swell(raw: bytes, rng: random.Random) -> bytes:
    return raw[:-1] + b',"prompt.text":"' + b"w" * rng.choice((10, 19_000, 20_001)) + b'"}'


def noise(raw: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 60))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip, flip, splice, splice, splice, cut, change, change, change),
    *(widen, nest, drop, swell, noise),
)


def broken_records(seed: int, count: int) -> Iterator[bytes | None]:
    rng = random.Random(seed)
    valid = [to_bytes(each) for each in make_traffic(seed, 200)]
    for i in range(count):
        if i % 997 == 0:
            yield None
            continue
        raw = rng.choice(valid).replace(b'"event.id": "', f'"event.id": "{i}-'.encode(), 1)
        for _ in range(rng.choice((1, 1, 1, 2))):
            try:
                raw = rng.choice(MUTATIONS)(raw, rng)
            except (ValueError, IndexError, AttributeError, RecursionError, KeyError, TypeError):
                raw = flip(raw or b" ", rng)  # it is beyond what a parser can break further
        yield raw


# --- The judge -------------------------------------------------------------------------------

ANY_FIELD = {
    Reason.MISSING_FIELD,
    Reason.INVALID_FIELD,
    Reason.TIME_OUT_OF_RANGE,
    Reason.CONTROL_CHARACTER,
    Reason.TOO_MANY_ATTRIBUTES,
    Reason.TOO_DEEP,
}
#: What no float can hold.
HUGE_NUMBER = re.compile(rb"[0-9]e[0-9]{3}|[0-9]{300}")
REQUIRED = {"event.id", "event.time", "gen_ai.request.model"}


def judge(raw: bytes | None) -> set[Reason | None]:
    """What may be said of a record: reasons, and None where it may be taken.

    Of a record with several faults a parser tells the one that it meets first.
    """
    if raw is None:
        return {Reason.TOMBSTONE}
    if len(raw) > LIMITS.event_bytes:
        return {Reason.TOO_LARGE}
    began_otherwise = not raw.lstrip(b" \t\r\n").startswith(b"{")
    first = Reason.NOT_AN_OBJECT if began_otherwise else Reason.INVALID_FIELD
    met_before = {Reason.TOO_DEEP, first}
    if HUGE_NUMBER.search(raw):
        met_before |= {Reason.INVALID_FIELD}
    # An object that is closed too early lacks what stands behind it.
    inside = raw[: raw.find(b"}")] if raw.count(b"}") else raw
    if not began_otherwise and any(f'"{key}"'.encode() not in inside for key in REQUIRED):
        met_before |= {Reason.MISSING_FIELD}
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return {Reason.INVALID_UTF8, *met_before}
    try:
        event = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {Reason.INVALID_JSON, Reason.LONE_SURROGATE, *met_before}
    return judge_parsed(event, text)


def _refuse(name: str) -> None:
    raise ValueError(name)


def judge_parsed(event: Any, text: str) -> set[Reason | None]:
    if any(0xD800 <= ord(c) < 0xE000 for c in json.dumps(event, ensure_ascii=False)):
        return {Reason.LONE_SURROGATE, *ANY_FIELD, Reason.NOT_AN_OBJECT}
    if not isinstance(event, dict):
        huge = {Reason.INVALID_FIELD} if HUGE_NUMBER.search(text.encode()) else set()
        return {Reason.NOT_AN_OBJECT, Reason.TOO_DEEP, *huge}
    said: set[Reason | None] = set(ANY_FIELD)
    if "inf" in json.dumps(event).lower():
        said |= {Reason.INVALID_JSON}  # 1e999: no float
    if not event.keys() >= REQUIRED:
        return {Reason.MISSING_FIELD, Reason.INVALID_FIELD, *({Reason.TOO_DEEP} & said)}
    if "\\u0000" in text:
        said.add(Reason.CONTROL_CHARACTER)
    return said | {None}


# --- The proof -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome() -> Counter[str]:
    """Every record through decode → effects; what became of them, and every reason looked at."""
    seen, registry, pricer = SeenIds(100_000), MonitorRegistry(MONITORS_MAX), Pricer(PRICES)
    counts: Counter[str] = Counter()
    for seed in range(-(-RECORDS // CHUNK)):
        raws = list(broken_records(seed, CHUNK))
        admission = admit(make_chunk(raws), LIMITS, seen)
        effects = derive_effects(admission, CONFIG, pricer, registry)
        assert effects.counts.read == CHUNK
        assert effects.counts.read == (
            effects.counts.stored + effects.counts.deadlettered + effects.counts.duplicates
        )
        told = {d.record.offset: d.rejected.reason for d in effects.deadletters}
        for record in make_chunk(raws).records:
            check_reason(record, told.get(record.offset))
        assert all(len(d.rejected.detail) <= 300 for d in effects.deadletters)
        for letter in effects.deadletters[::10]:
            assert b"a@example.com" not in redact_record(letter.rejected.raw, RecordPolicy())
        if effects.requests:
            to_table("requests", effects.requests)
            to_table("rollup_1m", effects.rollups)
        counts.update(told.values())
        counts["stored"] += effects.counts.stored
        counts["repeat"] += effects.counts.duplicates
    return counts


def check_reason(record: Record, told: Reason | None) -> None:
    allowed = judge(record.value)
    assert told in allowed, f"{told} of {(record.value or b'')[:300]!r}; {allowed}"


def test_every_record_is_stored_or_refused_for_a_true_reason(outcome: Counter[str]) -> None:
    assert outcome.total() == -(-RECORDS // CHUNK) * CHUNK
    assert outcome["stored"] > RECORDS // 50


def test_every_reason_is_met(outcome: Counter[str]) -> None:
    """Else the records would not be broken in enough ways."""
    assert {*Reason} - {Reason.UNSTORABLE, Reason.INVALID_PROTOBUF} <= outcome.keys()


def test_the_judge_is_no_fool() -> None:
    valid = to_bytes(next(iter(make_traffic(1, 1))))
    assert None in judge(valid)
    assert None not in judge(valid[:-1])
    assert None not in judge(b"[]")
    assert Reason.INVALID_UTF8 in judge(b"\xff")


# --- Caps ------------------------------------------------------------------------------------


def events_with(count: int, **fields: Any) -> list[bytes]:
    return [to_bytes({**make_event(f"cap-{i}"), **fields}) for i in range(count)]


def test_new_monitors_beyond_the_cap_are_counted_under_one_name() -> None:
    """An attacker who makes up routes takes room for as many as are allowed, and no more."""
    raws = [
        to_bytes({**json.loads(each), "gateway.route": f"made-up-{i}"})
        for i, each in enumerate(events_with(200))
    ]
    registry = MonitorRegistry(MONITORS_MAX)
    effects = derive_effects(
        admit(make_chunk(raws), LIMITS, SeenIds(1_000)), CONFIG, Pricer(PRICES), registry
    )
    rows = to_table("rollup_1m", effects.rollups).to_pylist()
    routes = [row for row in rows if row["grouping"] == "route"]
    assert len({row["route"] for row in routes}) == MONITORS_MAX + 1
    assert sum(row["requests"] for row in routes) == 200
    assert sum(row["requests"] for row in routes if row["route"] == "__other__") == 180


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gateway.route": "r" * 257}, Reason.INVALID_FIELD),
        ({"event.id": "i" * 257}, Reason.INVALID_FIELD),
        ({"gen_ai.response.finish_reasons": ["a"] * 65}, Reason.INVALID_FIELD),
        ({"prompt.embedding": [0] * 4_097}, Reason.INVALID_FIELD),
        ({"gen_ai.usage.input_tokens": 2**31}, Reason.INVALID_FIELD),
        ({"prompt.text": "w" * 20_000}, Reason.TOO_LARGE),
        ({f"x.{i}": 1 for i in range(65)}, Reason.TOO_MANY_ATTRIBUTES),
        ({"x": "w" * 16_384}, Reason.TOO_MANY_ATTRIBUTES),
        ({"x": deepen(32)}, Reason.TOO_DEEP),
    ],
)
def test_what_is_over_a_cap_is_refused(fields: dict[str, Any], reason: Reason) -> None:
    (raw,) = events_with(1, **fields)
    admission = admit(make_chunk([raw]), LIMITS, SeenIds(10))
    assert [d.rejected.reason for d in admission.deadletters] == [reason]


@pytest.mark.parametrize(
    "fields",
    [
        {"gateway.route": "r" * 256},
        {f"x.{i}": 1 for i in range(64)},
        {"x": "w" * 16_000},
        {"x": deepen(31)},
        {"prompt.text": "w" * 19_000},
    ],
)
def test_what_is_just_within_a_cap_is_taken(fields: dict[str, Any]) -> None:
    (raw,) = events_with(1, **fields)
    assert len(admit(make_chunk([raw]), LIMITS, SeenIds(10)).received) == 1
