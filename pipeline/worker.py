"""Everything that one worker holds, and what its agents do with what they are handed."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from pipeline.agents import AlarmPublisher, DetectAgent, RespondAgent
from pipeline.build import (
    Reader,
    build_bank_config,
    build_doors,
    build_feedback_config,
    build_feedback_registry,
    build_heartbeat,
    build_keeper,
    build_last_resort,
    build_notifier,
    build_pricer,
    build_registry,
    build_setup,
    build_step_config,
    build_vitals_config,
)
from pipeline.config import Config
from pipeline.core.chunk import ChunkCounts
from pipeline.core.fingerprints import ReferenceSet
from pipeline.core.monitors import MonitorRegistry
from pipeline.detect import DetectorRunner
from pipeline.effects import EffectRunner, OwnPreparer, Preparer, Publisher
from pipeline.errors import ConfigError, Fenced, RetryableError
from pipeline.feedback import DAY_MS, FeedbackRunner, Patience
from pipeline.incidents.book import BookConfig
from pipeline.ingest import IngestLimits, Ingestor, PartitionWork
from pipeline.lookout import Lookout, Sources
from pipeline.metrics import BookCollector, MetricsRoute
from pipeline.preparing import PreparerPool
from pipeline.process import release_memory
from pipeline.respond import Responder
from pipeline.retry import START_PATIENCE_S, Backoff, insist, persist
from pipeline.silences import SilenceKeeper
from pipeline.sinks.books import BookStore
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.feedback import FeedbackStore
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.notifier import build_destinations
from pipeline.sinks.objectives import ObjectiveStore
from pipeline.sinks.reconciliation import Comparison, Reconciler, find_start, read_last
from pipeline.sinks.requests import RequestStore
from pipeline.sinks.silences import SilenceStore
from pipeline.standing import read_standings
from pipeline.topics import examine_topics, topic_epochs
from pipeline.transport import Batch, OffsetLog, assert_compiled, to_batch
from pipeline.watchdog import Watchdog
from pipeline.web.front import Front
from pipeline.web.server import Extension
from schemas.command import Command
from schemas.signal import Source

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A chunk takes seconds; a rebalance takes a session time-out.
STALL_S = 180.0
#: Feedback that waits for its request looks for it so often.
JOIN_POLL_S = 1.0
#: … and most of the time it waits: a lane costs nothing.
FEEDBACK_LANES = 16


class PublishingAlarms(Publisher, AlarmPublisher, Protocol):
    """A publisher of everything that a worker publishes; a command goes among the alarms."""

    async def publish_commands(self, commands: Sequence[Command]) -> None: ...


class WorkerState:
    """One worker's state, built once from the configuration.

    Raises ConfigError when the worker cannot start, and SinkUnavailable when what it needs has been
    away for `patience_s`.
    """

    def __init__(
        self,
        config: Config,
        app: Any,
        publisher: PublishingAlarms,
        store: Store | None = None,
        patience_s: float = START_PATIENCE_S,
    ) -> None:
        assert_compiled()
        # Made anew whenever the alarms are taken over; here only to find a wrong key at the start.
        build_destinations(config.notify)
        self.config = config
        self.kafka = config.kafka
        self._patience_s = patience_s
        # One thread enters ClickHouse: the embedded engine wants it so, and the
        # inserts of one worker follow one another anyway.
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="clickhouse")
        preparers = count_preparers(config)
        self._lanes = max(2, preparers + 1)
        # Before the engine opens and its threads run.
        self.pool = self._start_pool(preparers) if preparers else None
        self.preparing = ThreadPoolExecutor(max(1, preparers), thread_name_prefix="prepare")
        self.offsets = OffsetLog(app)
        self._retried_s = -math.inf
        self.backoff = Backoff(
            asyncio.sleep,
            random.Random(),  # noqa: S311 — jitter
            note=self._note_retry,
        )
        self._watchdog = Watchdog(STALL_S)
        self.books: dict[tuple[str, int], ChunkCounts] = {}
        self._epochs = self._insist(self._read_epochs)
        #: The generation in which the epochs were read; before the first, none has to be.
        self._epochs_read = -1
        self.store = store or self._insist(lambda: Store(config.clickhouse))
        self._insist(self.store.use_database)
        self.publisher = publisher
        self.front = Front(config, time.time, extensions=self._extensions())
        self._build()

    def _insist(self, call: Callable[[], T]) -> T:
        return insist(call, self._patience_s, time.monotonic, time.sleep)

    def _start_pool(self, preparers: int) -> PreparerPool:
        partitions = self.config.kafka.topics.signals_partitions
        return PreparerPool(preparers, build_setup(self.config, partitions))

    def _extensions(self) -> list[Extension]:
        books = BookCollector(
            lambda: self.books, lambda: self.lookout.standings, lambda: self.lookout.troubles
        )
        extensions: list[Extension] = [MetricsRoute(books)]
        if (secret := self.config.notify.pagerduty.webhook_secret) is not None:
            # It brings an HTTP client along, which is slow to load.
            from pipeline.pagerduty_webhook import PagerDutyHook

            publish = self.publisher.publish_commands
            extensions.append(PagerDutyHook(secret.get_secret_value(), publish, time.time))
        extensions += build_doors(self.config, time.time)
        return extensions

    def _read_epochs(self) -> dict[str, str]:
        kafka = self.kafka
        missing, differences = examine_topics(kafka)
        if missing:
            raise ConfigError(f"topics are missing: {', '.join(missing)}; run `kizashi init`")
        for wrong in differences:
            # A monitor's state lives where its hash says: both sides must count alike.
            if wrong.topic == kafka.signals_topic and wrong.what == "partitions":
                raise ConfigError(
                    f"kafka.topics.signals_partitions is {wrong.planned},"
                    f" but {wrong.topic} has {wrong.standing} partitions"
                )
        return topic_epochs(
            kafka, (*kafka.input_topics, *kafka.feedback_topics, kafka.signals_topic)
        )

    def _build(self) -> None:
        config, partitions = self.config, self.config.kafka.topics.signals_partitions
        requests = RequestStore(self.store)
        incidents = IncidentStore(self.store)
        self.effects = EffectRunner(
            self._build_preparer(self._insist(lambda: build_registry(config, requests))),
            requests,
            self.publisher,
            self.preparing,
            self.executor,
            config.ingest.dedup_window,
            self._count,
        )
        held = config.ingest.held_bytes
        self.ingestor = self._build_ingestor(self.effects.open_partition, held)
        open_feedback = self._build_feedback().open_partition
        self.feedback = self._build_ingestor(open_feedback, held // 4)
        self.detectors = DetectorRunner(
            build_bank_config(config, partitions),
            DetectionStore(self.store),
            self.kafka.signals_topic,
            self._epochs[self.kafka.signals_topic],
            config.detection.snapshot_interval_s,
            time.monotonic,
        )
        silences = SilenceKeeper(SilenceStore(self.store), config.notify.windows)
        self.responder = Responder(
            BookConfig(),
            incidents,
            lambda: build_notifier(config.notify, incidents, self.executor, self._prove),
            self.executor,
            silences.active,
            self._prove,
        )
        self.detecting = DetectAgent(
            self.detectors, self.publisher, self.executor, self.offsets, self.backoff
        )
        self.responding = RespondAgent(
            self.responder, self.kafka.alarms_topic, _now_ms, self.offsets, self.backoff
        )
        self.lookout = self._build_lookout(silences)

    def _build_lookout(self, silences: SilenceKeeper) -> Lookout:
        config = self.config
        sources = Sources(
            functools.partial(read_standings, self.kafka),
            BookStore(self.store).read_history,
            functools.partial(read_last, self.store),
            silences.last_known,
        )
        return Lookout(
            build_vitals_config(config.watch, config.feedback),
            sources,
            self.responding,
            self.executor,
            _now_ms,
            last_resort=build_last_resort(config.notify),
            heartbeat=build_heartbeat(config.notify),
        )

    def _build_ingestor(
        self, open_partition: Callable[[str, int], PartitionWork], held_bytes: int
    ) -> Ingestor:
        ingest = self.config.ingest
        return Ingestor(
            IngestLimits(
                events=ingest.chunk_events,
                bytes=ingest.chunk_bytes,
                interval_s=ingest.chunk_interval_s,
                span_ms=round(ingest.chunk_span_s * 1000),
                held_bytes=held_bytes,
            ),
            self.offsets,
            self._epochs.__getitem__,
            open_partition,
            self.backoff,
            time.monotonic,
        )

    def _build_feedback(self) -> FeedbackRunner:
        config, store = self.config, FeedbackStore(self.store)
        return FeedbackRunner(
            build_feedback_config(config, self.kafka.topics.signals_partitions),
            store,
            build_feedback_registry(config, store),
            self.publisher,
            self.preparing,
            self.executor,
            config.ingest.dedup_window,
            round(config.feedback.lookback_days * DAY_MS),
            Patience(
                config.feedback.join_wait_s,
                JOIN_POLL_S,
                time.monotonic,
                asyncio.sleep,
                lambda: self.ingestor.held_since_ms,
            ),
            self._count,
        )

    async def _prove(self) -> None:
        await self.responding.prove()

    def _build_preparer(self, registry: MonitorRegistry) -> Preparer:
        config = self.config
        if self.pool is None:
            reader = Reader(config, self.store)
            self.keeper = reader.keeper
            step = build_step_config(config, config.kafka.topics.signals_partitions)
            return OwnPreparer(step, build_pricer(config), registry, reader.reading)
        self.keeper = build_keeper(config, self.store, self.pool.embedding)
        self.pool.serve(registry, self._references)
        return self.pool

    def _references(self) -> ReferenceSet | None:
        return self.keeper.references if self.keeper else None

    def _count(self, source: Source, counts: ChunkCounts) -> None:
        key = (source.topic, source.partition)
        self.books[key] = self.books.get(key, ChunkCounts()).plus(counts)

    async def ingest(self, message: Any) -> None:
        """Hand a chunk of events to the ingestor; waits while it holds too much."""
        batch = to_batch(message)
        await self._meet(batch)
        await self.ingestor.offer(batch)

    async def take_feedback(self, message: Any) -> None:
        """Hand a chunk of feedback on; waits while too much is held."""
        batch = to_batch(message)
        await self._meet(batch)
        await self.feedback.offer(batch)

    async def detect(self, message: Any) -> None:
        """Take in a chunk of signals."""
        batch = to_batch(message)
        await self._meet(batch)
        await self.detecting.take(batch)

    async def respond(self, message: Any) -> None:
        """Take in a chunk of alarms and commands."""
        await self.responding.take(to_batch(message))

    async def work(self) -> None:
        """See chunks of events and of feedback through, for ever."""
        # Feedback waits for events: in lanes of its own it holds up none of them.
        await asyncio.gather(self.ingestor.run(self._lanes), self.feedback.run(FEEDBACK_LANES))

    async def tick(self) -> None:
        """Take the incidents over or hand them over, as assigned; resolve what is due."""
        await self.responding.tick(owns=self.offsets.owns(self.kafka.alarms_topic, 0))

    async def keep_references(self) -> None:
        """Read the references again, and fit those that are due if that is ours to do."""
        keeper, loop = self.keeper, asyncio.get_running_loop()
        if keeper is None:
            return
        try:
            await loop.run_in_executor(self.executor, keeper.refresh)
            if self.offsets.owns(self.kafka.alarms_topic, 0):
                await loop.run_in_executor(self.executor, keeper.fit_due, _now_ms())
        except RetryableError as error:
            logger.warning("references cannot be looked after: %s", error)

    async def measure_objectives(self) -> None:
        """Store how the objectives stand, if that is ours to do."""
        if not self.config.objectives or not self.offsets.owns(self.kafka.alarms_topic, 0):
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self.executor, self._measure)
        except RetryableError as error:
            logger.warning("objectives cannot be measured: %s", error)

    async def look_out(self) -> None:
        """Look after the whole group, if that is ours to do."""
        await self.lookout.look(owns=self.offsets.owns(self.kafka.alarms_topic, 0))

    async def reconcile(self) -> None:
        """Compare the rollups of the last hour with what is stored, if that is ours to do."""
        if not self.offsets.owns(self.kafka.alarms_topic, 0):
            return
        try:
            found = await self._compare_books(_now_ms())
        except RetryableError as error:
            logger.warning("the books cannot be compared: %s", error)
            return
        if found.differences:
            logger.error(
                "%d of %d sums of rollups are not those of the stored requests: kizashi reconcile",
                found.differing,
                found.compared,
            )

    async def _compare_books(self, now_ms: int) -> Comparison:
        """One grouping after the other, so that chunks are stored in between."""
        loop = asyncio.get_running_loop()
        last = await loop.run_in_executor(self.executor, read_last, self.store)
        first_ms = find_start(last, now_ms)
        whole = Comparison(first_ms, now_ms, 0, ())
        for grouping in self.config.ingest.groupings:
            reconciler = Reconciler(self.store, [grouping])
            whole += await loop.run_in_executor(
                self.executor, reconciler.compare, first_ms, now_ms, now_ms
            )
        await loop.run_in_executor(self.executor, reconciler.save, whole, now_ms)
        return whole

    def _measure(self) -> None:
        objectives = ObjectiveStore(self.store, self.config.ingest.groupings[0])
        now_ms = _now_ms()
        standings = [objectives.measure(each, now_ms) for each in self.config.objectives]
        objectives.save(standings)

    async def watch(self) -> None:
        """Log the books; end the process when there is work and nothing moves."""
        try:
            topics = (*self.kafka.input_topics, *self.kafka.feedback_topics)
            found = [await self.offsets.lag(topic) for topic in topics]
        except RetryableError as error:
            logger.warning("%s", error)
            return
        position, lag = (sum(each) for each in zip(*found, strict=True))
        logger.info(
            "%d events: %d stored, %d dead-lettered, %d repeats, %d spans of others; %d behind",
            *functools.reduce(ChunkCounts.plus, self.books.values(), ChunkCounts()),
            lag,
        )
        now_s = time.monotonic()
        # A call to a ClickHouse that hangs takes its time-out, and then somebody waits.
        grace_s = self.config.clickhouse.timeout_s + 2 * self.backoff.max_s
        retrying = now_s - self._retried_s < grace_s
        if self._watchdog.observe(now_s, position=position, lag=lag, retrying=retrying):
            logger.critical("%d events behind, and nothing has moved for %d s", lag, STALL_S)
            # What hangs cannot be asked to stop. Its successor takes up the declared range.
            os._exit(1)

    async def release_memory(self) -> None:
        """Give back what the last seconds needed and the next ones will ask for again."""
        try:
            await asyncio.get_running_loop().run_in_executor(self.executor, self._release_memory)
        except RetryableError as error:
            logger.warning("memory cannot be given back: %s", error)

    def _release_memory(self) -> None:
        self.store.release_memory()
        release_memory()

    def _note_retry(self) -> None:
        self._retried_s = time.monotonic()

    async def _meet(self, batch: Batch) -> None:
        """Read the epochs again in a new generation: a topic may have been created anew.

        Its offsets then begin again, and under the old epoch their tokens would be taken for those
        of what was stored long ago.
        """
        if batch.generation == self._epochs_read:
            return

        def is_ours() -> bool:
            return self.offsets.is_current(batch.generation)

        try:
            await persist(lambda: self._read_epochs_again(batch), self.backoff, is_ours)
        except Fenced as fenced:
            logger.info("dropped: %s", fenced)

    async def _read_epochs_again(self, batch: Batch) -> None:
        read = functools.partial(topic_epochs, self.kafka, tuple(self._epochs))
        found = await asyncio.get_running_loop().run_in_executor(self.preparing, read)
        # What is gone has no records, and what comes in its place a generation of its own.
        self._epochs.update(found)
        self.detectors.epoch = self._epochs[self.kafka.signals_topic]
        self._epochs_read = batch.generation

    def close(self) -> None:
        """Let go of ClickHouse, when nothing runs any more."""
        self.preparing.shutdown(wait=True)
        if self.pool is not None:
            self.pool.close()
        self.executor.shutdown(wait=True)
        self.store.close()


def count_preparers(config: Config) -> int:
    """Return how many processes are to prepare chunks.

    On a single core they would only cost; and without texts a chunk's crossing is dearer
    than what it spares the worker.
    """
    wanted = config.ingest.preparers
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int((cores or 1) > 1 and config.encoder.kind != "none")


def _now_ms() -> int:
    return round(time.time() * 1000)
