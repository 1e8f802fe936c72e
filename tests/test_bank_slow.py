"""Edges of what is slow against dicts of buckets, packet by packet."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import bank_slow
from detectors.bank_packet import HistogramView
from detectors.bank_slow import SLOW_QUANTILE, SlowEdges

ROWS, SIGNALS, LEARN = 4, 2, 20
BUCKETS = st.dictionaries(st.integers(-320, 992), st.integers(0, 9), max_size=4)
BATCH = st.dictionaries(st.integers(0, ROWS - 1), BUCKETS, min_size=1)


class Plain:
    """One stream, as it would be written down."""

    def __init__(self) -> None:
        self.edge: int | None = None
        self.seen: Counter[int] = Counter()

    def count(self, buckets: dict[int, int]) -> tuple[int, int]:
        if self.edge is None:
            self.seen.update(buckets)
            total = sum(self.seen.values())
            if total >= LEARN:
                reached = zip(
                    accumulate(n for _, n in sorted(self.seen.items())),
                    sorted(self.seen),
                    strict=True,
                )
                self.edge = next(b for passed, b in reached if passed >= SLOW_QUANTILE * total)
            return 0, 0
        return sum(n for b, n in buckets.items() if b > self.edge), sum(buckets.values())


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
    batches=st.lists(st.tuples(st.integers(0, SIGNALS - 1), BATCH), max_size=40),
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
    before, bank_slow.LEAST_MERGED = bank_slow.LEAST_MERGED, merged
    try:
        edges = SlowEdges(LEARN, 1, SIGNALS)
        edges.resize(ROWS)
        plain = {(row, signal): Plain() for row in range(ROWS) for signal in range(SIGNALS)}
        for at, (signal, batch) in enumerate(batches):
            if at in resets:
                edges.reset(np.array([resets[at]]))
                plain |= {(resets[at], s): Plain() for s in range(SIGNALS)}
            if at in cuts:
                arrays, edges = edges.snapshot(), SlowEdges(LEARN, ROWS, SIGNALS)
                edges.restore(arrays)
            counted = edges.count(np.array(list(batch)), signal, view(list(batch.values())))
            expected = [plain[row, signal].count(buckets) for row, buckets in batch.items()]
            assert list(zip(*(c.tolist() for c in counted), strict=True)) == expected
        assert {key: edges.edge(*key) for key in plain} == {k: p.edge for k, p in plain.items()}
    finally:
        bank_slow.LEAST_MERGED = before


def test_what_was_gathered_is_let_go_when_it_is_settled() -> None:
    edges, rng = SlowEdges(LEARN, 100, 1), np.random.default_rng(1)
    for _ in range(60):
        rows = [
            dict(zip(rng.integers(0, 900, 2).tolist(), [1, 1], strict=True)) for _ in range(100)
        ]
        edges.count(np.arange(100), 0, view(rows))
    assert all(edges.edge(row, 0) is not None for row in range(100))
    assert len(edges.snapshot()["key"]) == 0
