"""Detectors without a promise beside the bank: river's, on the signals that somebody chose.

They share the bank's counts and nothing else. Their alarms have no e-value, spend none of
the budget of false pages, keep no monitor from learning, and are told with the severity
that was configured for them. An alarm ends when the rate looks again as it did before
(`recovery`), when its monitor is gone, or with a planned change; then the stream begins
anew, as river's detectors take what they have seen for normal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.bank_family import Batch
from detectors.bank_rates import SIGNALS, Tally
from detectors.bank_rows import MonitorRows
from detectors.bank_verdicts import STATES, VerdictTable
from detectors.base import Arrays, Floats, Ints
from detectors.recovery import RecoveryTest
from detectors.river_rates import RiverConfig, RiverDetector
from schemas.alarm import Alarm, Direction, Rate, State, Transition
from schemas.monitor import Grouping, grouping_name
from schemas.signal import FAMILY_OF, LAST_TIME_MS, Signal, SignalPacket


@dataclass(frozen=True)
class ExtraConfig:
    """One of river's detectors on some signals of the monitors of some groupings."""

    river: RiverConfig
    signals: tuple[Signal, ...]
    groupings: frozenset[Grouping]
    #: As incidents have it.
    severity: str = "info"
    #: Streams beyond these, by when they were first seen, are not watched.
    streams: int = 200

    def __post_init__(self) -> None:
        if not self.signals or not self.groupings or self.streams < 1:
            raise ValueError("an extra detector needs signals, groupings, and room for streams")
        if unknown := [s for s in self.signals if s not in SIGNALS]:
            raise ValueError(f"{', '.join(unknown)} is no rate")


class Standing(msgspec.Struct):
    """An alarm that stands, and the test that will clear it."""

    alarm: Alarm
    recovery: RecoveryTest


class ExtraState(msgspec.Struct):
    """What a snapshot holds beside the detector's arrays."""

    streams: list[tuple[int, int, int]]
    free: list[int]
    open: list[tuple[int, int, Standing]]


#: A bank's row, and the place of a signal in `SIGNALS`.
Key = tuple[int, int]


