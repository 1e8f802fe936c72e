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
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeVar

from pipeline.core.chunk import Chunk, Record
from pipeline.errors import Fenced, RetryableError
from pipeline.retry import Backoff, persist
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

    @property
    def generation(self) -> int: ...

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


class Backlog:
    """Records of one partition that wait to become chunks, in order of offset."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._sizes: list[int] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def first(self) -> Record:
        return self._records[0]

    @property
    def last_offset(self) -> int:
        return self._records[-1].offset if self._records else -1

    def extend(self, records: list[Record]) -> None:
        sizes = list(map(_size, records))
        self._records += records
        self._sizes += sizes
        self.bytes += sum(sizes)

    def take(self, events: int) -> list[Record]:
        """Remove and return the first records."""
        taken = self._records[:events]
        self.bytes -= sum(self._sizes[:events])
        del self._records[:events], self._sizes[:events]
        return taken

    def count_to(self, offset: int) -> int:
        """Return how many records have this offset or a lower one."""
        return bisect_right(self._records, offset, key=lambda r: r.offset)

    def count_fitting(self, limits: IngestLimits) -> int:
        """Return how many of the records fit into one chunk; at least one."""
        events = min(limits.events, len(self))
        sums = list(accumulate(self._sizes[:events]))
        # The record that reaches the limit is the chunk's last.
        events = min(events, bisect_left(sums, limits.bytes) + 1)
        until_ms = self.first.written_ms + limits.span_ms
        # Producers set these times, so they may go back here and there. Then the chunk is
        # cut a little early or late: any cut will do, for it is written down.
        return max(1, bisect_right(self._records, until_ms, hi=events, key=lambda r: r.written_ms))

    def is_full(self, limits: IngestLimits) -> bool:
        return len(self) >= limits.events or self.bytes >= limits.bytes


class PartitionWork(Protocol):
    """What brings about everything that the chunks of one partition must, in their order."""

    async def prepare(self, chunk: Chunk) -> Any:
        """Work out the chunk's effects. Called once for each chunk, unless it raised.

        Raises RetryableError as long as a retry may help.
        """

    async def store(self, prepared: Any) -> None:
        """Bring them about; may be called again with the same.

        Raises RetryableError as long as a retry may help.
        """


class _Ahead(NamedTuple):
    """A chunk that is prepared while the one before it is stored. It is not declared yet."""

    chunk: Chunk
    preparing: asyncio.Task[Any]


@dataclass
class _Partition:
    """A partition for as long as it is assigned to us."""

    topic: str
    partition: int
    generation: int
    work: PartitionWork
    backlog: Backlog = field(default_factory=Backlog)
    oldest_s: float = 0.0
    pending: PendingRange | None = None
    loaded: bool = False
    ahead: _Ahead | None = None
    #: The chunk in hand.
    doing: Chunk | None = None
    #: A lane is working on it.
    busy: bool = False
    #: The offset up to which everything is done, not yet committed; None when it is.
    done: int | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.topic, self.partition

    @property
    def oldest_ms(self) -> int | None:
        """When the first of its records was written that is not stored; None when all are."""
        first = self.doing or (self.ahead.chunk if self.ahead else None)
        if first is not None:
            return first.records[0].written_ms if first.records else None
        return self.backlog.first.written_ms if self.backlog else None


class Ingestor:
    """Cuts batches into chunks and sees them through, those of one partition one at a time.

    While a chunk is stored, the next one of its partition is prepared: that has no
    effect outside, so it may come before its declaration. `open_partition` returns
    what does both, for as long as the partition stays assigned. Memory:
    `limits.held_bytes`, one fetch, and two chunks for each lane.
    """

    def __init__(
        self,
        limits: IngestLimits,
        offsets: Offsets,
        epochs: Callable[[str], str],
        open_partition: Callable[[str, int], PartitionWork],
        backoff: Backoff,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._offsets = offsets
        self._epochs = epochs
        self._open_partition = open_partition
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
        return sum(p.backlog.bytes for p in self._partitions.values())

    @property
    def held_since_ms(self) -> int | None:
        """When the oldest record was written that is held and not stored; None when none is."""
        held = [p.oldest_ms for p in self._partitions.values()]
        return min((each for each in held if each is not None), default=None)

    async def offer(self, batch: BatchLike) -> None:
        """Take in a batch; waits while too much is held already."""
        while self.held_bytes >= self._limits.held_bytes:
            self._room.clear()
            await self._room.wait()
        if not self._offsets.is_current(batch.generation) or self._is_lost(batch):
            return
        partition = self._partition_of(batch)
        if not partition.backlog:
            partition.oldest_s = self._clock()
        partition.backlog.extend(batch.records)
        self._arrived.set()

    def _is_lost(self, batch: BatchLike) -> bool:
        """What follows dropped records in the same generation has a gap before it."""
        return self._lost.get((batch.topic, batch.partition)) == batch.generation

    def _partition_of(self, batch: BatchLike) -> _Partition:
        key = (batch.topic, batch.partition)
        partition = self._partitions.get(key)
        if partition is None or partition.generation != batch.generation:
            work = self._open_partition(*key)
            partition = _Partition(batch.topic, batch.partition, batch.generation, work)
            self._partitions[key] = partition
        return partition

    async def run(self, lanes: int = 2) -> None:
        """Work for ever, on as many partitions at once: while one is stored, another is decoded."""
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(self._run_lane())

    async def _run_lane(self) -> None:
        while True:
            if not await self.step():
                await self._wait()

    async def step(self) -> bool:
        """Do one chunk, or one idle commit; False when there is nothing to do yet."""
        for partition in self._oldest_first():
            if partition.busy:
                continue
            partition.busy = True
            try:
                if await self._work_on(partition):
                    return True
            except Fenced:
                self._drop(partition)
                return True
            finally:
                partition.busy = False
        return False

    def _oldest_first(self) -> list[_Partition]:
        """Partitions by when their next record was written; the empty ones last."""
        return sorted(
            self._partitions.values(),
            key=lambda p: (not p.backlog, p.backlog.first.written_ms if p.backlog else 0),
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
        if (ahead := partition.ahead or self._begin(partition)) is not None:
            partition.ahead = None
            await self._see_through(partition, ahead)
            return True
        if partition.done is not None and not partition.backlog:
            await self._commit(partition, partition.done, "")
            partition.done = None
        return False

    async def _load(self, partition: _Partition) -> None:
        committed = await self._persist(
            partition, lambda: self._offsets.read(partition.topic, partition.partition)
        )
        partition.pending = parse_pending(committed.metadata)
        partition.loaded = True

    def _begin(self, partition: _Partition) -> _Ahead | None:
        """Cut the next chunk, if there is one, and begin to prepare it."""
        chunk = self._cut(partition)
        if chunk is None:
            return None
        return _Ahead(chunk, asyncio.create_task(partition.work.prepare(chunk)))

    def _cut(self, partition: _Partition) -> Chunk | None:
        if partition.pending is not None:
            return self._cut_pending(partition, partition.pending)
        backlog = partition.backlog
        if not backlog:
            return None
        due = self._clock() - partition.oldest_s >= self._limits.interval_s
        events = backlog.count_fitting(self._limits)
        if events == len(backlog) and not (due or backlog.is_full(self._limits)):
            return None
        return self._take(partition, events, None)

    def _cut_pending(self, partition: _Partition, pending: PendingRange) -> Chunk | None:
        """The declared range, whole: it can only be told from the record after it, or its last."""
        if partition.backlog.last_offset < pending.last:
            return None
        partition.pending = None
        return self._take(partition, partition.backlog.count_to(pending.last), pending)

    def _take(self, partition: _Partition, events: int, declared: PendingRange | None) -> Chunk:
        records = partition.backlog.take(events)
        self._room.set()
        partition.oldest_s = self._clock()
        first, last = declared or (records[0].offset, records[-1].offset)
        epoch = self._epochs(partition.topic)
        return Chunk(Source(partition.topic, epoch, partition.partition, first, last), records)

    async def _see_through(self, partition: _Partition, now: _Ahead) -> None:
        first, last = now.chunk.source.first_offset, now.chunk.source.last_offset
        partition.doing = now.chunk
        try:
            await self._commit(partition, first, f"{first}-{last}")
            prepared = await self._finish_preparing(partition, now)
            partition.ahead = self._begin(partition)
            await self._persist(partition, lambda: partition.work.store(prepared))
        finally:
            now.preparing.cancel()
            partition.doing = None
        partition.done = last + 1

    async def _finish_preparing(self, partition: _Partition, now: _Ahead) -> Any:
        async def prepare() -> Any:
            try:
                return await now.preparing
            except RetryableError:
                # A task fails once and for all; another may not.
                return await partition.work.prepare(now.chunk)

        return await self._persist(partition, prepare)

    async def _commit(self, partition: _Partition, offset: int, metadata: str) -> None:
        await self._persist(
            partition,
            lambda: self._offsets.write(
                partition.topic, partition.partition, offset, metadata, partition.generation
            ),
        )

    async def _persist(self, partition: _Partition, call: Callable[[], Awaitable[T]]) -> T:
        return await persist(
            call, self._backoff, lambda: self._offsets.is_current(partition.generation)
        )

    def _drop(self, partition: _Partition) -> None:
        if partition.ahead is not None:
            partition.ahead.preparing.cancel()
        # While it was worked on, the partition may have come back to us in a new generation.
        if self._partitions.get(partition.key) is partition:
            del self._partitions[partition.key]
            self._lost[partition.key] = partition.generation
        self._room.set()


def _size(record: Record) -> int:
    # An empty record still costs its object.
    return len(record.value or b"") + 100
