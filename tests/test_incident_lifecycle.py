"""The stages of an incident, what people may do to it, and that one cause is one page."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.incidents.book import Entry, IncidentBook
from pipeline.incidents.lifecycle import COMMANDS, NOTES, carry_out, measure_stages
from pipeline.sinks.notifier import route
from schemas.alarm import Direction, Rate, encode_alarm
from schemas.command import (
    TEXT_CHARS,
    Command,
    Verb,
    decode_alarm_or_command,
    encode_command,
)
from schemas.incident import (
    Action,
    Incident,
    Notification,
    RootCause,
    Severity,
    Stage,
    Status,
    Symptom,
    decode_incident,
    encode_incident,
    told_by,
)
from schemas.signal import Family, Signal
from tests.support.alarms import CHANGE_MS, Traffic, clear, make_alarm, observe
from tests.support.desk import ERRORS, Desk, desk_with, the, the_open, world_of

MINUTE_MS = 60_000
#: When `make_alarm` raises its alarms.
OPENED_MS = CHANGE_MS + MINUTE_MS
BAD: dict[str, Any] = {"provider": "b"}


def order(verb: Verb, minutes: float, number: int = 1, **named: Any) -> Command:
    known: dict[str, Any] = {
        "command_id": f"c{number}",
        "incident_id": "inc-0000000000000001",
        "time_ms": OPENED_MS + round(minutes * MINUTE_MS),
        "by": "aiko",
    }
    return Command(verb=verb, **known | named)


def failing(**config: int) -> Desk:
    desk = desk_with(world_of((BAD, 0.4)), Family.ERROR, **config)
    the(desk.see(1, {"route": "chat"}, **ERRORS))
    return desk


# --- Stages ------------------------------------------------------------------------------------


def test_an_incident_goes_through_its_stages_and_keeps_their_times() -> None:
    desk = failing()
    assert the_open(desk).stage is Stage.TRIAGED
    assert the_open(desk).triaged_ms == OPENED_MS
    acknowledged = the(desk.book.carry_out(order(Verb.ACKNOWLEDGE, 2)))
    assert acknowledged.action is Action.ACKNOWLEDGE
    assert acknowledged.incident.stage is Stage.ACKNOWLEDGED
    assert acknowledged.incident.acknowledged_by == "aiko"
    assert the(desk.book.carry_out(order(Verb.MITIGATE, 5, 2))).incident.stage is Stage.MITIGATED
    resolved = the(desk.book.carry_out(order(Verb.RESOLVE, 9, 3)))
    assert (resolved.action, resolved.incident.stage) == (Action.RESOLVE, Stage.RESOLVED)
    assert measure_stages(resolved.incident) == (60.0, 120.0, 300.0, 540.0)
    assert [e.incident.version for e in (acknowledged, resolved)] == [2, 4]


def test_what_nothing_is_stored_of_is_triaged_when_something_is() -> None:
    desk = desk_with([], Family.ERROR)
    desk.handle(make_alarm(1, {"route": "chat"}, **ERRORS))
    assert the_open(desk).stage is Stage.DETECTED
    desk.worlds[Family.ERROR] = world_of(({"route": "chat"}, 0.4))
    desk.see(2, {"route": "chat"}, time_ms=OPENED_MS + 5_000, **ERRORS)
    assert the_open(desk).triaged_ms == OPENED_MS + 5_000
    assert the_open(desk).explanation[0].labels == the_open(desk).cause.labels != {}


def test_it_is_mitigated_when_its_last_alarm_clears_and_a_new_one_takes_that_back() -> None:
    desk = failing()
    alarm = the_open(desk).alarms[0]
    desk.handle(clear(alarm, OPENED_MS + 5 * MINUTE_MS))
    assert the_open(desk).mitigated_ms == OPENED_MS + 5 * MINUTE_MS
    desk.see(2, {"tenant": "t1"}, time_ms=OPENED_MS + 6 * MINUTE_MS, **ERRORS)
    assert the_open(desk).mitigated_ms is None


def test_what_a_person_has_mitigated_stays_so_for_what_began_before() -> None:
    desk = failing()
    desk.book.carry_out(order(Verb.MITIGATE, 1))
    desk.see(2, {"tenant": "t1"}, time_ms=OPENED_MS + 2 * MINUTE_MS, **ERRORS)
    assert the_open(desk).mitigated_by == "aiko"
    later = OPENED_MS + 2 * MINUTE_MS
    desk.see(3, {"tenant": "t2"}, change_time_ms=later, time_ms=later + 1_000, **ERRORS)
    assert the_open(desk).mitigated_ms is None


def test_what_is_young_is_explained_anew_as_more_is_known() -> None:
    """When one region alarmed, nothing else had failed yet; soon the whole provider had."""
    early = world_of(({"provider": "b", "region": "eu"}, 0.4), now=20)
    desk = desk_with(early, Family.ERROR)
    the(desk.see(1, {"provider": "b", "region": "eu"}, **ERRORS))
    desk.worlds[Family.ERROR] = world_of((BAD, 0.4))

    def review(seconds: float) -> list[Entry]:
        now_ms = OPENED_MS + round(seconds * 1000)
        return desk.book.review(now_ms, desk._investigate, lambda alarm, cause: ("seen",))

    assert review(29.0) == []
    again = the(review(31.0))
    assert (again.action, again.incident.cause.labels) == (Action.UPDATE, BAD)
    assert again.incident.example_event_ids == ("seen",)
    assert review(119.0) == []
    the(review(500.0))
    assert review(10_000.0) == []
    desk.handle(clear(the_open(desk).alarms[0], OPENED_MS + MINUTE_MS))
    assert review(20_000.0) == []


def test_what_has_cleared_is_not_explained_anew() -> None:
    desk = failing()
    desk.handle(clear(the_open(desk).alarms[0], OPENED_MS + 10_000))
    assert desk.book.review(OPENED_MS + 60_000, desk._investigate, lambda a, c: ()) == []


def test_a_note_does_not_put_off_the_end() -> None:
    desk = failing()
    cleared_ms = OPENED_MS + 5 * MINUTE_MS
    desk.handle(clear(the_open(desk).alarms[0], cleared_ms))
    desk.book.carry_out(order(Verb.NOTE, 6.9, text="looks fine again"))
    entry = the(desk.book.tick(cleared_ms + desk.config.hold_ms))
    assert entry.incident.resolved_ms == cleared_ms


# --- Commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", list(Verb))
def test_a_command_that_comes_again_changes_nothing(verb: Verb) -> None:
    desk = failing()
    if verb is Verb.REOPEN:
        desk.book.carry_out(order(Verb.RESOLVE, 1, 7))
    if verb is Verb.UNACKNOWLEDGE:
        desk.book.carry_out(order(Verb.ACKNOWLEDGE, 1, 7))
    command = order(verb, 2, text="so", via="pagerduty", external_id="P1")
    the(desk.book.carry_out(command))
    # Also to a book that was read back from the store.
    desk.book = IncidentBook(
        desk.config, [decode_incident(encode_incident(i)) for i in desk.book._incidents.values()]
    )
    assert desk.book.carry_out(command) == []


def test_a_command_that_asks_for_what_is_so_already_changes_nothing() -> None:
    desk = failing()
    desk.book.carry_out(order(Verb.ACKNOWLEDGE, 1))
    for verb in (Verb.ACKNOWLEDGE, Verb.REOPEN, Verb.NOTE, Verb.LINK):
        assert desk.book.carry_out(order(verb, 2, 2, by="ben")) == []
    assert the_open(desk).acknowledged_by == "aiko"


def test_a_command_for_nobody_does_nothing() -> None:
    desk = failing()
    assert desk.book.carry_out(order(Verb.RESOLVE, 1, incident_id="inc-unknown")) == []
    nameless = order(Verb.NOTE, 1, incident_id="", text="x", via="pagerduty", external_id="P9")
    assert desk.book.carry_out(nameless) == []
    assert desk.book.carry_out(order(Verb.RESOLVE, 1, incident_id="")) == []


def test_a_note_finds_the_incident_by_what_pagerduty_calls_it() -> None:
    desk = failing()
    outside = {"via": "pagerduty", "external_id": "P1"}
    linked = the(desk.book.carry_out(order(Verb.LINK, 0, **outside)))
    assert linked.incident.external_ids == {"pagerduty": "P1"}
    desk.book.carry_out(order(Verb.NOTE, 1, 2, incident_id="", text=" rolling back ", **outside))
    (note,) = the_open(desk).notes
    assert (note.by, note.text, note.via) == ("aiko", "rolling back", "pagerduty")


def test_whoever_resolves_has_taken_it_on() -> None:
    desk = failing()
    done = the(desk.book.carry_out(order(Verb.RESOLVE, 3, text="was a config"))).incident
    assert (done.acknowledged_by, done.mitigated_by, done.resolved_by) == ("aiko",) * 3
    assert [n.text for n in done.notes] == ["was a config"]


def test_an_incident_that_was_opened_again_is_closed_by_a_person_only() -> None:
    desk = failing()
    desk.handle(clear(the_open(desk).alarms[0], OPENED_MS + MINUTE_MS))
    the(desk.book.tick(OPENED_MS + 10 * MINUTE_MS))
    again = the(desk.book.carry_out(order(Verb.REOPEN, 11)))
    assert (again.action, again.incident.status) == (Action.TRIGGER, Status.OPEN)
    assert desk.book.tick(OPENED_MS + 10**9) == []
    the(desk.book.carry_out(order(Verb.RESOLVE, 12, 2)))


def test_an_echo_of_what_a_person_has_resolved_pages_nobody() -> None:
    desk = failing()
    the(desk.book.carry_out(order(Verb.RESOLVE, 3)))
    echo = the(desk.see(2, {"tenant": "t1"}, time_ms=OPENED_MS + 5 * MINUTE_MS, **ERRORS))
    assert (echo.action, echo.incident.status) == (Action.UPDATE, Status.RESOLVED)
    assert len(echo.incident.alarms) == 2
    at = OPENED_MS + 4 * MINUTE_MS
    new = the(desk.see(3, {"tenant": "t2"}, change_time_ms=at, time_ms=at + 1_000, **ERRORS))
    assert new.action is Action.TRIGGER, "it began after the end"


def test_notes_and_commands_are_capped() -> None:
    incident = the_open(failing())
    for number in range(COMMANDS + 5):
        done = carry_out(incident, order(Verb.NOTE, 1, number, text=f"{number:04}" * TEXT_CHARS))
        assert done is not None
        incident = done[0]
    assert len(incident.notes) == NOTES
    assert len(incident.commands) == COMMANDS
    assert len(incident.notes[-1].text) == TEXT_CHARS


def test_a_clock_that_went_backwards_is_no_time_at_all() -> None:
    incident = the_open(failing())
    done = carry_out(incident, order(Verb.RESOLVE, -60))
    assert done is not None
    assert measure_stages(done[0]) == (60.0, 0.0, 0.0, 0.0)


@given(
    st.builds(
        Command,
        command_id=st.text(),
        verb=st.sampled_from(list(Verb)),
        incident_id=st.text(),
        time_ms=st.integers(0, 2**53),
        by=st.text(),
        text=st.text(),
        via=st.text(),
        external_id=st.text(),
    )
)
def test_a_command_and_an_alarm_are_told_apart_on_their_topic(command: Command) -> None:
    assert decode_alarm_or_command(encode_command(command)) == command
    alarm = make_alarm(3)
    assert decode_alarm_or_command(encode_alarm(alarm)) == alarm


# --- Who is told -------------------------------------------------------------------------------


class Pager:
    """What PagerDuty asks for."""

    name = "pagerduty"
    min_severity = Severity.WARNING
    every_update = False
    repeat_s = None
    acknowledges = True

    def __init__(self) -> None:
        self.told: list[Notification] = []

    async def send(self, notification: Notification) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Hold nothing."""

    def hear(self, entries: list[Entry]) -> None:
        for entry in entries:
            its = entry.incident.incident_id
            history = [told_by(n) for n in self.told if n.incident_id == its]
            if told := route(history, entry.incident, entry.action, self):
                self.told.append(told)

    @property
    def actions(self) -> list[str]:
        return [n.action.value for n in self.told]


