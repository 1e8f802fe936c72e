"""The demo through a real broker and the real Faust worker, behind the interface of the local one.

The worker runs in a thread of this process, so that both can look into the
embedded store. Delivery guarantee: that of the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from pipeline.app import TopicPublisher, build_app, build_faust
from pipeline.broker import Broker
from pipeline.build import build_letter_policy
from pipeline.config import Config, KafkaSettings, TopicSettings
from pipeline.core.chunk import ChunkCounts
from pipeline.demo.stage import TOPIC, Stage
from pipeline.errors import KizashiError, SinkUnavailable
from pipeline.local import Counts
from pipeline.producers import open_producer
from pipeline.producing import read_head
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.incidents import IncidentStore
from pipeline.topics import create_topics, topic_epochs
from pipeline.web.front import without_front
from pipeline.worker import WorkerState
from schemas.alarm import Alarm
from schemas.incident import Incident, Status

START_TIMEOUT_S = 60.0
#: How long the worker may take at the end to work off what was sent.
FINISH_TIMEOUT_S = 60.0
POLL_S = 0.25


@contextlib.contextmanager
def play_over_kafka(stage: Stage) -> Iterator[KafkaPipeline]:
    """Give a pipeline over the configured broker, or over one started for the purpose."""
    with contextlib.ExitStack() as stack:
        kafka = _own_topics(_reach_broker(stage.config.kafka, stack))
        create_topics(kafka)
        # The demo shows the page itself, up to where it stands.
        config = without_front(stage.config.model_copy(update={"kafka": kafka}))
        worker = stack.enter_context(WorkerThread(config, stage.store))
        yield KafkaPipeline(kafka, stage.store, worker)


def _reach_broker(kafka: KafkaSettings, stack: contextlib.ExitStack) -> KafkaSettings:
    try:
        topic_epochs(kafka, [])
    except SinkUnavailable:
        broker = stack.enter_context(Broker())
        return KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
    return kafka


def _own_topics(kafka: KafkaSettings) -> KafkaSettings:
    """The same broker, with topics and a group of this run's own."""
    prefix = f"{TOPIC}-{uuid.uuid4().hex[:8]}"
    return kafka.model_copy(
        update={
            "group_id": prefix,
            "events_topic": f"{prefix}.events",
            "feedback_topic": f"{prefix}.feedback",
            "signals_topic": f"{prefix}.signals",
            "alarms_topic": f"{prefix}.alarms",
            "deadletter_topic": f"{prefix}.deadletter",
            "topics": TopicSettings(partitions=2, signals_partitions=2),
        }
    )


class WorkerThread:
    """A Faust worker in a thread with a loop of its own; a context manager."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state: WorkerState | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def books(self, topic: str) -> ChunkCounts:
        """What of a topic the worker has read, stored, dead-lettered and dropped so far."""
        self._check()
        books = list(self._state.books.items()) if self._state else []
        own = (counts for (name, _), counts in books if name == topic)
        return functools.reduce(ChunkCounts.plus, own, ChunkCounts())

    def __enter__(self) -> WorkerThread:
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise SinkUnavailable(f"the worker did not start within {START_TIMEOUT_S:.0f} s")
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _check(self) -> None:
        if self._error is not None:
            raise KizashiError(f"the worker ended: {self._error!r}") from self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = build_faust(self._config.kafka)
        publisher = TopicPublisher(app, self._config.kafka, build_letter_policy(self._config))
        self._state = WorkerState(self._config, app, publisher, self._store)
        build_app(app, self._state)
        await app.start()
        self._ready.set()
        await self._stop.wait()
        await app.stop()
        self._state.executor.shutdown(wait=True)


class KafkaPipeline:
    """Sends records to the broker, and tells what the worker has made of them."""

    def __init__(self, kafka: KafkaSettings, store: Store, worker: WorkerThread) -> None:
        self._topic = kafka.events_topic
        self._feedback_topic = kafka.feedback_topic
        self._producer = open_producer(kafka)
        self._store = store
        self._incidents = IncidentStore(store)
        self._worker = worker
        self._sent = 0
        self._ratings: list[bytes] = []
        self._versions: dict[str, int] = {}

    @property
    def counts(self) -> Counts:
        books = self._worker.books(self._topic)
        return Counts(self._sent, books.stored, books.deadlettered, books.duplicates)

    def feed(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        """Send the records; returns the incidents that have changed meanwhile."""
        for raw in records:
            event_id = read_head(raw).event_id
            key = event_id.encode() if event_id else None
            self._producer.send(self._topic, key=key, value=raw)
        self._sent += len(records)
        return self._changed()

    def feed_feedback(self, records: Sequence[bytes], now_ms: int) -> list[Alarm | Incident]:
        """Keep what people think of answers until the end: while it waits for its requests, the
        worker asks the embedded store for them, and falls behind with the requests themselves.
        """
        self._ratings += records
        return []

    def finish(self, now_ms: int) -> list[Alarm | Incident]:
        """Wait until the worker has worked everything off and the incidents have settled."""
        self._producer.flush()
        news = self._wait(lambda: self._is_worked_off() and self._settled())
        for raw in self._ratings:
            self._producer.send(self._feedback_topic, raw)
        self._producer.flush()
        self._producer.close()
        rated = len(self._ratings)
        news += self._wait(lambda: self._worker.books(self._feedback_topic).read >= rated)
        return news

    def _wait(self, done: Callable[[], bool]) -> list[Alarm | Incident]:
        """Return what has changed until it is done, or `FINISH_TIMEOUT_S` are over."""
        news: list[Alarm | Incident] = []
        deadline_s = time.monotonic() + FINISH_TIMEOUT_S
        while time.monotonic() < deadline_s:
            news += self._changed()
            if done():
                break
            time.sleep(POLL_S)
        return news + self._changed()

    def query(self, sql: str) -> list[dict[str, object]]:
        names, rows = self._store.query(sql)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _is_worked_off(self) -> bool:
        c = self.counts
        return c.events == c.stored + c.deadlettered + c.duplicates

    def _settled(self) -> bool:
        return all(i.status is Status.RESOLVED for i in self._incidents.load_recent())

    def _changed(self) -> list[Alarm | Incident]:
        recent = sorted(self._incidents.load_recent(), key=lambda i: i.opened_ms)
        new = [i for i in recent if self._versions.get(i.incident_id, 0) < i.version]
        self._versions |= {i.incident_id: i.version for i in new}
        return list(new)
