"""The bank: every signal of every monitor, from packets of counts to verdicts and alarms.

State is arrays over monitors × signals; a packet costs a fixed number of numpy
passes over the monitors in it. It is a deterministic function of the packets
taken in, in order, and of nothing else: no clock, no randomness. A snapshot
carries the position of every source, so packets that come again change nothing.

What is promised: while nothing changes, at most `false_alarms_per_week` alarms
a week over all monitors and families together, and in addition an alarm from
each stream whose reference bound is wrong, which `ReferenceConfig.miss` bounds.
A week is a week of each monitor's own event time, plus `MIN_GAP_MS` for each of
its events: at 100 events a second, a tenth more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.rate import Change, RateDetector, RateDetectorConfig
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
#: Evidence this close to the threshold (in nats) is not quiet: nothing is learned from it. But
#: what lies below 1 always is: without a change that is passed at most once in a week, and
#: to discard more often would select what the reference is learned from.
QUIET_MARGIN = 7.0
#: However far the watermark leaps, a silent monitor was silent for at most this long.
MAX_SILENT_STEP_MS = 60_000
#: Alternatives of the detectors that ask whether a rate is beyond all that is immaterial.
BEYOND = RateDetectorConfig((0.5, 2.0, 5.0))
#: For so long an alarm keeps the monitors near it from learning; after that it is the new normal.
SUSPICION_MS = 6 * 3_600_000
#: … and at most so many of them are looked at, the oldest first: they are the broadest.
SUSPECTED_ALARMS = 10
#: What counts as slow is the reference's quantile at this level.
SLOW_QUANTILE = 0.9

#: Of the snapshot's form.
VERSION = 2

SIGNALS: tuple[Signal, ...] = tuple(Signal)
FAMILIES: tuple[Family, ...] = tuple(Family)
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
    monitors: int = 50_000
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
    #: How far the watermark has come since the monitor was last heard of.
    silent_ms: int = 0


class Bank:
    """Detectors for the monitors of one signals partition. Memory: capped by `config.monitors`."""

    def __init__(self, config: BankConfig) -> None:
        self.config = config
        families = [config.materiality[FAMILY_OF[s]] for s in SIGNALS]
        #: Ratio and difference, shape (signals, 2).
        self._materiality: Floats = np.array([(m.ratio, m.difference) for m in families])
        self._monitors: dict[Monitor, int] = {}
        self._monitor_at: dict[int, Monitor] = {}
        self._free: list[int] = []
        self._rows = 0
        self._detector = RateDetector(config.detector, 0)
        # Beside it the same question with another null: not "is this the baseline?"
        # but "is this a change too small to matter?". A small change that has
        # lasted for weeks would otherwise hide a large one behind its average.
        self._beyond = RateDetector(BEYOND, 0)
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
        """Take in one packet; one that was taken in before changes nothing.

        Raises:
            ValueError: its counts are impossible, or a monitor stands in it twice;
                nothing has changed.
        """
        keys = _check(packet)
        if not self._advance(packet):
            return Findings([], [])
        rows, counts = self._find_rows(
            [(key, c) for key, c in zip(keys, packet.counts, strict=True) if c.requests]
        )
        if not counts:
            return Findings([], [])
        last = np.array([c.last_time_ms for c in counts])
        k, n = self._count_signals(rows, counts)
        self._judge(rows, counts, k, n, last)
        step_ms = self._advance_time(rows, last)
        # Cleared first: evidence from before a recovery cannot raise the alarm again.
        alarms = self._recover(packet, rows, k, n) + self._raise(packet, rows)
        self._learn(rows, k, n)
        alarms += self._clear_silent(packet, rows, step_ms)
        return Findings(self._report(rows), alarms)

    def _advance(self, packet: SignalPacket) -> bool:
        source = packet.source
        key = (source.topic, source.epoch, source.partition)
        position = (source.last_offset, packet.part)
        if position <= self._seen.get(key, (-1, -1)):
            return False
        self._seen[key] = position
        return True

    def _advance_time(self, rows: Ints, last: Ints) -> int:
        """Return how far the watermark moved."""
        before = self._watermark_ms or int(last.max())
        self._last_ms[rows] = np.maximum(self._last_ms[rows], last)
        self._watermark_ms = max(before, int(last.max()))
        return self._watermark_ms - before

    # Rows: a monitor has one row; a stream (row × signal) has index row · signals + signal.

    def _find_rows(
        self, found: list[tuple[Monitor, MonitorCounts]]
    ) -> tuple[Ints, list[MonitorCounts]]:
        """Return the rows of the monitors there is room for, and their counts."""
        missing = sum(key not in self._monitors for key, _ in found)
        free = self._make_room(missing, keep={key for key, _ in found})
        rows, counts = [], []
        for key, each in found:
            if key not in self._monitors:
                if not free:
                    continue
                free -= 1
            rows.append(self._row_of(key))
            counts.append(each)
        return np.array(rows, np.int64), counts

    def _row_of(self, monitor: Monitor) -> int:
        row = self._monitors.get(monitor)
        if row is None:
            row = self._monitors[monitor] = self._free.pop()
            self._monitor_at[row] = monitor
        return row

    def _make_room(self, needed: int, keep: set[Monitor]) -> int:
        """Make room for new monitors and return for how many there is, up to `needed`."""
        over = len(self._monitors) + needed - self.config.monitors
        if over > 0:
            # The longest silent go first; one that stands alarmed, or is in this packet, stays.
            alarmed = {row for row, _ in self._open}
            idle = [m for m, row in self._monitors.items() if m not in keep and row not in alarmed]
            idle.sort(key=lambda m: (int(self._last_ms[self._monitors[m]]), m))
            for monitor in idle[:over]:
                self._evict(monitor)
        room = min(needed, self.config.monitors - len(self._monitors))
        if room > len(self._free):
            self._grow(max(room - len(self._free), self._rows, 64))
        return room

    def _grow(self, extra: int) -> None:
        first, self._rows = self._rows, self._rows + extra
        self._free[:0] = range(self._rows - 1, first - 1, -1)
        self._detector.resize(self._rows * len(SIGNALS))
        self._beyond.resize(self._rows * len(SIGNALS))
        self._reference.resize(self._rows * len(SIGNALS))
        blank = np.zeros(extra, np.int64)
        self._last_ms = np.concatenate([self._last_ms, blank])
        self._verdict_minute = np.concatenate([self._verdict_minute, blank])

    def _evict(self, monitor: Monitor) -> None:
        row = self._monitors.pop(monitor)
        del self._monitor_at[row]
        streams = row * len(SIGNALS) + np.arange(len(SIGNALS))
        self._detector.reset(streams)
        self._beyond.reset(streams)
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
        m, signal = np.nonzero(use)
        low, high = self._reference.bounds(streams[use])
        rest = (gap[m] / WEEK_MS, first[m])
        self._detector.update(streams[use], k[use], n[use], low, high, *rest)
        least, most = self._immaterial(streams[use], signal, low, high)
        self._beyond.update(streams[use], k[use], n[use], least, most, *rest)

    def _immaterial(
        self, streams: Ints, signal: Ints, low: Floats, high: Floats
    ) -> tuple[Floats, Floats]:
        """The span of rates that are no change, or one too small to matter."""
        count, total = self._reference.counts(streams)
        rate = (count + 0.5) / (total + 1)
        ratio, difference = self._materiality[signal].T
        least = np.minimum(low, np.minimum(rate / ratio, rate - difference))
        most = np.maximum(high, np.maximum(rate * ratio, rate + difference))
        return np.maximum(least, 0.0), np.minimum(most, 1.0)

    def _family_evidence(
        self, rows: Ints, family: Family, detector: RateDetector | None = None
    ) -> Floats:
        """Mean of the e-values of the family's signals: dependent, so never multiplied."""
        members = _FAMILY_MEMBERS[family]
        detector = detector or self._detector
        each = [detector.log_evidence(rows * len(SIGNALS) + s) for s in members]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean: Floats = np.logaddexp.reduce(each, axis=0) - np.log(len(members))
        return mean

    def _raise(self, packet: SignalPacket, rows: Ints) -> list[Alarm]:
        alarms = []
        for index, family in enumerate(FAMILIES):
            evidence = self._family_evidence(rows, family)
            beyond = self._family_evidence(rows, family, self._beyond)
            for at in np.flatnonzero(evidence >= self.log_threshold):
                row = int(rows[at])
                if (row, index) in self._open:
                    continue
                lead, change = self._lead(row, family, self._detector)
                if not self._is_material(row, lead, change):
                    if beyond[at] < self.log_threshold:
                        continue
                    lead, change = self._lead(row, family, self._beyond)
                alarm = self._make_alarm(packet, row, lead, change, float(evidence[at]))
                self._open[row, index] = _Open(alarm, lead, self._recovery_test(alarm, row, lead))
                alarms.append(alarm)
        return alarms

    def _lead(self, row: int, family: Family, detector: RateDetector) -> tuple[int, Change]:
        """The signal of the family with the most evidence, and its change."""
        members = _FAMILY_MEMBERS[family]
        evidence = [detector.log_evidence(self._stream(row, s))[0] for s in members]
        signal = members[int(np.argmax(evidence))]
        return signal, detector.change(self._stream(row, signal))

    def _stream(self, row: int, signal: int) -> Ints:
        return np.array([row * len(SIGNALS) + signal])

    def _baseline(self, row: int, signal: int) -> Rate:
        return _rates(*self._reference.counts(self._stream(row, signal)))[0]

    def _is_material(self, row: int, signal: int, change: Change) -> bool:
        baseline, current = self._baseline(row, signal), _rates(change.count, change.total)[0]
        ratio, difference = self._materiality[signal]
        # Half an event more on both sides: a baseline of 0 in 300 is not a rate of nought.
        before = (baseline.count + 0.5) / (baseline.total + 1)
        now = (current.count + 0.5) / (current.total + 1)
        more, less = (now, before) if change.rise[0] else (before, now)
        return bool(more / less >= ratio and more - less >= difference)

    def _make_alarm(
        self, packet: SignalPacket, row: int, signal: int, change: Change, log_evidence: float
    ) -> Alarm:
        monitor = self._monitor_at[row]
        family = FAMILY_OF[SIGNALS[signal]]
        return Alarm(
            alarm_id=_alarm_id(packet, monitor, family),
            transition=Transition.RAISED,
            event_index=packet.source.last_offset,
            time_ms=int(self._last_ms[row]),
            grouping=",".join(monitor.grouping),
            monitor=monitor.labels(),
            family=family,
            signal=SIGNALS[signal],
            direction=Direction.RISE if change.rise[0] else Direction.FALL,
            e_value=_exp(log_evidence),
            threshold=_exp(self.log_threshold),
            baseline=self._baseline(row, signal),
            current=_rates(change.count, change.total)[0],
            change_time_ms=int(change.start[0]),
            slow_above=self._slow_above(row, signal),
        )

    def _slow_above(self, row: int, signal: int) -> float | None:
        bucket = self._slow_bucket.get((row, signal))
        return None if bucket is None else float(2.0 ** ((bucket + 1) / 32))

    # Coming back

    def _recovery_test(self, alarm: Alarm, row: int, signal: int) -> RecoveryTest:
        low, high = self._reference.bounds(self._stream(row, signal))
        rise = alarm.direction is Direction.RISE
        bound = float(high[0] if rise else low[0])
        return RecoveryTest.between(bound, alarm.current.value, self.config.recovery_ratio, rise)

    def _recover(self, packet: SignalPacket, rows: Ints, k: Ints, n: Ints) -> list[Alarm]:
        position = {int(row): at for at, row in enumerate(rows)}
        cleared = []
        for key, opened in list(self._open.items()):
            at = position.get(key[0])
            if at is None:
                continue
            if opened.recovery.update(int(k[at, opened.signal]), int(n[at, opened.signal])):
                cleared.append(self._clear(packet, key, "recovered"))
        return cleared

    def _clear_silent(self, packet: SignalPacket, rows: Ints, step_ms: int) -> list[Alarm]:
        # Counted in steps of the watermark and not by comparing times: one
        # gateway with its clock a day ahead must not make all others look silent.
        heard = set(rows.tolist())
        for (row, _), opened in self._open.items():
            silent = opened.silent_ms + min(step_ms, MAX_SILENT_STEP_MS)
            opened.silent_ms = 0 if row in heard else silent
        due = [k for k, o in self._open.items() if o.silent_ms >= self.config.no_traffic_ms]
        return [self._clear(packet, key, "no_traffic") for key in due]

    def _clear(self, packet: SignalPacket, key: tuple[int, int], reason: str) -> Alarm:
        opened = self._open.pop(key)
        row, family = key
        members = np.array(_FAMILY_MEMBERS[FAMILIES[family]])
        self._detector.reset(row * len(SIGNALS) + members)
        self._beyond.reset(row * len(SIGNALS) + members)
        return msgspec.structs.replace(
            opened.alarm,
            transition=Transition.CLEARED,
            event_index=packet.source.last_offset,
            time_ms=max(self._watermark_ms, int(self._last_ms[row])),
            clear_reason=reason,
        )

    # Learning and reporting

    def _learn(self, rows: Ints, k: Ints, n: Ints) -> None:
        least = max(self.log_threshold - QUIET_MARGIN, 0.0)
        for index, family in enumerate(FAMILIES):
            evidence = self._family_evidence(rows, family)
            quiet = (evidence < least) & ~self._find_suspects(rows, index)
            for signal in _FAMILY_MEMBERS[family]:
                has = n[:, signal] > 0
                self._reference.learn(
                    rows[has] * len(SIGNALS) + signal, k[has, signal], n[has, signal], quiet[has]
                )

    def _find_suspects(self, rows: Ints, family: int) -> Bools:
        """Monitors whose traffic may be part of what stands alarmed, themselves included.

        A monitor that learns what is normal during an incident would raise an
        alarm when it is over.
        """
        since = self._watermark_ms - SUSPICION_MS
        alarmed = [
            self._monitor_at[row].labels()
            for (row, each), opened in self._open.items()
            if each == family and opened.alarm.time_ms >= since
        ][:SUSPECTED_ALARMS]
        own = ((int(row), family) in self._open for row in rows)
        if not alarmed:
            return np.fromiter(own, np.bool_, len(rows))
        labels = (self._monitor_at[int(row)].labels() for row in rows)
        near = (any(_overlap(each, other) for other in alarmed) for each in labels)
        return np.fromiter((a or b for a, b in zip(own, near, strict=True)), np.bool_, len(rows))

    def _report(self, rows: Ints) -> list[Verdict]:
        """Verdicts of the monitors that entered a new minute."""
        minute = self._last_ms[rows] // MINUTE_MS
        due = minute > self._verdict_minute[rows]
        self._verdict_minute[rows] = np.maximum(minute, self._verdict_minute[rows])
        return [v for family in range(len(FAMILIES)) for v in self._verdicts(rows[due], family)]

    def _verdicts(self, rows: Ints, family: int) -> list[Verdict]:
        evidence = self._family_evidence(rows, FAMILIES[family])
        verdicts = []
        for signal in _FAMILY_MEMBERS[FAMILIES[family]]:
            ready = self._reference.ready(rows * len(SIGNALS) + signal)
            streams = rows[ready] * len(SIGNALS) + signal
            columns = zip(
                rows[ready].tolist(),
                evidence[ready].tolist(),
                *(each.tolist() for each in self._reference.bounds(streams)),
                _rates(*self._reference.counts(streams)),
                *_changes(self._detector.change(streams)),
                strict=True,
            )
            verdicts += [self._verdict(family, signal, *column) for column in columns]
        return verdicts

    def _verdict(
        self,
        family: int,
        signal: int,
        row: int,
        evidence: float,
        low: float,
        high: float,
        baseline: Rate,
        current: Rate,
        start_ms: int,
    ) -> Verdict:
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
            baseline_low=low,
            baseline_high=high,
            current=current,
            change_time_ms=start_ms,
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
            beyond=_pack_arrays(self._beyond.snapshot()),
            reference=_pack_arrays(self._reference.snapshot()),
            signals=[s.value for s in SIGNALS],
            version=VERSION,
        )
        return msgspec.msgpack.encode(state)

    @classmethod
    def restore(cls, config: BankConfig, raw: bytes) -> Bank:
        """Return a bank that goes on exactly where the snapshot was taken.

        Raises:
            ValueError: it was made by another version, or with other alternatives.
        """
        state = _decode_state(raw)
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
        bank._beyond.restore(_unpack_arrays(state.beyond))
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
    beyond: dict[str, tuple[str, tuple[int, ...], bytes]]
    reference: dict[str, tuple[str, tuple[int, ...], bytes]]
    signals: list[str]
    version: int


