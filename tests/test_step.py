"""The step: the books balance, repeats and refusals are told apart, and a replay is identical."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pipeline.core.chunk import ChunkCounts, ChunkEffects, CodedColumn, Columns
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Admission, StepConfig, admit, derive_effects
from pipeline.core.users import UserKey
from pipeline.sinks.arrow import to_table
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.rejection import Reason, Rejected
from schemas.signal import encode_packet
from tests.support.events import (
    NOW_MS,
    PRICES,
    make_chunk,
    make_raw,
    make_traffic,
    to_bytes,
)

CONFIG = StepConfig(DEFAULT_GROUPINGS, CodecLimits(), signals_partitions=3)
BAD: tuple[bytes | None, ...] = (None, b"", b"[]", b'{"event.id":"x"}', b"\xff")


def admit_all(*values: bytes | None, seen: SeenIds | None = None, first: int = 0) -> Admission:
    chunk = make_chunk(values, first)
    return admit(chunk, CONFIG.limits, SeenIds(1_000) if seen is None else seen)


def derive(
    admission: Admission, config: StepConfig = CONFIG, registry: MonitorRegistry | None = None
) -> ChunkEffects:
    return derive_effects(admission, config, Pricer(PRICES), registry or MonitorRegistry(1_000))


def column(columns: Columns, name: str) -> list[Any]:
    return to_table("requests", {name: columns[name]})[name].to_pylist()


# --- Admission -------------------------------------------------------------------------------


VALUES = st.lists(
    st.sampled_from(BAD) | st.sampled_from("abcdef").map(make_raw), min_size=1, max_size=40
)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(1, 10))
def test_the_books_balance(values: list[bytes | None], window: int) -> None:
    admission = admit_all(*values, seen=SeenIds(window))
    counts = derive(admission).counts
    assert counts.read == len(values)
    assert counts.read == counts.stored + counts.deadlettered + counts.duplicates
    assert counts.deadlettered == sum(v in BAD for v in values)


def test_every_record_is_in_one_place() -> None:
    admission = admit_all(make_raw("a"), b"[]", make_raw("b"), make_raw("a"), None, first=10)
    assert [r.offset for r in admission.records] == [10, 12]
    assert [r.event.event_id for r in admission.received] == ["a", "b"]
    assert [d.record.offset for d in admission.deadletters] == [11, 14]
    assert [d.rejected.reason for d in admission.deadletters] == [
        Reason.NOT_AN_OBJECT,
        Reason.TOMBSTONE,
    ]
    assert (admission.read, admission.duplicates) == (5, 1)


def test_a_repeat_is_dropped_in_a_later_chunk_too() -> None:
    seen = SeenIds(10)
    admit_all(make_raw("a"), make_raw("b"), seen=seen)
    again = admit_all(make_raw("b"), make_raw("c"), seen=seen, first=2)
    assert [r.event.event_id for r in again.received] == ["c"]
    assert again.duplicates == 1


def test_a_refused_record_does_not_take_its_id_with_it() -> None:
    """A broken copy must not hide the good one that comes after it."""
    admission = admit_all(make_raw("a", input_tokens=-1), make_raw("a"))
    assert [r.offset for r in admission.records] == [1]
    assert admission.duplicates == 0


def test_refused_rows_become_dead_letters_with_their_bytes() -> None:
    admission = admit_all(*(make_raw(i) for i in "abcd"), b"[]", first=5)
    without = admission.without({2: "out of range", 0: "bad"})
    assert [r.offset for r in without.records] == [6, 8]
    assert [r.event.event_id for r in without.received] == ["b", "d"]
    assert {d.record.offset: d.rejected for d in without.deadletters} == {
        5: Rejected(Reason.UNSTORABLE, "bad", make_raw("a")),
        7: Rejected(Reason.UNSTORABLE, "out of range", make_raw("c")),
        9: admission.deadletters[0].rejected,
    }
    assert derive(without).counts == ChunkCounts(5, 2, 3, 0)
    # The admission itself is as it was: a retry starts from it.
    assert len(admission.received) == 4
    assert len(admission.deadletters) == 1


def test_without_nothing_is_the_same() -> None:
    admission = admit_all(make_raw("a"), b"[]")
    assert admission.without({}) == admission


# --- Effects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(), (None, b"[]")], ids=["nothing", "nothing good"])
def test_a_chunk_without_a_good_event_has_no_rows(values: tuple[bytes | None, ...]) -> None:
    effects = derive(admit_all(*values))
    assert (effects.requests, effects.texts, effects.rollups, effects.packets) == ({}, None, {}, {})
    assert len(effects.deadletters) == len(values)


def test_columns_are_as_long_as_the_chunk() -> None:
    effects = derive(admit_all(*(to_bytes(e) for e in make_traffic(1, 50))))
    lengths = {len(column(effects.requests, name)) for name in effects.requests}
    assert lengths == {50}


def test_a_row_says_where_it_came_from() -> None:
    values = [b"[]", make_raw("a"), make_raw("b")]
    chunk = make_chunk(values, 70, topic="t", epoch="e", partition=3, written_ms=NOW_MS + 5)
    rows = derive(admit(chunk, CONFIG.limits, SeenIds(10))).requests
    assert column(rows, "offset") == [71, 72]
    assert column(rows, "partition") == [3, 3]
    assert (column(rows, "topic"), column(rows, "epoch")) == (["t", "t"], ["e", "e"])
    assert rows["record_time"] == [NOW_MS + 5] * 2


def test_a_missing_value_is_null_and_a_missing_text_is_empty() -> None:
    rows = derive(admit_all(make_raw("a", request_model="mystery-1"))).requests
    for name in ("input_tokens", "output_tokens", "cost_usd", "duration_s", "attempts", "stream"):
        assert column(rows, name) == [None], name
    for name in ("route", "error_type", "cache", "guardrail", "user_hash"):
        assert column(rows, name) == [""], name
    assert column(rows, "finish_reasons") == [[]]


def spell(effects: ChunkEffects) -> str:
    """Everything that is stored and sent, as text."""
    tables = {"requests": effects.requests, "rollup_1m": effects.rollups}
    rows = [to_table(name, columns).to_pydict() for name, columns in tables.items()]
    return f"{rows} {[encode_packet(p) for ps in effects.packets.values() for p in ps]}"


def test_users_are_never_in_the_rows() -> None:
    admission = admit_all(make_raw("a", user="ada lovelace"))
    for config in (CONFIG, structs.replace(CONFIG, user_key=UserKey("k1", b"key"))):
        effects = derive(admission, config)
        assert "ada" not in spell(effects)
    assert len(column(effects.requests, "user_hash")[0]) == len("k1:") + 32


def test_texts_are_kept_only_when_asked_for() -> None:
    admission = admit_all(make_raw("a", prompt_text="問い", response_text="答え"), make_raw("b"))
    assert derive(admission).texts is None
    asked = structs.replace(CONFIG, store_texts=True)
    texts = derive(admission, asked).texts
    assert texts is not None
    assert (texts["event_id"], texts["prompt_text"], texts["response_text"]) == (
        ["a"],
        ["問い"],
        ["答え"],
    )
    assert derive(admit_all(make_raw("b")), asked).texts is None
    assert "問い" not in spell(derive(admission))


def test_rollups_and_packets_count_what_is_stored() -> None:
    effects = derive(admit_all(*(to_bytes(e) for e in make_traffic(2, 200)), b"[]", None))
    grouping = effects.rollups["grouping"]
    assert isinstance(grouping, CodedColumn)
    by_model = [name == "request_model" for name in grouping.decode()]
    assert np.asarray(effects.rollups["requests"])[by_model].sum() == 200
    counted = sum(
        c.requests
        for packets in effects.packets.values()
        for packet in packets
        for c in packet.counts
        if packet.groupings[c.grouping] == "request_model"
    )
    assert counted == 200


def test_without_a_broker_packets_come_in_steps() -> None:
    config = structs.replace(CONFIG, signals_partitions=1, signals_step=64)
    effects = derive(admit_all(b"[]", *(to_bytes(e) for e in make_traffic(3, 200))), config)
    assert set(effects.packets) == {0}
    ends = [p.source.last_offset for p in effects.packets[0]]
    assert ends == [64, 128, 192, 200]


# --- Determinism -----------------------------------------------------------------------------


def fingerprint(effects: ChunkEffects) -> list[object]:
    tables = (("requests", effects.requests), ("rollup_1m", effects.rollups))
    return [
        *(to_table(name, columns).to_pydict() for name, columns in tables),
        {p: [encode_packet(each) for each in packets] for p, packets in effects.packets.items()},
        effects.deadletters,
        effects.counts,
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_same_chunk_has_the_same_effects(seed: int, cap: int) -> None:
    """Against a registry of the same monitors, however each came by them."""
    values = [to_bytes(e) for e in make_traffic(seed, 60)] + [b"[]", None]
    first = derive(admit_all(*values), registry=MonitorRegistry(cap))
    pricer, registry = Pricer(PRICES), MonitorRegistry(cap)
    admission = admit_all(*values)
    again = [derive_effects(admission, CONFIG, pricer, registry) for _ in range(2)]
    assert fingerprint(first) == fingerprint(again[0]) == fingerprint(again[1])
