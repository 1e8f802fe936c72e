"""Families that few monitors have anything of: only these have a row.

Around a `RateFamilies` of a few signals. Its row 0 stays as it began and stands for every
monitor that has none of them, so that whoever asks need not know. Memory: 8 bytes for each
monitor, and a row for each that has been counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.bank_family import Batch, FamilyGroup, Lead, Readings
from detectors.bank_rates import RateFamilies, Tally
from detectors.base import Arrays, Floats, Ints
from detectors.recovery import RecoveryTest
from schemas.signal import COUNTED, FAMILY_OF, RARE, Family, Signal

Bools = npt.NDArray[np.bool_]

RARE_SIGNALS: tuple[Signal, ...] = tuple(s for s in Signal if s in RARE)
RARE_FAMILIES: frozenset[Family] = frozenset(FAMILY_OF[s] for s in RARE_SIGNALS)
#: Rows that are added at once.
_STEP = 16


class SparseTally(NamedTuple):
    """What was counted, of a batch of m monitors and of those g that have any of it."""

    #: Shape (m, s).
    whole: Tally
    batch: Batch
    own: Tally
    #: Where the g stand among the m.
    at: Ints


class SparseFamilies(FamilyGroup[SparseTally]):
    """The same as its `RateFamilies`, row for row, for monitors of which few are counted."""

    def __init__(self, rates: RateFamilies) -> None:
        self._rates = rates
        self.families: tuple[Family, ...] = rates.families
        #: The bank's row → ours, 0 for none.
        self._place: Ints = np.zeros(0, np.int64)
        self._free: list[int] = []
        self._rows = 1
        rates.resize(1)

    @property
    def rows(self) -> int:
        """How many monitors have a row."""
        return self._rows - 1 - len(self._free)

    def resize(self, rows: int) -> None:
        more = np.zeros(rows - len(self._place), np.int64)
        self._place = np.concatenate([self._place, more])

    # Counting and judging

    def judge(self, batch: Batch) -> SparseTally:
        counted = np.zeros(len(batch.rows), np.bool_)
        for signal in self._rates.signals:
            if (total := batch.view.columns.get(COUNTED[signal][1])) is not None:
                counted |= total > 0
        at = np.flatnonzero(counted)
        self._give_rows(batch.rows[at])
        own = Batch(
            self._place[batch.rows[at]],
            batch.view.take(at),
            batch.weight[at],
            batch.first_time_ms[at],
        )
        tally = self._rates.judge(own) if len(at) else Tally(*_zeros(0, self._width))
        whole = Tally(*_zeros(len(batch.rows), self._width))
        whole.counts[at], whole.totals[at] = tally.counts, tally.totals
        return SparseTally(whole, own, tally, at)

    @property
    def _width(self) -> int:
        return len(self._rates.signals)

    def _give_rows(self, rows: Ints) -> None:
        for row in rows[self._place[rows] == 0].tolist():
            if not self._free:
                self._rates.resize(self._rows + _STEP)
                self._free = list(range(self._rows + _STEP - 1, self._rows - 1, -1))
                self._rows += _STEP
            self._place[row] = self._free.pop()

    def learn(self, batch: Batch, tally: SparseTally, quiet: Bools) -> None:
        if len(tally.at):
            self._rates.learn(tally.batch, tally.own, quiet[tally.at])

    def learning(self, rows: Ints, family: int) -> Bools:
        return self._rates.learning(self._place[rows], family)

    def log_evidence(self, rows: Ints) -> Floats:
        return self._rates.log_evidence(self._place[rows])

    # Alarms

    def find_leads(self, rows: Ints, family: int, log_threshold: float) -> list[tuple[int, Lead]]:
        return self._rates.find_leads(self._place[rows], family, log_threshold)

    def start_recovery(self, row: int, lead: Lead) -> RecoveryTest:
        return self._rates.start_recovery(int(self._place[row]), lead)

    def has_recovered(
        self, test: RecoveryTest, signal: Signal, tally: SparseTally, at: int
    ) -> bool:
        return self._rates.has_recovered(test, signal, tally.whole, at)

    def clear(self, row: int, family: int) -> None:
        if self._place[row]:
            self._rates.clear(int(self._place[row]), family)

    def reset(self, rows: Ints) -> None:
        held = self._place[rows]
        held = held[held > 0]
        self._rates.reset(held)
        self._free += held.tolist()
        self._place[rows] = 0

    def outdate(self, version: int) -> None:
        self._rates.outdate(version)

    # Reporting

    def read(self, rows: Ints) -> Readings:
        return self._rates.read(self._place[rows])

    def snapshot(self) -> Iterator[tuple[str, Arrays]]:
        yield from self._rates.snapshot()
        free = np.array(self._free, np.int64)
        yield "sparse", {"place": self._place.copy(), "free": free, "rows": np.array([self._rows])}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[np.generic]]]) -> None:
        held = parts["sparse"]
        self._rates.restore(parts)
        self._place = held["place"].astype(np.int64)
        self._free = held["free"].astype(np.int64).tolist()
        self._rows = int(held["rows"].astype(np.int64)[0])


def _zeros(rows: int, width: int) -> tuple[Ints, Ints]:
    return np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
