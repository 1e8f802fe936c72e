"""What each kind of fault does to a world, and how it is undone."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from time import monotonic

from kafka.errors import KafkaError

from pipeline.errors import KizashiError
from tests.chaos.plan import POINTS, Fault, Part
from tests.chaos.watch import Watch
from tests.chaos.world import World
from tests.support.kafka import alter

_KILLED_AT = "worker_killed_"
_LOOK_S = 0.05
#: So often an operator tries to mend what he broke while the broker was slow.
_MENDING_TRIES = 20


class Injector:
    """Carries out a plan, one thread for each part."""

    def __init__(self, world: World, watch: Watch) -> None:
        self._world = world
        self._watch = watch
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(len(Part), thread_name_prefix="faults")
        self._armed: set[str] = set()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads.shutdown()

    def run(self, plan: Iterable[Fault], begin_s: float) -> None:
        """Go through the plan; returns when all is healed. Raises what went wrong in doing so."""
        faults = list(plan)
        lanes = [
            self._threads.submit(self._go_through, [f for f in faults if f.part is part], begin_s)
            for part in Part
        ]
        while wait(lanes, timeout=_LOOK_S).not_done:
            self._see_points()
        for lane in lanes:
            lane.result()
        self._see_points()
        for point in self._armed:
            (self._world.points / point).unlink(missing_ok=True)

    def _go_through(self, faults: list[Fault], begin_s: float) -> None:
        for fault in faults:
            self._stopping.wait(max(0.0, begin_s + fault.at_s - monotonic()))
            if self._stopping.is_set():
                return
            self._world.note(f"{fault.kind} for {fault.lasting_s:.1f} s")
            self._apply(fault)
            self._world.note(f"{fault.kind} is over")

    def _apply(self, fault: Fault) -> None:
        if fault.kind.startswith(_KILLED_AT):
            self._kill_at(fault.kind.removeprefix(_KILLED_AT))
            return
        if fault.kind == "clickhouse_died_after_apply":
            self._await_applied()
        apply: Callable[[Fault], None] = getattr(self, f"_{fault.kind}")
        with self._in_force(fault):
            apply(fault)
        self.counts[fault.kind] += 1

    @contextmanager
    def _in_force(self, fault: Fault) -> Iterator[None]:
        """Tell the watch, of all but the receivers: events do not wait for those."""
        if fault.part is Part.RECEIVER:
            yield
            return
        self._watch.began()
        yield
        self._watch.ended(fault.kind)

    def _last(self, fault: Fault) -> None:
        self._stopping.wait(fault.lasting_s)

    # Workers

    def _kill_at(self, point: str) -> None:
        """Whoever comes to the point next dies there; what is rarely come to is not waited for."""
        if point in self._armed:
            return
        (self._world.points / point).touch()
        self._armed.add(point)
        if point not in POINTS[:7]:
            return
        deadline_s = monotonic() + 2 * self._world.session_s
        while point in self._armed and monotonic() < deadline_s:
            self._stopping.wait(_LOOK_S)

    def _see_points(self) -> None:
        """Count who has died at a point, and tell the watch: a fault it is from then on."""
        for point in sorted(self._armed):
            if not (self._world.points / point).exists():
                self._watch.began()
                self._watch.ended(f"{_KILLED_AT}{point}")
                self.counts[f"{_KILLED_AT}{point}"] += 1
                self._armed.discard(point)

    def _worker_killed(self, fault: Fault) -> None:
        slot = self._world.fleet.pick(fault.draw)
        self._world.fleet.hold_back(slot, fault.lasting_s)
        slot.worker.send(signal.SIGKILL)

    def _worker_terminated(self, fault: Fault) -> None:
        slot = self._world.fleet.pick(fault.draw)
        self._world.fleet.hold_back(slot, fault.lasting_s)
        slot.worker.send(signal.SIGTERM)

    def _worker_frozen(self, fault: Fault) -> None:
        slot = self._world.fleet.pick(fault.draw)
        slot.worker.send(signal.SIGSTOP)
        self._last(fault)
        slot.worker.send(signal.SIGCONT)

    def _worker_joined_and_left(self, fault: Fault) -> None:
        slot = self._world.fleet.add()
        self._last(fault)
        self._world.fleet.retire(slot)

    def _worker_away(self, fault: Fault) -> None:
        slot = self._world.fleet.pick(fault.draw)
        self._world.fleet.retire(slot)
        self._last(fault)
        slot.wanted = True

    # The broker

    def _broker_killed(self, fault: Fault) -> None:
        self._world.ground.broker.kill()
        self._last(fault)
        self._mend(self._world.ground.broker.restart)

    def _broker_paused(self, fault: Fault) -> None:
        self._world.ground.broker.pause()
        self._last(fault)
        self._world.ground.broker.resume()

    def _deadletters_away(self, fault: Fault) -> None:
        """The topic takes nothing: more replicas would have to be in sync than there are."""
        self._set_replicas(2)
        self._last(fault)
        self._set_replicas(1)

    def _set_replicas(self, count: int) -> None:
        kafka = self._world.kafka
        self._mend(lambda: alter(kafka, kafka.deadletter_topic, "min.insync.replicas", count))

    def _mend(self, step: Callable[[], object]) -> None:
        """Do what must be done, again and again: a machine under load takes its time."""
        for attempt in range(_MENDING_TRIES):
            try:
                step()
            except (KafkaError, KizashiError, AssertionError, RuntimeError):
                if attempt == _MENDING_TRIES - 1:
                    raise
                self._stopping.wait(0.5)
            else:
                return

    # ClickHouse

    def _clickhouse_killed(self, fault: Fault) -> None:
        self._world.ground.server.kill()
        self._last(fault)
        self._mend(self._world.ground.start_server)

    def _clickhouse_paused(self, fault: Fault) -> None:
        self._world.ground.server.pause()
        self._last(fault)
        self._world.ground.server.resume()

    def _await_applied(self) -> None:
        """Wait until ClickHouse has written an insert; it dies before it can say so."""
        proxy, died = self._world.ground.proxy, threading.Event()

        def end() -> None:
            self._world.ground.server.kill()
            died.set()

        proxy.on_applied = end
        while not died.wait(_LOOK_S) and not self._stopping.is_set():
            pass

    def _clickhouse_died_after_apply(self, fault: Fault) -> None:
        self._last(fault)
        self._mend(self._world.ground.start_server)

    def _clickhouse_refuses(self, fault: Fault) -> None:
        self._set_mode(fault, "refuse")

    def _clickhouse_hangs(self, fault: Fault) -> None:
        self._set_mode(fault, "hang")

    def _clickhouse_cut_after_apply(self, fault: Fault) -> None:
        self._set_mode(fault, "cut")

    def _clickhouse_too_many_parts(self, fault: Fault) -> None:
        self._set_mode(fault, "252")

    def _clickhouse_read_only(self, fault: Fault) -> None:
        self._set_mode(fault, "164")

    def _set_mode(self, fault: Fault, mode: str) -> None:
        self._world.ground.proxy.mode = mode
        self._last(fault)
        self._world.ground.proxy.mode = ""

    # Receivers

    def _pagerduty_429(self, fault: Fault) -> None:
        self._world.pagerduty.answer(429, retry_after="1")
        self._end_pagerduty(fault)

    def _pagerduty_500(self, fault: Fault) -> None:
        self._world.pagerduty.answer(500)
        self._end_pagerduty(fault)

    def _pagerduty_silent_after_accept(self, fault: Fault) -> None:
        self._world.pagerduty.hang(accept=True)
        self._end_pagerduty(fault)

    def _end_pagerduty(self, fault: Fault) -> None:
        self._last(fault)
        self._world.pagerduty.recover()

    def _grafana_429(self, fault: Fault) -> None:
        self._fail_grafana(fault, 429)

    def _grafana_500(self, fault: Fault) -> None:
        self._fail_grafana(fault, 500)

    def _grafana_lost_after_accept(self, fault: Fault) -> None:
        self._fail_grafana(fault, "lost")

    def _fail_grafana(self, fault: Fault, how: int | str) -> None:
        room = self._world.grafana
        with room.lock:
            room.faults.extend([how] * 1_000)
        self._last(fault)
        with room.lock:
            room.faults.clear()
