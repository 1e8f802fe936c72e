"""Coming back: never while the rate stays, soon when it returns, and not for half a recovery."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from detectors.recovery import RecoveryTest

RATIO = 1_000.0
#: Bound of the reference, rate of the alarm, does it rise?
ALARMS = [
    (0.02, 0.06, True),
    (0.03, 0.34, True),
    (0.03, 1.0, True),
    (0.001, 0.05, True),
    (0.12, 0.9, True),
    (0.25, 0.0, False),
    (0.09, 0.02, False),
    (0.99, 0.5, False),
]
rates = st.floats(0, 1)


def feed(test: RecoveryTest, rate: float, events: int, seed: int = 0) -> int | None:
    """Events until it clears, or None when it never does."""
    hits = np.random.default_rng(seed).random(events) < rate
    return next((at for at, hit in enumerate(hits, 1) if test.update(int(hit), 1)), None)


@given(bound=rates, alarmed=rates, rise=st.booleans())
def test_bad_lies_between_good_and_the_alarm(bound: float, alarmed: float, rise: bool) -> None:
    """Also where the estimate of the alarm lies on the bound, or on its quiet side."""
    test = RecoveryTest.between(bound, alarmed, RATIO, rise)
    assert 0 < test.good < 1
    assert 0 < test.bad < 1
    if rise:
        assert test.good < test.bad
        assert test.bad <= max(alarmed, 1e-6) * (1 + 1e-9)
        assert test.good <= max(bound, 1e-6) * (1 + 1e-9)
    else:
        assert test.good > test.bad
        assert 1 - test.bad <= max(1 - alarmed, 1e-6) * (1 + 1e-9)
        assert 1 - test.good <= max(1 - bound, 1e-6) * (1 + 1e-9)


@pytest.mark.parametrize(("bound", "alarmed", "rise"), ALARMS)
@pytest.mark.parametrize("n", [1, 3, 20])
def test_a_rate_that_stays_expects_to_gain_nothing(
    bound: float, alarmed: float, rise: bool, n: int
) -> None:
    """E[LR] ≤ 1, exactly, for every rate from `bad` on: each excursion clears with ≤ 1/ratio."""
    test = RecoveryTest.between(bound, alarmed, RATIO, rise)
    k = np.arange(n + 1)
    ratio = binom.pmf(k, n, test.good) / binom.pmf(k, n, test.bad)
    for rate in np.linspace(test.bad, 1.0 if rise else 0.0, 20):
        assert (binom.pmf(k, n, rate) * ratio).sum() <= 1 + 1e-9


@pytest.mark.parametrize(("bound", "alarmed", "rise"), ALARMS)
def test_it_clears_as_seldom_as_promised_while_the_rate_stays(
    bound: float, alarmed: float, rise: bool
) -> None:
    """At `bad` itself, N events clear with probability ≤ N/ratio; where it alarmed, hardly ever."""
    ratio, events, runs = 1_000.0, 100, 400
    test = RecoveryTest.between(bound, alarmed, ratio, rise)
    cleared = [
        feed(RecoveryTest(test.good, test.bad, test.log_ratio), test.bad, events, seed) is not None
        for seed in range(runs)
    ]
    assert sum(cleared) <= binom.isf(1e-5, runs, events / ratio)
    assert feed(RecoveryTest.between(bound, alarmed, ratio, rise), alarmed, 20_000) is None


@pytest.mark.parametrize(("bound", "alarmed", "rise"), ALARMS)
def test_it_clears_soon_once_the_rate_is_back(bound: float, alarmed: float, rise: bool) -> None:
    """Within three times what the information in an event allows (Wald)."""
    test = RecoveryTest.between(bound, alarmed, RATIO, rise)
    good, bad = test.good, test.bad
    gain = good * math.log(good / bad) + (1 - good) * math.log((1 - good) / (1 - bad))
    needed = [
        feed(RecoveryTest.between(bound, alarmed, RATIO, rise), good, 100_000, seed)
        for seed in range(30)
    ]
    assert all(needed)
    assert np.mean(needed) < 3 * test.log_ratio / gain


@pytest.mark.parametrize(
    ("bound", "alarmed", "partial", "rise"),
    [
        # Half of all requests fail, where all did and three in a hundred should.
        (0.03, 1.0, 0.5, True),
        (0.03, 1.0, 0.2, True),
        (0.03, 0.34, 0.12, True),
        (0.25, 0.0, 0.05, False),
    ],
)
def test_half_a_recovery_does_not_clear(
    bound: float, alarmed: float, partial: float, rise: bool
) -> None:
    assert feed(RecoveryTest.between(bound, alarmed, RATIO, rise), partial, 20_000) is None


@pytest.mark.parametrize("rise", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_an_alarm_that_lies_on_its_bound_can_still_clear(rate: float, rise: bool) -> None:
    """The good rate gives way, to where the two can be told apart."""
    test = RecoveryTest.between(rate, rate, RATIO, rise)
    assert test.good != test.bad
    # Over and over, the evidence that good rather than bad would give on average.
    count = test.good * 1e9
    assert test.update(round(count), 10**9)


def test_batches_add_up() -> None:
    one, many = (RecoveryTest.between(0.02, 0.1, RATIO, True) for _ in range(2))
    for _ in range(60):
        many.update(0, 1)
    one.update(0, 60)
    assert one.level == pytest.approx(many.level)


def test_a_clear_needs_the_ratio_and_not_more() -> None:
    test = RecoveryTest.between(0.02, 0.1, RATIO, True)
    per_event = math.log((1 - test.good) / (1 - test.bad))
    needed = math.ceil(math.log(RATIO) / per_event)
    assert [test.update(0, 1) for _ in range(needed)] == [False] * (needed - 1) + [True]


def test_a_stored_test_goes_on_bit_for_bit() -> None:
    test = RecoveryTest.between(0.02, 0.3, RATIO, True)
    test.update(1, 30)
    resumed = msgspec.msgpack.decode(msgspec.msgpack.encode(test), type=RecoveryTest)
    assert [test.update(k, 9) for k in (0, 1, 0)] == [resumed.update(k, 9) for k in (0, 1, 0)]
    assert test == resumed
