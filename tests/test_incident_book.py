"""One cause, one incident, one page: what merges, what does not, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from pipeline.incidents.book import Entry, IncidentBook, coalesce
from schemas.alarm import Alarm, Direction, Rate
from schemas.incident import (
    Action,
    Cause,
    Severity,
    Status,
    decode_incident,
    encode_incident,
)
from schemas.signal import Family, Signal
from tests.support.alarms import CHANGE_MS, Traffic, clear, make_alarm, observe
from tests.support.desk import ERRORS, NOBODY, Desk, desk_with, the, the_open, world_of

# --- One cause ---------------------------------------------------------------------------------


def test_an_outage_that_many_monitors_see_is_one_incident() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), Family.ERROR)
    first = the(desk.see(1, {"provider": "b", "region": "eu"}, **ERRORS))
    assert first.action is Action.TRIGGER
    assert first.incident.cause.labels == {"provider": "b"}
    assert first.incident.severity is Severity.CRITICAL
    monitors = [
        {"request_model": "b-1"},
        {"provider": "b", "region": "us"},
        {"route": "chat"},
        {"tenant": "t2"},
        {"request_model": "b-1", "route": "report"},
    ]
    for number, monitor in enumerate(monitors, 2):
        entry = the(desk.see(number, monitor, **ERRORS))
        assert entry.action is Action.UPDATE
        assert entry.incident.incident_id == first.incident.incident_id
        assert entry.incident.version == number
        assert entry.incident.cause.labels == {"provider": "b"}
    assert len(the_open(desk).alarms) == 6


def test_a_cause_that_was_named_too_narrowly_is_put_right() -> None:
    """When one region alarmed, nothing else had failed yet; then the whole provider had."""
    early = world_of(({"provider": "b", "region": "eu"}, 0.4), now=20)
    desk = desk_with(early, Family.ERROR)
    first = the(desk.see(1, {"provider": "b", "region": "eu"}, **ERRORS)).incident
    assert first.cause.labels == {"provider": "b", "region": "eu"}
    desk.worlds[Family.ERROR] = world_of(({"provider": "b"}, 0.4))
    later = the(desk.see(2, {"route": "chat"}, **ERRORS)).incident
    assert later.incident_id == first.incident_id
    assert later.cause.labels == {"provider": "b"}
    assert "for provider=b since" in later.summary
    assert "provider=b, region=eu, where it was first seen" in later.summary


def test_two_symptoms_of_one_cause_are_one_incident() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), Family.ERROR)
    desk.worlds[Family.LATENCY] = world_of(({"provider": "b"}, 0.5))
    first = the(desk.see(1, {"tenant": "t1"}, **ERRORS)).incident
    slow = {"family": Family.LATENCY, "signal": Signal.SLOW_OUTPUT, "edge": 3e4}
    both = the(desk.see(2, {"provider": "b", "region": "us"}, **slow)).incident
    assert both.incident_id == first.incident_id
    assert both.family is Family.ERROR
    assert both.summary.startswith("Errors rose")


def test_what_strikes_everything_is_one_incident() -> None:
    desk = desk_with(world_of(({}, 0.4)), Family.ERROR)
    for number, monitor in enumerate(({"tenant": "t1"}, {"route": "chat"}, {"provider": "a"}), 1):
        desk.see(number, monitor, **ERRORS)
    assert the_open(desk).cause.labels == {}
    assert len(the_open(desk).alarms) == 3


def test_a_new_prompt_version_is_one_incident() -> None:
    world = world_of()
    world += [
        Traffic({**t.labels, "prompt_version": "v2"}, Rate(0, 0), Rate(85, 250))
        for t in world
        if t.labels["prompt_name"] == "ask"
    ]
    desk = desk_with(world)
    for number, monitor in enumerate(
        ({"route": "chat"}, {"prompt_name": "ask"}, {"tenant": "t1"}, {"request_model": "a-1"}), 1
    ):
        desk.see(number, monitor)
    assert the_open(desk).cause.labels == {"prompt_name": "ask", "prompt_version": "v2"}
    assert "which is new" in the_open(desk).summary
    assert the_open(desk).suggestion.startswith("Roll the prompt template back")


# --- Two causes --------------------------------------------------------------------------------


def test_two_causes_at_once_are_two_incidents() -> None:
    world = world_of(({"prompt_name": "sum"}, 0.3))
    desk = desk_with(world)
    desk.worlds[Family.ERROR] = world_of(({"provider": "b"}, 0.4))
    desk.see(1, {"prompt_name": "sum"})
    desk.see(2, {"provider": "b", "region": "eu"}, **ERRORS)
    desk.see(3, {"route": "report"})
    desk.see(4, {"request_model": "b-1"}, **ERRORS)
    causes = [(i.family, i.cause.labels, len(i.alarms)) for i in desk.book.open]
    assert causes == [
        (Family.REFUSAL, {"prompt_name": "sum"}, 2),
        (Family.ERROR, {"provider": "b"}, 2),
    ]


def test_a_slice_with_most_of_the_traffic_does_not_swallow_another_cause() -> None:
    """Seven in ten of the refusals are the failing provider's, as are seven in ten requests."""
    refusals = [
        t._replace(after=Rate(t.after.count * 2, t.after.total * 2))
        if t.labels["provider"] == "b"
        else t
        for t in world_of(({"prompt_name": "sum"}, 0.3))
    ]
    desk = desk_with(refusals)
    desk.worlds[Family.ERROR] = world_of(({"provider": "b"}, 0.4))
    desk.see(1, {"provider": "b", "region": "eu"}, **ERRORS)
    desk.see(2, {"route": "report"})
    assert [i.family for i in desk.book.open] == [Family.ERROR, Family.REFUSAL]


