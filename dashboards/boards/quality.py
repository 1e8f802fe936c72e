"""Quality: the rates that are watched, their baselines, the evidence against them, incidents."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit
from dashboards.sql import MONITOR_NAME, chosen, rollups, share
from schemas.monitor import DIMENSIONS, Dimension, grouping_name

_FILTERS = (Dimension.REQUEST_MODEL, Dimension.ROUTE)
_ROLLUPS = rollups(_FILTERS, *_FILTERS)
_CHOSEN = chosen(*_FILTERS)
_DIMENSIONS = ", ".join(DIMENSIONS)
#: The column must not be hidden by a column of the result that is called `time` as well.
_VERDICTS = f"FROM verdicts AS v WHERE $__timeFilter(v.time) AND {_CHOSEN}"


def _rate(title: str, signal: str, counted: str, over: str) -> Panel:
    """The rate of a model on a route beside the baseline that its detector holds it to."""
    return Panel(
        title=title,
        description="The five pairs of model and route with the most requests, each with the"
        " baseline (dashed) that its detector holds it to.",
        kind=Kind.TIME_SERIES,
        unit=Unit.SHARE,
        sql=f"""
WITH top AS (
    SELECT request_model, route
    {_ROLLUPS}
    GROUP BY request_model, route ORDER BY sum(requests) DESC, request_model, route LIMIT 5
)
SELECT time, series, rate
FROM (
    SELECT $__timeInterval(minute) AS time,
           concat(request_model, ' · ', route) AS series,
           {share(counted, over)} AS rate
    {_ROLLUPS} AND (request_model, route) IN top
    GROUP BY time, series
    UNION ALL
    SELECT $__timeInterval(v.time) AS time,
           concat(request_model, ' · ', route, ' · baseline') AS series,
           argMax(baseline_count / nullIf(baseline_total, 0), v.time) AS rate
    {_VERDICTS} AND grouping = '{grouping_name(_FILTERS)}' AND signal = '{signal}'
        AND (request_model, route) IN top
    GROUP BY time, series
)
ORDER BY time, series""",  # noqa: S608 — the parts are constants
    )


_RATES = Row(
    "Rates and their baselines",
    (
        _rate("Refusals", "refusal", "refusals", "answered"),
        _rate("Errors", "error", "errors", "requests"),
        _rate("Truncations", "truncation", "truncations", "answered"),
        Panel(
            title="Evidence",
            description="How far the evidence for a change has come on its way to the threshold,"
            " both as logarithms: at 1 the alarm is raised. The ten monitors that came closest.",
            kind=Kind.TIME_SERIES,
            thresholds=(Threshold(1, Colour.RED),),
            sql=f"""
WITH closest AS (
    SELECT {MONITOR_NAME} AS monitor
    {_VERDICTS}
    GROUP BY monitor ORDER BY max(log_evidence / log_threshold) DESC, monitor LIMIT 10
)
SELECT $__timeInterval(v.time) AS time,
       concat({MONITOR_NAME}, ' · ', family) AS series,
       greatest(0, max(log_evidence / log_threshold)) AS evidence
{_VERDICTS} AND {MONITOR_NAME} IN closest
GROUP BY time, series
ORDER BY time, series""",
        ),
    ),
)

_MONITORS = Row(
    "Monitors",
    (
        Panel(
            title="Monitors by state",
            description="The last verdict on every signal of every monitor in the time range.",
            kind=Kind.BAR,
            unit=Unit.COUNT,
            width=6,
            height=10,
            sql=f"""
SELECT toString(last_state) AS state, count() AS signals
FROM (
    SELECT argMax(state, v.time) AS last_state
    {_VERDICTS}
    GROUP BY grouping, {_DIMENSIONS}, signal
)
GROUP BY state
ORDER BY state""",  # noqa: S608 — as above
        ),
        Panel(
            title="Evidence against the threshold",
            description="The last verdict on each signal; evidence and threshold as natural"
            " logarithms. The current rate is the one since the estimated change.",
            kind=Kind.TABLE,
            width=18,
            height=10,
            columns=(
                Column("current_rate", Unit.SHARE),
                Column("baseline_rate", Unit.SHARE),
                Column("baseline_low", Unit.SHARE),
                Column("baseline_high", Unit.SHARE),
                Column("last_change", Unit.TIME),
            ),
            sql=f"""
SELECT {MONITOR_NAME} AS monitor,
       signal,
       argMax(state, v.time) AS last_state,
       argMax(v.log_evidence, v.time) AS log_evidence,
       argMax(v.log_threshold, v.time) AS log_threshold,
       argMax(current_count / nullIf(current_total, 0), v.time) AS current_rate,
       argMax(baseline_count / nullIf(baseline_total, 0), v.time) AS baseline_rate,
       argMax(v.baseline_low, v.time) AS baseline_low,
       argMax(v.baseline_high, v.time) AS baseline_high,
       argMax(change_time, v.time) AS last_change
{_VERDICTS}
GROUP BY grouping, {_DIMENSIONS}, signal
ORDER BY log_evidence - log_threshold DESC, monitor, signal
LIMIT 200""",
        ),
    ),
)

_INCIDENTS = Row(
    "Incidents",
    (
        Panel(
            title="Incidents",
            description="Those that were open at some time of the range, whatever the filters.",
            kind=Kind.TABLE,
            width=24,
            height=10,
            columns=(
                Column("opened_at", Unit.TIME),
                Column("changed_at", Unit.TIME),
                Column("resolved_at", Unit.TIME),
                Column("share", Unit.SHARE),
            ),
            sql="""
SELECT opened_at, status, severity, family, summary, suggestion,
       if(empty(cause), 'all traffic',
          arrayStringConcat(arrayMap((k, v) -> concat(k, '=', v), mapKeys(cause), mapValues(cause)),
                            ', ')) AS explained_by,
       share, changed_at, resolved_at, incident_id
FROM incidents
WHERE opened_at <= $__toTime AND (resolved_at IS NULL OR resolved_at >= $__fromTime)
ORDER BY status = 'open' DESC, opened_at DESC, incident_id
LIMIT 200""",
        ),
        Panel(
            title="Alarms",
            description="What the detectors raised and cleared, whatever the filters; an incident"
            " gathers the alarms that share a cause.",
            kind=Kind.TABLE,
            width=24,
            height=8,
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

QUALITY = Board(
    uid="kizashi-quality",
    title="Kizashi: Quality",
    description="The rates that are watched, their baselines, the evidence, and the incidents.",
    variables=_FILTERS,
    rows=(_RATES, _MONITORS, _INCIDENTS),
)
