"""Whether the books balance: what was sent against all that came of it.

Everything is asked of the outside: the log in Kafka, the tables of ClickHouse, the receivers. A
number of `Load` says what its event was, so that what must be stored is known without reading it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.bank import Bank
from pipeline.build import build_bank_config
from pipeline.config import Config
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.pagerduty import dedup_key
from pipeline.topics import topic_epochs
from schemas.alarm import Alarm
from schemas.control import decode_signals
from schemas.incident import decode_incident
from schemas.signal import COUNT_TYPE, GROUPING_TYPE, REQUESTS, SignalPacket
from tests.chaos.events import IS_BAD_SQL, Load, is_bad
from tests.support.kafka import consume
from tests.support.pagerduty import FakePagerDuty
from tests.support.receivers import AnnotationRoom
from tests.support.rollups import GROUPINGS, rollups_that_differ, total_of

_NUMBER = "toUInt64(substring(event_id, 2))"


@dataclass(frozen=True)
class EventBooks:
    """Every number of the load is stored once or dead-lettered once, and counted once."""

    stored: int
    dead_lettered: int
    lost: int
    #: Of the requests, the rollups, the dead letters and the signals: the largest surplus.
    doubled: int
    #: Stored although nobody sent it so, or dead-lettered although good.
    strange: int
    rollups_differ: tuple[str, ...]


def balance_events(store: Store, kafka: Any, load: Load) -> EventBooks:
    """Compare what is stored with what was sent."""
    rows, stored = store.rows("SELECT count(), uniqExact(event_id) FROM requests")[0]
    missing = _count(
        store,
        f"SELECT count() FROM numbers({load.count}) WHERE NOT ({IS_BAD_SQL})"
        f" AND number NOT IN (SELECT {_NUMBER} FROM requests)",
    )
    strange = _count(
        store,
        f"SELECT count() FROM (SELECT {_NUMBER} AS number FROM requests)"
        f" WHERE {IS_BAD_SQL} OR number >= {load.count}",
    )
    letters, distinct, unexpected, unfound = _compare_letters(store, load)
    published = {hashlib.sha256(r.value).digest() for r in consume(kafka, kafka.deadletter_topic)}
    unpublished = len({_digest(load, n) for n in _bad(load)} - published)
    signalled, signalled_twice = count_signals(kafka)
    counted = [total_of(store, grouping) for grouping in GROUPINGS]
    return EventBooks(
        stored=stored,
        dead_lettered=distinct,
        lost=missing + max(unfound, unpublished, 0) + max(0, stored - min(*counted, signalled)),
        doubled=max(rows, signalled, *counted) - stored + (letters - distinct) + signalled_twice,
        strange=strange + unexpected,
        rollups_differ=tuple(rollups_that_differ(store)),
    )


def balance_control(store: Store, table: str, load: Load) -> tuple[int, int]:
    """Return how many good events a control has lost, and how many it has counted twice."""
    rows, stored = store.rows(f"SELECT count(), uniqExact(event_id) FROM {table}")[0]
    missing = _count(
        store,
        f"SELECT count() FROM numbers({load.count}) WHERE NOT ({IS_BAD_SQL})"
        f" AND number NOT IN (SELECT {_NUMBER} FROM {table})",
    )
    counted = rows if table != "requests" else max(total_of(store, g) for g in GROUPINGS)
    return missing, max(rows, counted) - stored


def _count(store: Store, sql: str) -> int:
    return int(store.rows(sql)[0][0])


def _bad(load: Load) -> Iterable[int]:
    return filter(is_bad, range(load.count))


def _digest(load: Load, number: int) -> bytes:
    return hashlib.sha256(load.line(number)).digest()


def _compare_letters(store: Store, load: Load) -> tuple[int, int, int, int]:
    """Rows, distinct offsets, digests that nobody expected, digests that are not there."""
    sql = "SELECT count(), uniqExact((topic, epoch, partition, offset)) FROM deadletters"
    rows, distinct = store.rows(sql)[0]
    found = {bytes.fromhex(r[0]) for r in store.rows("SELECT hex(sha256) FROM deadletters")}
    expected = {_digest(load, number) for number in _bad(load)}
    return rows, distinct, len(found - expected), len(expected - found)


def read_packets(kafka: Any) -> dict[int, list[Any]]:
    """Return the records of the signals topic by partition, in order."""
    found: dict[int, list[Any]] = {p: [] for p in range(kafka.topics.signals_partitions)}
    for record in consume(kafka, kafka.signals_topic):
        found[record.partition].append(record)
    return found


def count_signals(kafka: Any) -> tuple[int, int]:
    """Return the events that the signals speak of, and how many of them twice.

    A range may come again on the topic; it must come as the same range. One grouping is counted,
    over all signals partitions, every range and part once.
    """
    taken: dict[Any, int] = {}
    for partition, records in read_packets(kafka).items():
        for record in records:
            packet = decode_signals(record.value)
            if isinstance(packet, SignalPacket):
                s = packet.source
                key = (partition, s.partition, s.first_offset, s.last_offset, packet.part)
                taken[key] = _requests_of(packet, GROUPINGS[0])
    ranges = sorted({key[1:4] for key in taken})
    overlapping = {
        later for one, later in itertools.pairwise(ranges)
        if one[0] == later[0] and later[1] <= one[2]
    }  # fmt: skip
    twice = sum(total for key, total in taken.items() if key[1:4] in overlapping)
    return sum(taken.values()), twice


def _requests_of(packet: SignalPacket, grouping: str) -> int:
    if grouping not in packet.groupings:
        return 0
    mine = np.frombuffer(packet.grouping, GROUPING_TYPE) == packet.groupings.index(grouping)
    return int(np.frombuffer(packet.columns[REQUESTS], COUNT_TYPE)[mine].sum())


@dataclass(frozen=True)
class DetectorBooks:
    """The detectors after all faults, beside detectors that read the same log undisturbed."""

    #: Partitions whose snapshot is not the same, byte for byte; those without a snapshot too.
    partitions_differ: int
    #: Alarms that only one of the two has raised or cleared.
    alarms_differ: int
    alarms: int
    packets: int


def balance_detectors(store: Store, config: Config) -> DetectorBooks:
    """Read the signals through a fresh bank, up to the last snapshot of each partition."""
    kafka = config.kafka
    epoch = topic_epochs(kafka, [kafka.signals_topic])[kafka.signals_topic]
    differ, packets = 0, 0
    undisturbed: set[tuple[str, str]] = set()
    for partition, records in read_packets(kafka).items():
        packets += len(records)
        found = DetectionStore(store).load_snapshot(kafka.signals_topic, epoch, partition)
        position, state = found or (-1, b"")
        again, alarms = _replay(config, records, position)
        differ += again != state
        undisturbed |= alarms
    stored = {(a, t) for a, t in store.rows("SELECT DISTINCT alarm_id, transition FROM alarms")}
    return DetectorBooks(differ, len(stored ^ undisturbed), len(stored), packets)


def _replay(
    config: Config, records: list[Any], position: int
) -> tuple[bytes, set[tuple[str, str]]]:
    bank = Bank(build_bank_config(config, config.kafka.topics.signals_partitions))
    alarms: list[Alarm] = []
    for record in records:
        packet = decode_signals(record.value)
        if record.offset <= position and isinstance(packet, SignalPacket):
            alarms += bank.update(packet).alarms
    return bank.snapshot(), {(a.alarm_id, a.transition.value) for a in alarms}


@dataclass(frozen=True)
class IncidentBooks:
    """The incidents, and what the receivers show of them."""

    incidents: int
    open: int
    #: Pages and annotations that are missing, too many, or not over when the incident is.
    wrong: int


def balance_incidents(
    store: Store, pagerduty: FakePagerDuty, grafana: AnnotationRoom
) -> IncidentBooks:
    """Hold each incident against its one page and its one annotation."""
    rows = store.rows("SELECT argMax(incident, version) FROM incidents GROUP BY incident_id")
    incidents = [decode_incident(row[0].encode()) for row in rows]
    still_open = {dedup_key(i.incident_id) for i in incidents if i.status == "open"}
    paged = {dedup_key(i.incident_id) for i in incidents if i.severity != "info"}
    told = {dedup_key(i.incident_id) for i in incidents}
    pages = [alert.dedup_key for alert in pagerduty.alerts]
    open_pages = {alert.dedup_key for alert in pagerduty.open_alerts}
    notes = [tag for a in grafana.annotations.values() for tag in a["tags"] if tag in told]
    wrong = _surplus(pages, paged) + len(open_pages ^ (still_open & paged))
    wrong += _surplus(notes, told) + max(0, len(grafana.annotations) - len(notes))
    return IncidentBooks(len(incidents), len(still_open), wrong)


def _surplus(found: list[str], expected: set[str]) -> int:
    """How many are missing, too many, or strange."""
    return len(set(found) ^ expected) + len(found) - len(set(found))
