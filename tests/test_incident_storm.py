"""A storm of alarms: one page for each cause, few looks at what is stored, and nothing lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.incidents.book import BookConfig, IncidentBook
from pipeline.incidents.explain import Investigation
from pipeline.incidents.intake import CROWD, Intake
from pipeline.respond import Responder
from schemas.alarm import Alarm
from schemas.incident import Action, Cause, Incident, Severity, Status
from schemas.signal import Family
from tests.support.alarms import Traffic, clear, look_at, observe
from tests.support.desk import ERRORS, world_of

MONITORS: tuple[dict[str, str], ...] = (
    {"route": "chat"},
    {"tenant": "t1"},
    {"tenant": "t2"},
    {"tenant": "t3"},
    {"request_model": "b-1"},
    {"provider": "b", "region": "eu"},
    {"provider": "b", "region": "us"},
    {"request_model": "b-1", "route": "report"},
)


class Store:
    """A world in place of ClickHouse; counts what is asked of it."""

    def __init__(self, world: list[Traffic]) -> None:
        self._world = world
        self._looks: dict[str, Investigation] = {}
        self.asked: Counter[str] = Counter()
        self.incidents: dict[str, Incident] = {}

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        self.asked["investigate"] += 1
        return self._look(alarm)

    def compare(
        self, lead: Alarm, labels: Mapping[str, str], alarms: Sequence[Alarm], now_ms: int
    ) -> dict[str, Investigation]:
        self.asked["compare"] += 1
        return {alarm.alarm_id: self._look(alarm) for alarm in alarms}

    def find_examples(self, alarm: Alarm, cause: Cause) -> tuple[str, ...]:
        self.asked["find_examples"] += 1
        return ("e1",)

    def load_recent(self) -> list[Incident]:
        return list(self.incidents.values())

    def save(self, *incidents: Incident) -> None:
        self.asked["save"] += 1
        self.incidents |= {incident.incident_id: incident for incident in incidents}

    def _look(self, alarm: Alarm) -> Investigation:
        monitor = repr(alarm.monitor)
        if monitor not in self._looks:
            self._looks[monitor] = look_at(alarm, self._world)
        return self._looks[monitor]


class Told:
    """A notifier that writes down what it is told."""

    def __init__(self, actions: list[Action]) -> None:
        self._actions = actions

    async def start(self) -> None:
        """There is nothing to start."""

    async def notify_all(self, changes: Sequence[tuple[Incident, Action]]) -> None:
        self._actions += [action for _, action in changes]

    async def close(self) -> None:
        """There is nothing to close."""


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def storm_of(world: list[Traffic], count: int) -> list[Alarm]:
    """As if every monitor were one of `count` that see the same."""
    return [observe(world, i, MONITORS[i % len(MONITORS)], **ERRORS) for i in range(count)]


def take_in(book: IncidentBook, alarms: list[Alarm], store: Store) -> None:
    intake = Intake(book, alarms)
    while not intake.done:
        intake.step(store)


def parts_of(book: IncidentBook) -> list[tuple[str, dict[str, str], Severity, set[str]]]:
    return [
        (i.incident_id, i.cause.labels, i.severity, {a.alarm_id for a in i.alarms})
        for i in book.open
    ]


async def test_five_thousand_monitors_of_a_broken_provider_are_one_page(
    executor: ThreadPoolExecutor,
) -> None:
    world = world_of(({"provider": "b"}, 0.4))
    store, actions = Store(world), list[Action]()
    responder = Responder(
        BookConfig(),
        store,  # type: ignore[arg-type]
        lambda: Told(actions),
        executor,
    )
    alarms = storm_of(world, 5_000)
    await responder.respond(alarms)
    (incident,) = store.incidents.values()
    assert incident.cause.labels == {"provider": "b"}
    assert len(incident.alarms) == BookConfig().alarms
    assert actions.count(Action.TRIGGER) == 1
    # As long as nobody waits for more than a second, what is told of it is one thing.
    assert len(actions) < 10, actions
    pieces = 10
    assert store.asked["investigate"] <= 2
    assert store.asked["compare"] <= 2 * pieces
    assert store.asked["save"] < 10

    await responder.respond([clear(a, a.time_ms + 1_000) for a in alarms])
    await responder.tick(incident.opened_ms + 10_000_000)
    (incident,) = store.incidents.values()
    assert incident.status is Status.RESOLVED
    assert (actions.count(Action.TRIGGER), actions.count(Action.RESOLVE)) == (1, 1)


@pytest.mark.parametrize(
    "broken",
    [
        [({"provider": "b"}, 0.4)],
        [({}, 0.4)],
        [({"provider": "b"}, 0.4), ({"tenant": "t3", "region": "eu", "provider": "a"}, 0.3)],
        [({"provider": "b", "region": "eu"}, 0.4), ({"tenant": "t3", "provider": "a"}, 0.4)],
    ],
)
def test_a_crowd_makes_the_incidents_that_its_alarms_make_one_by_one(
    broken: list[tuple[dict[str, str], float]],
) -> None:
    world = world_of(*broken)
    apart = [observe(world, 900 + i, {"request_model": "a-1"}, **ERRORS) for i in range(3)]
    alarms = [*storm_of(world, 60), *apart]
    store, book, singly = Store(world), IncidentBook(BookConfig()), IncidentBook(BookConfig())
    take_in(book, alarms, store)
    looks = store.asked["investigate"]
    for alarm in alarms:
        singly.handle(alarm, store.investigate, store.find_examples)
    assert parts_of(book) == parts_of(singly)
    assert looks < len(alarms) // 2
    assert store.asked["investigate"] - looks > len(alarms)


def test_another_cause_does_not_disappear_in_the_crowd() -> None:
    """Its monitor's excess does not lie in the provider that the others speak of."""
    other = {"tenant": "t3", "region": "eu", "provider": "a"}
    world = world_of(({"provider": "b"}, 0.4), (other, 0.3))
    book = IncidentBook(BookConfig())
    apart = [observe(world, 900 + i, {"request_model": "a-1"}, **ERRORS) for i in range(9)]
    take_in(book, [*storm_of(world, 40), *apart], Store(world))
    assert [len(i.alarms) for i in book.open] == [40, 9]


