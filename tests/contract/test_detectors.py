"""What every detector promises: no false alarms beyond the budget, no surprises on resume.

A new detector is added to `CASES`; nothing is exempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from detectors.base import Detector
from detectors.rate import RateDetector, RateDetectorConfig
from detectors.shift import ShiftDetector, ShiftDetectorConfig

Batch = dict[str, np.ndarray]
ROWS = 4


@dataclass(frozen=True)
class Case:
    """A detector, and how to make batches for it.

    `draw(rng, m, changed)` returns a batch for m rows: the arguments of `update`
    after the rows, without a change or with one that the detector must find.
    """

    build: Callable[[int], Detector]
    draw: Callable[[np.random.Generator, int, bool], Batch]
    #: Bad input: which argument, and what in place of each of its values.
    refused: tuple[tuple[str, Any], ...]
    #: Seed → batch in which a change from batch 500 on brings the evidence over 1e5.
    detected_at: dict[int, int]


def rate_case(detected_at: dict[int, int], quiet: float, changed: float, *ratios: float) -> Case:
    config = RateDetectorConfig(ratios) if ratios else RateDetectorConfig()

    def draw(rng: np.random.Generator, m: int, change: bool) -> Batch:
        total = rng.integers(1, 12, m)
        return {
            "count": rng.binomial(total, changed if change else quiet),
            "total": total,
            "low": np.full(m, 0.04),
            "high": np.full(m, 0.06),
            "weight": np.ones(m),
            "time": rng.integers(0, 10**12, m),
        }

    return Case(
        build=lambda rows: RateDetector(config, rows),
        draw=draw,
        refused=(
            ("count", -1),
            ("count", 10**6),
            ("count", np.nan),
            ("total", -1),
            ("total", np.inf),
            ("low", -0.1),
            ("low", 0.5),
            ("low", np.nan),
            ("high", 1.1),
            ("high", np.nan),
            ("weight", -1.0),
            ("weight", np.inf),
            ("weight", np.nan),
        ),
        detected_at=detected_at,
    )


def shift_case(detected_at: dict[int, int], prompt_dimensions: int = 0) -> Case:
    # Without a tolerance the promise is exact: nothing is kept in reserve.
    config = ShiftDetectorConfig(4, prompt_dimensions, candidates=8, tolerance=0.0)

    def draw(rng: np.random.Generator, m: int, change: bool) -> Batch:
        total = rng.integers(1, 12, m)
        sums = rng.normal(size=(m, config.width)) * np.sqrt(total)[:, None]
        sums[:, :4] += 0.35 * total[:, None] * change
        return {
            "sums": sums,
            "total": total,
            "known": np.full(m, 10_000),
            "weight": np.ones(m),
            "time": rng.integers(0, 10**12, m),
        }

    return Case(
        build=lambda rows: ShiftDetector(config, rows),
        draw=draw,
        refused=(
            ("sums", np.nan),
            ("sums", np.inf),
            ("total", 0),
            ("total", np.inf),
            ("total", np.nan),
            ("known", 0),
            ("known", np.nan),
            ("weight", -1.0),
            ("weight", np.inf),
            ("weight", np.nan),
        ),
        detected_at=detected_at,
    )


#: At the worst rates that count as no change: the upper bound for rises, the lower for falls.
CASES = {
    "rate": rate_case({1: 526, 2: 538, 3: 524}, 0.06, 0.15),
    "rate, rises only": rate_case({1: 521, 2: 538, 3: 524}, 0.06, 0.15, 2.0, 5.0),
    "rate, falls only": rate_case({1: 574, 2: 580, 3: 569}, 0.04, 0.005, 1 / 3, 1 / 2),
    "shift": shift_case({1: 512, 2: 514, 3: 511}),
    "shift, beside its prompts": shift_case({1: 521, 2: 514, 3: 511}, 3),
}

every_detector = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def feed(detector: Detector, case: Case, seed: int, batches: int, change_at: int) -> list[float]:
    """Log evidence of row 0 after each batch; all rows are updated each time."""
    rng, rows = np.random.default_rng(seed), np.arange(detector.rows)
    return [
        float(detector.update(rows, **case.draw(rng, len(rows), at >= change_at))[0])
        for at in range(batches)
    ]


def same(one: Detector, other: Detector) -> bool:
    """Bit for bit: minus infinity, zeros with a sign, all of it."""
    a, b = one.snapshot(), other.snapshot()
    return a.keys() == b.keys() and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
        for n in a
    )


def through_msgpack(detector: Detector) -> dict[str, np.ndarray]:
    packed = {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in detector.snapshot().items()}
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(packed))
    return {n: np.frombuffer(b, np.dtype(d)).reshape(s) for n, (d, s, b) in raw.items()}


# --- Resume ------------------------------------------------------------------------------------


@every_detector
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    touched=st.lists(st.sets(st.integers(0, ROWS - 1), min_size=1), min_size=1, max_size=25),
    cut=st.integers(0, 25),
    packed=st.booleans(),
)
def test_a_restored_detector_goes_on_bit_for_bit(
    case: Case, seed: int, touched: list[set[int]], cut: int, packed: bool
) -> None:
    rng = np.random.default_rng(seed)
    updates = [(np.array(sorted(r)), case.draw(rng, len(r), i > 10)) for i, r in enumerate(touched)]
    whole, resumed = case.build(ROWS), case.build(ROWS)
    for at, (rows, batch) in enumerate(updates):
        if at == cut:
            state = through_msgpack(resumed) if packed else resumed.snapshot()
            resumed = case.build(0)
            resumed.restore(state)
        assert whole.update(rows, **batch).tobytes() == resumed.update(rows, **batch).tobytes()
    assert same(whole, resumed)


@every_detector
def test_a_snapshot_is_a_copy(case: Case) -> None:
    detector = case.build(ROWS)
    feed(detector, case, 1, 5, 99)
    before = through_msgpack(detector)
    held = detector.snapshot()
    feed(detector, case, 2, 5, 0)
    assert all(held[name].tobytes() == before[name].tobytes() for name in before)
    other = case.build(ROWS)
    other.restore(held)
    feed(other, case, 3, 5, 0)
    assert all(held[name].tobytes() == before[name].tobytes() for name in before)


@every_detector
def test_a_snapshot_that_does_not_fit_is_refused(case: Case) -> None:
    detector = case.build(ROWS)
    feed(detector, case, 1, 5, 99)
    whole, before = detector.snapshot(), detector.snapshot()
    for name in whole:
        for broken in (
            {k: v for k, v in whole.items() if k != name},
            {**whole, name: whole[name][:-1]},
        ):
            with pytest.raises(ValueError, match="snapshot"):
                detector.restore(broken)
            after = detector.snapshot()
            assert all(after[n].tobytes() == before[n].tobytes() for n in before)


# --- Input -------------------------------------------------------------------------------------


@every_detector
def test_bad_input_is_refused_and_changes_nothing(case: Case) -> None:
    detector, untouched = case.build(ROWS), case.build(ROWS)
    feed(detector, case, 1, 5, 99)
    feed(untouched, case, 1, 5, 99)
    good = case.draw(np.random.default_rng(7), ROWS, False)
    for name, value in case.refused:
        # One bad value, in the last row: those before it must not have been taken in.
        bad = good[name].astype(np.float64) if isinstance(value, float) else good[name].copy()
        bad[-1] = value
        with pytest.raises(ValueError, match="must"):
            detector.update(np.arange(ROWS), **{**good, name: bad})
        assert same(detector, untouched), name
    assert np.isfinite(detector.update(np.arange(ROWS), **good)).all()


@every_detector
@pytest.mark.parametrize("rows", [[0, 1, 2, ROWS], [-1, 0, 1, 2], [0, 1, 2, 2], [0, 1, 2]])
def test_rows_that_do_not_fit_are_refused(case: Case, rows: list[int]) -> None:
    detector, untouched = case.build(ROWS), case.build(ROWS)
    batch = case.draw(np.random.default_rng(7), 4, False)
    with pytest.raises(ValueError, match="row"):
        detector.update(np.array(rows), **batch)
    assert same(detector, untouched)


@every_detector
def test_an_empty_batch_is_no_update(case: Case) -> None:
    detector, untouched = case.build(ROWS), case.build(ROWS)
    batch = case.draw(np.random.default_rng(7), 0, False)
    assert detector.update(np.array([], np.int64), **batch).shape == (0,)
    assert same(detector, untouched)


# --- Rows --------------------------------------------------------------------------------------


@every_detector
def test_rows_are_independent(case: Case) -> None:
    rng = np.random.default_rng(5)
    together, alone = case.build(3), [case.build(1) for _ in range(3)]
    for at in range(60):
        rows = np.flatnonzero(rng.random(3) < 0.6)
        batch = case.draw(rng, len(rows), at > 30)
        together.update(rows, **batch)
        for i, row in enumerate(rows):
            alone[row].update(np.array([0]), **{n: v[i : i + 1] for n, v in batch.items()})
    expected = [one.log_evidence(np.array([0]))[0] for one in alone]
    assert together.log_evidence(np.arange(3)).tolist() == expected


@every_detector
def test_resizing_keeps_the_old_rows(case: Case) -> None:
    small, large = case.build(2), case.build(5)
    for seed in range(20):
        batch = case.draw(np.random.default_rng(seed), 2, seed > 10)
        small.update(np.arange(2), **batch)
        large.update(np.arange(2), **batch)
    small.resize(5)
    assert same(small, large)
    with pytest.raises(ValueError, match="rows"):
        small.resize(4)


@every_detector
def test_a_reset_row_has_seen_nothing(case: Case) -> None:
    detector, kept = case.build(3), case.build(3)
    feed(detector, case, 1, 20, 5)
    feed(kept, case, 1, 20, 5)
    detector.reset(np.array([1]))
    assert np.isneginf(detector.log_evidence(np.array([1]))).all()
    others = np.array([0, 2])
    assert detector.log_evidence(others).tolist() == kept.log_evidence(others).tolist()
    after, new = detector.snapshot(), case.build(3).snapshot()
    assert all(np.array_equal(after[n][1], new[n][1]) for n in new)


# --- Evidence ----------------------------------------------------------------------------------


@every_detector
def test_false_alarms_keep_to_the_budget(case: Case) -> None:
    """P(evidence ≥ A within T) ≤ T / A, at the rate where it is hardest to keep."""
    rows, horizon = 4_000, 400
    detector, rng = case.build(rows), np.random.default_rng(20)
    most = np.full(rows, -np.inf)
    for _ in range(horizon):
        evidence = detector.update(np.arange(rows), **case.draw(rng, rows, False))
        most = np.maximum(most, evidence)
    for threshold in (1e3, 3e3, 1e4):
        alarms = int((most >= np.log(threshold)).sum())
        # Rows are independent: with a probability of T / A each, one run in a
        # hundred thousand would have more alarms than this.
        assert alarms <= binom.isf(1e-5, rows, horizon / threshold)
    # The bound is not kept by never alarming.
    assert (most >= np.log(1e3)).mean() > 0.1 * horizon / 1e3


@every_detector
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_batch_of_detection_is_pinned(case: Case, seed: int) -> None:
    evidence = feed(case.build(1), case, seed, 800, 500)
    found = [at for at, e in enumerate(evidence) if e >= np.log(1e5)]
    assert found[0] == case.detected_at[seed]
