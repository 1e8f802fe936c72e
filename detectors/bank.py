"""The bank: every signal of every monitor, from packets of counts to verdicts and alarms.

State is arrays over monitors; a packet costs a fixed number of numpy passes
over the monitors in it. What is counted, judged and learned is the business of
the family groups; the bank knows monitors, time, alarms and the budget. It is a
deterministic function of the packets taken in, in order, and of nothing else:
no clock, no randomness. A snapshot carries the position of every source, so
packets that come again change nothing.

What is promised: while nothing changes, at most `false_alarms_per_week` alarms
a week over all monitors and families that page together, at most `false_notices_per_week`
over those that inform, and in addition an alarm from each stream whose reference
bound is wrong, which `ReferenceConfig.miss` bounds.
A week is a week of each monitor's own event time, plus `MIN_GAP_MS` for each of
its events: at 100 events a second, a tenth more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.bank_extra import ExtraConfig, ExtraDetectors, ExtraState
from detectors.bank_family import Batch, FamilyGroup, Lead, Recovery
from detectors.bank_frames import Parts, frame_arrays, frame_state, read_arrays, split_frames
from detectors.bank_packet import PacketView, read_packet
from detectors.bank_rates import Material, RateFamilies
from detectors.bank_resets import Announced, Change, PlannedChanges
from detectors.bank_rows import UNKNOWN, MonitorRows
from detectors.bank_shifts import ShiftFamilies
from detectors.bank_sparse import RARE_FAMILIES, RARE_SIGNALS, SparseFamilies
from detectors.bank_verdicts import STATES, VerdictTable
from detectors.base import Arrays
from detectors.budget import log_thresholds
from detectors.fingerprint import FingerprintConfig
from detectors.rate import RateDetectorConfig
from detectors.reference import ReferenceConfig
from detectors.shift import ShiftDetectorConfig
from schemas.alarm import Alarm, State, Transition
from schemas.control import Effect, Reset
from schemas.monitor import Monitor, grouping_name, parse_grouping
from schemas.signal import FIRST_TIME_MS, LAST_TIME_MS, REQUESTS, Family, Signal, SignalPacket

__all__ = ["Bank", "BankConfig", "Findings", "Material"]

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
#: What is counted seldom may be silent for so many times as long before its alarm is cleared.
RARE_PATIENCE = 24
#: For so long an alarm keeps the monitors near it from learning; after that it is the new normal.
SUSPICION_MS = 6 * 3_600_000
#: … and at most so many of them are looked at, the oldest first: they are the broadest.
SUSPECTED_ALARMS = 10
#: Evidence of nothing at all, as a number that a table can hold.
LEAST_LOG_EVIDENCE = -1e3

#: Of the snapshot's form.
VERSION = 7


@dataclass(frozen=True)
class BankConfig:
    """`share` is this bank's share of all monitors (one over the signals partitions)."""

    false_alarms_per_week: float = 1.0
    #: The same for the families that only inform.
    false_notices_per_week: float = 1.0
    share: float = 1.0
    monitors: int = 50_000
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    detector: RateDetectorConfig = field(default_factory=RateDetectorConfig)
    shift: ShiftDetectorConfig = field(
        default_factory=lambda: ShiftDetectorConfig(
            FingerprintConfig.directions, FingerprintConfig.prompt_directions
        )
    )
    materiality: Mapping[Family, Material] = field(
        default_factory=lambda: {f: Material() for f in Family}
    )
    recovery_ratio: float = 1_000.0
    no_traffic_ms: int = 900_000
    #: Detectors without a promise, beside those of the bank.
    extra: tuple[ExtraConfig, ...] = ()


class Findings(NamedTuple):
    """What one record brought about: at most one table of each group, and alarms in order."""

    verdicts: list[VerdictTable]
    alarms: list[Alarm]
    #: Of planned changes.
    effects: list[Effect]


class _Open(msgspec.Struct):
    """An alarm that stands, and the test that will clear it."""

    alarm: Alarm
    recovery: Recovery
    #: How far the watermark has come since the monitor was last heard of.
    silent_ms: int = 0


