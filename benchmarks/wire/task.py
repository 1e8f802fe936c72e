"""What a measured program is told, and how it answers. Only the standard library."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class Task:
    """One measurement, handed to a program as the JSON of its only argument."""

    bootstrap: str
    topic: str
    partitions: int
    #: How many events lie in the topic.
    events: int
    #: The measurement ends after so long, or at the topic's end.
    seconds: float
    #: An empty directory of the program's own.
    directory: str
    #: A name that no run had before.
    group: str
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_task() -> Task:
    """Return the task that stands on the command line."""
    return Task(**json.loads(sys.argv[1]))


class Meter:
    """Counts events from the end of the first batch to the end of the last.

    So neither the start of a program nor its first fetch counts, and a program
    that takes large batches is not given its first one for nothing.
    """

    def __init__(self, events: int, seconds: float) -> None:
        self._left = events
        self._seconds = seconds
        #: Counted so far, without the first batch.
        self.events = 0
        self._begin_s = 0.0
        self._begin_cpu_s = 0.0

    @property
    def drained(self) -> bool:
        """Whether the topic's last event is done with."""
        return self._left <= 0

    def add(self, events: int) -> bool:
        """Count events that are done with; True when it is time to finish."""
        self._left -= events
        now_s = time.perf_counter()
        if not self._begin_s:
            self._begin_s, self._begin_cpu_s = now_s, processor_s()
            return self._left <= 0
        self.events += events
        return self._left <= 0 or now_s - self._begin_s >= self._seconds

    def finish(self, check: Callable[[], dict[str, Any]] = dict) -> NoReturn:
        """Stop the clock, add what `check` finds, and end the process at once."""
        result = {
            "events": self.events,
            "seconds": time.perf_counter() - self._begin_s,
            "cpu_s": processor_s() - self._begin_cpu_s,
        }
        answer(result | check())


def helpers() -> Iterator[Path]:
    """The processes that this one started and that still run, as their folders of /proc."""
    for file in Path("/proc/self/task").glob("*/children"):
        yield from (Path("/proc", pid) for pid in file.read_text().split())


def processor_s() -> float:
    """Processor time of this process and of its helpers."""
    stats = (helper.joinpath("stat").read_text().rpartition(")")[2] for helper in helpers())
    ticks = sum(int(field) for stat in stats for field in stat.split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def answer(result: dict[str, Any]) -> NoReturn:
    """Print a result as the last line of standard output and end the process."""
    print(json.dumps(result), flush=True)
    os._exit(0)


def use_one_core() -> None:
    """Bind this process to one core; numerical libraries must be told of it before they load."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
