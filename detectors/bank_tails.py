"""What counts as slow, long, short or dear: a quantile of each stream's first measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detectors.bank_packet import HistogramView
from detectors.bank_samples import FirstSamples, Sample
from detectors.base import Arrays
from schemas.signal import CLASS_SPAN, CLASSED, INPUT_CLASSES, LOWER_TAIL, LOWEST_COARSE, Signal

Ints = npt.NDArray[np.int64]

#: So many of the first measurements at most lie beyond their edge.
TAIL_SHARE = 0.1
#: A class needs this part of what a signal without classes needs: the reference that is learned
#: behind it says how many lie beyond, so the edge has to be near the quantile and no more.
CLASS_PART = 3
#: The edge of a stream that has not seen enough. Buckets are 16 bits wide.
UNSETTLED = -(2**31)
#: Buckets are told apart under number · `SPAN` + (bucket - `LOWEST`).
SPAN = 2**16
LOWEST = -(2**15)


class TailEdges:
    """Edges of r rows for the signals of one histogram, in each class of input size if it has some.

    Beyond an edge is above it, or below it for a signal of a lower tail; what lies in the
    edge's own bucket does not count. The edges of a stream (a row, or a class of one) are
    settled once, on events that the reference is not learned from: choosing a quantile and
    counting beyond it on the same sample would make the baseline look better than it is.

    Memory: four bytes per stream and signal, and while it learns what `FirstSamples` needs.
    """

    def __init__(self, learn: int, rows: int, signals: Sequence[Signal]) -> None:
        classed = {signal in CLASSED for signal in signals}
        if len(classed) != 1:
            raise ValueError("signals of one histogram have classes, or have none")
        self._signals = tuple(signals)
        self._classed = classed.pop()
        self._classes = INPUT_CLASSES if self._classed else 1
        enough = max(learn // CLASS_PART, 1) if self._classed else learn
        self._samples = FirstSamples(enough, rows * self._classes)
        #: Shape (signals, rows · classes).
        self._edge = np.full((len(signals), rows * self._classes), UNSETTLED, np.int32)

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`."""
        more = (len(self._signals), rows * self._classes - self._edge.shape[1])
        self._edge = np.concatenate([self._edge, np.full(more, UNSETTLED, np.int32)], axis=1)
        self._samples.resize(rows * self._classes)

    def edges(self, row: int, signal: Signal) -> list[float | None]:
        """Return the value beyond which each class counts, None before it is settled."""
        first = row * self._classes
        found = self._edge[self._signals.index(signal), first : first + self._classes].tolist()
        # What lies in the edge's own bucket does not count.
        inner = 0 if signal in LOWER_TAIL else 1
        low, scale = (LOWEST_COARSE, 4) if self._classed else (0, 32)
        return [None if e == UNSETTLED else float(2 ** ((e + low + inner) / scale)) for e in found]

    def count(self, rows: Ints, histogram: HistogramView) -> tuple[list[Ints], Ints]:
        """Take in a batch: for each signal how many lay beyond its edge, and of how many.

        Arrays of shape (m,). Of streams that learn, this batch included, nothing is counted.
        """
        stream, bucket = self._locate(rows, histogram)
        edges = self._edge[:, stream]
        # A stream's edges are settled all at once.
        learning = edges[0] == UNSETTLED
        known = histogram.counts
        if learning.any():
            known = np.where(learning, 0, known)
            at = np.flatnonzero(learning)
            self._settle(self._samples.add(stream[at], bucket[at], histogram.counts[at]))
        beyond = [
            histogram.sum_rows(known * (bucket < edge if signal in LOWER_TAIL else bucket > edge))
            for signal, edge in zip(self._signals, edges, strict=True)
        ]
        return beyond, histogram.sum_rows(known)

    def _locate(self, rows: Ints, histogram: HistogramView) -> tuple[Ints, Ints]:
        """The stream of each entry of the histogram, and its bucket there."""
        stream, bucket = np.repeat(rows * self._classes, histogram.sizes()), histogram.buckets
        if not self._classed:
            return stream, bucket
        # Whatever another program wrote: a class that there is not counts as the nearest.
        group = np.clip(bucket // CLASS_SPAN, 0, INPUT_CLASSES - 1)
        return stream + group, bucket - group * CLASS_SPAN

    def _settle(self, sample: Sample | None) -> None:
        """Settle these streams, so that at most `TAIL_SHARE` lie beyond the edge."""
        if sample is None:
            return
        key, count = _merge(sample.at * SPAN + (sample.values - LOWEST), sample.counts)
        at = key // SPAN
        total = np.bincount(at, count, minlength=len(sample.rows))
        before = np.cumsum(count)
        passed = np.r_[0, np.cumsum(total)[:-1]]
        up_to, total = before - passed[at], total[at]
        for edge, signal in zip(self._edge, self._signals, strict=True):
            lower = signal in LOWER_TAIL
            reached = np.flatnonzero(
                up_to > TAIL_SHARE * total if lower else up_to >= (1 - TAIL_SHARE) * total
            )
            settled, first = np.unique(at[reached], return_index=True)
            edge[sample.rows[settled]] = key[reached[first]] % SPAN + LOWEST

    def reset(self, rows: Ints) -> None:
        """Forget all about these rows."""
        streams = (rows[:, None] * self._classes + np.arange(self._classes)).ravel()
        self._edge[:, streams] = UNSETTLED
        self._samples.forget(streams)

    def snapshot(self) -> Arrays:
        """Return copies of the whole state."""
        return {"edge": self._edge.copy(), **self._samples.snapshot()}

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`."""
        self._edge = arrays["edge"].astype(np.int32)
        self._settle(self._samples.restore(arrays))


def _merge(key: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Add up what has the same key; keys ascending."""
    order = np.argsort(key, kind="stable")
    key, count = key[order], count[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    return key[starts], np.add.reduceat(count, starts)
