"""From alarms to what is told: stored first, told once, whatever fails between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import structs

from pipeline.errors import SinkUnavailable
from pipeline.incidents.book import BookConfig
from pipeline.incidents.explain import Investigation
from pipeline.respond import Responder
from schemas.alarm import Alarm, Transition
from schemas.command import Command, Verb
from schemas.incident import Action, Cause, Incident, Status
from tests.support.alarms import make_alarm

START_MS = 1_750_000_000_000
ALARM = make_alarm(1, alarm_id="a1", time_ms=START_MS, change_time_ms=START_MS - 60_000)
CLEAR = structs.replace(ALARM, transition=Transition.CLEARED, time_ms=START_MS + 60_000)
HOLD_MS = BookConfig().hold_ms


class FakeIncidents:
    """Keeps the latest version of each incident; fails as often as it is told to."""

    def __init__(self) -> None:
        self.stored: dict[str, Incident] = {}
        self.failures = 0

    def load_recent(self) -> list[Incident]:
        return list(self.stored.values())

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        return Investigation(())

    def find_examples(self, alarm: Alarm, cause: Cause) -> tuple[str, ...]:
        return ("event-1",)

    def save(self, *incidents: Incident) -> None:
        if self.failures:
            self.failures -= 1
            raise SinkUnavailable("away")
        self.stored |= {incident.incident_id: incident for incident in incidents}


class FakeNotifier:
    """Tells each version once, as the real one does by its outbox."""

    def __init__(self, told: dict[tuple[str, int], Action]) -> None:
        self.told = told
        self.running = False

    async def start(self) -> None:
        self.running = True

    async def notify_all(self, changes: Sequence[tuple[Incident, Action]]) -> None:
        assert self.running
        for incident, action in changes:
            self.told.setdefault((incident.incident_id, incident.version), action)

    async def close(self) -> None:
        self.running = False


class Scene:
    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.incidents = FakeIncidents()
        self.told: dict[tuple[str, int], Action] = {}
        self._executor = executor
        self.responder = self.restart()

    def restart(self) -> Responder:
        self.responder = Responder(
            BookConfig(),
            self.incidents,  # type: ignore[arg-type]
            lambda: FakeNotifier(self.told),
            self._executor,
        )
        return self.responder

    @property
    def actions(self) -> list[Action]:
        return [a for a in self.told.values() if a is not Action.UPDATE]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ThreadPoolExecutor(1) as executor:
        yield Scene(executor)


async def test_an_alarm_becomes_an_incident_and_is_resolved(scene: Scene) -> None:
    [opened] = await scene.responder.respond([ALARM])
    assert opened.status is Status.OPEN
    assert opened.example_event_ids == ("event-1",)
    await scene.responder.respond([CLEAR])
    assert await scene.responder.tick(CLEAR.time_ms + HOLD_MS - 1) == []
    [resolved] = await scene.responder.tick(CLEAR.time_ms + HOLD_MS)
    assert resolved.status is Status.RESOLVED
    assert scene.actions == [Action.TRIGGER, Action.RESOLVE]


async def test_an_alarm_that_comes_again_tells_nobody_again(scene: Scene) -> None:
    await scene.responder.respond([ALARM, ALARM])
    await scene.restart().respond([ALARM])
    assert scene.actions == [Action.TRIGGER]
    assert len(scene.incidents.stored) == 1


async def test_clickhouse_away_between_telling_and_storing(scene: Scene) -> None:
    """The same alarm again makes the same version again: told already, stored now."""
    scene.incidents.failures = 1
    with pytest.raises(SinkUnavailable):
        await scene.responder.respond([ALARM])
    assert not scene.incidents.stored
    [opened] = await scene.responder.respond([ALARM])
    assert opened.version == 1
    assert scene.actions == [Action.TRIGGER]
    assert list(scene.incidents.stored) == [opened.incident_id]


async def test_a_command_is_carried_out_once_whatever_fails_between(scene: Scene) -> None:
    [opened] = await scene.responder.respond([ALARM])
    command = Command(
        command_id="c1",
        verb=Verb.ACKNOWLEDGE,
        incident_id=opened.incident_id,
        time_ms=START_MS + 5_000,
        by="aiko",
    )
    scene.incidents.failures = 1
    with pytest.raises(SinkUnavailable):
        await scene.responder.respond([command])
    # The offset was not committed: a successor takes in the alarm and the command again.
    await scene.responder.hand_over()
    [acknowledged] = await scene.restart().respond([ALARM, command, command])
    assert acknowledged.acknowledged_by == "aiko"
    assert acknowledged.version == 2
    assert await scene.restart().respond([command]) == []
    assert list(scene.told.values()) == [Action.TRIGGER, Action.ACKNOWLEDGE]


async def test_a_successor_resolves_what_it_took_over(scene: Scene) -> None:
    await scene.responder.respond([ALARM, CLEAR])
    await scene.responder.hand_over()
    successor = scene.restart()
    assert await successor.tick(CLEAR.time_ms + HOLD_MS) == [], "not before it has taken over"
    await successor.take_over()
    [resolved] = await successor.tick(CLEAR.time_ms + HOLD_MS)
    assert resolved.status is Status.RESOLVED
    assert scene.actions == [Action.TRIGGER, Action.RESOLVE]
