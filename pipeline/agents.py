"""What the detect and the respond agent do with the chunks that they are handed.

Delivery guarantee: a chunk is acknowledged when everything that it brought about is
stored and published. What is transient is tried again for as long as the partition is
ours; what comes again changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

import msgspec

from pipeline.detect import DetectorRunner
from pipeline.errors import Fenced, RetryableError
from pipeline.incidents.complaints import Complaint, Organ
from pipeline.ingest import BatchLike, Offsets
from pipeline.respond import Responder
from pipeline.retry import Backoff, persist
from schemas.alarm import Alarm
from schemas.command import Command, decode_alarm_or_command

logger = logging.getLogger(__name__)


class AlarmPublisher(Protocol):
    """The topic that detect writes to. Returns when the broker has everything.

    Raises SinkUnavailable when the broker cannot be reached.
    """

    async def publish_alarms(self, alarms: Sequence[Alarm]) -> None: ...


class _Agent:
    """Sees a chunk through, unless the partition is another's by now."""

    def __init__(self, offsets: Offsets, backoff: Backoff) -> None:
        self._offsets = offsets
        self._backoff = backoff

    async def _see_through(self, batch: BatchLike, call: Callable[[], Awaitable[None]]) -> None:
        def is_ours() -> bool:
            return self._offsets.is_current(batch.generation)

        if not is_ours():
            return
        try:
            await persist(call, self._backoff, is_ours)
        except Fenced as fenced:
            logger.info("dropped: %s", fenced)

    async def _commit(self, batch: BatchLike, offset: int) -> None:
        await self._offsets.write(batch.topic, batch.partition, offset, "", batch.generation)


class DetectAgent(_Agent):
    """Hands signals to the detectors, publishes their alarms, and commits what a snapshot holds."""

    def __init__(
        self,
        runner: DetectorRunner,
        publisher: AlarmPublisher,
        executor: Executor,
        offsets: Offsets,
        backoff: Backoff,
    ) -> None:
        super().__init__(offsets, backoff)
        self._runner = runner
        self._publisher = publisher
        self._executor = executor
        self._generations: dict[int, int] = {}

    async def take(self, batch: BatchLike) -> None:
        """Take in a chunk of signals."""
        await self._see_through(batch, lambda: self._detect(batch))

    async def _detect(self, batch: BatchLike) -> None:
        if self._generations.get(batch.partition) != batch.generation:
            self._generations[batch.partition] = batch.generation
            self._runner.forget(batch.partition)
        loop = asyncio.get_running_loop()
        alarms = await loop.run_in_executor(
            self._executor, self._runner.detect, batch.partition, batch.records
        )
        await self._publisher.publish_alarms(alarms)
        offset = await loop.run_in_executor(self._executor, self._runner.settle, batch.partition)
        if offset is not None:
            await self._commit(batch, offset)


class RespondAgent(_Agent):
    """Hands alarms and commands to the responder, and commits when the incidents are stored."""

    def __init__(
        self,
        responder: Responder,
        topic: str,
        now_ms: Callable[[], int],
        offsets: Offsets,
        backoff: Backoff,
    ) -> None:
        super().__init__(offsets, backoff)
        self._responder = responder
        self._topic = topic
        self._now_ms = now_ms
        self._generation = offsets.generation
        # Proving commits what it has read: nothing may be committed in between.
        self._committing = asyncio.Lock()

    async def take(self, batch: BatchLike) -> None:
        """Take in a chunk of alarms and commands."""
        await self._see_through(batch, lambda: self._respond(batch))

    async def tick(self, *, owns: bool) -> None:
        """Take the incidents over or hand them over, as assigned; resolve what is due."""
        try:
            await self._begin_anew()
            if not owns:
                await self._responder.hand_over()
                return
            await self._responder.take_over()
            await self._responder.tick(self._now_ms())
        except (RetryableError, Fenced) as error:
            logger.warning("incidents cannot be looked after: %s", error)

    async def attend(self, complaints: Sequence[Complaint], well: frozenset[Organ]) -> None:
        """Take in what ails Kizashi itself.

        Raises:
            RetryableError: ClickHouse or the broker is away: nobody has been told.
            Fenced: another worker has the alarms.
        """
        await self._begin_anew()
        for incident in await self._responder.attend(complaints, well, self._now_ms()):
            logger.warning("%s: %s", incident.incident_id, incident.summary)

    async def prove(self) -> None:
        """Let the broker say that the alarms are ours, by committing what is committed.

        A worker that was stopped for longer than its session believes in what it knew.

        Raises:
            Fenced: they are another's.
            RetryableError: the broker does not answer.
        """
        async with self._committing:
            committed = await self._offsets.read(self._topic, 0)
            await self._offsets.write(
                self._topic,
                0,
                committed.offset or 0,
                committed.metadata,
                self._generation,
            )

    async def _commit(self, batch: BatchLike, offset: int) -> None:
        async with self._committing:
            await super()._commit(batch, offset)

    async def _begin_anew(self) -> None:
        """Forget the book with its generation: in between, the alarms may have been another's."""
        if self._generation != (now := self._offsets.generation):
            await self._responder.hand_over()
            self._generation = now

    async def _respond(self, batch: BatchLike) -> None:
        await self._begin_anew()
        for incident in await self._responder.respond(_read_news(batch), self._now_ms()):
            logger.info("incident %s v%d", incident.incident_id, incident.version)
        await self._commit(batch, batch.records[-1].offset + 1)


def _read_news(batch: BatchLike) -> list[Alarm | Command]:
    news = []
    for record in batch.records:
        try:
            news.append(decode_alarm_or_command(record.value or b""))
        except msgspec.MsgspecError as error:
            # Only another program can have written it; there is nothing to keep.
            logger.warning("the alarm at offset %d is none of ours: %s", record.offset, error)
    return news
