"""Our worker as it is, with a counter at its books and a clock at its detectors.

Options: ``config`` (sections laid over the defaults; a section that this version
does not have is left out), ``mode`` (`drain` or `paced`), ``warm_up_s``.

`drain` works a topic off and ends when the last event is stored and its signals
are in the detectors. `paced` runs for `seconds` beside a producer and reports

* ``latency_s``: the time from an event to its verdict. An event's verdict is
  stored when the detectors have taken in the packet that counts it: whatever
  that changes, a verdict of a new minute or an alarm, is in ClickHouse by then.
  A packet says when its first and last event were; those between are taken to
  be spread evenly, and every packet weighs as many events as it counts.
* ``rss_mb``: resident memory of the worker and its helpers, one sample a second. What they
  share counts for each of them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faust
import numpy as np
from typing_extensions import override

from benchmarks.wire.task import Meter, Task, answer, helpers, read_task
from pipeline.app import TopicPublisher, build_app, build_faust
from pipeline.build import build_letter_policy
from pipeline.config import Config, load_config
from pipeline.core.chunk import ChunkCounts
from pipeline.process import settle_process
from pipeline.sinks.clickhouse import Store
from pipeline.topics import create_topics
from pipeline.transport import Batch, to_batch
from pipeline.worker import WorkerState
from schemas.signal import SignalPacket, Source, decode_packet

_QUANTILES = (0.5, 0.9, 0.99)
#: Points at which the events of a packet are taken to be.
_POINTS = np.linspace(0.0, 1.0, 9)
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class CountingPublisher(TopicPublisher):
    """Counts the packets that are on their way to the detectors."""

    packets = 0

    @override
    async def publish_signals(self, partition: int, packets: Sequence[SignalPacket]) -> None:
        self.packets += len(packets)
        await super().publish_signals(partition, packets)


class Drain:
    """Ends the process when everything is stored and detected, or when the time is up."""

    def __init__(self, task: Task) -> None:
        self._meter = Meter(task.events, task.seconds)
        self.state: MeasuredState
        self._detected = 0

    def stored(self, events: int) -> None:
        due = self._meter.add(events)
        if due and not self._meter.drained:
            self._meter.finish(self.state.check)
        self._finish_when_done()

    def detected(self, batch: Batch) -> None:
        self._detected += len(batch.records)
        self._finish_when_done()

    def _finish_when_done(self) -> None:
        if self._meter.drained and self._detected >= self.state.published:
            self._meter.finish(self.state.check)


class Paced:
    """Watches latency and memory for a while, after a time to warm up."""

    def __init__(self, task: Task) -> None:
        self._seconds = task.seconds
        self._warm_up_s = float(task.options.get("warm_up_s", 20.0))
        self.state: MeasuredState
        self._begin_s = 0.0
        self._events = 0
        self._latencies_s: list[float] = []
        self._weights: list[float] = []
        self._rss: list[tuple[float, float]] = []

    def stored(self, events: int) -> None:
        self._events += events
        if not self._begin_s:
            self._begin_s = time.time()
            self._sampling = asyncio.get_running_loop().create_task(self._sample())

    def detected(self, batch: Batch) -> None:
        now_ms = time.time() * 1000
        for record in batch.records:
            packet = decode_packet(record.value or b"")
            for counts in packet.counts:
                warm = counts.first_time_ms / 1000 > self._begin_s + self._warm_up_s
                if counts.grouping == 0 and warm and self._begin_s:
                    span_ms = counts.last_time_ms - counts.first_time_ms
                    ages_ms = now_ms - counts.first_time_ms - _POINTS * span_ms
                    self._latencies_s += (ages_ms / 1000).tolist()
                    self._weights += [counts.requests / len(_POINTS)] * len(_POINTS)

    async def _sample(self) -> None:
        while (elapsed_s := time.time() - self._begin_s) < self._seconds:
            self._rss.append((round(elapsed_s, 1), _rss_mb()))
            await asyncio.sleep(1.0)
        self._finish()

    def _finish(self) -> None:
        latencies_s, weights = np.array(self._latencies_s), np.array(self._weights)
        order = np.argsort(latencies_s)
        share = np.cumsum(weights[order]) / max(weights.sum(), 1.0)
        answer(
            {
                "events": self._events,
                "seconds": time.time() - self._begin_s,
                "latency_s": {
                    f"p{round(q * 100)}": float(latencies_s[order][np.searchsorted(share, q)])
                    for q in _QUANTILES
                    if len(order)
                },
                "rss_mb": self._rss,
                **self.state.check(),
            }
        )


class MeasuredState(WorkerState):
    """The worker's state, which tells an observer what has been stored and detected."""

    def __init__(
        self, config: Config, app: Any, publisher: CountingPublisher, observer: Drain | Paced
    ) -> None:
        self._observer = observer
        self._counting = publisher
        observer.state = self
        super().__init__(config, app, publisher)

    @property
    def published(self) -> int:
        return self._counting.packets

    @override
    def _count(self, source: Source, counts: ChunkCounts) -> None:
        super()._count(source, counts)
        self._observer.stored(counts.read)

    @override
    async def detect(self, message: Any) -> None:
        await super().detect(message)
        self._observer.detected(to_batch(message))

    def check(self) -> dict[str, Any]:
        """Return how many requests are stored, and how many were counted by route."""
        return self.executor.submit(self._look).result()

    def _look(self) -> dict[str, Any]:
        counted = "SELECT sum(requests) FROM rollup_1m WHERE grouping = 'route'"
        return {
            "stored": self.store.rows("SELECT count() FROM requests")[0][0],
            "counted": int(self.store.rows(counted)[0][0]),
            "embeds": embeds(self.config),
        }


def _rss_mb() -> float:
    processes = (Path("/proc/self"), *helpers())
    pages = sum(int((each / "statm").read_text().split()[1]) for each in processes)
    return round(pages * _PAGE_MB, 1)


def embeds(config: Config) -> bool:
    """Return whether texts are embedded: only then is it the whole job."""
    encoder = getattr(config, "encoder", None)
    return getattr(encoder, "kind", "none") != "none"


def configure(task: Task) -> Config:
    """Return the defaults with the task's sections, and names of this run's own."""
    wanted = task.options.get("config", {})
    sections = {name: dict(v) for name, v in wanted.items() if name in Config.model_fields}
    sections["kafka"] = sections.get("kafka", {}) | {
        "bootstrap_servers": task.bootstrap,
        "group_id": task.group,
        "events_topic": task.topic,
        "feedback_topic": f"{task.group}.feedback",
        "signals_topic": f"{task.group}.signals",
        "alarms_topic": f"{task.group}.alarms",
        "deadletter_topic": f"{task.group}.deadletter",
    }
    sections["clickhouse"] = {"mode": "embedded", "path": f"{task.directory}/store"}
    return load_config(None, sections)


def main() -> None:
    task = read_task()
    config = configure(task)
    store = Store(config.clickhouse)
    store.migrate()
    store.close()
    create_topics(config.kafka)
    app = build_faust(config.kafka)
    observer = Paced(task) if task.options.get("mode") == "paced" else Drain(task)
    publisher = CountingPublisher(app, config.kafka, build_letter_policy(config))
    state = MeasuredState(config, app, publisher, observer)
    worker = faust.Worker(
        build_app(app, state), loglevel="WARNING", redirect_stdouts=False, stdout=sys.stderr
    )
    # As `run_worker` does.
    settle_process()
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