def test_pagerduty_hears_what_it_has_not_said_itself() -> None:
    desk, pager = desk_with(world_of((BAD, 0.4)), Family.ERROR), Pager()
    pager.hear(desk.see(1, {"route": "chat"}, **ERRORS))
    pager.hear(desk.book.carry_out(order(Verb.NOTE, 1, 1, text="mine")))
    pager.hear(desk.book.carry_out(order(Verb.ACKNOWLEDGE, 1, 2)))
    pager.hear(desk.book.carry_out(order(Verb.UNACKNOWLEDGE, 2, 3)))
    pager.hear(desk.book.carry_out(order(Verb.ACKNOWLEDGE, 3, 4, via="pagerduty")))
    pager.hear(desk.book.carry_out(order(Verb.RESOLVE, 4, 5)))
    assert pager.actions == ["trigger", "acknowledge", "resolve"]


def test_what_pagerduty_has_resolved_itself_it_is_not_told() -> None:
    desk, pager = desk_with(world_of((BAD, 0.4)), Family.ERROR), Pager()
    pager.hear(desk.see(1, {"route": "chat"}, **ERRORS))
    pager.hear(desk.book.carry_out(order(Verb.RESOLVE, 1, 1, via="pagerduty")))
    pager.hear(desk.see(2, {"tenant": "t1"}, **ERRORS))
    pager.hear(desk.book.carry_out(order(Verb.REOPEN, 2, 2, via="pagerduty")))
    assert pager.actions == ["trigger"]
    pager.hear(desk.book.carry_out(order(Verb.RESOLVE, 3, 3)))
    assert pager.actions == ["trigger", "resolve"]


