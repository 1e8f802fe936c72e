"""Everything that a run consists of: a ground that worlds share, and what each has of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.broker import Broker
from pipeline.config import ClickHouseSettings, Config, TopicSettings, load_config
from pipeline.sinks.clickhouse import Store
from pipeline.topics import create_topics
from tests.chaos.events import Load
from tests.chaos.fleet import Fleet
from tests.chaos.proxy import FaultProxy
from tests.support.clickhouse import ClickHouseServer, die_with_parent
from tests.support.kafka import settings_for, unique_prefix
from tests.support.pagerduty import ROUTING_KEY, FakePagerDuty
from tests.support.receivers import AnnotationRoom
from tests.support.workers import ROOT, WorkerProcess

PARTITIONS = TopicSettings(partitions=4, signals_partitions=2)
#: Snapshots come often, so that much is restored.
SNAPSHOT_S = 2.0
GRAFANA_TOKEN = "glsa_test"
#: The worker's own time-out for an insert or a query.
CLICKHOUSE_TIMEOUT_S = 5.0


@dataclass
class Ground:
    """A broker, a ClickHouse engine behind its endpoint, and the proxy in front of that."""

    broker: Broker
    server: ClickHouseServer
    proxy: FaultProxy
    home: Path
    #: Lives as long as the ground, and with it what it starts: the kernel ends a server together
    #: with the thread that has started it.
    starter: Executor

    def start_server(self) -> None:
        self.starter.submit(self.server.start).result()


@contextmanager
def ground(home: Path) -> Iterator[Ground]:
    """Give a ground, with what it stores in `home`, and leave no process behind."""
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        broker = stack.enter_context(Broker())
        server = ClickHouseServer(home / "clickhouse")
        server.start()
        stack.callback(server.stop)
        proxy = stack.enter_context(FaultProxy(server.port))
        starter = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="starter"))
        yield Ground(broker, server, proxy, home, starter)


class World:
    """Topics, a database, receivers and a fleet of workers. Use `opened`.

    `control` makes the workers ones that must fail: ``stock``, ``undeclared`` or ``no_window``.
    """

    def __init__(
        self,
        on: Ground,
        session_s: float,
        workers: int,
        control: str = "",
        sections: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self.ground = on
        self._extra = sections
        self.session_s = session_s
        self.control = control
        #: Where the events' ids are.
        self.table = "stock" if control == "stock" else "requests"
        self.name = unique_prefix().rstrip(".")
        self.home = on.home / self.name
        self.points = self.home / "points"
        self.points.mkdir(parents=True)
        self.pagerduty = FakePagerDuty()
        self.grafana = AnnotationRoom()
        self.kafka = settings_for(
            on.broker.bootstrap_servers,
            f"{self.name}.",
            topics=PARTITIONS,
            session_timeout_s=session_s,
        )
        self.clickhouse = ClickHouseSettings(
            mode="http", host=on.server.host, port=on.server.port, database=self.name
        )
        self.store = Store(self.clickhouse)
        self.config: Config = load_config(overrides=self._sections())
        self.fleet = Fleet(self._make_worker, workers, self.note)

    def prepare(self) -> None:
        """Create what `kizashi init` creates, and what a control has in its place."""
        create_topics(self.kafka)
        self.store.migrate()
        if self.control == "stock":
            self._run("CREATE TABLE stock (event_id String) ENGINE = MergeTree ORDER BY event_id")
        elif self.control == "no_window":
            for table in ("requests", "rollup_1m", "deadletters"):
                self._run(
                    f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0"
                )

    def _run(self, statement: str) -> None:
        with self.ground.server.client(database=self.name) as client:
            client.command(statement)

    def _sections(self) -> dict[str, dict[str, Any]]:
        """What differs from the configuration's defaults."""
        kafka, proxy = self.kafka, self.ground.proxy
        notify = {
            "retry_max_s": 2,
            "timeout_s": 2,
            "pagerduty": {"routing_key": ROUTING_KEY, "url": self.pagerduty.url},
            "grafana": {"token": GRAFANA_TOKEN, "url": self.grafana.url},
        }
        return {
            "kafka": kafka.model_dump(mode="json", exclude_defaults=True),
            "clickhouse": {
                "mode": "http",
                "host": proxy.host,
                "port": proxy.port,
                "database": self.name,
                "timeout_s": CLICKHOUSE_TIMEOUT_S,
            },
            "detection": {"learn_events": 200, "snapshot_interval_s": SNAPSHOT_S},
            "encoder": {"kind": "none"},
            "notify": notify,
            "web": {"enabled": False},
            **{name: dict(section) for name, section in self._extra.items()},
        }

    def _make_worker(self, number: int) -> WorkerProcess:
        log_file = self.home / f"worker-{number}.log"
        if self.control == "stock":
            settings = {
                "bootstrap": self.kafka.bootstrap_servers,
                "group": self.kafka.group_id,
                "topic": self.kafka.events_topic,
                "session_s": self.session_s,
                "host": self.ground.proxy.host,
                "port": self.ground.proxy.port,
                "database": self.name,
                "timeout_s": CLICKHOUSE_TIMEOUT_S,
            }
            return WorkerProcess(
                {"CHAOS_STOCK": json.dumps(settings)}, log_file, ("tests.chaos.stock",)
            )
        environment = {
            **dict(_flatten("KIZASHI", self._sections())),
            "CHAOS_POINTS": str(self.points),
            "CHAOS_CONTROL": self.control,
        }
        return WorkerProcess(environment, log_file, ("tests.chaos.worker",))

    def produce(self, load: Load) -> subprocess.Popen[str]:
        """Start the producer; its last line on standard output is its report."""
        settings = json.dumps(self.kafka.model_dump(mode="json", exclude_defaults=True))
        with (self.home / "load.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.load", settings, json.dumps(asdict(load))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=die_with_parent,
            )

    def note(self, text: str) -> None:
        """Write a line into the run's own log."""
        with (self.home / "chaos.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def logs(self, characters: int = 3_000) -> str:
        """Return the ends of all logs."""
        files = sorted(self.home.glob("*.log"))
        return "\n".join(
            f"--- {f.name}\n{f.read_text(errors='replace')[-characters:]}" for f in files
        )


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Sections as the variables that name them."""
    for key, value in values.items():
        name = f"{prefix}__{key.upper()}" if prefix != "KIZASHI" else f"KIZASHI_{key.upper()}"
        if isinstance(value, Mapping):
            yield from _flatten(name, value)
        else:
            yield name, str(value)


@contextmanager
def opened(
    on: Ground,
    session_s: float,
    workers: int,
    control: str = "",
    sections: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Iterator[World]:
    """Give a world whose workers run, and leave none of them behind."""
    with ExitStack() as stack:
        world = World(on, session_s, workers, control, sections)
        stack.callback(world.store.close)
        stack.enter_context(world.pagerduty)
        stack.enter_context(world.grafana)
        world.prepare()
        stack.enter_context(world.fleet)
        yield world
