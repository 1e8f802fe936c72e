"""Nothing personal comes into the rows, the texts or the dead letters of a chunk."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pipeline.core.chunk import ChunkEffects
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.redaction import (
    EVERY_KIND,
    Kind,
    RecordPolicy,
    redact,
    redact_record,
    redact_texts,
)
from pipeline.core.step import StepConfig, admit, derive_effects
from pipeline.sinks.arrow import to_table
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from tests.support.events import PRICES, make_chunk, make_event, make_raw, to_bytes

MAIL, CARD = "ada@example.com", "4111 1111 1111 1111"
CONFIG = StepConfig(DEFAULT_GROUPINGS, CodecLimits(), store_texts=True)
LETTER = RecordPolicy()


def effects_of(raw: bytes, **changes: Any) -> ChunkEffects:
    config = structs.replace(CONFIG, **changes)
    admission = admit(make_chunk([raw]), config.limits, SeenIds(10))
    return derive_effects(admission, config, Pricer(PRICES), MonitorRegistry(10))


def stored(effects: ChunkEffects) -> str:
    tables = {"requests": effects.requests, "rollup_1m": effects.rollups}
    if effects.texts:
        tables["request_texts"] = effects.texts
    return json.dumps([to_table(k, v).to_pylist() for k, v in tables.items()], default=str)


def test_texts_attributes_and_errors_are_redacted_before_they_are_stored() -> None:
    event = make_event(
        "a",
        prompt_text=f"I am {MAIL}",
        response_text=f"Your card {CARD}",
        error_type=f"400 no such user {MAIL}",
    )
    raw = to_bytes(event | {"x.note": f"call {MAIL}", f"x.{MAIL}": {"deep": [CARD]}})
    effects = effects_of(raw)
    assert MAIL not in stored(effects)
    assert CARD not in stored(effects)
    assert effects.texts is not None
    assert effects.texts["prompt_text"] == ["I am [email]"]
    assert effects.texts["response_text"] == ["Your card [card]"]
    table = to_table("requests", effects.requests).to_pydict()
    assert table["error_type"] == ["400 no such user [email]"]
    assert dict(table["attributes"][0]) == {
        "x.note": "call [email]",
        "[email]": '{"deep":["[card]"]}',
    }


def test_what_is_configured_not_to_be_redacted_stays() -> None:
    raw = make_raw("a", prompt_text=f"I am {MAIL}, {CARD}")
    effects = effects_of(raw, redact=frozenset({Kind.CARD}))
    assert effects.texts is not None
    assert effects.texts["prompt_text"] == [f"I am {MAIL}, [card]"]


def test_errors_that_become_alike_are_counted_together() -> None:
    raws = [make_raw(str(i), error_type=f"no user u{i}@example.com") for i in range(3)]
    admission = admit(make_chunk(raws), CONFIG.limits, SeenIds(10))
    effects = derive_effects(admission, CONFIG, Pricer(PRICES), MonitorRegistry(10))
    counted = to_table("rollup_1m", effects.rollups).to_pylist()
    assert [dict(r["error_types"]) for r in counted if r["grouping"] == "request_model"] == [
        {"no user [email]": 3}
    ]


PIECES = [
    MAIL, CARD, "password=", "hunter22", "氏名：", "山田", "-----BEGIN PRIVATE KEY-----", "call",
    "03-1234", "5678", "://a:", "b@c", "", "ada", "〒", "150-0001", "token: ",
    "GB82 WEST 1234 5698 ", "7654 32", "Bearer ", "abc123def456", "Name: ", "full name", ": Ada",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=12))
def test_many_texts_at_once_are_redacted_as_each_by_itself(texts: list[str]) -> None:
    assert redact_texts(texts) == [redact(text).text for text in texts]


# --- Dead letters ----------------------------------------------------------------------------


def record(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=True).encode()


def test_a_dead_letter_has_neither_the_user_nor_the_words() -> None:
    raw = record(**{"gateway.user": 'ada \\ "l"', "prompt.text": "secret plan", "n": "x"})
    kept = json.loads(redact_record(raw, LETTER))
    assert kept == {"gateway.user": "[user]", "prompt.text": "[text]", "n": "x"}
    with_texts = json.loads(redact_record(raw, RecordPolicy(texts=True)))
    assert with_texts["prompt.text"] == "secret plan"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages": [{"role": "user", "content": "secret plan"}]}',
        b'{"gen_ai.prompt": "secret plan", "input":"secret plan"}',
        b'{"whatever": "' + b"secret plan " * 30 + b'"}',
        b'{"whatever": "' + b"secret plan " * 30,
    ],
)
def test_words_of_other_apis_are_not_kept_either(raw: bytes) -> None:
    kept = redact_record(raw, LETTER)
    assert b"secret" not in kept
    assert b"[text]" in kept
    assert b"secret" in redact_record(raw, RecordPolicy(texts=True))


def test_json_escapes_hide_nothing() -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in MAIL)
    raw = b'{"a": "tel\\uff10\\uff13\\uff0d1234-5678", "b": "' + escaped.encode() + b'", "c'
    assert redact_record(raw, LETTER) == b'{"a": "tel[phone]", "b": "[email]", "c'
    slashes = b'{"url": "https:\\/\\/me:hunter2@example.com\\/"}'
    assert b"hunter2" not in redact_record(slashes, LETTER)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt.text": "secret plan',
        b'\xff\xfe{"prompt.text" : "secret plan\\" and on", "',
        b'[{"response.text":"secret plan"}, 1',
        b'{"gateway.user":"secret plan","gateway.user":"secret plan"',
        b'{"mail": "secret.plan@example.com\xe3\x81',
    ],
)
def test_broken_records_are_redacted_as_far_as_they_can_be_read(raw: bytes) -> None:
    assert b"secret" not in redact_record(raw, LETTER)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: json.dumps([t]).encode()))
def test_any_bytes_come_out_and_twice_is_once(raw: bytes) -> None:
    once = redact_record(raw, LETTER)
    if not redact(raw.decode("utf-8", "surrogateescape")).counts and b"\\" not in raw:
        assert once == raw
    assert redact_record(raw, RecordPolicy(frozenset(), texts=True)) == raw


@given(st.sampled_from([MAIL, CARD, "090-1234-5678", "ghp_" + "a1B2" * 9]), st.text(max_size=30))
def test_a_secret_within_json_is_found_however_it_is_escaped(secret: str, text: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"x": f"{text}\n{secret}\n"}, ensure_ascii=ascii_only)
        raw = body.encode("utf-8", "surrogatepass")
        assert secret.encode() not in redact_record(raw, RecordPolicy(EVERY_KIND, texts=True))
