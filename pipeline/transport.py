"""A Faust transport that hands over whole chunks, and the offsets it keeps in Kafka.

Faust's own path costs some 70 µs of asyncio a message, and its acknowledgements
lose data (docs/architecture.md has the measurements). This transport passes on
everything that was fetched of a partition as *one* message, and lets the agents
commit offsets themselves, with metadata.

It uses private API of Faust and aiokafka: both are pinned, all of it is in this
file, and tests/test_transport.py holds the contract.

Delivery guarantee: none of its own. A commit is fenced: it carries the
generation in which its chunk was fetched, and fails in any other.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import faust
from aiokafka import TopicPartition
from aiokafka.codec import lz4_encode
from aiokafka.consumer import fetcher
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
)
from aiokafka.record import default_records
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode import Service

from pipeline.core.chunk import Record
from pipeline.errors import Fenced, KizashiError, SinkUnavailable
from pipeline.retry import START_PATIENCE_S

logger = logging.getLogger(__name__)

#: Kafka's type of a record's timestamp; nothing here asks who set it.
CREATE_TIME = 0
#: aiokafka packs at 9, on the event loop, at 14 MB/s. At 1 a chunk's packets take 2 % of the
#: time, and half as many bytes again.
LZ4_LEVEL = 1
#: Between two tries to reach the broker at the start.
CONNECT_PAUSE_S = 0.5


class Batch(NamedTuple):
    """What one fetch brought of one partition, in order of offset."""

    topic: str
    partition: int
    generation: int
    records: list[Record]


class Committed(NamedTuple):
    """What the group has committed for a partition; offset None when it never did."""

    offset: int | None
    metadata: str


class _Records(fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of a partition, as records of ours from the start.

    aiokafka makes an object of eleven fields of each record, of which three were taken.
    """

    def _consumer_record(self, _tp: TopicPartition, record: Any) -> Record:
        return Record(record.offset, record.timestamp, record.value)


# The fetcher knows it by this name only.
fetcher.PartitionRecords = _Records
# The module in which the builder of batches looks its codecs up: the compiled one, if there is one.
_building = sys.modules[default_records.DefaultRecordBatchBuilder.__module__]
vars(_building)["lz4_encode"] = partial(lz4_encode, level=LZ4_LEVEL)


async def connect(service: Service, start: Callable[[], Awaitable[None]]) -> None:
    """Start a client of the broker, which was there when this worker asked for it first.

    Faust asks once more, and would end where it has gone meanwhile.

    Raises:
        KafkaConnectionError: it has not come back for `START_PATIENCE_S`.
    """
    deadline_s, logged = time.monotonic() + START_PATIENCE_S, False
    while not service.should_stop:
        try:
            await start()
        except KafkaConnectionError as error:
            if time.monotonic() > deadline_s:
                raise
            if not logged:
                logger.warning("cannot join yet, trying for %g s: %s", START_PATIENCE_S, error)
            logged = True
            await service.sleep(CONNECT_PAUSE_S)
        else:
            return