def test_the_same_cause_much_later_is_another_incident() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), Family.ERROR)
    desk.see(1, {"route": "chat"}, **ERRORS)
    late = CHANGE_MS + desk.config.overlap_ms + 60_001
    desk.see(2, {"tenant": "t1"}, change_time_ms=late, time_ms=late + 60_000, **ERRORS)
    assert len(desk.book.open) == 2


# --- How loud ----------------------------------------------------------------------------------


def mixed_world() -> list[Traffic]:
    return [
        t._replace(before=Rate(300, 1_000), after=Rate(1_500, 5_000))
        if t.labels["tenant"] == "t3"
        else t
        for t in world_of()
    ]


def test_traffic_that_moved_informs_and_goes_on_informing() -> None:
    desk = desk_with(mixed_world())
    opened = the(desk.see(1, {"route": "chat"})).incident
    assert opened.severity is Severity.INFO
    assert "because traffic moved" in opened.summary
    assert opened.suggestion == ""
    for number, monitor in enumerate(({"prompt_name": "sum"}, {"request_model": "a-1"}), 2):
        desk.see(number, monitor)
    assert all(i.severity is Severity.INFO for i in desk.book.open)
    assert all("because traffic moved" in i.summary for i in desk.book.open)


def test_what_pages_does_not_disappear_in_what_only_informs() -> None:
    desk = desk_with(mixed_world())
    desk.see(1, {"route": "chat"})
    desk.worlds[Family.ERROR] = world_of(({"route": "chat"}, 0.4))
    entry = the(desk.see(2, {"route": "chat"}, **ERRORS))
    assert entry.action is Action.TRIGGER
    assert entry.incident.severity is Severity.CRITICAL


def test_a_failure_without_a_response_model_pages() -> None:
    world = [
        t._replace(labels={**t.labels, "response_model": ""}) if t.labels["provider"] == "b" else t
        for t in world_of(({"provider": "b"}, 0.4))
    ]
    desk = desk_with(world, Family.ERROR)
    assert the(desk.see(1, {"route": "chat"}, **ERRORS)).incident.severity is Severity.CRITICAL


def test_severity_only_rises() -> None:
    desk, severities = desk_with(world_of(({"provider": "b"}, 0.03)), Family.ERROR), []
    for number, rate in enumerate((0.03, 0.08, 0.04, 0.5, 0.03), 1):
        desk.worlds[Family.ERROR] = world_of(({"provider": "b"}, rate))
        desk.see(number, {"request_model": "b-1"}, **ERRORS)
        severities.append(the_open(desk).severity.value)
    assert severities == ["warning", "error", "error", "critical", "critical"]


def test_a_fall_informs() -> None:
    world = [t._replace(before=Rate(300, 1_000)) for t in world_of()]
    entry = the(desk_with(world).see(1, {"route": "chat"}))
    assert entry.incident.alarms[0].direction is Direction.FALL
    assert entry.incident.severity is Severity.INFO
    assert entry.incident.summary.startswith("Refusals fell from 30% to 1.0%")


# --- Again -------------------------------------------------------------------------------------


def test_a_fall_of_what_rose_is_no_part_of_the_incident() -> None:
    """A monitor that learned during it takes its end for a change, and must not hold it open."""
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), Family.ERROR)
    rise = the(desk.see(1, {"provider": "b"}, **ERRORS))
    fall = the(desk.see(2, {"provider": "b", "region": "eu"}, direction=Direction.FALL, **ERRORS))
    assert fall.action is Action.TRIGGER
    assert fall.incident.severity is Severity.INFO
    assert fall.incident.incident_id != rise.incident.incident_id


