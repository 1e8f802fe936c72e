"""The bank: every signal of every monitor, from packets of counts to verdicts and alarms.

State is arrays over monitors × signals; a packet costs a fixed number of numpy
passes over the monitors in it. It is a deterministic function of the packets
taken in, in order, and of nothing else: no clock, no randomness. A snapshot
carries the position of every source, so packets that come again change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.rate import RateDetector, RateDetectorConfig
from detectors.recovery import RecoveryTest
from detectors.reference import RateReference, ReferenceConfig
from schemas.alarm import Alarm, Direction, Rate, State, Transition, Verdict
from schemas.monitor import Monitor, parse_grouping
from schemas.signal import FAMILY_OF, Family, MonitorCounts, Signal, SignalPacket

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

WEEK_MS = 7 * 86_400_000
MINUTE_MS = 60_000
#: A gap in a monitor's traffic counts at most this much of the week's budget.
MAX_GAP_MS = 3_600_000
#: … and every event at least this much, so that a stream without a usable clock is watched too.
MIN_GAP_MS = 1
#: Evidence this close to the threshold (in nats) is not quiet: nothing is learned from it.
QUIET_MARGIN = 7.0
#: What counts as slow is the reference's quantile at this level.
SLOW_QUANTILE = 0.9

SIGNALS: tuple[Signal, ...] = tuple(Signal)
FAMILIES: tuple[Family, ...] = tuple(Family)
LATENCY_SIGNALS = (Signal.SLOW_FIRST_CHUNK, Signal.SLOW_OUTPUT)
_FAMILY_MEMBERS = {f: [i for i, s in enumerate(SIGNALS) if FAMILY_OF[s] == f] for f in FAMILIES}


@dataclass(frozen=True)
class Material:
    """The smallest change worth a page: by a factor, and in absolute terms."""

    ratio: float = 1.5
    difference: float = 0.01


@dataclass(frozen=True)
class BankConfig:
    """`share` is this bank's share of all monitors (one over the signals partitions)."""

    false_alarms_per_week: float = 1.0
    share: float = 1.0
    monitors: int = 20_000
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    detector: RateDetectorConfig = field(default_factory=RateDetectorConfig)
    materiality: Mapping[Family, Material] = field(
        default_factory=lambda: {f: Material() for f in FAMILIES}
    )
    recovery_ratio: float = 1_000.0
    no_traffic_ms: int = 900_000


class Findings(NamedTuple):
    """What one packet brought about, in order."""

    verdicts: list[Verdict]
    alarms: list[Alarm]


class _Open(msgspec.Struct):
    """An alarm that stands, and the test that will clear it."""

    alarm: Alarm
    signal: int
    recovery: RecoveryTest


