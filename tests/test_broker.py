"""The broker of our own: it answers, survives what a test does to it, and never outlives us."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import broker as broker_module
from pipeline.broker import Broker, BrokerNotStarted, fetch_jars, find_java, free_ports
from pipeline.errors import SinkUnavailable
from pipeline.producing import produce
from pipeline.topics import connect_admin, create_topics, topic_epochs
from tests.support.kafka import consume, require_jars, settings_for, unique_prefix

GONE_TIMEOUT_S = 20.0


@pytest.mark.kafka
def test_a_kill_loses_nothing_that_was_acknowledged(own_broker):
    """kill() and restart() keep data, topic ids and port."""
    settings = settings_for(own_broker.bootstrap_servers, unique_prefix())
    create_topics(settings)
    epochs = topic_epochs(settings, [settings.events_topic])
    assert produce(settings, [b"one", b"two", b"three"]).sent == 3
    pid = own_broker.pid

    own_broker.kill()
    assert has_ended(pid)
    own_broker.restart()

    assert settings.bootstrap_servers == own_broker.bootstrap_servers
    assert topic_epochs(settings, [settings.events_topic]) == epochs
    assert {r.value for r in consume(settings, settings.events_topic)} == {b"one", b"two", b"three"}


@pytest.mark.kafka
def test_a_paused_broker_is_silent_until_it_is_resumed(own_broker):
    """pause() freezes the process: connections open, and nothing is answered."""
    settings = settings_for(own_broker.bootstrap_servers, unique_prefix())
    own_broker.pause()
    with pytest.raises(SinkUnavailable), connect_admin(settings, timeout_s=0.5):
        pass
    own_broker.resume()
    with connect_admin(settings) as admin:
        assert admin.list_topics() == []

    own_broker.pause()
    own_broker.restart()  # an orderly end, although it is frozen
    with connect_admin(settings) as admin:
        assert admin.list_topics() == []


@pytest.mark.kafka
def test_the_broker_ends_when_its_parent_is_killed(tmp_path):
    """SIGKILL to us, which runs no handler of ours, ends the broker too; our stdout is ours."""
    require_jars()
    program = (
        "import sys, time\n"
        "from pipeline.broker import Broker\n"
        "broker = Broker().start()\n"
        "print(broker.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert parent.stdout.read() == ""
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    while not has_ended(pid):
        assert time.monotonic() < deadline_s, "the broker outlived its parent"
        time.sleep(0.02)


@pytest.mark.kafka
def test_stop_ends_the_process_and_removes_the_data():
    """stop() may be called twice; a stopped broker can start anew, but not go on."""
    require_jars()
    broker = Broker()
    with broker:
        pid, directory = broker.pid, broker.log_file.parent
        assert "Kafka Server started" in broker.log_file.read_text()
    broker.stop()
    assert has_ended(pid)
    assert not directory.exists()
    with pytest.raises(RuntimeError, match="never started, or stopped"):
        broker.restart()
    with pytest.raises(RuntimeError, match="not running"):
        broker.kill()


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why(tmp_path, monkeypatch):
    """The error quotes the end of the log, and nothing is left behind."""
    require_jars()
    monkeypatch.setattr(broker_module.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BrokerNotStarted, match=r"(?s)storage.*Invalid value nonsense"):
        Broker(properties={"node.id": "nonsense"}).start()
    assert list(tmp_path.iterdir()) == []


def test_ports_are_free_and_no_client_is_given_them_by_chance():
    """Two different ports, outside the range from which outgoing connections take theirs."""
    ports = free_ports()
    assert len(set(ports)) == 2
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if ephemeral.exists():
        assert max(ports) < int(ephemeral.read_text().split()[0])


def test_a_machine_without_java_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(BrokerNotStarted, match="no java on the path: install Java 17"):
        find_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BrokerNotStarted, match="no java in JAVA_HOME"):
        find_java()


def test_a_machine_without_maven_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerNotStarted, match="no mvn on the path"):
        fetch_jars(tmp_path / "cache")


def test_jars_are_fetched_once_however_many_ask(fake_maven, tmp_path):
    """Whoever comes second waits for the first, and finds the whole set."""
    calls = fake_maven('mkdir -p "$out"; sleep 0.3; echo jar > "$out/kafka.jar"')
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: fetch_jars(tmp_path / "cache"), range(4)))
    assert len(found) == 1
    assert [f.name for f in found.pop().iterdir()] == ["kafka.jar"]
    assert len(calls.read_text().splitlines()) == 1


def test_a_failed_fetch_leaves_nothing_and_quotes_maven(fake_maven, tmp_path):
    """Half a set of jars is never taken for a whole one; the next call tries again."""
    fake_maven('mkdir -p "$out"; echo half > "$out/kafka.jar"; echo "disk full" >&2; exit 1')
    with pytest.raises(BrokerNotStarted, match="disk full"):
        fetch_jars(tmp_path / "cache")
    assert list((tmp_path / "cache" / "libs").iterdir()) == []

    fake_maven('mkdir -p "$out"; echo jar > "$out/kafka.jar"')
    assert (fetch_jars(tmp_path / "cache") / "kafka.jar").read_text() == "jar\n"


@pytest.fixture
def fake_maven(monkeypatch, tmp_path):
    """Put an `mvn` first on the path that does what a line of shell says and notes its calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def install(body: str) -> Path:
        maven = programs / "mvn"
        maven.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >> {calls}\n'
            'for word in "$@"; do case "$word" in -DoutputDirectory=*) '
            'out="${word#-DoutputDirectory=}";; esac; done\n'
            f"{body}\n"
        )
        maven.chmod(maven.stat().st_mode | stat.S_IXUSR)
        return calls

    return install


def has_ended(pid: int) -> bool:
    """Whether a process is gone; one that only its parent has yet to bury counts as gone."""
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()[:1] in {"", "Z"}