class Producer(driver.Producer):
    """Faust's producer over aiokafka, which waits for the broker at its start."""

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        producer = super()._new_producer(transactional_id)
        # Not `on_start`, which would start its buffer again with every try.
        producer.start = partial(connect, self, producer.start)
        return producer


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's, which waits for the broker at its start, and seeks in every partition."""

    def _create_consumer(self, loop: Any) -> Any:
        consumer = super()._create_consumer(loop)
        consumer.start = partial(connect, self, consumer.start)
        return consumer

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to what is committed, and to the beginning where nothing is, or 0.

        aiokafka stays where it is in these: what was fetched of them and dropped would not come
        again.
        """
        committed: Mapping[TP, int] = await super().seek_to_committed()
        unread = [tp for tp, offset in committed.items() if not offset]
        if unread:
            await self.seek_to_beginning(*unread)
        return committed


class Consumer(driver.Consumer):
    """Faust's consumer over aiokafka, one message a fetched chunk."""

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Partition → generation, and the last offset that was handed on in it.
        self._handed: dict[TP, tuple[int, int]] = {}
        #: How often partitions were taken from us; and how often when a seek began that is done.
        self._revocations = 0
        self._sought_at = 0

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Count it. Faust then stops the flow, until what is ours afterwards has been sought."""
        self._revocations += 1
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Seek to the committed offsets: Faust's last step before it lets records flow again."""
        revocations = self._revocations
        await super().perform_seek()
        self._sought_at = revocations

    def resume_flow(self) -> None:
        """Let records flow, unless partitions were taken from us since Faust began to seek.

        It does not look again, and what it let through between the next assignment and that one's
        seek would come twice in one generation.
        """
        if self._sought_at == self._revocations:
            super().resume_flow()
        else:
            logger.info("another rebalance has begun: nothing flows until it is over")

    async def getmany(
        self,
        timeout: float,  # noqa: ASYNC109 — Faust's own signature
    ) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield one message for each partition with new records; its value is the records."""
        revocations = self._revocations
        fetched, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if fetched is None or self.should_stop:
            return
        if not self.flow_active or self._revocations != revocations:
            await self._seek_back()
            return
        for tp, records in fetched.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if records and (active is None or tp in active or tp in self._buffered_partitions):
                self._check_order(tp, records, generation)
                yield tp, self._to_chunk(tp, records, generation)

    def _check_order(self, tp: TP, records: list[Record], generation: int) -> None:
        """Raise where a log has gone back: it was created anew, or cut, and nobody has told us.

        Faust would drop what comes until the offsets are what they were. Whoever starts again
        reads from the committed offset, or from the beginning where there is none.
        """
        before = self._handed.get(tp)
        if before is not None and before[0] == generation and records[0].offset <= before[1]:
            raise KizashiError(f"{tp} has gone back from offset {before[1]} to {records[0].offset}")
        self._handed[tp] = (generation, records[-1].offset)

    async def _seek_back(self) -> None:
        """Start again from the committed offsets: what was fetched came across a rebalance.

        A partition may be taken from us meanwhile, and the coordinator may be away. Neither
        matters: at the end of the rebalance Faust seeks what is ours then.
        """
        self._handed.clear()
        try:
            await super().perform_seek()
        except (IllegalStateError, KafkaError) as error:
            logger.info("cannot seek during a rebalance: %s", error)

    def _to_chunk(self, tp: TP, records: list[Record], generation: int) -> ConsumerMessage:
        first = records[0]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            first.offset,
            first.written_ms / 1000.0,
            CREATE_TIME,
            [],
            None,
            # Faust looks into a value only to decode it, and raw values are not.
            cast(bytes, records),
            None,
            tp=tp,
            generation_id=generation,
        )


class Transport(driver.Transport):
    """`kizashi://host:port`: found by Faust through the entry point ``faust.transports``."""

    Consumer = Consumer
    Producer = Producer


def to_batch(message: ConsumerMessage) -> Batch:
    """Return what a message of this transport carries."""
    records = cast(list[Record], message.value)
    return Batch(message.topic, message.partition, message.generation_id or 0, records)


class OffsetLog:
    """Committed offsets and their metadata, read and written in the consumer's own thread."""

    def __init__(self, app: faust.App) -> None:
        self._app = app

    def owns(self, topic: str, partition: int) -> bool:
        """Return whether this worker has the partition at this moment."""
        return TP(topic, partition) in self._app.consumer.assignment()

    @property
    def generation(self) -> int:
        """The group's generation, as far as this worker has heard."""
        return int(self._app.consumer_generation_id or 0)

    def is_current(self, generation: int) -> bool:
        """Return whether a chunk of this generation is still ours to work on."""
        return bool(self._app.consumer_generation_id == generation)

    async def lag(self, topic: str) -> tuple[int, int]:
        """Return the sum of our partitions' committed offsets, and how far they are behind.

        Raises:
            SinkUnavailable: the broker does not answer.
        """
        try:
            found: tuple[int, int] = await self._call(self._lag, topic)
        except Fenced as fenced:
            raise SinkUnavailable(str(fenced)) from fenced
        return found

    async def read(self, topic: str, partition: int) -> Committed:
        """Return what the group has committed.

        Raises:
            Fenced: this worker is stopping.
            SinkUnavailable: the coordinator does not answer.
        """
        found: Committed = await self._call(self._read, TopicPartition(topic, partition))
        return found

    async def write(
        self, topic: str, partition: int, offset: int, metadata: str, generation: int
    ) -> None:
        """Commit an offset.

        Raises:
            Fenced: the group is in another generation, the partition is not ours, or this worker
                is stopping.
            SinkUnavailable: the coordinator does not answer.
        """
        tp = TopicPartition(topic, partition)
        await self._call(self._write, tp, offset, metadata, generation)

    async def _call(self, method: Callable[..., Awaitable[Any]], *given: Any) -> Any:
        """Call in the consumer's thread, which ends before those who still wait for a try."""
        thread = self._thread
        try:
            return await thread.call_thread(method, *given)
        except RuntimeError as error:
            if thread.method_queue.loop.is_closed():
                raise Fenced("the consumer has stopped") from error
            raise

    async def _lag(self, topic: str) -> tuple[int, int]:
        consumer = self._consumer()
        ours = [tp for tp in consumer.assignment() if tp.topic == topic]
        try:
            ends = await consumer.end_offsets(ours)
            begins = await consumer.beginning_offsets(ours)
            committed = await consumer._coordinator.fetch_committed_offsets(ours)
        except KafkaError as error:
            raise SinkUnavailable(f"cannot tell the lag of {topic}: {error!r}") from error
        done = {
            tp: max(committed[tp].offset, begins[tp]) if tp in committed else begins[tp]
            for tp in ours
        }
        return sum(done.values()), sum(ends[tp] - done[tp] for tp in ours)

    async def _read(self, tp: TopicPartition) -> Committed:
        coordinator = self._consumer()._coordinator
        try:
            found = await coordinator.fetch_committed_offsets([tp])
        except KafkaError as error:
            raise SinkUnavailable(f"cannot read the committed offset of {tp}: {error}") from error
        committed = found.get(tp)
        if committed is None or committed.offset < 0:
            return Committed(None, "")
        return Committed(committed.offset, committed.metadata or "")

    async def _write(self, tp: TopicPartition, offset: int, metadata: str, generation: int) -> None:
        consumer = self._consumer()
        coordinator = consumer._coordinator
        try:
            await coordinator.ensure_coordinator_known()
            async with coordinator._commit_lock:
                assignment = consumer._subscription.subscription.assignment
                if coordinator.generation != generation or tp not in assignment.tps:
                    raise Fenced(f"{tp} was assigned anew")
                # Not consumer.commit(): it waits, and then commits in whatever
                # generation it finds. From the check to the request nothing is awaited.
                await coordinator._do_commit_offsets(
                    assignment, {tp: OffsetAndMetadata(offset, metadata)}
                )
        except (CommitFailedError, IllegalStateError) as error:
            raise Fenced(str(error)) from error
        except KafkaError as error:
            if type(error).__name__ in _FENCING_ERRORS:
                raise Fenced(str(error)) from error
            raise SinkUnavailable(f"cannot commit {tp}: {error!r}") from error

    @property
    def _thread(self) -> Any:
        return cast(Any, self._app.consumer)._thread

    def _consumer(self) -> Any:
        return self._thread._ensure_consumer()


_FENCING_ERRORS = frozenset(
    {"UnknownMemberIdError", "IllegalGenerationError", "RebalanceInProgressError"}
)


def assert_compiled() -> None:
    """Raise when Faust runs without its Cython extension.

    Without it, messages of an old generation are acknowledged unprocessed.
    """
    try:
        from faust._cython.streams import StreamIterator  # noqa: F401
    except ImportError as error:
        raise KizashiError(
            "Faust's compiled extension is missing: install faust-streaming from a wheel"
        ) from error