# --- One cause, one page -----------------------------------------------------------------------

GROUPINGS = (
    ("request_model",),
    ("route",),
    ("request_model", "route"),
    ("tenant",),
    ("prompt_name",),
    ("prompt_name", "prompt_version"),
    ("provider", "region"),
    ("tenant", "route"),
    ("region", "tenant"),
)
FAMILIES: tuple[tuple[Family, Signal, float], ...] = (
    (Family.ERROR, Signal.ERROR, 0.4),
    (Family.LATENCY, Signal.SLOW_OUTPUT, 0.5),
    (Family.LATENCY, Signal.SLOW_FIRST_CHUNK, 0.6),
    (Family.TRUNCATION, Signal.TRUNCATION, 0.2),
    (Family.REFUSAL, Signal.REFUSAL, 0.1),
)


def monitors_that_see(world: list[Traffic], labels: dict[str, str]) -> list[dict[str, str]]:
    touched = [t.labels for t in world if labels.items() <= t.labels.items()]
    seen = {tuple((d, labels[d]) for d in g) for labels in touched for g in GROUPINGS}
    return [dict(each) for each in sorted(seen)]


@pytest.mark.parametrize("seed", range(12))
def test_a_hundred_alarms_from_one_outage_are_one_page(seed: int) -> None:
    rng = random.Random(seed)
    desk, pager = Desk(), Pager()
    for family, _, rate in FAMILIES:
        desk.worlds[family] = world_of((BAD, rate))
    world = desk.worlds[Family.ERROR]
    alarms = [
        (monitor, family, signal)
        for monitor in monitors_that_see(world, BAD)
        for family, signal, _ in FAMILIES
    ]
    assert len(alarms) >= 100
    rng.shuffle(alarms)
    for number, (monitor, family, signal) in enumerate(alarms[:100], 1):
        # Each monitor dates the change as well as it can, and speaks when it is sure.
        changed = CHANGE_MS + rng.randint(-2 * MINUTE_MS, 2 * MINUTE_MS)
        said = changed + rng.randint(1_000, 10 * MINUTE_MS)
        named = {"family": family, "signal": signal, "edge": 3e4}
        alarm = observe(
            desk.worlds[family], number, monitor, change_time_ms=changed, time_ms=said, **named
        )
        pager.hear(desk.handle(alarm))
    assert the_open(desk).cause.labels == BAD
    assert len(the_open(desk).alarms) == 100
    assert pager.actions[0] == "trigger"
    assert {n.incident_id for n in pager.told} == {the_open(desk).incident_id}


