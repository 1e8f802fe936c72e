"""The bank: from packets to alarms, once each; what it forgets, what it never does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from scipy.stats import poisson

from detectors.bank import Bank, BankConfig, Findings, Material
from detectors.bank_rates import SIGNALS, RateFamilies
from detectors.rate import RateDetectorConfig
from detectors.reference import ReferenceConfig
from schemas.alarm import Alarm, Direction, Rate, State, Transition, Verdict
from schemas.monitor import Dimension, Monitor
from schemas.signal import INFORMING, Family, MonitorCounts, Signal, SignalPacket, Source
from tests.support.packets import HISTOGRAMS, make_counts, make_packet

ANY_CHANGE = {family: Material(1.0, 0.0) for family in Family}
CONFIG = BankConfig()
START_MS = 1_750_000_000_000
STEP_MS = 10_000


def counts(value: str, requests: int, time_ms: int, **named: Any) -> MonitorCounts:
    """One route's counts in a packet; whatever is not given did not happen."""
    histograms = {name: named.pop(name) for name in HISTOGRAMS if name in named}
    values = named.pop("values", (value,))
    return make_counts(values, requests, time_ms, histograms=histograms, **named)


def packet(
    last: int, some: Iterable[MonitorCounts], part: int = 0, epoch: str = "e"
) -> SignalPacket:
    return make_packet(Source("events", epoch, 0, last, last), part, ("route",), some)


class Stream:
    """Feeds a bank a packet for every ten seconds of one route, or of several."""

    def __init__(self, config: BankConfig = CONFIG, seed: int = 1) -> None:
        self.bank = Bank(config)
        self.rng = np.random.default_rng(seed)
        self.at = 0
        self.findings: list[Findings] = []

    def run(
        self, steps: int, routes: Sequence[str] = ("support",), n: int = 50, **rates: float
    ) -> list[Alarm]:
        """Return the alarms of so many packets with these rates of each kind of count."""
        alarms: list[Alarm] = []
        for _ in range(steps):
            alarms += self.step(routes, n, **rates).alarms
        return alarms

    def step(self, routes: Sequence[str], n: int, **rates: float) -> Findings:
        findings = self.bank.update(self.next_packet(routes, n, **rates))
        self.findings.append(findings)
        return findings

    def next_packet(self, routes: Sequence[str], n: int, **rates: float) -> SignalPacket:
        self.at += 1
        time_ms = START_MS + self.at * STEP_MS
        return packet(self.at, [self._counts(route, n, time_ms, rates) for route in routes])

    def _counts(self, route: str, n: int, time_ms: int, rates: dict[str, float]) -> MonitorCounts:
        errors = int(self.rng.binomial(n, rates.get("errors", 0.0)))
        ok = n - errors
        slow = {name: histogram(self.rng, ok, rates[name]) for name in HISTOGRAMS if name in rates}
        return counts(
            route,
            n,
            time_ms,
            errors=errors,
            refusals=int(self.rng.binomial(ok, rates.get("refusals", 0.0))),
            truncations=int(self.rng.binomial(ok, rates.get("truncations", 0.0))),
            **slow,
        )

    @property
    def verdicts(self) -> list[Verdict]:
        return [v for f in self.findings for v in read(f)[0]]


def read(findings: Findings) -> tuple[list[Verdict], list[Alarm]]:
    """The same, with the verdicts one by one."""
    return [v for table in findings.verdicts for v in table.verdicts()], findings.alarms


def histogram(rng: np.random.Generator, n: int, scale_ms: float) -> dict[int, int]:
    """Log-normal values around `scale_ms`, in buckets of a 32nd of an octave."""
    index = np.ceil(32 * (np.log2(scale_ms) + rng.normal(0, 0.5, n))).astype(int) - 1
    return {int(b): int(c) for b, c in zip(*np.unique(index, return_counts=True), strict=True)}


# --- From a change to an alarm and back --------------------------------------------------------


