"""Protocols that are broken on purpose: a simulation that does not find them is worth nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.detect import DetectorRunner
from pipeline.errors import RetryableError
from pipeline.ingest import Ingestor
from pipeline.sinks.notifier import MemoryOutbox, Outbox
from pipeline.sinks.outbox import ClickHouseOutbox
from schemas.signal import Source
from tests.simulation.broker import Client
from tests.simulation.clickhouse import Requests
from tests.simulation.events import POISON

log = logging.getLogger(__name__)


def _as_it_is(client: Client) -> Any:
    return client


def _stored_outbox(incidents: Any, thread: Any) -> Outbox:
    return ClickHouseOutbox(incidents, thread)


class ForgetfulRequests(Requests):
    """Reads back what is stored, and not what no table took."""

    def read_recent_ids(self, source: Source, limit: int) -> list[str]:
        return [each for each in super().read_recent_ids(source, limit) if POISON not in each]


@dataclass(frozen=True)
class Protocol:
    """What is under test; as it stands, the real one."""

    ingestor: Callable[..., Any] = Ingestor
    offsets: Callable[[Client], Any] = _as_it_is
    window: int = 10_000
    requests: type[Requests] = Requests
    runner: type[DetectorRunner] = DetectorRunner
    outbox: Callable[[Any, Any], Outbox] = _stored_outbox
    #: Whether a worker asks the broker if the alarms are its own before it acts on them.
    proves: bool = True


class Undeclared:
    """Commits offsets, and never what is in flight."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.is_current, self.read = client.is_current, client.read

    async def write(
        self, topic: str, partition: int, offset: int, metadata: str, generation: int
    ) -> None:
        await self._client.write(topic, partition, offset, "", generation)


class CommitsFirst(Undeclared):
    """Acknowledges a chunk where it should declare it."""

    async def write(
        self, topic: str, partition: int, offset: int, metadata: str, generation: int
    ) -> None:
        done = int(metadata.split("-")[1]) + 1 if metadata else offset
        await self._client.write(topic, partition, done, "", generation)


class TakeIngestor(Ingestor):
    """Faust's own `take()`: what was handed out is acknowledged in a `finally`, done or not."""

    async def _see_through(self, partition: Any, now: Any) -> None:
        last = now.chunk.source.last_offset
        try:
            await partition.work.store(await now.preparing)
        except RetryableError as error:
            # As an agent that failed and is started again.
            log.warning("lost: %s", error)
        finally:
            await self._commit(partition, last + 1, "")


class EagerRunner(DetectorRunner):
    """Commits what it has seen instead of what its snapshot holds."""

    def settle(self, partition: int) -> int | None:
        super().settle(partition)
        return self._owned[partition].position + 1


CONTROLS: dict[str, tuple[tuple[str, ...], Protocol]] = {
    "Faust's take()": (("ingest",), Protocol(ingestor=TakeIngestor)),
    "no deduplication window": (("ingest",), Protocol(window=0)),
    "refused events are new again": (("ingest",), Protocol(requests=ForgetfulRequests)),
    "no declaration": (("ingest",), Protocol(offsets=Undeclared)),
    "commit before the work": (("ingest",), Protocol(offsets=CommitsFirst)),
    "commit past the snapshot": (("detect",), Protocol(runner=EagerRunner)),
    "no proof of ownership": (("respond",), Protocol(proves=False)),
    "an outbox in memory": (("respond",), Protocol(outbox=lambda *_: MemoryOutbox())),
}
