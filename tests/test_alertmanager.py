"""Alertmanager: fired until it is over, one alert for each incident, whatever it is called."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from pipeline.config import AlertmanagerSettings, NotifySettings
from pipeline.errors import ConfigError
from pipeline.sinks.alertmanager import ALERT_NAME, Alertmanager, build_alerts, label
from pipeline.sinks.notifier import MemoryOutbox, Notifier
from schemas.incident import Action, Severity, Status
from tests.support.pagerduty import OPENED_MS, make_incident, make_notification
from tests.support.receivers import AlertmanagerRoom

NOW_S = OPENED_MS / 1_000 + 10
LIFE_S = 240.0


@pytest.fixture
def room() -> Iterator[AlertmanagerRoom]:
    with AlertmanagerRoom() as room:
        yield room


def make(url: str, **more: Any) -> Alertmanager:
    return Alertmanager(AlertmanagerSettings.model_validate({"url": url, **more}), 5.0)


def test_an_alert_says_what_routes_it_and_until_when_it_holds() -> None:
    [alert] = build_alerts(make_notification(), None, NOW_S, LIFE_S, "https://k/{incident_id}")
    assert alert["labels"] == {
        "alertname": ALERT_NAME,
        "incident_id": "inc-1",
        "family": "refusal",
        "severity": "error",
        "request_model": "gpt-4o",
        "route": "support",
    }
    assert alert["annotations"]["summary"].startswith("Refusals rose")
    assert alert["annotations"]["cause"] == "prompt_version=7"
    assert alert["startsAt"] == "2025-10-09T08:52:20.000Z"
    assert alert["endsAt"] == "2025-10-09T08:57:30.000Z"
    assert alert["generatorURL"] == "https://k/inc-1"


def test_a_resolve_ends_it_by_its_time() -> None:
    over = make_incident(version=3, status=Status.RESOLVED)
    [alert] = build_alerts(make_notification(Action.RESOLVE, over), None, NOW_S, LIFE_S)
    assert alert["endsAt"] == "2025-10-09T08:53:23.000Z"


def test_labels_that_changed_end_the_alert_that_had_them() -> None:
    first = make_incident(version=1)
    risen = make_incident(version=2, severity=Severity.CRITICAL)
    [new, old] = build_alerts(make_notification(Action.UPDATE, risen), label(first), NOW_S, LIFE_S)
    assert (new["labels"]["severity"], old["labels"]["severity"]) == ("critical", "error")
    assert old["endsAt"] == "2025-10-09T08:53:30.000Z"


def test_a_label_without_a_value_is_none() -> None:
    incident = make_incident()
    alarm = structs.replace(incident.alarms[0], monitor={"tenant": "", "route": "a\nb"})
    assert "tenant" not in label(structs.replace(incident, alarms=(alarm,)))
    assert label(structs.replace(incident, alarms=(alarm,)))["route"] == "a b"


@pytest.mark.parametrize(
    "settings",
    [{}, {"url": "http://alertmanager.example", "token": "t"}],
)
def test_what_cannot_work_stops_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"notify\.alertmanager\.url"):
        Alertmanager(AlertmanagerSettings.model_validate(settings), 5.0)


class Pacer:
    """A clock that the notifier's sleeping moves, one step for each permit."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.permits = asyncio.Semaphore(0)
        self.asleep = asyncio.Event()

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.asleep.set()
        await self.permits.acquire()
        self.asleep.clear()
        self.now_s += delay_s


def start(room: AlertmanagerRoom, outbox: MemoryOutbox, pacer: Pacer) -> Notifier:
    alertmanager = Alertmanager(
        AlertmanagerSettings.model_validate({"url": room.url}), 5.0, clock=pacer.clock
    )
    return Notifier(
        [alertmanager],
        outbox,
        NotifySettings(),
        clock=pacer.clock,
        sleep=pacer.sleep,
        rng=random.Random(1),
    )


async def test_what_is_open_is_said_again_until_it_is_over(room: AlertmanagerRoom) -> None:
    pacer, outbox = Pacer(), MemoryOutbox()
    notifier = start(room, outbox, pacer)
    await notifier.start()
    await notifier.notify(make_incident(version=1), Action.TRIGGER)
    assert await notifier.drain(5.0)
    async with asyncio.timeout(5):
        for _ in range(10):
            await pacer.asleep.wait()
            pacer.asleep.clear()
            pacer.permits.release()
        await pacer.asleep.wait()
    assert pacer.now_s == NOW_S + 10 * 60
    assert len(room.calls) == 11
    assert room.visible(pacer.now_s) == ["error"]
    await notifier.notify(make_incident(version=2, status=Status.RESOLVED), Action.RESOLVE)
    assert await notifier.drain(5.0)
    assert room.visible(pacer.now_s) == []
    told = len(room.calls)
    await notifier.close()
    again = start(room, outbox, pacer)
    await again.start()
    assert await again.drain(5.0)
    await again.close()
    assert len(room.calls) == told, "nothing stands, so there is nothing to repeat"


async def test_a_successor_goes_on_repeating_and_ends_the_labels_of_before(
    room: AlertmanagerRoom,
) -> None:
    pacer, outbox = Pacer(), MemoryOutbox()
    first = start(room, outbox, pacer)
    await first.start()
    await first.notify(make_incident(version=1), Action.TRIGGER)
    assert await first.drain(5.0)
    await first.close()
    successor = start(room, outbox, pacer)
    await successor.start()
    risen = make_incident(version=2, severity=Severity.CRITICAL)
    await successor.notify(risen, Action.UPDATE)
    assert await successor.drain(5.0)
    await successor.close()
    assert room.visible(pacer.now_s) == ["critical"]
