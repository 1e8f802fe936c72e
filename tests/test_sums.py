"""Group sums against loops over dicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.sums import count_maps, count_pairs, sum_by_key

KEYS = st.integers(-5, 5)
LARGE = st.integers(-(2**40), 2**40)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, LARGE, LARGE), max_size=40))
def test_sum_by_key(rows: list[tuple[int, int, int]]) -> None:
    expected: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for key, a, b in rows:
        expected[key][0] += a
        expected[key][1] += b
    table = np.array(rows, np.int64).reshape(-1, 3)
    keys, sums = sum_by_key(table[:, 0], table[:, 1:])
    assert keys.tolist() == sorted(expected)
    assert sums.shape == (len(expected), 2)
    assert dict(zip(keys.tolist(), sums.tolist(), strict=True)) == expected


def test_sums_are_exact_where_floats_are_not() -> None:
    _, sums = sum_by_key(np.zeros(3, np.int64), np.array([[2**60], [1], [1]], np.int64))
    assert sums.tolist() == [[2**60 + 2]]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(KEYS, st.integers(-400, 400)), max_size=40),
    st.sets(KEYS, max_size=5),
)
def test_count_pairs(rows: list[tuple[int, int]], silent: set[int]) -> None:
    keys = sorted({key for key, _ in rows} | silent)
    expected = Counter(rows)
    table = np.array(rows, np.int64).reshape(-1, 2)
    row = np.searchsorted(np.array(keys, np.int64), table[:, 0])
    offsets, items, counts = count_pairs(row, table[:, 1], len(keys))
    assert offsets.dtype == np.int32
    assert len(offsets) == len(keys) + 1
    found = {}
    for key, (start, end) in zip(keys, pairwise(offsets), strict=True):
        here = items[start:end].tolist()
        assert here == sorted(set(here))
        found |= {(key, i): n for i, n in zip(here, counts[start:end].tolist(), strict=True)}
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.integers(1, 4),
    st.sampled_from([1, 10_000]),
)
def test_an_item_may_stand_in_several_rows(items: list[int], rows: int, spread: int) -> None:
    """Near items are counted in place and far ones sorted; it makes no difference."""
    item = np.array(items, np.int64) * spread
    row = np.stack([np.arange(len(items)) % rows, np.full(len(items), rows - 1)])
    offsets, found, counts = count_pairs(row, item, rows)
    expected = Counter(
        (r, i) for each in row.tolist() for r, i in zip(each, item.tolist(), strict=True)
    )
    assert (
        offsets.tolist()
        == np.searchsorted(sorted(r for r, _ in expected), range(rows + 1)).tolist()
    )
    in_row = np.repeat(np.arange(rows), np.diff(offsets)).tolist()
    pairs = list(zip(in_row, found.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert [expected[pair] for pair in pairs] == counts.tolist()


def test_a_map_column_holds_the_same_counts() -> None:
    row, item = np.array([1, 1, 0]), np.array([7, 7, -2])
    column = count_maps(row, item, 2)
    assert column.offsets.tolist() == [0, 1, 2]
    assert np.asarray(column.keys).tolist() == [-2, 7]
    assert column.values.tolist() == [1, 2]
    assert column.values.dtype == np.uint64
