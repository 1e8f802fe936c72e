"""The rate detector: what its evidence is worth, how soon it speaks, what it says of the change."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from detectors.rate import RateDetector, RateDetectorConfig

RATIOS = RateDetectorConfig().odds_ratios
ONE = np.array([0])


def update(
    detector: RateDetector, k: int, n: int, low: float, high: float, **named: float
) -> float:
    """One batch for row 0; returns its log evidence."""
    weight, time = named.get("weight", 1.0), int(named.get("time", 0))
    arrays = (np.array([k]), np.array([n]), np.array([low]), np.array([high]))
    return float(detector.update(ONE, *arrays, np.array([weight]), np.array([time]))[0])


def log_ratio(theta: float, k: int, n: int, low: float, high: float) -> float:
    """The likelihood ratio of one batch: a first update of weight 1 leaves S = LR."""
    return update(RateDetector(RateDetectorConfig((theta,)), 1), k, n, low, high)


# --- The e-process -----------------------------------------------------------------------------


@pytest.mark.parametrize("theta", RATIOS)
@pytest.mark.parametrize(("low", "high"), [(0.01, 0.03), (0.2, 0.2), (0.4, 0.7), (0.9, 0.999)])
def test_the_ratio_is_that_of_the_tilted_binomial(theta: float, low: float, high: float) -> None:
    p = high if theta > 1 else low
    q = theta * p / (1 - p + theta * p)
    for k, n in ((0, 5), (3, 5), (5, 5), (17, 400)):
        expected = binom.logpmf(k, n, q) - binom.logpmf(k, n, p)
        if expected < -700:  # Evidence too small for a float is none.
            expected = -np.inf
        assert log_ratio(theta, k, n, low, high) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("theta", RATIOS)
@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.01), (0.02, 0.05), (0.3, 0.3), (0.5, 1.0)])
def test_no_quiet_rate_expects_to_gain(theta: float, n: int, low: float, high: float) -> None:
    """E[LR] ≤ 1, exactly, over all outcomes of n events, for every rate that is no change."""
    detector = RateDetector(RateDetectorConfig((theta,)), n + 1)
    k, same = np.arange(n + 1), np.ones(n + 1)
    rest = (np.full(n + 1, n), low * same, high * same, same, np.zeros(n + 1, np.int64))
    ratios = np.exp(detector.update(k, k, *rest))
    quiet = np.linspace(0, high, 41) if theta > 1 else np.linspace(low, 1, 41)
    for rate in quiet:
        assert (binom.pmf(k, n, rate) * ratios).sum() <= 1 + 1e-12
    # At the bound itself nothing is given away, and beyond it there is something to gain.
    # (Below a bound of 0, where no fall is possible, no evidence of one is gathered.)
    edge = high if theta > 1 else low
    if 0 < edge < 1:
        beyond = min(edge * 1.5, 1.0) if theta > 1 else edge / 1.5
        assert (binom.pmf(k, n, edge) * ratios).sum() == pytest.approx(1)
        assert (binom.pmf(k, n, beyond) * ratios).sum() > 1


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.0, 2.0)])
def test_the_evidence_expects_no_more_than_the_time_that_passed(
    weights: tuple[float, ...],
) -> None:
    """E[S] = Σw, exactly: three batches of two events, all 27 outcomes, at the bound."""
    p, outcomes = 0.3, [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    expected = 0.0
    for outcome in outcomes:
        detector = RateDetector(RateDetectorConfig(), 1)
        for k, weight in zip(outcome, weights, strict=True):
            evidence = update(detector, k, 2, p, p, weight=weight)
        expected += np.prod(binom.pmf(outcome, 2, p)) * np.exp(evidence)
    assert expected == pytest.approx(sum(weights))


def test_a_head_start_is_paid_for_as_time() -> None:
    """E[S] = head start + Σw, exactly, and again after a reset."""
    p, config = 0.3, RateDetectorConfig(head_start=5.0)
    detector = RateDetector(config, 3)
    assert detector.log_evidence(np.arange(3)) == pytest.approx(np.full(3, np.log(5)))
    for _ in range(2):
        k, same, n = np.arange(3), np.ones(3), np.full(3, 2)
        evidence = detector.update(k, k, n, p * same, p * same, same, k)
        assert (binom.pmf(k, 2, p) * np.exp(evidence)).sum() == pytest.approx(5.0 + 1.0)
        detector.reset(np.arange(3))


def test_weights_sum_to_one_and_follow_their_alternatives() -> None:
    assert sum(RateDetectorConfig().weights) == pytest.approx(1)
    assert RateDetectorConfig((3.0,)).weights == (1.0,)
    ratios = (2.0, 0.5, 8.0)
    p, weights = 0.2, RateDetectorConfig(ratios).weights
    evidence = np.exp(update(RateDetector(RateDetectorConfig(ratios), 1), 3, 9, p, p))
    each = [np.exp(log_ratio(theta, 3, 9, p, p)) for theta in ratios]
    assert evidence == pytest.approx(np.dot(weights, each))


def test_evidence_without_end_stays_finite_and_can_fall() -> None:
    detector = RateDetector(RateDetectorConfig(), 1)
    for _ in range(50):
        evidence = update(detector, 10_000, 10_000, 0.02, 0.02)
    assert 680 < evidence < 700
    update(detector, 0, 10**6, 0.02, 0.02)
    assert update(detector, 20_000, 10**6, 0.02, 0.02) < np.log(1e3)


@pytest.mark.parametrize("order", ["run", "gaps", "backwards"])
def test_many_rows_in_any_order_are_as_one_by_one(order: str) -> None:
    """Across the blocks of rows that are worked on together, bit for bit."""
    available = 10_000
    rows = {
        "run": np.arange(500, 9_500),
        "gaps": np.arange(0, available, 2),
        "backwards": np.arange(available)[::-1].copy(),
    }[order]
    rng, m = np.random.default_rng(8), len(rows)
    together, apart = (RateDetector(RateDetectorConfig(), available) for _ in range(2))
    for at in range(3):
        n = rng.integers(1, 50, m)
        k, p = rng.binomial(n, 0.05), rng.uniform(0.01, 0.1, m)
        batch = (k, n, p, p * 1.2, rng.random(m), np.full(m, at))
        evidence = together.update(rows, *batch)
        some = rng.permutation(m)
        for part in np.array_split(some, 7):
            alone = apart.update(rows[part], *(each[part] for each in batch))
            assert alone.tobytes() == evidence[part].tobytes()
    one, other = together.snapshot(), apart.snapshot()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert together.log_evidence(rows).tobytes() == evidence.tobytes()


def test_honest_bounds_never_add_evidence() -> None:
    """Path by path: whatever the bounds do, while they are right S stays below that of the rate."""
    rng = np.random.default_rng(3)
    rows, rate = 200, 0.05
    exact, bounded = (RateDetector(RateDetectorConfig(), rows) for _ in range(2))
    for _ in range(300):
        n = rng.integers(0, 30, rows)
        k = rng.binomial(n, rate)
        low, high = rng.uniform(0, rate, rows), rng.uniform(rate, 1, rows)
        rest = (np.full(rows, 0.1), np.zeros(rows, np.int64))
        most = exact.update(np.arange(rows), k, n, np.full(rows, rate), np.full(rows, rate), *rest)
        least = bounded.update(np.arange(rows), k, n, low, high, *rest)
        assert (least <= most + 1e-9).all()


def test_waiting_is_no_evidence() -> None:
    """Nothing can fall below a bound of 0, however long it stays there."""
    detector = RateDetector(RateDetectorConfig(), 1)
    for _ in range(1_000):
        evidence = update(detector, 0, 10, 0.0, 0.02)
    assert evidence < np.log(20)


def test_batches_multiply_and_only_restarts_depend_on_the_cut() -> None:
    """With all the weight in front, a batch gives exactly what its events give one by one."""
    rng = np.random.default_rng(9)
    hits = rng.random(500) < 0.1
    whole, single = (RateDetector(RateDetectorConfig(), 1) for _ in range(2))
    for cut in np.split(hits, [1, 7, 100, 450]):
        together = update(whole, int(cut.sum()), len(cut), 0.05, 0.08)
        for i, hit in enumerate(cut):
            one_by_one = update(single, int(hit), 1, 0.05, 0.08, weight=float(i == 0))
        assert together == pytest.approx(one_by_one, rel=1e-9)


# --- Delay -------------------------------------------------------------------------------------


def mean_delay(
    before: float, after: float, threshold: float, warm: int, rows: int, head_start: float = 0.0
) -> float:
    """Events from the change to the alarm, one at a time; quiet for `warm` events before it."""
    config = RateDetectorConfig(head_start=head_start)
    rng, detector = np.random.default_rng(11), RateDetector(config, rows)
    live, delays = np.arange(rows), np.zeros(rows)
    for at in range(-warm, 20_000):
        if not len(live):
            break
        m = len(live)
        hits = (rng.random(m) < (before if at < 0 else after)).astype(np.int64)
        p, one = np.full(m, before), np.ones(m, np.int64)
        alarmed = detector.update(live, hits, one, p, p, np.ones(m), one) >= np.log(threshold)
        # What alarms before there is a change is no detection; it leaves no delay.
        delays[live[alarmed]] = at + 1
        live = live[~alarmed]
    assert not len(live)
    return float(delays[delays > 0].mean())


@pytest.mark.parametrize(("after", "cusum"), [(0.06, 246), (0.04, 691)])
def test_a_change_is_found_nearly_as_soon_as_it_can_be(after: float, cusum: int) -> None:
    """Exact CUSUM, tuned to the very change, is the optimum at a run length of 1e5.

    Ours knows only that *some* change may come. Its standing watch costs an
    eighth more (1.12 and 1.11 with 5,000 streams; with 1,000 the standard error
    is 2 %), and a detector that has just been reset a third.
    """
    assert 0.95 * cusum < mean_delay(0.02, after, 1e5, warm=4_000, rows=1_000) < 1.18 * cusum
    assert mean_delay(0.02, after, 1e5, warm=0, rows=1_000) < 1.38 * cusum


def test_a_head_start_makes_a_fresh_detector_as_quick_as_a_watching_one() -> None:
    fresh = mean_delay(0.02, 0.06, 1e5, warm=0, rows=1_000)
    ahead = mean_delay(0.02, 0.06, 1e5, warm=0, rows=1_000, head_start=1_000.0)
    assert ahead < 0.9 * fresh


# --- The change --------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.15, 0.003])
def test_the_change_is_located(after: float) -> None:
    """At the alarm: the right direction, an honest start, counts that belong to it."""
    rows, change, batch = 300, 100, 20
    rng = np.random.default_rng(4)
    hits = rng.binomial(batch, np.where(np.arange(400) < change, 0.05, after), (rows, 400))
    detector, errors = RateDetector(RateDetectorConfig(), rows), []
    live = np.arange(rows)
    for at in range(400):
        m = len(live)
        p, n = np.full(m, 0.05), np.full(m, batch)
        time, weight = np.full(m, 10 * at), np.full(m, 1e-3)
        found = detector.update(live, hits[live, at], n, p, p, weight, time) >= np.log(1e4)
        say = detector.change(live[found])
        if at >= change:
            assert (say.rise == (after > 0.05)).all()
            errors += (say.start / 10 - change).tolist()
        start = say.start // 10
        assert (say.total == batch * (at + 1 - start)).all()
        sums = [hits[row, s : at + 1].sum() for row, s in zip(live[found], start, strict=True)]
        assert say.count.tolist() == sums
        live = live[~found]
    assert len(errors) > 0.99 * rows
    assert abs(np.median(errors)) <= 2
    # It has not been before the detector was; and is rarely far before the change itself.
    assert min(errors) >= -change
    assert np.mean(np.array(errors) < -20) < 0.1


def test_a_change_without_evidence_is_empty() -> None:
    change = RateDetector(RateDetectorConfig(), 2).change(np.array([0, 1]))
    assert (change.total == 0).all()
    assert (change.count == 0).all()


@pytest.mark.parametrize(
    "ratios", [(), (1.0,), (2.0, 0.0), (-1.0,), (float("inf"),), (float("nan"),)]
)
def test_alternatives_that_are_none_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="odds ratios"):
        RateDetectorConfig(ratios)


@pytest.mark.parametrize("head_start", [-1.0, float("inf"), float("nan")])
def test_a_head_start_that_is_none_is_refused(head_start: float) -> None:
    with pytest.raises(ValueError, match="head start"):
        RateDetectorConfig(head_start=head_start)


def test_a_snapshot_with_other_alternatives_is_refused() -> None:
    state = RateDetector(RateDetectorConfig((2.0, 3.0)), 1).snapshot()
    with pytest.raises(ValueError, match="other alternatives"):
        RateDetector(RateDetectorConfig((2.0, 4.0)), 1).restore(state)
