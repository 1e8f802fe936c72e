"""One incident: what it says, the signal inside its cause and elsewhere, and example requests."""

from __future__ import annotations

from dashboards.panels import Board, Column, Kind, Panel, Row, Subject, Unit
from dashboards.sql import CAUSE_NAME, is_chosen, rate_of
from schemas.counting import RATINGS, predicates
from schemas.feedback import PREFIX
from schemas.monitor import DIMENSIONS
from schemas.signal import Signal

_CHOSEN = is_chosen(Subject.INCIDENT, "incident_id")
_ORDER = "ORDER BY opened_at DESC, incident_id LIMIT 1"


def _told(expression: str) -> str:
    """A value of the chosen incident; with none chosen, of the latest; of none, the default."""
    return f"(SELECT argMax({expression}, opened_at) FROM incidents WHERE {_CHOSEN})"  # noqa: S608


#: Where an incident's JSON has the alarm that opened it.
_ALARM = "incident, 'alarms', 1"
#: How the first alarm's signal is counted: over which requests, and which of them.
_COUNTED: dict[Signal, tuple[str, str]] = {
    **predicates("edge", "edges"),
    Signal.FINGERPRINT: (
        "notEmpty(fingerprint)",
        "dotProduct(arrayResize(fingerprint, length(shift)), shift) > odd_above",
    ),
}


def _choose(part: int) -> str:
    cases = ", ".join(f"signal = '{s}', {counted[part]}" for s, counted in _COUNTED.items())
    return f"ifNull(multiIf({cases}, 0), 0)"


_LABELS = "map(" + ", ".join(f"'{d}', toString({d})" for d in DIMENSIONS) + ")"

_SIGNAL = _told(f"JSONExtractString({_ALARM}, 'signal')")
_SHIFT = _told(f"JSONExtract({_ALARM}, 'shift', 'Array(Float64)')")
_ALONG = "dotProduct(arrayResize(fingerprint, length(shift)), shift)"
_MONITOR = _told(f"JSONExtract({_ALARM}, 'monitor', 'Map(String, String)')")
#: ``feedback/NAME/value``: of monitors of feedback the evaluation, and of their values the rest.
_EVALUATION = f"splitByChar('/', arrayFirst(v -> startsWith(v, '{PREFIX}'), mapValues(monitor)))[2]"
_PLAIN = f"replaceRegexpOne(v, '^{PREFIX}[^/]*/', '')"


def _inside(value: str) -> str:
    return f"arrayAll((k, v) -> {_LABELS}[k] = {value}, mapKeys(cause), mapValues(cause)) AS inside"


_REQUESTS = f"""
    WITH {_SIGNAL} AS signal,
         {_told(f"JSONExtractFloat({_ALARM}, 'edge')")} AS edge,
         {_told(f"JSONExtract({_ALARM}, 'edges', 'Array(Float64)')")} AS edges,
         {_SHIFT} AS shift,
         {_told("cause")} AS cause,
         (
             WITH {_SHIFT} AS shift
             SELECT ifNotFinite(quantileExact(0.9)({_ALONG}), 0) FROM requests
             WHERE $__timeFilter(event_time) AND notEmpty(fingerprint) AND notEmpty(shift)
               AND event_time < {_told("changed_at")}
         ) AS odd_above
    SELECT event_time, {_choose(0)} AS counts, {_choose(1)} AS hit, {_inside("v")}
    FROM requests FINAL
    WHERE $__timeFilter(event_time) AND signal != '{Signal.NEGATIVE_FEEDBACK}'"""  # noqa: S608 — the parts are constants

_RATINGS = f"""
    WITH {_SIGNAL} AS signal, {_MONITOR} AS monitor, {_EVALUATION} AS evaluation,
         {_told("cause")} AS cause
    SELECT feedback_time AS event_time, {RATINGS[0]} AS counts, {RATINGS[1]} AS hit,
           {_inside(_PLAIN)}
    FROM feedback FINAL
    WHERE $__timeFilter(feedback_time) AND signal = '{Signal.NEGATIVE_FEEDBACK}'
      AND event_id != '' AND evaluation IN ('', replaceAll(name, '/', ':'))"""  # noqa: S608 — as above

_RATE = f"""
SELECT $__timeInterval(event_time) AS time,
       {rate_of("countIf(hit AND inside)", "countIf(inside)")} AS in_the_cause,
       {rate_of("countIf(hit AND NOT inside)", "countIf(NOT inside)")} AS elsewhere
FROM ({_REQUESTS}
    UNION ALL{_RATINGS}
)
WHERE counts
GROUP BY time
ORDER BY time"""  # noqa: S608 — as above

_STORY = Row(
    "The incident",
    (
        Panel(
            title="Incident",
            description="As it stands; what it says in full is in the column `incident`, as JSON.",
            kind=Kind.TABLE,
            width=24,
            height=4,
            columns=(
                Column("changed_at", Unit.TIME),
                Column("opened_at", Unit.TIME),
                Column("resolved_at", Unit.TIME),
                Column("share", Unit.SHARE),
            ),
            sql=f"""
SELECT status, stage, severity, family, symptom, root_cause, summary, suggestion,
       {CAUSE_NAME} AS explained_by, share,
       changed_at, opened_at, updated_at, resolved_at, incident_id, incident
FROM incidents WHERE {_CHOSEN} {_ORDER}""",  # noqa: S608 — as above
        ),
        Panel(
            title="Inside the cause and elsewhere",
            description="The share of requests, or of ratings by their own time, that count for the"
            " signal which raised the first alarm: inside the slice that explains the incident, and"
            " in all other traffic.",
            kind=Kind.TIME_SERIES,
            unit=Unit.SHARE,
            width=24,
            height=9,
            sql=_RATE,
        ),
        Panel(
            title="Example requests",
            description="Some that counted, inside the cause.",
            kind=Kind.TABLE,
            width=24,
            columns=(
                Column("event_time", Unit.TIME),
                Column("duration_s", Unit.SECONDS),
                Column("cost", Unit.USD),
            ),
            sql=f"""
WITH {_told("JSONExtract(incident, 'example_event_ids', 'Array(String)')")} AS examples
SELECT event_time, event_id, route, tenant, request_model, response_model, prompt_name,
       prompt_version, region, error_type, refused, truncated, duration_s,
       toFloat64(cost_usd) AS cost
FROM requests FINAL
WHERE event_time >= {_told("changed_at - toIntervalHour(if(family = 'feedback', 168, 1))")}
  AND event_time <= {_told("updated_at + INTERVAL 1 HOUR")} AND has(examples, event_id)
ORDER BY event_time DESC, event_id
LIMIT 50""",  # noqa: S608 — as above
        ),
    ),
)

INCIDENT = Board(
    uid="kizashi-incident",
    title="Kizashi: Incident",
    description="One incident: what it says, the signal inside its cause and elsewhere.",
    variables=(Subject.INCIDENT,),
    rows=(_STORY,),
)
