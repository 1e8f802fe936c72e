"""Rate detector: has the rate of a counted event left its reference, up or down?

For each odds ratio θ a Shiryaev–Roberts e-detector (Shin, Ramdas & Rinaldo,
"E-detectors: a nonparametric framework for sequential change detection", 2022)

    S ← (S + w) · LR(k, n; p, θ)

whose likelihood ratio is taken against a *bound* p of the reference, so
that it is an e-process for every rate on the quiet side of p. Evidence is a
weighted mean over θ. w is the time since the last update in units of the promise
(a week), so S − Σw is a supermartingale without change and

    P(evidence ≥ A at any time within T) ≤ (T + head start) / A,    T = Σw,

whatever the traffic, and however it is cut into batches. The cut moves only the
restarts: a batch's weight counts as if all of it had come before its first
event, so S depends on the cut, and the product of the ratios does not.

The bounds may change from batch to batch, and may have been learned from the
very events that are judged: LR falls as a rise's bound grows (and as a fall's
shrinks), so while the bounds are right, S lies below the S of the true rate,
path by path. What remains is the probability that they are wrong.

The weights are fixed before any data, and to give θ half the weight costs log 2
nats of evidence when θ is what comes. A nat is dear, in events and in share of
the whole delay, where the change is small, and dearest for a fall of a rare
event; so weight falls off with |log θ|, and falls get more than their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from detectors.base import Arrays, Detector, Floats, Ints

#: Per row and alternative, and per row.
_GRIDS = ("s", "cusum", "start", "base_total", "base_count")
_COLUMNS = ("total", "count")
#: Rows that are worked on at a time, so that what is in hand stays in the cache.
_BLOCK = 4_096
#: S stops here, far above any threshold: a lower S keeps the promise, an infinite one cannot fall.
_MOST = 1e300
_MOST_LOG_RATIO = 700.0
#: Share of the weight that goes to falls, when there are falls and rises.
_FALLS = 0.36

Block = slice | Ints
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class RateDetectorConfig:
    """`odds_ratios` are the alternatives: below 1 a fall, above 1 a rise.

    `head_start` is evidence that a row has from the first (and after each
    `reset`), in units of the promise. A detector that starts at 0 is at first
    slower than one that has been watching; this buys the difference back, and
    each start costs as much of the budget as that time would.
    """

    odds_ratios: tuple[float, ...] = (1 / 4, 1 / 2, 1.6, 2.5, 4.5, 12.0)
    head_start: float = 0.0

    def __post_init__(self) -> None:
        if not self.odds_ratios or any(not 0 < r < np.inf or r == 1 for r in self.odds_ratios):
            raise ValueError("odds ratios must be positive, finite and different from 1")
        if not 0 <= self.head_start < np.inf:
            raise ValueError("the head start must be finite and not negative")

    @property
    def weights(self) -> tuple[float, ...]:
        """Each alternative's share of the evidence; they sum to 1."""
        theta = np.array(self.odds_ratios)
        weight, rise = 1 / (1 + np.abs(np.log(theta))), theta > 1
        if rise.any() and not rise.all():
            weight[rise] *= (1 - _FALLS) / weight[rise].sum()
            weight[~rise] *= _FALLS / weight[~rise].sum()
        return tuple((weight / weight.sum()).tolist())


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

    Cost: a fixed number of numpy passes over (alternatives × rows in the batch).
    Memory: five numbers per row and alternative, two per row.
    """

    def __init__(self, config: RateDetectorConfig, rows: int) -> None:
        self.config = config
        order = np.argsort(config.odds_ratios, kind="stable")
        theta = np.array(config.odds_ratios)[order]
        self._theta = theta
        #: So many alternatives are falls; they come first.
        self._falls = int((theta < 1).sum())
        self._log_theta = np.log(theta)[:, None]
        self._excess = (theta - 1)[:, None]
        self._share = np.array(config.weights)[order][:, None]
        # Alternatives first: a pass runs along the rows. S carries its alternative's share.
        shape = (len(theta), rows)
        self._s: Floats = np.full(shape, self._share * config.head_start)
        # A CUSUM runs beside each e-detector for one purpose: its last visit to
        # zero is the maximum-likelihood estimate of the change point.
        self._cusum: Floats = np.zeros(shape)
        self._start: Ints = np.zeros(shape, np.int64)
        #: Events and counts that a row had seen before that point; and now.
        self._base_total: Ints = np.zeros(shape, np.int64)
        self._base_count: Ints = np.zeros(shape, np.int64)
        self._total: Ints = np.zeros(rows, np.int64)
        self._count: Ints = np.zeros(rows, np.int64)

    @property
    def rows(self) -> int:
        return len(self._total)

    def resize(self, rows: int) -> None:
        """Add rows; the new ones have seen nothing."""
        if rows < self.rows:
            raise ValueError(f"{self.rows} rows cannot be cut to {rows}")
        fresh = RateDetector(self.config, rows - self.rows)
        for name in (*_GRIDS, *_COLUMNS):
            both = [getattr(self, f"_{name}"), getattr(fresh, f"_{name}")]
            setattr(self, f"_{name}", np.concatenate(both, axis=-1))

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
            rows: distinct row numbers, shape (m,) like all that follow. All rows, or
                a run of them in ascending order, is the fastest.
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
        evidence = np.empty(len(rows))
        run = _is_run(rows)
        for first in range(0, len(rows), _BLOCK):
            part = slice(first, min(first + _BLOCK, len(rows)))
            at: Block = slice(rows[part][0], rows[part][-1] + 1) if run else rows[part]
            ratio = self._log_ratio(count[part], total[part], low[part], high[part])
            self._locate(at, count[part], total[part], ratio, time[part])
            evidence[part] = self._accumulate(at, ratio, low[part], weight[part])
        return evidence

    def _log_ratio(self, count: Ints, total: Ints, low: Floats, high: Floats) -> Floats:
        """Log likelihood ratio of odds θ·p/(1−p) against p, shape (θ, m)."""
        norm = self._split(low, high, self._excess)
        norm += 1
        # Not log1p, which is several times slower: the difference is 1e-16 per event.
        np.log(norm, out=norm)
        norm *= total
        ratio: Floats = count * self._log_theta
        ratio -= norm
        return ratio

    def _split(self, falls: Floats, rises: Floats, factor: Floats) -> Floats:
        """Return factor × `falls` for the alternatives that are falls, × `rises` for the others."""
        out = np.empty((len(self._theta), len(falls)))
        np.multiply(falls, factor[: self._falls], out=out[: self._falls])
        np.multiply(rises, factor[self._falls :], out=out[self._falls :])
        return out

    def _locate(self, at: Block, count: Ints, total: Ints, ratio: Floats, time: Ints) -> None:
        cusum, start = _part(self._cusum, at), _part(self._start, at)
        base_total, base_count = _part(self._base_total, at), _part(self._base_count, at)
        at_zero = cusum <= 0
        # Batches may come out of order: a change began with the earliest of those it is made of.
        np.minimum(start, time, out=start)
        np.copyto(start, time, where=at_zero)
        np.copyto(base_total, self._total[at], where=at_zero)
        np.copyto(base_count, self._count[at], where=at_zero)
        cusum += ratio
        np.maximum(cusum, 0.0, out=cusum)
        self._total[at] += total
        self._count[at] += count
        if not isinstance(at, slice):
            self._cusum[:, at], self._start[:, at] = cusum, start
            self._base_total[:, at], self._base_count[:, at] = base_total, base_count

    def _accumulate(self, at: Block, ratio: Floats, low: Floats, weight: Floats) -> Floats:
        s = _part(self._s, at)
        # Below a bound of 0 there is no fall: its ratio stays at 1 as long as
        # nothing counts, and waiting alone would pass for evidence.
        s += self._split(np.where(low > 0, weight, 0.0), weight, self._share)
        np.minimum(ratio, _MOST_LOG_RATIO, out=ratio)
        with np.errstate(over="ignore", under="ignore"):
            s *= np.exp(ratio, out=ratio)
        np.minimum(s, _MOST, out=s)
        if not isinstance(at, slice):
            self._s[:, at] = s
        return _log_sum(s)

    def log_evidence(self, rows: Ints) -> Floats:
        """Return the logarithm of the weighted mean of S over the alternatives, shape (m,)."""
        return _log_sum(self._s[:, rows])

    def change(self, rows: Ints) -> Change:
        """Return what the most likely alternative says, per row."""
        best = np.argmax(self._cusum[:, rows], axis=0)
        return Change(
            rise=self._theta[best] > 1,
            start=self._start[best, rows],
            total=self._total[rows] - self._base_total[best, rows],
            count=self._count[rows] - self._base_count[best, rows],
        )

    def reset(self, rows: Ints) -> None:
        """Forget all evidence of these rows."""
        fresh = RateDetector(self.config, 1)
        for name in (*_GRIDS, *_COLUMNS):
            getattr(self, f"_{name}")[..., rows] = getattr(fresh, f"_{name}")

    def snapshot(self) -> Arrays:
        """Return copies of the whole state, rows first; `restore` brings it back bit for bit."""
        state: Arrays = {name: getattr(self, f"_{name}").T.copy() for name in (*_GRIDS, *_COLUMNS)}
        return {"theta": self._theta.copy(), **state}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`.

        Raises:
            ValueError: it was made with other alternatives, or is not whole.
        """
        if not np.array_equal(arrays.get("theta", ()), self._theta):
            raise ValueError("the snapshot was made with other alternatives")
        if missing := [name for name in (*_GRIDS, *_COLUMNS) if name not in arrays]:
            raise ValueError(f"the snapshot lacks {', '.join(missing)}")
        rows = len(arrays["s"])
        shapes = dict.fromkeys(_GRIDS, (rows, len(self._theta))) | dict.fromkeys(_COLUMNS, (rows,))
        if any(arrays[name].shape != shape for name, shape in shapes.items()):
            raise ValueError(f"the snapshot's arrays are not all of {rows} rows")
        for name in shapes:
            setattr(self, f"_{name}", np.ascontiguousarray(arrays[name].T).copy())


