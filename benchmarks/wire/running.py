"""Runs programs one after the other over one broker, and keeps what each of them reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.wire.environments import ROOT, install, python_of
from benchmarks.wire.table import LOADER, Program
from benchmarks.wire.task import Task
from pipeline.broker import Broker
from pipeline.config import KafkaSettings
from pipeline.topics import connect_admin

#: Events of a topic in a second of their own time.
RATE_PER_S = 1_000.0
MONITORS = 200
#: For what a program needs before and after it is measured.
PATIENCE_S = 240.0
_LOG_TAIL = 3_000


@dataclass(frozen=True)
class Topic:
    name: str
    partitions: int
    events: int


@dataclass(frozen=True)
class Run:
    """What one program did in one round; `result` is empty when it failed."""

    job: str
    name: str
    label: str
    round: int
    result: Mapping[str, Any]
    error: str = ""

    @property
    def per_s(self) -> float:
        """Events (or texts) a second."""
        seconds = self.result.get("seconds", 0.0)
        return self.result["events"] / seconds if seconds else 0.0


@dataclass
class Bench:
    """A broker, and a directory whose contents go when the run is over."""

    bootstrap: str
    directory: Path
    data: Path | None
    vectors: Path
    runs: list[Run] = field(default_factory=list)

    def topic(self, partitions: int, events: int, monitors: int = MONITORS) -> Topic:
        """Make a topic and fill it; the events' own time ends about now."""
        made = self.empty_topic(partitions, events)
        start_s = (time.time() - events / RATE_PER_S) // 60 * 60
        options = {
            "monitors": monitors,
            "rate_per_s": RATE_PER_S,
            "start_ms": round(start_s * 1000),
        }
        tell(f"loading {events:,} events, {monitors:,} monitors …")
        self.finish(self.start(LOADER, made, 0.0, options), PATIENCE_S + events / 1_000)
        return made

    def empty_topic(self, partitions: int, events: int) -> Topic:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        wanted = {"num_partitions": partitions, "replication_factor": 1}
        with connect_admin(KafkaSettings(bootstrap_servers=self.bootstrap)) as admin:
            admin.create_topics({name: wanted})
        return Topic(name, partitions, events)

    def drop(self, topic: Topic) -> None:
        """Delete a topic that is not needed any more: it is large."""
        with connect_admin(KafkaSettings(bootstrap_servers=self.bootstrap)) as admin:
            admin.delete_topics([topic.name])

    def measure(
        self,
        program: Program,
        topic: Topic,
        seconds: float,
        number: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> Run:
        """Run a program to its end and keep its result; a failure is kept as well."""
        process = self.start(program, topic, seconds, options)
        try:
            result, error = self.finish(process, seconds + PATIENCE_S), ""
            check(result)
        except ProgramFailed as failure:
            result, error = {}, str(failure)
            tell(f"{program.job}, {program.label}: {error}")
        run = Run(program.job, program.name, program.label, number, result, error)
        self.runs.append(run)
        if result:
            tell(f"{run.job}, {run.label}: {run.per_s:,.0f}/s")
        return run

    def start(
        self,
        program: Program,
        topic: Topic,
        seconds: float,
        options: Mapping[str, Any] | None = None,
    ) -> Started:
        """Start a program in a directory of its own, without any of our settings."""
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        shared = {"data": str(self.data) if self.data else None, "vectors": str(self.vectors)}
        task = Task(
            bootstrap=self.bootstrap,
            topic=topic.name,
            partitions=topic.partitions,
            events=topic.events,
            seconds=seconds,
            directory=str(directory),
            group=f"bench-{uuid.uuid4().hex[:8]}",
            options={**shared, **program.options, **(options or {})},
        )
        log = directory / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own arguments
                [
                    str(python_of(program.environment)),
                    "-m",
                    f"benchmarks.wire.programs.{program.module}",
                    task.to_json(),
                ],
                cwd=directory,
                env=_environment(program),
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        return Started(program, process, directory, log)

    def finish(self, started: Started, timeout_s: float) -> dict[str, Any]:
        """Wait for a program's result.

        Raises:
            ProgramFailed: it ended without one, or not in time.
        """
        try:
            output, _ = started.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.process.communicate()
            raise ProgramFailed(f"no result within {timeout_s:.0f} s{started.tail}") from None
        lines = output.decode(errors="replace").strip().splitlines()
        if started.process.returncode or not lines or not lines[-1].startswith("{"):
            raise ProgramFailed(f"status {started.process.returncode}{started.tail}")
        shutil.rmtree(started.directory, ignore_errors=True)
        result: dict[str, Any] = json.loads(lines[-1])
        return result


@dataclass(frozen=True)
class Started:
    program: Program
    process: subprocess.Popen[bytes]
    directory: Path
    log: Path

    @property
    def tail(self) -> str:
        """The end of the log, for an error's message."""
        text = self.log.read_text(errors="replace")[-_LOG_TAIL:]
        return f"\n{text}" if text else ""


class ProgramFailed(Exception):
    """A measured program gave no result; the message has the end of its log."""


def check(result: Mapping[str, Any]) -> None:
    """Refuse a result that counts events which are not in ClickHouse.

    Raises:
        ProgramFailed: fewer are stored than counted.
    """
    if "stored" in result and result["stored"] < result["events"]:
        raise ProgramFailed(f"{result['events']} events counted, {result['stored']} stored")


@contextmanager
def running(data: Path | None, vectors: Path) -> Iterator[Bench]:
    """Give a bench over a broker of its own."""
    install(str(LOADER.environment))
    with tempfile.TemporaryDirectory(prefix="kizashi-bench-") as directory, Broker() as broker:
        yield Bench(broker.bootstrap_servers, Path(directory), data, vectors)


def tell(message: str) -> None:
    """Say what is going on; standard output is for the result alone."""
    print(message, file=sys.stderr, flush=True)


def _environment(program: Program) -> dict[str, str]:
    """The user's own settings would make another worker of ours than the one that is described."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KIZASHI_")}
    one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    limits = {**one_core, **quiet} if program.job == "encode" else {"HF_HUB_OFFLINE": "1"}
    return {**kept, **limits, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
