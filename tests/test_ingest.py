"""The ingest protocol against a fake broker and a fake store: crashes wherever they can fall."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from pipeline.core.chunk import Chunk, Record
from pipeline.errors import Fenced, SinkUnavailable
from pipeline.ingest import IngestLimits, Ingestor, PendingRange, parse_pending
from pipeline.retry import Backoff
from pipeline.transport import Batch, Committed
from schemas.signal import Source

TOPIC = "events"


class Crash(BaseException):
    """kill -9: nothing catches it, nothing runs after it."""


@dataclass
class World:
    """What outlives a worker: the topic, the group's offsets, and ClickHouse."""

    records: int
    rng: random.Random
    faults: bool = True
    generation: int = 1
    committed: Committed = field(default_factory=lambda: Committed(None, ""))
    history: list[int] = field(default_factory=list)
    #: Token → offsets. A token that comes again inserts nothing.
    stored: dict[str, list[int]] = field(default_factory=dict)
    #: Positions of the signals, as often as they were sent.
    signals: list[tuple[int, int]] = field(default_factory=list)
    now_s: float = 0.0

    def maybe(self, kind: type[BaseException], probability: float = 0.08) -> None:
        if self.faults and self.rng.random() < probability:
            raise kind("fault")

    # Offsets

    def is_current(self, generation: int) -> bool:
        return generation == self.generation

    async def read(self, topic: str, partition: int) -> Committed:
        self.maybe(SinkUnavailable)
        return self.committed

    async def write(
        self, topic: str, partition: int, offset: int, metadata: str, generation: int
    ) -> None:
        self.maybe(Crash)
        self.maybe(SinkUnavailable)
        if generation != self.generation:
            raise Fenced("stale")
        self.committed = Committed(offset, metadata)
        self.history.append(offset)
        self.maybe(Crash)
        self.maybe(SinkUnavailable)

    # Effects

    async def perform(self, chunk: Chunk) -> None:
        self.maybe(Crash)
        self.maybe(SinkUnavailable)
        source = chunk.source
        token = f"{source.partition}:{source.first_offset}-{source.last_offset}"
        offsets = [r.offset for r in chunk.records]
        if token in self.stored:
            assert self.stored[token] == offsets, "a token was used again for other rows"
        self.stored[token] = offsets
        self.maybe(Crash)
        self.maybe(SinkUnavailable)
        self.signals.append((source.first_offset, source.last_offset))
        self.maybe(Crash)

    def worker(self, **limits: int) -> Ingestor:
        async def sleep(seconds: float) -> None:
            self.now_s += seconds

        return Ingestor(
            IngestLimits(
                events=limits.get("events", 7),
                bytes=limits.get("bytes", 10_000),
                interval_s=1.0,
                span_ms=limits.get("span_ms", 60_000),
                held_bytes=100_000,
            ),
            self,
            lambda topic: "epoch",
            lambda topic, partition: Work(self),
            Backoff(sleep, self.rng),
            lambda: self.now_s,
        )

    @property
    def done(self) -> bool:
        return self.committed == Committed(self.records, "")


