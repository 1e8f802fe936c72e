"""A rate by the time of day: which streams get strata, and that their bounds stay honest."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rates import Effort, rhythm_alarms
from detectors.hours import DAY_MS, LEAST_EVENTS, STRATA, STRATUM_MS
from detectors.reference import RateReference, ReferenceConfig

ROWS = np.arange(400)
QUARTER_MS = 900_000
CONFIG = ReferenceConfig()


def learned(swing: float, days: float, volume: int = 400, seed: int = 1) -> RateReference:
    """References of streams whose rate is higher by this factor in the second half of the day."""
    rng, reference = np.random.default_rng(seed), RateReference(CONFIG, len(ROWS))
    for at in range(1, round(days * 96)):
        time_ms = np.full(len(ROWS), at * QUARTER_MS)
        total = np.full(len(ROWS), volume // 4)
        count = rng.binomial(total, rate_at(at * QUARTER_MS, swing))
        reference.learn(ROWS, count, total, np.full(len(ROWS), True), time_ms)
    return reference


def rate_at(time_ms: int, swing: float) -> float:
    return 0.04 * (swing if time_ms % DAY_MS >= DAY_MS // 2 else 1.0)


def bounds_at(reference: RateReference, time_ms: int) -> tuple[np.ndarray, np.ndarray]:
    return reference.bounds(ROWS, np.full(len(ROWS), time_ms))


def test_a_rate_that_swings_has_bounds_by_the_time_of_day() -> None:
    reference, wrong = learned(2.0, 7), np.zeros(len(ROWS), bool)
    for stratum in range(STRATA):
        time_ms = 100 * DAY_MS + stratum * STRATUM_MS
        low, high = bounds_at(reference, time_ms)
        rate = rate_at(time_ms, 2.0)
        wrong |= (low > rate) | (high < rate)
        assert high.mean() < 1.4 * rate
        assert low.mean() > 0.65 * rate
    assert wrong.mean() <= CONFIG.miss


def test_a_steady_rate_keeps_one_bound() -> None:
    reference = learned(1.0, 7)
    plain = reference.bounds(ROWS)
    differ = np.zeros(len(ROWS), bool)
    for stratum in range(STRATA):
        high = bounds_at(reference, stratum * STRATUM_MS)[1]
        differ |= high != plain[1]
    # By chance at one fit of so many; the bounds of those are wider, and honest.
    assert differ.mean() < 0.02


def test_on_the_first_day_a_swing_is_allowed_for() -> None:
    reference = learned(1.0, 0.5, volume=4_000)
    (low, high), (least, most) = reference.bounds(ROWS), bounds_at(reference, DAY_MS)
    rate = reference.counts(ROWS)[0] / reference.counts(ROWS)[1]
    assert (high < 1.3 * rate).all()
    assert (most > 1.4 * rate).all()
    assert (least < low).all()
    strict = RateReference(ReferenceConfig(swing=1.0), 1)
    one = np.array([0])
    strict.learn(one, np.array([40]), np.array([1_000]), np.array([True]), np.array([5]))
    assert strict.bounds(one, np.array([7])) == strict.bounds(one)


def test_what_a_thin_reference_allows_anyway_is_not_widened() -> None:
    reference, one = RateReference(CONFIG, 1), np.array([0])
    reference.learn(one, np.array([6]), np.array([300]), np.array([True]), np.array([5]))
    assert reference.bounds(one, np.array([7])) == reference.bounds(one)


def test_a_time_of_day_that_was_never_seen_has_the_wide_bounds() -> None:
    """A route of office hours, at night."""
    rng, reference = np.random.default_rng(2), RateReference(CONFIG, len(ROWS))
    for at in range(1, 7 * 96):
        stratum = at * QUARTER_MS % DAY_MS // STRATUM_MS
        if stratum in (3, 4):
            total = np.full(len(ROWS), 200)
            count = rng.binomial(total, (0.02, 0.05)[stratum - 3])
            time_ms = np.full(len(ROWS), at * QUARTER_MS)
            reference.learn(ROWS, count, total, np.full(len(ROWS), True), time_ms)
    plain = reference.bounds(ROWS)[1]
    assert (bounds_at(reference, 4 * STRATUM_MS)[1] > plain).all()
    assert (bounds_at(reference, 3 * STRATUM_MS)[1] < plain).all()
    assert (bounds_at(reference, 0)[1] > 1.1 * plain).all()
    assert LEAST_EVENTS > 0


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_restored_reference_goes_on_bit_for_bit(cut: int) -> None:
    rng = np.random.default_rng(3)
    whole, resumed = RateReference(CONFIG, 5), RateReference(CONFIG, 5)
    rows = np.arange(5)
    for at in range(1, 300):
        if at == cut:
            fresh = RateReference(CONFIG, 0)
            fresh.restore(resumed.snapshot())
            resumed = fresh
        total = rng.poisson(100, 5)
        quiet, time_ms = rng.random(5) < 0.98, np.full(5, at * QUARTER_MS)
        batch = (rows, rng.binomial(total, 0.1), total, quiet, time_ms)
        whole.learn(*batch)
        resumed.learn(*batch)
    one, other = whole.snapshot(), resumed.snapshot()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert (one["hours_total"] > 0).any()


# --- The promise, while it is learned ------------------------------------------------------------


def test_a_rate_that_follows_the_day_stays_within_the_promise() -> None:
    effort = Effort(rhythm_monitors=60)
    assert (rhythm_alarms(effort, 1_200, told=True) <= 1).mean() >= 0.9


def test_without_the_time_of_day_it_would_not() -> None:
    effort = Effort(rhythm_monitors=60)
    assert (rhythm_alarms(effort, 1_200, told=False) <= 1).mean() < 0.6
