"""References learned from a stream itself: counts, and the bounds they bear.

The first `learn` events make the first reference. After that it doubles: when
as many quiet events have passed again as it rests on, they are taken in and the
bounds are fitted anew, up to `full` events (and the rest of the batch that
brings the last of them), and beyond them until it has learned for a week: a reference
that was full after a night would know only the night. The sizes at which that happens
are fixed in advance, and share one error probability between them (a union bound). Nearly
all of it goes to those up to `full`, where a bound is wide and most streams stay.

A rate may follow the time of day: `bounds` and `learn` take it into account where they
are told the time (`detectors.hours`).

That holds for events that are independent of their being kept. Discarding what
was not quiet selects, so the rule for `quiet` must be one that events without a
change rarely break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.bounds import clopper_pearson
from detectors.hours import DAY_MS, HourStrata

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[np.generic]]


#: A reference that has not learned for a week may grow to so many times `full`.
MOST_FULL = 256
#: What the fits beyond `full` have of the error probability, together.
BEYOND_FULL = 0.1
WEEK_MS = 7 * DAY_MS


@dataclass(frozen=True)
class ReferenceConfig:
    """`miss` is the probability that a stream's bound is ever on the wrong side of its rate."""

    learn: int = 300
    full: int = 20_000
    miss: float = 1e-3
    #: On a stream's first day, its rate may lie so far, as an odds ratio, from what was learned
    #: at another time of day.
    swing: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.learn <= self.full:
            raise ValueError("learn must be positive and not larger than full")
        if not 0 < self.miss < 1:
            raise ValueError("miss must lie between 0 and 1")
        if not 1 <= self.swing < np.inf:
            raise ValueError("swing must be at least 1")

    @property
    def fits(self) -> tuple[int, int]:
        """How many times at most the bounds of a stream are fitted: up to `full`, and beyond."""
        return 1 + int(np.ceil(np.log2(self.full / self.learn))), int(np.log2(MOST_FULL))

    def share_miss(self, total: Ints) -> Floats:
        """Return the `miss` of one bound that is fitted anew after so many events, shape (m,)."""
        to_full, beyond = self.fits
        share = np.where(total < self.full, (1 - BEYOND_FULL) / to_full, BEYOND_FULL / beyond)
        miss: Floats = self.miss / 2 * share
        return miss

    @property
    def most(self) -> int:
        """No reference grows beyond this, however short the time."""
        return self.full * MOST_FULL


class RateReference:
    """References for r streams side by side. Memory: seven numbers per row, and its strata."""

    def __init__(self, config: ReferenceConfig, rows: int) -> None:
        self.config = config
        self._count: Ints = np.zeros(rows, np.int64)
        self._total: Ints = np.zeros(rows, np.int64)
        self._pending_count: Ints = np.zeros(rows, np.int64)
        self._pending_total: Ints = np.zeros(rows, np.int64)
        self._low: Floats = np.zeros(rows)
        self._high: Floats = np.ones(rows)
        #: Whether it has learned for a week, or does not know the time.
        self._aged: Bools = np.zeros(rows, np.bool_)
        self._hours = HourStrata(config.swing, rows)

    def resize(self, rows: int) -> None:
        """Add rows; the new ones have learned nothing."""
        fresh = RateReference(self.config, rows - len(self._count))
        for name in _COLUMNS:
            both = [getattr(self, f"_{name}"), getattr(fresh, f"_{name}")]
            setattr(self, f"_{name}", np.concatenate(both))
        self._hours.resize(rows)

    def ready(self, rows: Ints) -> Bools:
        """Return which rows have a reference, shape (m,)."""
        return self._total[rows] > 0

    def bounds(self, rows: Ints, time_ms: Ints | None = None) -> tuple[Floats, Floats]:
        """Return lower and upper bounds of the rate; 0 and 1 before there is a reference.

        With times, shape (m,), those that hold at that time of day.
        """
        low, high = self._low[rows], self._high[rows]
        if time_ms is None:
            return low, high
        rate = (self._count[rows] + 0.5) / (self._total[rows] + 1)
        return self._hours.bounds(rows, time_ms, rate, low, high)

    def grows(self, rows: Ints) -> Bools:
        """Return which rows still learn, shape (m,)."""
        total = self._total[rows]
        still: Bools = (total < self.config.full) | (~self._aged[rows] & (total < self.config.most))
        return still

    def counts(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the count and the total that the reference rests on."""
        return self._count[rows], self._total[rows]

    def learn(
        self, rows: Ints, count: Ints, total: Ints, quiet: Bools, time_ms: Ints | None = None
    ) -> None:
        """Take in a batch, after it has been judged by the bounds as they were.

        Where `quiet` is False the batch, and what was pending before it, is
        discarded: it may be the beginning of a change.

        Raises:
            ValueError: a count that is negative or larger than its total.
        """
        if not ((count >= 0) & (count <= total)).all():
            raise ValueError("counts must lie between 0 and their totals")
        self._pending_count[rows] = np.where(quiet, self._pending_count[rows] + count, 0)
        self._pending_total[rows] = np.where(quiet, self._pending_total[rows] + total, 0)
        since = np.zeros(len(rows), np.int64)
        if time_ms is None:
            self._aged[rows] = True
        else:
            since = self._hours.add(rows, count, total, quiet, time_ms)
            self._aged[rows] |= since >= WEEK_MS
        here = self._total[rows]
        # To `full` first; what grows beyond doubles.
        left = np.where(here < self.config.full, self.config.full - here, here)
        need = np.minimum(np.maximum(self.config.learn, here), left)
        due = self.grows(rows) & (self._pending_total[rows] >= need)
        miss = self.config.share_miss(here[due])
        self._fit(rows[due], miss)
        if time_ms is not None:
            self._hours.fit(rows[due], since[due], miss)

    def _fit(self, rows: Ints, miss: Floats) -> None:
        self._count[rows] += self._pending_count[rows]
        self._total[rows] += self._pending_total[rows]
        self._pending_count[rows] = self._pending_total[rows] = 0
        self._low[rows], self._high[rows] = clopper_pearson(
            self._count[rows], self._total[rows], miss
        )

    def reset(self, rows: Ints) -> None:
        """Forget the references of these rows."""
        fresh = RateReference(self.config, 1)
        for name in _COLUMNS:
            getattr(self, f"_{name}")[rows] = getattr(fresh, f"_{name}")[0]
        self._hours.reset(rows)

    def snapshot(self) -> Arrays:
        """Return copies of the whole state; `restore` brings it back bit for bit."""
        hours = {f"hours_{name}": value for name, value in self._hours.snapshot().items()}
        return {name: getattr(self, f"_{name}").copy() for name in _COLUMNS} | hours

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`."""
        for name in _COLUMNS:
            setattr(self, f"_{name}", arrays[name].copy())
        self._hours.restore(
            {n.removeprefix("hours_"): a for n, a in arrays.items() if n.startswith("hours_")}
        )


_COLUMNS = ("count", "total", "pending_count", "pending_total", "low", "high", "aged")
