"""A fake ClickHouse: blocks under tokens, and rows that replace each other by key.

A token is known for the last `window` blocks of a table. An insert may fail before it has
taken effect or after, die in the middle of the worker that made it, or take effect some time
after its maker was told that it had failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from detectors.bank_verdicts import VerdictTable
from pipeline.core.chunk import ChunkEffects, Columns
from pipeline.errors import RowsRefused, SinkUnavailable
from pipeline.incidents.explain import Investigation
from pipeline.sinks.arrow import to_table
from pipeline.sinks.notifier import is_finished
from pipeline.sinks.refusing import store_or_refuse
from pipeline.sinks.requests import RequestStore, token_of
from schemas.alarm import Alarm
from schemas.control import Effect, Reset
from schemas.incident import Action, Cause, Incident, Notification, Told, told_by
from schemas.signal import Source
from tests.simulation.events import POISON

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

#: Tables of a chunk's columns, made once: they are a pure function of the chunk.
_tables: dict[int, tuple[object, pa.Table]] = {}


class ClickHouse:
    """What outlives a worker."""

    def __init__(self, world: World, window: int) -> None:
        self._world = world
        self._window = window
        self._tokens: dict[str, deque[str]] = {}
        self.snapshots: dict[tuple[str, int], tuple[int, bytes]] = {}
        self.alarms: set[tuple[str, str]] = set()
        self.incidents: dict[str, Incident] = {}
        self.notifications: dict[tuple[str, str, int], Notification] = {}
        #: Ids of rows that were stored or refused as unstorable, by where they stood.
        self.ids: dict[tuple[str, int], dict[int, str]] = {}

    def insert(self, table: str, token: str, apply: Callable[[], None]) -> None:
        known = self._tokens.setdefault(table, deque(maxlen=self._window))
        if token in known:
            return
        known.append(token)
        apply()


class Store:
    """`pipeline.sinks.clickhouse.Store`, as far as a chunk's effects go through it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def insert(self, table: str, columns: Columns | pa.Table, token: str) -> None:
        world = self._world
        what = f"insert {table} {token}"
        world.begin_call(self._process, "clickhouse", what)
        if table == "requests" and _is_poisoned(columns):
            raise RowsRefused("DECIMAL_OVERFLOW")

        def apply() -> None:
            world.clickhouse.insert(table, token, lambda: world.note_insert(table, columns, token))

        world.end_call(self._process, what, apply, may_be_late=True)


def _is_poisoned(rows: pa.Table) -> bool:
    return any(POISON in event_id for event_id in rows.column("event_id").to_pylist())


class Requests(RequestStore):
    """The real one, but for the query that no fake can run and tables that are made once."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(Store(world, process))  # type: ignore[arg-type]
        self._world = world
        self._process = process

    def find_unstorable(self, effects: ChunkEffects) -> dict[int, str]:
        if not effects.requests:
            return {}
        key = id(effects.requests)
        if key not in _tables:
            _tables[key] = (effects.requests, to_table("requests", effects.requests))
        return store_or_refuse(self._store, "requests", _tables[key][1], token_of(effects.source))

    def read_recent_ids(self, source: Source, limit: int) -> list[str]:
        self._world.begin_call(self._process, "clickhouse", "read recent ids")
        ids = self._world.clickhouse.ids.get((source.epoch, source.partition), {})
        below = sorted(offset for offset in ids if offset < source.first_offset)
        return [ids[offset] for offset in below[-limit:]]


class _Tables:
    """What one process can do to the world's tables."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def _write(self, what: str, apply: Callable[[], None]) -> None:
        self._world.begin_call(self._process, "clickhouse", what)
        self._world.end_call(self._process, what, apply)

    def _read(self, what: str) -> ClickHouse:
        self._world.begin_call(self._process, "clickhouse", what)
        return self._world.clickhouse


class Detections(_Tables):
    """`pipeline.sinks.detections.DetectionStore`."""

    def store_verdicts(self, tables: Sequence[VerdictTable]) -> None:
        if tables:
            self._write("store verdicts", lambda: None)

    def store_alarms(self, alarms: Sequence[Alarm]) -> None:
        if alarms:
            rows = {(a.alarm_id, a.transition.value) for a in alarms}
            self._write("store alarms", lambda: self._world.clickhouse.alarms.update(rows))

    def store_resets(self, resets: Sequence[Reset]) -> None:
        """There are none here."""

    def store_effects(self, effects: Sequence[Effect]) -> None:
        """There are none here."""

    def save_snapshot(
        self, topic: str, epoch: str, partition: int, position: int, pieces: Iterable[bytes]
    ) -> None:
        state = b"".join(pieces)

        def apply() -> None:
            found = self._world.clickhouse.snapshots
            if position >= found.get((epoch, partition), (-1, b""))[0]:
                found[epoch, partition] = (position, state)
            self._world.check_snapshot(partition, position, state)

        self._write(f"save snapshot {partition} at {position}", apply)

    def load_snapshot(self, topic: str, epoch: str, partition: int) -> tuple[int, bytes] | None:
        return self._read("load snapshot").snapshots.get((epoch, partition))


class Incidents(_Tables):
    """`pipeline.sinks.incidents.IncidentStore`; nothing is known of what is behind an alarm."""

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        self._read("investigate")
        return Investigation(())

    def find_examples(self, alarm: Alarm, cause: Cause) -> tuple[str, ...]:
        return ()

    def compare(
        self, lead: Alarm, labels: Mapping[str, str], alarms: Sequence[Alarm], now_ms: int
    ) -> dict[str, Investigation]:
        self._read("compare")
        return {}

    def save(self, *incidents: Incident) -> None:
        def apply() -> None:
            stored = self._world.clickhouse.incidents
            for incident in incidents:
                known = stored.get(incident.incident_id)
                if known is None or incident.version >= known.version:
                    stored[incident.incident_id] = incident

        if self._process.woke_s > self._process.proven_s:
            # As with a page: it slept from the proof that the alarms were its own until now.
            raise SinkUnavailable("timed out")
        said = ", ".join(f"{i.incident_id} v{i.version}" for i in incidents)
        self._write(f"save {said}", apply)

    def load_recent(self) -> list[Incident]:
        return list(self._read("load incidents").incidents.values())

    def save_notifications(self, notifications: Sequence[Notification]) -> None:
        def apply() -> None:
            for each in notifications:
                key = (each.incident_id, each.destination, each.sequence)
                known = self._world.clickhouse.notifications.get(key)
                if known is None or _revision(each) >= _revision(known):
                    self._world.clickhouse.notifications[key] = each

        said = ", ".join(f"{n.action} {n.incident_id} {n.sequence}" for n in notifications)
        self._write(f"save notifications: {said}", apply)

    def load_pending(self) -> list[Notification]:
        stored = self._read("load pending").notifications.values()
        return [n for n in stored if not is_finished(n)]

    def load_told(self, *incident_ids: str) -> list[Told]:
        stored = self._read("load history").notifications.values()
        return [told_by(n) for n in stored if n.incident_id in incident_ids]

    def load_standing(self, destination: str, limit: int) -> list[Notification]:
        stored = self._read("load standing").notifications.values()
        sent = sorted((n for n in stored if n.sent_ms is not None), key=lambda n: n.sequence)
        last = {n.incident_id: n for n in sent}
        return [n for n in last.values() if n.action is not Action.RESOLVE][:limit]


def _revision(notification: Notification) -> int:
    """As the table's own: an end state outranks any number of attempts."""
    return notification.attempts + (1 << 32 if is_finished(notification) else 0)
