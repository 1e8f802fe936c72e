"""Shift detector: has the mean of a residual vector moved, and since when?

What arrives are sums of vectors r of dimension p whose mean is unknown but steady
while nothing changes, and whose covariance is the identity (see `fingerprint`). The
reference that made them so counts for `known` answers: their mean residual is 0 by
construction, which says of the true mean only that it lies near 0.

For a change after event k, let d be the mean since k minus the mean before it, the
reference's `known` zeros counted in. Without a change d ~ N(0, v) in each direction,
whatever the true mean is, and with one d ~ N(0, v + λ):

    v = sampling + tolerance + leak · traffic
    sampling = 1 / (events since k) + 1 / (known + events before k)

`traffic` is by how much the prompts themselves have moved: with every residual comes
a vector u of q features of the prompt, of covariance 1 as well, and its mean since k
differs from that before by e. What |e|²/q has over `sampling` another mix of prompts
has brought about. From the residuals what the prompt predicts was taken, so that no
more than a share of it, `leak`, is left in them. Other traffic thus raises the bar
just where and when it comes, and `tolerance` need only cover what u does not show.
A change of model that comes with other traffic is found later for it, or not at all.

λ is the scale of a shift whose direction nothing is known about. The likelihood ratio

    LR = (1 + λ/v)^(−p/2) · exp(|d|²/2v · λ/(λ + v))

is that of all differences between the events, which do not depend on the true mean
(an invariant test; Lehmann & Romano, "Testing Statistical Hypotheses", ch. 6). So the
reference's error is inside the promise and no danger to it, and a row's own quiet
events go on making its mean better known. It is also what comes of betting, event by
event, on the shift that the past events and no others suggest (Lorden & Pollak,
"Nonanticipating estimation applied to sequential analysis and changepoint
detection", 2005).

Evidence is the Shiryaev–Roberts sum: over all k, the weight of k times its LR. Only
`candidates` values of k are kept, their ages growing geometrically: of two that
have become alike in age the one with less evidence goes, and what it was worth is
staked on the other. A stake that moves keeps its expectation.

*Proved*, for independent normal residuals of covariance 1 and tolerance 0: evidence
− Σw is a martingale without change, over the draw of the reference as well, so
P(evidence ≥ A within T) ≤ T / A. With a larger v, or a smaller covariance, each LR
still expects at most 1 at any one time. *Measured* (`benchmarks/swaps.py`): that the
clipped residuals of real answers keep to it, and that other traffic does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from detectors.base import Arrays, Detector, Floats, Ints

Bools = npt.NDArray[np.bool_]
Floats32 = npt.NDArray[np.float32]
Number = TypeVar("Number", np.int64, np.float64)

_STATE = ("sums", "counts", "stake", "value", "start")
#: Rows that are worked on at a time: their sums and what is made of them stay in the cache.
_BLOCK = 256


@dataclass(frozen=True)
class ShiftDetectorConfig:
    """What a row looks for; a shift is in units of the residuals' standard deviation.

    `scale` is λ, a variance in each direction: in 24 of them 0.02 makes shifts of
    length √(24·0.02) = 0.7 typical, which is what swaps between versions of a model
    measure. Others are found as well, a little later. `tolerance` is the variance, in
    each direction, by which a mean may wander though nothing changed and the prompts
    show nothing; shifts shorter than about twice √(24·0.001) = 0.15 are not found, then.
    `leak` is what prediction from the prompt leaves in the residuals of a change of
    traffic: a quarter of it between the strata of public prompts, and a little more
    for prompts that come again. `horizon` is the age in events at which a candidate
    goes; what it was a candidate for is normal from then on.
    """

    #: p, of the residuals, and q, of the features of the prompt that come with them.
    dimensions: int
    prompt_dimensions: int = 0
    candidates: int = 16
    scale: float = 0.02
    tolerance: float = 0.001
    leak: float = 0.3
    horizon: int = 20_000

    def __post_init__(self) -> None:
        if min(self.dimensions, self.prompt_dimensions + 1, self.horizon) < 1:
            raise ValueError("a dimension and a horizon of at least 1 are needed, none negative")
        if self.candidates < 2:
            raise ValueError("at least 2 candidates are needed")
        if not 0 < self.scale < math.inf:
            raise ValueError("the scale must be positive and finite")
        if not (0 <= self.tolerance < math.inf and 0 <= self.leak < math.inf):
            raise ValueError("tolerance and leak must be finite and not negative")

    @property
    def width(self) -> int:
        """Length of the vectors that are summed: p + q."""
        return self.dimensions + self.prompt_dimensions


@dataclass(frozen=True)
class Shift:
    """The best explanation of the evidence so far, per row."""

    #: Start of the batch in which the change is estimated to lie, shape (m,).
    start: Ints
    #: Events since then, shape (m,); 0 for a row without evidence.
    total: Ints
    #: Mean since then minus the mean before, shape (m, p).
    mean: Floats
    #: Mean before, the reference's zeros counted in, shape (m, p).
    before: Floats


class ShiftDetector(Detector):
    """Detectors for r streams side by side, one row each.

    Cost: some numpy passes over (rows in the batch × candidates × dimensions), in blocks
    that fit into a processor's cache. Memory: 4 · (candidates + 1) · (p + q) + 32 ·
    (candidates + 1) bytes per row; 16 MB for 5,000 rows of 24 + 16 dimensions. Sums are
    kept to seven digits: where they have grown to a horizon of events, that is a thousandth
    of their own standard deviation.
    """

    def __init__(self, config: ShiftDetectorConfig, rows: int) -> None:
        self.config = config
        k = config.candidates
        # Candidate j lies between the segments j and j + 1; the youngest is the last. The sums
        # are those of all segments up to j, so that a candidate goes by leaving them out; the
        # counts are those of segment j alone.
        self._sums: Floats32 = np.zeros((rows, k + 1, config.width), np.float32)
        self._counts: Ints = np.zeros((rows, k + 1), np.int64)
        self._stake: Floats = np.full((rows, k), -np.inf)
        self._value: Floats = np.full((rows, k), -np.inf)
        self._start: Ints = np.zeros((rows, k), np.int64)

    @property
    def rows(self) -> int:
        return len(self._sums)

    def resize(self, rows: int) -> None:
        """Add rows; the new ones have seen nothing."""
        if rows < self.rows:
            raise ValueError(f"{self.rows} rows cannot be cut to {rows}")
        fresh = ShiftDetector(self.config, rows - self.rows)
        for name in _STATE:
            both = [getattr(self, f"_{name}"), getattr(fresh, f"_{name}")]
            setattr(self, f"_{name}", np.concatenate(both))

    def update(
        self,
        rows: Ints,
        sums: Floats,
        total: Ints,
        known: Ints,
        weight: Floats,
        time: Ints,
    ) -> Floats:
        """Take in one batch and return the log evidence of each row in it, shape (m,).

        Args:
            rows: distinct row numbers, shape (m,) like all that follow but `sums`.
            sums: sums over `total` ≥ 1 events of their residuals, and behind them of the
                features of their prompts, shape (m, p + q).
            known: how many answers the row's reference counts for, ≥ 1.
            weight: time since the row's last update in units of the promise, ≥ 0.
            time: start of the batch, any unit; comes back as the change point.

        Raises:
            ValueError: a row that is not there or stands twice; a value outside its
                range or not finite; shapes that differ.
        """
        self._check(rows, sums, total, known, weight, time)
        for first in range(0, len(rows), _BLOCK):
            part = slice(first, first + _BLOCK)
            self._update_block(
                rows[part], sums[part], total[part], known[part], weight[part], time[part]
            )
        return self.log_evidence(rows)

    def _update_block(
        self, rows: Ints, sums: Floats, total: Ints, known: Ints, weight: Floats, time: Ints
    ) -> None:
        before = self._make_room(rows)
        before[:, -1] += sums
        self._sums[rows] = before
        self._counts[rows, -1] = total
        with np.errstate(divide="ignore"):
            self._stake[rows, -1] = np.log(weight)
        # Batches may come out of order: a change began with the earliest of those it is made of.
        self._start[rows, -1] = time
        self._start[rows] = np.minimum(self._start[rows], time[:, None])
        difference, sampling = _differences(before, self._counts[rows], known)
        self._value[rows] = self._stake[rows] + self._log_ratio(difference, sampling)

    def _make_room(self, rows: Ints) -> Floats32:
        """Let one candidate of each row go, so that the last place is free for a new one.

        Returns the sums, the last of them twice; they are not written back.
        """
        at = np.arange(len(rows))
        stake, value, counts = self._stake[rows], self._value[rows], self._counts[rows]
        older, expired = self._most_alike(stake, counts)
        keep_younger = expired | (value[at, older] <= value[at, older + 1])
        gone = np.where(keep_younger, older, older + 1)
        kept = np.where(keep_younger, older + 1, older)
        # What `gone` was worth goes on with the ratios of `kept`.
        with np.errstate(invalid="ignore"):
            moved = value[at, gone] - (value[at, kept] - stake[at, kept])
        moved = np.where(value[at, gone] == -np.inf, -np.inf, moved)
        stake[at, kept] = np.logaddexp(stake[at, kept], moved)
        counts[at, gone] += counts[at, gone + 1]
        sums: Floats32 = self._sums[rows[:, None], _places(counts.shape[1], gone)]
        # The oldest past fades, so that what is normal may follow the years.
        old = np.flatnonzero(counts[:, 0] > self.config.horizon)
        if len(old):
            lost = 1 - self.config.horizon / counts[old, 0]
            sums[old] -= (lost[:, None] * sums[old, 0])[:, None]
            counts[old, 0] = self.config.horizon
        self._counts[rows] = _close_gap(counts, gone + 1)
        self._stake[rows] = _close_gap(stake, gone)
        self._start[rows] = _close_gap(self._start[rows], gone)
        return sums

    def _most_alike(self, stake: Floats, counts: Ints) -> tuple[Ints, Bools]:
        """The older of the neighbours most alike in age, and whether it is past the horizon."""
        age = _suffix_sums(counts[:, 1:])
        ratio = age[:, :-1] / np.maximum(age[:, 1:], 1)
        expired = (age[:, 0] > self.config.horizon) & (stake[:, 0] > -np.inf)
        ratio[expired, 0] = -1.0
        ratio[stake[:, :-1] == -np.inf] = -2.0
        older = np.argmin(ratio, axis=1)
        return older, expired & (older == 0)

    def _log_ratio(self, difference: Floats32, sampling: Floats) -> Floats:
        """Log likelihood ratio of a shift against none, shape (m, k)."""
        p, q = self.config.dimensions, self.config.prompt_dimensions
        variance = sampling + self.config.tolerance
        if q:
            traffic = np.maximum(_squares(difference[:, :, p:]) / q - sampling, 0.0)
            variance += self.config.leak * traffic
        gain = self.config.scale / variance
        ratio: Floats = gain / (1 + gain) * _squares(difference[:, :, :p]) / (2 * variance)
        return ratio - p / 2 * np.log1p(gain)

    def log_evidence(self, rows: Ints) -> Floats:
        """Return the logarithm of the Shiryaev–Roberts sum, shape (m,)."""
        value = self._value[rows]
        most = value.max(axis=1, keepdims=True)
        most[most == -np.inf] = 0.0
        with np.errstate(divide="ignore"):
            total: Floats = most[:, 0] + np.log(np.exp(value - most).sum(axis=1))
        return total

    def change(self, rows: Ints, known: Ints) -> Shift:
        """Return what the candidate with the most evidence says; `known` as in `update`."""
        best = np.argmax(self._value[rows], axis=1)
        seen = self._value[rows, best] > -np.inf
        p, counts = self.config.dimensions, self._counts[rows]
        before = self._sums[rows, best, :p].astype(np.float64)
        since = self._sums[rows, -1, :p] - before
        at = np.arange(len(rows))
        total = _suffix_sums(counts[:, 1:])[at, best]
        before /= (known + np.cumsum(counts[:, :-1], axis=1)[at, best])[:, None]
        mean = since / np.maximum(total, 1)[:, None] - before
        return Shift(
            start=self._start[rows, best],
            total=np.where(seen, total, 0),
            mean=np.where(seen[:, None], mean, 0.0),
            before=before,
        )

    def reset(self, rows: Ints) -> None:
        """Forget all evidence of these rows, and what they learned of their mean."""
        self._stake[rows] = self._value[rows] = -np.inf
        for name in ("sums", "counts", "start"):
            getattr(self, f"_{name}")[rows] = 0

    def snapshot(self) -> Arrays:
        """Return copies of the whole state; `restore` brings it back bit for bit."""
        state: Arrays = {name: getattr(self, f"_{name}").copy() for name in _STATE}
        return {"design": self._design(), **state}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`.

        Raises:
            ValueError: it was made with another configuration, or is not whole.
        """
        if not np.array_equal(arrays.get("design", ()), self._design()):
            raise ValueError("the snapshot was made with another configuration")
        if missing := [name for name in _STATE if name not in arrays]:
            raise ValueError(f"the snapshot lacks {', '.join(missing)}")
        fresh = ShiftDetector(self.config, len(arrays["sums"]))
        for name, expected in fresh.snapshot().items():
            if arrays[name].shape != expected.shape or arrays[name].dtype != expected.dtype:
                raise ValueError(f"the snapshot's {name} are not of shape {expected.shape}")
        for name in _STATE:
            setattr(self, f"_{name}", arrays[name].copy())

    def _design(self) -> Floats:
        return np.array([float(value) for value in asdict(self.config).values()])

    def _check(
        self, rows: Ints, sums: Floats, total: Ints, known: Ints, weight: Floats, time: Ints
    ) -> None:
        # Broadcasting would let one number stand for many rows without a word.
        if rows.ndim != 1 or any(each.shape != rows.shape for each in (total, known, weight, time)):
            raise ValueError("rows and all that runs parallel to them must have one shape (m,)")
        if sums.shape != (len(rows), self.config.width):
            raise ValueError(f"sums must have the shape (m, {self.config.width})")
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise ValueError(f"rows must lie between 0 and {self.rows - 1}")
        # Of a row that stands twice numpy would keep the last batch alone.
        if len(np.unique(rows)) != len(rows):
            raise ValueError("a row stands twice in the batch")
        if not ((total >= 1) & (known >= 1) & np.isfinite(total) & np.isfinite(known)).all():
            raise ValueError("totals and known must be finite and at least 1")
        if not ((weight >= 0) & np.isfinite(weight)).all():
            raise ValueError("weights must be finite and not negative")
        if not np.isfinite(sums).all():
            raise ValueError("sums must be finite")


