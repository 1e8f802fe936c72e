"""The run: the company's records, paced against the wall clock, through a pipeline.

Delivery guarantee: every record is fed once, in order, and every rating behind its request. A
pipeline that is slower than the clock makes the run late; nothing is dropped to catch up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from pipeline.demo.company import Record
from pipeline.demo.score import Detection, score
from pipeline.demo.script import PlayedIncident
from pipeline.demo.snapshot import Accounts, Moment, Query
from pipeline.demo.view import View
from pipeline.errors import ConfigError
from schemas.alarm import Alarm, Transition
from schemas.incident import Incident

TICK_S = 0.25
#: A batch is no shorter and no longer than this, in event time.
MIN_STEP_MS = 1_000
MAX_STEP_MS = 60_000
#: Ratings are fed so often, in event time.
RATINGS_STEP_MS = 120_000


class Counts(Protocol):
    @property
    def events(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def deadlettered(self) -> int: ...
    @property
    def duplicates(self) -> int: ...


class Pipeline(Protocol):
    """What the demo needs of a pipeline; `pipeline.local.LocalPipeline` is one."""

    def feed(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        """Take in records; returns every new alarm and every new version of an incident."""
        ...

    def feed_feedback(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        """Take in what people think of answers, about requests that were fed before."""
        ...

    def finish(self, now_ms: int) -> list[Alarm | Incident]: ...

    @property
    def counts(self) -> Counts: ...

    def query(self, sql: str) -> list[dict[str, object]]: ...


class Scripted(Protocol):
    """Something that goes wrong in the hour."""

    def play_from(self, start_ms: int) -> PlayedIncident: ...


class Hour(Protocol):
    """What is played: `pipeline.demo.company.Company`, or traffic that comes by itself."""

    @property
    def start_ms(self) -> int: ...
    @property
    def end_ms(self) -> int: ...
    @property
    def script(self) -> Sequence[Scripted]: ...

    def records(self) -> Iterator[Record]: ...
    def ratings(self) -> Iterator[Record]: ...


class DemoResult(Struct, frozen=True):
    """What came of it."""

    accounts: Accounts
    #: The latest version of each, in the order in which they were opened.
    incidents: tuple[Incident, ...]
    scripted: tuple[PlayedIncident, ...]
    detections: tuple[Detection, ...]
    #: Thumbs that found the request that they are about.
    ratings: int
    #: How long it took by the wall clock.
    seconds: float


def run_demo(
    pipeline: Pipeline,
    company: Hour,
    *,
    seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    view: View,
) -> DemoResult:
    """Play the company's hour in `seconds` of `clock`, however few or many they are.

    Raises:
        ConfigError: `seconds` is not a positive number.
    """
    speed = find_speed(company, seconds)
    board = _Board(pipeline, company, speed, view)
    with view:
        began_s = clock()
        batches = paced_batches(
            company.records(), speed, clock, sleep, start_ms=company.start_ms, end_ms=company.end_ms
        )
        ratings = _Ratings(pipeline, company)
        for now_ms, batch in batches:
            board.note(pipeline.feed([record.raw for record in batch], now_ms))
            board.note(ratings.feed(now_ms))
            due_s = began_s + (now_ms - company.start_ms) / 1000 / speed
            board.show(now_ms, late_s=max(0.0, clock() - due_s))
        board.note(pipeline.finish(company.end_ms))
        board.show(company.end_ms)
    scripted = tuple(incident.play_from(company.start_ms) for incident in company.script)
    return DemoResult(
        accounts=board.accounts,
        incidents=board.incidents,
        scripted=scripted,
        detections=score(scripted, board.incidents, pipeline.query),
        ratings=_count_ratings(pipeline.query),
        seconds=clock() - began_s,
    )


def _count_ratings(query: Query) -> int:
    (row,) = query("SELECT count() AS ratings FROM feedback FINAL WHERE event_id != ''")
    return int(str(row["ratings"]))


def find_speed(company: Hour, seconds: float) -> float:
    """Return seconds of event time per second of the wall clock."""
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--for {seconds}: expected a positive number of seconds")
    return (company.end_ms - company.start_ms) / 1000 / seconds


def paced_batches(
    records: Iterable[Record],
    speed: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    *,
    start_ms: int,
    end_ms: int,
    tick_s: float = TICK_S,
) -> Iterator[tuple[int, list[Record]]]:
    """Yield (event time, the records sent up to then) when the wall clock gets there.

    Which record is in which batch depends on the speed alone and not on how
    fast the machine is. Batches may be empty; the last one is at `end_ms` or
    when the records end, whichever is later.
    """
    step_ms = round(min(max(speed * tick_s * 1000, MIN_STEP_MS), MAX_STEP_MS))
    waiting = iter(records)
    held = next(waiting, None)
    began_s, now_ms = clock(), start_ms
    while now_ms < end_ms or held is not None:
        now_ms += step_ms
        if now_ms - step_ms < end_ms < now_ms:
            now_ms = end_ms
        batch: list[Record] = []
        while held is not None and held.time_ms <= now_ms:
            batch.append(held)
            held = next(waiting, None)
        due_s = began_s + (now_ms - start_ms) / 1000 / speed
        if (wait_s := due_s - clock()) > 0:
            sleep(wait_s)
        yield now_ms, batch


class _Ratings:
    """Feeds what people think of answers, `RATINGS_STEP_MS` at a time: it is little."""

    def __init__(self, pipeline: Pipeline, company: Hour) -> None:
        self._pipeline = pipeline
        self._waiting = deque(company.ratings())
        self._next_ms, self._end_ms = company.start_ms, company.end_ms

    def feed(self, now_ms: int) -> list[Alarm | Incident]:
        """Feed what was said up to now, if it is time to."""
        if now_ms < min(self._next_ms, self._end_ms):
            return []
        self._next_ms = now_ms + RATINGS_STEP_MS
        said: list[bytes] = []
        while self._waiting and self._waiting[0].time_ms <= now_ms:
            said.append(self._waiting.popleft().raw)
        return self._pipeline.feed_feedback(said, now_ms) if said else []


class _Board:
    """What is known so far: the latest version of each incident."""

    def __init__(self, pipeline: Pipeline, company: Hour, speed: float, view: View) -> None:
        self._pipeline = pipeline
        self._company = company
        self._speed = speed
        self._view = view
        self._alarms = 0
        self._incidents: dict[str, Incident] = {}

    @property
    def incidents(self) -> tuple[Incident, ...]:
        return tuple(sorted(self._incidents.values(), key=lambda i: (i.opened_ms, i.incident_id)))

    @property
    def accounts(self) -> Accounts:
        c = self._pipeline.counts
        return Accounts(c.events, c.stored, c.deadlettered, c.duplicates)

    def note(self, news: Iterable[Alarm | Incident]) -> None:
        for item in news:
            if isinstance(item, Alarm):
                self._alarms += item.transition is Transition.RAISED
                continue
            known = self._incidents.get(item.incident_id)
            if known is None or known.version < item.version:
                self._incidents[item.incident_id] = item
                self._view.announce(item)

    def show(self, now_ms: int, late_s: float = 0.0) -> None:
        moment = Moment(
            start_ms=self._company.start_ms,
            end_ms=self._company.end_ms,
            now_ms=now_ms,
            speed=self._speed,
            accounts=self.accounts,
            alarms=self._alarms,
            incidents=self.incidents,
            late_s=late_s,
        )
        query: Query = self._pipeline.query
        self._view.update(moment, query)
