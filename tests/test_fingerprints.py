"""Fingerprints of a chunk: residuals of known models, a sample of each, and the step's columns."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from detectors.bank_shifts import FINGERPRINT
from detectors.fingerprint import FingerprintReference, fit_reference, residuals
from pipeline.build import build_bank_config
from pipeline.config import Config
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH, Answers, read_answers
from pipeline.core.chunk import ChunkEffects, Columns, code_values
from pipeline.core.dedup import SeenIds
from pipeline.core.features import extract_features
from pipeline.core.fingerprints import (
    DIRECTIONS,
    FIT,
    WIDTH,
    ReferenceSet,
    select_sample,
    take_fingerprints,
)
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Reading, StepConfig, admit, derive_effects
from pipeline.encoders.embedding import CarriedVectors
from pipeline.sinks.arrow import to_table
from schemas.codec import CodecLimits
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.signal import encode_packet
from tests.support.events import PRICES, Json, make_chunk, make_event, receive, to_bytes

DIMENSIONS = 4
EMBEDDING = CarriedVectors("ours", DIMENSIONS)
CONFIG = StepConfig(DEFAULT_GROUPINGS, CodecLimits(), signals_partitions=2)
MODELS = ("gpt-4o", "claude-sonnet-4", "mystery-1")


def make_reference(seed: int, n: int = 60) -> FingerprintReference:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, PROMPT_WIDTH)), rng.standard_normal((n, ANSWER_WIDTH))
    return fit_reference(x, y, FIT)


REFERENCES = {"gpt-4o": make_reference(1), "mystery-1": make_reference(2, 40)}
SET = ReferenceSet(EMBEDDING.name, 7, REFERENCES)


def make_answers(seed: int, rows: list[int], embedding: str = EMBEDDING.name) -> Answers:
    rng = np.random.default_rng(seed)
    n = len(rows)
    return Answers(
        embedding,
        np.array(rows, np.int64),
        rng.standard_normal((n, PROMPT_WIDTH)).astype(np.float32),
        rng.standard_normal((n, ANSWER_WIDTH)).astype(np.float32),
    )


# --- Residuals -------------------------------------------------------------------------------


def test_each_answer_is_held_against_the_reference_of_its_model() -> None:
    asked = ["claude-sonnet-4", "gpt-4o", "mystery-1", "gpt-4o", "gpt-4o"]
    answers = make_answers(3, [0, 1, 2, 4])
    taken = take_fingerprints(answers, code_values(asked), SET, 5)
    # Without a reference, or without an answer, there is none.
    assert taken.has.tolist() == [False, True, True, False, True]
    assert taken.values.shape == (5, WIDTH)
    assert not taken.values[[0, 3]].any()
    for at, row in enumerate([0, 1, 2, 4]):
        if (reference := REFERENCES.get(asked[row])) is not None:
            one = residuals(reference, answers.prompts[[at]], answers.answers[[at]])
            assert taken.values[row] == pytest.approx(one[0], abs=1e-4)
            assert taken.values[row].any()
    assert taken.version == 7


def test_the_poorest_reference_says_how_much_is_known() -> None:
    taken = take_fingerprints(make_answers(3, [0]), code_values(["gpt-4o"]), SET, 1)
    assert taken.known == REFERENCES["mystery-1"].known < REFERENCES["gpt-4o"].known
    assert ReferenceSet("x", 0, {}).known == 0


def test_references_of_another_embedding_give_nothing() -> None:
    answers = make_answers(3, [0, 1], embedding="another")
    taken = take_fingerprints(answers, code_values(["gpt-4o", "gpt-4o"]), SET, 2)
    assert not taken.has.any()
    assert not taken.values.any()


def test_the_detectors_expect_as_many_directions() -> None:
    shift = build_bank_config(Config(), 1).shift
    assert (shift.dimensions, shift.width) == (DIRECTIONS, WIDTH)


# --- The sample ------------------------------------------------------------------------------


def sample_ids(ids: list[str], models: list[str], most: int) -> set[str]:
    answers = make_answers(1, list(range(len(ids))))
    chosen = select_sample(answers, code_values(models), ids, most)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    return {ids[i] for i in answers.rows[chosen].tolist()}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(MODELS), max_size=40), st.integers(1, 8), st.randoms())
def test_the_sample_is_capped_for_each_model_and_order_plays_no_part(
    models: list[str], most: int, random: Any
) -> None:
    ids = [f"e-{i}" for i in range(len(models))]
    chosen = sample_ids(ids, models, most)
    for model in MODELS:
        mine = [i for i, m in zip(ids, models, strict=True) if m == model]
        first = sorted(mine, key=lambda i: zlib.crc32(i.encode()))[:most]
        assert chosen & set(mine) == set(first)
    shuffled = list(range(len(ids)))
    random.shuffle(shuffled)
    assert sample_ids([ids[i] for i in shuffled], [models[i] for i in shuffled], most) == chosen


def test_the_sample_is_of_answers_and_not_of_events() -> None:
    answers = make_answers(1, [2, 5, 9])
    models = code_values(["gpt-4o"] * 10)
    ids = [str(i) for i in range(10)]
    assert select_sample(answers, models, ids, 99).tolist() == [0, 1, 2]
    assert len(select_sample(answers, models, ids, 2)) == 2
    assert select_sample(make_answers(1, []), models, ids, 2).tolist() == []


# --- The step --------------------------------------------------------------------------------


def make_answer(number: int, **fields: Any) -> Json:
    rng = np.random.default_rng(number)
    known: Json = {
        "request_model": MODELS[number % len(MODELS)],
        "route": ("support", "search")[number % 2],
        "prompt_text": f"What is {number}?",
        "response_text": f"{'- ' * (number % 2)}It is {number}, as far as I know.",
        "prompt_embedding": rng.standard_normal(DIMENSIONS).tolist(),
        "response_embedding": rng.standard_normal(DIMENSIONS).tolist(),
        "embedding_model": "ours",
    }
    return make_event(f"a-{number}", **known | fields)


def derive(
    events: list[Json], reading: Reading | None, config: StepConfig = CONFIG
) -> ChunkEffects:
    chunk = make_chunk([to_bytes(e) for e in events])
    admission = admit(chunk, config.limits, SeenIds(1_000))
    return derive_effects(admission, config, Pricer(PRICES), MonitorRegistry(1_000), reading)


def column(table: str, columns: Columns, name: str) -> list[Any]:
    values: list[Any] = to_table(table, {name: columns[name]})[name].to_pylist()
    return values


EVENTS = [make_answer(i, **({"error_type": "timeout"} if i % 7 == 3 else {})) for i in range(30)]
READING = Reading(EMBEDDING, SET, 4)


def expected_fingerprints() -> list[list[float]]:
    features = extract_features(receive(EVENTS), Pricer(PRICES))
    answers = read_answers(features, EMBEDDING)
    expected: list[list[float]] = [[] for _ in EVENTS]
    for at, row in enumerate(answers.rows.tolist()):
        reference = REFERENCES.get(features.received[row].event.request_model)
        if reference is not None:
            one = residuals(reference, answers.prompts[[at]], answers.answers[[at]])
            expected[row] = one[0].tolist()
    return expected


def test_a_request_has_its_fingerprint_or_an_empty_one() -> None:
    found = column("requests", derive(EVENTS, READING).requests, "fingerprint")
    expected = expected_fingerprints()
    # Without the prompts, which stand behind.
    assert {len(f) for f in found} == {0, DIRECTIONS}
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other[:DIRECTIONS], abs=1e-4)


@pytest.mark.parametrize(
    "reading",
    [None, Reading(EMBEDDING, ReferenceSet(EMBEDDING.name, 0, {}), 4)],
    ids=["nothing is read", "no reference yet"],
)
def test_without_references_there_are_no_fingerprints(reading: Reading | None) -> None:
    effects = derive(EVENTS, reading)
    assert column("requests", effects.requests, "fingerprint") == [[] for _ in EVENTS]
    assert [p.sums for packets in effects.packets.values() for p in packets] != []
    assert not any(p.sums for packets in effects.packets.values() for p in packets)
    assert (effects.samples is None) == (reading is None)


def test_packets_carry_the_sums_of_the_fingerprints() -> None:
    config = structs.replace(CONFIG, signals_partitions=1)
    total, count = np.zeros(WIDTH), 0
    for packet in derive(EVENTS, READING, config).packets[0]:
        sums = packet.sums[FINGERPRINT]
        assert (sums.version, sums.known, sums.width) == (7, SET.known, WIDTH)
        for at, c in enumerate(packet.counts):
            if packet.groupings[c.grouping] == "request_model":
                count += int(np.frombuffer(sums.counts, "<i8")[at])
                total += np.frombuffer(sums.matrix, "<f4").reshape(-1, WIDTH)[at]
    expected = [f for f in expected_fingerprints() if f]
    assert count == len(expected)
    assert total == pytest.approx(np.sum(expected, axis=0), abs=1e-2)


def test_samples_are_capped_and_hold_what_was_read() -> None:
    samples = derive(EVENTS, READING).samples
    assert samples is not None
    table = to_table("answer_samples", samples).to_pydict()
    models = table["request_model"]
    assert {m: models.count(m) for m in MODELS} == dict.fromkeys(MODELS, 4)
    features = extract_features(receive(EVENTS), Pricer(PRICES))
    answers = read_answers(features, EMBEDDING)
    place = {features.received[row].event.event_id: i for i, row in enumerate(answers.rows)}
    for row, event_id in enumerate(table["event_id"]):
        at = place[event_id]
        event = features.received[int(answers.rows[at])]
        assert models[row] == event.event.request_model
        assert table["event_time"][row].timestamp() * 1000 == pytest.approx(event.time_ms)
        assert table["prompt"][row] == answers.prompts[at].tolist()
        assert table["answer"][row] == answers.answers[at].tolist()
    assert set(table["embedding"]) == {EMBEDDING.name}


def test_samples_hold_no_text() -> None:
    samples = derive(EVENTS, READING).samples
    assert samples is not None
    assert "as far as I know" not in str(to_table("answer_samples", samples).to_pydict())


def test_a_chunk_without_a_whole_answer_has_no_samples() -> None:
    assert derive([make_answer(1, error_type="timeout")], READING).samples is None


def flatten(effects: ChunkEffects) -> str:
    tables = [to_table("requests", effects.requests)]
    if effects.samples is not None:
        tables.append(to_table("answer_samples", effects.samples))
    packets = [encode_packet(p) for n in sorted(effects.packets) for p in effects.packets[n]]
    # A float's repr tells every float apart.
    return repr([[t.to_pydict() for t in tables], packets])


def test_a_replay_with_the_same_reading_is_identical_to_the_byte() -> None:
    one, other = derive(EVENTS, READING), derive(EVENTS, READING)
    assert flatten(one) == flatten(other)
    newer = structs.replace(READING, references=ReferenceSet(EMBEDDING.name, 8, REFERENCES))
    assert flatten(derive(EVENTS, newer)) != flatten(one)


def test_a_refused_row_takes_its_fingerprint_and_its_sample_with_it() -> None:
    chunk = make_chunk([to_bytes(e) for e in EVENTS])
    admission = admit(chunk, CONFIG.limits, SeenIds(1_000)).without({0: "out of range"})
    effects = derive_effects(admission, CONFIG, Pricer(PRICES), MonitorRegistry(1_000), READING)
    found = column("requests", effects.requests, "fingerprint")
    assert len(found) == len(EVENTS) - 1
    assert [bool(f) for f in found] == [bool(f) for f in expected_fingerprints()[1:]]
    assert effects.samples is not None
    assert "a-0" not in effects.samples["event_id"]  # type: ignore[operator]
