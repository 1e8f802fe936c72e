"""References: when they are fitted, what they learn from, and how often they are wrong."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bounds import clopper_pearson
from detectors.reference import RateReference, ReferenceConfig

ONE = np.array([0])
CONFIG = ReferenceConfig(learn=300, full=20_000, miss=1e-3)


def learn(reference: RateReference, count: int, total: int, quiet: bool = True) -> None:
    reference.learn(ONE, np.array([count]), np.array([total]), np.array([quiet]))


def totals(reference: RateReference) -> int:
    return int(reference.counts(ONE)[1][0])


def state(reference: RateReference) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in reference.snapshot().items()}


def spent_miss(config: ReferenceConfig, sizes: list[int]) -> float:
    """Error probability of all bounds together that were fitted on the way through these sizes."""
    fitted_after = [before for before, after in pairwise(sizes) if after != before]
    return float(2 * config.share_miss(np.array(fitted_after, np.int64)).sum())


def test_the_reference_doubles_up_to_its_full_size() -> None:
    reference = RateReference(CONFIG, 1)
    sizes = [0]
    for _ in range(40_000):
        learn(reference, 0, 1)
        if totals(reference) != sizes[-1]:
            sizes.append(totals(reference))
    assert sizes == [0, 300, 600, 1_200, 2_400, 4_800, 9_600, 19_200, 20_000]
    assert len(sizes) - 1 <= CONFIG.fits[0]


def test_it_grows_beyond_until_it_has_learned_for_a_week() -> None:
    """At 1,200 events an hour it would be full after a night."""
    reference, sizes = RateReference(CONFIG, 1), [0]
    for quarter in range(1, 8 * 96):
        batch = (np.array([3]), np.array([300]), np.array([True]))
        reference.learn(ONE, *batch, np.array([quarter * 900_000]))
        if totals(reference) != sizes[-1]:
            sizes.append(totals(reference))
    assert sizes[-5:] == [19_200, 20_100, 40_200, 80_400, 160_800]
    assert not reference.grows(ONE)[0]


@given(batches=st.lists(st.integers(1, 10**9), min_size=1, max_size=60))
def test_no_traffic_makes_its_bounds_err_more_often_than_promised(batches: list[int]) -> None:
    config = ReferenceConfig(10, 100, 0.01)
    reference, sizes = RateReference(config, 1), [0]
    for at, batch in enumerate(batches, 1):
        some = (np.array([batch // 3]), np.array([batch]), np.array([True]))
        reference.learn(ONE, *some, np.array([at]))
        sizes.append(totals(reference))
    assert spent_miss(config, sizes) <= config.miss * (1 + 1e-9)


@given(
    batches=st.lists(st.integers(1, 900), min_size=1, max_size=60),
    learned=st.integers(1, 500),
    full=st.integers(1, 5_000),
)
def test_no_batches_make_it_err_more_often_or_fill_it_further_than_promised(
    batches: list[int], learned: int, full: int
) -> None:
    config = ReferenceConfig(learned, max(learned, full), 0.01)
    reference, sizes = RateReference(config, 1), [0]
    for batch in batches:
        learn(reference, batch // 3, batch)
        sizes.append(totals(reference))
    assert spent_miss(config, sizes) <= config.miss * (1 + 1e-9)
    assert max(sizes) < config.full + max(batches)


def test_there_are_no_bounds_before_there_is_a_reference() -> None:
    reference = RateReference(CONFIG, 1)
    learn(reference, 5, 299)
    assert not reference.ready(ONE)[0]
    assert [b[0] for b in reference.bounds(ONE)] == [0.0, 1.0]
    learn(reference, 0, 1)
    assert reference.ready(ONE)[0]
    miss = CONFIG.share_miss(np.array([0]))
    expected = clopper_pearson(np.array([5]), np.array([300]), miss)
    assert [b[0] for b in reference.bounds(ONE)] == [b[0] for b in expected]


def test_bounds_tighten_as_it_grows() -> None:
    reference, widths = RateReference(CONFIG, 1), []
    for _ in range(400):
        learn(reference, 1, 50)
        low, high = reference.bounds(ONE)
        widths.append(high[0] - low[0])
    assert (np.diff(widths) <= 0).all()
    assert widths[-1] < 0.15 * widths[5]


@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20),
    size=st.integers(1, 10),
)
def test_a_batch_is_the_sum_of_its_parts(parts: list[tuple[int, int]], size: int) -> None:
    """Exactly, as long as no fit falls between the parts."""
    config = ReferenceConfig(learn=10_000, full=10_000)
    one_by_one, merged = RateReference(config, 1), RateReference(config, 1)
    for count, rest in parts:
        learn(one_by_one, count, count + rest)
    for at in range(0, len(parts), size):
        some = parts[at : at + size]
        learn(merged, sum(k for k, _ in some), sum(k + rest for k, rest in some))
    assert state(one_by_one) == state(merged)


def test_what_is_not_quiet_is_not_learned_nor_what_came_just_before() -> None:
    reference = RateReference(CONFIG, 1)
    learn(reference, 3, 300)
    learn(reference, 90, 299)
    learn(reference, 1, 1, quiet=False)
    learn(reference, 3, 299)
    assert totals(reference) == 300
    learn(reference, 0, 1)
    assert [int(c[0]) for c in reference.counts(ONE)] == [6, 600]


def test_a_reset_row_starts_again_and_leaves_the_others_alone() -> None:
    reference, rows = RateReference(CONFIG, 3), np.arange(3)
    for _ in range(10):
        reference.learn(rows, np.array([1, 2, 3]), np.full(3, 70), np.full(3, True))
    before = reference.snapshot()
    reference.reset(np.array([1]))
    after, blank = reference.snapshot(), RateReference(CONFIG, 1).snapshot()
    for name in before:
        assert after[name][[0, 2]].tolist() == before[name][[0, 2]].tolist()
        assert np.array_equal(after[name][1], blank[name][0])


def test_a_resized_reference_keeps_its_rows() -> None:
    reference = RateReference(CONFIG, 1)
    learn(reference, 7, 350)
    before = reference.snapshot()
    reference.resize(3)
    after = reference.snapshot()
    assert all(np.array_equal(after[name][0], before[name][0]) for name in before)
    assert reference.ready(np.arange(3)).tolist() == [True, False, False]


@given(cut=st.integers(0, 60), seed=st.integers(0, 1_000))
@settings(max_examples=20, deadline=None)
def test_a_restored_reference_goes_on_bit_for_bit(cut: int, seed: int) -> None:
    rng, config = np.random.default_rng(seed), ReferenceConfig(50, 1_000, 0.01)
    whole, resumed = RateReference(config, 1), RateReference(config, 1)
    for at in range(60):
        if at == cut:
            fresh = RateReference(config, 0)
            fresh.restore(resumed.snapshot())
            resumed = fresh
        total = int(rng.integers(0, 60))
        batch = (int(rng.binomial(total, 0.1)), total, bool(rng.random() < 0.95))
        learn(whole, *batch)
        learn(resumed, *batch)
    assert state(whole) == state(resumed)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused_and_change_nothing(count: int, total: int) -> None:
    reference = RateReference(CONFIG, 2)
    before = state(reference)
    with pytest.raises(ValueError, match="counts"):
        reference.learn(
            np.arange(2), np.array([1, count]), np.array([5, total]), np.array([True, True])
        )
    assert state(reference) == before


@pytest.mark.parametrize(
    "wrong", [{"learn": 0}, {"learn": 500, "full": 400}, {"miss": 0.0}, {"miss": 1.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        ReferenceConfig(**wrong)


@pytest.mark.parametrize("rate", [0.002, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("batch", [7, 100])
def test_its_bounds_are_hardly_ever_wrong(rate: float, batch: int) -> None:
    """The probability that any bound of a stream's whole life is wrong stays below `miss`."""
    rows, config = 20_000, ReferenceConfig(learn=50, full=1_600, miss=0.05)
    rng, reference = np.random.default_rng(6), RateReference(config, rows)
    all_rows, wrong = np.arange(rows), np.zeros(rows, bool)
    for _ in range(2 + 1_600 // batch):
        counts = rng.binomial(batch, rate, rows)
        reference.learn(all_rows, counts, np.full(rows, batch), np.full(rows, True))
        low, high = reference.bounds(all_rows)
        wrong |= (low > rate) | (high < rate)
    assert (reference.counts(all_rows)[1] >= config.full).all()
    # Well below: a union bound over fits that share their events, and bounds that are exact
    # only for the worst rate.
    assert wrong.mean() <= config.miss
    assert rate in (0.002, 0.99) or wrong.mean() > config.miss / 10
