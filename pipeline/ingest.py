"""The ingest protocol: every chunk is declared before it is done, so a crash repeats it exactly.

For each chunk of a partition, offsets f to l:

1. commit offset f with the metadata ``f-l``: acknowledges all before f, and
   writes down what is in flight. If that fails, nothing is stored;
2. store its effects under a token that names the range, then send its signals
   and dead letters and wait until the broker has them;
3. go on; when idle, commit l + 1.

After a crash or a rebalance the pending range is read back and done again as
that range: the same bytes under the same token.

Delivery guarantee: exactly once in ClickHouse, at least once on the signals and
dead-letter topics, where readers drop repeats by position.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from pipeline.core.chunk import Chunk, Record
from pipeline.errors import Fenced, RetryableError
from pipeline.retry import Backoff
from schemas.signal import Source

T = TypeVar("T")

_PENDING = re.compile(r"^(\d+)-(\d+)$")


class BatchLike(Protocol):
    """`pipeline.transport.Batch`; a protocol, so that this file needs no Kafka."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def records(self) -> list[Record]: ...


class CommittedLike(Protocol):
    @property
    def offset(self) -> int | None: ...
    @property
    def metadata(self) -> str: ...


class Offsets(Protocol):
    """Where offsets are committed: `pipeline.transport.OffsetLog`, or a fake."""

    def is_current(self, generation: int) -> bool: ...

    async def read(self, topic: str, partition: int) -> CommittedLike: ...

    async def write(
        self, topic: str, partition: int, offset: int, metadata: str, generation: int
    ) -> None: ...


@dataclass(frozen=True)
class IngestLimits:
    """A chunk is closed by whichever is reached first."""

    events: int
    bytes: int
    #: Since the first of its records arrived.
    interval_s: float
    #: Between its first and last record, by the times at which they were written: a
    #: worker that catches up goes through its partitions side by side.
    span_ms: int
    #: Over all partitions; `offer` waits when they are reached.
    held_bytes: int


class PendingRange(NamedTuple):
    """A declared range that was perhaps not finished; both ends are inclusive."""

    first: int
    last: int


def parse_pending(metadata: str) -> PendingRange | None:
    """Read a declared range; None for the metadata of an idle commit or of another program."""
    match = _PENDING.match(metadata)
    return PendingRange(int(match[1]), int(match[2])) if match else None


@dataclass
class _Partition:
    topic: str
    partition: int
    generation: int
    records: deque[Record] = field(default_factory=deque)
    bytes: int = 0
    oldest_s: float = 0.0
    pending: PendingRange | None = None
    loaded: bool = False
    #: The offset up to which everything is done, not yet committed; None when it is.
    done: int | None = None