def test_a_page_takes_over_what_first_only_informed() -> None:
    """Errors at a provider: first fewer refusals are seen there, for nothing is answered."""
    desk, pager = Desk(), Pager()
    desk.worlds[Family.REFUSAL] = [
        t._replace(before=Rate(300, 1_000), after=Rate(150, 500)) for t in world_of()
    ]
    desk.worlds[Family.REFUSAL] = [
        t._replace(after=Rate(2, 500)) if t.labels["provider"] == "b" else t
        for t in desk.worlds[Family.REFUSAL]
    ]
    desk.worlds[Family.ERROR] = world_of((BAD, 0.4))
    fall = the(desk.see(1, {"provider": "b", "region": "eu"}, direction=Direction.FALL)).incident
    assert (fall.severity, fall.cause.labels) == (Severity.INFO, BAD)
    pager.hear([])
    pages = desk.see(2, {"route": "chat"}, **ERRORS)
    pager.hear(pages)
    incident = the_open(desk)
    assert incident.incident_id == fall.incident_id
    assert (incident.family, incident.severity) == (Family.ERROR, Severity.CRITICAL)
    assert incident.alarms[0].family is Family.ERROR
    assert incident.summary.startswith("Errors rose")
    assert pager.actions == ["trigger"]


def test_two_incidents_that_turn_out_to_be_one_are_made_one() -> None:
    """Two tenants were sick while little was known; then the whole provider is."""
    desk, pager = Desk(), Pager()
    desk.worlds[Family.ERROR] = world_of(({"provider": "b", "tenant": "t1"}, 0.4), now=40)
    pager.hear(desk.see(1, {"tenant": "t1"}, **ERRORS))
    desk.worlds[Family.ERROR] = world_of(({"provider": "b", "tenant": "t2"}, 0.4), now=40)
    pager.hear(desk.see(2, {"tenant": "t2"}, **ERRORS))
    first, second = desk.book.open
    desk.worlds[Family.ERROR] = world_of((BAD, 0.4))
    pager.hear(desk.see(3, {"tenant": "t3"}, **ERRORS))
    whole = the_open(desk)
    assert whole.incident_id == first.incident_id
    assert len(whole.alarms) == 3
    part = desk.book._incidents[second.incident_id]
    assert (part.status, part.merged_into) == (Status.RESOLVED, whole.incident_id)
    assert pager.actions == ["trigger", "trigger", "resolve"]
    # The part's alarms are the whole's now.
    the(desk.handle(clear(second.alarms[0], OPENED_MS + MINUTE_MS)))
    assert the_open(desk).cleared == (second.alarms[0].alarm_id,)
    assert desk.book.carry_out(order(Verb.REOPEN, 9, incident_id=part.incident_id)) == []


