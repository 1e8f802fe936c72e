"""Alarms become incidents, people command them, and both are told.

Delivery guarantee: at least once per alarm and command, and idempotent: one that comes
again changes nothing. What is to be told is stored before the incident, and the
incident before the alarm or command is acknowledged; a destination that fails is the
notifier's business and holds up nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Protocol, TypeVar

from pipeline.incidents.book import BookConfig, Entry, IncidentBook
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.notifier import Prove
from schemas.alarm import Alarm
from schemas.command import Command
from schemas.incident import Action, Incident
from schemas.silence import Silence

T = TypeVar("T")


class Notifying(Protocol):
    """`pipeline.sinks.notifier.Notifier`, or a fake."""

    async def start(self) -> None: ...

    async def notify(self, incident: Incident, action: Action) -> None: ...

    async def close(self) -> None: ...


class Responder:
    """Owns the book of incidents while this worker owns the alarms."""

    def __init__(
        self,
        config: BookConfig,
        incidents: IncidentStore,
        make_notifier: Callable[[], Notifying],
        executor: Executor,
        find_silences: Callable[[int], tuple[Silence, ...]] | None = None,
        prove: Prove | None = None,
    ) -> None:
        """`find_silences` blocks, and returns those that hold at a time in milliseconds.

        `prove` raises Fenced when the alarms are another's: a worker that was stopped for
        a while wakes up with its book as it was, and would store it over its successor's.
        """
        self._config = config
        self._incidents = incidents
        self._make_notifier = make_notifier
        self._executor = executor
        self._find_silences = find_silences
        self._prove = prove
        self._book: IncidentBook | None = None
        self._notifier: Notifying | None = None
        # Alarms and the clock come from different tasks; the book takes one change at a time.
        self._lock = asyncio.Lock()

    async def take_over(self) -> None:
        """Load the book and send what was still pending; does nothing when that is done."""
        async with self._lock:
            await self._take_over()

    async def _take_over(self) -> None:
        if self._notifier is not None:
            return
        recent = await self._run(self._incidents.load_recent)
        self._book = IncidentBook(self._config, recent)
        self._notifier = self._make_notifier()
        await self._notifier.start()

    async def hand_over(self) -> None:
        """Stop sending: another worker has the alarms now."""
        async with self._lock:
            await self._hand_over()

    async def _hand_over(self) -> None:
        notifier, self._notifier, self._book = self._notifier, None, None
        if notifier is not None:
            await notifier.close()

    async def respond(
        self, news: Sequence[Alarm | Command], now_ms: int | None = None
    ) -> list[Incident]:
        """Take in alarms and commands in order; returns the incidents as they changed.

        `now_ms` is what silences go by: they are about when people are told.

        Raises:
            RetryableError: ClickHouse or the broker is away; call again with the same.
            Fenced: another worker has the alarms.
        """
        changed: list[Incident] = []
        async with self._lock:
            await self._take_over()
            if now_ms is not None:
                changed += await self._observe(now_ms)
            for each in news:
                changed += await self._note(partial(self._handle, each))
        return changed

    async def tick(self, now_ms: int) -> list[Incident]:
        """Explain what is young anew, and resolve what has been clear for long enough."""
        async with self._lock:
            if self._book is None:
                return []
            changed = await self._observe(now_ms)
            changed += await self._note(partial(self._review, now_ms))
            return changed + await self._note(lambda book: book.tick(now_ms))

    async def _observe(self, now_ms: int) -> list[Incident]:
        """Silence what lies within a silence, and tell what does no longer."""
        if self._find_silences is None:
            return []
        silences = await self._run(partial(self._find_silences, now_ms))
        return await self._note(lambda book: book.observe(silences, now_ms))

    def _review(self, now_ms: int, book: IncidentBook) -> list[Entry]:
        return book.review(now_ms, self._incidents.investigate, self._incidents.find_examples)

    def _handle(self, news: Alarm | Command, book: IncidentBook) -> list[Entry]:
        if isinstance(news, Command):
            return book.carry_out(news)
        return book.handle(news, self._incidents.investigate, self._incidents.find_examples)

    async def _note(self, change: Callable[[IncidentBook], list[Entry]]) -> list[Incident]:
        assert self._book is not None  # noqa: S101 — take_over has been called
        assert self._notifier is not None  # noqa: S101
        book = self._book
        try:
            entries = await self._run(lambda: change(book))
            if entries and self._prove is not None:
                await self._prove()
            for entry in entries:
                await self._notifier.notify(entry.incident, entry.action)
                await self._run(partial(self._incidents.save, entry.incident))
        except BaseException:
            # The book is ahead of what is stored: read it again before the next try.
            await self._hand_over()
            raise
        return [entry.incident for entry in entries]

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)
