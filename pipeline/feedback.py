"""Sees to it that feedback finds its request, is stored once, and is counted.

A chunk waits for requests that are not stored yet: `Patience` says for how long. What has not
found its request by then is stored without, and counts in no monitor; whoever asks later
finds it joined all the same (the view ``feedback_by_request``).

Delivery guarantee: exactly once in ClickHouse, at least once on the signals and dead-letter
topics, where readers drop repeats by position. What feedback was joined to is stored with it
and read back before a chunk is done again, so that a replay counts what was counted before,
whatever has been stored since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

from pipeline.core.chunk import Chunk, ChunkCounts
from pipeline.core.dedup import SeenIds
from pipeline.core.feedback import (
    FeedbackAdmission,
    FeedbackConfig,
    Joined,
    Subject,
    Subjects,
    admit_feedback,
    feedback_rows,
    pack_feedback,
    select_missing,
    wanted_ids,
)
from pipeline.core.monitors import MonitorRegistry
from pipeline.effects import Publisher, Window
from pipeline.sinks.feedback import FeedbackStore
from schemas.feedback import ReceivedFeedback
from schemas.signal import Source

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Most feedback is about the last hour: what is not found there is looked for further back, once.
RECENT_MS = 3_600_000
#: While this worker itself is behind with the events of that time, feedback waits so long.
BEHIND_S = 120.0
DAY_MS = 86_400_000


class Patience(NamedTuple):
    """How long feedback waits for its request, and who tells the time."""

    wait_s: float
    poll_s: float
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    #: When the oldest event was written that this worker holds and has not stored; None without.
    held_since_ms: Callable[[], int | None] = lambda: None


class FeedbackRunner:
    """What the chunks of all partitions need, and where it is done: see `EffectRunner`."""

    def __init__(
        self,
        config: FeedbackConfig,
        store: FeedbackStore,
        registry: MonitorRegistry,
        publisher: Publisher,
        preparing: Executor,
        storing: Executor,
        dedup_window: int,
        lookback_ms: int,
        patience: Patience,
        count: Callable[[Source, ChunkCounts], None],
    ) -> None:
        self.config = config
        self.store = store
        self.registry = registry
        self.publisher = publisher
        self.preparing = preparing
        self.storing = storing
        self.dedup_window = dedup_window
        self.lookback_ms = lookback_ms
        self.patience = patience
        self.count = count

    def open_partition(self, _topic: str, _partition: int) -> PartitionFeedback:
        """Return what sees to a partition's chunks while it stays assigned."""
        return PartitionFeedback(self)


class PartitionFeedback:
    """Sees to the chunks of one partition, in their order. Memory: the ids of its window."""

    def __init__(self, runner: FeedbackRunner) -> None:
        self._runner = runner
        self._window: Window | None = None
        #: Of the first chunk alone: only it can be a replay.
        self._stored: dict[str, Subject | None] = {}

    async def prepare(self, chunk: Chunk) -> Joined:
        """Admit a chunk and find the requests that it is about; waits for them.

        Raises:
            RetryableError: ClickHouse is away; the window knows the chunk already.
        """
        runner = self._runner
        if self._window is None:
            self._stored = await self._block(lambda: runner.store.read_joins(chunk.source))
            self._window = await self._block(lambda: self._load(chunk.source))
        window = self._window
        admission = await asyncio.get_running_loop().run_in_executor(
            runner.preparing, lambda: admit_feedback(chunk, runner.config, window.at(chunk.source))
        )
        return await self._join(admission)

    async def store(self, joined: Joined) -> None:
        """Store the chunk, then publish its signals and dead letters.

        Raises:
            RetryableError: something is away; call again with the same.
        """
        runner, source = self._runner, joined.admission.source
        rows = feedback_rows(joined, runner.config)
        refused = await self._block(lambda: runner.store.store(source, rows))
        joined = joined.without(refused) if refused else joined
        letters = joined.admission.deadletters
        await self._block(
            lambda: runner.store.store_rest(
                source, letters, joined.admission.counts, joined.admission.written_ms
            )
        )
        packets = pack_feedback(joined, runner.config, runner.registry)
        for partition, each in packets.items():
            await runner.publisher.publish_signals(partition, each)
        await runner.publisher.publish_deadletters(source, letters)
        self._stored = {}
        if unjoined := joined.subjects.count(None):
            logger.info("%d of %d found no request", unjoined, len(joined.subjects))
        runner.count(source, joined.admission.counts)

    async def _join(self, admission: FeedbackAdmission) -> Joined:
        stored = self._stored
        new = [r for r in admission.received if r.feedback.feedback_id not in stored]
        subjects = await self._find(admission, new) if new else Subjects()
        return Joined(
            admission,
            [
                stored[f.feedback_id] if f.feedback_id in stored else subjects.find(f)
                for f in (received.feedback for received in admission.received)
            ],
        )

    async def _find(self, admission: FeedbackAdmission, new: list[ReceivedFeedback]) -> Subjects:
        """Look in the last hour, then further back, and then wait for what may still come."""
        runner, patience = self._runner, self._runner.patience
        oldest_ms = min(record.written_ms for record in admission.records)
        started_s = patience.clock()
        found = await self._look_up(new, oldest_ms - RECENT_MS, Subjects())
        if missing := select_missing(new, found):
            found = await self._look_up(missing, oldest_ms - runner.lookback_ms, found)
        latest_ms = max(record.written_ms for record in admission.records)
        while missing := select_missing(new, found):
            is_last = patience.clock() - started_s >= self._wait_s(latest_ms)
            if not is_last:
                await patience.sleep(patience.poll_s)
            # A gateway that was cut off sends events of long ago.
            since_ms = oldest_ms - (runner.lookback_ms if is_last else RECENT_MS)
            found = await self._look_up(missing, since_ms, found)
            if is_last:
                break
        return found

    def _wait_s(self, latest_ms: int) -> float:
        held_ms = self._runner.patience.held_since_ms()
        behind = held_ms is not None and held_ms <= latest_ms
        return max(self._runner.patience.wait_s, BEHIND_S if behind else 0.0)

    async def _look_up(
        self, wanted: list[ReceivedFeedback], since_ms: int, known: Subjects
    ) -> Subjects:
        events, responses = wanted_ids(wanted)
        found = await self._block(
            lambda: self._runner.store.find_subjects(events, responses, max(0, since_ms))
        )
        return known.joined_by(found)

    def _load(self, source: Source) -> Window:
        window = self._runner.dedup_window
        return Window(SeenIds(window, self._runner.store.read_recent_ids(source, window)))

    async def _block(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._runner.storing, call)
