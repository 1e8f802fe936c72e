"""Has an alarmed rate come back? A sequential test with hysteresis built in."""

from __future__ import annotations

import math

from msgspec import Struct


class RecoveryTest(Struct):
    """A CUSUM for "back at `good`" against "still at `bad`" (Page, Biometrika 41, 1954).

    `bad` lies half-way, in log odds, between the reference's bound and the rate
    of the alarm, so that a partial recovery does not clear.
    """

    good: float
    bad: float
    log_ratio: float
    level: float = 0.0

    @classmethod
    def between(cls, bound: float, alarmed: float, ratio: float) -> RecoveryTest:
        """Test for a return to `bound` from the rate `alarmed`, at the likelihood ratio `ratio`."""
        good, worst = _inside(bound), _inside(alarmed)
        middle = (_logit(good) + _logit(worst)) / 2
        return cls(good, 1 / (1 + math.exp(-middle)), math.log(ratio))

    def update(self, count: int, total: int) -> bool:
        """Take in `count` of `total` events; True when the rate is back."""
        per_count = math.log(self.good / self.bad)
        per_other = math.log((1 - self.good) / (1 - self.bad))
        gain = count * per_count + (total - count) * per_other
        self.level = max(0.0, self.level + gain)
        return self.level >= self.log_ratio


def _inside(rate: float) -> float:
    return min(max(rate, 1e-6), 1 - 1e-6)


def _logit(rate: float) -> float:
    return math.log(rate / (1 - rate))
