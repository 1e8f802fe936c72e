"""ClickHouse for tests: a server in a process of its own, and a directory for the embedded engine.

`clickhouse_server` speaks ClickHouse's HTTP interface, so that code under test uses its real
client; it can be stopped, killed, paused and told to fail. Import the fixtures in
``conftest.py``.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from pipeline.config import ClickHouseSettings
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.endpoint import Endpoint, EndpointConfig

__all__ = [
    "ClickHouseServer",
    "clickhouse_server",
    "database",
    "embedded_path",
    "empty_database",
    "kept_store",
    "serving",
]

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """End with the thread that starts us; for `preexec_fn`."""
    # Runs between fork and exec, so it does nothing but this one call. The kernel then ends
    # the server even if it is paused and the tests are killed.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class ClickHouseServer:
    """A writable endpoint in its own process: the same directory and port over every restart."""

    host = "127.0.0.1"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it listens; on the port that it had before."""
        assert not self.running, "the server runs already"
        command = [sys.executable, "-m", "pipeline.sinks.endpoint", "--writable"]
        command += ["--path", str(self.path), "--port", str(self.port)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
        )
        self.port = self._read_port(self._process)

    @staticmethod
    def _read_port(process: subprocess.Popen[str]) -> int:
        deadline = threading.Timer(START_TIMEOUT_S, process.kill)
        deadline.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            deadline.cancel()
        if not line.startswith("listening on "):
            process.kill()
            raise RuntimeError(f"the server did not come up (exit status {process.wait()})")
        return int(line.rpartition(":")[2])

    def stop(self) -> None:
        """End it as an operator would, or harder if that does not do."""
        if not self.running:
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._process_ended(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """``kill -9``: nothing is flushed, nothing is said."""
        self._signal(signal.SIGKILL)
        self._process_ended(STOP_TIMEOUT_S)

    def pause(self) -> None:
        """Leave connections open and answer nothing, as a stuck machine does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.running and self._process is not None:
            self._process.send_signal(number)

    def _process_ended(self, timeout_s: float) -> None:
        if self._process is not None:
            self._process.wait(timeout_s)
            if self._process.stdout is not None:
                self._process.stdout.close()

    # Faults hit inserts only, so that a test can look on meanwhile.

    def refuse_next(self, inserts: int = 1) -> None:
        """Answer the next inserts with 503; nothing is written."""
        self._set_faults(refuse=inserts)

    def hang_next(self, inserts: int = 1) -> None:
        """Do not answer the next inserts until the client gives up; nothing is written."""
        self._set_faults(hang=inserts)

    def fail_after_apply_next(self, inserts: int = 1) -> None:
        """Write the next inserts, then cut the connection without an answer."""
        self._set_faults(fail_after_apply=inserts)

    def clear_faults(self) -> None:
        self._set_faults(refuse=0, hang=0, fail_after_apply=0)

    def faults_left(self) -> dict[str, int]:
        """Return how many faults of each kind have not happened yet."""
        return self._set_faults()

    def _set_faults(self, **counts: int) -> dict[str, int]:
        parameters = "&".join(f"{name}={count}" for name, count in counts.items())
        url = f"http://{self.host}:{self.port}/admin/faults?{parameters}"
        request = urllib.request.Request(url, method="POST" if counts else "GET")
        with urllib.request.urlopen(request, timeout=5.0) as response:  # noqa: S310
            return json.load(response)

    def client(self, **options: Any) -> Client:
        """Return a client of its own; `options` are `clickhouse_connect.get_client`'s."""
        return clickhouse_connect.get_client(host=self.host, port=self.port, **options)


@contextmanager
def serving(config: EndpointConfig) -> Iterator[Endpoint]:
    """Serve within this process, beside its embedded engine, as `kizashi` does for Grafana."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    endpoint = Endpoint(config)
    try:
        asyncio.run_coroutine_threadsafe(endpoint.start(), loop).result(START_TIMEOUT_S)
        try:
            yield endpoint
        finally:
            asyncio.run_coroutine_threadsafe(endpoint.stop(), loop).result(STOP_TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_TIMEOUT_S)
        loop.close()


@pytest.fixture(scope="module")
def clickhouse_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    """A server for the module. A test that stops it or sets faults leaves it as it found it."""
    server = ClickHouseServer(tmp_path_factory.mktemp("clickhouse-server"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def embedded_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The one directory that this process's embedded engine may have; share it by `database`.

    The engine ends with its last connection, and takes longer to come back with every database
    that it finds: it is kept.
    """
    path = tmp_path_factory.mktemp("clickhouse-embedded")
    with clickhouse_connect.get_client(interface="chdb", path=str(path)):
        yield path


@pytest.fixture(scope="session")
def kept_store(embedded_path: Path) -> Iterator[Store]:
    """A store with the schema; what is written stays, whatever time it says it is of."""
    tables = ("requests", "rollups", "texts", "samples")
    days: dict[str, Any] = {f"{table}_ttl_days": 10_000 for table in tables}
    store = Store(ClickHouseSettings(path=embedded_path, database="kept", **days))
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def empty_database(kept_store: Store) -> str:
    """The name of a database with the schema and no row: a tenth of the time of a new one."""
    kept_store.empty()
    return "kept"


@contextmanager
def few_attempts(store: Store) -> Iterator[None]:
    """Have ClickHouse refuse requests of more than five attempts."""
    store.rows("ALTER TABLE requests ADD CONSTRAINT few CHECK ifNull(attempts, 0) <= 5")
    try:
        yield
    finally:
        store.rows("ALTER TABLE requests DROP CONSTRAINT few")


@pytest.fixture
def database() -> str:
    """The name of a database that no other test has; nobody has created it yet."""
    return f"t{uuid.uuid4().hex[:12]}"
