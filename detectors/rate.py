"""Rate detector: has the rate of a counted event left its reference, up or down?

For each odds ratio θ a Shiryaev–Roberts e-detector (Shin, Ramdas & Rinaldo,
"E-detectors: a nonparametric framework for sequential change detection", 2022)

    S ← (S + w) · LR(k, n; p, θ)

whose likelihood ratio is taken against a *bound* p of the reference, so
that it is an e-process for every rate on the quiet side of p. Evidence is the
mean over θ. w is the time since the last update in units of the promise (a
week), so S − Σw is a supermartingale without change and

    P(evidence ≥ A at any time within T) ≤ T / A,    T = Σw,

whatever the traffic, and however it is cut into batches. The cut moves only the
restarts: a batch's weight counts as if all of it had come before its first
event, so S depends on the cut, and the product of the ratios does not.

The bounds may change from batch to batch, and may have been learned from the
very events that are judged: LR falls as a rise's bound grows (and as a fall's
shrinks), so while the bounds are right, S lies below the S of the true rate,
path by path. What remains is the probability that they are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.base import Arrays, Detector, Floats, Ints

_STATE = ("log_s", "cusum", "start", "total", "count")


@dataclass(frozen=True)
class RateDetectorConfig:
    """`odds_ratios` are the alternatives: below 1 a fall, above 1 a rise."""

    odds_ratios: tuple[float, ...] = (1 / 3, 1 / 2, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0)

    def __post_init__(self) -> None:
        if not self.odds_ratios or any(not 0 < r < np.inf or r == 1 for r in self.odds_ratios):
            raise ValueError("odds ratios must be positive, finite and different from 1")


@dataclass(frozen=True)
class Change:
    """The best explanation of the evidence so far; arrays of shape (m,)."""

    rise: npt.NDArray[np.bool_]
    #: Start of the batch in which the change is estimated to lie, as given to `update`.
    start: Ints
    #: Events since then, and how many of them counted.
    total: Ints
    count: Ints


class RateDetector(Detector):
    """Detectors for r streams side by side, one row each.

    Cost: one numpy pass over (rows in the batch × alternatives). Memory: five
    numbers per row and alternative.
    """

    def __init__(self, config: RateDetectorConfig, rows: int) -> None:
        self.config = config
        self._theta = np.array(config.odds_ratios)
        self._log_theta = np.log(self._theta)
        shape = (rows, len(self._theta))
        self._log_s: Floats = np.full(shape, -np.inf)
        # A CUSUM runs beside each e-detector for one purpose: its last visit to
        # zero is the maximum-likelihood estimate of the change point.
        self._cusum: Floats = np.zeros(shape)
        self._start: Ints = np.zeros(shape, np.int64)
        self._total: Ints = np.zeros(shape, np.int64)
        self._count: Ints = np.zeros(shape, np.int64)

    @property
    def rows(self) -> int:
        return len(self._log_s)

    def resize(self, rows: int) -> None:
        """Add rows; the new ones have seen nothing."""
        if rows < self.rows:
            raise ValueError(f"{self.rows} rows cannot be cut to {rows}")
        fresh = RateDetector(self.config, rows - self.rows)
        for name in _STATE:
            both = [getattr(self, f"_{name}"), getattr(fresh, f"_{name}")]
            setattr(self, f"_{name}", np.concatenate(both))

    def update(
        self,
        rows: Ints,
        count: Ints,
        total: Ints,
        low: Floats,
        high: Floats,
        weight: Floats,
        time: Ints,
    ) -> Floats:
        """Take in one batch and return the log evidence of each row in it, shape (m,).

        Args:
            rows: distinct row numbers, shape (m,) like all that follow.
            count, total: `count` of `total` events, 0 ≤ count ≤ total.
            low, high: bounds of the reference rate, 0 ≤ low ≤ high ≤ 1.
            weight: time since the row's last update in units of the promise, ≥ 0.
            time: start of the batch, any unit; comes back as the change point.

        Raises:
            ValueError: a row that is not there or stands twice; a count, bound or
                weight outside its range or not finite; shapes that differ.
        """
        _check_shapes(rows, count, total, low, high, weight, time)
        _check_rows(rows, self.rows)
        _check_values(count, total, low, high, weight)
        llr = self._log_ratio(count, total, low, high)
        # Below a bound of 0 there is no fall: its ratio stays at 1 as long as
        # nothing counts, and waiting alone would pass for evidence.
        possible = (self._theta > 1) | (low[:, None] > 0)
        with np.errstate(divide="ignore"):
            log_weight = np.log(np.where(possible, weight[:, None], 0.0))
        self._log_s[rows] = np.logaddexp(self._log_s[rows], log_weight) + llr
        self._locate(rows, count, total, llr, time)
        return self.log_evidence(rows)

    def _log_ratio(self, count: Ints, total: Ints, low: Floats, high: Floats) -> Floats:
        """Log likelihood ratio of odds θ·p/(1−p) against p, shape (m, θ)."""
        p = np.where(self._theta > 1, high[:, None], low[:, None])
        ratio: Floats = count[:, None] * self._log_theta - total[:, None] * np.log1p(
            p * (self._theta - 1)
        )
        return ratio

    def _locate(self, rows: Ints, count: Ints, total: Ints, llr: Floats, time: Ints) -> None:
        at_zero = self._cusum[rows] <= 0
        # Batches may come out of order: a change began with the earliest of those it is made of.
        earliest = np.minimum(self._start[rows], time[:, None])
        self._start[rows] = np.where(at_zero, time[:, None], earliest)
        self._total[rows] = np.where(at_zero, 0, self._total[rows]) + total[:, None]
        self._count[rows] = np.where(at_zero, 0, self._count[rows]) + count[:, None]
        self._cusum[rows] = np.maximum(self._cusum[rows] + llr, 0.0)

    def log_evidence(self, rows: Ints) -> Floats:
        """Return the logarithm of the mean of S over the alternatives, shape (m,)."""
        log_s = self._log_s[rows]
        most = log_s.max(axis=1, keepdims=True)
        most[most == -np.inf] = 0.0
        with np.errstate(divide="ignore"):
            mean: Floats = most[:, 0] + np.log(np.exp(log_s - most).mean(axis=1))
        return mean

    def change(self, rows: Ints) -> Change:
        """Return what the alternative with the most evidence says, per row."""
        best = np.argmax(self._log_s[rows], axis=1)
        return Change(
            rise=self._theta[best] > 1,
            start=self._start[rows, best],
            total=self._total[rows, best],
            count=self._count[rows, best],
        )

    def reset(self, rows: Ints) -> None:
        """Forget all evidence of these rows."""
        self._log_s[rows] = -np.inf
        for name in ("cusum", "start", "total", "count"):
            getattr(self, f"_{name}")[rows] = 0

    def snapshot(self) -> Arrays:
        """Return copies of the whole state; `restore` brings it back bit for bit."""
        state: Arrays = {name: getattr(self, f"_{name}").copy() for name in _STATE}
        return {"theta": self._theta.copy(), **state}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`.

        Raises:
            ValueError: it was made with other alternatives, or is not whole.
        """
        if not np.array_equal(arrays.get("theta", ()), self._theta):
            raise ValueError("the snapshot was made with other alternatives")
        if missing := [name for name in _STATE if name not in arrays]:
            raise ValueError(f"the snapshot lacks {', '.join(missing)}")
        shape = (len(arrays["log_s"]), len(self._theta))
        if any(arrays[name].shape != shape for name in _STATE):
            raise ValueError(f"the snapshot's arrays are not all of shape {shape}")
        for name in _STATE:
            setattr(self, f"_{name}", arrays[name].copy())


def _check_shapes(rows: Ints, *others: npt.NDArray[np.generic]) -> None:
    # Broadcasting would let one number stand for many rows without a word.
    if rows.ndim != 1 or any(each.shape != rows.shape for each in others):
        raise ValueError("rows and all that runs parallel to them must have one shape (m,)")


def _check_rows(rows: Ints, available: int) -> None:
    if len(rows) and (rows.min() < 0 or rows.max() >= available):
        raise ValueError(f"rows must lie between 0 and {available - 1}")
    # Of a row that stands twice numpy would keep the last batch alone.
    if len(np.unique(rows)) != len(rows):
        raise ValueError("a row stands twice in the batch")


def _check_values(count: Ints, total: Ints, low: Floats, high: Floats, weight: Floats) -> None:
    if not ((count >= 0) & (count <= total) & np.isfinite(total)).all():
        raise ValueError("counts must lie between 0 and their totals")
    if not ((low >= 0) & (low <= high) & (high <= 1)).all():
        raise ValueError("bounds must satisfy 0 ≤ low ≤ high ≤ 1")
    if not ((weight >= 0) & np.isfinite(weight)).all():
        raise ValueError("weights must be finite and not negative")
