"""Commands from this machine: read the incidents, and have something done with one.

Delivery guarantee: a command that was handed over is carried out once, whatever
crashes: through Kafka by the worker that owns the alarms, when it gets there; where no
worker can be running (it would have the embedded store open), here and at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum

from kafka.errors import KafkaError
from msgspec import structs

from pipeline.build import build_notifier
from pipeline.config import Config
from pipeline.errors import KizashiError, PermanentError, SinkUnavailable
from pipeline.incidents.book import BookConfig
from pipeline.incidents.lifecycle import carry_out
from pipeline.producers import open_producer
from pipeline.respond import Responder
from pipeline.sinks.clickhouse import open_store
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.notifier import Notifier
from schemas.command import Command, encode_command
from schemas.incident import Incident

SEND_TIMEOUT_S = 15.0
#: How long what was told is waited for, before it is left to the outbox.
NOTIFY_TIMEOUT_S = 10.0
#: How long a worker may take until it is no longer waited for.
EFFECT_TIMEOUT_S = 10.0
_POLL_S = 0.25


class UnknownIncident(PermanentError):
    """No incident has this id, or several begin like it."""


class Outcome(StrEnum):
    CHANGED = "changed"
    #: It was like that already.
    UNCHANGED = "unchanged"
    #: It waits on the alarms topic for a worker.
    WAITING = "waiting"


@contextmanager
def reading(config: Config) -> Iterator[IncidentStore]:
    """Give the stored incidents.

    Raises:
        SinkUnavailable: ClickHouse is away, or another process has it open.
    """
    with open_store(config.clickhouse) as store:
        yield IncidentStore(store)


def find_incident(incidents: IncidentStore, name: str) -> Incident:
    """Return the incident whose id is `name`, or alone begins with it.

    Raises:
        UnknownIncident: there is none, or more than one.
    """
    found = incidents.find(name)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownIncident(f"there is no incident {name}")
    raise UnknownIncident(f"{name} may be {', '.join(i.incident_id for i in found)}")


def give(config: Config, command: Command) -> tuple[Outcome, Incident | None]:
    """Have a command carried out; returns the incident as it stands then, where it can be read.

    Raises:
        UnknownIncident: it names no incident.
        SinkUnavailable: neither the store nor Kafka can be reached.
    """
    try:
        with reading(config) as incidents:
            incident = find_incident(incidents, command.incident_id)
            command = structs.replace(command, incident_id=incident.incident_id)
            if carry_out(incident, command) is None:
                return Outcome.UNCHANGED, incident
            if config.clickhouse.mode == "embedded":
                return Outcome.CHANGED, asyncio.run(_carry_out(config, incidents, command))
            publish(config, command)
            return _await_effect(incidents, incident, command)
    except SinkUnavailable as error:
        if config.clickhouse.mode != "embedded":
            raise
        # Perhaps a worker has the store open. It will find the command, and the incident.
        return _hand_over(config, command, error)


def publish(config: Config, command: Command) -> None:
    """Put a command among the alarms, and wait until the broker has it.

    Raises:
        SinkUnavailable: the broker does not answer.
    """
    producer = open_producer(config.kafka, patience_s=SEND_TIMEOUT_S)
    try:
        sent = producer.send(config.kafka.alarms_topic, encode_command(command), partition=0)
        sent.get(timeout=SEND_TIMEOUT_S)
    except KafkaError as error:
        raise SinkUnavailable(f"the command was not taken: {error!r}") from error
    finally:
        producer.close(timeout=1.0)


def _hand_over(
    config: Config, command: Command, unread: SinkUnavailable
) -> tuple[Outcome, Incident | None]:
    try:
        publish(config, command)
    except KizashiError:
        raise unread from None
    return Outcome.WAITING, None


async def _carry_out(config: Config, incidents: IncidentStore, command: Command) -> Incident | None:
    """Carry the command out here, tell the destinations, and leave the rest to the outbox."""
    with ThreadPoolExecutor(1) as executor:
        notifiers: list[Notifier] = []

        def make_notifier() -> Notifier:
            notifiers.append(build_notifier(config.notify, incidents, executor))
            return notifiers[-1]

        responder = Responder(BookConfig(), incidents, make_notifier, executor)
        try:
            changed = await responder.respond([command])
            await notifiers[-1].drain(NOTIFY_TIMEOUT_S)
        finally:
            await responder.hand_over()
    return changed[-1] if changed else None


def _await_effect(
    incidents: IncidentStore, before: Incident, command: Command
) -> tuple[Outcome, Incident | None]:
    """Look at the store until a worker has carried the command out, for a while."""
    deadline_s = time.monotonic() + EFFECT_TIMEOUT_S
    while True:
        incident = find_incident(incidents, command.incident_id)
        if command.command_id in incident.commands:
            return Outcome.CHANGED, incident
        if time.monotonic() > deadline_s:
            return Outcome.WAITING, before
        time.sleep(_POLL_S)
