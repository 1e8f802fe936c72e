"""River's detectors behind our interface: what they find, and that a restart changes nothing."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from river.drift import ADWIN, KSWIN, PageHinkley

from detectors.river_rates import RiverConfig, RiverDetector, RiverKind

ADWIN_CONFIG = RiverConfig(RiverKind.ADWIN, {"delta": 0.01})
PAGE_HINKLEY_CONFIG = RiverConfig(RiverKind.PAGE_HINKLEY, {"threshold": 20.0, "delta": 0.05})
KSWIN_CONFIG = RiverConfig(
    RiverKind.KSWIN, {"alpha": 1e-3, "window_size": 60, "seed": 3}, 40, remember=400
)
CONFIGS = {
    "adwin": ADWIN_CONFIG,
    "page_hinkley": PAGE_HINKLEY_CONFIG,
    "kswin": KSWIN_CONFIG,
    "adwin, groups": replace(ADWIN_CONFIG, events_per_value=7, remember=400),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
ROWS = 3


def batch(rng: np.random.Generator, m: int, rate: float, at: int) -> tuple[np.ndarray, ...]:
    total = rng.integers(20, 60, m)
    return rng.binomial(total, rate), total, np.full(m, at)


def same(one: RiverDetector, other: RiverDetector) -> bool:
    a, b = one.snapshot(), other.snapshot()
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


# --- What they find ------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize(("before", "after"), [(0.05, 0.3), (0.4, 0.1)])
def test_a_large_change_is_found_and_located(
    config: RiverConfig, before: float, after: float
) -> None:
    detector, rng = RiverDetector(config, 1), np.random.default_rng(2)
    row = np.array([0])
    for at in range(100):
        assert np.isneginf(detector.update(row, *batch(rng, 1, before, at)))
    for at in range(100, 200):
        if np.isposinf(detector.update(row, *batch(rng, 1, after, at))):
            break
    say = detector.change(row)
    assert bool(say.rise[0]) == (after > before)
    assert abs(int(say.start[0]) - 100) <= 5
    assert say.count[0] / say.total[0] == pytest.approx(after, abs=0.15)
    # It stands until it is reset.
    assert np.isposinf(detector.update(row, *batch(rng, 1, before, at + 1)))
    detector.reset(row)
    assert np.isneginf(detector.log_evidence(row))
    assert same(detector, RiverDetector(config, 1))


@pytest.mark.parametrize(
    ("config", "river"),
    [
        (ADWIN_CONFIG, lambda: ADWIN(delta=0.01)),
        (PAGE_HINKLEY_CONFIG, lambda: PageHinkley(threshold=20.0, delta=0.05)),
        (replace(KSWIN_CONFIG, events_per_value=1), lambda: KSWIN(1e-3, 60, seed=3)),
    ],
)
def test_event_by_event_it_is_rivers_own_detector(config: RiverConfig, river: object) -> None:
    """The batch in which it first alarms is the event at which river does."""
    config = replace(config, remember=20_000)
    hits = np.random.default_rng(5).random(1_500) < np.where(np.arange(1_500) < 1_000, 0.05, 0.5)
    bare, expected = river(), None  # type: ignore[operator]
    for at, hit in enumerate(hits):
        bare.update(float(hit))
        if bare.drift_detected:
            expected = at
            break
    assert expected is not None
    detector, found = RiverDetector(config, 1), None
    for at, hit in enumerate(hits):
        one = (np.array([int(hit)]), np.array([1]), np.array([at]))
        if np.isposinf(detector.update(np.array([0]), *one)[0]):
            found = at
            break
    assert found == expected


def test_counts_are_spread_evenly_and_none_is_lost() -> None:
    config = RiverConfig(RiverKind.PAGE_HINKLEY, {}, events_per_value=10, values_per_update=50)
    detector, row = RiverDetector(config, 1), np.array([0])
    for k, n in ((3, 7), (0, 1), (20, 40), (5, 95)):
        detector.update(row, np.array([k]), np.array([n]), np.array([0]))
    state = detector.snapshot()
    assert state["size"].tolist() == [14]
    assert int(state["values"].sum()) + int(state["pending_count"][0]) == 28
    assert state["pending_total"].tolist() == [3]
    assert (state["values"] <= 10).all()


def test_a_huge_batch_costs_no_more_than_its_cap() -> None:
    config = replace(ADWIN_CONFIG, values_per_update=30)
    detector = RiverDetector(config, 1)
    detector.update(np.array([0]), np.array([10**8]), np.array([10**9]), np.array([0]))
    state = detector.snapshot()
    assert state["size"].tolist() == [30]
    assert state["values"].sum() == 3


def test_no_more_is_kept_than_it_may_remember() -> None:
    config = replace(ADWIN_CONFIG, remember=500)
    detector, rng = RiverDetector(config, 1), np.random.default_rng(0)
    sizes = []
    for at in range(100):
        detector.update(np.array([0]), *batch(rng, 1, 0.1, at))
        sizes.append(int(detector.snapshot()["size"][0]))
    assert max(sizes) <= 500
    assert min(sizes[20:]) >= 250


# --- Restart -------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("cut", [0, 1, 40, 111])
def test_a_restored_detector_goes_on_bit_for_bit(config: RiverConfig, cut: int) -> None:
    rng = np.random.default_rng(cut)
    whole, resumed = RiverDetector(config, ROWS), RiverDetector(config, ROWS)
    for at in range(120):
        if at == cut:
            packed = {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in resumed.snapshot().items()}
            raw = msgspec.msgpack.decode(msgspec.msgpack.encode(packed))
            resumed = RiverDetector(config, 0)
            resumed.restore(
                {n: np.frombuffer(b, np.dtype(d)).reshape(s) for n, (d, s, b) in raw.items()}
            )
        rows = np.flatnonzero(rng.random(ROWS) < 0.7)
        some = batch(rng, len(rows), 0.05 if at < 60 else 0.2, at)
        assert whole.update(rows, *some).tobytes() == resumed.update(rows, *some).tobytes()
    assert same(whole, resumed)
    everything = np.arange(ROWS)
    assert whole.change(everything).start.tolist() == resumed.change(everything).start.tolist()


def test_a_snapshot_that_does_not_fit_is_refused() -> None:
    detector, rng = RiverDetector(ADWIN_CONFIG, ROWS), np.random.default_rng(0)
    detector.update(np.arange(ROWS), *batch(rng, ROWS, 0.1, 0))
    whole = detector.snapshot()
    for name in whole:
        without = {k: v for k, v in whole.items() if k != name}
        for broken in (without, {**whole, name: whole[name][:-1]}):
            with pytest.raises(ValueError, match="snapshot"):
                RiverDetector(ADWIN_CONFIG, 0).restore(broken)
    with pytest.raises(ValueError, match="another configuration"):
        RiverDetector(PAGE_HINKLEY_CONFIG, 0).restore(whole)


# --- Rows and input ------------------------------------------------------------------------------


@every_config
def test_rows_are_independent(config: RiverConfig) -> None:
    rng, rows = np.random.default_rng(4), np.arange(2)
    together, alone = RiverDetector(config, 2), [RiverDetector(config, 1) for _ in rows]
    for at in range(60):
        some = batch(rng, 2, 0.05 if at < 40 else 0.4, at)
        evidence = together.update(rows, *some)
        each = [
            alone[r].update(np.array([0]), *(a[r : r + 1] for a in some))[0] for r in rows.tolist()
        ]
        assert evidence.tolist() == each


def test_resizing_keeps_the_old_rows() -> None:
    small, large = RiverDetector(ADWIN_CONFIG, 2), RiverDetector(ADWIN_CONFIG, 5)
    for at in range(10):
        some = batch(np.random.default_rng(at), 2, 0.1, at)
        small.update(np.arange(2), *some)
        large.update(np.arange(2), *some)
    small.resize(5)
    assert same(small, large)
    with pytest.raises(ValueError, match="rows"):
        small.resize(4)


@pytest.mark.parametrize(
    ("count", "total"),
    [(-1, 5), (6, 5), (np.nan, 5.0), (1.0, np.inf), (1.0, np.nan), (-np.inf, 5.0)],
)
def test_bad_input_is_refused_and_changes_nothing(count: float, total: float) -> None:
    detector, untouched = RiverDetector(ADWIN_CONFIG, 2), RiverDetector(ADWIN_CONFIG, 2)
    with pytest.raises(ValueError, match="must"):
        detector.update(np.arange(2), np.array([1, count]), np.array([5, total]), np.array([0, 0]))
    assert same(detector, untouched)


@pytest.mark.parametrize("rows", [[0, 2], [-1, 0], [1, 1], [0]])
def test_rows_that_do_not_fit_are_refused(rows: list[int]) -> None:
    detector, two = RiverDetector(ADWIN_CONFIG, 2), np.array([1, 1])
    with pytest.raises(ValueError, match="row"):
        detector.update(np.array(rows), two, two, two)
    assert same(detector, RiverDetector(ADWIN_CONFIG, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": {"lambda": 1.0}},
        {"parameters": {"delta": float("nan")}},
        {"events_per_value": 0},
        {"values_per_update": 0},
        {"values_per_update": 2_000},
        {"kind": RiverKind.KSWIN, "parameters": {"window_size": 5_000}},
        {"kind": RiverKind.KSWIN, "parameters": {"alpha": 2.0}},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(ADWIN_CONFIG, **wrong)  # type: ignore[arg-type]
