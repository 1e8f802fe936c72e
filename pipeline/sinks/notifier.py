"""The notifier: every incident reaches every destination that should hear of it, in order.

What is to be told is decided by one pure function, `route`; what has still to be
told lies in an outbox that survives the process; one courier for each
destination empties it at that destination's own pace.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Protocol

from msgspec import Struct, structs

from pipeline.config import NotifySettings, RouteSettings
from pipeline.errors import ConfigError, DeliveryDeferred, PermanentError, RetryableError
from pipeline.incidents.routing import RouteRule, choose_destinations
from pipeline.sinks import text
from pipeline.sinks.destination import Destination
from schemas.incident import Action, Incident, Notification, Severity, Status, Told, told_by

log = logging.getLogger(__name__)

DROPPED = "dropped: the queue was full, and an update is the least of it"
PASSED_OVER = "passed over: a later update says more"
#: Notifications of one destination held in memory; the outbox holds what is over it.
CAPACITY = 1_000
FAILURE_CHARS = 500
#: Finished notifications that a `MemoryOutbox` remembers.
REMEMBERED = 10_000

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Prove = Callable[[], Awaitable[None]]
Key = tuple[str, str, int]


def build_destinations(settings: NotifySettings) -> list[Destination]:
    """Return the destinations that are configured, ready to send.

    Each brings an HTTP client along, which is slow to load: only where it is asked for.

    Raises:
        ConfigError: one of them cannot work as configured.
    """
    if settings.link and not settings.link.startswith(("https://", "http://")):
        raise ConfigError("notify.link: not an http(s) address")
    destinations: list[Destination] = []
    if settings.pagerduty.routing_key:
        from pipeline.sinks.pagerduty import PagerDuty

        destinations.append(PagerDuty(settings.pagerduty, settings.timeout_s, settings.link))
    if settings.webhook.url:
        from pipeline.sinks.webhook import Webhook

        destinations.append(Webhook(settings.webhook, settings.timeout_s))
    if settings.slack.url:
        from pipeline.sinks.slack import Slack

        destinations.append(Slack(settings.slack, settings.timeout_s, settings.link))
    if settings.alertmanager.url:
        from pipeline.sinks.alertmanager import Alertmanager

        destinations.append(Alertmanager(settings.alertmanager, settings.timeout_s, settings.link))
    if settings.grafana.url or settings.grafana.token:
        from pipeline.sinks.grafana import GrafanaAnnotations

        destinations.append(GrafanaAnnotations(settings.grafana, settings.timeout_s, settings.link))
    _check_routes(settings, {d.name for d in destinations})
    return destinations


def _check_routes(settings: NotifySettings, configured: set[str]) -> None:
    for rule in settings.routes:
        if missing := set(rule.to) - configured:
            raise ConfigError(f"notify.routes: {min(missing)} is not configured")


def build_rule(settings: RouteSettings) -> RouteRule:
    """Return a route as the routing takes it."""
    match = settings.match
    return RouteRule(
        to=frozenset(settings.to),
        families=frozenset(match.family),
        severities=frozenset(map(Severity, match.severities)),
        tenants=frozenset(match.tenant),
    )


# --- What is told --------------------------------------------------------------------------------


def route(
    history: Iterable[Told],
    incident: Incident,
    action: Action,
    destination: Destination,
    *,
    may_begin: bool = True,
) -> Notification | None:
    """Decide what `destination` is told about this version of the incident, if anything. Pure.

    `history` is everything stored about the incident, for any destination, in any
    order. The sequence of a notification is the incident's version, so that a
    replay, which makes the same versions again, finds them told already. What a
    predecessor told may be ahead of what it stored: then what must not be lost, a
    resolve or a rise, comes right behind it. The
    first time that an open incident is severe enough makes a trigger, whatever
    the action is called; a resolve goes only where a trigger went. Where the change
    came from, nobody need hear of it. While it is silenced, only its end is told. Without
    `may_begin` the destination hears of it only if it has heard of it before.
    """
    past = [n for n in history if n.destination == destination.name]
    last = max((n.sequence for n in past), default=0)
    is_new = last < incident.version
    if incident.via == destination.name:
        return None
    if incident.silenced is not None and action is not Action.RESOLVE:
        return None
    told = _find_severity_told(past)
    is_open = incident.status is Status.OPEN
    if action is Action.RESOLVE:
        wanted = Action.RESOLVE if told else None
    elif told is None:
        severe = incident.severity.rank >= destination.min_severity.rank
        wanted = Action.TRIGGER if is_new and severe and is_open and may_begin else None
    elif action is Action.ACKNOWLEDGE and destination.acknowledges and is_new:
        wanted = Action.ACKNOWLEDGE
    else:
        rose = is_open and incident.severity.rank > told.rank
        wanted = Action.UPDATE if rose or (destination.every_update and is_new) else None
    if wanted is None:
        return None
    return Notification(
        incident_id=incident.incident_id,
        destination=destination.name,
        sequence=incident.version if is_new else last + 1,
        action=wanted,
        incident=incident,
    )


def _find_severity_told(past: Iterable[Told]) -> Severity | None:
    """The highest severity told, or about to be, since the last resolve; None without a trigger."""
    told: Severity | None = None
    for notification in sorted(past, key=lambda n: n.sequence):
        if notification.failure:
            continue
        if notification.action is Action.RESOLVE:
            told = None
        else:
            now = notification.severity
            told = now if told is None else max(told, now, key=attrgetter("rank"))
    return told


def is_finished(notification: Notification | Told) -> bool:
    """Say whether it was delivered, or will never be."""
    return notification.sent_ms is not None or bool(notification.failure)


def _key(notification: Notification | Told) -> Key:
    return notification.incident_id, notification.destination, notification.sequence


# --- The outbox ----------------------------------------------------------------------------------


class Outbox(Protocol):
    """Where notifications stand before they are sent, and what became of them.

    Identity is (incident_id, destination, sequence). Every method may raise a
    RetryableError; the notifier's tasks try again, its callers have to.
    """

    async def put(self, notifications: Sequence[Notification]) -> None:
        """Store them, all or none, over what is stored under the same identity.

        A finished one stays finished: it is never put back to pending.
        """
        ...

    async def pending(self) -> list[Notification]:
        """Return all that are not finished, in any order."""
        ...

    async def history(self, *incident_ids: str) -> list[Told]:
        """Return all of these incidents, finished or not, in any order, with what was just put."""
        ...

    async def standing(self, destination: str, limit: int) -> list[Notification]:
        """Return the last that was sent of each incident there, unless that was its resolve.

        At most `limit`, the latest.
        """
        ...


class MemoryOutbox:
    """An outbox that ends with the process: for the local mode and for tests.

    Keeps everything pending, and the last `remembered` finished.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._pending: dict[Key, Notification] = {}
        self._finished: dict[Key, Notification] = {}

    async def put(self, notifications: Sequence[Notification]) -> None:
        for notification in notifications:
            key = _key(notification)
            if is_finished(notification):
                self._pending.pop(key, None)
                self._finished[key] = notification
            elif key not in self._finished:
                self._pending[key] = notification
        while len(self._finished) > self._remembered:
            del self._finished[next(iter(self._finished))]

    async def pending(self) -> list[Notification]:
        return list(self._pending.values())

    async def history(self, *incident_ids: str) -> list[Told]:
        stored = itertools.chain(self._pending.values(), self._finished.values())
        return [told_by(n) for n in stored if n.incident_id in incident_ids]

    async def standing(self, destination: str, limit: int) -> list[Notification]:
        sent = [n for n in self._finished.values() if n.destination == destination and n.sent_ms]
        last = {n.incident_id: n for n in sorted(sent, key=lambda n: n.sequence)}
        latest = sorted(last.values(), key=lambda n: n.sent_ms or 0, reverse=True)
        return [n for n in latest if n.action is not Action.RESOLVE][:limit]


