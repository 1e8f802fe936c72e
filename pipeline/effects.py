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
from pipeline.core.step import Admission, StepConfig, admit, derive_effects
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


class _Admitted(NamedTuple):
    source: Source
    admission: Admission


class EffectRunner:
    """Performs chunks. Memory: the ids of each partition's window, and one chunk."""

    def __init__(
        self,
        config: StepConfig,
        pricer: Pricer,
        registry: MonitorRegistry,
        requests: RequestStore,
        publisher: Publisher,
        executor: Executor,
        dedup_window: int,
        count: Callable[[Source, ChunkCounts], None],
    ) -> None:
        self._config = config
        self._pricer = pricer
        self._registry = registry
        self._requests = requests
        self._publisher = publisher
        self._executor = executor
        self._dedup_window = dedup_window
        self._count = count
        self._seen: dict[tuple[str, int], SeenIds] = {}
        self._admitted: dict[tuple[str, int], _Admitted] = {}

    def forget(self, topic: str, partition: int) -> None:
        """Drop what is known of a partition: it starts anew from what is stored."""
        self._seen.pop((topic, partition), None)
        self._admitted.pop((topic, partition), None)

    async def perform(self, chunk: Chunk) -> None:
        """Store the chunk, then publish its signals and dead letters.

        Raises:
            RetryableError: something is away; call again with the same chunk.
        """
        loop = asyncio.get_running_loop()
        # One thread for both: heartbeats go on meanwhile, and the embedded
        # engine is only ever entered from there.
        effects = await loop.run_in_executor(self._executor, self._store, chunk)
        for partition, packets in effects.packets.items():
            await self._publisher.publish_signals(partition, packets)
        await self._publisher.publish_deadletters(chunk.source, effects.deadletters)
        self._admitted.pop((chunk.source.topic, chunk.source.partition), None)
        self._count(chunk.source, effects.counts)

    def _store(self, chunk: Chunk) -> ChunkEffects:
        admission = self._admit(chunk)
        effects = derive_effects(admission, self._config, self._pricer, self._registry)
        if refused := self._requests.find_unstorable(effects):
            admission = admission.without(refused)
            effects = derive_effects(admission, self._config, self._pricer, self._registry)
        self._requests.store_rest(effects)
        return effects

    def _admit(self, chunk: Chunk) -> Admission:
        """Admission moves the window of seen ids on, so a retry must not do it again."""
        source = chunk.source
        key = (source.topic, source.partition)
        held = self._admitted.get(key)
        if held is None or held.source != source:
            if key not in self._seen:
                ids = self._requests.read_recent_ids(source, self._dedup_window)
                self._seen[key] = SeenIds(self._dedup_window, ids)
            admission = admit(chunk, self._config.limits, self._seen[key])
            held = self._admitted[key] = _Admitted(source, admission)
        return held.admission
