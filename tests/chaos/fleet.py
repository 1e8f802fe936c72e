"""The workers of a run, and whoever starts them again: what an orchestrator does for a service."""

from __future__ import annotations

import itertools
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.support.workers import WorkerProcess

_LOOK_S = 0.1
_LOOKS_A_SECOND = 10
_SECONDS_A_NOTE = 60
#: An orchestrator takes a moment.
RESTART_S = 0.5
#: How we end workers, and how they end themselves when asked to.
_EXPECTED = {0, -signal.SIGKILL, -signal.SIGTERM}
#: How the command line says why it will not start.
_REFUSAL = "kizashi: "
#: So much of its log tells why a worker ended.
_SAID_CHARACTERS = 2_000


@dataclass
class Slot:
    """A place in the fleet: its worker is started again whenever it is gone."""

    worker: WorkerProcess
    #: Not started again before this time (monotonic).
    not_before_s: float = 0.0
    wanted: bool = True
    started: bool = False


class Fleet:
    """Keeps workers running. Use as a context manager; its methods may be called by any thread.

    Its own thread starts all workers and outlives them, for they end with it.
    """

    def __init__(
        self, make: Callable[[int], WorkerProcess], size: int, note: Callable[[str], None]
    ) -> None:
        self._note = note
        self._make = make
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.slots: list[Slot] = []
        #: Workers that ended with a status that nobody asked for, and what they said last.
        self.crashes: list[str] = []
        #: Workers that found something away when they started, said so, and ended.
        self.refusals = 0
        self.starts = 0
        self.rss_max_mb = 0.0
        #: What the largest worker held, once a second.
        self._held_mb: list[float] = []
        self._looks = 0
        for _ in range(size):
            self.add()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for slot in self.slots:
                slot.wanted = False
                if slot.worker.running:
                    slot.worker.kill()
        self._closing.set()
        self._thread.join()

    def add(self) -> Slot:
        with self._lock:
            slot = Slot(self._make(next(self._numbers)))
            self.slots.append(slot)
            return slot

    def pick(self, draw: int) -> Slot:
        """Return one that runs, if there is any."""
        with self._lock:
            slots = [slot for slot in self.slots if slot.worker.running] or self.slots
            return slots[draw % len(slots)]

    def hold_back(self, slot: Slot, delay_s: float) -> None:
        """Start its next worker no sooner than this."""
        slot.not_before_s = time.monotonic() + delay_s

    def retire(self, slot: Slot) -> None:
        """Ask a worker to stop, and start it no more."""
        slot.wanted = False
        slot.worker.send(signal.SIGTERM)

    def running(self) -> list[WorkerProcess]:
        with self._lock:
            return [slot.worker for slot in self.slots if slot.worker.running]

    def stop(self, timeout_s: float) -> bool:
        """Ask all to stop; returns whether all did, with status 0, within the time."""
        with self._lock:
            for slot in self.slots:
                slot.wanted = False
            ending = [slot.worker for slot in self.slots if slot.worker.running]
            for worker in ending:
                worker.send(signal.SIGTERM)
        deadline_s = time.monotonic() + timeout_s
        while any(worker.running for worker in ending) and time.monotonic() < deadline_s:
            self._closing.wait(_LOOK_S)
        return all(worker.status == 0 for worker in ending)

    def _supervise(self) -> None:
        while not self._closing.wait(_LOOK_S):
            with self._lock:
                for slot in self.slots:
                    self._look_at(slot)
                self._looks += 1
                if self._looks % _LOOKS_A_SECOND == 0:
                    held_mb = max((slot.worker.rss_mb for slot in self.slots), default=0.0)
                    self._held_mb.append(held_mb)
                    self.rss_max_mb = max(self.rss_max_mb, held_mb)
                    if len(self._held_mb) % _SECONDS_A_NOTE == 0:
                        self._note(f"the largest worker holds {held_mb:.0f} MB")

    def rss_growth_mb(self) -> float:
        """How much more the largest worker held in the last quarter than in the second."""
        quarter = len(self._held_mb) // 4
        if not quarter:
            return 0.0
        second, last = self._held_mb[quarter : 2 * quarter], self._held_mb[-quarter:]
        return statistics.median(last) - statistics.median(second)

    def _look_at(self, slot: Slot) -> None:
        if slot.worker.running:
            return
        if slot.started:
            slot.started = False
            self._note(f"{slot.worker.log_file.stem} ended: {slot.worker.status}")
            if slot.worker.status == 1 and _last_line(slot.worker).startswith(_REFUSAL):
                self.refusals += 1
            elif slot.worker.status not in _EXPECTED:
                end = slot.worker.log[-_SAID_CHARACTERS:]
                self.crashes.append(f"status {slot.worker.status}: {end}")
            slot.not_before_s = max(slot.not_before_s, time.monotonic() + RESTART_S)
        if slot.wanted and time.monotonic() >= slot.not_before_s:
            slot.worker.start()
            self._note(f"{slot.worker.log_file.stem} started")
            slot.started = True
            self.starts += 1


def _last_line(worker: WorkerProcess) -> str:
    lines = worker.log.splitlines()
    return lines[-1] if lines else ""
