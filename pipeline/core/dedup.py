"""The window of event ids already stored, by which a gateway's repeats are dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.int64]

#: What came since the window was last put in order is at most this share of it.
_RECENT_SHARE = 8


class Seen(Protocol):
    """`SeenIds`, or who stands for it."""

    def add_all(self, event_ids: Sequence[str]) -> list[bool]:
        """Remember each in turn; return which were new."""


class SeenIds:
    """The ids of the last `capacity` events stored from one partition.

    A pure function of what is stored: after a crash it is read back from the
    rows below the range in flight, so a replay drops the same repeats.

    Ids are known by Python's 64-bit hash: in a full window of 100,000 one new id in
    10^14 is taken for a repeat. Memory: 16 bytes for each of `capacity` ids and 100 for
    an eighth of them, a quarter of what their texts would take; for a moment those of the
    chunk in hand.
    """

    def __init__(self, capacity: int, ids: Iterable[str] = ()) -> None:
        self._capacity = capacity
        #: The window itself, oldest first.
        self._order: Hashes = np.zeros(0, np.int64)
        # Where a hash is looked up first. Both may still hold some that are forgotten.
        self._sorted: Hashes = np.zeros(0, np.int64)
        self._recent: set[int] = set()
        self.add_all(list(ids))

    def __len__(self) -> int:
        return len(self._order)

    def add(self, event_id: str) -> bool:
        """Remember the id; return False when it was there already."""
        return self.add_all([event_id])[0]

    def add_all(self, event_ids: Sequence[str]) -> list[bool]:
        """`add` each in turn; the usual chunk, without a repeat, is taken in as a whole."""
        each = list(map(hash, event_ids))
        hashes, distinct = np.array(each, np.int64), set(each)
        repeated = len(distinct) < len(each) or not self._recent.isdisjoint(distinct)
        if not repeated and not self._is_among_sorted(hashes):
            self._remember(hashes, distinct)
            return [True] * len(each)
        new = self._find_new(each, hashes)
        kept = hashes[new]
        self._remember(kept, set(kept.tolist()))
        return new

    def _is_among_sorted(self, hashes: Hashes) -> bool:
        if not len(self._sorted):
            return False
        at = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        return bool((self._sorted[at] == hashes).any())

    def _find_new(self, each: Sequence[int], hashes: Hashes) -> list[bool]:
        """Go through a chunk that may hold repeats one by one."""
        # Where each of them stands in the window; what is new goes on from 0.
        at = np.flatnonzero(np.isin(self._order, hashes))
        place = dict(zip(self._order[at].tolist(), (at - len(self._order)).tolist(), strict=True))
        new, count = [], 0
        for one in each:
            known = place.get(one, -self._capacity - 1) >= count - self._capacity
            new.append(not known)
            if not known:
                place[one] = count
                count += 1
        return new

    def _remember(self, hashes: Hashes, distinct: set[int]) -> None:
        joined = np.concatenate([self._order, hashes])
        self._order = joined[max(0, len(joined) - self._capacity) :].copy()
        self._recent |= distinct
        if len(self._recent) * _RECENT_SHARE > self._capacity:
            self._sorted, self._recent = np.sort(self._order), set()