def test_an_alarm_that_comes_again_changes_nothing() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    desk.see(1, {"route": "chat"})
    desk.see(2, {"tenant": "t1"})
    before, looked_up = the_open(desk), desk.looked_up
    assert desk.see(1, {"route": "chat"}) == []
    assert desk.see(2, {"tenant": "t1"}) == []
    assert the_open(desk) == before
    assert desk.looked_up == looked_up


def test_an_alarm_of_a_resolved_incident_is_recognised() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    alarm = the(desk.see(1, {"route": "chat"})).incident.alarms[0]
    end = clear(alarm, CHANGE_MS + 300_000)
    the(desk.handle(end))
    the(desk.book.tick(CHANGE_MS + 3_600_000))
    assert desk.handle(alarm) == []
    assert desk.handle(end) == []
    assert desk.book.open == []


def test_a_clear_that_nobody_waits_for_changes_nothing() -> None:
    assert desk_with(world_of()).handle(clear(make_alarm(7), CHANGE_MS)) == []


def test_the_cap_on_alarms_holds() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), alarms=3)
    entries = [desk.see(number, {"route": "chat"}) for number in range(1, 7)]
    assert [len(e) for e in entries] == [1, 1, 1, 0, 0, 0]
    assert [a.alarm_id for a in the_open(desk).alarms] == [f"{n:016x}" for n in (1, 2, 3)]
    version = the_open(desk).version
    assert desk.see(6, {"route": "chat"}) == []
    assert the_open(desk).version == version


@pytest.mark.parametrize("remembered", [0, 2])
def test_resolved_incidents_are_forgotten_in_order(remembered: int) -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), remembered=remembered)
    for number in range(1, 6):
        at = CHANGE_MS + number * 3_600_000
        alarm = observe(
            desk.worlds[Family.REFUSAL], number, {"route": "chat"}, change_time_ms=at, time_ms=at
        )
        the(desk.handle(alarm))
        the(desk.handle(clear(alarm, at + 1_000)))
        the(desk.book.tick(at + 1_000_000))
    assert len(desk.book._incidents) == remembered


# --- The end -----------------------------------------------------------------------------------


def test_an_incident_is_resolved_when_all_has_been_clear_for_long_enough() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    alarms = [observe(desk.worlds[Family.REFUSAL], n, {"route": "chat"}) for n in (1, 2)]
    for alarm in alarms:
        desk.handle(alarm)
    first, last = CHANGE_MS + 300_000, CHANGE_MS + 400_000
    cleared = the(desk.handle(clear(alarms[0], first)))
    assert cleared.action is Action.UPDATE
    assert cleared.incident.cleared == (alarms[0].alarm_id,)
    assert desk.book.tick(first + 10**9) == []
    desk.handle(clear(alarms[1], last))
    assert desk.book.tick(last + desk.config.hold_ms - 1) == []
    entry = the(desk.book.tick(last + desk.config.hold_ms))
    assert entry.action is Action.RESOLVE
    assert entry.incident.status is Status.RESOLVED
    assert entry.incident.resolved_ms == entry.incident.updated_ms == last
    assert desk.book.open == []
    assert desk.book.tick(last + 10**9) == []


def test_an_alarm_that_comes_back_within_the_hold_keeps_it_open() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    alarm = the(desk.see(1, {"route": "chat"})).incident.alarms[0]
    at = CHANGE_MS + 300_000
    desk.handle(clear(alarm, at))
    desk.see(2, {"route": "chat"}, change_time_ms=at + 10_000, time_ms=at + 20_000)
    assert len(the_open(desk).alarms) == 2
    assert desk.book.tick(at + 10**9) == []


def test_a_book_from_the_stored_incidents_goes_on() -> None:
    """Cut after any step: the same changes follow, and the same incidents are left."""

    def play(desk: Desk, cut: int | None) -> list[Entry]:
        world, entries = desk.worlds[Family.REFUSAL], []
        one, two = (observe(world, n, {"route": r}) for n, r in ((1, "chat"), (2, "report")))
        steps: list[Callable[[], list[Entry]]] = [
            lambda: desk.handle(one),
            lambda: desk.handle(two),
            lambda: desk.handle(clear(one, CHANGE_MS + 100_000)),
            lambda: desk.handle(clear(two, CHANGE_MS + 200_000)),
            lambda: desk.book.tick(CHANGE_MS + 10**7),
            lambda: desk.handle(one),
        ]
        for at, step in enumerate(steps):
            if at == cut:
                stored = {e.incident.incident_id: encode_incident(e.incident) for e in entries}
                desk.book = IncidentBook(desk.config, map(decode_incident, stored.values()))
            entries += step()
        return entries

    world = world_of(({"provider": "b"}, 0.4))
    expected = play(desk_with(world), None)
    assert [e.action.value for e in expected] == [
        "trigger",
        "update",
        "update",
        "update",
        "resolve",
    ]
    assert [e.incident.version for e in expected] == [1, 2, 3, 4, 5]
    for cut in range(6):
        assert play(desk_with(world), cut) == expected


