"""The notifier: every page arrives, in order, whatever fails on the way."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pipeline.config import NotifySettings
from pipeline.errors import (
    ConfigError,
    DeliveryDeferred,
    DeliveryRefused,
    KizashiError,
    SinkUnavailable,
)
from pipeline.sinks.destination import Destination
from pipeline.sinks.notifier import (
    DROPPED,
    PASSED_OVER,
    MemoryOutbox,
    Notifier,
    Timer,
    build_destinations,
    is_finished,
    route,
)
from pipeline.sinks.pagerduty import PagerDuty
from pipeline.sinks.webhook import Webhook
from schemas.incident import Action, Incident, Notification, Severity, Status, Told, told_by
from tests.support.pagerduty import (
    ROUTING_KEY,
    FakePagerDuty,
    make_incident,
    make_notification,
)

#: Real seconds after which a test gives up.
PATIENCE_S = 20.0
SETTINGS = NotifySettings(retry_initial_s=1.0, retry_max_s=60.0)


class FakeTime:
    """A clock that only sleeping moves, at once; `at` calls back on the way."""

    def __init__(self) -> None:
        self.now_s = 1_760_000_000.0
        self.slept_s: list[float] = []
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s
        for call in [c for c in self._calls if c[0] <= self.now_s]:
            self._calls.remove(call)
            call[1]()
        await asyncio.sleep(0)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        self._calls.append((self.now_s + delay_s, call))


@dataclass
class Receiver:
    """A destination in memory. `script` says how each attempt goes; then all go well.

    ``ok``; ``later``: deferred; ``lost``: taken, but the answer is lost; ``no``:
    refused; ``bug``: something that no destination should raise.
    """

    name: str = "receiver"
    min_severity: Severity = Severity.INFO
    every_update: bool = True
    acknowledges: bool = False
    repeat_s: float | None = None
    script: list[str] = field(default_factory=list)
    taken: list[Notification] = field(default_factory=list)
    attempts: list[Notification] = field(default_factory=list)
    #: While this is not set, `send` does not return.
    gate: asyncio.Event | None = None

    async def send(self, notification: Notification) -> None:
        self.attempts.append(notification)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        outcome = self.script.pop(0) if self.script else "ok"
        if outcome in {"ok", "lost"}:
            self.taken.append(notification)
        if outcome == "no":
            raise DeliveryRefused("answered 400: never")
        if outcome == "bug":
            raise KeyError("CANARY")
        if outcome != "ok":
            raise DeliveryDeferred("answered 500")

    async def close(self) -> None:
        """Hold nothing."""

    def told(self, incident_id: str = "inc-1") -> list[tuple[int, str]]:
        return [(n.sequence, n.action.value) for n in self.taken if n.incident_id == incident_id]


class FlakyOutbox(MemoryOutbox):
    """Fails as scripted: ``before`` it has stored, or ``after``, when only the answer is lost."""

    def __init__(self, script: Iterable[str] = ()) -> None:
        super().__init__()
        self.script = list(script)

    async def put(self, notifications: Sequence[Notification]) -> None:
        await asyncio.sleep(0)
        outcome = self.script.pop(0) if self.script else "ok"
        if outcome == "before":
            raise SinkUnavailable("not stored")
        await super().put(notifications)
        if outcome == "after":
            raise SinkUnavailable("stored")

    async def pending(self) -> list[Notification]:
        await asyncio.sleep(0)
        if self.script and self.script.pop(0) != "ok":
            raise SinkUnavailable("not read")
        return await super().pending()


@asynccontextmanager
async def running(
    *destinations: Destination,
    outbox: MemoryOutbox | None = None,
    time: FakeTime | None = None,
    **options: Any,
) -> AsyncIterator[Notifier]:
    time = time or FakeTime()
    edges = {"clock": time.clock, "sleep": time.sleep, "rng": random.Random(7)}
    notifier = Notifier(destinations, outbox or MemoryOutbox(), SETTINGS, **edges | options)
    await notifier.start()
    try:
        yield notifier
    finally:
        await notifier.close()


def pager(pagerduty: FakePagerDuty, timeout_s: float = 5.0) -> PagerDuty:
    settings = NotifySettings.model_validate(
        {"pagerduty": {"url": pagerduty.url, "routing_key": ROUTING_KEY}, "timeout_s": timeout_s}
    )
    (destination,) = build_destinations(settings)
    assert isinstance(destination, PagerDuty)
    return destination


def resolved(incident_id: str = "inc-1", version: int = 2) -> Incident:
    return make_incident(incident_id, version, status=Status.RESOLVED)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 — what it waits for may be in another thread
            await asyncio.sleep(0.001)


# --- With PagerDuty ------------------------------------------------------------------------------


async def test_half_a_minute_of_500_costs_one_trigger_and_one_resolve(
    pagerduty: FakePagerDuty,
) -> None:
    time = FakeTime()
    pagerduty.answer(500)
    time.after(30.0, pagerduty.recover)
    started_s = time.now_s
    async with running(pager(pagerduty), time=time) as notifier:
        await notifier.notify(make_incident(), Action.TRIGGER)
        await notifier.notify(resolved(), Action.RESOLVE)
        assert await notifier.drain(PATIENCE_S)
        (counts,) = notifier.counts()
    assert pagerduty.actions == ["trigger", "resolve"]
    assert pagerduty.open_alerts == []
    assert time.now_s >= started_s + 30
    assert (counts.sent, counts.retried) == (2, len(pagerduty.received) - 2)
    assert counts.retried >= 4
    assert max(time.slept_s) <= 60.0


async def test_a_timeout_after_accepting_ends_with_one_alert(pagerduty: FakePagerDuty) -> None:
    pagerduty.hang(times=1, accept=True)
    pagerduty.drop(times=1, accept=True)
    async with running(pager(pagerduty, timeout_s=1.0)) as notifier:
        await notifier.notify(make_incident(), Action.TRIGGER)
        assert await notifier.drain(PATIENCE_S)
    assert [e["dedup_key"] for e in pagerduty.accepted] == ["kizashi/inc-1"] * 3
    assert len(pagerduty.alerts) == 1


async def test_a_refusal_does_not_block_the_next_incident(pagerduty: FakePagerDuty) -> None:
    outbox = MemoryOutbox()
    pagerduty.answer(400, times=1, body=b'{"message": "Event object is invalid"}')
    async with running(pager(pagerduty), outbox=outbox) as notifier:
        await notifier.notify(make_incident("inc-1"), Action.TRIGGER)
        await notifier.notify(make_incident("inc-2"), Action.TRIGGER)
        assert await notifier.drain(PATIENCE_S)
        (counts,) = notifier.counts()
    (refused,) = await outbox.history("inc-1")
    assert refused.failure == "answered 400: Event object is invalid"
    assert refused.sent_ms is None
    assert [alert.dedup_key for alert in pagerduty.open_alerts] == ["kizashi/inc-2"]
    assert (counts.sent, counts.refused, counts.retried) == (1, 1, 0)


async def test_a_restart_in_the_middle_goes_on_from_the_outbox(pagerduty: FakePagerDuty) -> None:
    outbox = MemoryOutbox()
    pagerduty.answer(503)
    async with running(pager(pagerduty), outbox=outbox) as notifier:
        await notifier.notify(make_incident(), Action.TRIGGER)
        await until(lambda: len(pagerduty.received) > 2)
    assert pagerduty.accepted == []
    pagerduty.recover()
    async with running(pager(pagerduty), outbox=outbox) as notifier:
        await notifier.notify(resolved(), Action.RESOLVE)
        assert await notifier.drain(PATIENCE_S)
    assert pagerduty.actions == ["trigger", "resolve"]
    assert await outbox.pending() == []


async def test_a_crash_between_sending_and_marking_repeats_the_same_key(
    pagerduty: FakePagerDuty,
) -> None:
    # The put of the trigger works; every put of its mark fails until the process has ended.
    outbox = FlakyOutbox(["ok", "ok", *["before"] * 1_000])
    async with running(pager(pagerduty), outbox=outbox) as notifier:
        await until(lambda: len(outbox.script) < 1_002)
        await notifier.notify(make_incident(), Action.TRIGGER)
        await until(lambda: len(outbox.script) < 990)
    assert len(pagerduty.received) == 1, "a mark that fails must not send again by itself"
    outbox.script.clear()
    async with running(pager(pagerduty), outbox=outbox) as notifier:
        assert await notifier.drain(PATIENCE_S)
    assert [e["dedup_key"] for e in pagerduty.accepted] == ["kizashi/inc-1"] * 2
    assert len(pagerduty.alerts) == 1


async def test_a_page_that_gets_worse_escalates_and_one_that_only_changes_does_not(
    pagerduty: FakePagerDuty,
) -> None:
    async with running(pager(pagerduty)) as notifier:
        await notifier.notify(make_incident(version=1, severity=Severity.INFO), Action.TRIGGER)
        await notifier.notify(make_incident(version=2, severity=Severity.WARNING), Action.UPDATE)
        await notifier.notify(make_incident(version=3, severity=Severity.WARNING), Action.UPDATE)
        await notifier.notify(make_incident(version=4, severity=Severity.CRITICAL), Action.UPDATE)
        await notifier.notify(make_incident(version=5, severity=Severity.ERROR), Action.UPDATE)
        await notifier.notify(make_incident(version=6, severity=Severity.CRITICAL), Action.UPDATE)
        assert await notifier.drain(PATIENCE_S)
    assert [e["payload"]["severity"] for e in pagerduty.accepted] == ["warning", "critical"]
    assert len(pagerduty.alerts) == 1


async def test_a_restart_that_replays_everything_tells_nothing_twice(
    pagerduty: FakePagerDuty,
) -> None:
    outbox = MemoryOutbox()
    for _ in range(2):
        async with running(pager(pagerduty), outbox=outbox) as notifier:
            await notifier.notify(make_incident(), Action.TRIGGER)
            await notifier.notify(resolved(), Action.RESOLVE)
            assert await notifier.drain(PATIENCE_S)
    assert pagerduty.actions == ["trigger", "resolve"]
    assert len(pagerduty.alerts) == 1


async def test_the_routing_key_is_in_no_log(
    pagerduty: FakePagerDuty, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    outbox = MemoryOutbox()
    pagerduty.answer(500, times=1, body=ROUTING_KEY.encode())
    pagerduty.answer(400, times=1, body=ROUTING_KEY.encode())
    async with running(pager(pagerduty), outbox=outbox) as notifier:
        await notifier.notify(make_incident(), Action.TRIGGER)
        assert await notifier.drain(PATIENCE_S)
    (refused,) = await outbox.history("inc-1")
    assert refused.failure == "answered 400: [routing key]"
    assert "[routing key]" in caplog.text
    assert ROUTING_KEY not in caplog.text + repr(notifier.__dict__)


# --- What is told --------------------------------------------------------------------------------

LOW, HIGH = Severity.INFO, Severity.CRITICAL


def past(*actions: tuple[Action, Severity, str]) -> list[Told]:
    """A history: what was done, how severe it was, and the failure if there was one."""
    made = [
        make_notification(action, make_incident(version=i, severity=severity), "receiver")
        for i, (action, severity, _) in enumerate(actions, start=1)
    ]
    return [
        structs.replace(told_by(notification), failure=failure)
        for notification, (_, _, failure) in zip(made, actions, strict=True)
    ]


T, U, R = Action.TRIGGER, Action.UPDATE, Action.RESOLVE


@pytest.mark.parametrize(
    ("history", "action", "severity", "expected"),
    [
        (past(), T, HIGH, T),
        (past(), T, LOW, None),
        (past(), U, HIGH, T),
        (past(), U, LOW, None),
        (past(), R, HIGH, None),
        (past((T, Severity.WARNING, "")), R, LOW, R),
        (past((T, Severity.WARNING, "")), U, HIGH, U),
        (past((T, Severity.WARNING, "")), T, HIGH, U),
        (past((T, HIGH, "")), U, HIGH, None),
        (past((T, HIGH, ""), (U, LOW, "")), U, HIGH, None),
        (past((T, HIGH, "refused")), R, HIGH, None),
        (past((T, HIGH, "refused")), U, HIGH, T),
        (past((T, Severity.WARNING, ""), (U, HIGH, DROPPED)), U, HIGH, U),
        (past((T, HIGH, ""), (R, LOW, "")), R, LOW, None),
        (past((T, HIGH, ""), (R, LOW, "")), T, HIGH, T),
    ],
)
def test_routing_of_rises(
    history: list[Told], action: Action, severity: Severity, expected: Action | None
) -> None:
    destination = Receiver(min_severity=Severity.WARNING, every_update=False)
    status = Status.RESOLVED if action is R else Status.OPEN
    incident = make_incident(version=9, severity=severity, status=status)
    made = route(reversed(history), incident, action, destination)
    assert (made and made.action) == expected
    if made:
        assert (made.sequence, made.destination, made.incident) == (9, "receiver", incident)
        assert not is_finished(made)


def test_routing_of_every_update() -> None:
    incident = make_incident(version=2, severity=LOW)
    made = route(past((T, HIGH, "")), incident, U, Receiver(every_update=True))
    assert made is not None
    assert made.action is U


def test_a_version_that_was_told_is_not_told_again() -> None:
    history = past((T, HIGH, ""), (U, HIGH, ""))
    for version in (1, 2):
        assert route(history, make_incident(version=version), U, Receiver()) is None
    assert route(history, make_incident(version=3), U, Receiver()) is not None


def test_what_another_destination_was_told_does_not_count() -> None:
    history = [structs.replace(n, destination="other") for n in past((T, HIGH, ""))]
    assert route(history, resolved(), R, Receiver()) is None


def test_a_late_update_does_not_reopen_what_is_resolved() -> None:
    history = past((T, HIGH, ""), (R, HIGH, ""))
    assert route(history, resolved(version=3), U, Receiver()) is None


@pytest.mark.parametrize(
    ("action", "severity", "expected"),
    [(R, HIGH, R), (U, HIGH, U), (U, Severity.WARNING, None)],
)
def test_what_a_predecessor_told_too_early_holds_up_no_end_and_no_rise(
    action: Action, severity: Severity, expected: Action | None
) -> None:
    """It told version 3 and died before it had stored it; the successor has come to 2."""
    history = past((T, Severity.WARNING, ""), (U, Severity.WARNING, ""), (U, Severity.WARNING, ""))
    status = Status.RESOLVED if action is R else Status.OPEN
    incident = make_incident(version=2, severity=severity, status=status)
    made = route(history, incident, action, Receiver())
    assert (made and (made.action, made.sequence)) == (expected and (expected, 4))
    if made:
        again = route([*history, told_by(made)], incident, action, Receiver())
        assert again is None, "and once only"


async def test_a_slow_destination_hears_the_last_update_and_not_those_before_it() -> None:
    receiver, outbox = Receiver(gate=asyncio.Event()), MemoryOutbox()
    assert receiver.gate is not None
    async with running(receiver, outbox=outbox) as notifier:
        await notifier.notify(make_incident(version=1), T)
        await until(lambda: receiver.attempts)
        for version in range(2, 9):
            await notifier.notify(make_incident(version=version), U)
        await notifier.notify(resolved(version=9), R)
        receiver.gate.set()
        assert await notifier.drain(PATIENCE_S)
        (counts,) = notifier.counts()
    assert receiver.told() == [(1, "trigger"), (8, "update"), (9, "resolve")]
    assert counts.dropped_updates == 6
    fates = [n.failure for n in await outbox.history("inc-1") if n.failure]
    assert fates == [PASSED_OVER] * 6


async def test_changes_of_many_incidents_are_one_question_and_one_insert() -> None:
    class Counting(MemoryOutbox):
        asked = 0
        puts = 0

        async def history(self, *incident_ids: str) -> list[Told]:
            self.asked += 1
            return await super().history(*incident_ids)

        async def put(self, notifications: Sequence[Notification]) -> None:
            self.puts += 1
            await super().put(notifications)

    gate = asyncio.Event()
    receivers, outbox = [Receiver("one", gate=gate), Receiver("two", gate=gate)], Counting()
    incidents = [make_incident(f"inc-{i}") for i in range(20)]
    async with running(*receivers, outbox=outbox) as notifier:
        await notifier.notify_all([(incident, T) for incident in incidents])
        assert (outbox.asked, outbox.puts) == (1, 1)
        gate.set()
        assert await notifier.drain(PATIENCE_S)
        await notifier.notify_all([(incident, T) for incident in incidents])
        assert await notifier.drain(PATIENCE_S)
    for receiver in receivers:
        assert sorted(n.incident_id for n in receiver.taken) == sorted(
            i.incident_id for i in incidents
        )


# --- Independence --------------------------------------------------------------------------------


async def test_a_destination_that_hangs_blocks_neither_the_caller_nor_the_others() -> None:
    stuck, well = Receiver("stuck", gate=asyncio.Event()), Receiver("well")
    async with running(stuck, well) as notifier:
        await asyncio.wait_for(notifier.notify(make_incident(), T), PATIENCE_S)
        await asyncio.wait_for(notifier.notify(resolved(), R), PATIENCE_S)
        await until(lambda: len(well.taken) == 2)
        assert not await notifier.drain(0.01)
        assert stuck.taken == []
        assert stuck.gate is not None
        stuck.gate.set()
        assert await notifier.drain(PATIENCE_S)
    assert stuck.told() == well.told() == [(1, "trigger"), (2, "resolve")]


async def test_a_message_that_never_gets_through_does_not_hold_up_another_incident() -> None:
    class Picky(Receiver):
        async def send(self, notification: Notification) -> None:
            self.script = ["later"] if notification.incident_id == "inc-1" else []
            await super().send(notification)

    picky = Picky()
    async with running(picky) as notifier:
        await notifier.notify(make_incident("inc-1"), T)
        await until(lambda: len(picky.attempts) > 5)
        await notifier.notify(make_incident("inc-2"), T)
        await until(lambda: picky.taken)
        attempts = [n.incident_id for n in picky.attempts]
    assert picky.told("inc-2") == [(1, "trigger")]
    assert len(attempts) > 6


async def test_a_new_incident_does_not_wait_for_the_backoff_of_an_old_one() -> None:
    time, woken = FakeTime(), asyncio.Event()

    async def sleep_for_ever(delay_s: float) -> None:
        time.slept_s.append(delay_s)
        await woken.wait()

    receiver = Receiver(script=["later"])
    async with running(receiver, time=time, sleep=sleep_for_ever) as notifier:
        await notifier.notify(make_incident("inc-1"), T)
        await until(lambda: time.slept_s)
        await notifier.notify(make_incident("inc-2"), T)
        await until(lambda: receiver.taken)
    assert [n.incident_id for n in receiver.taken] == ["inc-2"]


async def test_retry_after_holds_the_whole_destination() -> None:
    time = FakeTime()
    moments: list[float] = []

    class Busy(Receiver):
        async def send(self, notification: Notification) -> None:
            moments.append(time.now_s)
            if len(moments) == 1:
                raise DeliveryDeferred("answered 429", retry_after_s=120.0)
            await super().send(notification)

    started_s = time.now_s
    async with running(Busy(), time=time) as notifier:
        await notifier.notify(make_incident("inc-1"), T)
        await notifier.notify(make_incident("inc-2"), T)
        assert await notifier.drain(PATIENCE_S)
    assert moments[0] == started_s
    assert min(moments[1:]) >= started_s + 120


async def test_backoff_doubles_up_to_its_limit_under_full_jitter() -> None:
    class Late(random.Random):
        """Always the end of the interval, so that the intervals show."""

        def uniform(self, a: float, b: float) -> float:
            assert a == 0.0
            return b

    time = FakeTime()
    async with running(Receiver(script=["later"] * 9), time=time, rng=Late()) as notifier:
        await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
    assert time.slept_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_clock_that_is_set_back_makes_no_wait_longer() -> None:
    timer = Timer()
    assert timer.left_s(1_000.0) == 0.0
    timer.set(1_000.0, 10.0)
    assert timer.left_s(1_004.0) == 6.0
    assert timer.left_s(1_004.0 - 3_600.0) == 10.0
    assert timer.left_s(1_004.0 - 3_600.0 + 7.0) == 3.0
    assert timer.left_s(1_004.0 + 3_600.0) == 0.0


async def test_what_nobody_planned_is_tried_again_and_only_its_type_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Receiver(script=["bug", "bug"])
    async with running(receiver) as notifier:
        await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
    assert receiver.told() == [(1, "trigger")]
    assert "receiver: unexpected KeyError" in caplog.text
    assert "CANARY" not in caplog.text


# --- The outbox ----------------------------------------------------------------------------------


async def test_nothing_is_sent_that_is_not_stored() -> None:
    receiver, outbox = Receiver(), FlakyOutbox(["ok", "before"])
    async with running(receiver, outbox=outbox) as notifier:
        await until(lambda: len(outbox.script) == 1)
        with pytest.raises(SinkUnavailable):
            await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
        assert receiver.attempts == []
        await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
    assert receiver.told() == [(1, "trigger")]


async def test_a_put_whose_answer_was_lost_is_found_and_sent_once() -> None:
    receiver, outbox = Receiver(), FlakyOutbox(["ok", "after"])
    async with running(receiver, outbox=outbox) as notifier:
        await until(lambda: len(outbox.script) == 1)
        with pytest.raises(SinkUnavailable):
            await notifier.notify(make_incident(), T)
        await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
    assert receiver.told() == [(1, "trigger")]


async def test_an_outbox_that_is_down_at_the_start_only_delays() -> None:
    outbox = FlakyOutbox(["before"] * 5)
    await MemoryOutbox.put(outbox, [make_notification(destination="receiver")])
    receiver = Receiver()
    async with running(receiver, outbox=outbox) as notifier:
        assert await notifier.drain(PATIENCE_S)
    assert receiver.told() == [(1, "trigger")]


async def test_what_waits_for_a_destination_that_is_gone_stays() -> None:
    outbox = MemoryOutbox()
    await outbox.put([make_notification(destination="gone")])
    async with running(Receiver(), outbox=outbox) as notifier:
        assert await notifier.drain(PATIENCE_S)
    assert [n.destination for n in await outbox.pending()] == ["gone"]


async def test_a_memory_outbox_keeps_what_is_finished_finished() -> None:
    outbox = MemoryOutbox(remembered=2)
    pending = [make_notification(incident=make_incident(f"inc-{i}")) for i in range(3)]
    await outbox.put(pending)
    done = [structs.replace(n, sent_ms=1) for n in pending]
    await outbox.put(done[:1])
    await outbox.put(pending)
    assert await outbox.pending() == pending[1:]
    assert await outbox.history("inc-0") == [told_by(done[0])]
    await outbox.put(done[1:])
    assert await outbox.history("inc-0") == []
    assert await outbox.history("inc-2", "inc-0") == [told_by(done[2])]


# --- Full queues ---------------------------------------------------------------------------------


async def test_a_full_queue_drops_the_oldest_updates_and_nothing_else() -> None:
    receiver, outbox = Receiver(gate=asyncio.Event()), MemoryOutbox()
    async with running(receiver, outbox=outbox, capacity=8) as notifier:
        await notifier.notify(make_incident(version=1), T)
        for version in range(2, 12):
            await notifier.notify(make_incident(version=version), U)
        await notifier.notify(resolved(version=12), R)
        assert receiver.gate is not None
        receiver.gate.set()
        assert await notifier.drain(PATIENCE_S)
        (counts,) = notifier.counts()
    told = receiver.told()
    assert told == sorted(told)
    assert told[0] == (1, "trigger")
    assert told[-2:] == [(11, "update"), (12, "resolve")]
    assert counts.dropped_updates == 12 - len(told) > 0
    dropped = [n for n in await outbox.history("inc-1") if n.failure]
    newest_dropped = max(n.sequence for n in dropped)
    assert {n.failure for n in dropped} == {DROPPED, PASSED_OVER}
    assert max(n.sequence for n in dropped if n.failure == DROPPED) < newest_dropped
    assert {n.action for n in dropped} == {U}
    assert all(s > newest_dropped for s, action in told if action == "update")


async def test_triggers_and_resolves_over_the_cap_wait_in_the_outbox() -> None:
    receiver = Receiver(gate=asyncio.Event())
    ids = [f"inc-{i}" for i in range(20)]
    async with running(receiver, capacity=3) as notifier:
        for incident_id in ids:
            await notifier.notify(make_incident(incident_id, 1), T)
            await notifier.notify(resolved(incident_id, 2), R)
            assert notifier.counts()[0].waiting <= 3
        assert receiver.gate is not None
        receiver.gate.set()
        assert await notifier.drain(PATIENCE_S)
        assert notifier.counts()[0].dropped_updates == 0
    assert {i: receiver.told(i) for i in ids} == {i: [(1, "trigger"), (2, "resolve")] for i in ids}


async def test_a_resolve_does_not_slip_past_a_trigger_that_waits_in_the_outbox() -> None:
    class Turnstile(Receiver):
        turns = asyncio.Semaphore(0)

        async def send(self, notification: Notification) -> None:
            await self.turns.acquire()
            await super().send(notification)

    # The others fail, so that inc-5 is due before them.
    receiver = Turnstile(every_update=False, script=["ok", "later", "later", "later"])
    async with running(receiver, capacity=4) as notifier:
        for incident_id in ("inc-1", "inc-2", "inc-3", "inc-4", "inc-5"):
            await notifier.notify(make_incident(incident_id), T)
        receiver.turns.release()
        await until(lambda: notifier.counts()[0].waiting == 3)
        # There is room in memory now, yet the trigger of this incident is not there.
        await notifier.notify(resolved("inc-5"), R)
        for _ in range(8):
            receiver.turns.release()
        assert await notifier.drain(PATIENCE_S)
    assert receiver.told("inc-5") == [(1, "trigger"), (2, "resolve")]


async def test_reading_the_outbox_again_forgets_no_fate_that_could_not_be_stored() -> None:
    receiver = Receiver(gate=asyncio.Event())
    outbox = FlakyOutbox(["ok", "ok", "ok", "ok", "before"])
    async with running(receiver, outbox=outbox, capacity=2) as notifier:
        await until(lambda: len(outbox.script) == 4)
        for incident_id in ("inc-1", "inc-2", "inc-3"):
            await notifier.notify(make_incident(incident_id), T)
        assert receiver.gate is not None
        receiver.gate.set()
        assert await notifier.drain(PATIENCE_S)
    assert outbox.script == []
    assert [n.incident_id for n in receiver.attempts] == ["inc-1", "inc-2", "inc-3"]


async def test_an_escalation_is_never_dropped() -> None:
    receiver = Receiver(gate=asyncio.Event(), every_update=False)
    async with running(receiver, capacity=1) as notifier:
        for version, severity in enumerate(reversed(Severity), start=1):
            await notifier.notify(make_incident(version=version, severity=severity), U)
        assert receiver.gate is not None
        receiver.gate.set()
        assert await notifier.drain(PATIENCE_S)
    assert receiver.told() == [(1, "trigger"), (2, "update"), (3, "update"), (4, "update")]


# --- Any order of failures -----------------------------------------------------------------------

#: What happens next: an incident takes its next step, or the process dies.
STEPS = st.lists(
    st.tuples(st.sampled_from(["inc-1", "inc-2", "inc-3"]), st.booleans())
    | st.just("crash")
    | st.integers(1, 12),
    max_size=25,
)
OUTCOMES = st.lists(st.sampled_from(["ok", "ok", "later", "lost", "no", "bug"]), max_size=25)
STORED = st.lists(st.sampled_from(["ok", "ok", "ok", "before", "after"]), max_size=30)


class Incidents:
    """Makes each incident's life: a trigger, any number of updates, a resolve, and again."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.open: set[str] = set()

    def advance(self, incident_id: str, closes: bool) -> tuple[Incident, Action]:
        version = self.versions[incident_id] = self.versions.get(incident_id, 0) + 1
        if incident_id not in self.open:
            self.open.add(incident_id)
            return make_incident(incident_id, version), T
        if not closes:
            return make_incident(incident_id, version), U
        self.open.remove(incident_id)
        return resolved(incident_id, version), R


