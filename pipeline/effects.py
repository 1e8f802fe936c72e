"""Sees to it that everything happens that a chunk must bring about, in the order that is safe.

Delivery guarantee: may be called again for the same chunk, after any failure at
any point; ClickHouse drops what it has by its token, and the readers of the
signals and dead-letter topics drop repeats by position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Protocol

from pipeline.core.chunk import Chunk, ChunkCounts, ChunkEffects, DeadLetter
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Admission, Reading, StepConfig, admit, derive_effects
from pipeline.sinks.requests import RequestStore
from schemas.signal import SignalPacket, Source


class Publisher(Protocol):
    """The topics that ingest writes to. Returns when the broker has everything.

    Raises SinkUnavailable when the broker cannot be reached.
    """

    async def publish_signals(self, partition: int, packets: Sequence[SignalPacket]) -> None: ...

    async def publish_deadletters(
        self, source: Source, deadletters: Sequence[DeadLetter]
    ) -> None: ...


class EffectRunner:
    """What the chunks of all partitions need, and where it is done.

    Preparing a chunk and storing it have a thread each: the one is Python and the
    other ClickHouse, so two chunks can be in hand at once. The embedded engine is
    only ever entered from `storing`; prices and the registry only from `preparing`.
    """

    def __init__(
        self,
        config: StepConfig,
        pricer: Pricer,
        registry: MonitorRegistry,
        requests: RequestStore,
        publisher: Publisher,
        preparing: Executor,
        storing: Executor,
        dedup_window: int,
        count: Callable[[Source, ChunkCounts], None],
        reading: Callable[[], Reading | None],
    ) -> None:
        self.config = config
        self.pricer = pricer
        self.registry = registry
        self.requests = requests
        self.publisher = publisher
        self.preparing = preparing
        self.storing = storing
        self.dedup_window = dedup_window
        self.count = count
        self.reading = reading

    def open_partition(self, _topic: str, _partition: int) -> Callable[[Chunk], Awaitable[None]]:
        """Return what performs a partition's chunks while it stays assigned."""
        return PartitionEffects(self).perform


class PartitionEffects:
    """Performs the chunks of one partition, one after the other.

    Memory: the ids of the partition's window, and one chunk.
    """

    def __init__(self, runner: EffectRunner) -> None:
        self._runner = runner
        self._seen: SeenIds | None = None
        #: The chunk in hand. Admission moves the window on, so a retry must not do it again.
        self._admission: Admission | None = None

    async def perform(self, chunk: Chunk) -> None:
        """Store the chunk, then publish its signals and dead letters.

        Raises:
            RetryableError: something is away; call again with the same chunk.
        """
        runner, loop = self._runner, asyncio.get_running_loop()
        if self._seen is None:
            self._seen = await loop.run_in_executor(runner.storing, self._load, chunk.source)
        effects = await loop.run_in_executor(runner.preparing, self._prepare, chunk, self._seen)
        refused = await loop.run_in_executor(
            runner.storing, runner.requests.find_unstorable, effects
        )
        if refused:
            effects = await loop.run_in_executor(runner.preparing, self._leave_out, refused)
        await loop.run_in_executor(runner.storing, runner.requests.store_rest, effects)
        for partition, packets in effects.packets.items():
            await runner.publisher.publish_signals(partition, packets)
        await runner.publisher.publish_deadletters(chunk.source, effects.deadletters)
        self._admission = None
        runner.count(chunk.source, effects.counts)

    def _load(self, source: Source) -> SeenIds:
        window = self._runner.dedup_window
        return SeenIds(window, self._runner.requests.read_recent_ids(source, window))

    def _prepare(self, chunk: Chunk, seen: SeenIds) -> ChunkEffects:
        if self._admission is None:
            self._admission = admit(chunk, self._runner.config.limits, seen)
        return self._derive(self._admission)

    def _leave_out(self, refused: Mapping[int, str]) -> ChunkEffects:
        assert self._admission is not None  # noqa: S101 — `_prepare` came before
        return self._derive(self._admission.without(refused))

    def _derive(self, admission: Admission) -> ChunkEffects:
        runner = self._runner
        return derive_effects(
            admission, runner.config, runner.pricer, runner.registry, runner.reading()
        )