def test_the_change_is_dated_by_whoever_saw_it_start_first() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    desk.see(1, {"route": "chat"})
    desk.see(2, {"tenant": "t1"}, change_time_ms=CHANGE_MS - 30_000)
    desk.see(3, {"tenant": "t2"}, change_time_ms=CHANGE_MS + 30_000)
    assert the_open(desk).change_time_ms == CHANGE_MS - 30_000


def test_examples_are_those_of_the_cause() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    alarm = observe(desk.worlds[Family.REFUSAL], 1, {"route": "chat"})

    def find(alarm: Alarm, cause: Cause) -> tuple[str, ...]:
        return (alarm.alarm_id, *cause.labels.values())

    opened = the(desk.book.handle(alarm, desk._investigate, find)).incident
    assert opened.example_event_ids == (alarm.alarm_id, "b")
    assert structs.replace(opened, example_event_ids=()) != opened


def absorbed(**config: int) -> tuple[Desk, list[Alarm]]:
    """Two incidents that turn out to have one cause: the one is made a part of the other."""
    desk = desk_with(world_of(({"provider": "b", "region": "eu"}, 0.4), now=20), **config)
    one = the(desk.see(1, {"provider": "b", "region": "eu"})).incident
    desk.worlds[Family.REFUSAL] = world_of(({"provider": "b", "region": "us"}, 0.4), now=20)
    two = the(desk.see(2, {"provider": "b", "region": "us"})).incident
    assert one.incident_id != two.incident_id
    desk.worlds[Family.REFUSAL] = world_of(({"provider": "b"}, 0.4))
    desk.see(3, {"provider": "b"})
    whole = the_open(desk)
    assert whole.cause.labels == {"provider": "b"}
    return desk, [*one.alarms, *two.alarms, *whole.alarms]


def test_what_has_been_absorbed_ends_with_its_whole() -> None:
    """The end of a part's alarm is the whole's: in the part, nobody would wait for it."""
    desk, alarms = absorbed()
    assert len(the_open(desk).alarms) == 3
    # A book from what is stored goes on in the same way.
    stored = [decode_incident(encode_incident(i)) for i in desk.book._incidents.values()]
    for book in (desk.book, IncidentBook(desk.config, stored)):
        desk.book = book
        for number, alarm in enumerate(alarms):
            desk.handle(clear(alarm, CHANGE_MS + 100_000 + number))
        assert len(the_open(desk).cleared) == 3
        assert [e.action for e in book.tick(CHANGE_MS + 3_600_000)] == [Action.RESOLVE]


def test_an_end_for_which_the_whole_had_no_room_does_not_keep_it_open() -> None:
    desk, alarms = absorbed(alarms=2)
    assert len(the_open(desk).alarms) == 2
    for number, alarm in enumerate(alarms):
        desk.handle(clear(alarm, CHANGE_MS + 100_000 + number))
    assert len(the_open(desk).cleared) == 2
    assert [e.action for e in desk.book.tick(CHANGE_MS + 3_600_000)] == [Action.RESOLVE]


def test_of_several_changes_the_last_stands_with_the_most_that_was_done() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)))
    opened = the(desk.see(1, {"route": "chat"}))
    changed = the(desk.see(2, {"tenant": "t1"}))
    (entry,) = coalesce([opened, changed])
    assert entry == (changed.incident, Action.TRIGGER)
    assert coalesce([]) == []
    desk.handle(clear(opened.incident.alarms[0], CHANGE_MS + 100_000))
    cleared = the(desk.handle(clear(changed.incident.alarms[1], CHANGE_MS + 100_000)))
    over = the(desk.book.tick(CHANGE_MS + 3_600_000))
    assert coalesce([cleared, over]) == [over]


def test_only_so_many_are_looked_at_again_at_a_time() -> None:
    desk = desk_with(world_of(({"provider": "b"}, 0.4)), reviews=2, overlap_ms=0)
    for number in range(1, 6):
        at = CHANGE_MS + number * 10_000_000
        alarm = make_alarm(number, {"route": "chat"}, change_time_ms=at, time_ms=at)
        desk.handle(alarm)
    assert len(desk.book.open) == 5
    now_ms = CHANGE_MS + 100_000_000
    looked = [
        [e.incident.incident_id for e in desk.book.review(now_ms, desk._investigate, NOBODY)]
        for _ in range(4)
    ]
    assert [len(each) for each in looked] == [2, 2, 1, 0]
    assert len({one for each in looked for one in each}) == 5
