"""From events to monitors: split a chunk by every grouping, under a cap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.core.chunk import CodedColumn, combine_columns
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
        return name_other(monitor.grouping)

    def admit_all(self, grouping: Grouping, values: Sequence[tuple[str, ...]]) -> list[Monitor]:
        """`admit` the grouping's monitor of each of these values in turn."""
        return [self.admit(Monitor(grouping, each)) for each in values]

    def values_of(self, grouping: Grouping) -> Set[tuple[str, ...]]:
        """Return the values of the grouping's monitors that are watched."""
        return self._admitted.get(grouping, frozenset())

    def count(self, grouping: Grouping) -> int:
        """Return how many monitors of the grouping are watched."""
        return len(self._admitted.get(grouping, ()))


def name_other(grouping: Grouping) -> Monitor:
    """Return the monitor under which those are counted for which there is no room."""
    return Monitor(grouping, (OTHER,) * len(grouping))


def split_events(
    dimensions: dict[Dimension, CodedColumn],
    groupings: Sequence[Grouping],
    registry: MonitorRegistry,
) -> list[Split]:
    """Split n events by each grouping; `dimensions` holds n values for each dimension."""
    return [_split_by(grouping, dimensions, registry) for grouping in groupings]


def _split_by(
    grouping: Grouping,
    dimensions: dict[Dimension, CodedColumn],
    registry: MonitorRegistry,
) -> Split:
    combined = combine_columns([dimensions[d] for d in grouping])
    index: dict[Monitor, int] = {}
    code_of = np.full(len(combined.values), -1, np.int64)
    some = [i for i, values in enumerate(combined.values) if any(values)]
    admitted = registry.admit_all(grouping, [combined.values[i] for i in some])
    for i, monitor in zip(some, admitted, strict=True):
        code_of[i] = index.setdefault(monitor, len(index))
    return Split(grouping, list(index), code_of[combined.codes])
