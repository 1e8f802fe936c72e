"""Records on their way: from the loop that serves, through a spool, to Kafka.

Delivery guarantee: at least once from the spool on (the pipeline drops repeats by their ids);
what is lost before or in it is counted (`gateway.spool`). Of events `put` only counts and
queues: neither disk nor broker can delay an answer. Of feedback `keep` waits for the disk, and
says whether the spool has it; for the broker it does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from gateway.ratings import read_key
from gateway.spool import Batch, Loss, Slot, Spool
from pipeline.config import KafkaSettings
from pipeline.errors import KizashiError
from pipeline.gateway_settings import EventSettings, FeedbackSettings
from pipeline.producers import open_producer
from pipeline.producing import read_head
from pipeline.topics import client_settings

logger = logging.getLogger(__name__)

#: Bytes between `put` and the disk.
QUEUE_BYTES_MAX = 64 * 1024 * 1024
_WRITE_EVENTS_MAX = 1_000
_PAUSE_S_MAX = 5.0
_PAUSE_S = 0.1
_IDLE_S = 0.5
_DELIVERY_TIMEOUT_S = 20.0
_LINGER_MS = 5


class Courier(Protocol):
    """Brings events to where the pipeline reads them. Used by one thread."""

    def deliver(self, raws: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Deliver; return those that were not and may be tried again, and how many never will.

        Raises:
            KizashiError: none was delivered.
        """
        ...

    def close(self) -> None: ...