class Ingestor:
    """Cuts batches into chunks and sees each through, one at a time.

    `perform` brings about everything that a chunk must; it raises
    RetryableError as long as a retry may help. `forget` is told when a
    partition starts anew. Memory: `limits.held_bytes` and one fetch.
    """

    def __init__(
        self,
        limits: IngestLimits,
        offsets: Offsets,
        epochs: Callable[[str], str],
        perform: Callable[[Chunk], Awaitable[None]],
        forget: Callable[[str, int], None],
        backoff: Backoff,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._offsets = offsets
        self._epochs = epochs
        self._perform = perform
        self._forget = forget
        self._backoff = backoff
        self._clock = clock
        self._partitions: dict[tuple[str, int], _Partition] = {}
        #: Partition → the generation in which it was lost.
        self._lost: dict[tuple[str, int], int] = {}
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def held_bytes(self) -> int:
        return sum(p.bytes for p in self._partitions.values())

    async def offer(self, batch: BatchLike) -> None:
        """Take in a batch; waits while too much is held already."""
        while self.held_bytes >= self._limits.held_bytes:
            self._room.clear()
            await self._room.wait()
        if not self._offsets.is_current(batch.generation) or self._is_lost(batch):
            return
        partition = self._partition_of(batch)
        if not partition.records:
            partition.oldest_s = self._clock()
        partition.records.extend(batch.records)
        partition.bytes += sum(_size(r) for r in batch.records)
        self._arrived.set()

    def _is_lost(self, batch: BatchLike) -> bool:
        """What follows dropped records in the same generation has a gap before it."""
        return self._lost.get((batch.topic, batch.partition)) == batch.generation

    def _partition_of(self, batch: BatchLike) -> _Partition:
        key = (batch.topic, batch.partition)
        partition = self._partitions.get(key)
        if partition is None or partition.generation != batch.generation:
            partition = _Partition(batch.topic, batch.partition, batch.generation)
            self._partitions[key] = partition
            self._forget(*key)
        return partition

    async def run(self) -> None:
        """Work for ever."""
        while True:
            if not await self.step():
                await self._wait()

    async def step(self) -> bool:
        """Do one chunk, or one idle commit; False when there is nothing to do yet."""
        for partition in self._oldest_first():
            try:
                if await self._work_on(partition):
                    return True
            except Fenced:
                self._drop(partition)
                return True
        return False

    def _oldest_first(self) -> list[_Partition]:
        """Partitions by when their next record was written; the empty ones last."""
        return sorted(
            self._partitions.values(),
            key=lambda p: (not p.records, p.records[0].written_ms if p.records else 0),
        )

    async def _wait(self) -> None:
        self._arrived.clear()
        try:
            async with asyncio.timeout(self._limits.interval_s / 4):
                await self._arrived.wait()
        except TimeoutError:
            return

    async def _work_on(self, partition: _Partition) -> bool:
        if not self._offsets.is_current(partition.generation):
            raise Fenced(f"{partition.topic}/{partition.partition} was assigned anew")
        if not partition.loaded:
            await self._load(partition)
        if (chunk := self._cut(partition)) is not None:
            await self._see_through(partition, chunk)
            return True
        if partition.done is not None and not partition.records:
            await self._commit(partition, partition.done, "")
            partition.done = None
        return False

    async def _load(self, partition: _Partition) -> None:
        committed = await self._persist(
            partition, lambda: self._offsets.read(partition.topic, partition.partition)
        )
        partition.pending = parse_pending(committed.metadata)
        partition.loaded = True

    def _cut(self, partition: _Partition) -> Chunk | None:
        if partition.pending is not None:
            return self._cut_pending(partition, partition.pending)
        records = partition.records
        if not records:
            return None
        events = self._fitting(partition)
        due = self._clock() - partition.oldest_s >= self._limits.interval_s
        if events == len(records) and not (due or self._is_full(partition)):
            return None
        return self._take(partition, events, records[0].offset, records[events - 1].offset)

    def _is_full(self, partition: _Partition) -> bool:
        limits = self._limits
        return len(partition.records) >= limits.events or partition.bytes >= limits.bytes

    def _fitting(self, partition: _Partition) -> int:
        """How many of the records at hand fit into one chunk; at least one."""
        limits, size = self._limits, 0
        first_ms = partition.records[0].written_ms
        for events, record in enumerate(partition.records):
            over_span = record.written_ms - first_ms > limits.span_ms
            if events and (events >= limits.events or size >= limits.bytes or over_span):
                return events
            size += _size(record)
        return len(partition.records)

    def _cut_pending(self, partition: _Partition, pending: PendingRange) -> Chunk | None:
        """The declared range, whole: it can only be told from the record after it, or its last."""
        if not partition.records or partition.records[-1].offset < pending.last:
            return None
        partition.pending = None
        events = sum(r.offset <= pending.last for r in partition.records)
        return self._take(partition, events, pending.first, pending.last)

    def _take(self, partition: _Partition, events: int, first: int, last: int) -> Chunk:
        records = [partition.records.popleft() for _ in range(events)]
        partition.bytes -= sum(_size(r) for r in records)
        self._room.set()
        partition.oldest_s = self._clock()
        epoch = self._epochs(partition.topic)
        return Chunk(Source(partition.topic, epoch, partition.partition, first, last), records)

    async def _see_through(self, partition: _Partition, chunk: Chunk) -> None:
        first, last = chunk.source.first_offset, chunk.source.last_offset
        await self._commit(partition, first, f"{first}-{last}")
        await self._persist(partition, lambda: self._perform(chunk))
        partition.done = last + 1

    async def _commit(self, partition: _Partition, offset: int, metadata: str) -> None:
        await self._persist(
            partition,
            lambda: self._offsets.write(
                partition.topic, partition.partition, offset, metadata, partition.generation
            ),
        )

    async def _persist(self, partition: _Partition, call: Callable[[], Awaitable[T]]) -> T:
        """Retry what is transient for as long as the partition is ours."""
        attempt = 0
        while True:
            try:
                return await call()
            except RetryableError as error:
                if not self._offsets.is_current(partition.generation):
                    raise Fenced(str(error)) from error
                await self._backoff.wait(attempt, str(error))
                attempt += 1

    def _drop(self, partition: _Partition) -> None:
        key = (partition.topic, partition.partition)
        self._partitions.pop(key, None)
        self._lost[key] = partition.generation
        self._forget(*key)
        self._room.set()


def _size(record: Record) -> int:
    # An empty record still costs its object.
    return len(record.value or b"") + 100
