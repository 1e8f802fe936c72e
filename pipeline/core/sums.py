"""Group sums over arrays, exact in integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.chunk import MapColumn

Ints = npt.NDArray[np.int64]
Offsets = npt.NDArray[np.int32]

#: Counting into one place for every pair that could be is faster than sorting the pairs that
#: are, as long as there are no more than so many places for each.
PLACES_PER_PAIR = 16


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


def count_pairs(row: Ints, item: Ints, rows: int) -> tuple[Offsets, Ints, Ints]:
    """Count how often each item occurs in each row, rows being 0 to `rows` - 1.

    `row` and `item` have shape (n,); or (s, n) and (n,), and each item stands in
    s rows. Returns offsets (rows + 1,), and items and counts such that those of
    row i stand at ``offsets[i]:offsets[i+1]``, items ascending.
    """
    low = int(item.min()) if len(item) else 0
    width = int(item.max()) - low + 1 if len(item) else 1
    if rows * width > PLACES_PER_PAIR * row.size:
        return _count_few(row, item - low, (rows, width), low)
    places = np.bincount((row * width + (item - low)).ravel(), minlength=rows * width)
    pairs = np.flatnonzero(places)
    in_row, at = np.divmod(pairs, width)
    return _offsets(in_row, rows), at + low, places[pairs]


def _count_few(
    row: Ints, item: Ints, shape: tuple[int, int], low: int
) -> tuple[Offsets, Ints, Ints]:
    # As in `detectors.bounds`: slow to load.
    from scipy.sparse import coo_array

    # Handed over by rising item, the pairs need only be dealt out to their rows.
    order = np.argsort(item.astype(np.min_scalar_type(shape[1])), kind="stable")
    rows = row[..., order].T.ravel()
    items = np.repeat(item[order], row.size // max(len(item), 1))
    counted = coo_array((np.ones(row.size, np.int64), (rows, items)), shape=shape).tocsr()
    counted.sum_duplicates()
    found = counted.indices.astype(np.int64) + low
    return counted.indptr.astype(np.int32), found, counted.data


def _offsets(row: Ints, rows: int) -> Offsets:
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=rows), out=offsets[1:])
    return offsets


def count_maps(row: Ints, item: Ints, rows: int) -> MapColumn:
    """`count_pairs` as a column of maps, item → count."""
    offsets, items, counts = count_pairs(row, item, rows)
    return MapColumn(offsets, items, counts.astype(np.uint64))
