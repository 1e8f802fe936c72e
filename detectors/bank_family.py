"""What the bank asks of the detectors of a family, whatever they look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from detectors.bank_packet import PacketView
from detectors.base import Arrays, Floats, Ints
from detectors.recovery import RecoveryTest, ShiftRecovery
from schemas.alarm import Direction, Rate
from schemas.signal import Family, Signal

Bools = npt.NDArray[np.bool_]
#: The test that clears an alarm. It comes back to the group that made it.
Recovery = RecoveryTest | ShiftRecovery
#: What a group made of a batch, and wants back when it learns from it.
Tally = TypeVar("Tally")


class Batch(NamedTuple):
    """What a packet says about m monitors, and the rows that are theirs in the bank."""

    rows: Ints
    view: PacketView
    #: Time since each monitor's last update in units of the promise, shape (m,).
    weight: Floats
    first_time_ms: Ints


class Lead(NamedTuple):
    """A change that matters, as an alarm tells it: the signal that moved most, and how."""

    signal: Signal
    direction: Direction
    baseline: Rate
    current: Rate
    change_time_ms: int
    #: See `Alarm`.
    edge: float | None
    #: Where a mean went, in standard deviations; empty for a rate.
    shift: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()


class Readings(NamedTuple):
    """Where s signals of g monitors stand: `VerdictTable` without what the bank knows."""

    families: tuple[Family, ...]
    signals: tuple[Signal, ...]
    ready: Bools
    baseline_count: Ints
    baseline_total: Ints
    baseline_low: Floats
    baseline_high: Floats
    current_count: Ints
    current_total: Ints
    change_time_ms: Ints


class FamilyGroup(Protocol[Tally]):
    """The detectors of f families that look at the same kind of thing, for r monitors.

    A deterministic function of the calls, in order; `restore` of a `snapshot`
    goes on bit for bit. `family` is an index into `families`.
    """

    families: tuple[Family, ...]

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`."""

    def judge(self, batch: Batch) -> Tally:
        """Take in a batch by the references as they are."""

    def learn(self, batch: Batch, tally: Tally, quiet: Bools) -> None:
        """Let the references learn from the batch where it was quiet, shape (m, f)."""

    def learning(self, rows: Ints, family: int) -> Bools:
        """Which rows have a reference of this family that still learns, shape (m,)."""

    def log_evidence(self, rows: Ints) -> Floats:
        """Return the logarithm of each family's e-value, shape (m, f)."""

    def find_leads(self, rows: Ints, family: int, log_threshold: float) -> list[tuple[int, Lead]]:
        """Of rows over the threshold, those whose change matters: index into `rows`, and what."""

    def start_recovery(self, row: int, lead: Lead) -> Recovery:
        """Return the test that clears the alarm."""

    def has_recovered(self, test: Any, signal: Signal, tally: Tally, at: int) -> bool:
        """Go on with the test by row `at` of the batch; True when the alarm is over."""

    def clear(self, row: int, family: int) -> None:
        """Forget the evidence of one family of one row, and keep its reference."""

    def reset(self, rows: Ints) -> None:
        """Forget all about these rows."""

    def outdate(self, version: int) -> None:
        """What was taken against references older than this version counts no more."""

    def read(self, rows: Ints) -> Readings:
        """Return where the signals of these rows stand."""

    def snapshot(self) -> Iterator[tuple[str, Arrays]]:
        """Yield copies of the whole state, part by part."""

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[np.generic]]]) -> None:
        """Take on a state from `snapshot`; raises ValueError for one that does not fit."""
