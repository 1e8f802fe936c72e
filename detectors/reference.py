"""References learned from a stream itself: counts, and the bounds they bear.

The first `learn` events make the first reference. After that it doubles: when
as many quiet events have passed again as it rests on, they are taken in and the
bounds are fitted anew, up to `full` events (and the rest of the batch that
brings the last of them). The sizes at which that happens are fixed in advance,
and share one error probability between them (a union bound).

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

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class ReferenceConfig:
    """`miss` is the probability that a stream's bound is ever on the wrong side of its rate."""

    learn: int = 300
    full: int = 20_000
    miss: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.learn <= self.full:
            raise ValueError("learn must be positive and not larger than full")
        if not 0 < self.miss < 1:
            raise ValueError("miss must lie between 0 and 1")

    @property
    def fits(self) -> int:
        """How many times at most the bounds of a stream are fitted."""
        return 1 + int(np.ceil(np.log2(self.full / self.learn)))


class RateReference:
    """References for r streams side by side. Memory: six numbers per row."""

    def __init__(self, config: ReferenceConfig, rows: int) -> None:
        self.config = config
        self._count: Ints = np.zeros(rows, np.int64)
        self._total: Ints = np.zeros(rows, np.int64)
        self._pending_count: Ints = np.zeros(rows, np.int64)
        self._pending_total: Ints = np.zeros(rows, np.int64)
        self._low: Floats = np.zeros(rows)
        self._high: Floats = np.ones(rows)

    def resize(self, rows: int) -> None:
        """Add rows; the new ones have learned nothing."""
        fresh = RateReference(self.config, rows - len(self._count))
        for name, value in self.snapshot().items():
            setattr(self, f"_{name}", np.concatenate([value, getattr(fresh, f"_{name}")]))

    def ready(self, rows: Ints) -> Bools:
        """Return which rows have a reference, shape (m,)."""
        return self._total[rows] > 0

    def bounds(self, rows: Ints) -> tuple[Floats, Floats]:
        """Return lower and upper bounds of the rate; 0 and 1 before there is a reference."""
        return self._low[rows], self._high[rows]

    def counts(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the count and the total that the reference rests on."""
        return self._count[rows], self._total[rows]

    def learn(self, rows: Ints, count: Ints, total: Ints, quiet: Bools) -> None:
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
        here = self._total[rows]
        need = np.minimum(np.maximum(self.config.learn, here), self.config.full - here)
        room = self._total[rows] < self.config.full
        self._fit(rows[room & (self._pending_total[rows] >= need)])

    def _fit(self, rows: Ints) -> None:
        self._count[rows] += self._pending_count[rows]
        self._total[rows] += self._pending_total[rows]
        self._pending_count[rows] = self._pending_total[rows] = 0
        self._low[rows], self._high[rows] = clopper_pearson(
            self._count[rows], self._total[rows], self.config.miss / (2 * self.config.fits)
        )

    def reset(self, rows: Ints) -> None:
        """Forget the references of these rows."""
        for name, value in RateReference(self.config, 1).snapshot().items():
            getattr(self, f"_{name}")[rows] = value[0]

    def snapshot(self) -> Arrays:
        """Return copies of the whole state; `restore` brings it back bit for bit."""
        names = ("count", "total", "pending_count", "pending_total", "low", "high")
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`."""
        for name in self.snapshot():
            setattr(self, f"_{name}", arrays[name].copy())
