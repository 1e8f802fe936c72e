"""Sending records to a topic while somebody waits for the broker's word.

Delivery: a record of which `send` says True is on all in-sync replicas, once. Of the others
nothing is known; sent again they are repeats that the pipeline drops by their ids. Memory: the
client's own buffer, and what the callers hold.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from pipeline.config import KafkaSettings
from pipeline.errors import SinkUnavailable
from pipeline.producers import open_producer
from pipeline.topics import message_bytes_max

logger = logging.getLogger(__name__)

#: A client does not wait longer than this for an answer.
PATIENCE_S = 20.0
_CLOSE_TIMEOUT_S = 5.0
_LINGER_MS = 5
_THREADS = 8
#: Room for what stands around a record.
_OVERHEAD_BYTES = 64 * 1024


class TopicSender:
    """Sends to one topic; connects when it is first needed, and anew after a failure."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._lock = threading.Lock()
        self._client: tuple[KafkaProducer, int] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "send")

    async def send(self, records: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Send (key, value) records and wait; returns for each whether the broker has it.

        Raises:
            SinkUnavailable: the broker does not answer; nothing was sent.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.send_and_wait, records)

    def send_and_wait(self, records: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """`send` for a caller that may block."""
        producer, bytes_max = self._connect()
        until_s = time.monotonic() + PATIENCE_S
        waiting = [self._offer(producer, bytes_max, key, value) for key, value in records]
        return [_has_arrived(each, until_s) for each in waiting]

    def close(self) -> None:
        """Let go of the broker."""
        self._threads.shutdown()
        self._drop()

    def _connect(self) -> tuple[KafkaProducer, int]:
        with self._lock:
            if self._client is None:
                bytes_max = self._bytes_max()
                self._client = self._open(), bytes_max
            return self._client

    def _open(self) -> KafkaProducer:
        return open_producer(
            self._settings,
            patience_s=PATIENCE_S,
            linger_ms=_LINGER_MS,
            max_request_size=4 * 1024 * 1024,
        )

    def _bytes_max(self) -> int:
        found = message_bytes_max(self._settings, self._topic)
        if found is None:
            raise SinkUnavailable(f"there is no topic {self._topic}: run kizashi init")
        return found - _OVERHEAD_BYTES

    def _offer(self, producer: KafkaProducer, bytes_max: int, key: bytes, value: bytes) -> Any:
        # One batch that the broker refuses spoils the client for good.
        if len(value) > bytes_max:
            return None
        try:
            return producer.send(self._topic, value, key)
        except KafkaTimeoutError:
            return None
        except KafkaError as error:
            logger.warning("%s: %r; connecting anew", self._topic, error)
            self._drop()
            return None

    def _drop(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(KafkaError):  # what is not answered for was not said to have arrived
                client[0].close(_CLOSE_TIMEOUT_S)


def _has_arrived(future: Any, until_s: float) -> bool:
    if future is None:
        return False
    try:
        future.get(timeout=max(0.0, until_s - time.monotonic()))
    except (KafkaError, TimeoutError):
        return False
    return True
