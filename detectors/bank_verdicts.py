"""Verdicts as columns: a minute of five thousand monitors is no pile of objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.alarm import Rate, State, Verdict
from schemas.monitor import Monitor, grouping_name
from schemas.signal import Family, Signal

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: The states by their code in `VerdictTable.state`.
STATES: tuple[State, ...] = tuple(State)


class VerdictTable(NamedTuple):
    """Verdicts on s signals of g monitors; arrays of shape (g, s) unless it says otherwise."""

    monitors: list[Monitor]
    families: tuple[Family, ...]
    signals: tuple[Signal, ...]
    #: That of each signal's family.
    log_thresholds: tuple[float, ...]
    #: Shape (g,).
    time_ms: Ints
    #: Where this is False there is no verdict, and the other arrays mean nothing.
    ready: Bools
    #: Index into `STATES`.
    state: Ints
    log_evidence: Floats
    baseline_count: Ints
    baseline_total: Ints
    baseline_low: Floats
    baseline_high: Floats
    current_count: Ints
    current_total: Ints
    change_time_ms: Ints
    #: Which detector says so, where it is not the bank's own; it gives no evidence.
    detector: str = ""

    def verdicts(self) -> list[Verdict]:
        """Return the verdicts one by one, signal by signal."""
        return [
            self._verdict(row, signal)
            for signal in range(len(self.signals))
            for row in np.flatnonzero(self.ready[:, signal]).tolist()
        ]

    def _verdict(self, row: int, signal: int) -> Verdict:
        at = (row, signal)
        monitor = self.monitors[row]
        return Verdict(
            time_ms=int(self.time_ms[row]),
            grouping=grouping_name(monitor.grouping),
            monitor=monitor.labels(),
            family=self.families[signal],
            signal=self.signals[signal],
            state=STATES[self.state[at]],
            log_evidence=float(self.log_evidence[at]),
            log_threshold=self.log_thresholds[signal],
            baseline=Rate(int(self.baseline_count[at]), int(self.baseline_total[at])),
            baseline_low=float(self.baseline_low[at]),
            baseline_high=float(self.baseline_high[at]),
            current=Rate(int(self.current_count[at]), int(self.current_total[at])),
            change_time_ms=int(self.change_time_ms[at]),
            detector=self.detector,
        )
