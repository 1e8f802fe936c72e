"""The contract between our transport and the pinned Faust and aiokafka, on a real broker."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiokafka
import faust
import pytest
from aiokafka.codec import lz4_encode
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import IllegalStateError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from faust.types import TP

from pipeline.app import build_faust
from pipeline.config import KafkaSettings
from pipeline.core.chunk import Record
from pipeline.errors import Fenced, KizashiError, SinkUnavailable
from pipeline.producing import produce
from pipeline.topics import bootstrap_addresses, create_topics
from pipeline.transport import (
    LZ4_LEVEL,
    Batch,
    Consumer,
    OffsetLog,
    assert_compiled,
    to_batch,
)
from tests.support.workers import free_port

#: Bytes of a batch's header.
_RECORDS_AT = 61
VALUES = [b'{"event.id": "%d"}' % i for i in range(3_000)]


@asynccontextmanager
async def running(app: faust.App) -> AsyncIterator[None]:
    await app.start()
    try:
        yield
    finally:
        await app.stop()


async def until(reached: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 — what we wait for has no event
            await asyncio.sleep(0.05)


def listening(kafka: KafkaSettings) -> tuple[faust.App, list[Batch]]:
    """An app with one agent that keeps what it is handed."""
    app = build_faust(kafka)
    batches: list[Batch] = []
    topic = app.topic(kafka.events_topic, value_type=bytes, value_serializer="raw", acks=False)

    @app.agent(topic)
    async def keep(stream: Any) -> None:
        async for event in stream.noack().events():
            batch = to_batch(event.message)
            batches.append(batch)

    return app, batches


@pytest.mark.kafka
async def test_chunks_come_whole_and_in_order(kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings)
    produce(kafka_settings, VALUES)
    app, batches = listening(kafka_settings)
    async with running(app):
        await until(lambda: sum(len(b.records) for b in batches) == len(VALUES))
    assert len(batches) < len(VALUES) / 20, "chunks, not messages"
    by_partition: dict[int, list[Any]] = {}
    for batch in batches:
        assert batch.topic == kafka_settings.events_topic
        by_partition.setdefault(batch.partition, []).extend(batch.records)
    for records in by_partition.values():
        assert [r.offset for r in records] == list(range(len(records)))
        assert all(r.written_ms > 1_700_000_000_000 for r in records)
    seen = sorted(r.value for records in by_partition.values() for r in records)
    assert seen == sorted(VALUES)


@pytest.mark.kafka
async def test_offsets_keep_their_metadata_and_are_fenced(kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings)
    produce(kafka_settings, VALUES[:100])
    app, batches = listening(kafka_settings)
    topic = kafka_settings.events_topic
    async with running(app):
        await until(lambda: bool(batches))
        offsets = OffsetLog(app)
        generation = batches[0].generation
        assert offsets.is_current(generation)
        assert offsets.owns(topic, 0)
        assert not offsets.owns(topic, 99)
        assert (await offsets.read(topic, 0)).offset is None
        await offsets.write(topic, 0, 5, "5-9", generation)
        assert tuple(await offsets.read(topic, 0)) == (5, "5-9")
        with pytest.raises(Fenced):
            await offsets.write(topic, 0, 1, "", generation - 1)
        with pytest.raises(Fenced):
            await offsets.write(topic, 99, 1, "", generation)
        assert tuple(await offsets.read(topic, 0)) == (5, "5-9"), "a fenced commit changes nothing"
        assert await offsets.lag(topic) == (5, 95)


@pytest.mark.kafka
async def test_a_second_worker_fences_the_first_and_starts_at_the_declared_range(
    kafka_settings: KafkaSettings,
) -> None:
    create_topics(kafka_settings)
    produce(kafka_settings, VALUES)
    first, seen = listening(kafka_settings)
    topic = kafka_settings.events_topic
    async with running(first):
        await until(lambda: {b.partition for b in seen} == {0, 1, 2})
        offsets, old = OffsetLog(first), seen[0].generation
        for partition in range(3):
            await offsets.write(topic, partition, 7, "7-11", old)
        second, theirs = listening(kafka_settings)
        async with running(second):
            await until(lambda: bool(theirs))
            for batch in theirs:
                if batch.partition not in {b.partition for b in theirs[: theirs.index(batch)]}:
                    assert batch.records[0].offset == 7
            assert not offsets.is_current(old)
            with pytest.raises(Fenced):
                await offsets.write(topic, theirs[0].partition, 50, "", old)
            assert tuple(await offsets.read(topic, theirs[0].partition)) == (7, "7-11")


@pytest.mark.kafka
async def test_a_seek_back_reaches_partitions_of_which_nothing_is_committed(
    kafka_settings: KafkaSettings,
) -> None:
    create_topics(kafka_settings)
    produce(kafka_settings, VALUES)
    app, batches = listening(kafka_settings)
    topic = kafka_settings.events_topic
    async with running(app):
        await until(lambda: sum(len(b.records) for b in batches) == len(VALUES))
        offsets, generation = OffsetLog(app), batches[0].generation
        await offsets.write(topic, 0, 0, "0-99", generation)
        await offsets.write(topic, 1, 10, "", generation)
        batches.clear()
        await cast(Consumer, app.consumer)._seek_back()
        await until(lambda: sum(len(b.records) for b in batches) == len(VALUES) - 10)
    first: dict[int, int] = {}
    for batch in batches:
        first.setdefault(batch.partition, batch.records[0].offset)
    assert first == {0: 0, 1: 10, 2: 0}


@asynccontextmanager
async def relaying(port: int, target: tuple[str, int]) -> AsyncIterator[asyncio.Event]:
    """Let the broker be found at another port; the event is that somebody has asked for it."""
    met = asyncio.Event()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        from_broker, to_broker = await asyncio.open_connection(*target)
        await asyncio.gather(pump(reader, to_broker), pump(from_broker, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", port):
        yield met


def at_port(kafka: KafkaSettings, port: int) -> KafkaSettings:
    return kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{port}"})


@pytest.mark.kafka
async def test_a_broker_that_goes_while_a_worker_starts_is_waited_for(
    kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    create_topics(kafka_settings)
    produce(kafka_settings, VALUES)
    port, (broker, *_) = free_port(), bootstrap_addresses(kafka_settings)
    app, batches = listening(at_port(kafka_settings, port))
    starting = asyncio.create_task(app.start())
    await until(lambda: caplog.text.count("cannot join yet") == 1)
    async with relaying(port, broker) as met:
        await met.wait()
    # That was the producer; the consumer asks anew.
    await until(lambda: caplog.text.count("cannot join yet") == 2)
    async with relaying(port, broker):
        await starting
    try:
        await until(lambda: sum(len(b.records) for b in batches) == len(VALUES))
    finally:
        await app.stop()


@pytest.mark.kafka
@pytest.mark.parametrize("who", ["producer", "consumer"])
async def test_a_worker_that_waits_for_a_broker_stops_when_it_is_told_to(
    kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture, who: str
) -> None:
    port, (broker, *_) = free_port(), bootstrap_addresses(kafka_settings)
    app, _ = listening(at_port(kafka_settings, port))
    if who == "producer":
        starting = asyncio.create_task(app.start())
    else:
        async with relaying(port, broker) as met:
            starting = asyncio.create_task(app.start())
            await met.wait()
    await until(lambda: "cannot join yet" in caplog.text)
    await app.stop()
    async with asyncio.timeout(10):
        await starting


async def test_a_partition_that_goes_during_a_rebalance_does_not_end_the_worker(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = listening(kafka_settings)
    consumer, sought = app.consumer, []

    async def fetch(_timeout: float) -> tuple[dict[Any, Any], None]:
        return {TP(kafka_settings.events_topic, 0): [Record(0, 0, b"{}")]}, None

    async def seek() -> dict[Any, Any]:
        sought.append(True)
        raise IllegalStateError("No current assignment")

    monkeypatch.setattr(consumer, "_wait_next_records", fetch)
    monkeypatch.setattr(consumer, "seek_to_committed", seek)
    consumer.flow_active = False
    assert [each async for each in consumer.getmany(1.0)] == []
    assert sought


async def accept_revocation(_revoked: set[TP]) -> None:
    """What Faust does then needs a consumer that runs."""


async def test_nothing_flows_where_a_rebalance_began_while_another_was_ending(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust seeks, and then resumes without looking whether the partitions are still its own."""
    app, _ = listening(kafka_settings)
    consumer, taken = app.consumer, [True]

    async def seek() -> dict[Any, Any]:
        if taken:
            taken.pop()
            consumer.stop_flow()
            await consumer.on_partitions_revoked(set())
        return {}

    monkeypatch.setattr(consumer, "seek_to_committed", seek)
    monkeypatch.setattr(consumer, "_on_partitions_revoked", accept_revocation)
    await consumer.perform_seek()
    consumer.resume_flow()
    assert not consumer.flow_active
    await consumer.perform_seek()
    consumer.resume_flow()
    assert consumer.flow_active


