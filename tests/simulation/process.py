"""A process: an event loop in simulated time that can be killed or stopped between any two steps.

Everything that a worker does runs as callbacks of its own loop. To kill it is never to run
that loop again: no `finally`, no `except` gets its turn, as with kill -9. To stop it is not to
run it for a while, as with SIGSTOP: it wakes up in the belief that nothing has happened.
Threads are part of the process: a call runs whole, and at some later time its caller hears of
it, so a process may die after the call's effect and before its answer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from asyncio import events
from collections import deque
from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """Raised inside a thread's call where the process dies in the middle of it."""


class Clock:
    """The time of the whole world, seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0


class Thread:
    """A pool of one thread: calls run in order, one at a time."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]] = (
            deque()
        )
        self.busy = False


class Process(asyncio.AbstractEventLoop):
    """Only what asyncio's own primitives and the code under test ask of a loop."""

    def __init__(self, name: str, clock: Clock, rng: random.Random) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        #: When it last woke up, and when a commit of its was last taken.
        self.woke_s = self.proven_s = -1.0
        self.failed: BaseException | None = None
        self._clock = clock
        self._rng = rng
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()

    # What the world does with it.

    @property
    def runs(self) -> bool:
        return self.alive and not self.stopped

    def is_ready(self) -> bool:
        """Whether there is something to do now."""
        while self._timers and self._timers[0][0] <= self._clock.now_s:
            self._ready.append(heapq.heappop(self._timers)[2])
        return bool(self._ready)

    def next_s(self) -> float | None:
        """When there is something to do again; None if never by itself."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def step(self) -> None:
        """Run one callback: as far as the next `await` that waits."""
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        events._set_running_loop(self)
        try:
            handle._run()
        finally:
            events._set_running_loop(None)

    def bury(self) -> None:
        """Let the tasks of a process that is over go, in peace: its world takes nothing more."""
        self.alive = False
        for task in self._tasks:
            task.cancel()
        for _ in range(100):
            if not self._tasks:
                return
            while self._ready:
                self.step()
            for task in self._tasks:
                task.cancel()
        raise AssertionError(f"{self.name} does not end: {self._tasks}")

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._clock.now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._clock.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._count), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when they are due."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failed = self.failed or context.get("exception") or RuntimeError(context["message"])

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        executor.waiting.append((future, func, args))
        if not executor.busy:
            self._begin(executor)
        return future

    def _begin(self, thread: Thread) -> None:
        thread.busy = bool(thread.waiting)
        if thread.busy:
            self.call_later(self._rng.random() * 0.02, self._run_call, thread)

    def _run_call(self, thread: Thread) -> None:
        future, func, args = thread.waiting.popleft()
        answer: tuple[bool, Any] | None = None
        if not future.cancelled():
            # In its own thread there is no running loop.
            events._set_running_loop(None)
            try:
                answer = (True, func(*args))
            except Killed:
                self.alive = False
                return
            except Exception as error:
                answer = (False, error)
        self.call_later(self._rng.random() * 0.02, self._answer, thread, future, answer)

    def _answer(
        self, thread: Thread, future: asyncio.Future[Any], answer: tuple[bool, Any] | None
    ) -> None:
        if answer is not None and not future.done():
            future.set_result(answer[1]) if answer[0] else future.set_exception(answer[1])
        self._begin(thread)