def _differences(sums: Floats32, counts: Ints, known: Ints) -> tuple[Floats32, Floats]:
    """Mean since each candidate minus the mean before it, (m, k, p + q); sampling, (m, k)."""
    n_since = np.maximum(_suffix_sums(counts[:, 1:]), 1).astype(np.float64)
    n_before = known[:, None] + np.cumsum(counts[:, :-1], axis=1).astype(np.float64)
    before = sums[:, :-1]
    difference: Floats32 = sums[:, -1:] - before
    difference *= (1 / n_since).astype(np.float32)[:, :, None]
    difference -= before * (1 / n_before).astype(np.float32)[:, :, None]
    return difference, 1 / n_since + 1 / n_before


def _squares(vectors: Floats32) -> Floats:
    """Squared lengths along the last axis."""
    squares: Floats = np.einsum("mkp,mkp->mk", vectors, vectors).astype(np.float64)
    return squares


def _suffix_sums(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Sums from each place to the last, along axis 1."""
    sums: npt.NDArray[Number] = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return sums


def _places(size: int, gone: Ints) -> Ints:
    """Where each of `size` places comes from when one is taken out of each row, (m, size)."""
    place = np.arange(size)
    source: Ints = np.minimum(place + (place >= gone[:, None]), size - 1)
    return source


def _close_gap(values: npt.NDArray[Number], gone: Ints) -> npt.NDArray[Number]:
    """Take out one place of each row, axis 1; the last place comes twice."""
    places = _places(values.shape[1], gone)
    closed: npt.NDArray[Number] = np.take_along_axis(values, places, axis=1)
    return closed
