"""The benchmark's arithmetic: ratios are of rounds that stood side by side."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from benchmarks.gateway.__main__ import Round, summarize
from benchmarks.gateway.cache_lookup import ENTRIES, LOOKUPS, questions, recall
from benchmarks.gateway.servers import LITELLM, OURS
from gateway.likeness import facts_of
from gateway.vectors import VectorSpace
from pipeline.config import Config


def played(requests: int, cpu_s: float, *latencies_ms: float) -> Round:
    return Round(requests, 2.0, cpu_s, latencies_ms)


def test_ratios_are_taken_within_a_round() -> None:
    """In the second round the machine was half as fast for all."""
    found = {
        "direct calm": [played(1, 0.1, 1.0), played(1, 0.1, 2.0)],
        "kizashi calm": [played(1, 0.1, 3.0), played(1, 0.1, 6.0)],
        "litellm calm": [played(1, 0.1, 11.0), played(1, 0.1, 22.0)],
        "kizashi busy": [played(400, 1.0), played(200, 1.0)],
        "litellm busy": [played(100, 1.0), played(50, 1.0)],
        "kizashi stream": [played(90, 1.0), played(60, 1.0)],
        "litellm stream": [played(30, 1.0), played(20, 1.0)],
    }
    shown = summarize(found)
    assert shown["rps_vs_litellm"] == 4.0
    assert shown["streams_rps_vs_litellm"] == 3.0
    assert shown["cpu_vs_litellm"] == 0.25
    assert shown["added_p99_vs_litellm"] == pytest.approx(0.2)
    assert shown["kizashi_rps"] == 150.0


def test_a_quantile_is_one_of_the_latencies() -> None:
    ordered = played(100, 1.0, *map(float, range(100)))
    assert ordered.quantile_ms(0.99) == 99.0
    assert ordered.quantile_ms(0.5) == 50.0


def test_our_settings_are_a_configuration() -> None:
    config = Config(**tomllib.loads(OURS.format(kafka=1, upstream=2, spool="spool")))
    assert config.gateway.events.enabled
    assert config.gateway.keys[0].tokens_per_min is not None
    assert "telemetry: false" in LITELLM


def test_the_questions_of_the_cache_share_one_space() -> None:
    asked = questions()
    assert len(set(asked)) == len(asked) >= ENTRIES + LOOKUPS
    assert {facts_of(text) for text in asked[:500]} == {""}


def test_recall_counts_those_that_have_a_neighbour() -> None:
    kept = np.eye(3, dtype=np.float32)
    space = VectorSpace(3)
    for number in (10, 11):  # the third is overlooked
        space.add(number, kept[number - 10])
    far = np.full((1, 3), 3**-0.5, np.float32)
    assert recall(space, np.concatenate([kept, far]), kept, range(10, 13)) == 2 / 3