def test_a_change_raises_once_and_its_end_clears_once() -> None:
    stream = Stream()
    assert stream.run(60, refusals=0.02) == []
    (raised,) = stream.run(40, refusals=0.2)
    (cleared,) = stream.run(60, refusals=0.02)
    assert raised.transition is Transition.RAISED
    assert raised.monitor == {"route": "support"}
    assert (raised.family, raised.signal) == (Family.REFUSAL, Signal.REFUSAL)
    assert raised.direction is Direction.RISE
    assert raised.e_value >= raised.threshold
    assert abs(raised.change_time_ms - (START_MS + 60 * STEP_MS)) <= STEP_MS
    assert raised.time_ms <= START_MS + 63 * STEP_MS
    assert raised.baseline.value == pytest.approx(0.02, abs=0.01)
    assert raised.current.value == pytest.approx(0.2, abs=0.07)
    assert cleared.alarm_id == raised.alarm_id
    assert cleared == structs.replace(
        raised,
        transition=Transition.CLEARED,
        clear_reason="recovered",
        event_index=cleared.event_index,
        time_ms=START_MS + cleared.event_index * STEP_MS,
    )


def test_it_can_be_raised_again_with_another_id() -> None:
    stream, alarms = Stream(), []
    stream.run(60, refusals=0.02)
    for _ in range(3):
        alarms += stream.run(40, refusals=0.2) + stream.run(60, refusals=0.02)
    assert [a.transition for a in alarms] == [Transition.RAISED, Transition.CLEARED] * 3
    assert len({a.alarm_id for a in alarms}) == 3


def test_a_raise_a_clear_and_a_raise_within_one_chunk_are_two_alarms() -> None:
    """The parts of a chunk share their offset; a worker that catches up gets them all at once."""
    stream = Stream()
    stream.run(60, refusals=0.02)
    chunk = [
        structs.replace(stream.next_packet(("support",), 50, refusals=r), part=part)
        for part, r in enumerate([0.3] * 20 + [0.02] * 60 + [0.3] * 20)
    ]
    chunk = [structs.replace(p, source=chunk[-1].source) for p in chunk]
    alarms = [a for p in chunk for a in stream.bank.update(p).alarms]
    assert [a.transition.value for a in alarms] == ["raised", "cleared", "raised"]
    assert len({a.alarm_id for a in alarms}) == 2


@pytest.mark.parametrize(
    ("before", "after", "family", "direction"),
    [
        ({"errors": 0.01}, {"errors": 0.3}, Family.ERROR, Direction.RISE),
        ({"errors": 0.3}, {"errors": 0.0}, Family.ERROR, Direction.FALL),
        ({"truncations": 0.05}, {"truncations": 0.3}, Family.TRUNCATION, Direction.RISE),
        ({"refusals": 0.4}, {"refusals": 0.1}, Family.REFUSAL, Direction.FALL),
        ({"first_chunk_ms": 400.0}, {"first_chunk_ms": 800.0}, Family.LATENCY, Direction.RISE),
        ({"output_token_us": 20e3}, {"output_token_us": 10e3}, Family.LATENCY, Direction.FALL),
    ],
)
def test_each_family_speaks_for_itself(
    before: dict[str, float], after: dict[str, float], family: Family, direction: Direction
) -> None:
    # What is already rare, as the slowest tenth is, can only be seen to fall at some length.
    stream = Stream(replace(CONFIG, materiality=ANY_CHANGE))
    assert stream.run(100, **before) == []
    (alarm,) = stream.run(60, **after)
    assert (alarm.family, alarm.direction) == (family, direction)
    (cleared,) = stream.run(400, **before)
    assert (cleared.alarm_id, cleared.clear_reason) == (alarm.alarm_id, "recovered")


def test_a_change_too_small_to_matter_is_said_but_not_raised() -> None:
    # On its first day a rate may swing so far with the hour; here it may not.
    stream = Stream(BankConfig(reference=ReferenceConfig(swing=1.0)))
    stream.run(400, refusals=0.1, n=500)
    assert stream.run(1_500, refusals=0.14, n=500) == []
    last = [v for v in stream.verdicts if v.signal is Signal.REFUSAL][-1]
    assert last.state is State.IMMATERIAL
    assert last.log_evidence > last.log_threshold + 20


def test_a_small_change_that_lasts_does_not_hide_a_large_one() -> None:
    stream = Stream()
    stream.run(400, refusals=0.02, n=500)
    assert stream.run(1_000, refusals=0.026, n=500) == []
    before = stream.at
    (alarm,) = stream.run(4, refusals=0.1, n=500)
    assert alarm.event_index - before <= 3
    assert alarm.change_time_ms >= START_MS + (before - 1) * STEP_MS
    assert alarm.current.value == pytest.approx(0.1, abs=0.04)


