"""Incidents, their notifications, and the evidence behind them in ClickHouse.

Delivery guarantee: a change of an incident is stored before anyone is told of
it; storing the same version again changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.core.answers import ANSWER_WIDTH
from pipeline.core.style import STYLE_FEATURES
from pipeline.incidents.explain import (
    CANDIDATES,
    LINEAGE,
    MIX_DIMENSIONS,
    ErrorType,
    Investigation,
    Moved,
    Slice,
)
from pipeline.incidents.lifecycle import measure_stages
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.alarm import Alarm, Rate
from schemas.counting import RATINGS, predicates
from schemas.feedback import split_value
from schemas.incident import (
    Action,
    Cause,
    Incident,
    Notification,
    Severity,
    Told,
    decode_incident,
    decode_notification,
    encode_incident,
    encode_notification,
)
from schemas.monitor import OTHER
from schemas.signal import INPUT_CLASSES, Signal

#: How far back the period before a change reaches.
BEFORE_MS = 3_600_000
#: Of the same dimensions, slices beyond these, by how much they counted, cannot be the cause.
MAX_SLICES = 300
#: Stands between the values of a monitor with several.
_KEY = "\x1f"
#: So many ways to fail are looked at.
MAX_ERROR_TYPES = 20

#: What a signal of latency measures, in the unit of the alarm's edge.
_MEASURES = {
    Signal.SLOW_FIRST_CHUNK: "time_to_first_chunk_s * 1e3",
    Signal.SLOW_OUTPUT: "time_per_token_s * 1e6",
}
#: What is slow for the monitor may be usual for a model: each is held to its own past, so that
#: all that have become slower show it.
_OWN_EDGE = (
    "transform(toString(request_model), {own_models:Array(String)}, {own_edges:Array(Float64)},"
    " {edge:Float64})"
)
#: With fewer requests before the change a model has no past of its own.
OWN_EVENTS = 50
#: Signal → (which requests it is counted over, which of them count).
PREDICATES = {
    **predicates(_OWN_EDGE, "{edges:Array(Float64)}"),
    Signal.FINGERPRINT: (
        "length(fingerprint) = length({shift:Array(Float64)})",
        "dotProduct(fingerprint, {shift:Array(Float64)}) > {odd_above:Float64}",
    ),
    # Over `_RATED` and not over requests.
    Signal.NEGATIVE_FEEDBACK: RATINGS,
}
#: A feature has moved when its mean is so many standard errors from what it was …
MOVED_ERRORS = 3.0
#: … and of those that have, the first so many are named.
MOVED_FEATURES = 3
#: Added to every spread: what never varied moves for certain, but a trifle is no news.
LEAST_SPREAD = 0.02
_SLICED = ((), *sorted({*CANDIDATES, LINEAGE, *((d,) for d in MIX_DIMENSIONS)}))
_COLUMNS = sorted({d for dimensions in _SLICED for d in dimensions})
#: Requests that were rated, at the time at which they were.
_RATED = (
    f"(SELECT feedback_time AS event_time, event_id, {', '.join(_COLUMNS)}, name, negative"  # noqa: S608
    " FROM feedback FINAL WHERE event_id != '')"
)


class IncidentStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        """Count the alarm's signal in every slice, before the change point and since."""
        counting = _count_by(alarm, alarm.monitor)
        inside, parameters = counting.inside, counting.parameters
        parameters |= _periods(alarm, now_ms) | {"limit": MAX_SLICES} | self._thresholds(alarm)
        columns = ", ".join(_COLUMNS)
        rows = self._store.rows(
            f"""
            SELECT mask, before_hits, before, after_hits, after,
                   before_hits_in, before_in, after_hits_in, after_in, {columns}
            FROM (
                SELECT grouping({columns}) AS mask, {columns},
                       sum(b_hits) AS before_hits, sum(b) AS before,
                       sum(a_hits) AS after_hits, sum(a) AS after,
                       sumIf(b_hits, inside) AS before_hits_in, sumIf(b, inside) AS before_in,
                       sumIf(a_hits, inside) AS after_hits_in, sumIf(a, inside) AS after_in
                FROM (
                    SELECT {columns}, {inside} AS inside,
                           countIf(past AND hit) AS b_hits, countIf(past) AS b,
                           countIf(NOT past AND hit) AS a_hits, countIf(NOT past) AS a
                    FROM (
                        SELECT event_time < {{change:DateTime64(3, 'UTC')}} AS past,
                               {counting.counts} AS hit, {columns}
                        FROM {counting.table}
                        WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
                          AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {counting.over}
                    )
                    GROUP BY {columns}
                )
                GROUP BY GROUPING SETS ({_grouping_sets_sql()})
            )
            ORDER BY mask, before_hits + after_hits DESC, after DESC, {columns}
            LIMIT {{limit:UInt32}} BY mask
            """,  # noqa: S608 — the parts are constants of this file and bound parameters
            parameters,
        )
        slices = tuple(s for row in rows if (s := _slice(row)) is not None)
        return Investigation(
            slices,
            self._find_moved(alarm, now_ms),
            self._count_error_types(alarm, now_ms),
            self._count_as_alarmed(alarm, now_ms),
        )

    def compare(
        self, lead: Alarm, labels: Mapping[str, str], alarms: Sequence[Alarm], now_ms: int
    ) -> dict[str, Investigation]:
        """Count the lead's signal in each alarm's monitor, and in what of it lies in the slice.

        One scan for each grouping of the alarms; see `pipeline.incidents.intake.Evidence`. What
        monitors have in common is counted only where the slice is everything.
        """
        counting = _count_by(lead, dict(labels))
        counting.parameters.update(_periods(lead, now_ms) | self._thresholds(lead))
        everything = {} if labels else self._count_monitors(counting, (), ("",))
        found: dict[str, Investigation] = {}
        for names, some in _by_grouping(alarms).items():
            keys = {alarm.alarm_id: _KEY.join(_plain(alarm.monitor).values()) for alarm in some}
            counted = self._count_monitors(counting, names, tuple(keys.values()))
            for alarm_id, key in keys.items():
                if key in counted:
                    found[alarm_id] = _compared(counted[key], labels, everything.get(""))
        return found

    def _count_monitors(
        self, counting: _Counting, names: Sequence[str], keys: Sequence[str]
    ) -> dict[str, list[Rate]]:
        """By monitor: its rates before and since, and those of its part in the slice."""
        # The separator, `_KEY`, as ClickHouse writes it.
        key = ", char(31), ".join(f"toString({name})" for name in names) or "''"
        rows = self._store.rows(
            f"""
            SELECT key, countIf(past AND hit), countIf(past), countIf(NOT past AND hit),
                   countIf(NOT past), countIf(within AND past AND hit), countIf(within AND past),
                   countIf(within AND NOT past AND hit), countIf(within AND NOT past)
            FROM (
                SELECT concat('', {key}) AS key, {counting.inside} AS within,
                       {counting.counts} AS hit,
                       event_time < {{change:DateTime64(3, 'UTC')}} AS past
                FROM {counting.table}
                WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
                  AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {counting.over}
                  AND key IN {{keys:Array(String)}}
            )
            GROUP BY key
            """,  # noqa: S608 — as above
            counting.parameters | {"keys": list(keys)},
        )
        return {
            str(row[0]): [Rate(int(row[i]), int(row[i + 1])) for i in range(1, 9, 2)]
            for row in rows
        }

    def _count_as_alarmed(self, alarm: Alarm, now_ms: int) -> Slice | None:
        """All traffic by the alarm's own edge, where the slices have edges of their own."""
        if alarm.signal not in _MEASURES:
            return None
        over, _ = PREDICATES[alarm.signal]
        inside, parameters = _inside(alarm.monitor)
        rows = self._store.rows(
            f"""
            SELECT countIf(past AND hit), countIf(past), countIf(NOT past AND hit),
                   countIf(NOT past), countIf(inside AND past AND hit), countIf(inside AND past),
                   countIf(inside AND NOT past AND hit), countIf(inside AND NOT past)
            FROM (
                SELECT event_time < {{change:DateTime64(3, 'UTC')}} AS past, {inside} AS inside,
                       {_MEASURES[alarm.signal]} > {{edge:Float64}} AS hit
                FROM requests
                WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
                  AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {over}
            )
            """,  # noqa: S608 — as above
            parameters | _periods(alarm, now_ms) | {"edge": alarm.edge or 0.0},
        )
        return Slice((), *(Rate(int(rows[0][i]), int(rows[0][i + 1])) for i in range(0, 8, 2)))

    def _count_error_types(self, alarm: Alarm, now_ms: int) -> tuple[ErrorType, ...]:
        """In which ways the monitor's requests fail, before the change point and since."""
        if alarm.signal is not Signal.ERROR:
            return ()
        inside, parameters = _inside(alarm.monitor)
        rows = self._store.rows(
            f"""
            SELECT error_type, countIf(past), sum(countIf(past)) OVER (),
                   countIf(NOT past), sum(countIf(NOT past)) OVER ()
            FROM (
                SELECT error_type, event_time < {{change:DateTime64(3, 'UTC')}} AS past
                FROM requests
                WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
                  AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {inside}
            )
            GROUP BY error_type
            ORDER BY error_type = '', countIf(NOT past) DESC, error_type
            LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — as above
            parameters | _periods(alarm, now_ms) | {"limit": MAX_ERROR_TYPES},
        )
        return tuple(
            ErrorType(str(name), Rate(int(b), int(n)), Rate(int(a), int(m)))
            for name, b, n, a, m in rows
            if name
        )

    def _thresholds(self, alarm: Alarm) -> dict[str, Any]:
        """What the predicates of the alarm's signal compare with."""
        if alarm.signal in _MEASURES:
            return self._own_edges(alarm)
        if alarm.signal is not Signal.FINGERPRINT:
            # Where no quantile is known, nothing counts.
            return {"edges": list(alarm.edges) or [-1.0] * INPUT_CLASSES}
        over, _ = PREDICATES[alarm.signal]
        inside, parameters = _inside(alarm.monitor)
        rows = self._store.rows(
            f"""
            SELECT ifNotFinite(quantileExact(0.9)(along), 0) FROM (
            SELECT dotProduct(fingerprint, {{shift:Array(Float64)}}) AS along FROM requests
            WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
              AND event_time < {{change:DateTime64(3, 'UTC')}} AND {over} AND {inside})
            """,  # noqa: S608 — as above
            parameters
            | {
                "shift": list(alarm.shift),
                "start": to_datetime(alarm.change_time_ms - BEFORE_MS),
                "change": to_datetime(alarm.change_time_ms),
            },
        )
        return {"shift": list(alarm.shift), "odd_above": float(rows[0][0])}

    def _own_edges(self, alarm: Alarm) -> dict[str, Any]:
        """The 90th percentile of each model before the change, where it has a past."""
        over, _ = PREDICATES[alarm.signal]
        rows = self._store.rows(
            f"""
            SELECT toString(request_model), quantileExact(0.9)({_MEASURES[alarm.signal]})
            FROM requests
            WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
              AND event_time < {{change:DateTime64(3, 'UTC')}} AND {over}
            GROUP BY request_model HAVING count() >= {{least:UInt32}}
            ORDER BY count() DESC, request_model LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — as above
            {
                "start": to_datetime(alarm.change_time_ms - BEFORE_MS),
                "change": to_datetime(alarm.change_time_ms),
                "least": OWN_EVENTS,
                "limit": MAX_SLICES,
            },
        )
        edge = alarm.edge or 0.0
        # One that no model has, for ClickHouse takes no empty table.
        return {
            "own_models": ["", *(str(model) for model, _ in rows)],
            "own_edges": [edge, *(float(own) for _, own in rows)],
            "edge": edge,
        }

    def _find_moved(self, alarm: Alarm, now_ms: int) -> tuple[Moved, ...]:
        """Which style features of the monitor's answers have moved most, by the kept samples."""
        if alarm.signal is not Signal.FINGERPRINT:
            return ()
        inside, parameters = _inside(alarm.monitor)
        rows = self._store.rows(
            f"""
            SELECT event_time < {{change:DateTime64(3, 'UTC')}} AS past, count(),
                   avgForEach(answer), varSampForEach(answer)
            FROM answer_samples
            WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
              AND event_time <= {{now:DateTime64(3, 'UTC')}} AND length(answer) = {ANSWER_WIDTH}
              AND event_id IN (
                  SELECT event_id FROM requests
                  WHERE event_time >= {{start:DateTime64(3, 'UTC')}}
                    AND event_time <= {{now:DateTime64(3, 'UTC')}} AND {inside})
            GROUP BY past HAVING count() > 1
            """,  # noqa: S608 — as above
            parameters
            | {
                "start": to_datetime(alarm.change_time_ms - BEFORE_MS),
                "change": to_datetime(alarm.change_time_ms),
                "now": to_datetime(now_ms),
            },
        )
        periods = {bool(past): rest for past, *rest in rows}
        return _compare(periods[True], periods[False]) if len(periods) == 2 else ()

    def find_examples(self, alarm: Alarm, cause: Cause, limit: int = 5) -> tuple[str, ...]:
        """Return ids of the latest events inside the cause that counted."""
        counting = _count_by(alarm, cause.labels)
        parameters = counting.parameters
        parameters |= {
            "change": to_datetime(alarm.change_time_ms),
            "now": to_datetime(alarm.time_ms),
            "limit": limit,
        }
        parameters |= self._thresholds(alarm)
        rows = self._store.rows(
            f"""
            SELECT event_id FROM {counting.table}
            WHERE event_time >= {{change:DateTime64(3, 'UTC')}}
              AND event_time <= {{now:DateTime64(3, 'UTC')}}
              AND {counting.over} AND {counting.counts} AND {counting.inside}
            ORDER BY event_time DESC LIMIT 1 BY event_id LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — as above
            parameters,
        )
        return tuple(row[0] for row in rows)

    def save(self, *incidents: Incident) -> None:
        """Store a version of each of these incidents, all or none."""
        self._store.insert_rows("incident_versions", [_incident_row(i) for i in incidents])

    def load_recent(self, limit: int = 1_000) -> list[Incident]:
        """Return all open incidents, and the latest resolved ones up to `limit` in all."""
        rows = self._store.rows(
            "SELECT incident FROM incident_versions FINAL"
            " ORDER BY status = 'open' DESC, opened_at DESC LIMIT {limit:UInt32}",
            {"limit": limit},
        )
        return [decode_incident(row[0]) for row in rows]

    def find(self, name: str, limit: int = 5) -> list[Incident]:
        """Return the incident whose id is `name`, or else the first of those that begin with it."""
        rows = self._store.rows(
            "SELECT incident FROM incident_versions FINAL"
            " WHERE startsWith(incident_id, {name:String})"
            " ORDER BY incident_id != {name:String}, incident_id LIMIT {limit:UInt32}",
            {"name": name, "limit": limit},
        )
        found = [decode_incident(row[0]) for row in rows]
        return found[:1] if found and found[0].incident_id == name else found

    def measure_stages(self, since_ms: int) -> list[dict[str, Any]]:
        """Return, by symptom, how many incidents came to each stage and how soon, in seconds.

        Those that only informed, those that were a part of another, and Kizashi's own are not
        counted.
        """
        names, rows = self._store.query(
            f"""
            SELECT symptom, count() AS incidents,
                   {", ".join(map(_stage_sql, ("detect", "acknowledge", "mitigate", "resolve")))}
            FROM incident_versions FINAL
            WHERE severity != 'info' AND merged_into = '' AND family != 'pipeline'
              AND opened_at >= {{since:DateTime64(3, 'UTC')}}
            GROUP BY symptom ORDER BY symptom
            """,  # noqa: S608 — as above
            {"since": to_datetime(since_ms)},
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

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

    def load_standing(self, destination: str, limit: int) -> list[Notification]:
        """Return the last one sent of each incident, unless that was its resolve; latest first."""
        rows = self._store.rows(
            "SELECT notification FROM ("
            "SELECT notification, action, sent_at FROM notifications FINAL"
            " WHERE destination = {destination:String} AND sent_at IS NOT NULL"
            " ORDER BY incident_id, sequence DESC LIMIT 1 BY incident_id"
            ") WHERE action != 'resolve' ORDER BY sent_at DESC LIMIT {limit:UInt32}",
            {"destination": destination, "limit": limit},
        )
        return [decode_notification(row[0]) for row in rows]

    def load_told(self, *incident_ids: str) -> list[Told]:
        """Return what has been told of these incidents or is to be, without what was said."""
        rows = self._store.rows(
            "SELECT incident_id, destination, sequence, action,"
            " JSONExtractString(notification, 'incident', 'severity'),"
            " toUnixTimestamp64Milli(sent_at), failure"
            " FROM notifications FINAL WHERE incident_id IN {incident_ids:Array(String)}"
            " ORDER BY incident_id, destination, sequence",
            {"incident_ids": list(incident_ids)},
        )
        return [
            Told(
                incident_id=incident_id,
                destination=destination,
                sequence=sequence,
                action=Action(action),
                severity=Severity(severity),
                sent_ms=sent_ms,
                failure=failure,
            )
            for incident_id, destination, sequence, action, severity, sent_ms, failure in rows
        ]


class _Counting(NamedTuple):
    """Where an alarm's signal is counted, as SQL."""

    table: str
    #: Which rows it is counted over, which of them count, and which lie in the slice.
    over: str
    counts: str
    inside: str
    parameters: dict[str, Any]


def _count_by(alarm: Alarm, labels: dict[str, str]) -> _Counting:
    """How the alarm's signal is counted, and in the slice with these labels."""
    over, counts = PREDICATES[alarm.signal]
    inside, parameters = _inside(labels)
    if alarm.signal is not Signal.NEGATIVE_FEEDBACK:
        return _Counting("requests", over, counts, inside, parameters)
    names = (split_value(value)[0] for value in alarm.monitor.values())
    if evaluation := next(filter(None, names), ""):
        over = f"{over} AND replaceAll(name, '/', ':') = {{evaluation:String}}"
        parameters |= {"evaluation": evaluation}
    return _Counting(_RATED, over, counts, inside, parameters)


def _stage_sql(stage: str) -> str:
    seconds = f"{stage}_s"
    return (
        f"count({seconds}) AS {stage}_count,"
        f" quantileExactInclusiveOrNull(0.5)({seconds}) AS {stage}_s_p50,"
        f" quantileExactInclusiveOrNull(0.9)({seconds}) AS {stage}_s_p90"
    )


def _compare(before: Sequence[Any], after: Sequence[Any]) -> tuple[Moved, ...]:
    """Style features by how sure it is that they moved; each period is (n, means, variances).

    The yardstick is the variance before: of what was rare until the change a few answers say
    much, and by their own variance they would seem to say little.
    """
    (n, mean, variance), (m, mean_now, _) = before, after
    moved = []
    for i, feature in enumerate(STYLE_FEATURES):
        error = math.sqrt((variance[i] + LEAST_SPREAD**2) * (1 / n + 1 / m))
        errors = abs(mean_now[i] - mean[i]) / error
        if errors >= MOVED_ERRORS:
            values = (feature.scale.undo(mean[i]), feature.scale.undo(mean_now[i]))
            moved.append((errors, Moved(feature.phrase, feature.scale.is_share, *values)))
    moved.sort(key=lambda each: -each[0])
    return tuple(each for _, each in moved[:MOVED_FEATURES])


def _periods(alarm: Alarm, now_ms: int) -> dict[str, Any]:
    """From an hour before the change, over the change, until now."""
    return {
        "start": to_datetime(alarm.change_time_ms - BEFORE_MS),
        "change": to_datetime(alarm.change_time_ms),
        "now": to_datetime(now_ms),
    }


def _plain(labels: Mapping[str, str]) -> dict[str, str]:
    """A monitor of feedback by the requests that were rated, as the tables have them."""
    return {name: split_value(value)[1] for name, value in labels.items()}


def _inside(labels: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """A predicate for "in this slice", and its parameters."""
    named = {k: v for k, v in _plain(labels).items() if v != OTHER}
    terms = [f"{name} = {{label{i}:String}}" for i, name in enumerate(named)]
    return " AND ".join(terms) or "1", {f"label{i}": v for i, v in enumerate(named.values())}


def _by_grouping(alarms: Sequence[Alarm]) -> dict[tuple[str, ...], list[Alarm]]:
    """The alarms by the names of their monitors' labels, without those of all other monitors."""
    found: dict[tuple[str, ...], list[Alarm]] = {}
    for alarm in alarms:
        if alarm.monitor and OTHER not in alarm.monitor.values():
            found.setdefault(tuple(alarm.monitor), []).append(alarm)
    return found


def _compared(
    rates: Sequence[Rate], labels: Mapping[str, str], everything: Sequence[Rate] | None
) -> Investigation:
    """A monitor and its part in the slice, as an investigation has them."""
    before, after, before_part, after_part = rates
    whole_before, whole_after = everything[:2] if everything else (before, after)
    whole = Slice((), whole_before, whole_after, before, after)
    part = Slice(tuple(labels.items()), before_part, after_part, before_part, after_part)
    return Investigation((whole, part) if labels else (whole,))


def _grouping_sets_sql() -> str:
    return ", ".join("(" + ", ".join(dimensions) + ")" for dimensions in _SLICED)


def _mask(dimensions: Sequence[str]) -> int:
    """What ClickHouse's `grouping` says of a set: a bit for each column that is *not* in it."""
    last = len(_COLUMNS) - 1
    return sum(1 << (last - i) for i, column in enumerate(_COLUMNS) if column not in dimensions)


_DIMENSIONS_OF = {_mask(dimensions): dimensions for dimensions in _SLICED}


def _slice(row: tuple[Any, ...]) -> Slice | None:
    values = dict(zip(_COLUMNS, row[9:], strict=True))
    labels = tuple((d, str(values[d])) for d in _DIMENSIONS_OF[int(row[0])])
    if any(not value for _, value in labels):
        return None
    rates = [Rate(int(row[i]), int(row[i + 1])) for i in range(1, 9, 2)]
    return Slice(labels, *rates)


def _optional_time(time_ms: int | None) -> Any:
    return None if time_ms is None else to_datetime(time_ms)


def _incident_row(incident: Incident) -> dict[str, Any]:
    times = measure_stages(incident)
    return {
        "incident_id": incident.incident_id,
        "version": incident.version,
        "status": incident.status.value,
        "stage": incident.stage.value,
        "severity": incident.severity.value,
        "family": incident.family.value,
        "symptom": incident.symptom.value,
        "root_cause": incident.root_cause.value,
        "cause": incident.cause.labels,
        "share": incident.cause.share,
        "changed_at": to_datetime(incident.change_time_ms),
        "opened_at": to_datetime(incident.opened_ms),
        "triaged_at": _optional_time(incident.triaged_ms),
        "acknowledged_at": _optional_time(incident.acknowledged_ms),
        "acknowledged_by": incident.acknowledged_by,
        "mitigated_at": _optional_time(incident.mitigated_ms),
        "resolved_at": _optional_time(incident.resolved_ms),
        "updated_at": to_datetime(incident.updated_ms),
        **times._asdict(),
        "summary": incident.summary,
        "suggestion": incident.suggestion,
        "example_event_ids": list(incident.example_event_ids),
        "alarms": len(incident.alarms),
        "merged_into": incident.merged_into,
        "silence": incident.silenced.why if incident.silenced else "",
        "incident": encode_incident(incident).decode(),
    }


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
