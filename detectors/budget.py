"""Thresholds: how the budget of false alarms is shared out among the families.

A family whose threshold is A raises at most (its monitors / A) false alarms a week, and
alarms of several families add, so that thresholds

    A = monitors × (sum of the shares) / (share of the family × alarms allowed a week)

keep the sum to what is allowed, however unequal the shares are: a weighted Bonferroni
correction (Genovese, Roeder & Wasserman, Biometrika 93, 2006). A family that has a
quarter of another's share needs log 4 = 1.4 nats more. That is little for what either
happens to nearly every answer or to none, and five times as many families of equal
shares would have cost all of them more.

What only informs wakes nobody. It has a budget of its own, so that to be told more does
not mean to be paged later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detectors.base import Floats
from schemas.signal import INFORMING, Family

#: Families that are looked at first have a share of 1, the others this.
LESSER_SHARE = 0.25
FIRST = frozenset(
    {Family.REFUSAL, Family.ERROR, Family.TRUNCATION, Family.LATENCY, Family.FINGERPRINT}
)


def log_thresholds(
    families: Sequence[Family], monitors: float, pages_per_week: float, notices_per_week: float
) -> Floats:
    """Return log A of each family, shape (f,), for so many monitors of each."""
    informs = np.array([family in INFORMING for family in families])
    share = np.array([1.0 if family in FIRST else LESSER_SHARE for family in families])
    # Those that inform are equals.
    share[informs] = 1.0
    whole = np.where(informs, share[informs].sum(), share[~informs].sum())
    allowed = np.where(informs, notices_per_week, pages_per_week)
    thresholds: Floats = np.log(monitors * whole / (share * allowed))
    return thresholds
