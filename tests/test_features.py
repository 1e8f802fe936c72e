"""Columns of a chunk against the plain reading of its events, one at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.core.features import (
    ABSENT,
    MIN_TOKENS_FOR_RATE,
    TOKEN_FIELDS,
    Features,
    extract_features,
)
from pipeline.core.pricing import Pricer
from schemas.monitor import DIMENSIONS
from tests.support.events import PRICES, find_bucket, make_event, make_traffic, read_facts, receive


def extract(*events: dict) -> Features:
    return extract_features(receive(events), Pricer(PRICES))


def feature(name: str, **fields: object) -> object:
    return getattr(extract(make_event(**fields)), name)[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_column_agrees_with_the_plain_reading(seed: int) -> None:
    received = receive(make_traffic(seed, 1_000))
    features = extract_features(received, Pricer(PRICES))
    facts = [read_facts(r) for r in received]
    assert len(features) == 1_000
    assert features.time_ms.tolist() == [f.time_ms for f in facts]
    assert features.errors.tolist() == [f.error for f in facts]
    assert features.error_types.decode() == [f.error_type for f in facts]
    assert features.refusals.tolist() == [f.refusal for f in facts]
    assert features.truncations.tolist() == [f.truncation for f in facts]
    assert features.cache_hits.tolist() == [f.cache_hit for f in facts]
    assert features.fallbacks.tolist() == [f.fallback for f in facts]
    assert features.costs.values() == [f.picodollars for f in facts]
    assert buckets(features.duration_s * 1e3) == [f.duration_ms for f in facts]
    assert buckets(features.first_chunk_s * 1e3) == [f.first_chunk_ms for f in facts]
    assert buckets(features.token_s * 1e6) == [f.output_token_us for f in facts]
    for dimension in DIMENSIONS:
        expected = [getattr(r.event, dimension.value) or "" for r in received]
        assert features.dimensions[dimension].decode() == expected


def test_texts_are_no_witness_where_the_gateway_says_so_itself() -> None:
    words = "I'm sorry, but I can't help with that request."
    said = make_event("a", refusal=True, response_text="Of course.")
    withheld = make_event("b", finish_reasons=["content_filter"])
    silent = make_event("c", response_text=words, finish_reasons=["stop"])
    received = receive([said, withheld, silent])
    heard = extract_features(received, Pricer(PRICES), judge_texts=False)
    assert heard.refusals.tolist() == [True, True, False]
    assert heard.refusal_sources.decode() == ["provider", "finish_reason", "unknown"]
    assert extract_features(received, Pricer(PRICES)).refusals.tolist() == [True, True, True]


def buckets(values: np.ndarray) -> list[int | None]:
    return [None if math.isnan(v) else find_bucket(v) for v in values.tolist()]


@pytest.mark.parametrize("seed", [3])
def test_the_traffic_has_every_kind_of_event(seed: int) -> None:
    """Otherwise the test above could not fail."""
    facts = [read_facts(r) for r in receive(make_traffic(seed, 1_000))]
    for name in ("error", "refusal", "truncation", "cache_hit", "fallback"):
        assert 10 < sum(getattr(f, name) for f in facts) < 990, name
    for name in ("picodollars", "duration_ms", "first_chunk_ms", "output_token_us"):
        assert 10 < sum(getattr(f, name) is None for f in facts) < 990, name


def test_a_chunk_may_be_empty() -> None:
    features = extract()
    assert len(features) == 0
    assert features.time_ms.shape == features.token_s.shape == (0,)


def test_what_is_absent_is_not_nought() -> None:
    features = extract(make_event(), make_event("e-2", **dict.fromkeys(TOKEN_FIELDS, 0)))
    for name in TOKEN_FIELDS:
        assert features.tokens[name].tolist() == [ABSENT, 0]
    assert np.isnan(features.duration_s).all()


# --- Who is counted --------------------------------------------------------------------------


def test_an_error_is_neither_refused_nor_truncated() -> None:
    failed = extract(
        make_event(error_type="timeout", refusal=True, finish_reasons=["length"], duration_s=1.0)
    )
    assert failed.errors.tolist() == [True]
    assert not failed.refusals.any()
    assert not failed.partial_refusals.any()
    assert not failed.truncations.any()
    assert failed.duration_s.tolist() == [1.0]
    assert np.isnan(failed.first_chunk_s).all()


def test_a_partial_refusal_is_not_a_refusal() -> None:
    features = extract(make_event(finish_reasons=["stop", "content_filter"]))
    assert features.partial_refusals.tolist() == [True]
    assert features.refusals.tolist() == [False]
    assert features.refusal_sources.decode() == ["finish_reason"]


@pytest.mark.parametrize(
    ("reasons", "truncated"),
    [
        (None, False),
        ([], False),
        (["stop"], False),
        (["length"], True),
        (["max_tokens"], True),
        (["MAX_TOKENS"], True),
        (["max_output_tokens"], True),
        (["stop", "length"], True),
        (["lengthy"], False),
    ],
)
def test_truncation_is_by_the_providers_own_words(reasons: list[str], truncated: bool) -> None:
    assert feature("truncations", finish_reasons=reasons) == truncated


# --- Time per token --------------------------------------------------------------------------


def test_time_per_token_leaves_out_the_first_token_of_a_stream() -> None:
    """OpenTelemetry: (duration − time to first chunk) / (output tokens − 1)."""
    streamed = feature("token_s", duration_s=3.0, time_to_first_chunk_s=1.0, output_tokens=101)
    assert streamed == pytest.approx(0.02)
    assert feature("token_s", duration_s=3.0, output_tokens=100) == pytest.approx(0.03)


@pytest.mark.parametrize(
    "fields",
    [
        {"output_tokens": MIN_TOKENS_FOR_RATE - 1},
        {"output_tokens": None},
        {"duration_s": None},
        {"duration_s": 0.5, "time_to_first_chunk_s": 1.0},
        {"cache": "hit"},
        {"error_type": "timeout"},
    ],
    ids=str,
)
def test_time_per_token_is_not_known(fields: dict) -> None:
    given = {"duration_s": 3.0, "output_tokens": 100} | fields
    assert math.isnan(feature("token_s", **given))
