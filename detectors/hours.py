"""A rate by the time of day: eight strata of three hours, and what they bear.

A rate that follows the day is no change, and a reference that saw only the night takes
the day for one. So a stream's events are counted by the time of day too. Where the
strata differ by more than chance (Pearson's χ² at `DIFFER`), each has bounds of its own;
elsewhere one bound for all is tighter. Until a stream has been learned for a day nobody
knows, and its bounds allow for a swing (`benchmarks/rates.py` measures what that costs).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from detectors.base import Arrays, Floats, Ints
from detectors.bounds import clopper_pearson

Bools = npt.NDArray[np.bool_]

STRATA = 8
DAY_MS = 86_400_000
STRATUM_MS = DAY_MS // STRATA
#: A stratum of fewer events says nothing.
LEAST_EVENTS = 50
#: One steady stream in so many is taken for one that swings, at each fit. Its bounds stay honest.
DIFFER = 1e-3

_LEARNING, _STEADY, _SWINGS = 0, 1, 2
_COUNTS = ("count", "total", "pending_count", "pending_total")


class HourStrata:
    """Strata of r streams side by side. Memory: 201 bytes per row.

    `swing` is an odds ratio: so far from what was learned on its first day a rate may lie
    at another time of day.
    """

    def __init__(self, swing: float, rows: int) -> None:
        self._swing = swing
        self._count = np.zeros((rows, STRATA), np.uint32)
        self._total = np.zeros((rows, STRATA), np.uint32)
        self._pending_count = np.zeros((rows, STRATA), np.uint32)
        self._pending_total = np.zeros((rows, STRATA), np.uint32)
        self._low = np.zeros((rows, STRATA), np.float32)
        self._high = np.ones((rows, STRATA), np.float32)
        #: When the first event came that was learned from; 0 before.
        self._started_ms: Ints = np.zeros(rows, np.int64)
        self._state = np.zeros(rows, np.int8)

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`."""
        fresh = HourStrata(self._swing, rows - len(self._state))
        for name, value in self.snapshot().items():
            setattr(self, f"_{name}", np.concatenate([value, getattr(fresh, f"_{name}")]))

    def add(self, rows: Ints, count: Ints, total: Ints, quiet: Bools, time_ms: Ints) -> Ints:
        """Take in a batch as pending, or discard what pends; returns for how long each learns."""
        fresh = rows[self._started_ms[rows] == 0]
        self._started_ms[fresh] = np.maximum(time_ms[self._started_ms[rows] == 0], 1)
        loud = rows[~quiet]
        self._pending_count[loud] = self._pending_total[loud] = 0
        at = (rows[quiet], _stratum(time_ms[quiet]))
        self._pending_count[at] += count[quiet].astype(np.uint32)
        self._pending_total[at] += total[quiet].astype(np.uint32)
        since: Ints = time_ms - self._started_ms[rows]
        return since

    def fit(self, rows: Ints, since_ms: Ints, miss: Floats) -> None:
        """Take in what pends; `since_ms` is for how long each has learned.

        `miss`, shape (m,), is for all strata of a row together.
        """
        self._count[rows] += self._pending_count[rows]
        self._total[rows] += self._pending_total[rows]
        self._pending_count[rows] = self._pending_total[rows] = 0
        aged = since_ms >= DAY_MS
        rows = rows[aged]
        count, total = self._count[rows].astype(np.int64), self._total[rows].astype(np.int64)
        swings = _differ(count, total)
        self._state[rows] = np.where(swings, _SWINGS, _STEADY)
        rows, count, total = rows[swings], count[swings], total[swings]
        low, high = clopper_pearson(count, total, miss[aged][swings][:, None] / STRATA)
        # Single precision must not make a bound tighter.
        self._low[rows] = np.nextafter(low.astype(np.float32), np.float32(0))
        self._high[rows] = np.minimum(np.nextafter(high.astype(np.float32), np.float32(2)), 1)

    def bounds(
        self, rows: Ints, time_ms: Ints, rate: Floats, low: Floats, high: Floats
    ) -> tuple[Floats, Floats]:
        """Return the bounds that hold at these times.

        `rate`, `low` and `high` are those of all times together. All arrays have shape (m,).
        """
        stratum, state = _stratum(time_ms), self._state[rows]
        known = (state == _SWINGS) & (self._total[rows, stratum] >= LEAST_EVENTS)
        unsure = (state != _STEADY) & ~known
        least = np.minimum(low, rate / (rate + self._swing * (1 - rate)))
        most = np.maximum(high, self._swing * rate / (1 - rate + self._swing * rate))
        low, high = np.where(unsure, least, low), np.where(unsure, most, high)
        return (
            np.where(known, self._low[rows, stratum], low),
            np.where(known, self._high[rows, stratum], high),
        )

    def reset(self, rows: Ints) -> None:
        """Forget all about these rows."""
        for name, value in HourStrata(self._swing, 1).snapshot().items():
            getattr(self, f"_{name}")[rows] = value[0]

    def snapshot(self) -> Arrays:
        """Return copies of the whole state; `restore` brings it back bit for bit."""
        names = (*_COUNTS, "low", "high", "started_ms", "state")
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`."""
        for name in self.snapshot():
            setattr(self, f"_{name}", arrays[name].copy())


def _stratum(time_ms: Ints) -> Ints:
    stratum: Ints = time_ms // STRATUM_MS % STRATA
    return stratum


def _differ(count: Ints, total: Ints) -> Bools:
    """Whether strata with enough events differ by more than chance, shape (m,)."""
    # As in `detectors.bounds`: slow to load.
    from scipy.special import chdtrc

    enough = total >= LEAST_EVENTS
    k, n = np.where(enough, count, 0), np.where(enough, total, 0)
    rate = (k.sum(axis=1) + 0.5) / (n.sum(axis=1) + 1)
    spread = np.maximum(n, 1) * (rate * (1 - rate))[:, None]
    distance = ((k - n * rate[:, None]) ** 2 / spread).sum(axis=1)
    freedom = np.maximum(enough.sum(axis=1) - 1, 1)
    differ: Bools = (enough.sum(axis=1) > 1) & (chdtrc(freedom, distance) < DIFFER)
    return differ