def _decode_state(raw: bytes) -> _BankState:
    try:
        state = msgspec.msgpack.decode(raw, type=_BankState)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a snapshot of this version: {error}") from None
    if state.version != VERSION or state.signals != [s.value for s in SIGNALS]:
        raise ValueError(f"a snapshot of version {state.version}, for {state.signals}")
    return state


def _check(packet: SignalPacket) -> list[Monitor]:
    """Return the packet's monitors. Before anything is touched: it is taken in whole or not."""
    groupings = [parse_grouping(name) for name in packet.groupings]
    monitors = []
    for c in packet.counts:
        if not 0 <= c.grouping < len(groupings) or len(groupings[c.grouping]) != len(c.values):
            raise ValueError(f"not a value of a grouping in the packet: {c}")
        if not _is_possible(c):
            raise ValueError(f"impossible counts: {c}")
        monitors.append(Monitor(groupings[c.grouping], c.values))
    if len(set(monitors)) < len(monitors):
        raise ValueError("a monitor stands twice in the packet")
    return monitors


def _is_possible(c: MonitorCounts) -> bool:
    return (
        0 <= c.errors <= c.requests
        and 0 <= c.refusals <= c.answered <= c.requests
        and 0 <= c.truncations <= c.answered
        and min(c.first_chunk_ms.values(), default=0) >= 0
        and min(c.output_token_us.values(), default=0) >= 0
    )


def _rates(count: Ints, total: Ints) -> list[Rate]:
    return [Rate(k, n) for k, n in zip(count.tolist(), total.tolist(), strict=True)]


def _changes(change: Change) -> tuple[list[Rate], list[int]]:
    """Rates since the change points, and where those lie."""
    return _rates(change.count, change.total), change.start.tolist()


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


def _overlap(labels: dict[str, str], other: dict[str, str]) -> bool:
    """True when a request could belong to both: they differ in no dimension that they share."""
    return all(other.get(name, value) == value for name, value in labels.items())


def _exp(log_value: float) -> float:
    """An e-value can outgrow a float; JSON has no infinity."""
    return float(np.exp(min(log_value, 700.0)))


def _alarm_id(packet: SignalPacket, monitor: Monitor, family: Family) -> str:
    source = packet.source
    parts = (
        *(source.topic, source.epoch, str(source.partition), str(source.last_offset)),
        # A chunk that spans hours can raise, clear and raise again.
        str(packet.part),
        *(*monitor.grouping, *monitor.values, family),
    )
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