async def play(steps: list[Any], receiver: Receiver, outbox: FlakyOutbox, capacity: int) -> None:
    """Act the steps out; at the end everything works again, and nothing may be left."""
    time, incidents = FakeTime(), Incidents()

    def start() -> Notifier:
        edges = {"clock": time.clock, "sleep": time.sleep, "rng": random.Random(1)}
        return Notifier([receiver], outbox, SETTINGS, capacity=capacity, **edges)

    notifier = start()
    await notifier.start()
    for step in steps:
        if step == "crash":
            await notifier.close()
            notifier = start()
            await notifier.start()
        elif isinstance(step, int):
            for _ in range(step):
                await asyncio.sleep(0)
        else:
            incident, action = incidents.advance(*step)
            await insist(notifier, incident, action)
    assert await notifier.drain(PATIENCE_S)
    await notifier.close()


async def insist(notifier: Notifier, incident: Incident, action: Action) -> None:
    while True:
        try:
            return await notifier.notify(incident, action)
        except KizashiError:
            await asyncio.sleep(0)


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    outcomes=OUTCOMES,
    stored=STORED,
    capacity=st.integers(1, 6),
    every_update=st.booleans(),
)
def test_order_and_completeness_hold_under_any_failures(
    steps: list[Any], outcomes: list[str], stored: list[str], capacity: int, every_update: bool
) -> None:
    receiver = Receiver(script=list(outcomes), every_update=every_update)
    outbox = FlakyOutbox(stored)
    asyncio.run(play(steps, receiver, outbox, capacity))
    outbox.script.clear()
    assert asyncio.run(outbox.pending()) == []
    for incident_id in ("inc-1", "inc-2", "inc-3"):
        history = asyncio.run(outbox.history(incident_id))
        check(history, receiver.told(incident_id))


