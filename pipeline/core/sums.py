"""Group sums over arrays, exact in integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.chunk import MapColumn

Ints = npt.NDArray[np.int64]


def sum_by_key(key: Ints, columns: Ints) -> tuple[Ints, Ints]:
    """Sum the rows of `columns` (n, c) that share a key (n,).

    Returns the g distinct keys in ascending order and the sums, shape (g, c).
    """
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(key) else order
    if not len(starts):
        return ordered, columns[:0]
    return ordered[starts], np.add.reduceat(columns[order], starts, axis=0)


def count_by_key(key: Ints, item: Ints, keys: Ints) -> tuple[npt.NDArray[np.int32], Ints, Ints]:
    """Count how often each item (n,) occurs under each key (n,).

    `keys` (g,) are the distinct keys, ascending; every key must be among them.
    Returns offsets (g + 1,), and items and counts such that those of
    ``keys[i]`` stand at ``offsets[i]:offsets[i+1]``, items ascending.
    """
    row = np.searchsorted(keys, key)
    low = int(item.min()) if len(item) else 0
    width = int(item.max()) - low + 1 if len(item) else 1
    pairs, counts = np.unique(row * width + (item - low), return_counts=True)
    offsets = np.searchsorted(pairs, np.arange(len(keys) + 1) * width).astype(np.int32)
    return offsets, pairs % width + low, counts.astype(np.int64)


def count_maps(key: Ints, item: Ints, keys: Ints) -> MapColumn:
    """`count_by_key` as a column of maps, item → count."""
    offsets, items, counts = count_by_key(key, item, keys)
    return MapColumn(offsets, items, counts.astype(np.uint64))
