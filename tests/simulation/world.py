"""The world of one run: time, faults, what is written down, and what must hold at every step.

1. Every record below the committed offset is stored, dead-lettered or a known repeat, at every
   instant; in the end all are; none is two of these, and none is stored twice.
2. Sums equal their recomputation: rollups those of the stored rows, signals too.
3. The detectors' state at a position is that of an undisturbed run, bit for bit.
4. Of each incident a person hears once, and once of its end.
5. A commit never goes back within a topic's life; what a worker holds is bounded.
6. When all is mended, everything comes to its end.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from detectors.bank import Bank, BankConfig
from pipeline.core.chunk import ChunkCounts, Columns, Record
from pipeline.errors import KizashiError, SinkUnavailable
from pipeline.transport import Committed
from schemas.control import decode_signals
from schemas.signal import SignalPacket, Source
from tests.simulation.broker import ALARMS, DEADLETTERS, EVENTS, SESSION_S, SIGNALS, Broker
from tests.simulation.clickhouse import ClickHouse
from tests.simulation.controls import Protocol
from tests.simulation.events import (
    DEADLETTERED,
    EVENTS_EACH,
    INCIDENTS,
    START_MS,
    STORED,
    plan_alarms,
    plan_events,
    plan_signals,
)
from tests.simulation.pagerduty import PagerDuty
from tests.simulation.process import Clock, Killed, Process
from tests.simulation.schedule import HORIZON_S, Blow, Schedule
from tests.simulation.worker import SNAPSHOT_S, Worker

#: A run that has not come to its end after so many callbacks never will.
STEPS_MAX = 200_000
RESTART_S = 0.7
#: The largest batch that a fetch hands over, in bytes.
BATCH_BYTES = 12 * 250


class Violation(AssertionError):
    """The protocol broke a promise."""


class World:
    """One run of one schedule."""

    def __init__(self, schedule: Schedule, protocol: Protocol | None = None) -> None:
        self.schedule = schedule
        self.protocol = protocol or Protocol()
        self.rng = random.Random(schedule.seed)
        self.clock = Clock()
        self.trace: list[tuple[float, str, str]] = []
        self.violation: Violation | None = None
        self.calm = False
        self.steps = 0
        self.epoch = 1
        self.broker = Broker(self)
        self.clickhouse = ClickHouse(self, self.protocol.window)
        self.pagerduty = PagerDuty()
        self.workers: list[Worker] = []
        self._gone: list[Worker] = []
        self._away: dict[str, float] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._late: list[Callable[[], None]] = []
        self._started = 0
        self._forget_books()

    # Books of what has become of the events of this epoch.

    def _forget_books(self) -> None:
        self.stored: dict[tuple[int, int], str] = {}
        self.refused: set[tuple[int, int]] = set()
        self.sent_letters: set[tuple[int, int]] = set()
        self.stored_ids: set[str] = set()
        self.rolled: Counter[tuple[int, str]] = Counter()
        self.seen_signals: dict[int, tuple[int, int]] = {}
        self.signalled: Counter[str] = Counter()
        #: The books as stored: of each chunk, by partition and first offset.
        self.booked: dict[tuple[int, int], ChunkCounts] = {}

    # Time and what fails.

    def now_s(self) -> float:
        return START_MS / 1000 + self.clock.now_s

    def now_ms(self) -> int:
        return round(self.now_s() * 1000)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    def read_epoch(self, topic: str) -> str:
        return f"e{self.epoch}"

    def count(self, source: Source, counts: ChunkCounts) -> None:
        if counts.read != counts.stored + counts.deadlettered + counts.duplicates:
            self.fail(f"the books of {source} do not balance: {counts}")

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.clock.now_s, who, what))

    def fail(self, what: str) -> None:
        self.note("world", f"VIOLATED: {what}")
        # Whoever runs into it may catch it: it is raised once more from the run itself.
        self.violation = self.violation or Violation(what)
        raise self.violation

    def chance(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability

    def is_away(self, system: str) -> bool:
        return not self.calm and self._away.get(system, -1.0) > self.clock.now_s

    def begin_call(self, process: Process, system: str, what: str) -> None:
        """A blocking call leaves the worker: it may fail before its effect, or die."""
        if self.is_away(system) or self.chance(self.schedule.fault):
            self.note(process.name, f"{what}: refused")
            raise SinkUnavailable(f"{system} is away")
        self._maybe_die(process, f"before {what}")

    def end_call(
        self, process: Process, what: str, apply: Callable[[], None], *, may_be_late: bool = False
    ) -> None:
        """It takes effect; the answer may be lost, and the effect may come after the time-out."""
        if may_be_late and self.chance(self.schedule.fault / 2):
            self.note(process.name, f"{what}: timed out, and will take effect later")
            self._late.append(apply)
            self.at(self.clock.now_s + self.rng.random() * 6.0, self._apply_late)
            raise SinkUnavailable("timed out")
        self.note(process.name, what)
        apply()
        if self.chance(self.schedule.fault):
            self.note(process.name, f"{what}: answer lost")
            raise SinkUnavailable("timed out")
        self._maybe_die(process, f"after {what}")

    def _apply_late(self) -> None:
        self.note("clickhouse", "a late insert takes effect")
        self._late.pop(0)()

    def _maybe_die(self, process: Process, what: str) -> None:
        if self.chance(self.schedule.fault / 4):
            self.note(process.name, f"dies {what}")
            raise Killed

    @asynccontextmanager
    async def calling(
        self,
        process: Process,
        system: str,
        what: str,
        error: type[KizashiError] = SinkUnavailable,
    ) -> AsyncIterator[None]:
        """A call over the network: the body is its effect."""
        if self.chance(self.schedule.fault / 4):
            # Between the decision and the deed is the worst time to be put to sleep.
            self._stop(process, self.rng.uniform(0.5, 8.0))
        await asyncio.sleep(self.rng.random() * 0.05)
        if self.is_away(system) or self.chance(self.schedule.fault):
            self.note(process.name, f"{what}: refused")
            raise error(f"{system} is away")
        self.note(process.name, what)
        yield
        await asyncio.sleep(self.rng.random() * 0.05)
        if self.chance(self.schedule.fault):
            self.note(process.name, f"{what}: answer lost")
            raise error("timed out")

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        self._agenda.append((when_s, len(self.trace) + len(self._agenda), call))
        self._agenda.sort(key=lambda each: each[:2])

    # The run.

    def run(self) -> None:
        """Play the schedule to its end.

        Raises:
            Violation: a promise was broken.
        """
        self._prepare()
        try:
            while not (self.calm and self._is_over()):
                self._step()
            self.check_end()
        finally:
            self.calm = True
            for worker in [*self.workers, *self._gone]:
                worker.process.bury()

    def _prepare(self) -> None:
        agents = self.schedule.agents
        self.broker.logs = {(SIGNALS, 0): [], (ALARMS, 0): [], (DEADLETTERS, 0): []}
        if "ingest" in agents:
            for partition in range(2):
                self._add_partition(partition)
        elif "detect" in agents:
            self.broker.logs[SIGNALS, 1] = []
            for partition in range(2):
                self._produce_slowly(SIGNALS, partition, plan_signals(partition))
        if "respond" in agents:
            self._produce_slowly(ALARMS, 0, plan_alarms())
        for blow in self.schedule.blows:
            self.at(blow.at_s, functools.partial(self._strike, blow))
        self.at(HORIZON_S, self._mend)
        for _ in range(self.schedule.workers):
            self._start_worker()

    def _add_partition(self, partition: int) -> None:
        self.broker.logs[EVENTS, partition] = []
        values = [each.value for each in plan_events(self.read_epoch(EVENTS), partition)]
        self._produce_slowly(EVENTS, partition, values)

    def _produce_slowly(self, topic: str, partition: int, values: Any) -> None:
        """Write the records one after the other, some at once and some with a pause between."""
        log, at_s = self.broker.logs[topic, partition], self.clock.now_s
        for value in values:
            at_s += self.rng.choice([0.0, 0.0, 0.05, 0.8])
            self.at(at_s, functools.partial(self._produce, topic, partition, value, log))

    def _produce(self, topic: str, partition: int, value: bytes | None, log: list[Record]) -> None:
        if self.broker.logs.get((topic, partition)) is log:
            self.broker.append(topic, partition, value)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > STEPS_MAX:
            self.fail("it does not come to its end")
        ready = [w for w in self.workers if w.process.runs and w.process.is_ready()]
        if not ready:
            self._pass_time()
            return
        worker = self.rng.choice(ready) if len(ready) > 1 else ready[0]
        process = worker.process
        for _ in range(self.rng.randint(1, 8)):
            process.step()
            if failed := self.violation or process.failed:
                raise failed
            if process.alive and self.chance(self.schedule.crash):
                self.note(process.name, "is killed")
                process.alive = False
            if not process.alive:
                self._lose(worker)
                return
            if not process.is_ready():
                return

    def _pass_time(self) -> None:
        times = [w.process.next_s() for w in self.workers if w.process.runs]
        times.append(self._agenda[0][0] if self._agenda else None)
        due = min((t for t in times if t is not None), default=None)
        if due is None:
            self.fail("nothing will ever happen again")
            return
        self.clock.now_s = max(self.clock.now_s, due)
        while self._agenda and self._agenda[0][0] <= self.clock.now_s:
            self._agenda.pop(0)[2]()

    # Workers come and go.

    def _start_worker(self) -> None:
        self._started += 1
        worker = Worker(self, f"worker {self._started}")
        self.note(worker.process.name, "starts")
        self.workers.append(worker)

    def _lose(self, worker: Worker) -> None:
        """It is gone: the broker notices when the session is over, the supervisor sooner."""
        self.workers.remove(worker)
        self._gone.append(worker)
        self.at(self.clock.now_s + SESSION_S, lambda: self.broker.leave(worker.client))
        self.at(self.clock.now_s + RESTART_S, self._start_worker)

    def _strike(self, blow: Blow) -> None:
        if self.calm:
            return
        self.note("world", str(blow))
        worker = self.workers[blow.worker % len(self.workers)] if self.workers else None
        if blow.what.endswith(" away"):
            self._away[blow.what.removesuffix(" away")] = self.clock.now_s + blow.for_s
        elif blow.what == "start another worker":
            if len(self.workers) < 4:
                self._start_worker()
        elif blow.what == "add a partition":
            if (EVENTS, 2) not in self.broker.logs:
                self._add_partition(2)
                self.broker.rebalance()
        elif blow.what == "create the topic anew":
            self._create_anew()
        elif blow.what == "rebalance":
            self.broker.rebalance()
        elif worker is not None:
            self._strike_worker(blow, worker)

    def _strike_worker(self, blow: Blow, worker: Worker) -> None:
        if blow.what == "stop":
            self._stop(worker.process, blow.for_s)
            return
        worker.process.alive = False
        self._lose(worker)
        if blow.what == "leave":
            self.broker.leave(worker.client)

    def _stop(self, process: Process, for_s: float) -> None:
        """As SIGSTOP does: it wakes up with all it believed, and hears only then that it is out."""
        worker = next((w for w in self.workers if w.process is process), None)
        if process.stopped or worker is None:
            return
        process.stopped = True
        self.note(process.name, f"is stopped for {for_s:.1f} s")

        def put_out() -> None:
            if process.stopped:
                self.broker.leave(worker.client)

        def wake() -> None:
            process.stopped = False
            process.woke_s = self.clock.now_s
            if worker.client not in self.broker.members and process.alive:
                self.note(process.name, "wakes up")
                process.call_later(self.rng.random() * 0.5, self.broker.join, worker.client)

        self.at(self.clock.now_s + SESSION_S, put_out)
        self.at(self.clock.now_s + for_s, wake)

    def _create_anew(self) -> None:
        """With every worker down: what is in flight would else be committed to the new topic."""
        if self.epoch > 1:
            return
        for worker in list(self.workers):
            worker.process.alive = False
            self._lose(worker)
            self.broker.leave(worker.client)
        self.epoch += 1
        self._forget_books()
        partitions = [p for topic, p in self.broker.logs if topic == EVENTS]
        for partition in partitions:
            self.broker.committed.pop((EVENTS, partition), None)
            self._add_partition(partition)

    def _mend(self) -> None:
        self.note("world", "all is mended")
        self.calm = True
        for worker in self.workers:
            if worker.process.stopped:
                worker.process.stopped = False
                worker.process.woke_s = self.clock.now_s
                if worker.client not in self.broker.members:
                    self.broker.join(worker.client)
        if "detect" in self.schedule.agents:
            self._go_on_signalling()

    def _go_on_signalling(self) -> None:
        """A snapshot is taken when a signal comes: traffic goes on, here with repeats."""
        for (topic, partition), log in self.broker.logs.items():
            if topic == SIGNALS and log:
                self.broker.append(topic, partition, log[-1].value)
        if not (self._has_ingested() and self._has_detected()):
            self.at(self.clock.now_s + 1.5 * SNAPSHOT_S, self._go_on_signalling)

    # What must hold.

    def note_insert(self, table: str, columns: Columns | pa.Table, token: str) -> None:
        """A block was inserted whose token was not known."""
        _, epoch, partition, _ = token.split(":")
        here = epoch == self.read_epoch(EVENTS)
        if table == "requests":
            offsets = columns["offset"].to_pylist()
            ids = columns["event_id"].to_pylist()
            known = self.clickhouse.ids.setdefault((epoch, int(partition)), {})
            known |= dict(zip(offsets, ids, strict=True))
            if here:
                self._note_stored(int(partition), offsets, ids)
        elif table == "deadletters":
            self._note_deadletters(int(partition), columns, epoch)
        elif table == "rollup_1m" and here:
            for minute, model, requests in _read_rollup(columns):
                self.rolled[minute, model] += requests
        elif table == "chunk_books" and here:
            counts = ChunkCounts(*(columns[name][0] for name in ChunkCounts._fields))
            self.booked[int(partition), columns["first_offset"][0]] = counts

    def _note_stored(self, partition: int, offsets: list[int], ids: list[str]) -> None:
        planned = plan_events(self.read_epoch(EVENTS), partition)
        for offset, event_id in zip(offsets, ids, strict=True):
            if planned[offset].fate != STORED:
                self.fail(f"{partition}/{offset} is stored, and must be {planned[offset].fate}")
            if (partition, offset) in self.stored or event_id in self.stored_ids:
                self.fail(f"{partition}/{offset} ({event_id}) is stored twice")
            self.stored[partition, offset] = event_id
            self.stored_ids.add(event_id)

    def _note_deadletters(self, partition: int, columns: Columns, epoch: str) -> None:
        planned = plan_events(epoch, partition)
        read: Any = [columns[name] for name in ("offset", "reason", "event_id")]
        for offset, reason, event_id in zip(*read, strict=True):
            if planned[offset].fate != DEADLETTERED:
                self.fail(f"{partition}/{offset} is refused ({reason})")
            if event_id:
                self.clickhouse.ids.setdefault((epoch, partition), {})[offset] = event_id
            if epoch == self.read_epoch(EVENTS):
                self.refused.add((partition, offset))

    def note_record(self, topic: str, record: Record) -> None:
        """Something was published: readers pass over signals whose position they have seen."""
        if topic == DEADLETTERS:
            partition, offset = (record.value or b"").split(b"/")
            self.sent_letters.add((int(partition), int(offset)))
        elif topic == SIGNALS and "ingest" in self.schedule.agents:
            packet = decode_signals(record.value or b"")
            assert isinstance(packet, SignalPacket)
            self._note_signals(packet)

    def _note_signals(self, packet: SignalPacket) -> None:
        source = packet.source
        seen = self.seen_signals.get(source.partition, (-1, -1))
        position = (source.last_offset, packet.part)
        if source.epoch != self.read_epoch(EVENTS) or position <= seen:
            return
        if source.last_offset > seen[0] >= source.first_offset:
            self.fail(f"the signals of {source} overlap with what came before")
        self.seen_signals[source.partition] = position
        for counts in packet.counts:
            self.signalled[counts.values[0]] += counts.columns["requests"]

    def check_commit(self, tp: tuple[str, int], before: Committed, after: Committed) -> None:
        if (before.offset or 0) > (after.offset or 0):
            self.fail(f"the commit of {tp} went back from {before} to {after}")
        if tp[0] == EVENTS:
            for offset in range(before.offset or 0, after.offset or 0):
                self._check_done(tp[1], offset)

    def _check_done(self, partition: int, offset: int) -> None:
        planned = plan_events(self.read_epoch(EVENTS), partition)[offset]
        where = (partition, offset)
        if planned.fate == STORED and where not in self.stored:
            self.fail(f"{partition}/{offset} is committed and not stored")
        if planned.fate == DEADLETTERED and where not in self.refused & self.sent_letters:
            self.fail(f"{partition}/{offset} is committed and not dead-lettered")

    def check_held(self, held: int, limit: int) -> None:
        if held > limit + BATCH_BYTES:
            self.fail(f"{held} bytes are held, at most {limit} and one fetch may be")

    def check_snapshot(self, partition: int, position: int, state: bytes) -> None:
        if "ingest" not in self.schedule.agents and state != _undisturbed(partition, position)[0]:
            self.fail(f"the detectors' state at {partition}/{position} is not as undisturbed")

    def check_pages(self) -> None:
        if again := [key for key, n in self.pagerduty.pages.items() if n > 1]:
            self.fail(f"paged again: {again}")

    def _is_over(self) -> bool:
        if self._agenda:
            return False
        return self._has_ingested() and self._has_detected() and self._has_told()

    def _has_ingested(self) -> bool:
        committed = self.broker.committed
        return all(
            committed.get(tp) == Committed(len(log), "")
            for tp, log in self.broker.logs.items()
            if tp[0] == EVENTS
        )

    def _has_detected(self) -> bool:
        if "detect" not in self.schedule.agents:
            return True
        logs = {p: log for (topic, p), log in self.broker.logs.items() if topic == SIGNALS}
        snapshots = self.clickhouse.snapshots
        # The last two may be repeats that came since.
        return all(
            snapshots.get(("e", p), (-1, b""))[0] >= len(log) - 3 for p, log in logs.items() if log
        )

    def _has_told(self) -> bool:
        if "respond" not in self.schedule.agents:
            return True
        return sum(self.pagerduty.resolves.values()) >= INCIDENTS and all(
            n.sent_ms is not None for n in self.clickhouse.notifications.values()
        )

    def check_end(self) -> None:
        """All is done: what is written down must be what was sent, once."""
        if "ingest" in self.schedule.agents:
            self._check_events()
        if "detect" in self.schedule.agents:
            self._check_detected()
        if "respond" in self.schedule.agents:
            told = (self.pagerduty.pages, self.pagerduty.resolves)
            once = Counter({f"inc-a{i}": 1 for i in range(INCIDENTS)})
            if told != (once, once):
                self.fail(f"pages and resolves: {told}")

    def _check_events(self) -> None:
        partitions = [p for topic, p in self.broker.logs if topic == EVENTS]
        for partition in partitions:
            for offset in range(EVENTS_EACH):
                self._check_done(partition, offset)
        recomputed = Counter(_minute_and_model(event_id) for event_id in self.stored.values())
        if self.rolled != recomputed:
            self.fail(f"rollups {self.rolled}, recomputed {recomputed}")
        by_model = Counter[str]()
        for (_, model), n in recomputed.items():
            by_model[model] += n
        if self.signalled != by_model:
            self.fail(f"signals {self.signalled}, stored {by_model}")
        booked = functools.reduce(ChunkCounts.plus, self.booked.values(), ChunkCounts())
        read = len(partitions) * EVENTS_EACH
        if (booked.read, booked.stored, booked.deadlettered) != (
            read,
            len(self.stored),
            len(self.refused),
        ):
            self.fail(f"the books say {booked}")

    def _check_detected(self) -> None:
        for (_, partition), (position, state) in self.clickhouse.snapshots.items():
            log = self.broker.logs[SIGNALS, partition]
            if state != _replay(tuple(r.value or b"" for r in log[: position + 1]))[0]:
                self.fail(f"the detectors' state of partition {partition} is not as undisturbed")
        if "ingest" not in self.schedule.agents:
            expected = {a for p in range(2) for a in _undisturbed(p, -1)[1]}
            if self.clickhouse.alarms != expected:
                self.fail(f"alarms {self.clickhouse.alarms}, undisturbed {expected}")


def _read_rollup(columns: Any) -> list[tuple[int, str, int]]:
    models = columns["request_model"].decode()
    minutes = [int(m) for m in columns["minute"]]
    return list(zip(minutes, models, map(int, columns["requests"]), strict=True))


@functools.cache
def _minute_and_model(event_id: str) -> tuple[int, str]:
    at = random.Random(event_id)
    time_s, model = START_MS // 1000 + at.randint(0, 150), f"model-{at.randint(0, 1)}"
    return time_s // 60 * 60, model


@functools.cache
def _undisturbed(partition: int, position: int) -> tuple[bytes, frozenset[tuple[str, str]]]:
    """State and alarms after the signal at a position; -1 is the last."""
    values = plan_signals(partition)
    return _replay(values if position < 0 else values[: position + 1])


@functools.cache
def _replay(values: tuple[bytes, ...]) -> tuple[bytes, frozenset[tuple[str, str]]]:
    bank, alarms = Bank(BankConfig()), set()
    for value in values:
        packet = decode_signals(value)
        assert isinstance(packet, SignalPacket)
        alarms |= {(a.alarm_id, a.transition.value) for a in bank.update(packet).alarms}
    return bank.snapshot(), frozenset(alarms)
