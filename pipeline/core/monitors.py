"""From events to monitors: split a chunk by every grouping, under a cap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from schemas.monitor import OTHER, Dimension, Grouping, Monitor

Codes = npt.NDArray[np.int64]


class Split(Struct, frozen=True):
    """A chunk of n events split by one grouping into g monitors.

    `code` (shape (n,)) is the index of each event's monitor, or -1 for an event
    that has none of the grouping's dimensions.
    """

    grouping: Grouping
    monitors: list[Monitor]
    code: Codes


class MonitorRegistry:
    """Which monitors are watched. What is over a grouping's cap is counted under `OTHER`.

    Seeded from what is stored, so that a replay after a crash admits the same
    monitors. Memory: at most `cap` monitors per grouping.
    """

    def __init__(self, cap: int, known: Iterable[Monitor] = ()) -> None:
        self._cap = cap
        self._admitted: dict[Grouping, set[tuple[str, ...]]] = {}
        for monitor in known:
            self.admit(monitor)

    def admit(self, monitor: Monitor) -> Monitor:
        """Return the monitor itself, or its grouping's `OTHER` when there is no room for it."""
        admitted = self._admitted.setdefault(monitor.grouping, set())
        if monitor.values in admitted:
            return monitor
        if len(admitted) < self._cap:
            admitted.add(monitor.values)
            return monitor
        return Monitor(monitor.grouping, (OTHER,) * len(monitor.grouping))

    def count(self, grouping: Grouping) -> int:
        """Return how many monitors of the grouping are watched."""
        return len(self._admitted.get(grouping, ()))


def split_events(
    dimensions: dict[Dimension, list[str]],
    groupings: Sequence[Grouping],
    registry: MonitorRegistry,
) -> list[Split]:
    """Split n events by each grouping; `dimensions` holds n values for each dimension."""
    needed = {d for grouping in groupings for d in grouping}
    coded = {d: _factorize(dimensions[d]) for d in needed}
    return [_split_by(grouping, coded, registry) for grouping in groupings]


def _factorize(values: list[str]) -> tuple[Codes, list[str]]:
    table: dict[str, int] = {}
    codes = np.fromiter((table.setdefault(v, len(table)) for v in values), np.int64, len(values))
    return codes, list(table)


def _split_by(
    grouping: Grouping,
    coded: dict[Dimension, tuple[Codes, list[str]]],
    registry: MonitorRegistry,
) -> Split:
    combined = coded[grouping[0]][0]
    for dimension in grouping[1:]:
        codes, values = coded[dimension]
        combined = combined * len(values) + codes
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    index: dict[Monitor, int] = {}
    code_of = np.empty(len(first), np.int64)
    for i, event in enumerate(first):
        values_here = tuple(coded[d][1][coded[d][0][event]] for d in grouping)
        if any(values_here):
            monitor = registry.admit(Monitor(grouping, values_here))
            code_of[i] = index.setdefault(monitor, len(index))
        else:
            code_of[i] = -1
    return Split(grouping, list(index), code_of[inverse])
