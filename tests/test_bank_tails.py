"""Edges of both tails against dicts of buckets, packet by packet."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import bank_tails
from detectors.bank_packet import HistogramView
from detectors.bank_tails import TAIL_SHARE, TailEdges
from schemas.signal import INPUT_CLASSES, Signal

ROWS, LEARN = 4, 21
#: One that counts what lies above, and one below, for each class of input size.
SIGNALS = (Signal.SLOW_OUTPUT, Signal.SHORT_ANSWER)
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

    def __init__(self, signal: int) -> None:
        self.classed = signal == 1
        self.streams = [Plain(False, LEARN)]
        if self.classed:
            self.streams = [Plain(True, LEARN // 3) for _ in range(INPUT_CLASSES)]

    def count(self, buckets: dict[int, int]) -> tuple[int, int]:
        parts: list[dict[int, int]] = [{} for _ in self.streams]
        for bucket, n in buckets.items():
            group = min(max(bucket // 256, 0), 19) if self.classed else 0
            parts[group][bucket - 256 * group] = n
        counted = [s.count(part) for s, part in zip(self.streams, parts, strict=True) if part]
        return sum(k for k, _ in counted), sum(n for _, n in counted)

    @property
    def edges(self) -> list[float | None]:
        if self.classed:
            return [None if s.edge is None else 2 ** ((s.edge - 40) / 4) for s in self.streams]
        return [None if s.edge is None else 2 ** ((s.edge + 1) / 32) for s in self.streams]


def view(rows: list[dict[int, int]]) -> HistogramView:
    entries = [pair for row in rows for pair in row.items()]
    return HistogramView(
        np.array(list(accumulate(map(len, rows), initial=0)), np.int64),
        np.array([bucket for bucket, _ in entries], np.int64),
        np.array([count for _, count in entries], np.int64),
    )


@pytest.mark.parametrize("merged", [0, 10_000])
@settings(max_examples=100, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(0, 1), BATCH), max_size=40),
    resets=st.dictionaries(st.integers(0, 39), st.integers(0, ROWS - 1), max_size=3),
    cuts=st.sets(st.integers(0, 39), max_size=3),
)
def test_edges_against_plain_dicts(
    merged: int,
    batches: list[tuple[int, dict[int, dict[int, int]]]],
    resets: dict[int, int],
    cuts: set[int],
) -> None:
    """However often what was gathered is merged, and wherever it is cut and resumed."""
    before, bank_tails.LEAST_MERGED = bank_tails.LEAST_MERGED, merged
    try:
        edges = TailEdges(LEARN, 1, SIGNALS)
        edges.resize(ROWS)
        plain = {(row, s): Split(s) for row in range(ROWS) for s in (0, 1)}
        for at, (signal, batch) in enumerate(batches):
            if at in resets:
                edges.reset(np.array([resets[at]]))
                plain |= {(resets[at], s): Split(s) for s in (0, 1)}
            if at in cuts:
                arrays, edges = edges.snapshot(), TailEdges(LEARN, ROWS, SIGNALS)
                edges.restore(arrays)
            counted = edges.count(np.array(list(batch)), signal, view(list(batch.values())))
            expected = [plain[row, signal].count(buckets) for row, buckets in batch.items()]
            assert list(zip(*(c.tolist() for c in counted), strict=True)) == expected
        assert {key: edges.edges(*key) for key in plain} == {k: p.edges for k, p in plain.items()}
    finally:
        bank_tails.LEAST_MERGED = before


def test_what_was_gathered_is_let_go_when_it_is_settled() -> None:
    edges, rng = TailEdges(LEARN, 100, SIGNALS[:1]), np.random.default_rng(1)
    for _ in range(60):
        rows = [
            dict(zip(rng.integers(0, 900, 2).tolist(), [1, 1], strict=True)) for _ in range(100)
        ]
        edges.count(np.arange(100), 0, view(rows))
    assert all(edges.edges(row, 0) != [None] for row in range(100))
    assert len(edges.snapshot()["key"]) == 0
