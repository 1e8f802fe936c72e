"""Events on their way: from the loop that serves, through the spool, to Kafka, by three threads.

Delivery guarantee: at least once from the spool on (the pipeline drops repeats by
``event.id``); what is lost before or in it is counted (`gateway.spool`). `put` only counts
and queues: neither disk nor broker can delay an answer.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from gateway.spool import Batch, Loss, Slot, Spool
from pipeline.config import KafkaSettings
from pipeline.errors import KizashiError
from pipeline.gateway_settings import EventSettings
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
    """Sends to the events topic with acks=all. Connects with the first events."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        client_settings(settings)  # what is wrong with them is said at the start
        self._producer: KafkaProducer | None = None

    def deliver(self, raws: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Deliver; see `Courier`."""
        producer = self._producer or self._connect()
        again: list[bytes] = []
        refused, under_way = 0, []
        for row, raw in enumerate(raws):
            try:
                future = producer.send(self._settings.events_topic, raw, read_head(raw).key)
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


class Shipping:
    """The gateway's `EventSink`. Start and stop it with the process."""

    def __init__(self, settings: EventSettings, courier: Courier) -> None:
        self._settings = settings
        self._courier = courier
        self.spool = Spool(settings.spool, settings.spool_bytes, settings.segment_bytes)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._written_bytes = 0
        self._stopping = threading.Event()
        self._given_up = threading.Event()
        self._arrived = threading.Event()
        self._threads = ThreadPoolExecutor(3, "kizashi-events")
        self._running = [self._threads.submit(run) for run in (self._write, self._sync, self._ship)]

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
        ledger = self.spool.ledger
        return ledger[Slot.TAKEN] - ledger[Slot.SENT] - sum(ledger.lost.values())

    def stop(self, patience_s: float) -> None:
        """Write everything down, send what can be sent within `patience_s`, and end."""
        self._queue.put(None)
        writing, syncing, shipping = self._running
        writing.result()
        self._stopping.set()
        self._arrived.set()
        wait([shipping], timeout=patience_s)
        self._given_up.set()
        for running in (syncing, shipping):
            running.result()
        self._threads.shutdown()
        self._courier.close()
        self.spool.close()

    # --- Threads ------------------------------------------------------------------------

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
            self._arrived.set()

    def _sync(self) -> None:
        while not self._stopping.wait(self._settings.sync_interval_s):
            try:
                self.spool.sync()
            except OSError as error:
                logger.error("gateway.events.spool: %s", error)  # noqa: TRY400

    def _ship(self) -> None:
        while not self._given_up.is_set():
            self._arrived.clear()
            batch = self.spool.read()
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
                logger.warning("events wait: %s", error)
            except Exception:
                logger.exception("events wait")
            if not again:
                self.spool.release(batch, refused)
                return
            if self._given_up.wait(pause_s):
                return
            pause_s = min(pause_s * 2, _PAUSE_S_MAX)
