"""`kizashi incident` as a user meets it: on a store of this machine, and on a running fleet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pipeline import commanding
from pipeline.cli import cli
from pipeline.commanding import UnknownIncident
from pipeline.config import (
    ClickHouseSettings,
    Config,
    KafkaSettings,
    NotifySettings,
    PagerDutySettings,
)
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.incidents import IncidentStore
from pipeline.topics import create_topics
from schemas.command import Verb, decode_alarm_or_command
from schemas.incident import Incident, Severity, Stage, Status, Symptom
from tests.support.clickhouse import ClickHouseServer
from tests.support.kafka import consume
from tests.support.pagerduty import OPENED_MS, ROUTING_KEY, FakePagerDuty, make_incident

OTHER = make_incident("inc-2", symptom=Symptom.DEGRADED_PERFORMANCE, severity=Severity.CRITICAL)


class Terminal:
    """The command on one configuration; the store is open only while it runs."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self, *arguments: str, user: str = "aiko") -> Result:
        runner = CliRunner(env={"USER": user, "COLUMNS": "200"})
        command = cli.commands["incident"]
        return runner.invoke(command, arguments, obj=lambda: self.config)

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        result = self.run(*arguments, "--json")
        assert result.exception is None, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def stored(self, incident_id: str = "inc-1") -> Incident:
        with commanding.reading(self.config) as incidents:
            return commanding.find_incident(incidents, incident_id)


@pytest.fixture
def terminal(embedded_path: Path, database: str, pagerduty: FakePagerDuty) -> Iterator[Terminal]:
    clickhouse = ClickHouseSettings(path=embedded_path, database=database)
    page = PagerDutySettings(url=pagerduty.url, routing_key=ROUTING_KEY)  # type: ignore[arg-type]
    config = Config(clickhouse=clickhouse, notify=NotifySettings(pagerduty=page))
    store = Store(clickhouse)
    store.migrate()
    for incident in (make_incident(), OTHER):
        IncidentStore(store).save(incident)
    yield Terminal(config)
    store.close()


def test_open_incidents_are_listed_and_resolved_ones_on_request(terminal: Terminal) -> None:
    assert {i["incident_id"] for i in terminal.lines("list")} == {"inc-1", "inc-2"}
    terminal.run("resolve", "inc-2")
    assert [i["incident_id"] for i in terminal.lines("list")] == ["inc-1"]
    assert len(terminal.lines("list", "--all")) == 2
    shown = terminal.run("list").stdout
    assert "inc-1" in shown
    assert "invalid inference" in shown
    assert "prompt_version=7" in shown


def test_an_incident_is_shown_with_all_that_is_known(terminal: Terminal) -> None:
    shown = terminal.run("show", "inc-1").stdout
    for said in (
        "Refusals rose from 2.1% to 6.4% for prompt_version=7",
        "Try first: Roll the prompt template back",
        "symptom            invalid inference",
        "likely root cause  configuration",
        "83%  surprise 0.31  prompt_version=7: 1.9% (19 of 1,000) → 22.2% (60 of 270)",
        "detected           2025-10-09 08:53:20  after 60 s",
        "  e-1",
        "request_model=gpt-4o, route=support: refusal 2.1%",
    ):
        assert said in shown
    (described,) = terminal.lines("show", "inc-1")
    assert (described["stage"], described["detect_s"]) == ("detected", 60.0)
    assert described["explanation"][0]["labels"] == {"prompt_version": "7"}
    assert described["example_event_ids"] == ["e-1", "e-2"]


def test_an_incident_is_taken_on_mitigated_and_resolved(
    terminal: Terminal, pagerduty: FakePagerDuty
) -> None:
    before_ms = round(time.time() * 1000)
    assert terminal.run("ack", "inc-1").stdout == "inc-1 is acknowledged\n"
    assert terminal.run("ack", "inc-1", "--by", "ben").stdout == (
        "inc-1 is left as it is: it is acknowledged\n"
    )
    terminal.run("mitigate", "inc-1", "-m", "v6 is back")
    terminal.run("note", "inc-1", "asked the template's owner", "--by", "ben")
    (done,) = terminal.lines("resolve", "inc-1")
    assert done["stage"] == "resolved"
    stored = terminal.stored()
    assert stored.stage is Stage.RESOLVED
    assert stored.acknowledged_by == stored.mitigated_by == stored.resolved_by == "aiko"
    assert [(n.by, n.text) for n in stored.notes] == [
        ("aiko", "v6 is back"),
        ("ben", "asked the template's owner"),
    ]
    assert before_ms <= (stored.acknowledged_ms or 0) <= (stored.mitigated_ms or 0)
    # It was told of the incident for the first time, and then what became of it.
    assert pagerduty.actions == ["trigger", "resolve"]


