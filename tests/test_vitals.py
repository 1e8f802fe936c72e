"""Kizashi's own health, over looks at made-up times: what opens an incident, and what must not."""

from __future__ import annotations

import pytest
from msgspec import structs

from pipeline.incidents.book import BookConfig, Entry, IncidentBook
from pipeline.incidents.complaints import (
    Complaint,
    History,
    Organ,
    Reconciled,
    Standing,
    Trouble,
    describe_unbalanced,
)
from pipeline.incidents.explain import Investigation
from pipeline.incidents.vitals import Look, Vitals, VitalsConfig
from schemas.command import Command, Verb
from schemas.incident import Action, Incident, Severity, Status
from schemas.signal import Family
from schemas.silence import Silence
from tests.support.alarms import make_alarm

CONFIG = VitalsConfig()
LOOK_MS = 30_000
START_MS = 1_790_000_000_000
BALANCED = Reconciled(START_MS, START_MS - 3_600_000, START_MS, 480, 0)
STEADY = History(START_MS - 700_000, (4_311, 4_020), None)


def standing(
    position: int = 100, end: int = 100, partition: int = 0, *, late: bool | None = None,
    quiet: bool = False, topic: str = "events", feedback: bool = False,
) -> Standing:  # fmt: skip
    """By default late exactly when something waits."""
    is_late = end > position if late is None else late
    return Standing(topic, partition, position, end, is_late, quiet, feedback)


class Watch:
    """Vitals and the book of incidents under a clock."""

    def __init__(self) -> None:
        self.vitals = Vitals(CONFIG)
        self.book = IncidentBook(BookConfig())
        self.now_ms = START_MS
        self.told: list[Entry] = []

    def look(
        self,
        *standings: Standing,
        histories: dict[str, History] | None = None,
        reconciled: Reconciled | None = BALANCED,
        answers: bool = True,
    ) -> tuple[Trouble, ...]:
        """Look once, a look's time later; returns what stands."""
        look = Look(tuple(standings) if answers else None, histories or {}, reconciled)
        complaints = self.vitals.observe(self.now_ms, look)
        self.told += self.book.attend(complaints, self.vitals.well, self.now_ms)
        self.now_ms += LOOK_MS
        return tuple(c.trouble for c in complaints)

    def take_over(self) -> None:
        """Another worker, that has seen nothing yet."""
        self.vitals = Vitals(CONFIG)

    @property
    def actions(self) -> list[tuple[Action, Severity]]:
        return [(e.action, e.incident.severity) for e in self.told]

    @property
    def last(self) -> Incident:
        return self.told[-1].incident


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_late_records_that_nobody_reads_page_once_and_are_over_once(watch: Watch) -> None:
    for i in range(12):
        watch.look(standing(100, 150 + i, 3), standing(500 + i, 500 + i, 4))
    assert watch.actions == [(Action.TRIGGER, Severity.CRITICAL)]
    opened = watch.last
    assert (opened.family, opened.cause.labels) == (Family.PIPELINE, {"kizashi": "reading"})
    assert "blind" in opened.summary
    assert "1 of 2 partitions of events (3)" in opened.summary
    assert "53 records" in opened.summary
    assert "kizashi doctor" in opened.suggestion
    assert opened.change_time_ms == START_MS
    assert opened.opened_ms - START_MS == CONFIG.still_ms
    for i in range(6):
        watch.look(standing(160 + i, 160 + i, 3), standing(520, 520, 4))
    assert watch.actions[1:] == [(Action.RESOLVE, Severity.CRITICAL)]
    assert watch.last.status is Status.RESOLVED
    assert watch.last.mitigated_ms == watch.last.resolved_ms


def test_a_restart_and_a_rebalance_page_nobody(watch: Watch) -> None:
    """A minute without a reader: what waits is not yet late, and then it moves."""
    for i in range(10):
        away = 3 <= i < 6
        watch.look(standing(100 if away else 100 + 50 * i, 100 + 50 * i, late=False))
    assert not watch.told


def test_a_quiet_stream_pages_nobody(watch: Watch) -> None:
    night = History(START_MS - 8 * 3_600_000, (5_000, 0), None)
    for _ in range(60):
        watch.look(standing(quiet=True), histories={"events": night})
    assert not watch.told