def test_few_alarms_are_each_looked_up_and_one_that_comes_twice_counts_once() -> None:
    world = world_of(({"provider": "b"}, 0.4))
    store, book = Store(world), IncidentBook(BookConfig())
    alarms = storm_of(world, CROWD)
    take_in(book, [*alarms, *alarms], store)
    (incident,) = book.open
    assert [a.alarm_id for a in incident.alarms] == sorted({a.alarm_id for a in alarms})
    assert store.asked["compare"] <= 1


def test_the_ends_in_a_crowd_are_noted_behind_its_raises() -> None:
    world = world_of(({"provider": "b"}, 0.4))
    store, book = Store(world), IncidentBook(BookConfig())
    alarms = storm_of(world, 30)
    ends = [clear(a, a.time_ms + 1_000) for a in alarms]
    take_in(book, [*alarms, *ends], store)
    (incident,) = book.open
    assert incident.family is Family.ERROR
    assert set(incident.cleared) == {a.alarm_id for a in alarms}


def test_monitors_within_the_cause_join_without_a_question() -> None:
    world = world_of(({"provider": "b"}, 0.4))
    store, book = Store(world), IncidentBook(BookConfig())
    monitors = ({"provider": "b", "region": "eu"}, {"provider": "b", "region": "us"})
    take_in(book, [observe(world, i, monitors[i % 2], **ERRORS) for i in range(40)], store)
    (incident,) = book.open
    assert incident.cause.labels == {"provider": "b"}
    assert len(incident.alarms) == 40
    assert store.asked["investigate"] + store.asked["compare"] == 1
