"""Kafka for the tests: one broker for the session, and private ones that a test may kill.

`kafka` is the broker named by ``KAFKA_BOOTSTRAP_SERVERS``, else a container if
Docker answers, else one from the jars. Where none can be had the test is
skipped with the reason; with ``CI=true`` it fails.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from testcontainers.community.kafka import KafkaContainer

from pipeline.broker import Broker, BrokerNotStarted, fetch_jars, find_java
from pipeline.config import KafkaSettings, TopicSettings
from pipeline.topics import client_settings, connect_admin

__all__ = [
    "KafkaServer",
    "alter",
    "consume",
    "kafka",
    "kafka_settings",
    "own_broker",
    "require_jars",
    "settings_for",
    "topic_prefix",
    "unique_prefix",
]

#: The image that KafkaContainer's start script is tested with.
IMAGE = "confluentinc/cp-kafka:7.6.0"
CONSUME_TIMEOUT_S = 30.0
ALTER_TIMEOUT_S = 60.0
#: Memory that is a directory, and what has to be free there.
MEMORY = Path("/dev/shm")  # noqa: S108 — what is made there has a name of its own
MEMORY_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class KafkaServer:
    """A broker that is there for every test of the session; `source` says where it comes from."""

    bootstrap_servers: str
    source: str


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A broker to share: keep to topics under a prefix of your own, and leave it running."""
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield KafkaServer(servers, "KAFKA_BOOTSTRAP_SERVERS")
        return
    if docker_answers():
        with _container() as servers:
            if servers is not None:
                yield KafkaServer(servers, "testcontainers")
                return
    require_jars()
    with Broker(under=find_memory()) as broker:
        yield KafkaServer(broker.bootstrap_servers, "jars")


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker of this test's own, from the jars: kill it, pause it, restart it."""
    require_jars()
    with Broker() as broker:
        yield broker


@pytest.fixture
def topic_prefix() -> str:
    """A prefix that no other test has."""
    return unique_prefix()


@pytest.fixture
def kafka_settings(kafka: KafkaServer, topic_prefix: str) -> KafkaSettings:
    """Settings for the shared broker with topics and a group of this test's own."""
    return settings_for(kafka.bootstrap_servers, topic_prefix)


def find_memory() -> Path | None:
    """Where the shared broker keeps its data: it waits for the disk with every topic it makes."""
    is_there = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    return MEMORY if is_there else None


def unique_prefix() -> str:
    return f"t{uuid.uuid4().hex[:10]}."


def settings_for(
    bootstrap_servers: str, prefix: str, *, partitions: int = 3, **changes: Any
) -> KafkaSettings:
    """Return settings whose topics and group start with `prefix`; topics are small."""
    named = {
        # A broker that CI gives us goes by the name of its service.
        "allow_plaintext": True,
        "group_id": f"{prefix}kizashi",
        "events_topic": f"{prefix}events",
        "feedback_topic": f"{prefix}feedback",
        "signals_topic": f"{prefix}signals",
        "alarms_topic": f"{prefix}alarms",
        "deadletter_topic": f"{prefix}deadletter",
        "topics": TopicSettings(partitions=partitions, signals_partitions=2),
    }
    return KafkaSettings(bootstrap_servers=bootstrap_servers, **(named | changes))


def consume(settings: KafkaSettings, topic: str) -> list[Any]:
    """Return every record that is in `topic` now, as kafka-python's ConsumerRecord.

    Records are in order within a partition. Fails when none comes for `CONSUME_TIMEOUT_S`.
    """
    with_timeout = {"consumer_timeout_ms": 500, "auto_offset_reset": "earliest"}
    consumer = KafkaConsumer(**client_settings(settings), **with_timeout)
    try:
        parts = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        records: list[Any] = []
        deadline_s = time.monotonic() + CONSUME_TIMEOUT_S
        while any(consumer.position(part) < ends[part] for part in parts):
            assert time.monotonic() < deadline_s, f"{len(records)} records, and no end of {topic}"
            if more := list(consumer):
                records += more
                deadline_s = time.monotonic() + CONSUME_TIMEOUT_S
        return records
    finally:
        consumer.close(autocommit=False)


def alter(settings: KafkaSettings, topic: str, key: str, value: object) -> None:
    """Set one configuration key of a topic, as an operator would behind our back."""
    changed = ConfigResource(ConfigResourceType.TOPIC, topic, configs={key: str(value)})
    deadline_s = time.monotonic() + ALTER_TIMEOUT_S
    with connect_admin(settings) as admin:
        admin.alter_configs([changed])
        # The controller has it now; the broker hears of it a moment later.
        while True:
            shown = admin.describe_configs([changed], config_filter="all")["topic"][topic]
            if shown[key]["value"] == str(value):
                return
            assert time.monotonic() < deadline_s, f"{topic} still shows {shown}"


def require_jars() -> None:
    """Skip the test where the jars or Java cannot be had; fail it in CI."""
    try:
        find_java()
        fetch_jars()
    except BrokerNotStarted as error:
        unavailable(str(error))


def unavailable(reason: str) -> None:
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"no Kafka, and CI must have one: {reason}", pytrace=False)
    pytest.skip(f"no Kafka: {reason}")


def docker_answers() -> bool:
    try:
        client = docker.from_env(timeout=5)
    except (DockerException, OSError):
        return False
    client.close()
    return True


@contextmanager
def _container() -> Iterator[str | None]:
    """A container's address; None, with a warning, where Docker is there but the image is not."""
    container = KafkaContainer(IMAGE).with_kraft()
    container.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
    container.with_env("KAFKA_MESSAGE_MAX_BYTES", str(4 * 1024 * 1024))
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    try:
        container.start(timeout=120)
    except (DockerException, OSError, RuntimeError, TimeoutError) as error:
        warnings.warn(f"Docker answers, but {IMAGE} does not start: {error}", stacklevel=2)
        container.stop()
        yield None
        return
    try:
        yield container.get_bootstrap_server()
    finally:
        container.stop()