def test_a_backlog_that_gets_fewer_pages_nobody(watch: Watch) -> None:
    """The first start, or the end of a long absence: all of it is late, and it is being read."""
    left = 1_000_000
    while left > 1_000:
        watch.look(standing(2_000_000 - left, 2_000_000))
        left = int(left * 0.97)
    assert not watch.told


def test_a_backlog_that_does_not_get_fewer_is_told(watch: Watch) -> None:
    for i in range(20):
        watch.look(standing(100 * i, 100 * i + 40_000))
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR)]
    assert "behind" in watch.last.summary
    assert watch.last.opened_ms - START_MS == CONFIG.behind_for_ms


def test_a_partition_that_waits_its_turn_pages_nobody(watch: Watch) -> None:
    """A worker that catches up serves first what was written first."""
    for i in range(30):
        watch.look(standing(30_000 * i, 1_000_000, 0), standing(50, 100, 1))
    assert not watch.told


def test_behind_that_becomes_blind_is_one_incident_that_gets_worse(watch: Watch) -> None:
    for i in range(12):
        watch.look(standing(100 * i, 100 * i + 40_000))
    for i in range(12):
        watch.look(standing(1_100, 50_000 + i))
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR), (Action.UPDATE, Severity.CRITICAL)]
    assert len({e.incident.incident_id for e in watch.told}) == 1
    assert watch.last.version == 2


def test_a_recovery_that_does_not_last_is_no_end(watch: Watch) -> None:
    for _ in range(6):
        watch.look(standing(100, 150))
    for i in range(30):
        watch.look(standing(200 + i, 250 + i) if i % 3 else standing(199, 199))
    assert watch.actions == [(Action.TRIGGER, Severity.CRITICAL)]


def test_a_new_owner_neither_ends_nor_opens_what_it_has_not_seen(watch: Watch) -> None:
    for _ in range(6):
        watch.look(standing(100, 150))
    for _ in range(6):
        watch.take_over()
        watch.look(standing(100, 150))
    for _ in range(6):
        watch.look(standing(100, 150))
    assert watch.actions == [(Action.TRIGGER, Severity.CRITICAL)]


def test_two_owners_find_the_same_incident(watch: Watch) -> None:
    other = Watch()
    other.now_ms += 45_000
    for _ in range(6):
        watch.look(standing(100, 150, 1), standing(7, 9, 2))
        other.look(standing(100, 170, 1), standing(7, 9, 2))
    assert watch.last.incident_id == other.last.incident_id
    assert len(watch.last.incident_id) < 64


def test_what_a_person_has_resolved_does_not_page_again_for_the_same(watch: Watch) -> None:
    for _ in range(6):
        watch.look(standing(100, 150))
    done = Command(
        command_id="c", verb=Verb.RESOLVE, incident_id=watch.last.incident_id,
        time_ms=watch.now_ms, by="ada",
    )  # fmt: skip
    watch.book.carry_out(done)
    for _ in range(20):
        watch.look(standing(100, 150))
    assert len(watch.told) == 1


def test_a_broker_that_does_not_answer_is_blindness(watch: Watch) -> None:
    watch.look(standing())
    for _ in range(12):
        watch.look(answers=False)
    assert watch.actions == [(Action.TRIGGER, Severity.CRITICAL)]
    assert "Kafka has not answered" in watch.last.summary
    assert watch.vitals.is_blind
    for _ in range(6):
        watch.look(standing())
    assert watch.actions[1:] == [(Action.RESOLVE, Severity.CRITICAL)]
    assert not watch.vitals.is_blind


def test_a_steady_stream_that_stops_is_told_until_events_arrive(watch: Watch) -> None:
    watch.look(standing())
    for _ in range(4):
        watch.look(standing(quiet=True), histories={"events": STEADY})
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR)]
    assert "nothing on events since" in watch.last.summary
    assert "4,311 and 4,020 records in 10 min" in watch.last.summary
    assert watch.last.change_time_ms == STEADY.last_ms
    # Its usual time is over, and it is not back for that.
    over = structs.replace(STEADY, weekly=(4_000, 0))
    for _ in range(10):
        watch.look(standing(quiet=True), histories={"events": over})
    assert len(watch.told) == 1
    for i in range(6):
        watch.look(standing(101 + i, 101 + i))
    assert watch.actions[1:] == [(Action.RESOLVE, Severity.ERROR)]


