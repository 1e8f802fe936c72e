"""Incidents, their notifications, and the evidence behind them in ClickHouse.

Delivery guarantee: a change of an incident is stored before anyone is told of
it; storing the same version again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.incidents.explain import CANDIDATES, MIX_DIMENSIONS, Investigation, Slice
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.alarm import Alarm, Rate
from schemas.incident import (
    Cause,
    Incident,
    Notification,
    decode_incident,
    decode_notification,
    encode_incident,
    encode_notification,
)
from schemas.monitor import OTHER
from schemas.signal import Signal

#: How far back the period before a change reaches.
BEFORE_MS = 3_600_000
#: Slices beyond these, by how much they counted, cannot be the cause.
MAX_SLICES = 2_000

#: Signal → (which requests it is counted over, which of them count).
_PREDICATES = {
    Signal.REFUSAL: ("error_type = ''", "refused"),
    Signal.ERROR: ("1", "error_type != ''"),
    Signal.TRUNCATION: ("error_type = ''", "truncated"),
    Signal.SLOW_FIRST_CHUNK: (
        "error_type = '' AND cache != 'hit' AND time_to_first_chunk_s IS NOT NULL",
        "time_to_first_chunk_s * 1e3 > {slow_above:Float64}",
    ),
    Signal.SLOW_OUTPUT: (
        "time_per_token_s IS NOT NULL",
        "time_per_token_s * 1e6 > {slow_above:Float64}",
    ),
}
_SLICED = sorted({*CANDIDATES, *((d,) for d in MIX_DIMENSIONS)})


class IncidentStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        """Count the alarm's signal in every slice, before the change point and since."""
        over, counts = _PREDICATES[alarm.signal]
        inside, parameters = _inside(alarm.monitor)
        parameters |= {
            "start": to_datetime(alarm.change_time_ms - BEFORE_MS),
            "change": to_datetime(alarm.change_time_ms),
            "now": to_datetime(now_ms),
            "slow_above": alarm.slow_above or 0.0,
            "limit": MAX_SLICES,
        }
        rows = self._store.rows(
            f"""
            SELECT labels,
                   countIf(past AND hit), countIf(past),
                   countIf(NOT past AND hit), countIf(NOT past),
                   countIf(inside AND past AND hit), countIf(inside AND past),
                   countIf(inside AND NOT past AND hit), countIf(inside AND NOT past)
            FROM (
                SELECT event_time < {{change:DateTime64(3, 'UTC')}} AS past,
                       {counts} AS hit, {inside} AS inside, arrayJoin({_labels_sql()}) AS labels
                FROM requests
                WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
                  AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {over}
            )
            GROUP BY labels
            ORDER BY countIf(NOT past AND hit) DESC, countIf(NOT past) DESC, labels
            LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — the parts are constants of this file and bound parameters
            parameters,
        )
        return Investigation(tuple(s for row in rows if (s := _slice(row)) is not None))

    def find_examples(self, alarm: Alarm, cause: Cause, limit: int = 5) -> tuple[str, ...]:
        """Return ids of the latest events inside the cause that counted."""
        over, counts = _PREDICATES[alarm.signal]
        inside, parameters = _inside(cause.labels)
        parameters |= {
            "change": to_datetime(alarm.change_time_ms),
            "now": to_datetime(alarm.time_ms),
            "slow_above": alarm.slow_above or 0.0,
            "limit": limit,
        }
        rows = self._store.rows(
            f"""
            SELECT event_id FROM requests
            WHERE event_time >= {{change:DateTime64(3, 'UTC')}}
              AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {over} AND {counts} AND {inside}
            ORDER BY event_time DESC LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — as above
            parameters,
        )
        return tuple(row[0] for row in rows)

    def save(self, incident: Incident) -> None:
        """Store one version of an incident."""
        resolved = incident.resolved_ms
        row: dict[str, Any] = {
            "incident_id": incident.incident_id,
            "version": incident.version,
            "status": incident.status.value,
            "severity": incident.severity.value,
            "family": incident.family.value,
            "cause": incident.cause.labels,
            "share": incident.cause.share,
            "opened_at": to_datetime(incident.opened_ms),
            "updated_at": to_datetime(incident.updated_ms),
            "resolved_at": None if resolved is None else to_datetime(resolved),
            "changed_at": to_datetime(incident.change_time_ms),
            "summary": incident.summary,
            "suggestion": incident.suggestion,
            "incident": encode_incident(incident).decode(),
        }
        self._store.insert_rows("incident_versions", [row])

    def load_recent(self, limit: int = 1_000) -> list[Incident]:
        """Return all open incidents, and the latest resolved ones up to `limit` in all."""
        rows = self._store.rows(
            "SELECT incident FROM incident_versions FINAL"
            " ORDER BY status = 'open' DESC, opened_at DESC LIMIT {limit:UInt32}",
            {"limit": limit},
        )
        return [decode_incident(row[0]) for row in rows]

    def save_notifications(self, notifications: Sequence[Notification]) -> None:
        """Store notifications in the state they are in; a later state replaces an earlier one."""
        self._store.insert_rows("notifications", [_notification_row(n) for n in notifications])

    def load_pending(self) -> list[Notification]:
        """Return the notifications that were neither sent nor refused, in order of sequence."""
        rows = self._store.rows(
            "SELECT notification FROM notifications FINAL"
            " WHERE sent_at IS NULL AND failure = '' ORDER BY incident_id, destination, sequence"
        )
        return [decode_notification(row[0]) for row in rows]

    def load_notifications(self, incident_id: str) -> list[Notification]:
        """Return all notifications about one incident, whatever their state."""
        rows = self._store.rows(
            "SELECT notification FROM notifications FINAL"
            " WHERE incident_id = {incident_id:String} ORDER BY destination, sequence",
            {"incident_id": incident_id},
        )
        return [decode_notification(row[0]) for row in rows]


def _inside(labels: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """A predicate for "in this slice", and its parameters."""
    named = {k: v for k, v in labels.items() if v != OTHER}
    terms = [f"{name} = {{label{i}:String}}" for i, name in enumerate(named)]
    return " AND ".join(terms) or "1", {f"label{i}": v for i, v in enumerate(named.values())}


def _labels_sql() -> str:
    """Every slice an event is in, as arrays of (dimension, value); the empty one is the whole."""
    arrays = [
        "[" + ", ".join(f"('{d}', toString({d}))" for d in dimensions) + "]"
        for dimensions in _SLICED
    ]
    return "[CAST([] AS Array(Tuple(String, String))), " + ", ".join(arrays) + "]"


def _slice(row: tuple[Any, ...]) -> Slice | None:
    labels = tuple((str(name), str(value)) for name, value in row[0])
    if any(not value for _, value in labels):
        return None
    rates = [Rate(int(row[i]), int(row[i + 1])) for i in range(1, 9, 2)]
    return Slice(labels, *rates)


def _notification_row(notification: Notification) -> dict[str, Any]:
    sent = notification.sent_ms
    done = sent is not None or bool(notification.failure)
    return {
        "incident_id": notification.incident_id,
        "destination": notification.destination,
        "sequence": notification.sequence,
        "action": notification.action.value,
        "sent_at": None if sent is None else to_datetime(sent),
        "failure": notification.failure,
        "attempts": notification.attempts,
        # An end state outranks any number of attempts.
        "revision": notification.attempts + (1 << 32 if done else 0),
        "notification": encode_notification(notification).decode(),
    }
