"""Has what stands alarmed come back? Sequential tests with hysteresis built in."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from msgspec import Struct

#: `good` and the alarmed rate are held at least this odds ratio apart, or nothing could tell them.
LEAST_ODDS_RATIO = 1.5
#: `bad` is at most this odds ratio from `good`: half-way to a rate of 100 % is no recovery.
MOST_ODDS_RATIO = 5.0


class RecoveryTest(Struct, tag="rate"):
    """A CUSUM for "back at `good`" against "still at `bad`" (Page, Biometrika 41, 1954).

    `bad` lies half-way, in log odds, between the reference's bound and the rate
    of the alarm, so that a partial recovery does not clear. While the rate stays
    at `bad` or beyond, the likelihood ratio is a supermartingale: each excursion
    of the CUSUM from zero clears with probability at most 1/ratio, and N batches
    with probability at most N/ratio.
    """

    good: float
    bad: float
    log_ratio: float
    level: float = 0.0

    @classmethod
    def between(cls, bound: float, alarmed: float, ratio: float, rise: bool) -> RecoveryTest:
        """Test for a return to `bound` from the rate `alarmed`, at the likelihood ratio `ratio`.

        `alarmed` is an estimate: it may lie close to the bound, or even on its
        quiet side. Then it is the good rate that gives way, so that the test
        always looks in the direction of the alarm and never clears a rate that
        stays where it alarmed.
        """
        away = 1.0 if rise else -1.0
        worst = _logit(_inside(alarmed))
        good = away * min(away * _logit(_inside(bound)), away * worst - math.log(LEAST_ODDS_RATIO))
        step = min(away * (worst - good) / 2, math.log(MOST_ODDS_RATIO))
        return cls(_rate(good), _rate(good + away * step), math.log(ratio))

    def update(self, count: int, total: int) -> bool:
        """Take in `count` of `total` events; True when the rate is back."""
        per_count = math.log(self.good / self.bad)
        per_other = math.log((1 - self.good) / (1 - self.bad))
        gain = count * per_count + (total - count) * per_other
        self.level = max(0.0, self.level + gain)
        return self.level >= self.log_ratio


def _inside(rate: float) -> float:
    return min(max(rate, 1e-6), 1 - 1e-6)


def _rate(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


class ShiftRecovery(Struct, tag="shift"):
    """The same CUSUM for a mean: "back at `before`" against "still half-way to the shift".

    The vectors have p entries, their covariance is the identity.
    """

    before: list[float]
    shift: list[float]
    #: Of the references that both were measured against.
    version: int
    log_ratio: float
    level: float = 0.0

    def update(self, total_vector: npt.NDArray[np.float64], events: int) -> bool:
        """Take in the sum of so many vectors, shape (p,); True when the mean is back."""
        half = np.array(self.shift) / 2
        beyond = total_vector - events * np.array(self.before)
        self.level = max(0.0, self.level + float(events * (half @ half) / 2 - half @ beyond))
        return self.level >= self.log_ratio
