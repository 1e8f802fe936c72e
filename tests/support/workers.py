"""Workers as processes of their own, configured as a user would: by the environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ClickHouseSettings, KafkaSettings, TopicSettings
from pipeline.sinks.clickhouse import Store
from pipeline.topics import create_topics
from tests.support.clickhouse import ClickHouseServer, die_with_parent
from tests.support.kafka import KafkaServer, settings_for

__all__ = ["Stack", "WorkerProcess", "free_port", "start_stack"]

ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """One `kizashi worker`; its log is in `log_file`."""

    def __init__(
        self,
        environment: dict[str, str],
        log_file: Path,
        module: Sequence[str] = ("pipeline", "worker"),
    ) -> None:
        """`module` is what ``python -m`` runs, with its arguments."""
        self._environment = environment
        self._module = module
        self.log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._module],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status; minus the signal that ended it; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def rss_mb(self) -> float:
        """What it holds in memory; 0 when it does not run."""
        if self._process is None:
            return 0.0
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0.0
        _, _, held = status.partition("VmRSS:")
        return int(held.split()[0]) / 1024 if held else 0.0

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to stop; returns its exit status."""
        return self._end(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, and wait for nothing."""
        if self.running and self._process is not None:
            self._process.send_signal(number)

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


class Stack:
    """Kafka topics, a migrated database behind HTTP, and workers over them."""

    def __init__(self, kafka: KafkaSettings, server: ClickHouseServer, database: str, home: Path):
        self.kafka = kafka
        self.clickhouse = ClickHouseSettings(
            mode="http", host=server.host, port=server.port, database=database, timeout_s=10
        )
        self._home = home
        self._workers: list[WorkerProcess] = []
        self.extra: dict[str, str] = {}
        self.store = Store(self.clickhouse)
        self.store.migrate()
        create_topics(kafka)

    def worker(self) -> WorkerProcess:
        """Return a started worker."""
        log_file = self._home / f"worker-{len(self._workers)}.log"
        worker = WorkerProcess(self._environment(), log_file)
        self._workers.append(worker)
        worker.start()
        return worker

    def _environment(self) -> dict[str, str]:
        kafka, clickhouse = self.kafka, self.clickhouse
        return {
            "KIZASHI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "KIZASHI_KAFKA__ALLOW_PLAINTEXT": "true",
            "KIZASHI_KAFKA__GROUP_ID": kafka.group_id,
            "KIZASHI_KAFKA__EVENTS_TOPIC": kafka.events_topic,
            "KIZASHI_KAFKA__FEEDBACK_TOPIC": kafka.feedback_topic,
            "KIZASHI_KAFKA__SIGNALS_TOPIC": kafka.signals_topic,
            "KIZASHI_KAFKA__ALARMS_TOPIC": kafka.alarms_topic,
            "KIZASHI_KAFKA__DEADLETTER_TOPIC": kafka.deadletter_topic,
            "KIZASHI_KAFKA__SESSION_TIMEOUT_S": "6",
            "KIZASHI_KAFKA__TOPICS__SIGNALS_PARTITIONS": str(kafka.topics.signals_partitions),
            "KIZASHI_CLICKHOUSE__MODE": "http",
            "KIZASHI_WEB__PORT": "0",
            # A process more takes its time to come up.
            "KIZASHI_INGEST__PREPARERS": "0",
            "KIZASHI_CLICKHOUSE__HOST": clickhouse.host,
            "KIZASHI_CLICKHOUSE__PORT": str(clickhouse.port),
            "KIZASHI_CLICKHOUSE__DATABASE": clickhouse.database,
            "KIZASHI_CLICKHOUSE__TIMEOUT_S": "5",
            **self.extra,
        }

    def count(self, sql: str) -> int:
        return int(self.store.rows(sql)[0][0])

    def wait(self, reached: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until something is so; on a time-out the workers' logs are in the message."""
        deadline_s = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline_s:
                logs = "\n".join(w.log[-3_000:] for w in self._workers)
                raise AssertionError(f"{what}: not within {timeout_s} s\n{logs}")
            time.sleep(0.2)

    def close(self) -> None:
        for worker in self._workers:
            if worker.running:
                worker.kill()
        self.store.close()


@pytest.fixture
def start_stack(
    kafka: KafkaServer,
    topic_prefix: str,
    clickhouse_server: ClickHouseServer,
    database: str,
    tmp_path: Path,
) -> Iterator[Callable[..., Stack]]:
    """Return what starts the test's one stack, given `TopicSettings` and other settings of Kafka.

    No process is left behind.
    """
    with ExitStack() as at_end:

        def start(topics: TopicSettings, **settings: Any) -> Stack:
            chosen = settings_for(kafka.bootstrap_servers, topic_prefix, topics=topics, **settings)
            stack = Stack(chosen, clickhouse_server, database, tmp_path)
            at_end.callback(stack.close)
            return stack

        yield start


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