# --- Classes -----------------------------------------------------------------------------------


def classes(desk: Desk) -> tuple[Symptom, RootCause]:
    return the_open(desk).symptom, the_open(desk).root_cause


def test_what_kind_of_incident_it_is() -> None:
    assert classes(failing()) == (Symptom.DEGRADED_PERFORMANCE, RootCause.INFRASTRUCTURE)
    gone = desk_with(world_of((BAD, 0.97)), Family.ERROR)
    gone.see(1, {"route": "chat"}, **ERRORS)
    assert classes(gone) == (Symptom.DEPLOYMENT_FAILURE, RootCause.INFRASTRUCTURE)
    one = desk_with(world_of(({"tenant": "t1"}, 0.4)))
    one.see(1, {"route": "chat"})
    assert classes(one) == (Symptom.INVALID_INFERENCE, RootCause.EXTERNAL_USAGE)


def incident_of(world: list[Traffic]) -> Incident:
    desk = desk_with(world)
    return the(desk.see(1, {"route": "chat"})).incident


def test_the_explanation_begins_with_the_cause_and_says_how_surprising_it_is() -> None:
    explained = incident_of(world_of((BAD, 0.4))).explanation
    assert explained[0].labels == BAD
    assert explained[0].share == max(a.share for a in explained) > 0.97
    # It would have had half of them, and has 2,400 of 2,460.
    p, q = 0.5, 2_400 / 2_460
    m = (p + q) / 2
    expected = (p * math.log(p / m) + q * math.log(q / m)) / 2
    assert explained[0].surprise == pytest.approx(expected, rel=0.01)
    assert len({tuple(a.labels) for a in explained}) == len(explained)


@pytest.mark.parametrize(
    "pair",
    [
        {"provider": "b", "region": "eu"},
        {"request_model": "a-1", "tenant": "t2"},
        {"tenant": "t3", "route": "chat"},
        {"region": "us", "prompt_name": "sum"},
    ],
)
def test_a_cause_in_two_dimensions_is_named_by_both(pair: dict[str, str]) -> None:
    desk = desk_with(world_of((pair, 0.4)))
    incident = the(desk.see(1, {k: pair[k] for k in list(pair)[:1]})).incident
    named = incident.cause.labels
    # Where two names mean the same requests, either will do: a provider and its only model.
    assert len(named.keys() - {"prompt_version"}) == 2
    assert incident.cause.after.value == pytest.approx(0.4, abs=0.02)
    assert incident.cause.after.total == sum(
        t.after.total for t in desk.worlds[Family.REFUSAL] if pair.items() <= t.labels.items()
    )
