"""Planned changes: the rates from before one, kept until it is known what it did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from detectors.bank_family import Readings
from schemas.alarm import Rate
from schemas.signal import COUNTED, Family, Signal


class Change(NamedTuple):
    """One rate of one monitor, before a planned change and since."""

    row: int
    reset_id: str
    family: Family
    signal: Signal
    before: Rate
    after: Rate


class Announced(msgspec.Struct):
    """What was normal for a monitor before the change, as far as the new normal is not known."""

    reset_id: str
    before: dict[Signal, Rate]


class PlannedChanges:
    """Rows that learn anew. Memory: the counted rates of each, until they are learned.

    Of signals that count what lies above a quantile nothing is kept: the quantile is
    settled anew too.
    """

    def __init__(self) -> None:
        self.announced: dict[int, Announced] = {}

    def announce(self, reset_id: str, rows: Iterable[int], readings: Readings) -> None:
        """Keep what is normal for these rows; `readings` runs parallel to them.

        What an earlier change has left unknown stays: the rates before *that* are the last
        that were known.
        """
        for at, row in enumerate(rows):
            earlier = self.announced.get(row)
            before = {signal: rate for signal, _, rate in _rates(readings, at)}
            before |= {} if earlier is None else earlier.before
            if before:
                self.announced[row] = Announced(reset_id, before)

    def settle(self, rows: Sequence[int], groups: Sequence[Readings]) -> list[Change]:
        """Return what is known by now of these rows, once; of every group its readings of them."""
        changes = []
        for at, row in enumerate(rows):
            each = self.announced[row]
            for signal, family, after in (rate for g in groups for rate in _rates(g, at)):
                if (before := each.before.pop(signal, None)) is not None:
                    changes.append(Change(row, each.reset_id, family, signal, before, after))
            if not each.before:
                del self.announced[row]
        return changes

    def waiting(self, rows: Iterable[int]) -> list[int]:
        """Return which of these rows have a change whose effect is not known yet."""
        return [row for row in rows if row in self.announced] if self.announced else []

    def forget(self, rows: Iterable[int]) -> None:
        for row in rows:
            self.announced.pop(row, None)


def _rates(readings: Readings, at: int) -> list[tuple[Signal, Family, Rate]]:
    """The counted rates that one row has a reference of."""
    ready = np.flatnonzero(readings.ready[at]).tolist()
    return [
        (
            readings.signals[i],
            readings.families[i],
            Rate(int(readings.baseline_count[at, i]), int(readings.baseline_total[at, i])),
        )
        for i in ready
        if readings.signals[i] in COUNTED
    ]
