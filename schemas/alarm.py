"""Verdicts and alarms: what a detector says, and what it says when someone should hear it."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct

from schemas.signal import Family, Signal


class State(StrEnum):
    """Where a signal of a monitor stands."""

    QUIET = "quiet"
    #: Evidence over the threshold, but the change is too small to matter.
    IMMATERIAL = "immaterial"
    ALARMED = "alarmed"


class Direction(StrEnum):
    RISE = "rise"
    FALL = "fall"


class Transition(StrEnum):
    """What an alarm message announces."""

    RAISED = "raised"
    CLEARED = "cleared"


class Rate(Struct, frozen=True):
    """`count` of `total` events."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else 0.0


class Verdict(Struct, frozen=True, kw_only=True):
    """The state of one signal of one monitor at the end of one minute."""

    time_ms: int
    grouping: str
    monitor: dict[str, str]
    family: Family
    signal: Signal
    state: State
    #: Natural logarithm of the family's e-value and of the threshold it is held to.
    log_evidence: float
    log_threshold: float
    baseline: Rate
    #: Confidence bounds of the baseline rate.
    baseline_low: float
    baseline_high: float
    #: Since the estimated change point.
    current: Rate
    change_time_ms: int
    #: See `Alarm`.
    detector: str = ""


class Alarm(Struct, frozen=True, kw_only=True):
    """One monitor's family crossed its threshold, or came back.

    `alarm_id` is the same for the raise and its clear, and for every replay.
    """

    alarm_id: str
    transition: Transition
    #: Position in the input of the last event before the alarm.
    event_index: int
    #: Event time of that event.
    time_ms: int
    grouping: str
    monitor: dict[str, str]
    family: Family
    #: The signal of the family that moved most.
    signal: Signal
    direction: Direction
    e_value: float
    threshold: float
    baseline: Rate
    current: Rate
    change_time_ms: int
    #: For a signal of `MEASURED`, the quantile beyond which it counts, in the unit of its
    #: histogram; beyond is below for one of `LOWER_TAIL`.
    edge: float | None = None
    #: For one of `CLASSED`, the same for each class of input size; negative where it is not known.
    edges: tuple[float, ...] = ()
    #: For a fingerprint, where the mean went, in standard deviations of each direction. Its
    #: rates count answers that lie further that way than one in ten did before.
    shift: tuple[float, ...] = ()
    #: Why it cleared: ``recovered``, ``no_traffic``, or ``planned`` (see `schemas.control`);
    #: empty for a raise.
    clear_reason: str = ""
    #: A detector without a promise that somebody put on the signal (`detection.extra`): how
    #: often it alarms for nothing is not bounded, and both e-value and threshold are 0.
    #: Empty for the bank's own.
    detector: str = ""
    #: The severity that was configured for it.
    severity: str = ""


_decoder = msgspec.json.Decoder(Alarm)


def encode_alarm(alarm: Alarm) -> bytes:
    """Return the alarm as JSON, the form it has on `llm.alarms`."""
    return msgspec.json.encode(alarm)


def decode_alarm(raw: bytes) -> Alarm:
    """Inverse of `encode_alarm`; raises msgspec.MsgspecError for anything else."""
    return _decoder.decode(raw)