def test_a_fall_must_be_material_as_a_fall() -> None:
    stream = Stream(replace(CONFIG, materiality={f: Material(1.5, 0.3) for f in Family}))
    stream.run(60, refusals=0.25)
    assert stream.run(100, refusals=0.0) == []


def test_a_change_that_has_to_last_is_told_when_it_has() -> None:
    lasting_ms = 30 * STEP_MS
    material = {f: Material(difference=0.2, lasting_ms=lasting_ms) for f in Family}
    stream = Stream(replace(CONFIG, materiality=material))
    assert stream.run(60, refusals=0.02) == []
    assert stream.run(5, refusals=0.5) == []
    assert stream.run(300, refusals=0.02) == []
    (alarm,) = stream.run(40, refusals=0.5)
    assert lasting_ms <= alarm.time_ms - alarm.change_time_ms <= lasting_ms + 3 * STEP_MS


def test_a_monitor_that_starts_inside_an_incident_reports_its_end() -> None:
    """It knows no better: what it saw first is its baseline, and the return to normal a fall."""
    stream = Stream()
    assert stream.run(60, refusals=0.3) == []
    (alarm,) = stream.run(60, refusals=0.02)
    assert alarm.direction is Direction.FALL
    assert alarm.baseline.value == pytest.approx(0.3, abs=0.05)


# --- Packets -----------------------------------------------------------------------------------


def test_a_packet_that_was_taken_in_before_changes_nothing() -> None:
    stream = Stream()
    stream.run(60, refusals=0.02)
    packets = [stream.next_packet(("support",), 50, refusals=0.3) for _ in range(20)]
    assert [a for p in packets for a in stream.bank.update(p).alarms]
    after = stream.bank.snapshot()
    assert [stream.bank.update(p) for p in packets] == [([], [], [])] * 20
    assert stream.bank.snapshot() == after


def test_parts_of_one_chunk_are_all_taken_in_and_each_once() -> None:
    bank = Bank(CONFIG)
    parts = [packet(7, [counts("support", 200, START_MS)], part) for part in range(3)]
    for part in (0, 1, 1, 0, 2, 2):
        bank.update(parts[part])
    assert learned(bank, "support", Signal.ERROR) == Rate(0, 400)
    assert pending(bank, "support", Signal.ERROR) == Rate(0, 200)


def test_sources_have_positions_of_their_own() -> None:
    bank = Bank(CONFIG)
    here, again = (packet(7, [counts("support", 100, START_MS)], epoch=e) for e in ("one", "two"))
    elsewhere = structs.replace(here, source=structs.replace(here.source, partition=1))
    for each in (here, again, elsewhere):
        bank.update(each)
        bank.update(each)
    assert pending(bank, "support", Signal.ERROR).total == 0
    assert learned(bank, "support", Signal.ERROR) == Rate(0, 300)


def learned(bank: Bank, route: str, signal: Signal) -> Rate:
    return stored(bank, route, signal, "count", "total")


def pending(bank: Bank, route: str, signal: Signal) -> Rate:
    return stored(bank, route, signal, "pending_count", "pending_total")


def rates(bank: Bank) -> RateFamilies:
    group = bank._groups["rates"]
    assert isinstance(group, RateFamilies)
    return group


def edges(bank: Bank) -> list[float | None]:
    return rates(bank)._tails["first_chunk_ms"].edges(0, Signal.SLOW_FIRST_CHUNK)


def stored(bank: Bank, route: str, signal: Signal, count: str, total: str) -> Rate:
    row = bank._monitors.row(Monitor((Dimension.ROUTE,), (route,)))
    arrays, at = rates(bank)._reference.snapshot(), row * len(SIGNALS) + SIGNALS.index(signal)
    return Rate(int(arrays[count][at]), int(arrays[total][at]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"errors": 11, "answered": 0},
        {"errors": -1},
        {"refusals": 11},
        {"refusals": -1},
        {"truncations": 11},
        {"answered": 11},
        {"first_chunk_ms": {5: -1}},
        {"grouping": 1},
        {"grouping": -1},
        {"values": ("a", "b")},
    ],
)
def test_an_impossible_packet_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    stream = Stream()
    stream.run(30, refusals=0.02)
    before = stream.bank.snapshot()
    bad = counts("other", 10, START_MS, **wrong)
    with pytest.raises(ValueError, match=r"impossible|not a value"):
        stream.bank.update(packet(99, [counts("support", 10, START_MS), bad]))
    assert stream.bank.snapshot() == before


