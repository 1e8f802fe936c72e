"""The detectors' shell: state exactly once, verdicts and alarms never lost."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import numpy as np
import pytest
from msgspec import structs

from detectors.bank import Bank, BankConfig
from detectors.bank_verdicts import VerdictTable
from pipeline.core.chunk import Record
from pipeline.detect import DetectorRunner
from pipeline.errors import SinkUnavailable
from schemas.alarm import Alarm, Verdict
from schemas.signal import Source, decode_packet, encode_packet
from tests.support.packets import make_counts, make_packet

START_MS = 1_750_000_000_000
CHANGE, PACKETS = 60, 120


def log() -> list[Record]:
    """The signals of one partition: a route that refuses from packet 60 to 80."""
    rng = np.random.default_rng(3)
    records = []
    for i in range(PACKETS):
        time_ms = START_MS + i * 10_000
        refusals = int(rng.binomial(50, 0.4 if CHANGE <= i < 80 else 0.01))
        counts = make_counts(("support",), 50, time_ms + 9_999, refusals=refusals)
        packet = make_packet(Source("events", "e", 0, i, i), 0, ("route",), [counts])
        records.append(Record(i, time_ms, encode_packet(packet)))
    return records


class FakeStore:
    """What outlives a worker; fails as often as it is told to."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[int, str], Verdict] = {}
        self.alarms: dict[tuple[str, str], Alarm] = {}
        self.snapshot: tuple[int, bytes] | None = None
        self.failures = 0

    def store_verdicts(self, tables: Sequence[VerdictTable]) -> None:
        self._maybe_fail()
        self.verdicts |= {(v.time_ms, v.signal): v for table in tables for v in table.verdicts()}

    def store_alarms(self, alarms: Sequence[Alarm]) -> None:
        self._maybe_fail()
        self.alarms |= {(a.alarm_id, a.transition): a for a in alarms}

    def save_snapshot(
        self, topic: str, epoch: str, partition: int, position: int, state: bytes
    ) -> None:
        self._maybe_fail()
        self.snapshot = (position, state)

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


def undisturbed() -> tuple[FakeStore, list[Alarm], bytes]:
    store, published = FakeStore(), []
    life = Life(store, published)
    life.take(log())
    assert store.snapshot is not None
    return store, published, store.snapshot[1]


def test_an_incident_is_raised_and_cleared() -> None:
    _, published, _ = undisturbed()
    assert [a.transition for a in published] == ["raised", "cleared"]
    assert CHANGE <= published[0].event_index < CHANGE + 5


@pytest.mark.parametrize("seed", range(40))
def test_after_any_crash_the_state_is_that_of_an_undisturbed_run(seed: int) -> None:
    expected_store, expected_alarms, _ = undisturbed()
    rng, records = random.Random(seed), log()
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
    assert store.snapshot[0] == PACKETS - 1
    whole = Bank(BankConfig())
    for record in records:
        whole.update(decode_packet(record.value or b""))
    assert store.snapshot[1] == whole.snapshot(), "bit for bit"
    assert store.verdicts == expected_store.verdicts
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
