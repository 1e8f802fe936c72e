"""Kizashi looks after itself: over the real store and Kafka, told once, also without an outbox."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from kafka import KafkaProducer
from kafka.structs import OffsetAndMetadata, TopicPartition
from pydantic import AnyHttpUrl, SecretStr

from pipeline.agents import RespondAgent
from pipeline.build import build_last_resort, build_notifier
from pipeline.config import (
    ClickHouseSettings,
    Config,
    HeartbeatSettings,
    KafkaSettings,
    NotifySettings,
    PagerDutySettings,
    TopicSettings,
)
from pipeline.doctor import examine
from pipeline.errors import ConfigError, Fenced, SinkUnavailable
from pipeline.incidents.book import BookConfig
from pipeline.incidents.complaints import History, Standing
from pipeline.incidents.vitals import VitalsConfig
from pipeline.ingest import CommittedLike
from pipeline.lookout import Lookout, Sources
from pipeline.respond import Responder
from pipeline.retry import Backoff
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.heartbeat import Heartbeat
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.reconciliation import read_last
from pipeline.standing import read_standings
from pipeline.topics import client_settings, connect_admin, create_topics
from pipeline.transport import Committed
from schemas.incident import Incident
from schemas.silence import Silence
from tests.support.events import make_raw
from tests.support.pagerduty import ROUTING_KEY, FakePagerDuty
from tests.support.workers import Stack

CONFIG = VitalsConfig()
LOOK_MS = 30_000
WELL = Standing("events", 0, 150, 150, late=False, quiet=False)
STUCK = Standing("events", 0, 100, 150, late=True, quiet=False)
SECRET = "token-of-the-switch"


class Offsets:
    """A group that has the alarms, unless it is said otherwise."""

    generation = 1

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def is_current(self, generation: int) -> bool:
        return True

    async def read(self, topic: str, partition: int) -> CommittedLike:
        return Committed(0, "")

    async def write(self, *_: Any) -> None:
        if self.failure:
            raise self.failure


class FlakyIncidents(IncidentStore):
    """Away for as long as it is told to be."""

    away = False

    def load_recent(self, limit: int = 1_000) -> list[Incident]:
        if self.away:
            raise SinkUnavailable("away")
        return super().load_recent(limit)


class Scene:
    """A lookout over a real responder, notifier and store; the time and Kafka are made up."""

    def __init__(self, store: Store, notify: NotifySettings, executor: ThreadPoolExecutor) -> None:
        self.now_ms = 1_790_000_000_000
        self.standings: list[Standing] | None = [WELL]
        self.silences: tuple[Silence, ...] = ()
        self.incidents = FlakyIncidents(store)
        self.offsets = Offsets()
        self.beats = 0
        self.answer = 200
        self.patience_s = 10.0
        self._store, self._notify, self._executor = store, notify, executor
        self._heartbeat = Heartbeat(
            HeartbeatSettings(url=SecretStr(f"https://beat.example/{SECRET}")),
            5.0,
            clock=lambda: self.now_ms / 1000,
            transport=httpx.MockTransport(self._take_beat),
        )
        self.start_worker()

    def start_worker(self) -> None:
        self.responder = Responder(
            BookConfig(),
            self.incidents,
            lambda: build_notifier(self._notify, self.incidents, self._executor),
            self._executor,
            lambda _: self.silences,
            lambda: self.agent.prove(),
        )
        backoff = Backoff(asyncio.sleep, None)  # type: ignore[arg-type]  # nothing is retried
        self.agent = RespondAgent(
            self.responder, "alarms", lambda: self.now_ms, self.offsets, backoff
        )
        sources = Sources(
            self._read_standings,
            lambda *_: None,
            partial(read_last, self._store),
            lambda _: self.silences,
        )
        self.lookout = Lookout(
            CONFIG,
            sources,
            self.agent,
            self._executor,
            lambda: self.now_ms,
            last_resort=build_last_resort(self._notify),
            heartbeat=self._heartbeat,
            ask_s=self.patience_s,
            tell_s=self.patience_s,
        )

    def _read_standings(self, late_ms: int, quiet_ms: int) -> tuple[Standing, ...]:
        assert (self.now_ms - late_ms, self.now_ms - quiet_ms) == (300_000, 600_000)
        if self.standings is None:
            raise SinkUnavailable("no broker")
        return tuple(self.standings)

    def _take_beat(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"/{SECRET}"
        self.beats += self.answer == 200
        return httpx.Response(self.answer, stream=httpx.ByteStream(SECRET.encode()))

    async def look(self, times: int = 1, *, owns: bool = True) -> None:
        for _ in range(times):
            await self.lookout.look(owns=owns)
            self.now_ms += LOOK_MS

    async def drain(self) -> None:
        notifier = self.responder._notifier
        assert notifier is not None
        assert await notifier.drain(20)  # type: ignore[attr-defined]

    async def close(self) -> None:
        await self.responder.hand_over()
        await self.lookout.close()


@pytest.fixture
def store(embedded_path: Path, empty_database: str) -> Iterator[Store]:
    store = Store(ClickHouseSettings(path=embedded_path, database=empty_database))
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def scene(store: Store, pagerduty: FakePagerDuty, executor: ThreadPoolExecutor) -> Scene:
    paging = PagerDutySettings(routing_key=SecretStr(ROUTING_KEY), url=AnyHttpUrl(pagerduty.url))
    return Scene(store, NotifySettings(pagerduty=paging), executor)


async def test_blindness_is_told_once_and_its_end_once(
    scene: Scene, store: Store, pagerduty: FakePagerDuty
) -> None:
    await scene.look(2)
    scene.standings = [STUCK]
    await scene.look(8)
    await scene.drain()
    assert pagerduty.actions == ["trigger"]
    told = pagerduty.accepted[0]["payload"]
    assert (told["severity"], told["class"], told["source"]) == (
        "critical",
        "pipeline",
        "kizashi=reading",
    )
    assert "cause" not in told["custom_details"]
    assert scene.lookout.troubles["blind"]
    # A worker that takes over finds it open, and does not open it again.
    await scene.close()
    scene.start_worker()
    await scene.look(6)
    scene.standings = [WELL]
    await scene.look(6)
    await scene.drain()
    assert pagerduty.actions == ["trigger", "resolve"]
    assert pagerduty.open_alerts == []
    rows = store.rows("SELECT family, status, alarms, cause['kizashi'] FROM incidents")
    assert rows == [("pipeline", "resolved", 0, "reading")]
    assert store.rows("SELECT count() FROM incident_times") == [(0,)]
    await scene.close()


async def test_without_clickhouse_it_is_told_all_the_same_and_ends_as_one(
    scene: Scene, pagerduty: FakePagerDuty
) -> None:
    scene.incidents.away = True
    scene.standings = [STUCK]
    await scene.look(8)
    assert pagerduty.actions == ["trigger"]
    assert scene.beats == 0
    scene.incidents.away = False
    scene.standings = [Standing("events", 0, 120, 190, late=True, quiet=False)]
    await scene.look(2)
    scene.standings = [WELL]
    await scene.look(6)
    await scene.drain()
    assert pagerduty.actions == ["trigger", "trigger", "resolve"]
    assert len({each["dedup_key"] for each in pagerduty.accepted}) == 1
    assert pagerduty.open_alerts == []
    await scene.close()


async def test_where_clickhouse_takes_too_long_it_looks_and_tells_all_the_same(
    scene: Scene, executor: ThreadPoolExecutor, pagerduty: FakePagerDuty
) -> None:
    """All that a worker wants of ClickHouse waits in one queue, and looking must not."""
    scene.patience_s = 0.05
    scene.start_worker()
    free = threading.Event()
    executor.submit(free.wait, 20)
    scene.standings = [STUCK]
    await scene.look(8)
    assert scene.lookout.troubles["blind"]
    assert pagerduty.actions == ["trigger"]
    assert scene.beats == 0
    free.set()
    # What was asked for in vain is done first; then it is as if nothing had been.
    await asyncio.wrap_future(executor.submit(int))
    scene.standings = [WELL]
    await until(scene, lambda: "resolve" in pagerduty.actions)
    assert {each["dedup_key"] for each in pagerduty.accepted} == {pagerduty.alerts[0].dedup_key}
    assert (len(pagerduty.alerts), pagerduty.open_alerts) == (1, [])
    await until(scene, lambda: scene.beats > 0)
    await scene.close()


async def until(scene: Scene, reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():
            await scene.look()
            await asyncio.sleep(0.01)


async def test_without_kafka_it_is_told_unproven(scene: Scene, pagerduty: FakePagerDuty) -> None:
    await scene.look()
    scene.standings, scene.offsets.failure = None, SinkUnavailable("no broker")
    await scene.look(14)
    assert pagerduty.actions == ["trigger"]
    assert "Kafka has not answered" in pagerduty.accepted[0]["payload"]["summary"]
    await scene.close()


async def test_a_worker_that_has_lost_the_alarms_tells_nobody(
    scene: Scene, pagerduty: FakePagerDuty
) -> None:
    scene.standings, scene.offsets.failure = [STUCK], Fenced("another's")
    await scene.look(8)
    scene.incidents.away = True
    await scene.look(8)
    assert pagerduty.received == []
    await scene.look(owns=False)
    assert scene.lookout.troubles == {}
    assert scene.lookout.standings == ()
    await scene.close()


async def test_a_silence_holds_without_clickhouse_too(
    scene: Scene, pagerduty: FakePagerDuty
) -> None:
    scene.silences = (Silence(silence_id="s", starts_ms=0, ends_ms=2**52, why="maintenance"),)
    scene.standings = [STUCK]
    scene.incidents.away = True
    await scene.look(8)
    scene.incidents.away = False
    await scene.look(2)
    await scene.drain()
    assert pagerduty.received == []
    await scene.close()


async def test_the_heart_beats_while_kizashi_sees(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.look(4)
    assert scene.beats == 2
    scene.standings = [STUCK]
    await scene.look(12)
    assert scene.beats == 4
    scene.standings = [WELL]
    await scene.look(6)
    beats = scene.beats
    assert beats > 4
    scene.answer = 503
    await scene.look(4)
    scene.answer = 200
    await scene.look()
    assert scene.beats == beats + 1
    await scene.look(4, owns=False)
    assert scene.beats == beats + 1
    assert SECRET not in caplog.text
    await scene.close()


@pytest.mark.parametrize(
    "url", ["beat.example", "ftp://beat.example/", "http://beat.example/", "https://10.0.0.1/"]
)
def test_a_heartbeat_that_cannot_work_stops_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.heartbeat"):
        Heartbeat(HeartbeatSettings(url=SecretStr(url)), 1.0)


# --- What Kafka says -----------------------------------------------------------------------------


def write(settings: KafkaSettings, topic: str, partition: int, records: dict[int, bytes]) -> None:
    """Write records, by the times at which they are said to be written."""
    producer = KafkaProducer(**client_settings(settings))
    for time_ms, value in records.items():
        producer.send(topic, value, partition=partition, timestamp_ms=time_ms).get(timeout=10)
    producer.close()


def commit(settings: KafkaSettings, **offsets: int) -> None:
    with connect_admin(settings) as admin:
        places = {
            TopicPartition(settings.events_topic, int(name[1:])): OffsetAndMetadata(at, "", -1)
            for name, at in offsets.items()
        }
        admin.alter_group_offsets(settings.group_id, places)


@pytest.mark.kafka
def test_kafka_says_who_is_late_and_where_it_is_quiet(
    kafka_settings: KafkaSettings, embedded_path: Path, empty_database: str
) -> None:
    create_topics(kafka_settings)
    now_ms = round(time.time() * 1000)
    minutes = [now_ms - ago * 60_000 for ago in range(30)]
    events, feedback = kafka_settings.events_topic, kafka_settings.feedback_topic
    write(kafka_settings, events, 0, {minutes[ago]: b"{}" for ago in (20, 15, 1)})
    write(kafka_settings, events, 1, {minutes[ago]: b"{}" for ago in (20, 15)})

    def read(topic: str = events) -> list[tuple[int, int, bool, bool]]:
        found = read_standings(kafka_settings, minutes[5], minutes[10])
        assert {(s.topic, s.feedback) for s in found} == {(events, False), (feedback, True)}
        return [(s.partition, s.lag, s.late, s.quiet) for s in found if s.topic == topic]

    assert read() == [(0, 3, True, False), (1, 2, True, True), (2, 0, False, True)]
    assert read(feedback) == [(partition, 0, False, True) for partition in range(3)]
    commit(kafka_settings, p0=1, p1=2)
    assert read() == [(0, 2, True, False), (1, 0, False, True), (2, 0, False, True)]
    config = Config(
        kafka=kafka_settings,
        clickhouse=ClickHouseSettings(path=embedded_path, database=empty_database),
    )
    (found,) = [f for f in examine(config) if f.check.startswith("group ")]
    assert not found.well
    assert found.detail.startswith("2 records behind, in 1 of 6 partitions")
    assert f"{kafka_settings.events_topic}/0" in found.detail
    # What is left was written a moment ago: it waits, and is not late.
    commit(kafka_settings, p0=2)
    assert read() == [(0, 1, False, False), (1, 0, False, True), (2, 0, False, True)]
    (found,) = [f for f in examine(config) if f.check.startswith("group ")]
    assert found.well
    write(kafka_settings, feedback, 2, {minutes[20]: b"{}", minutes[1]: b"{}"})
    assert read(feedback)[2] == (2, 2, True, False)
    (found,) = [f for f in examine(config) if f.check.startswith("group ")]
    assert f"{feedback}/2" in found.detail


HOUR_MS = 3_600_000


@pytest.mark.kafka
def test_a_worker_tells_that_its_input_has_stopped(
    start_stack: Callable[..., Stack], pagerduty: FakePagerDuty
) -> None:
    """A day of an event every six hours, and of the next nobody hears."""
    stack = start_stack(TopicSettings(partitions=1, signals_partitions=1))
    stack.extra |= {
        "KIZASHI_WATCH__EVERY_S": "1",
        "KIZASHI_WATCH__SILENT_S": str(6 * 3_600),
        "KIZASHI_WATCH__SILENT_EVENTS": "1",
        "KIZASHI_ENCODER__KIND": "none",
        "KIZASHI_NOTIFY__PAGERDUTY__ROUTING_KEY": ROUTING_KEY,
        "KIZASHI_NOTIFY__PAGERDUTY__URL": pagerduty.url,
    }
    last_ms = round(time.time() * 1000) - 7 * HOUR_MS
    times_ms = [last_ms - ago * HOUR_MS for ago in (24, 18, 12, 6, 0)]
    records = {at: make_raw(f"e-{at}", time_ms=at) for at in times_ms}
    write(stack.kafka, stack.kafka.events_topic, 0, records)
    worker = stack.worker()
    stack.wait(lambda: bool(pagerduty.accepted), 60, "a page")
    assert worker.stop() == 0
    (page,) = pagerduty.accepted
    told = page["payload"]
    assert (told["class"], told["source"]) == ("pipeline", "kizashi=arrivals")
    assert f"nothing on {stack.kafka.events_topic} since" in told["summary"]
    assert stack.store.rows("SELECT count() FROM requests") == [(len(times_ms),)]
    rows = stack.store.rows(
        "SELECT family, status, cause['kizashi'], toUnixTimestamp64Milli(changed_at)"
        " FROM incidents FINAL"
    )
    assert rows == [("pipeline", "open", "arrivals", last_ms)]


def test_a_history_is_what_the_books_say(store: Store) -> None:
    from pipeline.sinks.books import DAY_MS, WEEK_MS, BookStore

    now_ms, span_ms = 1_790_000_000_000, 600_000
    books = BookStore(store)
    assert books.read_history("events", now_ms, span_ms) is None
    last_ms = now_ms - 700_000
    day = range(last_ms - DAY_MS, last_ms + 1, 300_000)
    put_books(store, [*day])
    young = books.read_history("events", now_ms, span_ms)
    assert young == History(last_ms, (), 50)
    put_books(store, [now_ms - WEEK_MS - 300_000, now_ms - 3 * WEEK_MS])
    old = books.read_history("events", now_ms, span_ms)
    assert old is not None
    assert old.weekly == (25, 0)
    assert not old.is_steady(20)


def put_books(store: Store, times_ms: list[int]) -> None:
    from pipeline.sinks.times import to_datetime

    store.insert_rows(
        "chunk_books",
        [
            {
                "record_time": to_datetime(time_ms), "topic": "events", "epoch": "1",
                "partition": 0, "first_offset": time_ms, "last_offset": time_ms + 24,
                "read": 25, "stored": 25, "deadlettered": 0, "duplicates": 0, "skipped": 0,
            }
            for time_ms in times_ms
        ],
    )  # fmt: skip
