"""The detectors' shell: state exactly once, verdicts and alarms never lost."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from msgspec import structs

from detectors.bank import Bank, BankConfig
from detectors.bank_verdicts import VerdictTable
from pipeline.core.chunk import Record
from pipeline.detect import DetectorRunner
from pipeline.errors import SinkUnavailable
from schemas.alarm import Alarm, Rate, Verdict
from schemas.control import Effect, Reset, decode_signals, encode_reset
from schemas.monitor import Dimension
from schemas.signal import Signal, SignalPacket, Source, encode_packet
from tests.support.packets import make_counts, make_packet

START_MS = 1_750_000_000_000
CHANGE, PACKETS = 60, 120


def log(until: int = 80) -> list[Record]:
    """The signals of one partition: a route that refuses from packet 60 on."""
    rng = np.random.default_rng(3)
    records = []
    for i in range(PACKETS):
        time_ms = START_MS + i * 10_000
        refusals = int(rng.binomial(50, 0.4 if CHANGE <= i < until else 0.01))
        counts = make_counts(("support",), 50, time_ms + 9_999, refusals=refusals)
        packet = make_packet(Source("events", "e", 0, i, i), 0, ("route",), [counts])
        records.append(Record(i, time_ms, encode_packet(packet)))
    return records


class FakeStore:
    """What outlives a worker; fails as often as it is told to."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[int, str], Verdict] = {}
        self.alarms: dict[tuple[str, str], Alarm] = {}
        self.resets: dict[str, Reset] = {}
        self.effects: dict[tuple[str, str], Effect] = {}
        self.snapshot: tuple[int, bytes] | None = None
        self.failures = 0

    def store_verdicts(self, tables: Sequence[VerdictTable]) -> None:
        self._maybe_fail()
        self.verdicts |= {(v.time_ms, v.signal): v for table in tables for v in table.verdicts()}

    def store_alarms(self, alarms: Sequence[Alarm]) -> None:
        self._maybe_fail()
        self.alarms |= {(a.alarm_id, a.transition): a for a in alarms}

    def store_resets(self, resets: Sequence[Reset]) -> None:
        self._maybe_fail()
        self.resets |= {each.reset_id: each for each in resets}

    def store_effects(self, effects: Sequence[Effect]) -> None:
        self._maybe_fail()
        self.effects |= {(e.reset_id, e.signal): e for e in effects}

    def save_snapshot(
        self, topic: str, epoch: str, partition: int, position: int, state: Iterable[bytes]
    ) -> None:
        self._maybe_fail()
        self.snapshot = (position, b"".join(state))

    def load_snapshot(self, topic: str, epoch: str, partition: int) -> tuple[int, bytes] | None:
        return self.snapshot

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise SinkUnavailable("away")


class Life:
    """One worker over what outlives it."""

    def __init__(self, store: FakeStore, published: list[Alarm]) -> None:
        self.now_s = 0.0
        self.published = published
        self.committed: int | None = None
        self.runner = DetectorRunner(
            BankConfig(),
            store,  # type: ignore[arg-type]
            "signals",
            "e",
            snapshot_interval_s=30.0,
            clock=lambda: self.now_s,
        )

    def take(self, records: Sequence[Record]) -> None:
        while True:
            self.now_s += 5.0
            try:
                self.published += self.runner.detect(0, records)
                committed = self.runner.settle(0)
            except SinkUnavailable:
                continue
            self.committed = committed if committed is not None else self.committed
            return


#: At offset 70 somebody says that the route is meant to refuse so often from now on.
ORDER = Reset(
    reset_id="r1",
    time_ms=START_MS + 700_000,
    slices=({Dimension.ROUTE: "support"},),
    note="stricter prompt",
)


def planned() -> list[Record]:
    """The same log with a change that stays, and was announced."""
    every = log(until=PACKETS)
    every.insert(70, Record(70, ORDER.time_ms, encode_reset(ORDER)))
    return [structs.replace(record, offset=at) for at, record in enumerate(every)]


def undisturbed(records: Sequence[Record]) -> tuple[FakeStore, list[Alarm], bytes]:
    store, published = FakeStore(), []
    life = Life(store, published)
    life.take(records)
    assert store.snapshot is not None
    return store, published, store.snapshot[1]


def test_an_incident_is_raised_and_cleared() -> None:
    _, published, _ = undisturbed(log())
    assert [a.transition for a in published] == ["raised", "cleared"]
    assert CHANGE <= published[0].event_index < CHANGE + 5


def test_a_planned_change_ends_its_alarm_and_is_reported_instead() -> None:
    store, published, _ = undisturbed(planned())
    assert [(a.transition, a.clear_reason) for a in published] == [
        ("raised", ""),
        ("cleared", "planned"),
    ]
    assert store.resets == {"r1": ORDER}
    effect = store.effects["r1", Signal.REFUSAL]
    assert effect.monitor == {"route": "support"}
    assert effect.before.value == pytest.approx(0.01, abs=0.01)
    assert effect.after.value == pytest.approx(0.4, abs=0.1)
    assert store.effects["r1", Signal.ERROR].after == Rate(0, effect.after.total)
    assert {signal for _, signal in store.effects} == {"refusal", "error", "truncation"}


def test_without_the_announcement_it_stands_alarmed() -> None:
    _, published, _ = undisturbed(log(until=PACKETS))
    assert [a.transition for a in published] == ["raised"]


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_after_any_crash_the_state_is_that_of_an_undisturbed_run(
    seed: int, announced: bool
) -> None:
    records = planned() if announced else log()
    expected_store, expected_alarms, _ = undisturbed(records)
    rng = random.Random(seed)
    store, published = FakeStore(), []
    position = 0
    while position < len(records):
        # Whoever comes next starts at the committed offset, which is that of a snapshot.
        life = Life(store, published)
        at = 0 if store.snapshot is None else store.snapshot[0] + 1
        for _ in range(rng.randint(1, 6)):
            size = rng.randint(1, 12)
            store.failures = rng.choice([0, 0, 1, 2])
            life.take(records[at : at + size])
            at = min(at + size, len(records))
        position = at
    final = Life(store, published)
    at = 0 if store.snapshot is None else store.snapshot[0] + 1
    final.take(records[at:] or records[-1:])
    final.now_s += 100
    final.take(records[-1:])
    assert store.snapshot is not None
    assert store.snapshot[0] == len(records) - 1
    whole = Bank(BankConfig())
    for record in records:
        order = decode_signals(record.value or b"")
        whole.update(order) if isinstance(order, SignalPacket) else whole.reset(order)
    assert store.snapshot[1] == whole.snapshot(), "bit for bit"
    assert store.verdicts == expected_store.verdicts
    assert (store.resets, store.effects) == (expected_store.resets, expected_store.effects)
    assert {(a.alarm_id, a.transition) for a in published} == {
        (a.alarm_id, a.transition) for a in expected_alarms
    }


def test_a_snapshot_of_another_version_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.snapshot = (40, b"not one of ours")
    life = Life(store, [])
    with caplog.at_level(logging.WARNING):
        life.take(log())
    assert "start anew" in caplog.text
    assert life.published, "it learns again, and finds the change"


def test_what_is_none_of_ours_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    junk = Record(0, START_MS, b"junk")
    rest = [structs.replace(r, offset=r.offset + 1) for r in log()]
    life = Life(FakeStore(), [])
    with caplog.at_level(logging.WARNING):
        life.take([junk, Record(0, START_MS, None), *rest])
    assert "offset 0" in caplog.text
    assert [a.transition for a in life.published] == ["raised", "cleared"]
