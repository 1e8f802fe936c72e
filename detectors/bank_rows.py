"""Which monitor has which row of the bank's arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import numpy.typing as npt

from detectors.bank_packet import PacketView
from schemas.monitor import DIMENSIONS, Grouping, Monitor

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNKNOWN = -1
_COLUMN = {dimension: i for i, dimension in enumerate(DIMENSIONS)}


class MonitorRows:
    """Rows by monitor, and back. Memory: an entry per monitor; whoever adds one sees to the cap."""

    def __init__(self) -> None:
        self._rows: dict[Grouping, dict[tuple[str, ...], int]] = {}
        self._monitors: list[Monitor | None] = []
        self._free: list[int] = []
        # A number for each value of each dimension, 0 where the monitor has none.
        self._marks: Ints = np.zeros((0, len(DIMENSIONS)), np.int64)

    def __len__(self) -> int:
        return len(self._monitors) - len(self._free)

    def __iter__(self) -> Iterator[tuple[Monitor, int]]:
        for row, monitor in enumerate(self._monitors):
            if monitor is not None:
                yield monitor, row

    @property
    def capacity(self) -> int:
        """For how many monitors there are rows."""
        return len(self._monitors)

    @property
    def free(self) -> list[int]:
        """Rows without a monitor; the last is taken first."""
        return list(self._free)

    def monitor(self, row: int) -> Monitor:
        """Return the monitor of a row; raises LookupError for a row that has none."""
        monitor = self._monitors[row]
        if monitor is None:
            raise LookupError(f"row {row} has no monitor")
        return monitor

    def row(self, monitor: Monitor) -> int:
        """Return the monitor's row; raises KeyError when it has none."""
        return self._rows[monitor.grouping][monitor.values]

    def find(self, view: PacketView) -> Ints:
        """Return the rows of the packet's monitors, `UNKNOWN` for those that have none.

        Raises:
            ValueError: a monitor stands twice in the packet.
        """
        tables = [self._rows.get(grouping, {}) for grouping in view.groupings]
        found: list[int] = []
        # Monitors of a grouping stand together.
        ends = [*(np.flatnonzero(np.diff(view.grouping)) + 1).tolist(), len(view)]
        for end in ends:
            start = len(found)
            of_grouping = view.values[start:end]
            if of_grouping:
                table = tables[view.grouping[start]]
                found += map(table.get, of_grouping, repeat(UNKNOWN))
        rows = np.array(found, np.int64)
        _check_distinct(rows, view)
        return rows

    def grow(self, extra: int) -> None:
        """Add so many rows."""
        first = len(self._monitors)
        self._free[:0] = range(first + extra - 1, first - 1, -1)
        self._monitors += [None] * extra
        self._marks = np.concatenate([self._marks, np.zeros((extra, len(DIMENSIONS)), np.int64)])

    def add(self, monitor: Monitor) -> int:
        """Give the monitor a row that is free; raises IndexError when there is none."""
        row = self._free.pop()
        self._place(monitor, row)
        return row

    def _place(self, monitor: Monitor, row: int) -> None:
        self._rows.setdefault(monitor.grouping, {})[monitor.values] = row
        self._monitors[row] = monitor
        for dimension, value in zip(*monitor, strict=True):
            self._marks[row, _COLUMN[dimension]] = _mark(value)

    def remove(self, rows: Ints) -> None:
        """Take the rows from their monitors."""
        for row in rows.tolist():
            grouping, values = self.monitor(row)
            del self._rows[grouping][values]
            if not self._rows[grouping]:
                del self._rows[grouping]
            self._monitors[row] = None
            self._free.append(row)
        self._marks[rows] = 0

    def restore(self, capacity: int, free: list[int], monitors: list[tuple[Monitor, int]]) -> None:
        """Take on what `capacity`, `free` and iterating gave, when this is still empty."""
        self.grow(capacity)
        self._free = list(free)
        for monitor, row in monitors:
            self._place(monitor, row)

    def overlap(self, rows: Ints, other: int) -> Bools:
        """Which rows could share a request with row `other`: they differ in no dimension of both.

        By 64-bit hashes: two in 10^19 pairs of values are taken for one.
        """
        marks, others = self._marks[rows], self._marks[other]
        same: Bools = ((marks == others) | (marks == 0) | (others == 0)).all(axis=1)
        return same


def _mark(value: str) -> int:
    digest = hashlib.blake2b(value.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _check_distinct(rows: Ints, view: PacketView) -> None:
    known = rows[rows != UNKNOWN]
    new = np.flatnonzero(rows == UNKNOWN).tolist()
    grouping = view.grouping.tolist()
    names = {(view.groupings[grouping[i]], view.values[i]) for i in new}
    if np.bincount(known, minlength=1).max() > 1 or len(names) < len(new):
        raise ValueError("a monitor stands twice in the packet")