def test_a_monitor_that_stands_twice_in_a_packet_is_refused() -> None:
    bank = Bank(CONFIG)
    with pytest.raises(ValueError, match="twice"):
        bank.update(packet(1, [counts("support", 10, START_MS)] * 2))


def test_a_packet_without_requests_only_moves_the_position() -> None:
    bank = Bank(CONFIG)
    assert bank.update(packet(1, [counts("support", 0, START_MS)])) == ([], [], [])
    assert bank.update(packet(2, [])) == ([], [], [])
    assert bank.monitors == 0


# --- Time --------------------------------------------------------------------------------------


def test_events_without_a_usable_clock_are_watched_all_the_same() -> None:
    bank, rng, alarms = Bank(CONFIG), np.random.default_rng(2), []
    for at in range(1, 200):
        refused = int(rng.binomial(50, 0.02 if at < 100 else 0.25))
        same_time = counts("support", 50, START_MS, refusals=refused)
        alarms += [(at, a.transition) for a in bank.update(packet(at, [same_time])).alarms]
    assert [t for _, t in alarms] == [Transition.RAISED]
    assert alarms[0][0] < 110


def test_the_order_of_time_does_not_decide() -> None:
    """Packets of several partitions arrive interleaved, and some arrive late."""
    stream = Stream()
    packets = [stream.next_packet(("support",), 50, refusals=0.02) for _ in range(100)]
    packets += [stream.next_packet(("support",), 50, refusals=0.3) for _ in range(40)]
    order = np.argsort(np.arange(140) + np.random.default_rng(3).uniform(0, 12, 140))
    bank, alarms = Bank(CONFIG), []
    for last, at in enumerate(order, 1):
        late = structs.replace(packets[at], source=Source("events", "e", 0, last, last))
        alarms += bank.update(late).alarms
    assert [a.transition for a in alarms] == [Transition.RAISED]


def test_silence_clears_with_its_own_reason() -> None:
    stream = Stream()
    stream.run(60, ("support", "chat"), refusals=0.02)
    raised = stream.run(20, ("support", "chat"), refusals=0.3)
    assert len(raised) == 2
    assert stream.run(89, ("chat",), refusals=0.3) == []
    (cleared,) = stream.run(2, ("chat",), refusals=0.3)
    assert cleared.monitor == {"route": "support"}
    assert cleared.clear_reason == "no_traffic"
    assert [a.monitor for a in stream.bank.open_alarms] == [{"route": "chat"}]


def test_one_wrong_clock_does_not_silence_the_others() -> None:
    """One event from tomorrow, then events that carry on: the alarm stands, and stands once."""
    stream = Stream()
    stream.run(60, refusals=0.02)
    assert len(stream.run(20, refusals=0.3)) == 1
    tomorrow = counts("elsewhere", 1, START_MS + 86_400_000)
    assert stream.bank.update(packet(500, [tomorrow])).alarms == []
    stream.at = 500
    assert stream.run(200, refusals=0.3) == []
    assert len(stream.bank.open_alarms) == 1


def test_verdicts_come_once_a_minute() -> None:
    stream = Stream()
    stream.run(60, refusals=0.02, errors=0.01)
    of_refusals = [v for v in stream.verdicts if v.signal is Signal.REFUSAL]
    minutes = [v.time_ms for v in of_refusals]
    assert minutes == sorted(set(minutes))
    assert all(m % 60_000 == 0 for m in minutes)
    assert 8 <= len(minutes) <= 10
    assert {v.signal for v in stream.verdicts} == {
        Signal.REFUSAL,
        Signal.ERROR,
        Signal.TRUNCATION,
    }
    assert all(v.baseline_low <= 0.02 <= v.baseline_high for v in of_refusals)


# --- Latency -----------------------------------------------------------------------------------