# --- What waits in memory ------------------------------------------------------------------------


class Timer:
    """Comes due `delay_s` after it was set, also when the wall clock is set back meanwhile."""

    def __init__(self) -> None:
        self.due_s = -math.inf
        self._delay_s = 0.0

    def set(self, now_s: float, delay_s: float) -> None:
        """Start it anew."""
        self.due_s, self._delay_s = now_s + delay_s, delay_s

    def left_s(self, now_s: float) -> float:
        """Return the seconds until it is due; 0 when it is."""
        self.due_s = min(self.due_s, now_s + self._delay_s)
        return max(0.0, self.due_s - now_s)


class Lane:
    """What one destination has still to be told about one incident, in order of sequence."""

    def __init__(self) -> None:
        self.waiting: deque[Notification] = deque()
        self.failures = 0
        self.timer = Timer()

    @property
    def head(self) -> Notification:
        return self.waiting[0]

    @head.setter
    def head(self, notification: Notification) -> None:
        self.waiting[0] = notification


class Backlog:
    """The lanes of one destination, together at most `capacity` notifications.

    Lanes wait for themselves only: an incident whose notification keeps failing
    does not hold up the page of another.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lanes: dict[str, Lane] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Notification]:
        return itertools.chain.from_iterable(lane.waiting for lane in self._lanes.values())

    def add(self, notification: Notification, now_s: float) -> bool:
        """Append it to its lane; return False when there is no room."""
        if self._size >= self._capacity:
            return False
        lane = self._lanes.get(notification.incident_id)
        if lane is None:
            lane = self._lanes[notification.incident_id] = Lane()
            lane.timer.set(now_s, 0.0)
        lane.waiting.append(notification)
        self._size += 1
        return True

    def next_lane(self, now_s: float) -> Lane | None:
        """Return the lane that is due first, or was due longest ago."""
        return min(
            self._lanes.values(),
            key=lambda lane: (lane.timer.left_s(now_s), lane.timer.due_s),
            default=None,
        )

    def settle(self, lane: Lane, now_s: float) -> None:
        """Remove the head of a lane; what is behind it is due at once."""
        done = lane.waiting.popleft()
        self._size -= 1
        lane.failures = 0
        lane.timer.set(now_s, 0.0)
        if not lane.waiting:
            del self._lanes[done.incident_id]

    def replace(self, notifications: Iterable[Notification], now_s: float) -> bool:
        """Hold the first of these instead; return whether there was room for all of them.

        An incident that was waiting for another try goes on waiting.
        """
        lanes, self._lanes, self._size = self._lanes, {}, 0
        left_over = [n for n in notifications if not self.add(n, now_s)]
        for incident_id, lane in self._lanes.items():
            if incident_id in lanes:
                lane.failures, lane.timer = lanes[incident_id].failures, lanes[incident_id].timer
        return not left_over


class DeliveryCounts(Struct, frozen=True):
    """What became of one destination's notifications since the start."""

    destination: str
    sent: int = 0
    #: Attempts that have to be repeated.
    retried: int = 0
    refused: int = 0
    dropped_updates: int = 0
    #: Waiting in memory at this moment.
    waiting: int = 0