class ExtraDetectors:
    """One configured detector over the streams of a bank. Memory: capped by `config.streams`.

    A deterministic function of the calls, in order; `restore` of a `snapshot` goes on
    bit for bit.
    """

    def __init__(self, config: ExtraConfig, recovery_ratio: float) -> None:
        self.config = config
        self._recovery_ratio = recovery_ratio
        self._detector = RiverDetector(config.river, config.streams)
        self._streams: dict[Key, int] = {}
        self._free = list(range(config.streams - 1, -1, -1))
        self._open: dict[Key, Standing] = {}

    @property
    def name(self) -> str:
        """What tells the snapshot of one configuration from that of another."""
        config = self.config
        groupings = sorted(grouping_name(each) for each in config.groupings)
        return repr((config.river.name(), config.signals, groupings, config.streams))

    @property
    def alarmed_rows(self) -> list[int]:
        """The bank's rows of which an alarm stands."""
        return [row for row, _ in self._open]

    @property
    def open_alarms(self) -> list[Alarm]:
        return [each.alarm for each in self._open.values()]

    # Judging

    def update(
        self,
        packet: SignalPacket,
        monitors: MonitorRows,
        batch: Batch,
        tally: Tally,
    ) -> list[Alarm]:
        """Take in a batch of the bank's rows, and what was counted in it."""
        alarms: list[Alarm] = []
        last_ms = batch.view.columns[LAST_TIME_MS]
        for signal in self.config.signals:
            column = SIGNALS.index(signal)
            for at in np.flatnonzero(tally.totals[:, column] > 0).tolist():
                key = (int(batch.rows[at]), column)
                stream = self._stream(key, monitors)
                if stream is None:
                    continue
                count, total = int(tally.counts[at, column]), int(tally.totals[at, column])
                if key in self._open:
                    alarms += self._recover(packet, key, count, total, int(last_ms[at]))
                    continue
                first_ms = int(batch.first_time_ms[at])
                one = (np.array([x]) for x in (stream, count, total, first_ms))
                if self._detector.update(*one)[0] > 0:
                    alarms.append(self._raise(packet, key, monitors, int(last_ms[at])))
        return alarms

    def _stream(self, key: Key, monitors: MonitorRows) -> int | None:
        stream = self._streams.get(key)
        if stream is not None:
            return stream
        if not self._free or monitors.monitor(key[0]).grouping not in self.config.groupings:
            return None
        self._streams[key] = self._free.pop()
        return self._streams[key]

    def _raise(self, packet: SignalPacket, key: Key, monitors: MonitorRows, time_ms: int) -> Alarm:
        monitor, signal = monitors.monitor(key[0]), SIGNALS[key[1]]
        change = self._detector.change(np.array([self._streams[key]]))
        after = Rate(int(change.count[0]), int(change.total[0]))
        seen = self._seen(key)
        rise = bool(change.rise[0])
        alarm = Alarm(
            alarm_id=self._alarm_id(packet, str(monitor), signal),
            transition=Transition.RAISED,
            event_index=packet.source.last_offset,
            time_ms=time_ms,
            grouping=grouping_name(monitor.grouping),
            monitor=monitor.labels(),
            family=FAMILY_OF[signal],
            signal=signal,
            direction=Direction.RISE if rise else Direction.FALL,
            e_value=0.0,
            threshold=0.0,
            baseline=Rate(seen.count - after.count, seen.total - after.total),
            current=after,
            change_time_ms=int(change.start[0]),
            detector=self.config.river.kind.value,
            severity=self.config.severity,
        )
        before = alarm.baseline.value
        test = RecoveryTest.between(before, after.value, self._recovery_ratio, rise)
        self._open[key] = Standing(alarm, test)
        return alarm

    def _seen(self, key: Key) -> Rate:
        return Rate(*self._detector.kept(self._streams[key]))

    def _alarm_id(self, packet: SignalPacket, monitor: str, signal: Signal) -> str:
        source = packet.source
        place = (source.topic, source.epoch, source.partition, source.last_offset, packet.part)
        name = (self.config.river.name(), monitor, signal.value)
        return hashlib.blake2b(repr((place, name)).encode(), digest_size=8).hexdigest()

    def _recover(
        self, packet: SignalPacket, key: Key, count: int, total: int, time_ms: int
    ) -> list[Alarm]:
        if not self._open[key].recovery.update(count, total):
            return []
        return [self._clear(key, "recovered", packet.source.last_offset, time_ms)]

    def _clear(self, key: Key, reason: str, event_index: int, time_ms: int) -> Alarm:
        alarm = self._open.pop(key).alarm
        self._detector.reset(np.array([self._streams[key]]))
        return msgspec.structs.replace(
            alarm,
            transition=Transition.CLEARED,
            event_index=event_index,
            time_ms=max(time_ms, alarm.time_ms),
            clear_reason=reason,
        )

    def forget(self, rows: Sequence[int], reason: str, time_ms: int) -> list[Alarm]:
        """Let go of these rows; returns the alarms that end so."""
        gone = set(rows)
        due = [key for key in self._open if key[0] in gone]
        alarms = [self._clear(k, reason, self._open[k].alarm.event_index, time_ms) for k in due]
        for key in [key for key in self._streams if key[0] in gone]:
            stream = self._streams.pop(key)
            self._detector.reset(np.array([stream]))
            self._free.append(stream)
        return alarms

    # Reporting

    def tabulate(self, rows: Ints, time_ms: Ints, monitors: MonitorRows) -> VerdictTable:
        """Return where the streams of these rows stand; `time_ms` runs parallel to `rows`."""
        signals = self.config.signals
        shape = (len(rows), len(signals))
        numbers = {
            name: np.zeros(shape, np.int64)
            for name in (
                *("state", "baseline_count", "baseline_total"),
                *("current_count", "current_total", "change_time_ms"),
            )
        }
        ready = np.zeros(shape, np.bool_)
        for i, row in enumerate(rows.tolist()):
            for j, signal in enumerate(signals):
                key = (row, SIGNALS.index(signal))
                if key in self._streams:
                    ready[i, j] = True
                    for name, value in self._read(key).items():
                        numbers[name][i, j] = value
        nothing: Floats = np.zeros(shape)
        rate = numbers["baseline_count"] / np.maximum(numbers["baseline_total"], 1)
        return VerdictTable(
            monitors=[monitors.monitor(row) for row in rows.tolist()],
            families=tuple(FAMILY_OF[s] for s in signals),
            signals=signals,
            log_thresholds=(0.0,) * len(signals),
            time_ms=time_ms,
            ready=ready,
            log_evidence=nothing,
            baseline_low=rate,
            baseline_high=rate,
            detector=self.config.river.kind.value,
            **numbers,
        )

    def _read(self, key: Key) -> dict[str, int]:
        if (standing := self._open.get(key)) is None:
            seen = self._seen(key)
            state = STATES.index(State.QUIET)
            return {"state": state, "baseline_count": seen.count, "baseline_total": seen.total}
        alarm = standing.alarm
        return {
            "state": STATES.index(State.ALARMED),
            "baseline_count": alarm.baseline.count,
            "baseline_total": alarm.baseline.total,
            "current_count": alarm.current.count,
            "current_total": alarm.current.total,
            "change_time_ms": alarm.change_time_ms,
        }

    # Snapshots

    def snapshot(self) -> tuple[ExtraState, Arrays]:
        """Return copies of the whole state."""
        streams = [(*key, stream) for key, stream in self._streams.items()]
        opened = [(*key, each) for key, each in self._open.items()]
        return ExtraState(streams, list(self._free), opened), self._detector.snapshot()

    def restore(self, state: ExtraState, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`.

        Raises:
            ValueError: it was made with another configuration.
        """
        if len(state.streams) + len(state.free) != self.config.streams:
            raise ValueError("the snapshot was made with another number of streams")
        self._detector.restore(arrays)
        self._streams = {(row, signal): stream for row, signal, stream in state.streams}
        self._free = list(state.free)
        self._open = {(row, signal): each for row, signal, each in state.open}
