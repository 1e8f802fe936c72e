"""What no worker can mend, each as a scenario of its own: here the books differ by definition.

* *The events topic is created anew.* What the old one held and nobody had read is gone with it.
  Everything in the new one is stored once, although its offsets begin again at 0.
* *Partitions are added.* Nothing is lost. A key's events go to another partition from then on, so
  that a repeat of an event sent before is counted again.
* *Retention passes the committed offset* while no worker runs. What Kafka removed is lost;
  everything that it still had is stored once.

"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from kafka import TopicPartition

from pipeline.producing import read_head
from pipeline.topics import connect_admin, create_topics
from tests.chaos.events import is_bad
from tests.chaos.run import Run, Settings, running
from tests.chaos.watch import Offsets
from tests.chaos.world import PARTITIONS, Ground
from tests.support.kafka import consume
from tests.support.rollups import rollups_that_differ, total_of

#: Of each half; the second has other numbers.
EVENTS = 4_000


def run_scenario(on: Ground, settings: Settings, name: str) -> dict[str, Any]:
    """Run one; returns what was lost and doubled against what is promised there: zero is right."""
    with running(on, replace(settings, kinds=())) as run:
        return SCENARIOS[name](run)


def recreate_topic(run: Run) -> dict[str, Any]:
    """Delete the events topic under running workers, and create it again."""
    first, end = run.load.head, run.load.head + EVENTS
    run.send(first, end)
    run.wait_for_lag_zero()
    kafka = run.world.kafka
    with connect_admin(kafka) as admin:
        admin.delete_topics([kafka.events_topic])
    create_topics(kafka)
    run.reconnect()
    run.send(end, end + EVENTS)
    run.wait_for_lag_zero()
    return _compare(run, range(end + EVENTS))


def add_partitions(run: Run) -> dict[str, Any]:
    """Add partitions to the events topic under running workers."""
    first, end = run.load.head, run.load.head + EVENTS
    run.send(first, end)
    grown = PARTITIONS.model_copy(update={"partitions": 2 * PARTITIONS.partitions})
    create_topics(run.world.kafka.model_copy(update={"topics": grown}), grow=True)
    run.reconnect()
    run.send(end, end + EVENTS)
    run.wait_for_lag_zero()
    return _compare(run, range(end + EVENTS))


def pass_retention(run: Run) -> dict[str, Any]:
    """Stop the workers in the middle, remove the oldest of what they have not read."""
    first, end = run.load.head, run.load.head + EVENTS
    kafka, fleet = run.world.kafka, run.world.fleet
    run.send(first, end)
    run.wait_for_lag_zero()
    slots = [slot for slot in fleet.slots if slot.wanted]
    for slot in slots:
        fleet.retire(slot)
    run.wait("the workers' end", lambda: not fleet.running())
    offsets = Offsets(kafka, kafka.events_topic)
    before = offsets.ends()
    run.send(end, end + EVENTS)
    after = offsets.ends()
    removed = {p: (before[p] + after[p]) // 2 for p in before}
    with connect_admin(kafka) as admin:
        admin.delete_records({TopicPartition(kafka.events_topic, p): o for p, o in removed.items()})
    offsets.close()
    for slot in slots:
        slot.wanted = True
    run.wait_for_lag_zero()
    still_there = {number for record in consume(kafka, kafka.events_topic)
                   if (number := _number(record.value)) is not None}  # fmt: skip
    return _compare(run, {*range(end), *still_there})


def _number(raw: bytes) -> int | None:
    event_id = read_head(raw).event_id
    return int(event_id[1:]) if event_id else None


def _compare(run: Run, expected: Iterable[int]) -> dict[str, Any]:
    """Each of these numbers must be stored once and counted once, but for the bad."""
    store = run.world.store
    rows = [int(row[0][1:]) for row in store.rows("SELECT event_id FROM requests")]
    stored = set(rows)
    return {
        "lost": len({number for number in expected if not is_bad(number)} - stored),
        "doubled": max(len(rows), total_of(store, "route")) - len(stored),
        "rollups_differ": rollups_that_differ(store),
    }


SCENARIOS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "topic_recreated": recreate_topic,
    "partitions_added": add_partitions,
    "retention_passed": pass_retention,
}
