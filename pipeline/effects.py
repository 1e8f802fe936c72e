"""Sees to it that everything happens that a chunk must bring about, in the order that is safe.

Delivery guarantee: may be called again for the same chunk, after any failure at
any point; ClickHouse drops what it has by its token, and the readers of the
signals and dead-letter topics drop repeats by position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

from pipeline.core.chunk import Chunk, ChunkCounts, ChunkEffects, DeadLetter
from pipeline.core.dedup import SeenIds
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Admission, Reading, StepConfig, admit_chunk, derive_effects
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


class Window:
    """A partition's window of seen ids, which every chunk moves on once, however often it asks.

    What was answered last is kept, for a chunk whose preparing broke off and begins again.
    """

    def __init__(self, seen: SeenIds) -> None:
        self._seen = seen
        self._asked: Source | None = None
        self._new: list[bool] = []

    def at(self, source: Source) -> ChunkIds:
        """Return the window as the chunk sees it."""
        return ChunkIds(self, source)

    def find_new(self, source: Source, event_ids: Sequence[str]) -> list[bool]:
        """Return which of the chunk's valid ids are new."""
        if source != self._asked:
            self._new, self._asked = self._seen.add_all(event_ids), source
        return self._new


class ChunkIds(NamedTuple):
    """The window of a chunk's partition."""

    window: Window
    source: Source

    def add_all(self, event_ids: Sequence[str]) -> list[bool]:
        return self.window.find_new(self.source, event_ids)


class Prepared(NamedTuple):
    """A chunk that is ready to be stored."""

    #: What its preparer needs to prepare it again without some of its rows.
    admitted: Any
    effects: ChunkEffects
    #: When the chunk's last record was written; whoever has the chunk fills it in.
    written_ms: int = 0


class Preparer(Protocol):
    """Works out what chunks must bring about. Calls block: the shell runs them in a thread."""

    def prepare(self, chunk: Chunk, window: Window) -> Prepared:
        """Admit a chunk and work out its effects. Moves the window on.

        Raises:
            RetryableError: it broke off; the window knows the chunk already.
        """

    def prepare_without(self, prepared: Prepared, refused: Mapping[int, str]) -> ChunkEffects:
        """Work them out again without the rows (of those to be stored) that are refused."""


class OwnPreparer:
    """Prepares in the thread that asks. Prices and the registry are entered from no other."""

    def __init__(
        self,
        config: StepConfig,
        pricer: Pricer,
        registry: MonitorRegistry,
        reading: Callable[[], Reading | None],
    ) -> None:
        self._config = config
        self._pricer = pricer
        self._registry = registry
        self._reading = reading

    def prepare(self, chunk: Chunk, window: Window) -> Prepared:
        admission = admit_chunk(chunk, self._config, window.at(chunk.source))
        return Prepared(admission, self._derive(admission))

    def prepare_without(self, prepared: Prepared, refused: Mapping[int, str]) -> ChunkEffects:
        admission: Admission = prepared.admitted
        return self._derive(admission.without(refused))

    def _derive(self, admission: Admission) -> ChunkEffects:
        return derive_effects(
            admission, self._config, self._pricer, self._registry, self._reading()
        )


class EffectRunner:
    """What the chunks of all partitions need, and where it is done.

    Preparing chunks and storing them have threads of their own: the one is Python and the
    other ClickHouse, so several chunks can be in hand at once. The embedded engine is
    only ever entered from `storing`, which is one thread.
    """

    def __init__(
        self,
        preparer: Preparer,
        requests: RequestStore,
        publisher: Publisher,
        preparing: Executor,
        storing: Executor,
        dedup_window: int,
        count: Callable[[Source, ChunkCounts], None],
    ) -> None:
        self.preparer = preparer
        self.requests = requests
        self.publisher = publisher
        self.preparing = preparing
        self.storing = storing
        self.dedup_window = dedup_window
        self.count = count

    def open_partition(self, _topic: str, _partition: int) -> PartitionEffects:
        """Return what sees to a partition's chunks while it stays assigned."""
        return PartitionEffects(self)


class PartitionEffects:
    """Sees to the chunks of one partition: prepared in their order, and stored in their order.

    Memory: the ids of the partition's window.
    """

    def __init__(self, runner: EffectRunner) -> None:
        self._runner = runner
        self._window: Window | None = None

    async def prepare(self, chunk: Chunk) -> Prepared:
        """Admit a chunk and work out its effects. Moves the window of seen ids on.

        Raises:
            RetryableError: the window cannot be read back, or who prepared is gone.
        """
        runner, loop = self._runner, asyncio.get_running_loop()
        if self._window is None:
            self._window = await loop.run_in_executor(runner.storing, self._load, chunk.source)
        prepared = await loop.run_in_executor(
            runner.preparing, runner.preparer.prepare, chunk, self._window
        )
        written_ms = chunk.records[-1].written_ms if chunk.records else 0
        return prepared._replace(written_ms=written_ms)

    async def store(self, prepared: Prepared) -> None:
        """Store the chunk, then publish its signals and dead letters.

        Raises:
            RetryableError: something is away; call again with the same.
        """
        runner, loop = self._runner, asyncio.get_running_loop()
        effects = prepared.effects
        refused = await loop.run_in_executor(
            runner.storing, runner.requests.find_unstorable, effects
        )
        if refused:
            effects = await loop.run_in_executor(
                runner.preparing, runner.preparer.prepare_without, prepared, refused
            )
        await loop.run_in_executor(
            runner.storing, runner.requests.store_rest, effects, prepared.written_ms
        )
        for partition, packets in effects.packets.items():
            await runner.publisher.publish_signals(partition, packets)
        await runner.publisher.publish_deadletters(effects.source, effects.deadletters)
        runner.count(effects.source, effects.counts)

    def _load(self, source: Source) -> Window:
        window = self._runner.dedup_window
        return Window(SeenIds(window, self._runner.requests.read_recent_ids(source, window)))
