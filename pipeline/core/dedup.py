"""The window of event ids already stored, by which a gateway's repeats are dropped."""

from __future__ import annotations

from collections.abc import Iterable


class SeenIds:
    """The ids of the last `capacity` events stored from one partition.

    A pure function of what is stored: after a crash it is read back from the
    rows below the range in flight, so a replay drops the same repeats.
    Memory: `capacity` ids.
    """

    def __init__(self, capacity: int, ids: Iterable[str] = ()) -> None:
        self._capacity = capacity
        # A dict keeps the order of arrival and finds a member in one step.
        self._ids: dict[str, None] = {}
        for event_id in ids:
            self.add(event_id)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, event_id: str) -> bool:
        """Remember the id; return False when it was there already."""
        if event_id in self._ids:
            return False
        self._ids[event_id] = None
        if len(self._ids) > self._capacity:
            del self._ids[next(iter(self._ids))]
        return True
