"""One run: load, faults, healing, and what the books say when all is quiet."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.producing import produce
from tests.chaos.books import (
    balance_control,
    balance_detectors,
    balance_events,
    balance_incidents,
)
from tests.chaos.events import Load
from tests.chaos.faults import Injector
from tests.chaos.plan import Fault, draw_plan
from tests.chaos.watch import Offsets, Watch
from tests.chaos.world import SNAPSHOT_S, Ground, World, opened

#: Numbers that show that the workers are up, before anything fails.
HEAD = 100
#: Numbers held back until all is quiet, and sent in so many pieces: they bring the last snapshots.
TAIL, PIECES = 400, 20
#: Seconds of the events' own time that pass in one of ours, at most.
_SPEED = 10.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Settings:
    """What kind of run it is."""

    seed: int
    seconds: float
    rate: float
    session_s: float
    workers: int
    #: Names of `tests.chaos.plan.KINDS`.
    kinds: tuple[str, ...]
    #: How long is waited for quiet, at each step of the end.
    patience_s: float = 300.0
    #: Configuration of the workers besides what every world has: section → name → value.
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def load(self) -> Load:
        speed = min(_SPEED, max(1.0, 3_600 / self.seconds))
        count = HEAD + round(self.seconds * self.rate) + TAIL
        # Their own time ends an hour ago: what an incident waits for has then always passed.
        start_s = time.time() - 3_600 - count * speed / self.rate
        episodes = max(1, round(self.seconds / 90))
        return Load(count, self.rate, start_s, speed, episodes, HEAD, TAIL)

    def plan(self) -> list[Fault]:
        return draw_plan(self.seed, self.seconds, self.session_s, self.kinds)


class Troubled(AssertionError):
    """A run that did not come to rest; the message has the ends of the logs."""


class Run:
    """A world under load, from its first event to its last. Use `running`."""

    def __init__(self, world: World, watch: Watch, injector: Injector, settings: Settings) -> None:
        self.world = world
        self.watch = watch
        self.injector = injector
        self.settings = settings
        self.load = settings.load()
        #: The producer's own report.
        self.report: dict[str, Any] = {"sent": 0, "failed": 0, "seconds": 1.0}
        #: From the end of the last fault until nothing was behind.
        self.recovery_s = 0.0

    def begin(self) -> None:
        """Wait until the workers take in events."""
        self.send(0, self.load.head)
        stored = f"SELECT count() FROM {self.world.table}"
        self.wait(
            "the first events",
            lambda: self.watch.lag == 0 and self.world.store.rows(stored) > [(0,)],
        )

    def strain(self) -> None:
        """Produce, carry the plan out, heal, and wait until nothing is behind."""
        producer = self.world.produce(self.load)
        try:
            self.injector.run(self.settings.plan(), time.monotonic())
            patience_s = self.settings.seconds + self.settings.patience_s
            said, _ = producer.communicate(timeout=patience_s)
        finally:
            producer.kill()
        if not said:
            raise Troubled(f"the producer said nothing\n{self.world.logs()}")
        self.report = json.loads(said.splitlines()[-1])
        # Faults that were over before the last event have nothing to recover from.
        begin_s = time.monotonic()
        self.wait_for_lag_zero()
        self.recovery_s = time.monotonic() - begin_s

    def settle(self) -> None:
        """Wait until all that was found has been told, and is in the last snapshots."""
        first, step = self.load.count - self.load.tail, self.load.tail // PIECES
        with closing(Offsets(self.world.kafka, self.world.kafka.signals_topic)) as signals:
            ends = signals.ends()
            # A snapshot is taken with the first signal that comes when one is due.
            while any(signals.committed()[p] < end for p, end in ends.items()):
                if first >= self.load.count:
                    raise Troubled(f"the detectors have not come to {ends}\n{self.world.logs()}")
                time.sleep(SNAPSHOT_S)
                self.send(first, first + step)
                first += step
                self.wait_for_lag_zero()
        self.send(first, self.load.count)
        self.wait_for_lag_zero()
        with closing(Offsets(self.world.kafka, self.world.kafka.alarms_topic)) as alarms:
            self.wait("all alarms", lambda: alarms.committed() == alarms.ends())
        self.wait("the ends of all incidents", self._is_told)

    def _is_told(self) -> bool:
        books = balance_incidents(self.world.store, self.world.pagerduty, self.world.grafana)
        self.world.note(str(books))
        return books.incidents > 0 and books.open == 0 and books.wrong == 0

    def balance(self) -> dict[str, Any]:
        """Stop the workers and return what is known of the run."""
        world, fleet, watch = self.world, self.world.fleet, self.watch
        ended_well = fleet.stop(4 * self.settings.session_s)
        events = balance_events(world.store, world.kafka, self.load)
        detectors = balance_detectors(world.store, world.config)
        incidents = balance_incidents(world.store, world.pagerduty, world.grafana)
        recoveries = {kind: max(taken) for kind, taken in sorted(watch.recoveries.items())}
        return {
            "events": self.load.count,
            "faults": dict(sorted(self.injector.counts.items())),
            "faults_total": self.injector.counts.total(),
            "lost": events.lost,
            "doubled": events.doubled,
            "strange": events.strange,
            "state_differs": detectors.partitions_differ + detectors.alarms_differ,
            "recovery_max_s": round(max([self.recovery_s, *recoveries.values()]), 1),
            "recovery_last_s": round(self.recovery_s, 1),
            "recovery_s": {kind: round(s, 1) for kind, s in recoveries.items()},
            "produce_failed": self.report["failed"],
            "produced_per_s": round(self.report["sent"] / self.report["seconds"]),
            "dead_lettered": events.dead_lettered,
            "rollups_differ": list(events.rollups_differ),
            "signals": detectors.packets,
            "alarms": detectors.alarms,
            "incidents": incidents.incidents,
            "incidents_open": incidents.open,
            "pages_wrong": incidents.wrong,
            "commits_back": watch.commits_back,
            "lag_max": watch.lag_max,
            "rss_max_mb": round(fleet.rss_max_mb),
            "rss_growth_mb": round(fleet.rss_growth_mb()),
            "worker_starts": fleet.starts,
            "worker_crashes": fleet.crashes,
            "starts_refused": fleet.refusals,
            "workers_ended_well": ended_well,
        }

    def send(self, first: int, end: int) -> None:
        """Produce these numbers at once, and wait until the broker has them."""
        produce(self.world.kafka, (line for _, line in self.load.lines(first, end)))

    def wait_for_lag_zero(self) -> None:
        """Wait until nothing is behind. Raises Troubled."""
        if not self.watch.wait_for_lag_zero(self.settings.patience_s):
            raise Troubled(f"{self.watch.lag} events are still behind\n{self.world.logs()}")

    def reconnect(self) -> None:
        """The topic is not what it was: look on anew."""
        self.watch.reconnect()

    def wait(self, what: str, reached: Callable[[], bool]) -> None:
        """Wait until something is so. Raises Troubled."""
        deadline_s = time.monotonic() + self.settings.patience_s
        while not reached():
            if time.monotonic() > deadline_s:
                patience_s = self.settings.patience_s
                raise Troubled(f"{what}: not within {patience_s:g} s\n{self.world.logs()}")
            time.sleep(_POLL_S)


@contextmanager
def running(on: Ground, settings: Settings, control: str = "") -> Iterator[Run]:
    """Give a run whose workers are up."""
    with ExitStack() as stack:
        world = stack.enter_context(
            opened(on, settings.session_s, settings.workers, control, settings.sections)
        )
        watch = stack.enter_context(Watch(world.kafka))
        injector = stack.enter_context(Injector(world, watch))
        run = Run(world, watch, injector, settings)
        run.begin()
        yield run


def run_main(on: Ground, settings: Settings) -> dict[str, Any]:
    """Run our workers under faults; returns what is known of the run.

    A run that did not come to rest says so under ``troubled``; what was not done by then is lost.

    Raises:
        Troubled: the workers did not even come up.
    """
    with running(on, settings) as run:
        try:
            run.strain()
            run.settle()
        except Troubled as trouble:
            said = str(trouble)
            print(said, file=sys.stderr, flush=True)
            return run.balance() | {"troubled": said.splitlines()[0]}
        return run.balance()


#: Control → the kinds of fault that it has no answer to.
CONTROLS = {
    "stock": ("clickhouse_refuses", "clickhouse_too_many_parts", "clickhouse_read_only"),
    "undeclared": ("worker_killed_after-insert", "worker_killed_between-tables"),
    "no_window": ("clickhouse_cut_after_apply", "worker_killed_after-insert"),
}


def run_control(on: Ground, settings: Settings, control: str) -> dict[str, Any]:
    """Run workers that must fail; returns what they lost and doubled.

    Raises:
        Troubled: they did not come to rest, so that nothing can be said of them.
    """
    with running(on, settings, control) as run:
        run.strain()
        run.send(run.load.count - run.load.tail, run.load.count)
        run.wait_for_lag_zero()
        lost, doubled = balance_control(run.world.store, run.world.table, run.load)
        faults = dict(sorted(run.injector.counts.items()))
        return {"lost": lost, "doubled": doubled, "faults": faults}
