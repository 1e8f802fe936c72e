"""What counts as slow: a quantile of each stream's first measurements, settled once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from detectors.bank_packet import HistogramView
from detectors.base import Arrays

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: What counts as slow is the reference's quantile at this level.
SLOW_QUANTILE = 0.9
#: The edge of a stream that has not seen enough. Buckets are 16 bits wide.
UNSETTLED = -(2**31)
#: Entries are kept under stream · `SPAN` + (bucket - `LOWEST`).
SPAN = 2**16
LOWEST = -(2**15)
#: Below so many, entries wait to be merged.
LEAST_MERGED = 16_384


class SlowEdges:
    """Edges of r rows × s measured signals.

    The edge is settled on events that the reference is not learned from:
    choosing a quantile and counting above it on the same sample would make the
    baseline look better than it is.

    Memory: two numbers per stream, and while it learns two for each bucket that
    it has seen: fewer than `learn`, and at most twice that before they are merged.
    """

    def __init__(self, learn: int, rows: int, signals: int) -> None:
        self._learn = learn
        self._edge: Ints = np.full((rows, signals), UNSETTLED)
        self._seen: Ints = np.zeros((rows, signals), np.int64)
        # Sorted and merged; then what has come since, in pieces. Either may still hold streams
        # that are settled by now.
        self._key: Ints = np.zeros(0, np.int64)
        self._count: Ints = np.zeros(0, np.int64)
        self._pieces: list[tuple[Ints, Ints]] = []
        self._waiting = 0

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`."""
        more = (rows - len(self._edge), self._edge.shape[1])
        self._edge = np.concatenate([self._edge, np.full(more, UNSETTLED)])
        self._seen = np.concatenate([self._seen, np.zeros(more, np.int64)])

    def edge(self, row: int, signal: int) -> int | None:
        """Return the bucket above which the stream's measurements are slow, None before it is."""
        edge = int(self._edge[row, signal])
        return None if edge == UNSETTLED else edge

    def count(self, rows: Ints, signal: int, histogram: HistogramView) -> tuple[Ints, Ints]:
        """Take in a batch: how many of how many were slow, shape (m,) both.

        Of streams that learn, this batch included, nothing is counted.
        """
        edge, sizes = self._edge[rows, signal], histogram.sizes()
        total = histogram.sum_rows(histogram.counts)
        learning = edge == UNSETTLED
        if learning.any():
            streams = rows * self._edge.shape[1] + signal
            entries = np.flatnonzero(np.repeat(learning, sizes))
            key = np.repeat(streams, sizes) * SPAN + (histogram.buckets - LOWEST)
            self._add(key[entries], histogram.counts[entries])
            self._seen[rows[learning], signal] += total[learning]
            due = learning & (self._seen[rows, signal] >= self._learn)
            self._settle(np.sort(streams[due]))
        slow = np.where(histogram.buckets > np.repeat(edge, sizes), histogram.counts, 0)
        return np.where(learning, 0, histogram.sum_rows(slow)), np.where(learning, 0, total)

    def _add(self, key: Ints, count: Ints) -> None:
        self._pieces.append((key, count))
        self._waiting += len(key)
        if self._waiting > max(len(self._key), LEAST_MERGED):
            self._merge()

    def _settle(self, streams: Ints) -> None:
        """Settle these streams, ascending: the lowest bucket that reaches the quantile."""
        if not len(streams):
            return
        key, count = self._entries_of(streams)
        at = np.searchsorted(streams, key // SPAN)
        total = np.bincount(at, count, minlength=len(streams))
        before = np.cumsum(count)
        passed = np.r_[0, np.cumsum(total)[:-1]]
        reached = np.flatnonzero(before - passed[at] >= SLOW_QUANTILE * total[at])
        settled, first = np.unique(at[reached], return_index=True)
        self._edge.ravel()[streams[settled]] = key[reached[first]] % SPAN + LOWEST

    def _entries_of(self, streams: Ints) -> tuple[Ints, Ints]:
        """All that was gathered for these streams (ascending), merged."""
        start = np.searchsorted(self._key, streams * SPAN)
        sizes = np.searchsorted(self._key, (streams + 1) * SPAN) - start
        offsets = np.cumsum(sizes) - sizes
        merged = np.repeat(start - offsets, sizes) + np.arange(sizes.sum())
        wanted = np.zeros(self._edge.size, np.bool_)
        wanted[streams] = True
        keys, counts = [self._key[merged]], [self._count[merged]]
        for key, count in self._pieces:
            mine = wanted[key // SPAN]
            keys.append(key[mine])
            counts.append(count[mine])
        return _merge(np.concatenate(keys), np.concatenate(counts))

    def _merge(self) -> None:
        """Merge the pieces, and drop the streams that need them no more."""
        key = np.concatenate([self._key, *(key for key, _ in self._pieces)])
        count = np.concatenate([self._count, *(count for _, count in self._pieces)])
        needed = (self._edge.ravel()[key // SPAN] == UNSETTLED) & (count > 0)
        self._key, self._count = _merge(key[needed], count[needed])
        self._pieces, self._waiting = [], 0

    def reset(self, rows: Ints) -> None:
        """Forget all about these rows."""
        # Settled for as long as it takes to drop what was gathered for them.
        self._edge[rows] = 0
        self._merge()
        self._edge[rows] = UNSETTLED
        self._seen[rows] = 0

    def snapshot(self) -> Arrays:
        """Return copies of the whole state."""
        self._merge()
        names = ("edge", "seen", "key", "count")
        return {name: getattr(self, f"_{name}").copy() for name in names}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`."""
        for name in self.snapshot():
            setattr(self, f"_{name}", arrays[name].copy())


def _merge(key: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Add up what has the same key; keys ascending."""
    order = np.argsort(key, kind="stable")
    key, count = key[order], count[order]
    if not len(key):
        return key, count
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    return key[starts], np.add.reduceat(count, starts)
