"""The notifier's outbox in ClickHouse.

Delivery guarantee: what `put` has returned from survives the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from pipeline.sinks.incidents import IncidentStore
from schemas.incident import Notification, Told

T = TypeVar("T")


class ClickHouseOutbox:
    """Implements `pipeline.sinks.notifier.Outbox`; blocking calls go to `executor`."""

    def __init__(self, incidents: IncidentStore, executor: Executor) -> None:
        self._incidents = incidents
        self._executor = executor

    async def put(self, notifications: Sequence[Notification]) -> None:
        await self._run(lambda: self._incidents.save_notifications(notifications))

    async def pending(self) -> list[Notification]:
        return await self._run(self._incidents.load_pending)

    async def history(self, *incident_ids: str) -> list[Told]:
        return await self._run(lambda: self._incidents.load_told(*incident_ids))

    async def standing(self, destination: str, limit: int) -> list[Notification]:
        return await self._run(lambda: self._incidents.load_standing(destination, limit))

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)
