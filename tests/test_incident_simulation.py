"""Incidents of known cause: what is named, in the small form of `benchmarks.incidents`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from benchmarks.incidents import (
    SETTLED_MS,
    Engine,
    Incident,
    count_slices,
    draw_incident,
    judge,
    monitors_of,
    raise_alarm,
    summarise,
)
from pipeline.incidents.diagnosis import diagnose
from schemas.alarm import Alarm
from schemas.monitor import OTHER
from schemas.signal import Signal

SEED = 5
DRAWN = 16


@pytest.fixture(scope="module")
def incidents() -> list[tuple[Incident, Alarm]]:
    drawn = [draw_incident(number, SEED) for number in range(DRAWN)]
    return [(i, a) for i in drawn if (a := raise_alarm(i, SEED)) is not None]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedded_path: Path) -> Iterator[Engine]:
    engine = Engine(embedded_path, database="simulated")
    yield engine
    engine.close()


def test_the_cause_is_named_and_the_symptom_is_right(
    incidents: list[tuple[Incident, Alarm]],
) -> None:
    judged = [
        judge(i, diagnose(a, count_slices(i, a, a.time_ms + SETTLED_MS))) for i, a in incidents
    ]
    assert len(judged) >= DRAWN - 2
    assert sum(j["cause"] for j in judged) >= 0.9 * len(judged), judged
    assert sum(j["symptom"] for j in judged) >= 0.9 * len(judged), judged


def test_an_incident_is_the_same_for_the_same_seed() -> None:
    one, other = draw_incident(3, SEED), draw_incident(3, SEED)
    assert (one.time_ms == other.time_ms).all()
    assert raise_alarm(one, SEED) == raise_alarm(other, SEED) is not None
    assert (draw_incident(4, SEED).time_ms != one.time_ms).any()


@pytest.mark.parametrize(
    "signal", [Signal.ERROR, Signal.REFUSAL, Signal.SLOW_OUTPUT, Signal.FINGERPRINT]
)
def test_the_sql_counts_what_a_plain_count_does(engine: Engine, signal: Signal) -> None:
    drawn = (draw_incident(number, SEED) for number in itertools.count())
    seen = ((i, raise_alarm(i, SEED)) for i in drawn if i.signal is signal)
    incident, alarm = next((i, a) for i, a in seen if a is not None)
    engine.load(incident)
    found = engine.investigate(alarm, alarm.time_ms)
    plain = count_slices(incident, alarm, alarm.time_ms)
    assert {s.labels for s in found.slices} == {s.labels for s in plain.slices}
    if signal is not Signal.FINGERPRINT:
        assert set(found.slices) == set(plain.slices)
    else:
        # Single precision in the store: a request on the very edge may fall on either side.
        totals = {s.labels: (s.before.total, s.after_inside.total) for s in plain.slices}
        assert {s.labels: (s.before.total, s.after_inside.total) for s in found.slices} == totals
    assert {e for e in found.errors if e.after.count} == {e for e in plain.errors if e.after.count}
    assert found.as_alarmed == plain.as_alarmed


@pytest.mark.parametrize(
    "signal", [Signal.ERROR, Signal.REFUSAL, Signal.SLOW_OUTPUT, Signal.FINGERPRINT]
)
def test_a_crowd_is_counted_as_each_of_it_alone(engine: Engine, signal: Signal) -> None:
    drawn = (draw_incident(number, SEED) for number in itertools.count())
    seen = ((i, raise_alarm(i, SEED)) for i in drawn if i.signal is signal)
    incident, lead = next((i, a) for i, a in seen if a is not None)
    engine.load(incident)
    until_ms = lead.time_ms + SETTLED_MS
    cause = diagnose(lead, engine.investigate(lead, until_ms)).cause
    assert cause.labels
    crowd = [
        structs.replace(lead, alarm_id=f"a{i}", monitor=dict(monitor))
        for i, monitor in enumerate(list(monitors_of(incident))[:40])
    ]
    others = structs.replace(lead, alarm_id="others", monitor={"tenant": OTHER})
    found = engine.compare(lead, cause.labels, [*crowd, others], until_ms)
    assert set(found) == {alarm.alarm_id for alarm in crowd}
    for alarm in crowd[:: len(crowd) // 8]:
        alone = engine.investigate(alarm, until_ms)
        (part,) = (s for s in found[alarm.alarm_id].slices if s.labels)
        (same,) = (s for s in alone.slices if dict(s.labels) == cause.labels)
        # Held against everything.
        everything = engine.compare(lead, {}, [alarm], until_ms)[alarm.alarm_id]
        counted = (*part[3:], *found[alarm.alarm_id].whole[3:], *everything.whole[1:])
        singly = (*same[3:], *alone.whole[3:], *alone.whole[1:])
        if signal is Signal.FINGERPRINT:
            # What is odd is the lead's; an alarm alone has its own monitor's.
            assert [rate.total for rate in counted] == [rate.total for rate in singly]
        else:
            assert counted == singly


def test_the_figures_count_what_was_missed() -> None:
    good = {"cause": True, "symptom": True}
    row = {"signal": "error", "shape": "route", "shifted": "", "seen_by": {"route": "a"}}
    rows = [
        {**row, "page": good, "settled": good, "delay_s": 4.0},
        {**row, "page": {**good, "cause": False}, "settled": good, "delay_s": 8.0},
        {**row, "seen_by": None},
    ]
    figures = summarise(rows)
    assert (figures["incidents"], figures["alarmed"], figures["cause_first"]) == (3, 2, 0.5)
    assert (figures["cause_first_settled"], figures["symptom_right"]) == (1.0, 1.0)
    assert figures["by_shape"]["route"]["incidents"] == 2
    assert figures["misses"] == [rows[1]]
