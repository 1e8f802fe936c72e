"""Edges of both tails against dicts of buckets, packet by packet."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bank_packet import HistogramView
from detectors.bank_tails import TAIL_SHARE, TailEdges
from schemas.signal import INPUT_CLASSES, Signal

ROWS, LEARN = 4, 21
#: A histogram without classes, and one with them, on which two signals count: what lies above and
#: what lies below.
PLAIN, CLASSED = (Signal.SLOW_OUTPUT,), (Signal.LONG_ANSWER, Signal.SHORT_ANSWER)
BUCKETS = st.dictionaries(st.integers(-320, 992), st.integers(0, 9), max_size=4)
BATCH = st.dictionaries(st.integers(0, ROWS - 1), BUCKETS, min_size=1)


class Plain:
    """One stream, as it would be written down."""

    def __init__(self, lower: bool, learn: int) -> None:
        self.lower = lower
        self.learn = learn
        self.edge: int | None = None
        self.seen: Counter[int] = Counter()

    def count(self, buckets: dict[int, int]) -> tuple[int, int]:
        if self.edge is None:
            self.seen.update(buckets)
            total = sum(self.seen.values())
            if total >= self.learn:
                # From the outside in: the first bucket with which it would be too many.
                inwards = sorted(self.seen.items(), reverse=not self.lower)
                passed = accumulate(n for _, n in inwards)
                self.edge = next(
                    b
                    for (b, _), so_far in zip(inwards, passed, strict=True)
                    if so_far > TAIL_SHARE * total
                )
            return 0, 0
        beyond = (n for b, n in buckets.items() if (b < self.edge if self.lower else b > self.edge))
        return sum(beyond), sum(buckets.values())


class Split:
    """One signal of one row: a stream, or one for each class of input size."""

    def __init__(self, signal: Signal) -> None:
        self.classed = signal in CLASSED
        self.streams = [Plain(False, LEARN)]
        if self.classed:
            lower = signal is Signal.SHORT_ANSWER
            self.streams = [Plain(lower, LEARN // 3) for _ in range(INPUT_CLASSES)]
        self.inner = 0 if signal is Signal.SHORT_ANSWER else 1

    def count(self, buckets: dict[int, int]) -> tuple[int, int]:
        parts: list[dict[int, int]] = [{} for _ in self.streams]
        for bucket, n in buckets.items():
            group = min(max(bucket // 256, 0), 19) if self.classed else 0
            parts[group][bucket - 256 * group] = n
        counted = [s.count(part) for s, part in zip(self.streams, parts, strict=True) if part]
        return sum(k for k, _ in counted), sum(n for _, n in counted)

    @property
    def edges(self) -> list[float | None]:
        low, scale = (-40, 4) if self.classed else (0, 32)
        return [
            None if s.edge is None else 2 ** ((s.edge + low + self.inner) / scale)
            for s in self.streams
        ]


def view(rows: list[dict[int, int]]) -> HistogramView:
    entries = [pair for row in rows for pair in row.items()]
    return HistogramView(
        np.array(list(accumulate(map(len, rows), initial=0)), np.int64),
        np.array([bucket for bucket, _ in entries], np.int64),
        np.array([count for _, count in entries], np.int64),
    )


@settings(max_examples=200, deadline=None)
@given(
    signals=st.sampled_from([PLAIN, CLASSED]),
    batches=st.lists(BATCH, max_size=40),
    resets=st.dictionaries(st.integers(0, 39), st.integers(0, ROWS - 1), max_size=3),
    cuts=st.sets(st.integers(0, 39), max_size=3),
)
def test_edges_against_plain_dicts(
    signals: tuple[Signal, ...],
    batches: list[dict[int, dict[int, int]]],
    resets: dict[int, int],
    cuts: set[int],
) -> None:
    """In whatever order a row's buckets come, and wherever it is cut and resumed."""
    edges = TailEdges(LEARN, 1, signals)
    edges.resize(ROWS)
    plain = {(row, s): Split(s) for row in range(ROWS) for s in signals}
    for at, batch in enumerate(batches):
        if at in resets:
            edges.reset(np.array([resets[at]]))
            plain |= {(resets[at], s): Split(s) for s in signals}
        if at in cuts:
            arrays, edges = edges.snapshot(), TailEdges(LEARN, ROWS, signals)
            edges.restore(arrays)
        beyond, known = edges.count(np.array(list(batch)), view(list(batch.values())))
        for signal, each in zip(signals, beyond, strict=True):
            expected = [plain[row, signal].count(buckets) for row, buckets in batch.items()]
            assert list(zip(each.tolist(), known.tolist(), strict=True)) == expected
    assert {key: edges.edges(*key) for key in plain} == {k: p.edges for k, p in plain.items()}


def feed(edges: TailEdges, batches: int, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        rows = [dict.fromkeys(rng.integers(0, 900, 2).tolist(), 1) for _ in range(100)]
        edges.count(np.arange(100), view(rows))


def test_what_was_gathered_is_let_go_when_it_is_settled() -> None:
    edges = TailEdges(LEARN, 100, PLAIN)
    feed(edges, 5)
    assert len(edges.snapshot()["values"]) > 900
    feed(edges, 55)
    assert all(edges.edges(row, PLAIN[0]) != [None] for row in range(100))
    assert len(edges.snapshot()["values"]) == 0


def test_where_something_lies_leaves_no_trace_in_a_snapshot() -> None:
    whole, resumed = TailEdges(LEARN, 100, CLASSED), TailEdges(LEARN, 100, CLASSED)
    for batch in range(30):
        for edges in (whole, resumed):
            feed(edges, 1, seed=batch)
            edges.reset(np.array([batch]))
        arrays, resumed = resumed.snapshot(), TailEdges(LEARN, 100, CLASSED)
        resumed.restore(arrays)
    one, other = whole.snapshot(), resumed.snapshot()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_who_needs_fewer_after_a_restart_settles_at_once() -> None:
    edges, fewer = TailEdges(LEARN, 100, PLAIN), TailEdges(5, 100, PLAIN)
    feed(edges, 4)
    assert edges.edges(0, PLAIN[0]) == [None]
    fewer.restore(edges.snapshot())
    assert fewer.edges(0, PLAIN[0]) != [None]


def test_signals_of_one_histogram_have_the_same_classes() -> None:
    with pytest.raises(ValueError, match="have classes, or have none"):
        TailEdges(LEARN, ROWS, (*PLAIN, *CLASSED))