def test_what_is_slow_is_settled_on_events_that_the_reference_is_not_learned_from() -> None:
    bank = Bank(CONFIG)
    first = {10: 269, 20: 1, 30: 29}
    bank.update(packet(1, [counts("support", 299, START_MS, first_chunk_ms=first)]))
    assert bank.snapshot() == Bank.restore(CONFIG, bank.snapshot()).snapshot()
    assert edges(bank) == [None]
    # One more makes 300, of which 270 lie at or below bucket 20: the smallest such bucket.
    bank.update(packet(2, [counts("support", 1, START_MS, first_chunk_ms={30: 1})]))
    assert edges(bank) == [2 ** (21 / 32)]
    assert pending(bank, "support", Signal.SLOW_FIRST_CHUNK) == Rate(0, 0)
    later = {20: 250, 21: 40, 30: 10}
    bank.update(packet(3, [counts("support", 300, START_MS, first_chunk_ms=later)]))
    assert learned(bank, "support", Signal.SLOW_FIRST_CHUNK) == Rate(50, 300)


def test_a_latency_alarm_says_what_is_slow() -> None:
    stream = Stream(seed=2)
    stream.run(100, first_chunk_ms=400.0)
    (alarm,) = stream.run(20, first_chunk_ms=900.0)
    assert alarm.signal is Signal.SLOW_FIRST_CHUNK
    # The 90th percentile of the log-normal: 400 · 2^(0.5 · 1.2816).
    assert alarm.edge == pytest.approx(400 * 2 ** (0.5 * 1.2816), rel=0.08)


def test_the_evidence_of_a_family_is_the_mean_of_its_signals() -> None:
    stream = Stream()
    stream.run(100, first_chunk_ms=400.0, output_token_us=20e3)
    stream.run(1, first_chunk_ms=900.0, output_token_us=20e3)
    latency = [SIGNALS.index(s) for s in (Signal.SLOW_FIRST_CHUNK, Signal.SLOW_OUTPUT)]
    group = rates(stream.bank)
    (of_family,) = group.log_evidence(np.array([0]))
    each = group._detector.log_evidence(np.array(latency))
    mean = of_family[group.families.index(Family.LATENCY)]
    assert mean == pytest.approx(np.log(np.exp(each).mean()))
    (refusal,) = group._detector.log_evidence(np.array([SIGNALS.index(Signal.REFUSAL)]))
    assert of_family[group.families.index(Family.REFUSAL)] == pytest.approx(refusal)


# --- The threshold and the cap -----------------------------------------------------------------


@pytest.mark.parametrize(("monitors", "share", "budget"), [(1, 1, 1), (8, 0.25, 1), (40, 0.5, 7)])
def test_the_thresholds_share_two_budgets(monitors: int, share: float, budget: float) -> None:
    config = BankConfig(false_alarms_per_week=budget, false_notices_per_week=5.0, share=share)
    bank = Bank(config)
    bank.update(packet(1, [counts(f"r{i}", 1, START_MS) for i in range(monitors)]))
    allowed = dict(zip(bank.families, monitors / share / np.exp(bank.log_thresholds), strict=True))
    notices = [allowed.pop(family) for family in INFORMING]
    assert sum(notices) == pytest.approx(5.0)
    assert sum(allowed.values()) == pytest.approx(budget)
    assert allowed[Family.REFUSAL] == pytest.approx(4 * allowed[Family.COST])


def test_the_longest_silent_monitor_makes_room() -> None:
    bank = Bank(BankConfig(monitors=3))
    for at, route in enumerate(("a", "b", "c", "a", "d"), 1):
        bank.update(packet(at, [counts(route, 400, START_MS + at * STEP_MS)]))
    assert watched(bank) == {"a", "c", "d"}
    bank.update(packet(9, [counts("b", 10, START_MS + 9 * STEP_MS)]))
    # It comes back as one that has never been: its reference went with it.
    assert watched(bank) == {"a", "b", "d"}
    assert learned(bank, "b", Signal.ERROR).total == 0


def test_an_alarmed_monitor_is_never_evicted() -> None:
    stream = Stream(BankConfig(monitors=2))
    stream.run(60, ("a",), refusals=0.02)
    assert len(stream.run(20, ("a",), refusals=0.4)) == 1
    for route in ("b", "c", "d", "e"):
        stream.run(1, (route,))
    assert watched(stream.bank) == {"a", "e"}
    assert len(stream.bank.open_alarms) == 1


