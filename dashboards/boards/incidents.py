"""Incidents: what is open, what was, how soon it was found, and the alarms behind it."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit, stat
from dashboards.sql import CAUSE_NAME

_IN_RANGE = "FROM incidents WHERE opened_at <= $__toTime AND opened_at >= $__fromTime"


def _median(since: str, until: str) -> str:
    seconds = f"dateDiff('millisecond', {since}, {until}) / 1000"
    return f"SELECT if(count() = 0, NULL, quantileExact(0.5)({seconds})) AS seconds\n{_IN_RANGE}"


_TOTALS = Row(
    "How it stands",
    (
        stat(
            "Open incidents",
            "As it is now, whatever the time range.",
            "SELECT count() AS open_incidents FROM incidents WHERE status != 'resolved'",
            Unit.COUNT,
            Threshold(1, Colour.RED),
        ),
        stat(
            "Opened",
            "In the time range.",
            f"SELECT count() AS opened\n{_IN_RANGE}",
            Unit.COUNT,
        ),
        stat(
            "Time to detect",
            "Median, from the estimated start of the change to the incident.",
            _median("changed_at", "opened_at"),
            Unit.SECONDS,
        ),
        stat(
            "Time to resolve",
            "Median, from the incident to its resolution; of those that are resolved.",
            _median("opened_at", "resolved_at") + " AND resolved_at IS NOT NULL",
            Unit.SECONDS,
        ),
    ),
)

_LISTS = Row(
    "Incidents and alarms",
    (
        Panel(
            title="Incidents",
            description="Those that were open at some time of the range.",
            kind=Kind.TABLE,
            width=24,
            height=12,
            columns=(
                Column("opened_at", Unit.TIME),
                Column("changed_at", Unit.TIME),
                Column("resolved_at", Unit.TIME),
                Column("share", Unit.SHARE),
                Column("incident_id", opens="incident"),
            ),
            sql=f"""
SELECT opened_at, status, stage, severity, family, symptom, root_cause, summary, suggestion,
       {CAUSE_NAME} AS explained_by,
       share, changed_at, resolved_at, silence, incident_id
FROM incidents
WHERE opened_at <= $__toTime AND (resolved_at IS NULL OR resolved_at >= $__fromTime)
ORDER BY status != 'resolved' DESC, opened_at DESC, incident_id
LIMIT 200""",  # noqa: S608 — the parts are constants
        ),
        Panel(
            title="Incidents by family",
            description="Opened in the time range.",
            kind=Kind.BAR,
            unit=Unit.COUNT,
            width=8,
            height=10,
            sql=f"""
SELECT toString(family) AS name, count() AS incidents
{_IN_RANGE}
GROUP BY name
ORDER BY incidents DESC, name""",
        ),
        Panel(
            title="Times by symptom",
            description="Of all incidents that page, whatever the time range: medians, from the"
            " change to the detection and from there on.",
            kind=Kind.TABLE,
            width=16,
            height=10,
            columns=(
                Column("to_detect", Unit.SECONDS),
                Column("to_acknowledge", Unit.SECONDS),
                Column("to_mitigate", Unit.SECONDS),
                Column("to_resolve", Unit.SECONDS),
            ),
            sql="""
SELECT symptom, incidents, detect_s_p50 AS to_detect, acknowledge_s_p50 AS to_acknowledge,
       mitigate_s_p50 AS to_mitigate, resolve_s_p50 AS to_resolve
FROM incident_times
ORDER BY incidents DESC, symptom""",
        ),
        Panel(
            title="Alarms",
            description="What the detectors raised and cleared; an incident gathers the alarms"
            " that share a cause.",
            kind=Kind.TABLE,
            width=24,
            height=10,
            columns=(Column("time", Unit.TIME), Column("change_time", Unit.TIME)),
            sql="""
SELECT a.time AS time, transition,
       arrayStringConcat(arrayMap((k, v) -> concat(k, '=', v), mapKeys(monitor),
                                  mapValues(monitor)), ', ') AS on_monitor,
       family, signal, direction, e_value, threshold, change_time
FROM alarms AS a FINAL
WHERE $__timeFilter(a.time)
ORDER BY time DESC, on_monitor, signal, transition
LIMIT 200""",
        ),
    ),
)

INCIDENTS = Board(
    uid="kizashi-incidents",
    title="Kizashi: Incidents",
    description="What is open, what was, how soon it was found, and the alarms behind it.",
    span="24h",
    rows=(_TOTALS, _LISTS),
)
