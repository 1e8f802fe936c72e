"""`kizashi deadletter`: what was refused is found, read and sent again, over a real broker."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaProducer

from pipeline.cli import cli
from pipeline.config import ClickHouseSettings, Config
from pipeline.sinks.clickhouse import Store
from pipeline.topics import client_settings, create_topics, topic_epochs
from tests.support.kafka import KafkaServer, consume, settings_for

pytestmark = pytest.mark.kafka

#: Lately: what is old is not kept.
WRITTEN_MS = round(time.time() * 1000) - 3_600_000
BAD = (b'{"event.id": "e0"', b"not json at all")
KEPT_ONLY_AS_LETTER = b"mail me at [email]"


class Desk:
    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self, *arguments: str) -> Result:
        command = cli.commands["deadletter"]
        return CliRunner(env={"COLUMNS": "200"}).invoke(command, arguments, obj=lambda: self.config)

    def output(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exception is None, result.output
        return result.stdout

    def events(self) -> list[Any]:
        return consume(self.config.kafka, self.config.kafka.events_topic)


def letter(config: Config, epoch: str, offset: int, raw: bytes, **changes: Any) -> dict[str, Any]:
    return {
        "record_time": WRITTEN_MS + offset,
        "topic": config.kafka.events_topic,
        "epoch": epoch,
        "partition": 0,
        "offset": offset,
        "item": 0,
        "reason": "invalid_json",
        "event_id": "",
        "detail": "no good",
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).digest(),
    } | changes


@pytest.fixture
def desk(kafka: KafkaServer, topic_prefix: str, embedded_path: Path, database: str) -> Desk:
    settings = settings_for(kafka.bootstrap_servers, topic_prefix, partitions=1)
    create_topics(settings)
    clickhouse = ClickHouseSettings(path=embedded_path, database=database)
    config = Config(clickhouse=clickhouse, kafka=settings)
    epoch = topic_epochs(settings, [settings.events_topic])[settings.events_topic]
    lost = b"mail me at aiko@example.com"
    rows = [
        *(letter(config, epoch, i, raw) for i, raw in enumerate(BAD)),
        # Of a topic that stood here before: only the dead-letter topic may have it.
        letter(config, "another", 7, lost, reason="invalid_utf8"),
        letter(config, "another", 8, b"gone", reason="missing_field"),
        letter(config, "run-1", 3, b"x", topic="local", reason="not_an_object"),
    ]
    store = Store(clickhouse)
    store.migrate()
    store.insert("deadletters", {name: [row[name] for row in rows] for name in rows[0]})
    store.close()
    producer = KafkaProducer(**client_settings(settings))
    for raw in BAD:
        producer.send(settings.events_topic, raw, partition=0).get(timeout=10)
    headers = {"topic": settings.events_topic, "partition": "0", "offset": "7", "item": "0"}
    producer.send(
        settings.deadletter_topic,
        KEPT_ONLY_AS_LETTER,
        headers=[(name, value.encode()) for name, value in headers.items()],
    ).get(timeout=10)
    producer.close()
    return Desk(config)


def test_letters_are_listed_shown_and_sent_again(desk: Desk, tmp_path: Path) -> None:
    listed = [json.loads(line) for line in desk.output("list", "--json").splitlines()]
    assert [each["name"] for each in listed] == ["0/8", "0/7", "0/3", "0/1", "0/0"]
    assert listed[-1]["sha256"] == hashlib.sha256(BAD[0]).hexdigest()
    only = desk.output("list", "--json", "--reason", "invalid_json", "--limit", "1")
    assert [json.loads(line)["name"] for line in only.splitlines()] == ["0/1"]
    assert desk.output("list", "--json", "--since", "2030-01-01") == ""

    assert desk.run("show", "0/1", "--raw").stdout_bytes == BAD[1]
    shown = desk.output("show", "0/7")
    assert "exact: no" in shown
    assert KEPT_ONLY_AS_LETTER.decode() in shown

    dry = desk.output("replay", "--reason", "invalid_json", "--dry-run")
    assert dry.splitlines() == ["0/1: 15 bytes to send", "0/0: 17 bytes to send"]
    assert len(desk.events()) == 2
    desk.output("replay", "--reason", "invalid_json")
    mended = tmp_path / "mended.json"
    mended.write_bytes(BAD[0] + b"}")
    desk.output("replay", "0/0", "--file", str(mended))
    again = desk.events()[2:]
    assert [record.value for record in again] == [BAD[1], BAD[0], BAD[0] + b"}"]
    topic = desk.config.kafka.events_topic
    assert [dict(record.headers)["kizashi-replay-of"] for record in again] == [
        f"{topic}/0/1".encode(),
        f"{topic}/0/0".encode(),
        f"{topic}/0/0".encode(),
    ]


def test_what_is_kept_nowhere_is_said(desk: Desk) -> None:
    assert "retention" in str(desk.run("show", "0/8").exception)
    assert "read from a file" in str(desk.run("show", "0/3").exception)
    some = desk.run("replay", "0/7", "0/8")
    assert some.exit_code == 1
    assert some.stdout == f"0/7: {len(KEPT_ONLY_AS_LETTER)} bytes sent\n"
    assert "0/8" in some.stderr
    assert "no dead letter" in str(desk.run("show", "0/99").exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay",),
        ("replay", "0/1", "--reason", "invalid_json"),
        ("replay", "0/0", "0/1", "--file", __file__),
        ("show", "everything"),
    ],
)
def test_unclear_orders_are_refused(desk: Desk, arguments: tuple[str, ...]) -> None:
    assert desk.run(*arguments).exit_code == 2