@pytest.mark.parametrize("known", [0, 2, 5])
def test_more_new_monitors_than_there_is_room_for_leave_the_rest_unwatched(known: int) -> None:
    bank = Bank(BankConfig(monitors=5))
    bank.update(packet(1, [counts(f"old{i}", 10, START_MS) for i in range(known)]))
    kept = [f"old{i}" for i in range(known)]
    crowd = [*(f"new{i}" for i in range(12)), *kept]
    bank.update(packet(2, [counts(r, 10, START_MS + STEP_MS) for r in crowd]))
    assert bank.monitors == 5
    assert watched(bank) == {*kept, *(f"new{i}" for i in range(5 - known))}
    # Those that have a place keep it.
    bank.update(packet(3, [counts(r, 10, START_MS + 2 * STEP_MS) for r in reversed(crowd)]))
    assert watched(bank) == {*kept, *(f"new{i}" for i in range(5 - known))}


def watched(bank: Bank) -> set[str]:
    return {monitor.values[0] for monitor, _ in bank._monitors}


def test_five_thousand_monitors_fit_into_one_packet() -> None:
    bank, routes = Bank(CONFIG), [f"r{i}" for i in range(5_000)]
    for at in range(1, 4):
        some = [counts(r, 400, START_MS + at * STEP_MS, refusals=8) for r in routes]
        assert bank.update(packet(at, some)).alarms == []
    bad = [counts(r, 400, START_MS + 40_000, refusals=200 if r == "r4711" else 8) for r in routes]
    (alarm,) = bank.update(packet(4, bad)).alarms
    assert alarm.monitor == {"route": "r4711"}
    assert alarm.threshold == pytest.approx(np.exp(bank.log_thresholds[0]))


# --- Snapshots ---------------------------------------------------------------------------------


def make_packets(seed: int) -> list[SignalPacket]:
    """Three routes through quiet, trouble, silence and recovery, with latencies."""
    stream, packets = Stream(seed=seed), []
    quiet = {"refusals": 0.05, "errors": 0.01, "first_chunk_ms": 300.0}
    for steps, routes, changed in (
        (25, ("a", "b", "c"), {}),
        (10, ("a", "b"), {"refusals": 0.5}),
        (10, ("a", "d"), {"first_chunk_ms": 900.0}),
        (15, ("a", "b", "d"), {}),
    ):
        rates = {**quiet, **changed}
        packets += [stream.next_packet(routes, 40, **rates) for _ in range(steps)]
    return packets


SMALL = BankConfig(monitors=3, reference=ReferenceConfig(learn=200), no_traffic_ms=60_000)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5), cuts=st.sets(st.integers(0, 59), min_size=1, max_size=6))
def test_a_restored_bank_goes_on_bit_for_bit(seed: int, cuts: set[int]) -> None:
    """Wherever it is cut, and though the last packets before the cut come again."""
    whole, resumed, raised = Bank(SMALL), Bank(SMALL), 0
    packets = make_packets(seed)
    for at, each in enumerate(packets):
        if at in cuts:
            resumed = Bank.restore(SMALL, resumed.snapshot())
            for again in packets[max(0, at - 3) : at]:
                assert resumed.update(again) == ([], [], [])
        expected = read(whole.update(each))
        assert read(resumed.update(each)) == expected
        raised += len(expected[1])
    assert raised >= 3
    assert resumed.snapshot() == whole.snapshot()


def test_the_evidence_that_is_kept_is_what_the_detectors_say() -> None:
    """Through alarms and their ends, eviction and resumption, and from the first."""
    config = replace(SMALL, detector=RateDetectorConfig(head_start=1e-3))
    bank = Bank(config)
    for at, each in enumerate(make_packets(1)):
        if at == 30:
            bank = Bank.restore(config, bank.snapshot())
        bank.update(each)
        group = rates(bank)
        streams = np.arange(bank._monitors.capacity * len(SIGNALS))
        assert np.array_equal(group._log_e, group._detector.log_evidence(streams))
        assert np.array_equal(group._log_e_beyond, group._beyond.log_evidence(streams))
    assert np.isfinite(group._log_e).all()


