"""A fake Kafka: topics, one consumer group with its generations, and offsets with metadata.

The group's rules are Kafka's: a commit is taken only from the member that holds the partition
in the group's present generation; a member that is not heard of for a session is put out; who
joins, leaves or is put out makes a new generation, of which each member hears at its own time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.chunk import DeadLetter, Record
from pipeline.errors import Fenced
from pipeline.transport import Batch, Committed
from schemas.alarm import Alarm, encode_alarm
from schemas.command import Command, encode_command
from schemas.signal import SignalPacket, Source, encode_packet

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

EVENTS, SIGNALS, ALARMS, DEADLETTERS = "events", "signals", "alarms", "deadletters"
#: A member that is not heard of for so long is put out of the group.
SESSION_S = 2.0

TopicPartition = tuple[str, int]


class Broker:
    """What Kafka knows. It has no opinion on who is alive: the world tells it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.logs: dict[TopicPartition, list[Record]] = {}
        self.committed: dict[TopicPartition, Committed] = {}
        self.generation = 0
        self.members: list[Client] = []
        self.holders: dict[TopicPartition, Client] = {}

    def append(self, topic: str, partition: int, value: bytes | None) -> Record:
        """Write a record at the end of a partition."""
        log = self.logs[topic, partition]
        record = Record(len(log), self._world.now_ms(), value)
        log.append(record)
        return record

    def join(self, client: Client) -> None:
        if client not in self.members:
            self.members.append(client)
        self.rebalance()

    def leave(self, client: Client) -> None:
        if client in self.members:
            self.members.remove(client)
            self.rebalance()

    def rebalance(self) -> None:
        """Begin a new generation; every member hears of it at its own time."""
        rng = self._world.rng
        self.generation += 1
        self.holders = {tp: rng.choice(self.members) for tp in self.logs if self.members}
        for client in self.members:
            client.process.call_later(rng.random() * 0.3, client.learn)

    def commit(
        self, client: Client, tp: TopicPartition, generation: int, committed: Committed
    ) -> None:
        """Take a commit.

        Raises:
            Fenced: it is of another generation, or of a member that does not hold the partition.
        """
        if generation != self.generation or self.holders.get(tp) is not client:
            raise Fenced(f"{tp} is held by another in generation {self.generation}")
        before = self.committed.get(tp, Committed(None, ""))
        self.committed[tp] = committed
        self._world.check_commit(tp, before, committed)


class Client:
    """A worker's connection: consumer, offsets (`pipeline.ingest.Offsets`) and producer."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self.process = process
        self.generation = -1
        self._positions: dict[TopicPartition, int] = {}
        self._buffers: dict[str, deque[Batch]] = {}

    def learn(self) -> None:
        """Hear of the group's present generation: fetch from the committed offsets on."""
        broker = self._world.broker
        if self.generation == broker.generation or self not in broker.members:
            return
        self.generation = broker.generation
        self._positions = {
            tp: broker.committed.get(tp, Committed(None, "")).offset or 0
            for tp, holder in broker.holders.items()
            if holder is self
        }

    def owns(self, topic: str, partition: int) -> bool:
        return (topic, partition) in self._positions

    def is_current(self, generation: int) -> bool:
        return self.generation == generation

    # Fetching. What was fetched in an older generation is still handed on: it is the agents'
    # to know better.

    async def fetch(self, topic: str) -> Batch:
        """Wait for the next chunk of any partition that we hold."""
        buffer = self._buffers.setdefault(topic, deque())
        while True:
            if not buffer:
                self._fill(topic, buffer)
            if buffer:
                await asyncio.sleep(self._world.rng.random() * 0.1)
                return buffer.popleft()
            await asyncio.sleep(0.3 + self._world.rng.random())

    def _fill(self, topic: str, buffer: deque[Batch]) -> None:
        world = self._world
        if world.is_away("kafka"):
            return
        for (name, partition), position in self._positions.items():
            log = world.broker.logs[name, partition]
            if name != topic or position >= len(log):
                continue
            for _ in range(world.rng.randint(1, 3)):
                records = log[position : position + world.rng.randint(1, 12)]
                if records:
                    buffer.append(Batch(topic, partition, self.generation, records))
                    position = records[-1].offset + 1
            self._positions[name, partition] = position

    # Offsets.

    async def read(self, topic: str, partition: int) -> Committed:
        async with self._world.calling(self.process, "kafka", f"read offset {topic}/{partition}"):
            return self._world.broker.committed.get((topic, partition), Committed(None, ""))

    async def write(
        self, topic: str, partition: int, offset: int, metadata: str, generation: int
    ) -> None:
        what = f"commit {topic}/{partition} {offset} {metadata!r} in generation {generation}"
        async with self._world.calling(self.process, "kafka", what):
            if not self.is_current(generation):
                raise Fenced("the consumer itself is in another generation")
            committed = Committed(offset, metadata)
            self._world.broker.commit(self, (topic, partition), generation, committed)
            self.process.proven_s = self._world.clock.now_s

    # Producing (`pipeline.worker.PublishingAlarms`).

    async def publish_signals(self, partition: int, packets: Sequence[SignalPacket]) -> None:
        await self._send(SIGNALS, partition, [encode_packet(p) for p in packets])

    async def publish_deadletters(self, source: Source, deadletters: Sequence[DeadLetter]) -> None:
        heads = [b"%d/%d" % (source.partition, d.record.offset) for d in deadletters]
        await self._send(DEADLETTERS, 0, heads)

    async def publish_alarms(self, alarms: Sequence[Alarm]) -> None:
        await self._send(ALARMS, 0, [encode_alarm(a) for a in alarms])

    async def publish_commands(self, commands: Sequence[Command]) -> None:
        await self._send(ALARMS, 0, [encode_command(c) for c in commands])

    async def _send(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        """Each message for itself: some may arrive where others do not."""
        for value in values:
            async with self._world.calling(self.process, "kafka", f"send to {topic}/{partition}"):
                record = self._world.broker.append(topic, partition, value)
                self._world.note_record(topic, record)