@pytest.mark.parametrize(
    ("history", "steady"),
    [
        (STEADY, True),
        (structs.replace(STEADY, weekly=(4_000, 19)), False),
        (structs.replace(STEADY, weekly=(), least=20), True),
        (structs.replace(STEADY, weekly=(), least=19), False),
        # Younger than a day: nobody knows whether it is steady.
        (structs.replace(STEADY, weekly=(), least=None), False),
        # The week counts, whatever yesterday was.
        (structs.replace(STEADY, weekly=(0,), least=900), False),
    ],
)
def test_what_a_steady_stream_is(watch: Watch, history: History, *, steady: bool) -> None:
    for _ in range(3):
        found = watch.look(standing(quiet=True), histories={"events": history})
    assert (found == (Trouble.SILENT,)) is steady


def test_records_with_old_times_are_no_silence(watch: Watch) -> None:
    for i in range(10):
        watch.look(standing(100 + i, 100 + i, quiet=True), histories={"events": STEADY})
    assert not watch.told


def test_a_topic_that_is_silent_beside_one_that_is_not(watch: Watch) -> None:
    for i in range(4):
        watch.look(
            standing(100 + i, 100 + i),
            standing(quiet=True, topic="spans"),
            histories={"spans": STEADY},
        )
    assert "nothing on spans" in watch.last.summary
    assert "on events" not in watch.last.summary


def test_events_that_nobody_reads_are_told_though_feedback_is_read(watch: Watch) -> None:
    for i in range(12):
        opinions = standing(100 * i, 100 * i + 40, topic="opinions", feedback=True)
        watch.look(standing(100, 150), opinions)
    assert watch.actions == [(Action.TRIGGER, Severity.CRITICAL)]
    assert "50 records wait on 1 of 1 partitions of events (0)" in watch.last.summary


def test_feedback_that_nobody_reads_is_told_though_events_are_read(watch: Watch) -> None:
    for i in range(12):
        opinions = standing(100, 150, topic="opinions", feedback=True)
        watch.look(standing(100 * i, 100 * i + 40, late=False), opinions)
    assert watch.actions == [(Action.TRIGGER, Severity.CRITICAL)]
    assert "50 records wait on 1 of 1 partitions of opinions (0)" in watch.last.summary
    assert watch.last.opened_ms - START_MS == CONFIG.feedback_still_ms
    for i in range(6):
        opinions = standing(160 + i, 160 + i, topic="opinions", feedback=True)
        watch.look(standing(2_000, 2_000), opinions)
    assert watch.actions[1:] == [(Action.RESOLVE, Severity.CRITICAL)]


def test_feedback_that_does_not_get_fewer_is_told(watch: Watch) -> None:
    for i in range(20):
        opinions = standing(i, i + 4_000, topic="opinions", feedback=True)
        watch.look(standing(), opinions)
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR)]
    assert "4,000 records wait on 1 of 1 partitions of opinions (0)" in watch.last.summary


def test_feedback_that_waits_for_its_events_pages_nobody(watch: Watch) -> None:
    """A long absence is caught up on: events first, and feedback behind them."""
    for i in range(30):
        opinions = standing(i // 4, 4_000, topic="opinions", feedback=True)
        watch.look(standing(1_000_000 - int(1_000_000 * 0.9**i), 1_000_000), opinions)
    for i in range(30):
        left = int(3_000 * 0.9**i)
        watch.look(standing(), standing(4_000 - left, 4_000, topic="opinions", feedback=True))
    assert not watch.told


def test_a_stream_that_is_back_is_no_longer_missed_beside_one_that_is_always_quiet(
    watch: Watch,
) -> None:
    opinions = standing(0, 0, quiet=True, topic="opinions", feedback=True)
    for _ in range(4):
        watch.look(standing(quiet=True), opinions, histories={"events": STEADY})
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR)]
    for i in range(6):
        watch.look(standing(101 + i, 101 + i), opinions)
    assert watch.actions[1:] == [(Action.RESOLVE, Severity.ERROR)]


