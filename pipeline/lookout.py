"""Kizashi watches itself: the worker that owns the incidents looks after the whole group.

Delivery guarantee: what is found becomes an incident like any other, by the responder: stored
before it is told, fenced, told once. While that cannot be, for ClickHouse or the broker is away or
takes too long, it is told without being stored (`pipeline.sinks.last_resort`). Who watches the
watcher: the group, that gives the incidents to another worker when this one is gone; and where no
worker is left, the silence of the heartbeat.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.errors import Fenced, KizashiError, RetryableError, SinkUnavailable
from pipeline.incidents.complaints import Complaint, History, Organ, Reconciled, Standing, Trouble
from pipeline.incidents.own import open_own
from pipeline.incidents.silencing import find_silence
from pipeline.incidents.vitals import Look, Vitals, VitalsConfig
from pipeline.sinks.last_resort import LastResort
from schemas.silence import Silence

if TYPE_CHECKING:
    from pipeline.sinks.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Of ClickHouse: the histories of silent topics, and the last reconciliation.
Answers = tuple[Mapping[str, History], Reconciled | None]

#: All that this worker wants of ClickHouse waits in one queue. Where each answer takes seconds,
#: looking must not: nobody else sees that Kizashi falls behind.
ASK_S = 5.0
#: Storing and telling may wait for a flood of alarms.
TELL_S = 30.0


class Attending(Protocol):
    """`pipeline.agents.RespondAgent`, or a fake."""

    def attend(
        self, complaints: Sequence[Complaint], well: frozenset[Organ]
    ) -> Coroutine[Any, Any, None]: ...

    async def prove(self) -> None: ...


class Sources(NamedTuple):
    """Where the lookout looks. Calls block."""

    #: Given the times of `read_standings`.
    standings: Callable[[int, int], tuple[Standing, ...]]
    #: Given topic, now, and the length of a span. Asked in ClickHouse's own thread.
    history: Callable[[str, int, int], History | None]
    reconciled: Callable[[], Reconciled | None]
    #: Those that hold, as far as is known without asking.
    silences: Callable[[int], tuple[Silence, ...]]


class _Errand(Generic[T]):
    """A call that is waited for only so long, and not made again before it has ended."""

    def __init__(self, name: str, patience_s: float) -> None:
        self._name = name
        self._patience_s = patience_s
        self._task: asyncio.Task[T] | None = None

    async def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the call came to, or the one before it that had been given up.

        Raises:
            SinkUnavailable: it has not ended yet.
        """
        patience_s = 0.0
        if self._task is None:
            self._task, patience_s = asyncio.create_task(call()), self._patience_s
        await asyncio.wait({self._task}, timeout=patience_s)
        if not self._task.done():
            raise SinkUnavailable(f"{self._name}: no answer yet")
        task, self._task = self._task, None
        return task.result()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Lookout:
    """Looks at everything each time it is asked to, while this worker owns the incidents."""

    def __init__(
        self,
        config: VitalsConfig,
        sources: Sources,
        responding: Attending,
        executor: Executor,
        now_ms: Callable[[], int],
        *,
        last_resort: LastResort,
        heartbeat: Heartbeat | None = None,
        ask_s: float = ASK_S,
        tell_s: float = TELL_S,
    ) -> None:
        """A look waits `ask_s` for ClickHouse's answers, and `tell_s` until all is stored."""
        self._config = config
        self._sources = sources
        self._responding = responding
        self._executor = executor
        self._now_ms = now_ms
        self._last_resort = last_resort
        self._heartbeat = heartbeat
        self._asking: _Errand[Answers] = _Errand("the books", ask_s)
        self._telling: _Errand[None] = _Errand("the outbox", tell_s)
        self._vitals = Vitals(config)
        self._owns = False
        #: As seen last; empty where another worker looks.
        self.standings: tuple[Standing, ...] = ()

    @property
    def troubles(self) -> dict[str, bool]:
        """Trouble → whether it stands; empty where another worker looks."""
        if not self._owns:
            return {}
        standing = {each.trouble for each in self._vitals.complaints}
        return {each.value: each in standing for each in Trouble}

    async def look(self, *, owns: bool) -> None:
        """Look once, tell what is wrong, and beat while nothing makes us blind."""
        if owns != self._owns:
            # What was seen before is old: begin anew, and end nothing by it.
            self._owns, self._vitals, self.standings = owns, Vitals(self._config), ()
        if not owns:
            return
        now_ms = self._now_ms()
        try:
            look = await self._see(now_ms)
        except KizashiError as error:
            logger.warning("cannot look after the group: %s", error)
            return
        self.standings = look.standings or ()
        self._vitals.observe(now_ms, look)
        if not await self._tell(now_ms):
            return
        if self._heartbeat and look.standings is not None and not self._vitals.is_blind:
            await self._heartbeat.beat()

    async def close(self) -> None:
        """Wait for nothing any more, and release connections."""
        self._asking.cancel()
        self._telling.cancel()
        if self._heartbeat is not None:
            await self._heartbeat.close()

    async def _see(self, now_ms: int) -> Look:
        config, sources = self._config, self._sources
        try:
            standings = await asyncio.to_thread(
                sources.standings, now_ms - config.behind_ms, now_ms - config.silent_ms
            )
        except RetryableError as error:
            logger.warning("%s", error)
            return Look(None)
        silent = self._vitals.find_silent(now_ms, standings)
        try:
            found = await self._asking.run(lambda: self._ask_all(silent, now_ms))
        except RetryableError as error:
            logger.warning("%s", error)
            return Look(standings)
        return Look(standings, *found)

    async def _ask_all(self, silent: Sequence[str], now_ms: int) -> Answers:
        histories = {}
        for topic in silent:
            read = functools.partial(self._sources.history, topic, now_ms, self._config.silent_ms)
            if (history := await self._ask(read)) is not None:
                histories[topic] = history
        return histories, await self._ask(self._sources.reconciled)

    async def _tell(self, now_ms: int) -> bool:
        """Returns whether it could be stored."""
        complaints, well = self._vitals.complaints, self._vitals.well
        try:
            await self._telling.run(lambda: self._responding.attend(complaints, well))
        except Fenced as fenced:
            logger.info("not told: %s", fenced)
            return False
        except RetryableError as error:
            logger.warning("what ails the pipeline cannot be stored: %s", error)
            if complaints:
                await self._page(complaints, now_ms)
            return False
        return True

    async def _page(self, complaints: Sequence[Complaint], now_ms: int) -> None:
        """Tell it all the same, unless the broker says that somebody else does."""
        try:
            await self._responding.prove()
        except Fenced as fenced:
            logger.info("not told: %s", fenced)
            return
        except RetryableError as error:
            logger.warning("told unproven: %s", error)
        active = self._sources.silences(now_ms)
        incidents = [open_own(each) for each in complaints]
        await self._last_resort.page([i for i in incidents if find_silence(active, i) is None])

    def _ask(self, call: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, call)