# --- Couriers ------------------------------------------------------------------------------------


class Courier:
    """Empties the outbox into one destination. Mutable; owned by the `Notifier`.

    Delivery guarantee: at least once, in order of sequence per incident. Only
    its own task sends, and it goes on to the next of an incident when the fate
    of the last is stored. While `stale`, the outbox holds notifications that
    the backlog does not; nothing is added to the backlog then, so that it always
    holds the first of each incident, until all is read again. Where the destination wants it
    (`repeat_s`), what stands open there is said again; a repeat that fails waits for the next.
    """

    def __init__(
        self,
        destination: Destination,
        outbox: Outbox,
        settings: NotifySettings,
        capacity: int,
        lock: asyncio.Lock,
        *,
        clock: Clock,
        sleep: Sleep,
        rng: random.Random,
        prove: Prove | None,
    ) -> None:
        self.destination = destination
        self.idle = asyncio.Event()
        self._counts = DeliveryCounts(destination.name)
        self._outbox = outbox
        self._settings = settings
        self._capacity = capacity
        self._lock = lock
        self._clock, self._sleep, self._rng = clock, sleep, rng
        self._prove = prove
        self._backlog = Backlog(capacity)
        self._wake = asyncio.Event()
        self._stale = True
        self._reading = Timer()
        self._reading_failures = 0
        #: Set by Retry-After, which speaks for the destination and not for one message.
        self._hold = Timer()
        #: What stands open there, where it has to be repeated; None until it has been read.
        self._standing: dict[str, Notification] | None = None
        self._repeating = Timer()

    @property
    def counts(self) -> DeliveryCounts:
        return structs.replace(self._counts, waiting=len(self._backlog))

    def offer(self, notification: Notification) -> None:
        """Take a notification that is stored."""
        if self._stale or not self._backlog.add(notification, self._clock()):
            self._stale = True
        self.idle.clear()
        self._wake.set()

    def holds(self, notification: Told) -> bool:
        """Say whether it waits here to be sent."""
        return any(_key(each) == _key(notification) for each in self._backlog)

    def distrust(self) -> None:
        """Read the outbox again: it may hold what was never offered."""
        self._stale = True
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            self._wake.clear()
            due = self._find_work()
            if due is None:
                self.idle.set()
            if (wait_s := self._find_repeat()) is not None and (due is None or wait_s <= due[0]):
                due = wait_s, self._repeat
            if due is None:
                await self._wake.wait()
            elif due[0] > 0:
                await self._rest(due[0])
            else:
                await due[1]()

    def _find_work(self) -> tuple[float, Callable[[], Awaitable[None]]] | None:
        """Return what comes next and in how many seconds; None when nothing is left to do."""
        now_s = self._clock()
        work: list[tuple[float, Callable[[], Awaitable[None]]]] = []
        if self._stale and self._can_make_room():
            work.append((self._reading.left_s(now_s), self._read_outbox))
        if lane := self._backlog.next_lane(now_s):
            wait_s = max(lane.timer.left_s(now_s), self._hold.left_s(now_s))
            work.append((wait_s, functools.partial(self._try, lane)))
        return min(work, key=lambda each: each[0], default=None)

    def _find_repeat(self) -> float | None:
        """Return in how many seconds what stands is to be repeated; None where nothing is."""
        if self.destination.repeat_s is None or self._standing == {}:
            return None
        now_s = self._clock()
        return max(self._repeating.left_s(now_s), self._hold.left_s(now_s))

    async def _repeat(self) -> None:
        """Say again what stands open; what fails in passing ends the round, not the next."""
        self._repeating.set(self._clock(), self.destination.repeat_s or 0.0)
        try:
            if self._standing is None:
                read = await self._outbox.standing(self.destination.name, self._capacity)
                self._standing = {n.incident_id: n for n in reversed(read)}
            for notification in list(self._standing.values()):
                await self._say_again(notification)
        except Exception as error:
            # Whatever comes out of a destination: alerts outlive several repeats.
            self._count(retried=self._counts.retried + 1)
            if isinstance(error, DeliveryDeferred) and error.retry_after_s is not None:
                self._hold.set(self._clock(), error.retry_after_s)
            log.warning("%s: a repeat failed: %s", self.destination.name, type(error).__name__)

    async def _say_again(self, notification: Notification) -> None:
        try:
            await self.destination.send(notification)
        except PermanentError:
            log.warning("%s: refused to hear it again", self.destination.name)
            if self._standing is not None:
                self._standing.pop(notification.incident_id, None)

    def _note_standing(self, sent: Notification) -> None:
        """Remember what has to be repeated: at most `capacity`, the latest."""
        if self.destination.repeat_s is None or self._standing is None:
            return
        self._standing.pop(sent.incident_id, None)
        if sent.action is not Action.RESOLVE:
            self._standing[sent.incident_id] = sent
        while len(self._standing) > self._capacity:
            del self._standing[next(iter(self._standing))]

    async def _rest(self, delay_s: float) -> None:
        """Sleep, but not through something new: it need not wait for what failed before it."""
        sleeping = asyncio.ensure_future(self._sleep(delay_s))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            done, _ = await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            sleeping.cancel()
            waking.cancel()

    async def _try(self, lane: Lane) -> None:
        try:
            await self._deliver(lane)
        except Exception as error:
            # Anything may come out of a destination; whatever it is, the page is not lost to it.
            self._defer(lane, error)

    async def _deliver(self, lane: Lane) -> None:
        await self._pass_over(lane)
        # A finished head is one whose fate could not be stored: it is not sent again.
        if not is_finished(lane.head):
            await self._make_sure()
            lane.head = structs.replace(lane.head, attempts=lane.head.attempts + 1)
            lane.head = await self._send(lane.head)
        await self._outbox.put([lane.head])
        self._backlog.settle(lane, self._clock())

    async def _pass_over(self, lane: Lane) -> None:
        """Send no update behind which another one waits: a slow destination hears the last."""
        waiting = list(lane.waiting)
        old = [
            structs.replace(one, failure=PASSED_OVER)
            for one, later in itertools.takewhile(self._is_outdated, itertools.pairwise(waiting))
        ]
        if old:
            await self._outbox.put(old)
            self._count(dropped_updates=self._counts.dropped_updates + len(old))
            for _ in old:
                self._backlog.settle(lane, self._clock())

    def _is_outdated(self, pair: tuple[Notification, Notification]) -> bool:
        return self._is_droppable(pair[0]) and pair[1].action is Action.UPDATE

    async def _make_sure(self) -> None:
        """Send nothing that a successor has sent long since: a page could be opened again."""
        if self._prove is None:
            return
        try:
            await self._prove()
        except RetryableError as error:
            # Better a page twice than none while the broker is away.
            log.warning("%s: sent unproven: %s", self.destination.name, error)

    async def _send(self, notification: Notification) -> Notification:
        name = self.destination.name
        try:
            await self.destination.send(notification)
        except PermanentError as error:
            said = text.plain(str(error), FAILURE_CHARS) or type(error).__name__
            log.warning("%s: refused incident %r: %s", name, notification.incident_id, said)
            self._count(refused=self._counts.refused + 1)
            return structs.replace(notification, failure=said)
        self._count(sent=self._counts.sent + 1)
        self._note_standing(notification)
        return structs.replace(notification, sent_ms=int(self._clock() * 1_000))

    def _defer(self, lane: Lane, error: Exception) -> None:
        now_s = self._clock()
        lane.failures += 1
        lane.timer.set(now_s, self._backoff_s(lane.failures))
        if isinstance(error, DeliveryDeferred) and error.retry_after_s is not None:
            self._hold.set(now_s, error.retry_after_s)
        if not is_finished(lane.head):
            self._count(retried=self._counts.retried + 1)
        if not isinstance(error, RetryableError):
            # The type only: an error that nobody planned may quote anything.
            log.warning("%s: unexpected %s", self.destination.name, type(error).__name__)

    def _backoff_s(self, failures: int) -> float:
        """Full jitter: couriers that failed together do not come back together."""
        longest = self._settings.retry_initial_s * 2.0 ** min(failures - 1, 64)
        return self._rng.uniform(0.0, min(self._settings.retry_max_s, longest))

    def _can_make_room(self) -> bool:
        """Reading is worth it when half is free, or when updates can be dropped to free it."""
        half_free = len(self._backlog) <= self._capacity // 2
        return half_free or any(map(self._is_droppable, self._backlog))

    def _is_droppable(self, notification: Notification) -> bool:
        # Where only rises are told, an update is one, and a page may depend on it.
        is_update = notification.action is Action.UPDATE and self.destination.every_update
        return is_update and not is_finished(notification)

    async def _read_outbox(self) -> None:
        """Make the backlog the first part of what is pending, dropping updates if it is too much.

        The lock keeps `notify` from storing something between the read and its end.
        """
        async with self._lock:
            try:
                pending = await self._outbox.pending()
                kept, dropped = self._split(pending)
                if dropped:
                    await self._outbox.put(dropped)
            except Exception as error:
                self._defer_reading(error)
                return
            self._reading_failures = 0
            self._count(dropped_updates=self._counts.dropped_updates + len(dropped))
            self._stale = not self._backlog.replace(kept, self._clock())

    def _split(self, pending: list[Notification]) -> tuple[list[Notification], list[Notification]]:
        # What is in memory may know more than the outbox: an attempt, a fate not yet stored.
        known = {_key(n): n for n in self._backlog}
        mine = [known.get(_key(n), n) for n in pending if n.destination == self.destination.name]
        mine.sort(key=lambda n: (n.incident.opened_ms, n.incident_id, n.sequence))
        if len(mine) <= self._capacity:
            return mine, []
        surplus = len(mine) - self._capacity * 3 // 4
        updates = sorted(filter(self._is_droppable, mine), key=lambda n: n.incident.updated_ms)
        dropped = {_key(n): structs.replace(n, failure=DROPPED) for n in updates[:surplus]}
        return [n for n in mine if _key(n) not in dropped], list(dropped.values())

    def _defer_reading(self, error: Exception) -> None:
        self._reading_failures += 1
        self._reading.set(self._clock(), self._backoff_s(self._reading_failures))
        if not isinstance(error, RetryableError):
            log.warning("outbox of %s: unexpected %s", self.destination.name, type(error).__name__)

    def _count(self, **counts: int) -> None:
        self._counts = structs.replace(self._counts, **counts)