class _Slot(NamedTuple):
    """Where a family lives: its group, the group's name, and the family's place in it."""

    group: FamilyGroup[Any]
    name: str
    place: int


class Bank:
    """Detectors for the monitors of one signals partition. Memory: capped by `config.monitors`.

    A family's index is its place in `families`, over all groups.
    """

    def __init__(self, config: BankConfig) -> None:
        self.config = config
        # One visible list: a group of another kind is added here, and nowhere else in the bank.
        self._groups: dict[str, FamilyGroup[Any]] = {
            "rates": RateFamilies(
                config.reference, config.detector, config.materiality, config.recovery_ratio
            ),
            "rare": SparseFamilies(
                RateFamilies(
                    config.reference,
                    config.detector,
                    config.materiality,
                    config.recovery_ratio,
                    RARE_SIGNALS,
                )
            ),
            "shifts": ShiftFamilies(
                config.shift, config.materiality[Family.FINGERPRINT], config.recovery_ratio
            ),
        }
        self._slots = [
            _Slot(group, name, place)
            for name, group in self._groups.items()
            for place in range(len(group.families))
        ]
        self.families: tuple[Family, ...] = tuple(s.group.families[s.place] for s in self._slots)
        self._monitors = MonitorRows()
        self._last_ms: Ints = np.zeros(0, np.int64)
        self._verdict_minute: Ints = np.zeros(0, np.int64)
        #: When a planned change of the monitor was last announced, by the watermark.
        self._planned_ms: Ints = np.zeros(0, np.int64)
        self._open: dict[tuple[int, int], _Open] = {}
        self._seen: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._watermark_ms = 0
        self._planned = PlannedChanges()
        self._extra = [ExtraDetectors(each, config.recovery_ratio) for each in config.extra]

    @property
    def log_thresholds(self) -> Floats:
        """Logarithm of each family's A, shape (families,)."""
        config = self.config
        monitors = max(1.0, len(self._monitors) / config.share)
        budgets = (config.false_alarms_per_week, config.false_notices_per_week)
        return log_thresholds(self.families, monitors, *budgets)

    @property
    def monitors(self) -> int:
        return len(self._monitors)

    @property
    def open_alarms(self) -> list[Alarm]:
        alarms = [each.alarm for each in self._open.values()]
        return alarms + [alarm for extra in self._extra for alarm in extra.open_alarms]

    def update(self, packet: SignalPacket) -> Findings:
        """Take in one packet; one that was taken in before changes nothing.

        Raises:
            ValueError: its columns do not fit together, its counts are impossible, or a
                monitor stands in it twice; nothing has changed.
        """
        view = read_packet(packet)
        found = self._monitors.find(view)
        if not self._advance(packet):
            return Findings([], [], [])
        rows, view = self._find_rows(found, view)
        if not len(rows):
            return Findings([], [], [])
        batch = self._make_batch(rows, view)
        tallies = {name: group.judge(batch) for name, group in self._groups.items()}
        step_ms = self._advance_time(rows, view.columns[LAST_TIME_MS])
        # Cleared first: evidence from before a recovery cannot raise the alarm again.
        alarms = self._recover(packet, rows, tallies)
        evidence = self._log_evidence(rows)
        alarms += self._raise(packet, rows, evidence)
        self._learn(batch, tallies, evidence)
        alarms += self._clear_silent(packet, rows, step_ms)
        for extra in self._extra:
            alarms += extra.update(packet, self._monitors, batch, tallies["rates"])
        return Findings(self._report(rows), alarms, self._find_effects(rows))

    def reset(self, order: Reset) -> Findings:
        """Let the monitors that a planned change covers learn anew; ends their alarms.

        Whoever calls sees to it that an order is taken in once: it has no source.
        """
        rows = np.array([row for m, row in self._monitors if order.covers(m)], np.int64)
        for group in self._groups.values():
            self._planned.announce(order.reset_id, rows.tolist(), group.read(rows))
        covered = set(rows.tolist())
        due = [key for key in self._open if key[0] in covered]
        alarms = [self._clear(k, "planned", self._open[k].alarm.event_index) for k in due]
        for extra in self._extra:
            alarms += extra.forget(rows.tolist(), "planned", self._watermark_ms)
        for group in self._groups.values():
            group.reset(rows)
            if order.models:
                group.outdate(order.time_ms)
        self._planned_ms[rows] = self._watermark_ms
        return Findings([], alarms, [])

    def _advance(self, packet: SignalPacket) -> bool:
        source = packet.source
        key = (source.topic, source.epoch, source.partition)
        position = (source.last_offset, packet.part)
        if position <= self._seen.get(key, (-1, -1)):
            return False
        self._seen[key] = position
        return True

    def _make_batch(self, rows: Ints, view: PacketView) -> Batch:
        last, before = view.columns[LAST_TIME_MS], self._last_ms[rows]
        since = np.where(before > 0, np.minimum(last - before, MAX_GAP_MS), 0)
        gap = np.maximum(since, view.columns[REQUESTS] * MIN_GAP_MS)
        return Batch(rows, view, gap / WEEK_MS, view.columns[FIRST_TIME_MS])

    def _advance_time(self, rows: Ints, last: Ints) -> int:
        """Return how far the watermark moved."""
        before = self._watermark_ms or int(last.max())
        self._last_ms[rows] = np.maximum(self._last_ms[rows], last)
        self._watermark_ms = max(before, int(last.max()))
        return self._watermark_ms - before

    def _log_evidence(self, rows: Ints) -> Floats:
        """Shape (m, families)."""
        return np.hstack([group.log_evidence(rows) for group in self._groups.values()])

    # Rows

    def _find_rows(self, rows: Ints, view: PacketView) -> tuple[Ints, PacketView]:
        """Return the rows of the monitors that have events and a place, and the packet for them.

        `rows` are those that they have already.
        """
        active = view.columns[REQUESTS] > 0
        new = np.flatnonzero(active & (rows == UNKNOWN))
        if len(new):
            room = self._make_room(len(new), rows[active & (rows != UNKNOWN)])
            for at in new[:room].tolist():
                grouping = view.groupings[view.grouping[at]]
                rows[at] = self._monitors.add(Monitor(grouping, view.values[at]))
        kept = active & (rows != UNKNOWN)
        return (rows, view) if kept.all() else (rows[kept], view.take(np.flatnonzero(kept)))

    def _make_room(self, needed: int, keep: Ints) -> int:
        """Make room for new monitors and return for how many there is, up to `needed`."""
        over = len(self._monitors) + needed - self.config.monitors
        if over > 0:
            self._evict(over, keep)
        room = min(needed, self.config.monitors - len(self._monitors))
        free = self._monitors.capacity - len(self._monitors)
        if room > free:
            # By a quarter and not twice over: half of it would be room for nobody.
            self._grow(max(room - free, self._monitors.capacity // 4, 64))
        return room

    def _grow(self, extra: int) -> None:
        self._monitors.grow(extra)
        for group in self._groups.values():
            group.resize(self._monitors.capacity)
        blank = np.zeros(extra, np.int64)
        self._last_ms = np.concatenate([self._last_ms, blank])
        self._verdict_minute = np.concatenate([self._verdict_minute, blank])
        self._planned_ms = np.concatenate([self._planned_ms, blank])

    def _evict(self, most: int, keep: Ints) -> None:
        # The longest silent go first; one that stands alarmed, or is in this packet, stays.
        idle = np.ones(self._monitors.capacity, np.bool_)
        idle[keep] = False
        idle[self._monitors.free] = False
        idle[[row for row, _ in self._open]] = False
        for extra in self._extra:
            idle[extra.alarmed_rows] = False
        rows = np.flatnonzero(idle)
        rows = rows[np.argsort(self._last_ms[rows], kind="stable")][:most]
        self._monitors.remove(rows)
        for group in self._groups.values():
            group.reset(rows)
        self._planned.forget(rows.tolist())
        for extra in self._extra:
            extra.forget(rows.tolist(), "no_traffic", self._watermark_ms)
        self._last_ms[rows] = self._verdict_minute[rows] = self._planned_ms[rows] = 0

    # Alarms

    def _raise(self, packet: SignalPacket, rows: Ints, evidence: Floats) -> list[Alarm]:
        alarms = []
        for family, log_threshold in enumerate(self.log_thresholds.tolist()):
            over = np.flatnonzero(evidence[:, family] >= log_threshold).tolist()
            at = [i for i in over if (int(rows[i]), family) not in self._open]
            if not at:
                continue
            group, _, place = self._slots[family]
            of_family = evidence[at, family]
            for i, lead in group.find_leads(rows[at], place, log_threshold):
                row = int(rows[at[i]])
                if not self._has_lasted(row, family, lead):
                    continue
                alarm = self._make_alarm(packet, row, family, lead, float(of_family[i]))
                self._open[row, family] = _Open(alarm, group.start_recovery(row, lead))
                alarms.append(alarm)
        return alarms

    def _has_lasted(self, row: int, family: int, lead: Lead) -> bool:
        lasting_ms = self.config.materiality[self.families[family]].lasting_ms
        return int(self._last_ms[row]) - lead.change_time_ms >= lasting_ms

    def _make_alarm(
        self, packet: SignalPacket, row: int, family: int, lead: Lead, log_evidence: float
    ) -> Alarm:
        monitor = self._monitors.monitor(row)
        return Alarm(
            alarm_id=_alarm_id(packet, monitor, self.families[family]),
            transition=Transition.RAISED,
            event_index=packet.source.last_offset,
            time_ms=int(self._last_ms[row]),
            grouping=grouping_name(monitor.grouping),
            monitor=monitor.labels(),
            family=self.families[family],
            signal=lead.signal,
            direction=lead.direction,
            e_value=_exp(log_evidence),
            threshold=_exp(float(self.log_thresholds[family])),
            baseline=lead.baseline,
            current=lead.current,
            change_time_ms=lead.change_time_ms,
            edge=lead.edge,
            edges=lead.edges,
            shift=lead.shift,
        )

    def _recover(self, packet: SignalPacket, rows: Ints, tallies: dict[str, Any]) -> list[Alarm]:
        if not self._open:
            return []
        position = np.full(self._monitors.capacity, -1)
        position[rows] = np.arange(len(rows))
        cleared = []
        for key, opened in list(self._open.items()):
            at, slot = int(position[key[0]]), self._slots[key[1]]
            test, signal = opened.recovery, opened.alarm.signal
            if at >= 0 and slot.group.has_recovered(test, signal, tallies[slot.name], at):
                cleared.append(self._clear(key, "recovered", packet.source.last_offset))
        return cleared

    def _clear_silent(self, packet: SignalPacket, rows: Ints, step_ms: int) -> list[Alarm]:
        # Counted in steps of the watermark and not by comparing times: one
        # gateway with its clock a day ahead must not make all others look silent.
        if not self._open:
            return []
        heard = np.zeros(self._monitors.capacity, np.bool_)
        heard[rows] = True
        for (row, _), opened in self._open.items():
            silent = opened.silent_ms + min(step_ms, MAX_SILENT_STEP_MS)
            opened.silent_ms = 0 if heard[row] else silent
        due = [k for k, o in self._open.items() if o.silent_ms >= self._patience_ms(k[1])]
        return [self._clear(key, "no_traffic", packet.source.last_offset) for key in due]

    def _patience_ms(self, family: int) -> int:
        is_rare = self.families[family] in RARE_FAMILIES
        return self.config.no_traffic_ms * (RARE_PATIENCE if is_rare else 1)

    def _clear(self, key: tuple[int, int], reason: str, event_index: int) -> Alarm:
        opened = self._open.pop(key)
        row, family = key
        slot = self._slots[family]
        slot.group.clear(row, slot.place)
        return msgspec.structs.replace(
            opened.alarm,
            transition=Transition.CLEARED,
            event_index=event_index,
            time_ms=max(self._watermark_ms, int(self._last_ms[row])),
            clear_reason=reason,
        )

    # Learning and reporting

    def _learn(self, batch: Batch, tallies: dict[str, Any], evidence: Floats) -> None:
        quiet = evidence < np.maximum(self.log_thresholds - QUIET_MARGIN, 0.0)
        for family in sorted({family for _, family in self._open}):
            group, _, place = self._slots[family]
            at = np.flatnonzero(group.learning(batch.rows, place))
            quiet[at, family] &= ~self._find_suspects(batch.rows[at], family)
        start = 0
        for name, group in self._groups.items():
            end = start + len(group.families)
            group.learn(batch, tallies[name], quiet[:, start:end])
            start = end

    def _find_suspects(self, rows: Ints, family: int) -> Bools:
        """Monitors whose traffic may be part of what stands alarmed, themselves included.

        A monitor that learns what is normal during an incident would raise an
        alarm when it is over.
        """
        opened = [(row, o.alarm) for (row, each), o in self._open.items() if each == family]
        since = self._watermark_ms - SUSPICION_MS
        recent = [row for row, alarm in opened if alarm.time_ms >= since]
        suspects: Bools = np.zeros(len(rows), np.bool_)
        for row in recent[:SUSPECTED_ALARMS]:
            suspects |= self._monitors.overlap(rows, row)
        # Where a change was announced, what others see of it is meant to be learned.
        suspects &= (self._planned_ms[rows] == 0) | (self._planned_ms[rows] < since)
        suspects |= np.isin(rows, [row for row, _ in opened])
        return suspects

    def _find_effects(self, rows: Ints) -> list[Effect]:
        waiting = self._planned.waiting(rows.tolist())
        if not waiting:
            return []
        groups = [group.read(np.array(waiting)) for group in self._groups.values()]
        return [self._make_effect(each) for each in self._planned.settle(waiting, groups)]

    def _make_effect(self, change: Change) -> Effect:
        monitor = self._monitors.monitor(change.row)
        return Effect(
            reset_id=change.reset_id,
            time_ms=int(self._last_ms[change.row]),
            grouping=grouping_name(monitor.grouping),
            monitor=monitor.labels(),
            family=change.family,
            signal=change.signal,
            before=change.before,
            after=change.after,
        )

    def _report(self, rows: Ints) -> list[VerdictTable]:
        """Verdicts of the monitors that entered a new minute."""
        minute = self._last_ms[rows] // MINUTE_MS
        due = minute > self._verdict_minute[rows]
        if not due.any():
            return []
        rows, minute = rows[due], minute[due]
        self._verdict_minute[rows] = minute
        tables = [self._tabulate(rows, minute, group) for group in self._groups.values()]
        tables += [
            extra.tabulate(rows, minute * MINUTE_MS, self._monitors) for extra in self._extra
        ]
        return [table for table in tables if table.ready.any()]

    def _tabulate(self, rows: Ints, minute: Ints, group: FamilyGroup[Any]) -> VerdictTable:
        readings = group.read(rows)
        alarmed = np.zeros((self._monitors.capacity, len(group.families)), np.bool_)
        for row, family in self._open:
            if self._slots[family].group is group:
                alarmed[row, self._slots[family].place] = True
        evidence = group.log_evidence(rows)
        state = np.full(evidence.shape, STATES.index(State.QUIET))
        mine = [slot.group is group for slot in self._slots]
        thresholds = self.log_thresholds[mine]
        state[evidence >= thresholds] = STATES.index(State.IMMATERIAL)
        state[alarmed[rows]] = STATES.index(State.ALARMED)
        column = [group.families.index(family) for family in readings.families]
        return VerdictTable(
            monitors=[self._monitors.monitor(row) for row in rows.tolist()],
            log_thresholds=tuple(thresholds[column].tolist()),
            # The minute, not the moment: the row of a replayed minute replaces the first.
            time_ms=minute * MINUTE_MS,
            state=state[:, column],
            log_evidence=np.maximum(evidence, LEAST_LOG_EVIDENCE)[:, column],
            **readings._asdict(),
        )

    # Snapshots

    def snapshot(self) -> bytes:
        """Return the whole state, positions included."""
        return b"".join(self.write_snapshot())

    def write_snapshot(self) -> Iterator[bytes]:
        """Yield the bytes of `snapshot` piece by piece; nothing may happen in between."""
        arrays = 0
        for owner, part, each in self._parts():
            yield from frame_arrays((owner, part), each)
            arrays += len(each)
        yield frame_state(
            _BankState(
                monitors=[(m.grouping, m.values, row) for m, row in self._monitors],
                free=self._monitors.free,
                rows=self._monitors.capacity,
                last_ms=self._last_ms.tolist(),
                verdict_minute=self._verdict_minute.tolist(),
                planned_ms=self._planned_ms.tolist(),
                open=[(*key, o) for key, o in self._open.items()],
                seen=[(*key, *position) for key, position in self._seen.items()],
                watermark_ms=self._watermark_ms,
                announced=self._planned.announced,
                extra=[(extra.name, extra.snapshot()[0]) for extra in self._extra],
                arrays=arrays,
                signals=[s.value for s in Signal],
                version=VERSION,
            )
        )

    def _parts(self) -> Iterator[tuple[str, str, Arrays]]:
        for name, group in self._groups.items():
            for part, arrays in group.snapshot():
                yield name, part, arrays
        for extra in self._extra:
            yield f"extra {extra.name}", "", extra.snapshot()[1]

    @classmethod
    def restore(cls, config: BankConfig, raw: bytes) -> Bank:
        """Return a bank that goes on exactly where the snapshot was taken.

        Raises:
            ValueError: it was made by another version, or with other alternatives.
        """
        state, arrays = _decode_state(raw)
        bank = cls(config)
        monitors = [(Monitor(parse_grouping(",".join(g)), v), row) for g, v, row in state.monitors]
        bank._monitors.restore(state.rows, state.free, monitors)
        bank._last_ms = np.array(state.last_ms, np.int64)
        bank._verdict_minute = np.array(state.verdict_minute, np.int64)
        bank._planned_ms = np.array(state.planned_ms, np.int64)
        bank._open = {(r, f): o for r, f, o in state.open}
        bank._seen = {(t, e, p): (last, part) for t, e, p, last, part in state.seen}
        bank._watermark_ms = state.watermark_ms
        bank._planned.announced = state.announced
        for name, group in bank._groups.items():
            group.restore(arrays[name])
        # Of another configuration: it starts anew, and nobody else has to.
        held = dict(state.extra)
        for extra in bank._extra:
            if extra.name in held:
                extra.restore(held[extra.name], arrays[f"extra {extra.name}"][""])
        return bank


class _BankState(msgspec.Struct, forbid_unknown_fields=True):
    monitors: list[tuple[tuple[str, ...], tuple[str, ...], int]]
    free: list[int]
    rows: int
    last_ms: list[int]
    verdict_minute: list[int]
    planned_ms: list[int]
    open: list[tuple[int, int, _Open]]
    seen: list[tuple[str, str, int, int, int]]
    watermark_ms: int
    announced: dict[int, Announced]
    extra: list[tuple[str, ExtraState]]
    #: How many there are before this.
    arrays: int
    signals: list[str]
    version: int


def _decode_state(raw: bytes) -> tuple[_BankState, dict[str, Parts]]:
    *frames, last = split_frames(raw) or [memoryview(b"")]
    try:
        state = msgspec.msgpack.decode(last, type=_BankState)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a snapshot of this version: {error}") from None
    if state.version != VERSION or state.signals != [s.value for s in Signal]:
        raise ValueError(f"a snapshot of version {state.version}, for {state.signals}")
    if state.arrays != len(frames):
        raise ValueError(f"not a snapshot of this version: {len(frames)} of {state.arrays} arrays")
    return state, read_arrays(frames)


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
