"""A real Kafka broker of our own, on this machine: for the tests and for `kizashi demo --kafka`.

Apache Kafka in KRaft mode, one node, loopback only, run from jars that Maven
fetches once. It makes no promise of durability: the data live in a temporary
directory and go with `stop()`. What survives is what a test needs to survive:
`kill()` and `restart()` keep data and port.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.config import KafkaSettings
from pipeline.errors import PermanentError, RetryableError
from pipeline.topics import connect_admin

HOST = "127.0.0.1"
JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # A broker that lives for a test is up in half the time when only C1 compiles.
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
_POM = Path(__file__).parent / "kafka" / "pom.xml"
_CHECKOUT = Path(__file__).parents[1]
#: Below the range from which the kernel takes the ports of outgoing connections. From inside it,
#: a client that retries while the broker is down can be given the broker's own port, and keep it.
_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 100
_FETCH_TIMEOUT_S = 600.0
_FORMAT_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
_LOG_TAIL_LINES = 15

#: The broker must not outlive us, however we end. A watcher in its process group reads from a
#: pipe that only we hold; when we are gone the read ends and the group is killed. This needs no
#: code between fork and exec, and unlike PR_SET_PDEATHSIG it follows the process, not the thread
#: that happened to start the broker.
_WATCHED = (
    "exec 3<&0 </dev/null; (read -r _ <&3; kill -s KILL -- -$$) >/dev/null 2>&1 & "
    'exec 3<&-; exec "$@"'
)


class BrokerNotStarted(PermanentError):
    """No broker can be run here: Java, Maven or the jars are missing, or Kafka gave up."""


class Broker:
    """One Kafka broker; a context manager, or `start()` and `stop()`. Not for several threads.

    `properties` are laid over the broker's own settings; `ports` are those of
    its client and controller listeners, free ones by default. Its data lie in a
    directory of their own under `under`, by default where temporary files go. The
    process ends with ours, also when ours is killed.
    """

    def __init__(
        self,
        *,
        properties: Mapping[str, str] | None = None,
        ports: tuple[int, int] | None = None,
        under: Path | None = None,
        start_timeout_s: float = 90.0,
    ) -> None:
        self._extra = dict(properties or {})
        self._ports = ports or free_ports()
        self._under = under
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._command: tuple[str, ...] = ()
        self._directory = Path()

    @property
    def bootstrap_servers(self) -> str:
        return f"{HOST}:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """The process id of the broker's JVM."""
        return self._running().pid

    @property
    def log_file(self) -> Path:
        """The broker's log; removed with the data by `stop()`."""
        return self._directory / "broker.log"

    def start(self) -> Self:
        """Start with fresh data, and return when the broker answers.

        Raises:
            BrokerNotStarted: Java, Maven or the jars are missing, or Kafka gave up.
        """
        if self._command:
            raise RuntimeError("this broker was started already; restart() keeps its data")
        java, jars = find_java(), fetch_jars()
        self._directory = Path(tempfile.mkdtemp(prefix="kizashi-kafka-", dir=self._under))
        self._command = (java, *JAVA_OPTIONS, "-cp", f"{jars}/*")
        # The watcher sees to the process whatever happens, but not to the data.
        atexit.register(self.stop)
        try:
            self._format()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the broker and remove its data. Does nothing when stopped already."""
        if self._process is not None:
            self.kill()  # what would be saved by an orderly end is removed anyway
        if self._command:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._command = ()
            atexit.unregister(self.stop)

    def kill(self) -> None:
        """End the broker at once (SIGKILL), as the kernel does when memory is short. Data stay."""
        process = self._running()
        process.kill()
        self._reap(process)

    def pause(self) -> None:
        """Freeze the broker (SIGSTOP): its connections stay open and nothing is answered."""
        # The process alone, not its group: a frozen watcher would watch nothing.
        os.kill(self._running().pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused broker go on (SIGCONT)."""
        os.kill(self._running().pid, signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same data and port, after an orderly end if it still runs."""
        if not self._command:
            raise RuntimeError("this broker was never started, or stopped for good")
        if self._process is not None:
            self._shut_down(self._process)
        self._launch()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process

    def _format(self) -> None:
        """Write the settings and format the storage, which KRaft wants done once."""
        properties = {**_properties(self._directory, self._ports), **self._extra}
        self._properties_file.write_text(
            "".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8"
        )
        tool = (*self._command, "kafka.tools.StorageTool", "format", "--standalone")
        settings = ("-t", _cluster_id(), "-c", str(self._properties_file))
        if not _succeeds((*tool, *settings), self.log_file, _FORMAT_TIMEOUT_S):
            raise self._not_started("its storage could not be formatted")

    @property
    def _properties_file(self) -> Path:
        return self._directory / "server.properties"

    def _launch(self) -> None:
        command = (*self._command, "kafka.Kafka", str(self._properties_file))
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                ("/bin/sh", "-c", _WATCHED, "kizashi-kafka", *command),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + self._start_timeout_s
        while not self._answers():
            if self._process.poll() is not None:
                raise self._not_started("it ended while starting")
            if time.monotonic() > deadline_s:
                raise self._not_started(f"no answer within {self._start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        """Whether a client gets metadata with a broker in it: a fenced broker is not in there."""
        try:
            # The admin client complains loudly about a closed port, so look whether it is open.
            socket.create_connection((HOST, self._ports[0]), timeout=1.0).close()
            with connect_admin(
                KafkaSettings(bootstrap_servers=self.bootstrap_servers), timeout_s=2.0
            ):
                return True
        except (OSError, RetryableError):
            return False

    def _shut_down(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)  # a paused process hears SIGTERM only once it goes on
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        process.kill()
        self._reap(process)

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()  # lets the watcher go
        self._process = None

    def _not_started(self, why: str) -> BrokerNotStarted:
        return BrokerNotStarted(f"Kafka did not start: {why}\n{_tail(self.log_file)}")


def find_java() -> str:
    """Return the path of `java`: that of ``JAVA_HOME``, else the first on the path.

    Raises:
        BrokerNotStarted: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if java is None:
        where = f"in JAVA_HOME ({home})" if home else "on the path"
        raise BrokerNotStarted(f"no java {where}: install Java 17 or newer, e.g. openjdk-17-jre")
    return java


def fetch_jars(cache: Path | None = None) -> Path:
    """Return the directory with Kafka's jars, fetched through Maven if it is not there yet.

    A directory belongs to one content of the pom and appears whole or not at
    all; processes that come at the same time wait for the first.

    Raises:
        BrokerNotStarted: Maven is missing or failed.
    """
    cache = cache or default_cache()
    jars = cache / "libs" / hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    if jars.is_dir():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        if not jars.is_dir():
            _run_maven(jars, log_file=cache / "maven.log")
    return jars


def default_cache() -> Path:
    """Return where the jars are kept: in the checkout if this is one, else in the user's cache."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / ".cache" / "kafka"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kizashi" / "kafka"


def free_ports() -> tuple[int, int]:
    """Return two loopback ports that nothing listens on: for clients, and for the controller."""
    free: list[int] = []
    for _ in range(_PORT_ATTEMPTS):
        port = secrets.choice(_PORTS)
        if port not in free and _is_free(port):
            free.append(port)
        if len(free) == 2:
            return free[0], free[1]
    raise BrokerNotStarted(f"no free port found between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _properties(directory: Path, ports: tuple[int, int]) -> dict[str, str]:
    """A broker that is its own controller, with every replication factor at one."""
    client, controller = (f"{HOST}:{port}" for port in ports)
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://{client},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{client}",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": controller,
        "log.dirs": str(directory / "data"),
        # Topics are made by `kizashi init`; a misspelt name must fail, not come to life.
        "auto.create.topics.enable": "false",
        # After a kill the new process is let in only when the old one's session is over.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "400",
        "message.max.bytes": str(4 * 1024 * 1024),
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "min.insync.replicas": "1",
    }


def _cluster_id() -> str:
    """Kafka's own form of a UUID: 22 characters of URL-safe base64, no dash in front."""
    return "K" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run_maven(jars: Path, log_file: Path) -> None:
    """Fetch into a directory beside `jars` and rename it: nobody sees half a set."""
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerNotStarted("no mvn on the path: Kafka's jars are fetched with Apache Maven")
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix="fetching-") as scratch:
        fetched = Path(scratch) / "libs"
        command = (maven, "-B", "-f", str(_POM), "--strict-checksums")
        goal = ("dependency:copy-dependencies", "-DincludeScope=runtime")
        done = _succeeds(
            (*command, *goal, f"-DoutputDirectory={fetched}"), log_file, _FETCH_TIMEOUT_S
        )
        if not done or not fetched.is_dir():
            raise BrokerNotStarted(f"Maven could not fetch Kafka's jars:\n{_tail(log_file)}")
        fetched.rename(jars)


def _succeeds(command: tuple[str, ...], log_file: Path, timeout_s: float) -> bool:
    """Run `command` to its end with its output in `log_file`; our own stdout stays untouched."""
    with log_file.open("ab") as log:
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            log.write(f"gave up after {timeout_s:g} s\n".encode())
            return False
    return done.returncode == 0


def _tail(file: Path) -> str:
    """The last lines of a log, for an error's message."""
    if not file.exists():
        return ""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])
