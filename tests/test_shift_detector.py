"""The shift detector: what its evidence is worth, how soon it speaks, what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from detectors.shift import ShiftDetector, ShiftDetectorConfig

ONE = np.array([0])


def update(
    detector: ShiftDetector,
    sums: np.ndarray,
    total: int,
    known: int,
    weight: float | None = None,
    time: int = 0,
) -> np.ndarray:
    """One batch of equal size for every row; the weight is that size unless given."""
    rows = len(sums)
    return detector.update(
        np.arange(rows),
        sums,
        np.full(rows, total),
        np.full(rows, known),
        np.full(rows, float(total if weight is None else weight)),
        np.full(rows, time),
    )


def draw(rng: np.random.Generator, mean: np.ndarray, total: int) -> np.ndarray:
    """Sums of `total` normal residuals with these means, shape (rows, p)."""
    return total * mean + rng.normal(size=mean.shape) * np.sqrt(total)


def first_alarm(
    detector: ShiftDetector,
    means: list[np.ndarray],
    known: int,
    threshold: float,
    batch: int = 20,
    seed: int = 1,
) -> np.ndarray:
    """Batch in which each row's evidence first reaches the threshold; -1 for never."""
    rng, found = np.random.default_rng(seed), np.full(detector.rows, -1)
    for at, mean in enumerate(means):
        evidence = update(detector, draw(rng, mean, batch), batch, known, time=at)
        found[(found < 0) & (evidence >= np.log(threshold))] = at
    return found


# --- The e-process -----------------------------------------------------------------------------


def log_density(square: float, variance: float, p: int) -> float:
    return p * norm.logpdf(0.0, scale=np.sqrt(variance)) - square / (2 * variance)


def summed_ratios(
    config: ShiftDetectorConfig,
    sums: np.ndarray,
    totals: list[int],
    known: int,
    weights: list[float],
) -> float:
    """The definition: over all change points, with densities and no short cut."""
    evidence, p = 0.0, config.dimensions
    for k in range(len(totals)):
        n, before = sum(totals[k:]), known + sum(totals[:k])
        d = sums[k:].sum(axis=0) / n - sums[:k].sum(axis=0) / before
        d, e = d[:p], d[p:]
        sampling = 1 / n + 1 / before
        traffic = max(np.mean(e**2) - sampling, 0.0) if len(e) else 0.0
        v = sampling + config.tolerance + config.leak * traffic
        ratio = log_density(d @ d, v + config.scale, p) - log_density(d @ d, v, p)
        evidence += weights[k] * np.exp(ratio)
    return float(np.log(evidence))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    q=st.integers(0, 3),
    totals=st.lists(st.integers(1, 200), min_size=1, max_size=8),
    known=st.integers(1, 20_000),
    tolerance=st.sampled_from([0.0, 0.002, 0.1]),
)
def test_the_evidence_is_the_sum_over_all_change_points(
    seed: int, q: int, totals: list[int], known: int, tolerance: float
) -> None:
    rng = np.random.default_rng(seed)
    config = ShiftDetectorConfig(3, q, candidates=8, tolerance=tolerance)
    detector = ShiftDetector(config, 1)
    weights = rng.uniform(0.1, 3.0, len(totals)).tolist()
    sums = np.concatenate([draw(rng, np.full((1, 3 + q), 0.2), n) for n in totals])
    for each, n, w in zip(sums, totals, weights, strict=True):
        evidence = update(detector, each[None], n, known, w)
    expected = summed_ratios(config, sums, totals, known, weights)
    # The sums are kept to seven digits.
    assert evidence[0] == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("candidates", [2, 3, 7])
def test_the_evidence_expects_no_more_than_the_time_that_passed(candidates: int) -> None:
    """E[S] = Σw, over the reference's error as well, and however few candidates are kept."""
    rows, known, weights = 40_000, 30, [1.0, 0.5, 0.0, 2.0, 1.0, 1.0]
    config = ShiftDetectorConfig(1, candidates=candidates, scale=0.03, tolerance=0.0)
    detector, rng = ShiftDetector(config, rows), np.random.default_rng(3)
    mean = rng.normal(size=(rows, 1)) / np.sqrt(known)
    for weight in weights:
        evidence = np.exp(update(detector, draw(rng, mean, 10), 10, known, weight))
    error = evidence.std() / np.sqrt(rows)
    assert error < 0.03 * sum(weights)
    assert abs(evidence.mean() - sum(weights)) < 4 * error


