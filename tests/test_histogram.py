"""Histograms: quantiles within 1.1 % of the exact order statistic, whatever the values."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.histogram import (
    MAX_BUCKET,
    MIN_BUCKET,
    find_buckets,
    quantile,
    quantile_bucket,
    upper_edge,
)
from tests.support.events import find_bucket

ERROR = 0.011
LEVELS = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)
SMALLEST, LARGEST = 2.0**-10, 2.0**31


def fill(values: list[float]) -> dict[int, int]:
    return dict(Counter(find_buckets(np.array(values, np.float64)).tolist()))


def exact(values: list[float], q: float) -> float:
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


def check(values: list[float]) -> None:
    histogram = fill(values)
    for q in LEVELS:
        found = quantile(histogram, q)
        assert found == pytest.approx(exact(values, q), rel=ERROR)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(SMALLEST * 1.02, LARGEST), min_size=1, max_size=60))
def test_a_quantile_is_close_to_the_order_statistic(values: list[float]) -> None:
    check(values)


@pytest.mark.parametrize("seed", range(5))
def test_latencies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    check(rng.lognormal(6.0, 1.5, 5_000).tolist())
    check(rng.pareto(1.1, 5_000).clip(SMALLEST * 1.02, LARGEST).tolist())
    check([float(v) for v in rng.integers(1, 50, 5_000)])


@pytest.mark.parametrize("power", range(-9, 32))
def test_a_power_of_two_is_the_top_of_its_bucket(power: int) -> None:
    (bucket,) = fill([2.0**power])
    assert upper_edge(bucket) == 2.0**power
    (above,) = fill([math.nextafter(2.0**power, math.inf)])
    assert above in {bucket, bucket + 1}


@settings(max_examples=200, deadline=None)
@given(st.floats(SMALLEST, LARGEST))
def test_the_bucket_found_by_logarithm_is_the_one_found_by_search(value: float) -> None:
    (bucket,) = fill([value])
    # An edge may fall either way, for few of them are floats; both sides are within the error.
    on_edge = any(math.isclose(value, upper_edge(b)) for b in (bucket - 1, bucket))
    assert abs(bucket - find_bucket(value)) <= on_edge


def test_zero_and_tiny_values_share_the_first_bucket() -> None:
    assert set(fill([0.0, 5e-324, 1e-9, SMALLEST])) == {MIN_BUCKET}


def test_huge_values_share_the_last_bucket() -> None:
    assert set(fill([LARGEST * 1.1, 1e30, 1.7e308])) == {MAX_BUCKET}


def test_the_buckets_fit_the_column() -> None:
    """`Map(Int16, UInt64)`."""
    assert -(2**15) <= MIN_BUCKET < MAX_BUCKET < 2**15


def test_a_quantile_of_nothing_is_none() -> None:
    assert quantile({}, 0.5) is None
    assert quantile_bucket({}, 0.5) is None


def test_a_rank_counts_every_event_once() -> None:
    histogram = {5: 10, -3: 89, 40: 1}
    found = [quantile_bucket(histogram, q) for q in (0.0, 0.5, 0.89, 0.891, 0.99, 0.991, 1.0)]
    assert found == [-3, -3, -3, 5, 5, 40, 40]


@settings(max_examples=100, deadline=None)
@given(*[st.lists(st.floats(0.01, 1e9), max_size=30)] * 2)
def test_histograms_add(left: list[float], right: list[float]) -> None:
    together = dict(Counter(fill(left)) + Counter(fill(right)))
    assert together == fill([*left, *right])