def test_an_id_may_be_shortened_as_long_as_it_is_one(terminal: Terminal) -> None:
    assert isinstance(terminal.run("show", "inc").exception, UnknownIncident)
    assert isinstance(terminal.run("ack", "inc-9").exception, UnknownIncident)
    assert terminal.run("show", "inc-2").exception is None


def test_what_events_wrote_does_not_move_the_cursor(terminal: Terminal) -> None:
    with commanding.reading(terminal.config) as incidents:
        incidents.save(
            make_incident("inc-3", summary="a\x1b[2Jb\nc", example_event_ids=("\x1b]0;x\x07",))
        )
    for shown in (terminal.run("show", "inc-3"), terminal.run("list")):
        assert "\x1b" not in shown.stdout
        assert "\x07" not in shown.stdout


def test_times_are_told_by_symptom(terminal: Terminal) -> None:
    now_ms = round(time.time() * 1000)
    with commanding.reading(terminal.config) as incidents:
        for i, minutes in enumerate((2, 4, 12)):
            opened = now_ms - 3_600_000
            incidents.save(
                make_incident(
                    f"timed-{i}",
                    status=Status.RESOLVED,
                    opened_ms=opened,
                    change_time_ms=opened - 30_000,
                    acknowledged_ms=opened + minutes * 60_000,
                    resolved_ms=opened + 2 * minutes * 60_000,
                )
            )
        incidents.save(make_incident("quiet", opened_ms=now_ms, severity=Severity.INFO))
        incidents.save(make_incident("part", opened_ms=now_ms, merged_into="timed-1"))
    (row,) = terminal.lines("stats", "--days", "1")
    assert (row["symptom"], row["incidents"]) == ("invalid_inference", 3)
    assert (row["detect_s_p50"], row["acknowledge_s_p50"], row["resolve_s_p50"]) == (30, 240, 480)
    assert row["resolve_s_p90"] == pytest.approx(480 + 0.8 * 960)
    assert (row["mitigate_count"], row["mitigate_s_p50"]) == (0, None)
    shown = terminal.run("stats", "--days", "1").stdout
    assert "4 min / 10 min (3)" in shown
    assert terminal.lines("stats", "--days", "0.001") == []
    view = Store(terminal.config.clickhouse)
    view.use_database()
    found = view.rows("SELECT incidents, resolved FROM incident_times ORDER BY symptom")
    view.close()
    assert found == [(1, 0), (4, 3)]


# --- A fleet ---------------------------------------------------------------------------------


def test_a_running_fleet_gets_the_command_through_kafka(
    kafka_settings: KafkaSettings, clickhouse_server: ClickHouseServer, database: str
) -> None:
    """No worker runs here: the command is on the topic, and waits."""
    create_topics(kafka_settings)
    clickhouse = ClickHouseSettings(mode="http", port=clickhouse_server.port, database=database)
    terminal = Terminal(Config(kafka=kafka_settings, clickhouse=clickhouse))
    store = Store(clickhouse)
    store.migrate()
    IncidentStore(store).save(make_incident())
    store.close()
    patience, commanding.EFFECT_TIMEOUT_S = commanding.EFFECT_TIMEOUT_S, 0.3
    try:
        result = terminal.run("ack", "inc-1")
    finally:
        commanding.EFFECT_TIMEOUT_S = patience
    assert result.stdout == "inc-1: the command waits for a worker on the alarms topic\n"
    (record,) = consume(kafka_settings, kafka_settings.alarms_topic)
    command = decode_alarm_or_command(record.value or b"")
    assert not hasattr(command, "alarm_id")
    assert (command.verb, command.incident_id, command.by) == (  # type: ignore[union-attr]
        Verb.ACKNOWLEDGE,
        "inc-1",
        "aiko",
    )
    assert terminal.stored().acknowledged_ms is None
    assert command.time_ms > OPENED_MS


def test_the_command_is_part_of_the_command_line() -> None:
    group = cli.commands["incident"]
    assert isinstance(group, click.Group)
    assert set(group.commands) == {
        "list", "show", "stats", "ack", "unack", "mitigate", "resolve", "reopen", "note",
    }  # fmt: skip