def test_steady_feedback_that_stops_is_told(watch: Watch) -> None:
    for i in range(4):
        opinions = standing(quiet=True, topic="opinions", feedback=True)
        watch.look(standing(100 + i, 100 + i), opinions, histories={"opinions": STEADY})
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR)]
    assert "nothing on opinions since" in watch.last.summary


def test_books_that_do_not_balance_are_told_until_they_do(watch: Watch) -> None:
    minute_ms = START_MS - 1_800_000
    wrong = structs.replace(BALANCED, differing=3, first_differing_ms=minute_ms)
    for _ in range(5):
        watch.look(standing(), reconciled=wrong)
    assert watch.actions == [(Action.TRIGGER, Severity.ERROR)]
    assert "3 of 480 sums" in watch.last.summary
    assert "kizashi reconcile --since" in watch.last.suggestion
    for _ in range(5):
        watch.look(standing(), reconciled=None)
    assert len(watch.told) == 1
    for _ in range(6):
        watch.look(standing())
    assert watch.actions[1:] == [(Action.RESOLVE, Severity.ERROR)]


def test_what_ails_two_organs_is_two_incidents(watch: Watch) -> None:
    wrong = structs.replace(BALANCED, differing=3)
    for _ in range(6):
        watch.look(standing(100, 150), reconciled=wrong)
    assert {e.incident.cause.labels["kizashi"] for e in watch.told} == {"reading", "books"}
    assert len(watch.told) == 2


def test_many_partitions_are_named_in_few_words(watch: Watch) -> None:
    for _ in range(6):
        watch.look(*(standing(0, 10, partition) for partition in range(500)))
    assert "500 of 500 partitions of events (0, 1, 2, 3, 4, 5, 6, 7, …)" in watch.last.summary
    assert len(watch.last.summary) < 400


# --- In the book, beside incidents of the traffic ----------------------------------------------


def complaint(**changes: int) -> Complaint:
    last = structs.replace(BALANCED, differing=1, **changes)
    return describe_unbalanced(START_MS, last)


def test_an_alarm_of_the_traffic_is_no_part_of_it_and_the_clock_does_not_end_it() -> None:
    book = IncidentBook(BookConfig())
    (opened,) = book.attend([complaint()], frozenset(), START_MS)
    alarm = make_alarm(1, {"route": "chat"}, time_ms=START_MS, change_time_ms=START_MS - 60_000)

    def investigate(*_: object) -> Investigation:
        return Investigation(())

    entries = book.handle(alarm, investigate, lambda *_: ())
    assert [e.action for e in entries] == [Action.TRIGGER]
    later_ms = START_MS + 3_600_000
    assert book.tick(later_ms) == []
    reviewed = book.review(later_ms, investigate, lambda *_: ())
    assert opened.incident.incident_id not in {e.incident.incident_id for e in reviewed}
    assert len(book.open) == 2


def test_it_can_be_silenced_by_its_family_or_with_everything() -> None:
    for families in ((), (Family.PIPELINE,), (Family.ERROR,)):
        book = IncidentBook(BookConfig())
        silence = Silence(
            silence_id="s", starts_ms=0, ends_ms=2 * START_MS, labels={}, families=families,
            by="ada", why="maintenance",
        )  # fmt: skip
        book.observe((silence,), START_MS)
        (opened,) = book.attend([complaint()], frozenset(), START_MS)
        assert (opened.incident.silenced is None) is (Family.ERROR in families)


def test_a_book_read_back_goes_on_where_it_was() -> None:
    book = IncidentBook(BookConfig())
    (opened,) = book.attend([complaint()], frozenset(), START_MS)
    again = IncidentBook(BookConfig(), [opened.incident])
    assert again.attend([complaint()], frozenset(), START_MS) == []
    (ended,) = again.attend([], frozenset({Organ.BOOKS}), START_MS + 1)
    assert (ended.action, ended.incident.version) == (Action.RESOLVE, 2)