class Work:
    """What the ingestor does with the chunks of a partition, in this world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.prepared: list[Chunk] = []

    async def prepare(self, chunk: Chunk) -> Chunk:
        self.world.maybe(SinkUnavailable)
        before = self.prepared[-1].source.last_offset if self.prepared else -1
        assert chunk.source.first_offset > before, "prepared twice, or out of order"
        self.prepared.append(chunk)
        return chunk

    async def store(self, prepared: Chunk) -> None:
        await self.world.perform(prepared)


def records(first: int, count: int, written_ms: int = 0) -> list[Record]:
    return [Record(first + i, written_ms, b"x" * 50) for i in range(count)]


async def live(world: World, steps: int) -> Ingestor:
    """One life of a worker: read from the committed offset, work until it crashes or is done."""
    worker = world.worker()
    position = world.committed.offset or 0
    for _ in range(steps):
        if position < world.records and world.rng.random() < 0.7:
            count = min(world.rng.randint(1, 12), world.records - position)
            batch = Batch(TOPIC, 0, world.generation, records(position, count))
            await worker.offer(batch)
            position += count
        await worker.step()
        world.now_s += world.rng.random() * 0.6
        if world.done:
            break
    return worker


@pytest.mark.parametrize("seed", range(400))
async def test_every_offset_is_stored_once_whatever_crashes(seed: int) -> None:
    world = World(records=60, rng=random.Random(seed))
    zombies: list[Ingestor] = []
    for life in range(200):
        world.faults = life < 40
        with suppress(Crash):
            zombies.append(await live(world, steps=world.rng.randint(3, 200)))
        if world.done:
            break
        world.generation += 1
        # A worker that lost its partition may wake up at any time after it.
        if zombies and world.rng.random() < 0.5:
            with suppress(Crash):
                await world.rng.choice(zombies).step()
    assert world.done
    stored = sorted(offset for offsets in world.stored.values() for offset in offsets)
    assert stored == list(range(world.records))
    assert world.history == sorted(world.history), "a commit went back"
    # Readers of the signals skip what they have seen, by the last offset: nothing may overlap.
    ranges = sorted(set(world.signals))
    assert [f for f, _ in ranges] == [0, *(last + 1 for _, last in ranges[:-1])]


async def test_control_without_declared_ranges_the_same_faults_double() -> None:
    """The suite must be able to fail: take the declaration away and it does."""
    doubled = 0
    for seed in range(60):
        world = World(records=60, rng=random.Random(seed))
        honest = world.write

        async def forgetful(
            topic: str, partition: int, offset: int, metadata: str, generation: int
        ) -> None:
            await honest(topic, partition, offset, "", generation)  # noqa: B023 — called in the loop

        world.write = forgetful  # type: ignore[method-assign]
        for life in range(200):
            world.faults = life < 40
            with suppress(Crash):
                await live(world, steps=200)
            if world.done:
                break
            world.generation += 1
        stored = [offset for offsets in world.stored.values() for offset in offsets]
        doubled += len(stored) - len(set(stored))
    assert doubled > 0


async def test_a_pending_range_is_done_again_as_that_range() -> None:
    world = World(records=20, rng=random.Random(0), faults=False)
    world.committed = Committed(5, "5-8")
    worker = world.worker(events=100)
    await worker.offer(Batch(TOPIC, 0, 1, records(5, 2)))
    assert not await worker.step(), "the range is not complete yet"
    await worker.offer(Batch(TOPIC, 0, 1, records(7, 10)))
    assert await worker.step()
    assert list(world.stored) == ["0:5-8"]


async def test_a_pending_range_whose_records_retention_took_is_passed_over() -> None:
    world = World(records=40, rng=random.Random(0), faults=False)
    world.committed = Committed(5, "5-8")
    worker = world.worker(events=3)
    await worker.offer(Batch(TOPIC, 0, 1, records(30, 3)))
    while await worker.step():
        pass
    assert world.stored == {"0:5-8": [], "0:30-32": [30, 31, 32]}


async def test_nothing_is_stored_when_the_declaration_fails() -> None:
    world = World(records=20, rng=random.Random(0), faults=False)
    worker = world.worker()
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 7)))
    await worker.offer(Batch(TOPIC, 0, 1, records(7, 7)))
    world.generation = 2
    await worker.step()
    assert not world.stored
    assert world.committed == Committed(None, "")


async def test_a_batch_of_an_old_generation_is_dropped() -> None:
    world = World(records=20, rng=random.Random(0), faults=False, generation=3)
    worker = world.worker()
    await worker.offer(Batch(TOPIC, 0, 2, records(0, 10)))
    assert worker.held_bytes == 0


async def test_after_a_loss_nothing_of_that_generation_is_taken() -> None:
    """The records that were dropped would be a gap that the next commit passes over."""
    world = World(records=20, rng=random.Random(0), faults=False)
    worker = world.worker()
    honest, world.write = world.write, refuse  # type: ignore[method-assign]
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 7)))
    await worker.step()
    world.write = honest  # type: ignore[method-assign]
    await worker.offer(Batch(TOPIC, 0, 1, records(7, 7)))
    assert not await worker.step()
    assert not world.stored
    world.generation = 2
    await worker.offer(Batch(TOPIC, 0, 2, records(0, 14)))
    assert await worker.step()
    assert list(world.stored) == ["0:0-6"]


async def test_a_partition_that_came_back_is_not_dropped_with_what_it_was() -> None:
    """Lost and assigned again while ClickHouse was away: the old work ends, the new stays."""
    world = World(records=20, rng=random.Random(0), faults=False)
    worker = world.worker()

    async def perform(chunk: Chunk) -> None:
        if world.generation == 1:
            world.generation = 2
            await worker.offer(Batch(TOPIC, 0, 2, records(0, 20)))
            raise SinkUnavailable("away")
        await World.perform(world, chunk)

    world.perform = perform  # type: ignore[method-assign]
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 7)))
    world.now_s = 5.0
    while await worker.step():
        world.now_s += 5.0
    assert sorted(o for offsets in world.stored.values() for o in offsets) == list(range(20))


async def test_two_partitions_are_in_hand_at_once_and_no_partition_twice() -> None:
    world = World(records=20, rng=random.Random(0), faults=False)
    worker = world.worker()
    open_, most = set[int](), 0
    resume = asyncio.Event()

    async def perform(chunk: Chunk) -> None:
        nonlocal most
        assert chunk.source.partition not in open_
        open_.add(chunk.source.partition)
        most = max(most, len(open_))
        if len(open_) == 2:
            resume.set()
        await resume.wait()
        open_.remove(chunk.source.partition)

    world.perform = perform  # type: ignore[method-assign]
    for partition in (0, 1):
        await worker.offer(Batch(TOPIC, partition, 1, records(0, 14)))
    async with asyncio.timeout(5):
        for _ in range(2):
            await asyncio.gather(worker.step(), worker.step(), worker.step())
    assert most == 2


async def test_the_next_chunk_is_prepared_while_one_is_stored_and_declared_after_it() -> None:
    world = World(records=20, rng=random.Random(0), faults=False)
    works: list[Work] = []
    declared_meanwhile: list[str] = []

    async def perform(chunk: Chunk) -> None:
        # One turn of the loop is what a task needs to begin.
        await asyncio.sleep(0)
        declared_meanwhile.append(world.committed.metadata)
        assert works[0].prepared[-1].source.first_offset == 7
        await World.perform(world, chunk)

    world.perform = perform  # type: ignore[method-assign]
    worker = world.worker()
    worker._open_partition = lambda *_: works.append(Work(world)) or works[-1]
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 14)))
    assert await worker.step()
    assert declared_meanwhile == ["0-6"]
    assert await worker.step()
    assert list(world.stored) == ["0:0-6", "0:7-13"]


async def refuse(*_: object) -> None:
    raise Fenced("a rebalance is in progress")


async def test_a_chunk_is_closed_by_time() -> None:
    world = World(records=3, rng=random.Random(0), faults=False)
    worker = world.worker()
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 3)))
    assert not await worker.step()
    world.now_s = 1.0
    assert await worker.step()
    assert list(world.stored) == ["0:0-2"]


async def test_a_chunk_is_closed_by_bytes() -> None:
    world = World(records=30, rng=random.Random(0), faults=False)
    worker = world.worker(events=100, bytes=450)
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 10)))
    assert await worker.step()
    assert list(world.stored) == ["0:0-2"]


async def test_catching_up_goes_through_partitions_side_by_side() -> None:
    """Chunks span little of the time in which they were written, and the oldest comes first."""
    world = World(records=4, rng=random.Random(0), faults=False)
    worker = world.worker(events=100, span_ms=1_000)
    for partition in (0, 1):
        batch = records(0, 2, 10_000) + records(2, 2, 20_000)
        await worker.offer(Batch(TOPIC, partition, 1, batch))
    world.now_s = 5.0
    order = []
    while await worker.step():
        order.append(list(world.stored)[-1])
        world.now_s += 5.0
    assert [token.split(":")[1] for token in order] == ["0-1", "0-1", "2-3", "2-3"]


async def test_offer_waits_while_too_much_is_held() -> None:
    world = World(records=3_000, rng=random.Random(0), faults=False)
    worker = world.worker(events=10_000, bytes=10_000_000)
    await worker.offer(Batch(TOPIC, 0, 1, records(0, 800)))
    assert worker.held_bytes >= 100_000
    waiting = asyncio.create_task(worker.offer(Batch(TOPIC, 0, 1, records(800, 10))))
    await asyncio.sleep(0)
    assert not waiting.done()
    world.now_s = 1.0
    assert await worker.step()
    await waiting


@pytest.mark.parametrize(
    ("metadata", "pending"),
    [("3-9", PendingRange(3, 9)), ("", None), ("lag=3", None), ("3-9x", None), ("-3", None)],
)
def test_pending_ranges_are_read_from_the_metadata(
    metadata: str, pending: PendingRange | None
) -> None:
    assert parse_pending(metadata) == pending


def test_a_source_names_its_whole_range() -> None:
    assert Source("t", "e", 0, 3, 9) != Source("t", "e", 0, 3, 8)
