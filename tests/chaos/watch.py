"""Looks on while a run goes wrong: lag, commits that go back, and how long recovery takes."""

from __future__ import annotations

import threading
import time
from typing import Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from pipeline.config import KafkaSettings
from pipeline.topics import client_settings

_SAMPLE_S = 0.5
_ANSWER_MS = 3_000


class Offsets:
    """The end of every partition of a topic, and what the group has committed."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._consumer = KafkaConsumer(
            **client_settings(settings),
            group_id=settings.group_id,
            enable_auto_commit=False,
            request_timeout_ms=_ANSWER_MS,
            # Below the request's own, as the client wants it; we join no group.
            session_timeout_ms=_ANSWER_MS - 500,
            heartbeat_interval_ms=500,
        )
        found = self._consumer.partitions_for_topic(topic) or ()
        self._partitions = [TopicPartition(topic, each) for each in sorted(found)]

    def ends(self) -> dict[int, int]:
        found = self._consumer.end_offsets(self._partitions, timeout_ms=_ANSWER_MS)
        return {tp.partition: end for tp, end in found.items()}

    def committed(self) -> dict[int, int]:
        found = {
            tp.partition: self._consumer.committed(tp, timeout_ms=_ANSWER_MS)
            for tp in self._partitions
        }
        return {partition: offset or 0 for partition, offset in found.items()}

    def close(self) -> None:
        self._consumer.close(autocommit=False)


class Recoveries:
    """How long it takes from the end of a fault until all that had been written by then is done.

    Counted where no other fault is in force; where the next one comes before that, not at all.
    """

    def __init__(self) -> None:
        self._in_force = 0
        self._healed: list[tuple[str, float]] = []
        #: (kind, when it was over, what had been written by then).
        self._waiting: list[tuple[str, float, dict[int, int]]] = []
        self.taken: dict[str, list[float]] = {}

    def begin(self) -> None:
        """A fault has begun: what was recovering is no longer left alone."""
        self._in_force += 1
        self._waiting.clear()
        self._healed.clear()

    def end(self, kind: str, now_s: float) -> None:
        self._in_force -= 1
        if not self._in_force:
            self._healed.append((kind, now_s))

    def sample(self, committed: dict[int, int], ends: dict[int, int], now_s: float) -> None:
        """Take in what is committed and written, by partition, at `now_s`."""
        waiting, self._waiting = self._waiting, []
        for kind, ended_s, written in waiting:
            if all(committed[p] >= end for p, end in written.items()):
                self.taken.setdefault(kind, []).append(now_s - ended_s)
            else:
                self._waiting.append((kind, ended_s, written))
        self._waiting += [(kind, ended_s, ends) for kind, ended_s in self._healed]
        self._healed.clear()


class Watch:
    """Samples offsets in a thread of its own. Use as a context manager."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._offsets = Offsets(settings, settings.events_topic)
        self._committed: dict[int, int] = {}
        self._recoveries = Recoveries()
        self._stale = False
        self.samples = 0
        self.commits_back = 0
        self.lag = -1
        self.lag_max = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._offsets.close()

    @property
    def recoveries(self) -> dict[str, list[float]]:
        return self._recoveries.taken

    def began(self) -> None:
        with self._lock:
            self._recoveries.begin()

    def ended(self, kind: str) -> None:
        with self._lock:
            self._recoveries.end(kind, time.monotonic())

    def wait_for_lag_zero(self, timeout_s: float) -> bool:
        """Wait for a sample, begun from now on, in which nothing is behind."""
        begun, deadline_s = self.samples, time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            # The first to come may have begun before.
            if self.lag == 0 and self.samples >= begun + 2:
                return True
            self._closing.wait(_SAMPLE_S / 5)
        return False

    def reconnect(self) -> None:
        """Read anew which partitions there are, and what is committed of them."""
        with self._lock:
            self._committed, self.lag = {}, -1
            self._stale = True

    def _run(self) -> None:
        while not self._closing.wait(_SAMPLE_S):
            try:
                if not self._stale:
                    self._sample()
            except (KafkaError, AssertionError, OSError):
                # The broker is away, and meant to be; a client that it left may not come back.
                self._stale = True
            if self._stale:
                self._reconnect()

    def _reconnect(self) -> None:
        try:
            offsets = Offsets(self._settings, self._settings.events_topic)
        except (KafkaError, OSError):
            return
        self._offsets.close()
        self._offsets, self._stale = offsets, False

    def _sample(self) -> None:
        # Commits first: what is written between the two must not look done.
        committed, ends = self._offsets.committed(), self._offsets.ends()
        if not ends or committed.keys() != ends.keys():
            raise KafkaError("no answer for some partitions")
        now_s = time.monotonic()
        with self._lock:
            self.samples += 1
            before, self._committed = self._committed, committed
            self.commits_back += sum(committed[p] < o for p, o in before.items())
            self.lag = sum(end - committed[p] for p, end in ends.items())
            self.lag_max = max(self.lag_max, self.lag)
            self._recoveries.sample(committed, ends, now_s)