def test_the_error_of_a_small_reference_is_no_evidence() -> None:
    """The streams' true means lie off the reference's zero by as much as 200 answers leave open."""
    rows, p, known = 150, 24, 200
    rng = np.random.default_rng(8)
    means = [rng.normal(size=(rows, p)) / np.sqrt(known)] * 100
    honest = ShiftDetector(ShiftDetectorConfig(p, tolerance=0.0), rows)
    assert (first_alarm(honest, means, known, 1e6) >= 0).mean() < 0.02
    # Taken for exact, the same reference makes nearly every stream an alarm.
    trusting = ShiftDetector(ShiftDetectorConfig(p, tolerance=0.0), rows)
    assert (first_alarm(trusting, means, 10**9, 1e6) >= 0).mean() > 0.9


def test_a_wandering_mean_within_the_tolerance_does_not_page() -> None:
    rows, p, tolerance = 150, 24, 0.004
    rng = np.random.default_rng(9)
    before = np.zeros((rows, p))
    after = rng.normal(size=(rows, p)) * np.sqrt(tolerance)
    means = [before] * 50 + [after] * 150
    tolerant = ShiftDetector(ShiftDetectorConfig(p, tolerance=tolerance), rows)
    assert (first_alarm(tolerant, means, 500, 1e6) >= 0).mean() < 0.02
    strict = ShiftDetector(ShiftDetectorConfig(p, tolerance=0.0), rows)
    assert (first_alarm(strict, means, 500, 1e6) >= 0).mean() > 0.2


def test_what_moves_with_the_prompts_does_not_page() -> None:
    """The residuals move by their share of what the prompts do. Alone it is a change."""
    rows, p, q, leak = 100, 24, 16, 0.3
    rng = np.random.default_rng(10)
    moved = rng.normal(size=(rows, p + q)) * 0.2
    moved[:, :p] *= np.sqrt(leak)
    alone = np.where(np.arange(p + q) < p, moved, 0.0)
    for after, least, most in ((moved, 0.0, 0.15), (alone, 0.6, 1.0)):
        means = [np.zeros((rows, p + q))] * 50 + [after] * 100
        found = first_alarm(
            ShiftDetector(ShiftDetectorConfig(p, q, leak=leak), rows), means, 500, 1e6
        )
        assert least <= (found >= 0).mean() <= most


def test_waiting_is_no_evidence() -> None:
    """Time that passes counts against the promise, and gives no more than it costs."""
    detector = ShiftDetector(ShiftDetectorConfig(4), 1)
    for _ in range(200):
        evidence = update(detector, np.zeros((1, 4)), 10, 500)
    assert evidence[0] < np.log(200 * 10)


# --- Delay -------------------------------------------------------------------------------------