def check(history: list[Told], told: list[tuple[int, str]]) -> None:
    fates = {(n.sequence, n.action.value): n for n in history}
    assert told == sorted(told), "in order; a repeat only right behind the first"
    assert set(told) <= set(fates), "nothing that was not stored"
    sent = {k for k, n in fates.items() if n.sent_ms is not None}
    assert sent <= set(told), "nothing marked that was not taken"
    assert all(n.action is U for n in history if n.failure in {DROPPED, PASSED_OVER})
    triggers = {n.sequence for n in history if n.action is T}
    for sequence, action in told:
        assert action != "resolve" or any(t < sequence for t in triggers)
    assert all(is_finished(n) for n in history)


# --- The rest ------------------------------------------------------------------------------------


async def test_counts_are_a_snapshot() -> None:
    async with running(Receiver()) as notifier:
        before = notifier.counts()
        await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
        after = notifier.counts()
    assert (before[0].sent, after[0].sent) == (0, 1)
    with pytest.raises(AttributeError):
        after[0].sent = 5


async def test_without_destinations_there_is_nothing_to_do() -> None:
    async with running(outbox=FlakyOutbox(["before"])) as notifier:
        await notifier.notify(make_incident(), T)
        assert await notifier.drain(PATIENCE_S)
        assert notifier.counts() == ()