class KafkaCourier:
    """Sends to one topic with acks=all. Connects with the first records."""

    def __init__(
        self, settings: KafkaSettings, topic: str, key_of: Callable[[bytes], bytes | None]
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._key_of = key_of
        client_settings(settings)  # what is wrong with them is said at the start
        self._producer: KafkaProducer | None = None

    def deliver(self, raws: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Deliver; see `Courier`."""
        producer = self._producer or self._connect()
        again: list[bytes] = []
        refused, under_way = 0, []
        for row, raw in enumerate(raws):
            try:
                future = producer.send(self._topic, raw, self._key_of(raw))
                under_way.append((raw, future))
            except MessageSizeTooLargeError:
                refused += 1
            except KafkaError as error:
                # Nothing is known of the topic: the next one would wait as long.
                logger.info("Kafka: %s", type(error).__name__)
                again += raws[row:]
                break
        for raw, future in under_way:
            try:
                future.get(timeout=_DELIVERY_TIMEOUT_S)
            except MessageSizeTooLargeError:
                refused += 1
            except KafkaError as error:
                logger.info("Kafka: %s", type(error).__name__)
                again.append(raw)
        return again, refused

    def _connect(self) -> KafkaProducer:
        self._producer = open_producer(
            self._settings,
            patience_s=_DELIVERY_TIMEOUT_S,
            # A batch that is refused would end an idempotent producer; repeats are dropped
            # by their id anyway.
            enable_idempotence=False,
            linger_ms=_LINGER_MS,
        )
        return self._producer

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close(1.0)


def events_courier(settings: KafkaSettings) -> KafkaCourier:
    """Return what brings events to their topic, each under its id."""
    return KafkaCourier(settings, settings.events_topic, lambda raw: read_head(raw).key)


def feedback_courier(settings: KafkaSettings) -> KafkaCourier:
    """Return what brings feedback to its topic, each under its id."""
    return KafkaCourier(settings, settings.feedback_topic, read_key)


class Ferry:
    """Brings what a spool holds to a courier, by two threads, and syncs it."""

    def __init__(self, spool: Spool, courier: Courier, sync_interval_s: float) -> None:
        self._spool = spool
        self._courier = courier
        self._sync_interval_s = sync_interval_s
        self._stopping = threading.Event()
        self._given_up = threading.Event()
        self._arrived = threading.Event()
        self._threads = ThreadPoolExecutor(2, "kizashi-ferry")
        self._running = [self._threads.submit(run) for run in (self._sync, self._ship)]

    def notice(self) -> None:
        """Say that something was written."""
        self._arrived.set()

    def stop(self, patience_s: float) -> None:
        """Send what can be sent within `patience_s`, and end; nothing may be written any more."""
        syncing, shipping = self._running
        self._stopping.set()
        self._arrived.set()
        wait([shipping], timeout=patience_s)
        self._given_up.set()
        for running in (syncing, shipping):
            running.result()
        self._threads.shutdown()
        self._courier.close()
        self._spool.close()

    def _sync(self) -> None:
        while not self._stopping.wait(self._sync_interval_s):
            try:
                self._spool.sync()
            except OSError as error:
                logger.error("gateway.events.spool: %s", error)  # noqa: TRY400

    def _ship(self) -> None:
        while not self._given_up.is_set():
            self._arrived.clear()
            batch = self._spool.read()
            if batch.raws:
                self._deliver(batch)
            elif self._stopping.is_set():
                return
            else:
                self._arrived.wait(_IDLE_S)

    def _deliver(self, batch: Batch) -> None:
        """Deliver a batch, however long it takes, unless the process is to end."""
        again, refused, pause_s = batch.raws, 0, _PAUSE_S
        while True:
            try:
                again, more = self._courier.deliver(again)
                refused += more
            except KizashiError as error:
                logger.warning("records wait: %s", error)
            except Exception:
                logger.exception("records wait")
            if not again:
                self._spool.release(batch, refused)
                return
            if self._given_up.wait(pause_s):
                return
            pause_s = min(pause_s * 2, _PAUSE_S_MAX)


class Shipping:
    """The gateway's `EventSink`. Start and stop it with the process."""

    def __init__(self, settings: EventSettings, courier: Courier) -> None:
        self.spool = Spool(settings.spool, settings.spool_bytes, settings.segment_bytes)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._written_bytes = 0
        self._ferry = Ferry(self.spool, courier, settings.sync_interval_s)
        self._thread = ThreadPoolExecutor(1, "kizashi-events")
        self._writing = self._thread.submit(self._write)

    def put(self, raw: bytes) -> None:
        """Take an event. Never blocks: what is over `QUEUE_BYTES_MAX` is counted as lost."""
        self.spool.ledger.add(Slot.TAKEN)
        if self._queued_bytes - self._written_bytes + len(raw) > QUEUE_BYTES_MAX:
            self.spool.ledger.lose(Loss.OVERRUN)
            return
        self._queued_bytes += len(raw)
        self._queue.put(raw)

    @property
    def waiting(self) -> int:
        """Events that are taken, and neither sent nor lost."""
        return self.spool.ledger.waiting

    def stop(self, patience_s: float) -> None:
        """Write everything down, send what can be sent within `patience_s`, and end."""
        self._queue.put(None)
        self._writing.result()
        self._thread.shutdown()
        self._ferry.stop(patience_s)

    def _write(self) -> None:
        over = False
        while not over:
            raws: list[bytes] = []
            raw = self._queue.get()
            while raw is not None:
                raws.append(raw)
                if len(raws) >= _WRITE_EVENTS_MAX or self._queue.empty():
                    break
                raw = self._queue.get()
            over = raw is None
            try:
                self.spool.append(raws)
            except Exception:
                logger.exception("%d events are lost", len(raws))
                self.spool.ledger.lose(Loss.DISK_ERROR, len(raws))
            self._written_bytes += sum(map(len, raws))
            self._ferry.notice()


class FeedbackShipping:
    """The gateway's `FeedbackSink`: a spool of its own, so that no event waits for its topic."""

    def __init__(self, settings: FeedbackSettings, events: EventSettings, courier: Courier) -> None:
        directory = events.spool / "feedback"
        self.spool = Spool(directory, settings.spool_bytes, events.segment_bytes)
        self._ferry = Ferry(self.spool, courier, events.sync_interval_s)
        self._thread = ThreadPoolExecutor(1, "kizashi-feedback")

    async def keep(self, raws: Sequence[bytes]) -> bool:
        """Write records to the spool; returns whether it has them all. Else it has none."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._write, raws)

    @property
    def waiting(self) -> int:
        """Records that are taken, and neither sent nor lost."""
        return self.spool.ledger.waiting

    def stop(self, patience_s: float) -> None:
        """Write what is under way, send what can be sent within `patience_s`, and end."""
        self._thread.shutdown()
        self._ferry.stop(patience_s)

    def _write(self, raws: Sequence[bytes]) -> bool:
        if (loss := self.spool.offer(raws)) is not None:
            logger.warning("feedback is not taken: %s", loss)
            return False
        # Behind the writing: what was not written was not taken, and is nobody's loss.
        self.spool.ledger.add(Slot.TAKEN, len(raws))
        self._ferry.notice()
        return True
