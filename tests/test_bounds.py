"""Confidence bounds against SciPy's own, and against an enumeration of all that can happen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from detectors.bounds import clopper_pearson

MISSES = (0.2, 0.025, 1e-3, 6e-5, 1e-9)


@pytest.mark.parametrize("miss", MISSES)
@pytest.mark.parametrize("n", [1, 2, 7, 300, 20_000])
def test_the_bounds_are_quantiles_of_the_beta_distribution(n: int, miss: float) -> None:
    k = np.unique(np.linspace(0, n, 50).astype(np.int64))
    low, high = clopper_pearson(k, np.full(len(k), n), miss)
    inside = slice(1, None)
    np.testing.assert_allclose(low[inside], beta.ppf(miss, k[inside], n - k[inside] + 1), rtol=1e-9)
    inside = slice(None, -1)
    np.testing.assert_allclose(
        high[inside], beta.isf(miss, k[inside] + 1, n - k[inside]), rtol=1e-9
    )


@pytest.mark.parametrize(("k", "n"), [(0, 300), (6, 300), (150, 300), (299, 300), (300, 300)])
def test_the_bounds_are_those_of_the_exact_test(k: int, n: int) -> None:
    low, high = clopper_pearson(np.array([k]), np.array([n]), 0.025)
    exact = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), rel=1e-9)


@pytest.mark.parametrize("miss", MISSES[:4])
@pytest.mark.parametrize("n", [1, 10, 300, 1_000])
def test_a_bound_is_wrong_with_at_most_the_probability_promised(n: int, miss: float) -> None:
    """Exact: the probabilities of all outcomes whose bound the true rate passes, added up."""
    k = np.arange(n + 1)
    low, high = clopper_pearson(k, np.full(n + 1, n), miss)
    rates = np.concatenate([np.linspace(0, 1, 101), np.geomspace(1e-6, 0.1, 60)])
    for rate in rates:
        outcomes = binom.pmf(k, n, rate)
        assert outcomes[low > rate].sum() <= miss * (1 + 1e-9)
        assert outcomes[high < rate].sum() <= miss * (1 + 1e-9)


def test_the_bounds_cannot_be_narrower() -> None:
    """Just inside the bound of k, k is already improbable enough: there is nothing to give away."""
    k, n, miss = np.arange(1, 51), np.full(50, 50), 1e-3
    low, _ = clopper_pearson(k, n, miss)
    np.testing.assert_allclose(binom.sf(k - 1, 50, low), miss, rtol=1e-6)


def test_more_of_a_thing_moves_both_bounds_up() -> None:
    k = np.arange(501)
    low, high = clopper_pearson(k, np.full(501, 500), 1e-3)
    assert (np.diff(low) > 0).all()
    assert (np.diff(high)[:-1] > 0).all()
    assert (low <= k / 500).all()
    assert (k / 500 <= high).all()


def test_more_events_of_the_same_rate_bring_the_bounds_together() -> None:
    n = 300 * 2 ** np.arange(8)
    low, high = clopper_pearson(n // 50, n, 1e-3)
    assert (np.diff(high - low) < 0).all()


def test_less_error_costs_width() -> None:
    widths = [np.diff(clopper_pearson(np.array([6]), np.array([300]), m), axis=0) for m in MISSES]
    assert (np.diff(np.ravel(widths)) > 0).all()


def test_none_and_all_leave_one_side_open() -> None:
    low, high = clopper_pearson(np.array([0, 300, 0]), np.array([300, 300, 0]), 1e-3)
    assert low.tolist() == [0.0, pytest.approx(1e-3 ** (1 / 300)), 0.0]
    assert high.tolist() == [pytest.approx(1 - 1e-3 ** (1 / 300)), 1.0, 1.0]