def test_a_snapshot_of_another_make_is_refused() -> None:
    stream = Stream()
    stream.run(10)
    raw = stream.bank.snapshot()
    pieces = list(stream.bank.write_snapshot())
    other = BankConfig(detector=RateDetectorConfig((2.0,)))
    for config, wrong, why in (
        (CONFIG, b"\xc1", "not a snapshot"),
        (CONFIG, raw[:-1], "it is cut off"),
        (CONFIG, raw + b"\x00", "it is cut off"),
        (CONFIG, b"".join(pieces[1:]), "arrays"),
        (CONFIG, b"".join([pieces[-1], *pieces[1:]]), "no array|not a snapshot"),
        (CONFIG, b"", "not a snapshot"),
        (CONFIG, raw[:-1] + b"\x01", "version 1"),
        (other, raw, "other alternatives"),
    ):
        with pytest.raises(ValueError, match=why):
            Bank.restore(config, wrong)


def test_a_small_and_slow_fleet_learns_as_well() -> None:
    """Where the threshold is low, chance alone brings evidence near it; that is no reason to stop.

    What is discarded then would be just what happened to run high, and the
    reference of what is left too low.
    """
    config = BankConfig(false_alarms_per_week=20, materiality=ANY_CHANGE)
    bank, rng, routes = Bank(config), np.random.default_rng(5), [f"r{i}" for i in range(20)]
    for at in range(1, 1_001):
        refused = rng.binomial(20, 0.03, 20)
        time_ms = START_MS + at * 1_200_000
        some = [
            counts(r, 20, time_ms, refusals=int(k)) for r, k in zip(routes, refused, strict=True)
        ]
        bank.update(packet(at, some))
    rates = [learned(bank, r, Signal.REFUSAL) for r in routes]
    assert np.mean([r.total for r in rates]) > 8_000
    assert sum(r.count for r in rates) / sum(r.total for r in rates) == pytest.approx(
        0.03, rel=0.03
    )


# --- The promise -------------------------------------------------------------------------------


def null_week(config: BankConfig, seed: int, monitors: int, step_ms: int) -> int:
    """False alarms in a week in which no rate changes, and traffic follows day and night."""
    rng, bank, alarms = np.random.default_rng(seed), Bank(config), 0
    refusals, errors = rng.uniform(0.002, 0.1, (2, monitors))
    truncations, volume = rng.uniform(0.01, 0.3, monitors), rng.lognormal(3.5, 1, monitors)
    for at in range(1, 7 * 86_400_000 // step_ms + 1):
        time_ms = at * step_ms
        day = 1 + 0.9 * np.sin(2 * np.pi * time_ms / 86_400_000)
        n = rng.poisson(volume * day)
        failed = rng.binomial(n, errors)
        ok = n - failed
        k = zip(
            *(n, failed, rng.binomial(ok, refusals), rng.binomial(ok, truncations)),
            *(rng.multinomial(ok, [0.5, 0.3, 0.12, 0.05, 0.03]) for _ in range(2)),
            strict=True,
        )
        some = [
            counts(
                f"r{i}",
                int(each[0]),
                START_MS + time_ms,
                errors=int(each[1]),
                refusals=int(each[2]),
                truncations=int(each[3]),
                first_chunk_ms=dict(enumerate(each[4].tolist())),
                output_token_us=dict(enumerate(each[5].tolist())),
            )
            for i, each in enumerate(k)
        ]
        found = bank.update(packet(at, some)).alarms
        alarms += sum(a.transition is Transition.RAISED for a in found)
    return alarms


def test_a_week_without_a_change_stays_within_its_budget() -> None:
    """200 monitors and all their signals, with any change counted as one that matters.

    A budget of 20 a week; the number of false alarms is at most Poisson with that
    mean, plus one for each of 1,000 streams with a probability of 1e-3, so that
    more than 41 would come up once in ten thousand times.
    """
    config = BankConfig(false_alarms_per_week=20, materiality=ANY_CHANGE)
    most = int(poisson.isf(1e-4, 20 + 1_000 * config.reference.miss))
    assert null_week(config, seed=1, monitors=200, step_ms=1_800_000) <= most


def test_that_week_would_show_evidence_that_is_not_honest() -> None:
    """With evidence that nothing has earned, the same week breaks the same budget."""
    config = BankConfig(
        false_alarms_per_week=20,
        materiality=ANY_CHANGE,
        detector=RateDetectorConfig(head_start=1e4),
    )
    most = int(poisson.isf(1e-4, 21))
    assert null_week(config, seed=1, monitors=100, step_ms=3_600_000) > most