def told_delay(mean: np.ndarray, run_length: float, batch: int) -> float:
    """Median events to the alarm of a CUSUM that was told the shift, at this run length."""
    rng, square = np.random.default_rng(5), float(mean @ mean)
    # Siegmund's approximation of the run length, inverted by one step of its fixed point.
    height = np.log(run_length * square / 2) + np.log(np.log(run_length * square / 2) + 1)
    level, found = np.zeros(400), np.zeros(400)
    for at in range(1, 2_000 // batch):
        gain = rng.normal(batch * square / 2, np.sqrt(batch * square), 400)
        level = np.maximum(level, 0) + gain
        found[(found == 0) & (level >= height)] = at * batch
    return float(np.median(found))


@pytest.mark.parametrize("spread", [24, 4])
def test_a_shift_is_found_in_time(spread: int) -> None:
    """Not told the direction nor the size, nor when: a few times what the told one needs."""
    rows, p, quiet, batch = 80, 24, 100, 20
    shift = np.zeros(p)
    shift[:spread] = np.sqrt(0.5 / spread)
    means = [np.zeros((rows, p))] * quiet + [np.tile(shift, (rows, 1))] * 100
    detector = ShiftDetector(ShiftDetectorConfig(p), rows)
    found = first_alarm(detector, means, 20_000, 1e6, batch)
    delay = np.median((found[found >= quiet] - quiet + 1) * batch)
    assert (found >= quiet).all()
    assert told_delay(shift, 1e6, batch) < delay < 4 * told_delay(shift, 1e6, batch)


def test_own_quiet_events_make_up_for_a_small_reference() -> None:
    rows, p, known = 60, 24, 100
    rng = np.random.default_rng(6)
    before = rng.normal(size=(rows, p)) / np.sqrt(known)
    shift = np.zeros(p)
    shift[0] = 0.7
    delay = []
    for quiet in (1, 200):
        means = [before] * quiet + [before + shift] * 100
        found = first_alarm(ShiftDetector(ShiftDetectorConfig(p), rows), means, known, 1e6)
        delay.append(np.median(np.where(found < 0, np.inf, found - quiet)))
    assert delay[1] < 0.75 * delay[0]


# --- The change --------------------------------------------------------------------------------


def test_the_change_is_located_and_measured() -> None:
    rows, p, quiet, batch = 200, 24, 60, 20
    shift = np.zeros(p)
    shift[3], shift[7] = 0.8, -0.5
    detector, rng = ShiftDetector(ShiftDetectorConfig(p), rows), np.random.default_rng(2)
    for at in range(quiet + 15):
        mean = np.tile(shift if at >= quiet else 0 * shift, (rows, 1))
        update(detector, draw(rng, mean, batch), batch, 5_000, time=10 * at)
    change = detector.change(np.arange(rows), np.full(rows, 5_000))
    # Candidates stand ever further apart as they age: a few batches is as near as they come.
    assert abs(np.median(change.start / 10) - quiet) <= 3
    assert (change.total == batch * (quiet + 15 - change.start // 10)).all()
    seen = change.mean.mean(axis=0)
    assert seen[3] == pytest.approx(0.8, abs=0.15)
    assert seen[7] == pytest.approx(-0.5, abs=0.15)
    assert np.abs(np.delete(seen, [3, 7])).max() < 0.05


def test_a_change_without_evidence_is_empty() -> None:
    change = ShiftDetector(ShiftDetectorConfig(3), 2).change(np.array([0, 1]), np.array([9, 9]))
    assert (change.total == 0).all()
    assert (change.mean == 0).all()


def test_a_change_began_with_the_earliest_of_its_batches() -> None:
    detector = ShiftDetector(ShiftDetectorConfig(2), 1)
    for time in (50, 30, 40):
        update(detector, np.full((1, 2), 40.0), 20, 5_000, time=time)
    assert detector.change(ONE, np.array([5_000])).start[0] == 30


# --- Bounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_candidates_grow_old_geometrically_up_to_the_horizon(batch: int) -> None:
    config = ShiftDetectorConfig(1, candidates=16, horizon=2_000)
    detector, rng = ShiftDetector(config, 1), np.random.default_rng(4)
    for _ in range(400):
        update(detector, draw(rng, np.zeros((1, 1)), batch), batch, 500)
        state = detector.snapshot()
        ages = np.cumsum(state["counts"][0, :0:-1])
        assert ages[-1] <= config.horizon + batch
        assert state["counts"][0, 0] <= config.horizon + batch
    # None of the recent past is without a candidate: the next one is at most 4 times as old.
    if ages[-1] > 50 * batch:
        ages = np.unique(ages)
        assert (ages[1:] / ages[:-1]).max() <= 4


def test_no_event_is_lost_within_the_horizon() -> None:
    detector, rng = ShiftDetector(ShiftDetectorConfig(2, candidates=3), 1), np.random.default_rng(4)
    batches = draw(rng, np.zeros((50, 2)), 10)
    for each in batches:
        update(detector, each[None], 10, 500)
    state = detector.snapshot()
    assert state["counts"].sum() == 500
    np.testing.assert_allclose(state["sums"][0, -1], batches.sum(axis=0), rtol=1e-5)


def test_what_is_old_becomes_normal() -> None:
    """A shift that was there for many horizons is what the next one is measured from."""
    config = ShiftDetectorConfig(1, horizon=500)
    detector, rng = ShiftDetector(config, 1), np.random.default_rng(4)
    for _ in range(100):
        update(detector, draw(rng, np.ones((1, 1)), 50), 50, 200)
    detector_mean = detector.snapshot()["sums"][0, 0] / detector.snapshot()["counts"][0, 0]
    assert detector_mean[0] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    "named",
    [
        {"dimensions": 0},
        {"prompt_dimensions": -1},
        {"candidates": 1},
        {"horizon": 0},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"tolerance": -0.1},
        {"tolerance": float("nan")},
        {"leak": -0.1},
    ],
)
def test_an_impossible_configuration_is_refused(named: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needed|positive|tolerance"):
        ShiftDetectorConfig(**{"dimensions": 3, **named})


@pytest.mark.parametrize(
    "other",
    [
        ShiftDetectorConfig(3, scale=0.5),
        ShiftDetectorConfig(4),
        ShiftDetectorConfig(3, candidates=5),
    ],
)
def test_a_snapshot_of_another_configuration_is_refused(other: ShiftDetectorConfig) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        ShiftDetector(ShiftDetectorConfig(3), 2).restore(ShiftDetector(other, 2).snapshot())


def test_sums_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="sums must"):
        update(ShiftDetector(ShiftDetectorConfig(3), 1), np.zeros((1, 2)), 10, 500)