async def test_two_destinations_of_one_name_would_share_an_outbox() -> None:
    with pytest.raises(ValueError, match="same name"):
        async with running(Receiver(), Receiver()):
            pass


async def test_a_notifier_starts_once() -> None:
    async with running(Receiver()) as notifier:
        with pytest.raises(RuntimeError, match="already"):
            await notifier.start()


async def test_destinations_are_built_from_what_is_configured() -> None:
    assert build_destinations(NotifySettings()) == []
    settings = NotifySettings.model_validate(
        {
            "pagerduty": {"routing_key": ROUTING_KEY, "min_severity": "critical"},
            "webhook": {"url": "https://hook.example/", "secret": "s"},
        }
    )
    pagerduty, webhook = build_destinations(settings)
    assert isinstance(pagerduty, PagerDuty)
    assert isinstance(webhook, Webhook)
    assert (pagerduty.min_severity, webhook.min_severity) == (Severity.CRITICAL, Severity.INFO)
    await pagerduty.close()
    await webhook.close()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"link": "javascript:alert(1)"}, "notify.link"),
        ({"pagerduty": {"routing_key": "short"}}, "notify.pagerduty.routing_key"),
        ({"webhook": {"url": "https://hook.example/"}}, "notify.webhook"),
    ],
)
def test_destinations_that_cannot_work_stop_the_start(changed: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_destinations(NotifySettings.model_validate(changed))


def test_an_empty_routing_key_means_no_pagerduty() -> None:
    settings = NotifySettings.model_validate({"pagerduty": {"routing_key": ""}})
    assert build_destinations(settings) == []