def _part(grid: npt.NDArray[Number], at: Block) -> npt.NDArray[Number]:
    """The columns of `grid`: a view of a run of them, else a copy to be written back."""
    return grid[:, at] if isinstance(at, slice) else np.take(grid, at, axis=1)


def _log_sum(s: Floats) -> Floats:
    # One alternative after the other: a sum whose order depended on the number
    # of rows would make a row's evidence depend on its neighbours.
    total = s[0].copy()
    for each in s[1:]:
        total += each
    with np.errstate(divide="ignore"):
        log: Floats = np.log(total, out=total)
    return log


def _is_run(rows: Ints) -> bool:
    """True when the rows follow one another without a gap."""
    return len(rows) > 0 and bool((rows == np.arange(rows[0], rows[0] + len(rows))).all())


def _check_shapes(rows: Ints, *others: npt.NDArray[np.generic]) -> None:
    # Broadcasting would let one number stand for many rows without a word.
    if rows.ndim != 1 or any(each.shape != rows.shape for each in others):
        raise ValueError("rows and all that runs parallel to them must have one shape (m,)")


def _check_rows(rows: Ints, available: int) -> None:
    if len(rows) and (rows.min() < 0 or rows.max() >= available):
        raise ValueError(f"rows must lie between 0 and {available - 1}")
    # Of a row that stands twice numpy would keep the last batch alone.
    if not (rows[1:] > rows[:-1]).all() and len(np.unique(rows)) != len(rows):
        raise ValueError("a row stands twice in the batch")


def _check_values(count: Ints, total: Ints, low: Floats, high: Floats, weight: Floats) -> None:
    # Each comparison is false for what is not a number.
    if not ((count >= 0).all() and (count <= total).all() and (total < np.inf).all()):
        raise ValueError("counts must lie between 0 and their totals")
    if not ((low >= 0).all() and (low <= high).all() and (high <= 1).all()):
        raise ValueError("bounds must satisfy 0 ≤ low ≤ high ≤ 1")
    if not ((weight >= 0).all() and (weight < np.inf).all()):
        raise ValueError("weights must be finite and not negative")