async def test_what_was_fetched_before_a_rebalance_is_not_handed_on_after_it(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = listening(kafka_settings)
    consumer, tp = app.consumer, TP(kafka_settings.events_topic, 0)
    taken, sought = [True], []

    async def fetch(_timeout: float) -> tuple[dict[Any, Any], None]:
        if taken:
            taken.pop()
            await consumer.on_partitions_revoked(set())
            await consumer.perform_seek()
            consumer.resume_flow()
        return {tp: [Record(4, 0, b"{}")]}, None

    async def seek() -> dict[Any, Any]:
        sought.append(True)
        return {}

    monkeypatch.setattr(consumer, "_wait_next_records", fetch)
    monkeypatch.setattr(consumer, "seek_to_committed", seek)
    monkeypatch.setattr(consumer, "_on_partitions_revoked", accept_revocation)
    consumer.flow_active = True
    assert [each async for each in consumer.getmany(1.0)] == []
    assert len(sought) == 2
    assert len([each async for each in consumer.getmany(1.0)]) == 1


@pytest.mark.parametrize(("offset", "goes_back"), [(5, True), (6, False)])
async def test_a_log_that_goes_back_ends_the_worker(
    kafka_settings: KafkaSettings,
    monkeypatch: pytest.MonkeyPatch,
    offset: int,
    goes_back: bool,
) -> None:
    """Created anew so quickly that the group has not noticed: Faust would drop what comes."""
    app, _ = listening(kafka_settings)
    consumer, tp = app.consumer, TP(kafka_settings.events_topic, 0)
    fetched = [[Record(4, 0, b"{}"), Record(5, 0, b"{}")], [Record(offset, 0, b"{}")]]

    async def fetch(_timeout: float) -> tuple[dict[Any, Any], None]:
        return {tp: fetched.pop(0)}, None

    monkeypatch.setattr(consumer, "_wait_next_records", fetch)
    consumer.flow_active = True
    assert len([each async for each in consumer.getmany(1.0)]) == 1
    if goes_back:
        with pytest.raises(KizashiError, match="gone back from offset 5"):
            [each async for each in consumer.getmany(1.0)]
    else:
        assert len([each async for each in consumer.getmany(1.0)]) == 1


def test_what_we_use_of_private_api_is_still_there() -> None:
    """Where an upgrade breaks this, read `pipeline/transport.py` before anything else."""
    assert faust.__version__ == "0.15.3"
    assert aiokafka.__version__ == "0.14.0"
    assert list(inspect.signature(GroupCoordinator._do_commit_offsets).parameters) == [
        "self",
        "assignment",
        "offsets",
    ]
    source = inspect.getsource(GroupCoordinator._do_commit_offsets)
    request, _, _ = source.partition("await self._send_req(request)")
    assert "await" not in request, "the generation is read before anything is awaited"
    assert "self.generation" in request
    parent = inspect.getsource(Consumer.__mro__[1].getmany)
    for name in ("_wait_next_records", "perform_seek", "_buffered_partitions"):
        assert name in parent or hasattr(Consumer, name)


def test_what_is_published_is_packed_fast() -> None:
    value = b"".join(VALUES)
    builder = DefaultRecordBatchBuilder(
        2, DefaultRecordBatch.CODEC_LZ4, 0, -1, -1, -1, len(value) * 2
    )
    builder.append(0, 0, None, value, [])
    packed = builder.build()
    record = next(iter(DefaultRecordBatch(packed)))
    assert record.value == value
    unpacked = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, len(value) * 2)
    unpacked.append(0, 0, None, value, [])
    plain = bytes(unpacked.build())[_RECORDS_AT:]
    assert bytes(packed[_RECORDS_AT:]) == lz4_encode(plain, LZ4_LEVEL)
    assert bytes(packed[_RECORDS_AT:]) != lz4_encode(plain)


def test_faust_is_compiled() -> None:
    assert_compiled()


class Stopped:
    """A consumer whose thread has ended, as it does before those who wait for another try."""

    def __init__(self) -> None:
        self._thread = self
        self.method_queue = self
        self.loop = asyncio.new_event_loop()
        self.loop.close()

    async def call_thread(self, *_: Any) -> None:
        self.loop.call_soon_threadsafe(print)


async def test_an_offset_log_without_its_consumer_says_that_the_work_is_no_longer_ours() -> None:
    offsets = OffsetLog(cast(Any, SimpleNamespace(consumer=Stopped())))
    with pytest.raises(Fenced, match="stopped"):
        await offsets.write("events", 0, 1, "", 1)
    with pytest.raises(Fenced, match="stopped"):
        await offsets.read("events", 0)
    with pytest.raises(SinkUnavailable, match="stopped"):
        await offsets.lag("events")
