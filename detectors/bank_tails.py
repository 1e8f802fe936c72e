"""What counts as slow, long, short or dear: a quantile of each stream's first measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detectors.bank_packet import HistogramView
from detectors.base import Arrays
from schemas.signal import CLASS_SPAN, CLASSED, INPUT_CLASSES, LOWER_TAIL, LOWEST_COARSE, Signal

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: So many of the first measurements at most lie beyond their edge.
TAIL_SHARE = 0.1
#: A class needs this part of what a signal without classes needs: the reference that is learned
#: behind it says how many lie beyond, so the edge has to be near the quantile and no more.
CLASS_PART = 3
#: The edge of a stream that has not seen enough. Buckets are 16 bits wide.
UNSETTLED = -(2**31)
#: Entries are kept under stream · `SPAN` + (bucket - `LOWEST`).
SPAN = 2**16
LOWEST = -(2**15)
#: Below so many, entries wait to be merged.
LEAST_MERGED = 16_384


class TailEdges:
    """Edges of r rows × s measured signals, and of each class of input size where it has some.

    Beyond an edge is above it, or below it for a signal of a lower tail; what lies in the
    edge's own bucket does not count. The edge is settled once, on events that the
    reference is not learned from: choosing a quantile and counting beyond it on the same
    sample would make the baseline look better than it is.

    Memory: eight bytes per stream, and while it learns two numbers for each bucket that
    it has seen: fewer than `learn`, and at most twice that before they are merged.
    """

    def __init__(self, learn: int, rows: int, signals: Sequence[Signal]) -> None:
        self._signals = tuple(signals)
        # A stream for each class; all of a signal lie side by side.
        sizes = [INPUT_CLASSES if s in CLASSED else 1 for s in signals]
        self._first = np.cumsum([0, *sizes])
        self._lower: Bools = np.repeat([s in LOWER_TAIL for s in signals], sizes)
        each = [max(learn // CLASS_PART, 1) if s in CLASSED else learn for s in signals]
        self._learn: Ints = np.repeat(each, sizes)
        self._edge = np.full((rows, len(self._lower)), UNSETTLED, np.int32)
        self._seen = np.zeros((rows, len(self._lower)), np.int32)
        # Sorted and merged; then what has come since, in pieces. Either may still hold streams
        # that are settled by now.
        self._key: Ints = np.zeros(0, np.int64)
        self._count: Ints = np.zeros(0, np.int64)
        self._pieces: list[tuple[Ints, Ints]] = []
        self._waiting = 0

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`."""
        more = (rows - len(self._edge), self._edge.shape[1])
        self._edge = np.concatenate([self._edge, np.full(more, UNSETTLED, np.int32)])
        self._seen = np.concatenate([self._seen, np.zeros(more, np.int32)])

    def edges(self, row: int, signal: int) -> list[float | None]:
        """Return the value beyond which each class counts, None before it is settled."""
        found = self._edge[row, self._first[signal] : self._first[signal + 1]].tolist()
        named = self._signals[signal]
        # What lies in the edge's own bucket does not count.
        inner = 0 if named in LOWER_TAIL else 1
        low, scale = (LOWEST_COARSE, 4) if named in CLASSED else (0, 32)
        return [None if e == UNSETTLED else float(2 ** ((e + low + inner) / scale)) for e in found]

    def count(self, rows: Ints, signal: int, histogram: HistogramView) -> tuple[Ints, Ints]:
        """Take in a batch: how many of how many lay beyond the edge, shape (m,) both.

        Of streams that learn, this batch included, nothing is counted.
        """
        stream, bucket = self._locate(rows, signal, histogram)
        edge = self._edge.ravel()[stream]
        learning = edge == UNSETTLED
        known = np.where(learning, 0, histogram.counts)
        if learning.any():
            self._gather(stream[learning], bucket[learning], histogram.counts[learning])
        compare = np.less if self._signals[signal] in LOWER_TAIL else np.greater
        beyond = histogram.sum_rows(np.where(compare(bucket, edge), known, 0))
        return beyond, histogram.sum_rows(known)

    def _locate(self, rows: Ints, signal: int, histogram: HistogramView) -> tuple[Ints, Ints]:
        """The stream of each entry of the histogram, and its bucket there."""
        base = rows * self._edge.shape[1] + self._first[signal]
        stream, bucket = np.repeat(base, histogram.sizes()), histogram.buckets
        if self._signals[signal] not in CLASSED:
            return stream, bucket
        # Whatever another program wrote: a class that there is not counts as the nearest.
        group = np.clip(bucket // CLASS_SPAN, 0, INPUT_CLASSES - 1)
        return stream + group, bucket - group * CLASS_SPAN

    def _gather(self, stream: Ints, bucket: Ints, count: Ints) -> None:
        self._add(stream * SPAN + (bucket - LOWEST), count)
        seen, learn = self._seen.ravel(), self._learn[stream % len(self._learn)]
        np.add.at(seen, stream, np.minimum(count, learn).astype(np.int32))
        self._settle(np.unique(stream[seen[stream] >= learn]))

    def _add(self, key: Ints, count: Ints) -> None:
        self._pieces.append((key, count))
        self._waiting += len(key)
        if self._waiting > max(len(self._key), LEAST_MERGED):
            self._merge()

    def _settle(self, streams: Ints) -> None:
        """Settle these streams, ascending, so that at most `TAIL_SHARE` lie beyond the edge."""
        if not len(streams):
            return
        key, count = self._entries_of(streams)
        at = np.searchsorted(streams, key // SPAN)
        total = np.bincount(at, count, minlength=len(streams))
        before = np.cumsum(count)
        passed = np.r_[0, np.cumsum(total)[:-1]]
        up_to, total = before - passed[at], total[at]
        lower = self._lower[streams[at] % len(self._lower)]
        reached = np.flatnonzero(
            np.where(lower, up_to > TAIL_SHARE * total, up_to >= (1 - TAIL_SHARE) * total)
        )
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
