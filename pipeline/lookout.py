"""Kizashi watches itself: the worker that owns the incidents looks after the whole group.

Delivery guarantee: what is found becomes an incident like any other, by the responder: stored
before it is told, fenced, told once. While that cannot be, for ClickHouse or the broker is away,
it is told without being stored (`pipeline.sinks.last_resort`). Who watches the watcher: the
group, that gives the incidents to another worker when this one is gone; and where no worker is
left, the silence of the heartbeat.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from pipeline.errors import Fenced, KizashiError, RetryableError
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


class Attending(Protocol):
    """`pipeline.agents.RespondAgent`, or a fake."""

    async def attend(self, complaints: Sequence[Complaint], well: frozenset[Organ]) -> None: ...

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
    ) -> None:
        self._config = config
        self._sources = sources
        self._responding = responding
        self._executor = executor
        self._now_ms = now_ms
        self._last_resort = last_resort
        self._heartbeat = heartbeat
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
        """Release connections."""
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
            histories = {}
            for topic in silent:
                read = functools.partial(sources.history, topic, now_ms, config.silent_ms)
                if (history := await self._ask(read)) is not None:
                    histories[topic] = history
            return Look(standings, histories, await self._ask(sources.reconciled))
        except RetryableError as error:
            logger.warning("%s", error)
            return Look(standings)

    async def _tell(self, now_ms: int) -> bool:
        """Returns whether it could be stored."""
        complaints, well = self._vitals.complaints, self._vitals.well
        try:
            await self._responding.attend(complaints, well)
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
