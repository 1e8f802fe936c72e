"""The window of event ids already stored, by which a gateway's repeats are dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence


class SeenIds:
    """The ids of the last `capacity` events stored from one partition.

    A pure function of what is stored: after a crash it is read back from the
    rows below the range in flight, so a replay drops the same repeats.
    Memory: `capacity` ids, and for a moment those of the chunk in hand.
    """

    def __init__(self, capacity: int, ids: Iterable[str] = ()) -> None:
        self._capacity = capacity
        # Two structures, because a dict, which could be both, walks over all it has
        # forgotten whenever it is asked for its oldest: 60 µs an event at 100,000 ids.
        self._order: deque[str] = deque()
        self._ids: set[str] = set()
        self.add_all(list(ids))

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, event_id: str) -> bool:
        """Remember the id; return False when it was there already."""
        if event_id in self._ids:
            return False
        self._ids.add(event_id)
        self._order.append(event_id)
        self._forget_oldest()
        return True

    def add_all(self, event_ids: Sequence[str]) -> list[bool]:
        """`add` each in turn; the usual chunk, without a repeat, is taken in as a whole."""
        fresh = set(event_ids)
        if len(fresh) < len(event_ids) or not self._ids.isdisjoint(fresh):
            return [self.add(event_id) for event_id in event_ids]
        self._ids |= fresh
        self._order.extend(event_ids)
        self._forget_oldest()
        return [True] * len(event_ids)

    def _forget_oldest(self) -> None:
        while len(self._order) > self._capacity:
            self._ids.discard(self._order.popleft())
