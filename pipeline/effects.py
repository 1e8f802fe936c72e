"""Sees to it that everything happens that a chunk must bring about, in the order that is safe.

Delivery guarantee: may be called again for the same chunk, after any failure at
any point; ClickHouse drops what it has by its token, and the readers of the
signals and dead-letter topics drop repeats by position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

from pipeline.core.chunk import Chunk, ChunkCounts, ChunkEffects, DeadLetter
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Admission, Reading, StepConfig, admit, derive_effects
from pipeline.core.wire import EVENTS
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

    def open_partition(self, _topic: str, _partition: int) -> PartitionEffects:
        """Return what sees to a partition's chunks while it stays assigned."""
        return PartitionEffects(self)


class Prepared(NamedTuple):
    """A chunk that is ready to be stored."""

    admission: Admission
    effects: ChunkEffects


class PartitionEffects:
    """Sees to the chunks of one partition: prepared in their order, and stored in their order.

    Memory: the ids of the partition's window.
    """

    def __init__(self, runner: EffectRunner) -> None:
        self._runner = runner
        self._seen: SeenIds | None = None

    async def prepare(self, chunk: Chunk) -> Prepared:
        """Admit a chunk and work out its effects. Moves the window of seen ids on.

        Raises:
            RetryableError: the window cannot be read back; nothing has moved.
        """
        runner, loop = self._runner, asyncio.get_running_loop()
        if self._seen is None:
            self._seen = await loop.run_in_executor(runner.storing, self._load, chunk.source)
        return await loop.run_in_executor(runner.preparing, self._prepare, chunk, self._seen)

    async def store(self, prepared: Prepared) -> None:
        """Store the chunk, then publish its signals and dead letters.

        Raises:
            RetryableError: something is away; call again with the same.
        """
        runner, loop = self._runner, asyncio.get_running_loop()
        admission, effects = prepared
        refused = await loop.run_in_executor(
            runner.storing, runner.requests.find_unstorable, effects
        )
        if refused:
            admission = admission.without(refused)
            effects = await loop.run_in_executor(runner.preparing, self._derive, admission)
        await loop.run_in_executor(runner.storing, runner.requests.store_rest, effects)
        for partition, packets in effects.packets.items():
            await runner.publisher.publish_signals(partition, packets)
        await runner.publisher.publish_deadletters(effects.source, effects.deadletters)
        runner.count(effects.source, effects.counts)

    def _load(self, source: Source) -> SeenIds:
        window = self._runner.dedup_window
        return SeenIds(window, self._runner.requests.read_recent_ids(source, window))

    def _prepare(self, chunk: Chunk, seen: SeenIds) -> Prepared:
        config = self._runner.config
        admission = admit(chunk, config.limits, seen, config.wires.get(chunk.source.topic, EVENTS))
        return Prepared(admission, self._derive(admission))

    def _derive(self, admission: Admission) -> ChunkEffects:
        runner = self._runner
        return derive_effects(
            admission, runner.config, runner.pricer, runner.registry, runner.reading()
        )
