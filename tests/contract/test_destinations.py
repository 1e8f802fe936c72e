"""What every destination promises: whatever fails on the way, an incident is seen once, and ends.

A new destination is added to `CASES`; nothing is exempt. What an incoming webhook cannot
promise (a message whose answer was lost is posted again) is said by its receiver.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import structs

from pipeline.config import NotifySettings
from pipeline.errors import DeliveryDeferred, DeliveryRefused
from pipeline.sinks.destination import Destination
from pipeline.sinks.notifier import MemoryOutbox, Notifier, build_destinations
from schemas.incident import Action, Incident, Severity, Status
from tests.support.pagerduty import OPENED_MS, ROUTING_KEY, make_incident, make_notification
from tests.support.receivers import (
    AlertmanagerRoom,
    AnnotationRoom,
    ChatRoom,
    Inbox,
    PagerDutyDesk,
    Receiver,
)

PATIENCE_S = 20.0
#: Long enough for a server on loopback, and short enough to be waited out.
TIMEOUT_S = 1.5


@dataclass(frozen=True)
class Case:
    name: str
    receiver: type[Receiver]
    settings: Callable[[str], dict[str, Any]]


CASES = [
    Case(
        "pagerduty",
        PagerDutyDesk,
        lambda url: {"routing_key": ROUTING_KEY, "url": url, "min_severity": "info"},
    ),
    Case("webhook", Inbox, lambda url: {"url": url, "secret": "s" * 16, "allow_private": True}),
    Case("slack", ChatRoom, lambda url: {"url": f"{url}/T0/B0/x", "allow_private": True}),
    Case("alertmanager", AlertmanagerRoom, lambda url: {"url": url}),
    Case("grafana", AnnotationRoom, lambda url: {"url": url, "token": "glsa_test"}),
]
each_destination = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def test_no_destination_is_exempt() -> None:
    named = {
        n for n, f in NotifySettings.model_fields.items() if hasattr(f.default, "min_severity")
    }
    assert named == {case.name for case in CASES}


@pytest.fixture
def receiver(case: Case) -> Iterator[Receiver]:
    with case.receiver() as receiver:
        yield receiver


@pytest.fixture
def settings(case: Case, receiver: Receiver) -> NotifySettings:
    return NotifySettings.model_validate(
        {
            case.name: case.settings(receiver.url),
            "timeout_s": TIMEOUT_S,
            "retry_initial_s": 0.001,
            "retry_max_s": 0.01,
            "link": "https://kizashi.example/{incident_id}",
        }
    )


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = OPENED_MS / 1_000 + 10

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def destination(settings: NotifySettings, clock: Clock) -> Destination:
    [destination] = build_destinations(settings)
    destination._clock = clock  # type: ignore[attr-defined]  # every one is built with a clock
    return destination


async def tell(notifier: Notifier, incident: Incident, action: Action) -> None:
    await notifier.notify(incident, action)
    assert await notifier.drain(PATIENCE_S)


async def live(notifier: Notifier, seen: Callable[[], list[str]]) -> None:
    """An incident from its beginning to its end, looked at from outside at every step."""
    await notifier.start()
    await tell(notifier, make_incident(version=1), Action.TRIGGER)
    assert len(seen()) == 1
    await tell(notifier, make_incident(version=2), Action.UPDATE)
    await tell(notifier, make_incident(version=3, severity=Severity.CRITICAL), Action.UPDATE)
    assert len(seen()) == 1
    acknowledged = make_incident(version=4, severity=Severity.CRITICAL, acknowledged_by="aiko")
    await tell(notifier, acknowledged, Action.ACKNOWLEDGE)
    assert len(seen()) == 1
    over = make_incident(version=5, severity=Severity.CRITICAL, status=Status.RESOLVED)
    await tell(notifier, over, Action.RESOLVE)
    assert seen() == []


def make_notifier(destination: Destination, settings: NotifySettings, clock: Clock) -> Notifier:
    return Notifier(
        [destination],
        MemoryOutbox(),
        settings,
        clock=clock,
        sleep=lambda delay_s: pass_time(clock, delay_s),
        rng=random.Random(1),
    )


async def pass_time(clock: Clock, delay_s: float) -> None:
    if delay_s > 1:
        # A repeat that is due in a minute is not what these tests wait for.
        await asyncio.Event().wait()
    clock.now_s += delay_s
    await asyncio.sleep(0)


@each_destination
@pytest.mark.parametrize("fault", [None, 503, 429, "silent", "lost"])
async def test_an_incident_is_seen_once_and_ends(
    receiver: Receiver,
    destination: Destination,
    settings: NotifySettings,
    clock: Clock,
    fault: int | str | None,
) -> None:
    if fault is not None:
        receiver.faults.append(fault)
    if fault == "lost" and not receiver.drops_repeats:
        pytest.skip("its receiver cannot know a repeat; see the test below")
    notifier = make_notifier(destination, settings, clock)
    try:
        await live(notifier, lambda: receiver.visible(clock.now_s))
    finally:
        await notifier.close()
    [counts] = notifier.counts()
    assert counts.refused == 0
    assert counts.retried == (fault is not None)


async def test_a_chat_shows_a_message_again_whose_answer_was_lost() -> None:
    [case] = [c for c in CASES if c.name == "slack"]
    with ChatRoom() as receiver:
        settings = NotifySettings.model_validate({"slack": case.settings(receiver.url)})
        [slack] = build_destinations(settings)
        receiver.faults.append("lost")
        with pytest.raises(DeliveryDeferred):
            await slack.send(make_notification(destination="slack"))
        await slack.send(make_notification(destination="slack"))
        await slack.close()
        first, again = receiver.messages
    assert first == again
    assert "inc-1" in first


@each_destination
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_pass_is_deferred_for_as_long_as_was_asked(
    receiver: Receiver, destination: Destination, case: Case, status: int
) -> None:
    receiver.faults.append(status)
    receiver.retry_after = "7"
    with pytest.raises(DeliveryDeferred, match=f"answered {status}") as caught:
        await destination.send(make_notification(destination=case.name))
    assert caught.value.retry_after_s == 7.0
    await destination.close()


@each_destination
async def test_what_will_never_do_is_refused(
    receiver: Receiver, destination: Destination, case: Case
) -> None:
    receiver.faults.append(400)
    with pytest.raises(DeliveryRefused, match="answered 400"):
        await destination.send(make_notification(destination=case.name))
    await destination.close()


HOSTILE = "<!channel> @here *x* [a](http://evil.example) <script>\x1b[31m\u202e\nb & `c` :tada:"


@each_destination
async def test_what_a_caller_wrote_does_no_harm(
    receiver: Receiver, destination: Destination, case: Case
) -> None:
    """But for the webhook's labels, which are there to be matched."""
    incident = make_incident(
        summary=HOSTILE, suggestion=HOSTILE, acknowledged_by=HOSTILE, example_event_ids=(HOSTILE,)
    )
    if case.name != "webhook":
        hostile_alarm = structs.replace(incident.alarms[0], monitor={"route": HOSTILE})
        cause = structs.replace(incident.cause, labels={"route": HOSTILE})
        incident = structs.replace(incident, cause=cause, alarms=(hostile_alarm,))
    await destination.send(make_notification(incident=incident, destination=case.name))
    await destination.close()
    call = receiver.calls[-1]
    said = repr(call.body["incident"]["summary"] if case.name == "webhook" else call.body)
    for harm in ("\\x1b", "\\u202e", "http://evil", "\n"):
        assert harm not in said
    if case.name == "slack":
        for harm in ("<!", "@", "*x*", "<script", "`", ":tada:", "[a]"):
            assert harm not in said
    if case.name == "grafana":
        assert "<script" not in said


@each_destination
async def test_no_secret_shows(receiver: Receiver, settings: NotifySettings, case: Case) -> None:
    secrets = (ROUTING_KEY, "s" * 16, "/T0/B0/x", "glsa_test")
    [destination] = build_destinations(settings)
    receiver.faults.extend([403, 500, "lost"])
    texts = [repr(destination), repr(settings), settings.model_dump_json()]
    for _ in range(3):
        with pytest.raises((DeliveryDeferred, DeliveryRefused)) as caught:
            await destination.send(make_notification(destination=case.name))
        texts += [str(caught.value), repr(caught.value.__cause__)]
    await destination.close()
    assert not [s for s in secrets for t in texts if s in t]