class Bank:
    """Detectors for the monitors of one signals partition. Memory: capped by `config.monitors`."""

    def __init__(self, config: BankConfig) -> None:
        self.config = config
        self._monitors: dict[Monitor, int] = {}
        self._monitor_at: dict[int, Monitor] = {}
        self._free: list[int] = []
        self._rows = 0
        self._detector = RateDetector(config.detector, 0)
        self._reference = RateReference(config.reference, 0)
        self._last_ms: Ints = np.zeros(0, np.int64)
        self._verdict_minute: Ints = np.zeros(0, np.int64)
        #: Bucket above which a latency counts as slow, per row; absent while it is being learned.
        self._slow_bucket: dict[tuple[int, int], int] = {}
        self._slow_learning: dict[tuple[int, int], dict[int, int]] = {}
        self._open: dict[tuple[int, int], _Open] = {}
        self._seen: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._watermark_ms = 0

    @property
    def log_threshold(self) -> float:
        """Logarithm of A = families × monitors / (false alarms a week)."""
        monitors = max(1.0, len(self._monitors) / self.config.share)
        return float(np.log(len(FAMILIES) * monitors / self.config.false_alarms_per_week))

    @property
    def monitors(self) -> int:
        return len(self._monitors)

    @property
    def open_alarms(self) -> list[Alarm]:
        return [each.alarm for each in self._open.values()]

    def update(self, packet: SignalPacket) -> Findings:
        """Take in one packet; one that was taken in before changes nothing."""
        if not self._advance(packet):
            return Findings([], [])
        counts = [c for c in packet.counts if c.requests]
        if not counts:
            return Findings([], [])
        rows = self._find_rows(packet, counts)
        last = np.array([c.last_time_ms for c in counts])
        k, n = self._count_signals(rows, counts)
        self._judge(rows, counts, k, n, last)
        alarms = self._raise(packet, rows, last) + self._recover(packet, rows, k, n)
        self._learn(rows, k, n)
        self._last_ms[rows] = np.maximum(self._last_ms[rows], last)
        self._watermark_ms = max(self._watermark_ms, int(last.max()))
        alarms += self._clear_silent(packet)
        return Findings(self._report(rows), alarms)

    def _advance(self, packet: SignalPacket) -> bool:
        source = packet.source
        key = (source.topic, source.epoch, source.partition)
        position = (source.last_offset, packet.part)
        if position <= self._seen.get(key, (-1, -1)):
            return False
        self._seen[key] = position
        return True

    # Rows: a monitor has one row; a stream (row × signal) has index row · signals + signal.

    def _find_rows(self, packet: SignalPacket, counts: list[MonitorCounts]) -> Ints:
        groupings = [parse_grouping(name) for name in packet.groupings]
        keys = [Monitor(groupings[c.grouping], c.values) for c in counts]
        missing = sum(key not in self._monitors for key in keys)
        self._make_room(missing, keep=set(keys))
        return np.array([self._row_of(key) for key in keys])

    def _row_of(self, monitor: Monitor) -> int:
        row = self._monitors.get(monitor)
        if row is None:
            row = self._monitors[monitor] = self._free.pop()
            self._monitor_at[row] = monitor
        return row

    def _make_room(self, needed: int, keep: set[Monitor]) -> None:
        over = len(self._monitors) + needed - self.config.monitors
        if over > 0:
            # The longest silent go first; one that stands alarmed, or is in this packet, stays.
            alarmed = {row for row, _ in self._open}
            idle = [m for m, row in self._monitors.items() if m not in keep and row not in alarmed]
            idle.sort(key=lambda m: (int(self._last_ms[self._monitors[m]]), m))
            for monitor in idle[:over]:
                self._evict(monitor)
        if needed > len(self._free):
            self._grow(max(needed - len(self._free), self._rows, 64))

    def _grow(self, extra: int) -> None:
        first, self._rows = self._rows, self._rows + extra
        self._free[:0] = range(self._rows - 1, first - 1, -1)
        self._detector.resize(self._rows * len(SIGNALS))
        self._reference.resize(self._rows * len(SIGNALS))
        blank = np.zeros(extra, np.int64)
        self._last_ms = np.concatenate([self._last_ms, blank])
        self._verdict_minute = np.concatenate([self._verdict_minute, blank])

    def _evict(self, monitor: Monitor) -> None:
        row = self._monitors.pop(monitor)
        del self._monitor_at[row]
        streams = row * len(SIGNALS) + np.arange(len(SIGNALS))
        self._detector.reset(streams)
        self._reference.reset(streams)
        self._last_ms[row] = self._verdict_minute[row] = 0
        for signal in range(len(SIGNALS)):
            self._slow_bucket.pop((row, signal), None)
            self._slow_learning.pop((row, signal), None)
        self._free.append(row)

    # Counting

    def _count_signals(self, rows: Ints, counts: list[MonitorCounts]) -> tuple[Ints, Ints]:
        """Return k and n, both of shape (m, signals)."""
        pairs = np.array(
            [
                [
                    (c.refusals, c.answered),
                    (c.errors, c.requests),
                    (c.truncations, c.answered),
                    self._count_slow(int(row), Signal.SLOW_FIRST_CHUNK, c.first_chunk_ms),
                    self._count_slow(int(row), Signal.SLOW_OUTPUT, c.output_token_us),
                ]
                for row, c in zip(rows, counts, strict=True)
            ],
            dtype=np.int64,
        )
        return pairs[:, :, 0], pairs[:, :, 1]

    def _count_slow(self, row: int, signal: Signal, buckets: dict[int, int]) -> tuple[int, int]:
        key = (row, SIGNALS.index(signal))
        edge = self._slow_bucket.get(key)
        if edge is None:
            self._learn_slow(key, buckets)
            return 0, 0
        return sum(c for b, c in buckets.items() if b > edge), sum(buckets.values())

    def _learn_slow(self, key: tuple[int, int], buckets: dict[int, int]) -> None:
        # What is slow is settled on events that the reference is not learned
        # from: choosing a quantile and counting above it on the same sample
        # would make the baseline look better than it is.
        learning = self._slow_learning.setdefault(key, {})
        for bucket, count in buckets.items():
            learning[bucket] = learning.get(bucket, 0) + count
        total = sum(learning.values())
        if total < self.config.reference.learn:
            return
        seen = 0
        for bucket in sorted(learning):
            seen += learning[bucket]
            if seen >= SLOW_QUANTILE * total:
                break
        self._slow_bucket[key] = bucket
        del self._slow_learning[key]

    # Judging

    def _judge(self, rows: Ints, counts: list[MonitorCounts], k: Ints, n: Ints, last: Ints) -> None:
        requests = np.array([c.requests for c in counts])
        first = np.array([c.first_time_ms for c in counts])
        since = np.where(self._last_ms[rows] > 0, last - self._last_ms[rows], 0)
        gap = np.maximum(np.clip(since, 0, MAX_GAP_MS), requests * MIN_GAP_MS)
        streams = rows[:, None] * len(SIGNALS) + np.arange(len(SIGNALS))
        use = (n > 0) & self._reference.ready(streams.ravel()).reshape(streams.shape)
        m, _ = np.nonzero(use)
        low, high = self._reference.bounds(streams[use])
        self._detector.update(streams[use], k[use], n[use], low, high, gap[m] / WEEK_MS, first[m])

    def _family_evidence(self, rows: Ints, family: Family) -> Floats:
        """Mean of the e-values of the family's signals: dependent, so never multiplied."""
        members = _FAMILY_MEMBERS[family]
        each = [self._detector.log_evidence(rows * len(SIGNALS) + s) for s in members]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean: Floats = np.logaddexp.reduce(each, axis=0) - np.log(len(members))
        return mean

    def _raise(self, packet: SignalPacket, rows: Ints, last: Ints) -> list[Alarm]:
        alarms = []
        for index, family in enumerate(FAMILIES):
            evidence = self._family_evidence(rows, family)
            for at in np.flatnonzero(evidence >= self.log_threshold):
                row = int(rows[at])
                if (row, index) in self._open:
                    continue
                lead = self._leading_signal(row, family)
                if not self._is_material(row, lead):
                    continue
                alarm = self._make_alarm(packet, row, lead, float(evidence[at]), int(last[at]))
                self._open[row, index] = _Open(alarm, lead, self._recovery_test(alarm, row, lead))
                alarms.append(alarm)
        return alarms

    def _leading_signal(self, row: int, family: Family) -> int:
        members = _FAMILY_MEMBERS[family]
        evidence = [self._detector.log_evidence(self._stream(row, s))[0] for s in members]
        return members[int(np.argmax(evidence))]

    def _stream(self, row: int, signal: int) -> Ints:
        return np.array([row * len(SIGNALS) + signal])

    def _rates(self, row: int, signal: int) -> tuple[Rate, Rate]:
        stream = self._stream(row, signal)
        count, total = self._reference.counts(stream)
        change = self._detector.change(stream)
        return (
            Rate(int(count[0]), int(total[0])),
            Rate(int(change.count[0]), int(change.total[0])),
        )

    def _is_material(self, row: int, signal: int) -> bool:
        baseline, current = self._rates(row, signal)
        need = self.config.materiality[FAMILY_OF[SIGNALS[signal]]]
        # Half an event more on both sides: a baseline of 0 in 300 is not a rate of nought.
        before = (baseline.count + 0.5) / (baseline.total + 1)
        now = (current.count + 0.5) / (current.total + 1)
        ratio = max(now / before, before / now)
        return ratio >= need.ratio and abs(now - before) >= need.difference

    def _make_alarm(
        self, packet: SignalPacket, row: int, signal: int, log_evidence: float, time_ms: int
    ) -> Alarm:
        monitor = self._monitor_at[row]
        change = self._detector.change(self._stream(row, signal))
        baseline, current = self._rates(row, signal)
        family = FAMILY_OF[SIGNALS[signal]]
        return Alarm(
            alarm_id=_alarm_id(packet, monitor, family),
            transition=Transition.RAISED,
            event_index=packet.source.last_offset,
            time_ms=time_ms,
            grouping=",".join(monitor.grouping),
            monitor=monitor.labels(),
            family=family,
            signal=SIGNALS[signal],
            direction=Direction.RISE if change.rise[0] else Direction.FALL,
            e_value=_exp(log_evidence),
            threshold=_exp(self.log_threshold),
            baseline=baseline,
            current=current,
            change_time_ms=int(change.start[0]),
            slow_above=self._slow_above(row, signal),
        )

    def _slow_above(self, row: int, signal: int) -> float | None:
        bucket = self._slow_bucket.get((row, signal))
        return None if bucket is None else float(2.0 ** ((bucket + 1) / 32))

    # Coming back

    def _recovery_test(self, alarm: Alarm, row: int, signal: int) -> RecoveryTest:
        low, high = self._reference.bounds(self._stream(row, signal))
        good = high[0] if alarm.direction is Direction.RISE else low[0]
        return RecoveryTest.between(float(good), alarm.current.value, self.config.recovery_ratio)

    def _recover(self, packet: SignalPacket, rows: Ints, k: Ints, n: Ints) -> list[Alarm]:
        position = {int(row): at for at, row in enumerate(rows)}
        cleared = []
        for key, opened in list(self._open.items()):
            at = position.get(key[0])
            if at is None or opened.alarm.event_index == packet.source.last_offset:
                continue
            if opened.recovery.update(int(k[at, opened.signal]), int(n[at, opened.signal])):
                cleared.append(self._clear(packet, key, "recovered"))
        return cleared

    def _clear_silent(self, packet: SignalPacket) -> list[Alarm]:
        horizon = self._watermark_ms - self.config.no_traffic_ms
        silent = [key for key in self._open if self._last_ms[key[0]] < horizon]
        return [self._clear(packet, key, "no_traffic") for key in silent]

    def _clear(self, packet: SignalPacket, key: tuple[int, int], reason: str) -> Alarm:
        opened = self._open.pop(key)
        row, family = key
        members = np.array(_FAMILY_MEMBERS[FAMILIES[family]])
        self._detector.reset(row * len(SIGNALS) + members)
        return msgspec.structs.replace(
            opened.alarm,
            transition=Transition.CLEARED,
            event_index=packet.source.last_offset,
            time_ms=max(self._watermark_ms, int(self._last_ms[row])),
            clear_reason=reason,
        )

    # Learning and reporting

    def _learn(self, rows: Ints, k: Ints, n: Ints) -> None:
        for index, family in enumerate(FAMILIES):
            alarmed = np.array([(int(row), index) in self._open for row in rows])
            evidence = self._family_evidence(rows, family)
            quiet = (evidence < self.log_threshold - QUIET_MARGIN) & ~alarmed
            for signal in _FAMILY_MEMBERS[family]:
                has = n[:, signal] > 0
                self._reference.learn(
                    rows[has] * len(SIGNALS) + signal, k[has, signal], n[has, signal], quiet[has]
                )

    def _report(self, rows: Ints) -> list[Verdict]:
        """Verdicts of the monitors that entered a new minute."""
        minute = self._last_ms[rows] // MINUTE_MS
        due = minute > self._verdict_minute[rows]
        self._verdict_minute[rows] = np.maximum(minute, self._verdict_minute[rows])
        return [v for row in rows[due] for v in self._verdicts(int(row))]

    def _verdicts(self, row: int) -> list[Verdict]:
        evidence = [self._family_evidence(np.array([row]), family)[0] for family in FAMILIES]
        return [
            self._verdict(row, family, signal, float(evidence[family]))
            for family in range(len(FAMILIES))
            for signal in _FAMILY_MEMBERS[FAMILIES[family]]
            if self._reference.ready(self._stream(row, signal))[0]
        ]

    def _verdict(self, row: int, family: int, signal: int, evidence: float) -> Verdict:
        stream = self._stream(row, signal)
        low, high = self._reference.bounds(stream)
        baseline, current = self._rates(row, signal)
        monitor = self._monitor_at[row]
        state = State.QUIET
        if (row, family) in self._open:
            state = State.ALARMED
        elif evidence >= self.log_threshold:
            state = State.IMMATERIAL
        return Verdict(
            # The minute, not the moment: the row of a replayed minute replaces the first.
            time_ms=int(self._last_ms[row]) // MINUTE_MS * MINUTE_MS,
            grouping=",".join(monitor.grouping),
            monitor=monitor.labels(),
            family=FAMILIES[family],
            signal=SIGNALS[signal],
            state=state,
            log_evidence=max(evidence, -1e3),
            log_threshold=self.log_threshold,
            baseline=baseline,
            baseline_low=float(low[0]),
            baseline_high=float(high[0]),
            current=current,
            change_time_ms=int(self._detector.change(stream).start[0]),
        )

    # Snapshots

    def snapshot(self) -> bytes:
        """Return the whole state, positions included, as MessagePack."""
        state = _BankState(
            monitors=[(m.grouping, m.values, row) for m, row in self._monitors.items()],
            free=self._free,
            rows=self._rows,
            last_ms=self._last_ms.tolist(),
            verdict_minute=self._verdict_minute.tolist(),
            slow_bucket=[(*key, b) for key, b in self._slow_bucket.items()],
            slow_learning=[(*key, b) for key, b in self._slow_learning.items()],
            open=[(*key, o) for key, o in self._open.items()],
            seen=[(*key, *position) for key, position in self._seen.items()],
            watermark_ms=self._watermark_ms,
            detector=_pack_arrays(self._detector.snapshot()),
            reference=_pack_arrays(self._reference.snapshot()),
        )
        return msgspec.msgpack.encode(state)

    @classmethod
    def restore(cls, config: BankConfig, raw: bytes) -> Bank:
        """Return a bank that goes on exactly where the snapshot was taken.

        Raises:
            ValueError: it was made by another version, or with other alternatives.
        """
        try:
            state = msgspec.msgpack.decode(raw, type=_BankState)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a snapshot of this version: {error}") from None
        bank = cls(config)
        if state.rows:
            bank._grow(state.rows)
        bank._free = list(state.free)
        bank._monitors = {
            Monitor(parse_grouping(",".join(g)), tuple(v)): r for g, v, r in state.monitors
        }
        bank._monitor_at = {row: m for m, row in bank._monitors.items()}
        bank._last_ms = np.array(state.last_ms, np.int64)
        bank._verdict_minute = np.array(state.verdict_minute, np.int64)
        bank._slow_bucket = {(r, s): b for r, s, b in state.slow_bucket}
        bank._slow_learning = {(r, s): b for r, s, b in state.slow_learning}
        bank._open = {(r, f): o for r, f, o in state.open}
        bank._seen = {(t, e, p): (last, part) for t, e, p, last, part in state.seen}
        bank._watermark_ms = state.watermark_ms
        bank._detector.restore(_unpack_arrays(state.detector))
        bank._reference.restore(_unpack_arrays(state.reference))
        return bank


