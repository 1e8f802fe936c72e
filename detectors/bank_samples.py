"""The first measurements of many streams, each kept until there are enough of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.base import Arrays, Ints

Bools = npt.NDArray[np.bool_]

_NO_SLOT = -1
#: Room for fewer slots is not given back.
_LEAST_SLOTS = 64


class Sample(NamedTuple):
    """All measurements of g rows that have enough: `counts` of each value, in no order."""

    #: Distinct, shape (g,).
    rows: Ints
    #: Index into `rows` of each value.
    at: Ints
    values: Ints
    counts: Ints


class FirstSamples:
    """Measurements of r rows: 16-bit numbers, of each row until it has `enough`.

    Memory: twelve bytes per row, and two for each of `enough` measurements of a row that
    has some and not enough; at most four times as much after many rows had enough at once.
    """

    def __init__(self, enough: int, rows: int) -> None:
        self._enough = enough
        self._seen = np.zeros(rows, np.int32)
        #: Where the row's measurements lie, one behind the other.
        self._slot = np.full(rows, _NO_SLOT, np.int32)
        self._values = np.zeros((0, enough), np.int16)
        self._free = np.zeros(0, np.int32)
        #: Scratch.
        self._mark = np.zeros(rows, np.int32)

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`."""
        more = rows - len(self._seen)
        self._seen = np.concatenate([self._seen, np.zeros(more, np.int32)])
        self._slot = np.concatenate([self._slot, np.full(more, _NO_SLOT, np.int32)])
        self._mark = np.zeros(rows, np.int32)

    def add(self, rows: Ints, values: Ints, counts: Ints) -> Sample | None:
        """Take in `counts` of each value, arrays of shape (n,).

        Returns the rows that have enough by now; they are forgotten. Fastest where
        the entries of a row stand side by side.
        """
        starts = _runs(rows)
        if not self._are_distinct(rows[starts]):
            order = np.argsort(rows, kind="stable")
            rows, values, counts = rows[order], values[order], counts[order]
            starts = _runs(rows)
        if not len(rows):
            return None
        heads, added = rows[starts], np.add.reduceat(counts, starts)
        full = self._seen[heads] + added >= self._enough
        if not full.any():
            self._keep(heads, added, np.repeat(values, counts))
            return None
        mine = np.repeat(full, np.diff(np.append(starts, len(rows))))
        self._keep(heads[~full], added[~full], np.repeat(values[~mine], counts[~mine]))
        return self._take(heads[full], rows[mine], values[mine], counts[mine])

    def _are_distinct(self, rows: Ints) -> bool:
        number = np.arange(len(rows), dtype=np.int32)
        self._mark[rows] = number
        return bool((self._mark[rows] == number).all())

    def _keep(self, rows: Ints, added: Ints, values: Ints) -> None:
        """Put values behind those that are kept: `added` of each row, row after row."""
        self._give_slots(rows[self._slot[rows] == _NO_SLOT])
        begin = self._slot[rows].astype(np.int64) * self._enough + self._seen[rows]
        self._values.reshape(-1)[_spans(begin, added)] = values
        self._seen[rows] += added.astype(np.int32)

    def _take(self, rows: Ints, row: Ints, values: Ints, counts: Ints) -> Sample:
        """All that is kept of the rows, and what has come since; they are forgotten."""
        seen = self._seen[rows].astype(np.int64)
        begin = self._slot[rows].astype(np.int64) * self._enough
        kept = self._values.reshape(-1)[_spans(begin, seen)].astype(np.int64)
        self.forget(rows)
        order = np.argsort(rows)
        return Sample(
            rows,
            np.concatenate(
                [np.repeat(np.arange(len(rows)), seen), order[np.searchsorted(rows[order], row)]]
            ),
            np.concatenate([kept, values]),
            np.concatenate([np.ones(len(kept), np.int64), counts]),
        )

    def _give_slots(self, rows: Ints) -> None:
        missing = len(rows) - len(self._free)
        if missing > 0:
            self._grow(max(missing, len(self._values), _LEAST_SLOTS))
        rest = len(self._free) - len(rows)
        self._slot[rows], self._free = self._free[rest:], self._free[:rest]

    def _grow(self, more: int) -> None:
        capacity = len(self._values)
        # Not filled: what nobody writes to takes no memory.
        values = np.empty((capacity + more, self._enough), np.int16)
        values[:capacity] = self._values
        # The last is taken first: they are filled from the bottom.
        new = np.arange(capacity + more - 1, capacity - 1, -1, dtype=np.int32)
        self._values, self._free = values, np.concatenate([new, self._free])

    def forget(self, rows: Ints) -> None:
        """Forget these rows; they start anew."""
        slots = self._slot[rows]
        self._free = np.concatenate([self._free, slots[slots != _NO_SLOT]])
        self._slot[rows], self._seen[rows] = _NO_SLOT, 0
        used = len(self._values) - len(self._free)
        if 4 * used < len(self._values) and len(self._values) > _LEAST_SLOTS:
            self._shrink()

    def _shrink(self) -> None:
        rows = np.flatnonzero(self._slot != _NO_SLOT)
        self._values = self._values[self._slot[rows]]
        self._slot[rows] = np.arange(len(rows), dtype=np.int32)
        self._free = self._free[:0]

    def snapshot(self) -> Arrays:
        """Return copies of all that was kept."""
        rows = np.flatnonzero(self._seen)
        begin = self._slot[rows].astype(np.int64) * self._enough
        kept = _spans(begin, self._seen[rows].astype(np.int64))
        return {"seen": self._seen.copy(), "values": self._values.reshape(-1)[kept]}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Sample | None:
        """Take on a state from `snapshot`; returns what is enough, where that was more."""
        seen = arrays["seen"].astype(np.int64)
        values = arrays["values"].astype(np.int64)
        self.__init__(self._enough, len(seen))  # type: ignore[misc]
        return self.add(np.repeat(np.arange(len(seen)), seen), values, np.ones_like(values))


def _runs(rows: Ints) -> Ints:
    """Where a run of the same row begins."""
    return np.flatnonzero(np.r_[len(rows) > 0, rows[1:] != rows[:-1]][: len(rows)])


def _spans(begin: Ints, sizes: Ints) -> Ints:
    """The places ``begin[i]`` to ``begin[i] + sizes[i]``, one span behind the other."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    places: Ints = np.arange(total) + np.repeat(begin - (ends - sizes), sizes)
    return places
