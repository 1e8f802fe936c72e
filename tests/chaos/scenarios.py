"""What no plan of faults has, each as a scenario of its own.

Three that no worker can mend, so that the books differ by definition:

* *The events topic is created anew.* What the old one held and nobody had read is gone with it.
  Everything in the new one is stored once, although its offsets begin again at 0.
* *Partitions are added.* Nothing is lost. A key's events go to another partition from then on, so
  that a repeat of an event sent before is counted again.
* *Retention passes the committed offset* while no worker runs. What Kafka removed is lost;
  everything that it still had is stored once.

Two in which Kizashi itself is ill for so long that somebody has to be told, once, and once of the
end, while nothing is lost:

* *It is blind*: ClickHouse is away, so the page cannot be stored before it is sent.
* *It is behind*: ClickHouse takes seconds for every request, and more comes in than is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from kafka import TopicPartition

from pipeline.producing import read_head
from pipeline.topics import connect_admin, create_topics
from schemas.signal import Family
from tests.chaos.books import balance_incidents
from tests.chaos.events import is_bad
from tests.chaos.run import Run, Settings, running
from tests.chaos.watch import Offsets
from tests.chaos.world import PARTITIONS, Ground
from tests.support.kafka import consume
from tests.support.pagerduty import Alert
from tests.support.rollups import rollups_that_differ, total_of

#: Of each half; the second has other numbers.
EVENTS = 4_000


#: The least that the configuration allows.
WATCH = {"watch": {"every_s": 2, "behind_s": 30, "behind_for_s": 60}}
#: What differs from the settings of the run.
CHANGES: dict[str, dict[str, Any]] = {
    "pipeline_blind": {"sections": WATCH},
    "pipeline_behind": {"sections": WATCH, "rate": 400.0, "seconds": 150.0},
}


def run_scenario(on: Ground, settings: Settings, name: str) -> dict[str, Any]:
    """Run one; returns what was lost and doubled against what is promised there: zero is right."""
    quiet = replace(settings, kinds=(), **CHANGES.get(name, {}))
    with running(on, quiet) as run:
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


def go_blind(run: Run) -> dict[str, Any]:
    """Keep ClickHouse away until somebody has been told; then let it come back."""
    first, end = run.load.head, run.load.head + EVENTS
    run.world.ground.proxy.mode = "refuse"
    run.send(first, end)
    run.wait("a page", lambda: bool(_own_pages(run)))
    unstored = run.world.store.rows("SELECT count() FROM incidents WHERE family = 'pipeline'")
    run.world.ground.proxy.mode = ""
    run.wait_for_lag_zero()
    told = _wait_for_the_end(run, "Kizashi is blind")
    return told | {"stored_while_away": unstored[0][0]} | _compare(run, range(end))


def fall_behind(run: Run) -> dict[str, Any]:
    """Let ClickHouse be slow under a load until somebody has been told."""
    load = run.load
    run.world.ground.proxy.mode = "slow"
    producer = run.world.produce(load)
    try:
        run.wait("a page", lambda: bool(_own_pages(run)))
        run.world.ground.proxy.mode = ""
        producer.communicate(timeout=run.settings.seconds + run.settings.patience_s)
    finally:
        producer.kill()
    run.wait_for_lag_zero()
    told = _wait_for_the_end(run, "Kizashi is behind")
    return told | _compare(run, range(load.count - load.tail))


def _own_pages(run: Run) -> list[Alert]:
    """Return the alerts about Kizashi itself."""
    return [a for a in run.world.pagerduty.alerts if _payload(a)["class"] == Family.PIPELINE.value]


def _payload(alert: Alert) -> dict[str, Any]:
    return next(e["payload"] for e in alert.events if e["event_action"] == "trigger")


def _wait_for_the_end(run: Run, summary: str) -> dict[str, Any]:
    """Wait until the incident is over; returns what is wrong about its page."""
    over = "SELECT countIf(status = 'resolved') FROM incidents FINAL WHERE family = 'pipeline'"
    run.wait("the end", lambda: run.world.store.rows(over) == [(1,)])
    run.wait("the end of the page", lambda: not run.world.pagerduty.open_alerts)
    pages = _own_pages(run)
    books = balance_incidents(run.world.store, run.world.pagerduty, run.world.grafana)
    return {
        "pages_besides": len(pages) - 1,
        "strange": sum(not _payload(a)["summary"].startswith(summary) for a in pages),
        "pages_wrong": books.wrong,
        "incidents_open": books.open,
    }


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
    "pipeline_blind": go_blind,
    "pipeline_behind": fall_behind,
}