class _BankState(msgspec.Struct, forbid_unknown_fields=True):
    monitors: list[tuple[tuple[str, ...], tuple[str, ...], int]]
    free: list[int]
    rows: int
    last_ms: list[int]
    verdict_minute: list[int]
    slow_bucket: list[tuple[int, int, int]]
    slow_learning: list[tuple[int, int, dict[int, int]]]
    open: list[tuple[int, int, _Open]]
    seen: list[tuple[str, str, int, int, int]]
    watermark_ms: int
    detector: dict[str, tuple[str, tuple[int, ...], bytes]]
    reference: dict[str, tuple[str, tuple[int, ...], bytes]]
    version: int = 1


def _pack_arrays(
    arrays: Mapping[str, npt.NDArray[np.generic]],
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}


def _unpack_arrays(
    packed: Mapping[str, tuple[str, tuple[int, ...], bytes]],
) -> dict[str, npt.NDArray[np.generic]]:
    return {
        name: np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
        for name, (dtype, shape, raw) in packed.items()
    }


def _exp(log_value: float) -> float:
    """An e-value can outgrow a float; JSON has no infinity."""
    return float(np.exp(min(log_value, 700.0)))


def _alarm_id(packet: SignalPacket, monitor: Monitor, family: Family) -> str:
    source = packet.source
    parts = (
        *(source.topic, source.epoch, str(source.partition), str(source.last_offset)),
        *(*monitor.grouping, *monitor.values, family),
    )
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
