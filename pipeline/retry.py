"""Trying again: for as long as the work is ours, with exponential backoff and full jitter.

Before there is any work, at the start of a process, for as long as one has patience.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import Fenced, RetryableError

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Who starts waits for so long for Kafka and ClickHouse. To end and be started again costs seconds
#: of processor time, and an orchestrator waits ever longer before it does that.
START_PATIENCE_S = 60.0
#: Between two tries nobody waits for longer than this.
_PAUSE_S = 5.0


@dataclass(frozen=True)
class Backoff:
    """Waits up to ``initial_s · 2^attempt``, at most `max_s` (Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015)."""

    sleep: Callable[[float], Awaitable[None]]
    rng: random.Random
    initial_s: float = 0.2
    max_s: float = 5.0
    #: Called at every wait, so that others can tell waiting from standing still.
    note: Callable[[], None] = lambda: None

    async def wait(self, attempt: int, why: str) -> None:
        """Sleep before the next attempt; `attempt` counts from 0."""
        self.note()
        if attempt in {0, 4} or attempt % 30 == 0:
            logger.warning("attempt %d failed, trying again: %s", attempt + 1, why[:300])
        ceiling = min(self.max_s, self.initial_s * 2.0 ** min(attempt, 30))
        await self.sleep(self.rng.uniform(ceiling / 4, ceiling))


async def persist(
    call: Callable[[], Awaitable[T]], backoff: Backoff, is_ours: Callable[[], bool]
) -> T:
    """Retry what is transient for as long as the work is ours.

    Raises:
        Fenced: it is not ours any more.
    """
    attempt = 0
    while True:
        try:
            return await call()
        except RetryableError as error:
            if not is_ours():
                raise Fenced(str(error)) from error
            await backoff.wait(attempt, str(error))
            attempt += 1


def insist(
    call: Callable[[], T],
    patience_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> T:
    """Call again while what is needed is away, until `patience_s` is over. Blocks.

    Raises what the last call raised.
    """
    deadline_s, pause_s = clock() + patience_s, 0.2
    logged = False
    while True:
        try:
            return call()
        except RetryableError as error:
            if clock() + pause_s > deadline_s:
                raise
            if not logged:
                logger.warning(
                    "cannot start yet, trying for %g s: %s", patience_s, str(error)[:300]
                )
            logged = True
            sleep(pause_s)
            pause_s = min(_PAUSE_S, 2 * pause_s)