class Notifier:
    """Tells destinations about incidents, in the background.

    Delivery guarantee: at least once to each destination, in order of sequence
    for each incident and destination. A notification is stored before it is sent
    and marked when it was; a crash between sending and marking sends it again,
    with the same key. A destination that fails is tried for ever, with
    exponential backoff and full jitter, and holds up neither another one nor
    the caller. A refusal is stored as such, and the next goes out.
    """

    def __init__(
        self,
        destinations: Sequence[Destination],
        outbox: Outbox,
        settings: NotifySettings,
        *,
        clock: Clock,
        sleep: Sleep,
        rng: random.Random,
        capacity: int = CAPACITY,
        prove: Prove | None = None,
    ) -> None:
        """Build it; nothing runs before `start`.

        `clock` gives unix seconds; `capacity` bounds what each destination holds in memory.
        `prove` is asked before anything is sent, and raises Fenced where that is another's by now.
        """
        self._outbox = outbox
        self._rules = tuple(map(build_rule, settings.routes))
        self._lock = asyncio.Lock()
        self._couriers = {
            d.name: Courier(
                d,
                outbox,
                settings,
                capacity,
                self._lock,
                clock=clock,
                sleep=sleep,
                rng=rng,
                prove=prove,
            )
            for d in destinations
        }
        if len(self._couriers) != len(destinations):
            raise ValueError("two destinations have the same name")
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start one task for each destination; each begins with what the outbox has pending."""
        if self._tasks:
            raise RuntimeError("the notifier is running already")
        self._tasks = [
            asyncio.create_task(courier.run(), name=f"notify {name}")
            for name, courier in self._couriers.items()
        ]

    async def notify(self, incident: Incident, action: Action) -> None:
        """Store what each destination is to be told, and return without waiting for delivery.

        Every call for an incident needs a new version of it; a version that was
        told before is passed over, so repeating a call, or replaying the input
        that led to it, tells nothing twice.

        Raises:
            RetryableError: the outbox did not answer. Call again.
        """
        await self.notify_all([(incident, action)])

    async def notify_all(self, changes: Sequence[tuple[Incident, Action]]) -> None:
        """The same for changes of several incidents, each at most once: all are stored, or none.

        Raises:
            RetryableError: the outbox did not answer. Call again.
        """
        if not self._couriers:
            return
        async with self._lock:
            history = await self._outbox.history(*(i.incident_id for i, _ in changes))
            self._find_unheld(history)
            routed = []
            for incident, action in changes:
                its = [told for told in history if told.incident_id == incident.incident_id]
                routed += self._route(its, incident, action)
            if routed:
                await self._store(routed)
        self._check_tasks()

    def _find_unheld(self, history: Sequence[Told]) -> None:
        """What a predecessor stored in its last moment came after the outbox was read."""
        for notification in history:
            courier = self._couriers.get(notification.destination)
            if courier and not is_finished(notification) and not courier.holds(notification):
                courier.distrust()

    def _route(
        self, history: Sequence[Told], incident: Incident, action: Action
    ) -> list[tuple[Courier, Notification]]:
        chosen = choose_destinations(self._rules, incident)
        routed = []
        for name, courier in self._couriers.items():
            may_begin = chosen is None or name in chosen
            told = route(history, incident, action, courier.destination, may_begin=may_begin)
            if told is not None:
                routed.append((courier, told))
        return routed

    async def _store(self, routed: list[tuple[Courier, Notification]]) -> None:
        try:
            await self._outbox.put([notification for _, notification in routed])
        except BaseException:
            # It may be stored for all that. Then the caller's next try finds it told already.
            for courier, _ in routed:
                courier.distrust()
            raise
        for courier, notification in routed:
            courier.offer(notification)

    def _check_tasks(self) -> None:
        """A courier never ends by itself; one that did is a defect, and must not stay unseen."""
        for task in self._tasks:
            if task.done():
                task.result()

    def counts(self) -> tuple[DeliveryCounts, ...]:
        """Return a snapshot for metrics, one for each destination."""
        return tuple(courier.counts for courier in self._couriers.values())

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is pending; return whether that was so within `timeout_s`.

        The limit is real time, whatever clock and sleep the notifier was given.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while busy := [c for c in self._couriers.values() if not c.idle.is_set()]:
                    await busy[0].idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop the tasks and close the destinations; what is pending stays in the outbox."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for courier in self._couriers.values():
            await courier.destination.close()
