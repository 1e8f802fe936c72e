"""Alarms become incidents, people command them, and both are told.

Delivery guarantee: at least once per alarm and command, and idempotent: one that comes
again changes nothing. What is to be told is stored before the incident, and the
incident before the alarm or command is acknowledged; a destination that fails is the
notifier's business and holds up nothing here. Alarms that come together are stored and told
together, an incident as it then stands: what came in between is nobody's loss.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar

from pipeline.incidents.book import BookConfig, Entry, IncidentBook, coalesce
from pipeline.incidents.complaints import Complaint, Organ
from pipeline.incidents.intake import Intake
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.notifier import Prove
from schemas.alarm import Alarm
from schemas.command import Command
from schemas.incident import Action, Incident
from schemas.silence import Silence

T = TypeVar("T")

#: Nobody waits for longer than this to hear of an incident because others come with it.
TOGETHER_S = 1.0
#: So many alarms at most are compared with each other.
CROWD_MAX = 500


class Notifying(Protocol):
    """`pipeline.sinks.notifier.Notifier`, or a fake."""

    async def start(self) -> None: ...

    async def notify_all(self, changes: Sequence[tuple[Incident, Action]]) -> None: ...

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
            for piece in _cut(news):
                if isinstance(piece, Command):
                    changed += await self._note(partial(_carry_out, piece))
                else:
                    changed += await self._take_in(piece)
        return changed

    async def tick(self, now_ms: int) -> list[Incident]:
        """Explain what is young anew, and resolve what has been clear for long enough."""
        async with self._lock:
            if self._book is None:
                return []
            changed = await self._observe(now_ms)
            changed += await self._note(partial(self._review, now_ms))
            return changed + await self._note(lambda book: book.tick(now_ms))

    async def attend(
        self, complaints: Sequence[Complaint], well: frozenset[Organ], now_ms: int
    ) -> list[Incident]:
        """Take in what ails Kizashi itself; returns the incidents as they changed.

        Raises:
            RetryableError: ClickHouse or the broker is away: nobody has been told.
            Fenced: another worker has the alarms.
        """
        async with self._lock:
            await self._take_over()
            changed = await self._observe(now_ms)
            return changed + await self._note(lambda book: book.attend(complaints, well, now_ms))

    async def _observe(self, now_ms: int) -> list[Incident]:
        """Silence what lies within a silence, and tell what does no longer."""
        if self._find_silences is None:
            return []
        silences = await self._run(partial(self._find_silences, now_ms))
        return await self._note(lambda book: book.observe(silences, now_ms))

    def _review(self, now_ms: int, book: IncidentBook) -> list[Entry]:
        return book.review(now_ms, self._incidents.investigate, self._incidents.find_examples)

    async def _take_in(self, alarms: Sequence[Alarm]) -> list[Incident]:
        """Take in alarms, step by step: chunks of events are stored in between."""
        changed: list[Incident] = []
        now_s = asyncio.get_running_loop().time
        async with self._changing() as book:
            intake = Intake(book, alarms)
            while not intake.done:
                entries: list[Entry] = []
                due_s = now_s() + TOGETHER_S
                while not intake.done and (not entries or now_s() < due_s):
                    entries += await self._run(partial(intake.step, self._incidents))
                changed += await self._store(entries)
        return changed

    async def _note(self, change: Callable[[IncidentBook], list[Entry]]) -> list[Incident]:
        async with self._changing() as book:
            return await self._store(await self._run(lambda: change(book)))

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[IncidentBook]:
        """Give the book; after an error it is ahead of what is stored, and has to be read again."""
        assert self._book is not None  # noqa: S101 — take_over has been called
        try:
            yield self._book
        except BaseException:
            await self._hand_over()
            raise

    async def _store(self, entries: Sequence[Entry]) -> list[Incident]:
        """Put what is to be told into the outbox, then store the incidents."""
        changes = coalesce(entries)
        if not changes:
            return []
        assert self._notifier is not None  # noqa: S101 — it comes with the book
        if self._prove is not None:
            await self._prove()
        await self._notifier.notify_all(changes)
        incidents = [change.incident for change in changes]
        await self._run(partial(self._incidents.save, *incidents))
        return incidents

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _carry_out(command: Command, book: IncidentBook) -> list[Entry]:
    return book.carry_out(command)


def _cut(news: Sequence[Alarm | Command]) -> list[Command | list[Alarm]]:
    """In order: each command by itself, and alarms together, as far as they may be."""
    pieces: list[Command | list[Alarm]] = []
    for each in news:
        if isinstance(each, Command):
            pieces.append(each)
        elif pieces and isinstance(last := pieces[-1], list) and len(last) < CROWD_MAX:
            last.append(each)
        else:
            pieces.append([each])
    return pieces
