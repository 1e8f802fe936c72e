"""Quality: watched rates, their baselines, the evidence against them, fingerprints, feedback."""

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
            " both as logarithms: at 1 the alarm is raised. The ten that came closest.",
            kind=Kind.TIME_SERIES,
            thresholds=(Threshold(1, Colour.RED),),
            sql=f"""
WITH closest AS (
    SELECT {MONITOR_NAME} AS monitor, family
    {_VERDICTS}
    GROUP BY monitor, family
    ORDER BY max(log_evidence / log_threshold) DESC, monitor, family LIMIT 10
)
SELECT $__timeInterval(v.time) AS time,
       concat({MONITOR_NAME}, ' · ', family) AS series,
       greatest(0, max(log_evidence / log_threshold)) AS evidence
{_VERDICTS} AND ({MONITOR_NAME}, family) IN closest
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
                Column("monitor", opens="monitor"),
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

#: A residual is whitened over so many directions, so the quiet value of the shift below is 1.
_FINGERPRINTS = Row(
    "Fingerprints",
    (
        Panel(
            title="Shift of the mean fingerprint",
            description="How far the answers of a model lie, on average, from what their prompts"
            " let one expect: the squared length of the mean, against what chance gives. About 1"
            " while nothing changes. The ten models with the most answers that were read.",
            kind=Kind.TIME_SERIES,
            sql=f"""
WITH top AS (
    SELECT request_model FROM requests
    WHERE $__timeFilter(event_time) AND notEmpty(fingerprint) AND {_CHOSEN}
    GROUP BY request_model ORDER BY count() DESC, request_model LIMIT 10
)
SELECT time, model, read * arraySum(x -> x * x, mean) / length(mean) AS shift
FROM (
    SELECT $__timeInterval(event_time) AS time, toString(request_model) AS model,
           count() AS read, avgForEach(fingerprint) AS mean
    FROM requests
    WHERE $__timeFilter(event_time) AND notEmpty(fingerprint) AND {_CHOSEN}
        AND request_model IN top
    GROUP BY time, model
)
ORDER BY time, model""",  # noqa: S608 — the parts are constants
        ),
        Panel(
            title="References",
            description="What answers of a model look like while nothing changes, whatever the"
            " filters: the newest of each.",
            kind=Kind.TABLE,
            columns=(
                Column("fitted", Unit.TIME),
                Column("from_answers_of", Unit.TIME),
                Column("to_answers_of", Unit.TIME),
                Column("answers", Unit.COUNT),
            ),
            sql="""
SELECT request_model, max(fitted_at) AS fitted,
       argMax(r.answers, fitted_at) AS answers,
       argMax(first_time, fitted_at) AS from_answers_of,
       argMax(last_time, fitted_at) AS to_answers_of,
       argMax(r.embedding, fitted_at) AS encoder
FROM references AS r
GROUP BY request_model
ORDER BY request_model
LIMIT 200""",
        ),
    ),
)

_RATED = f"FROM feedback AS f FINAL WHERE $__timeFilter(f.feedback_time) AND {_CHOSEN}"
_FEEDBACK = Row(
    "Feedback",
    (
        Panel(
            title="Negative ratings",
            description="Share of bad ratings among those that were joined to their request, by"
            " the time of the rating. The five evaluations and models with the most ratings.",
            kind=Kind.TIME_SERIES,
            unit=Unit.SHARE,
            sql=f"""
WITH top AS (
    SELECT name, request_model
    {_RATED} AND event_id != '' AND negative IS NOT NULL
    GROUP BY name, request_model ORDER BY count() DESC, name, request_model LIMIT 5
)
SELECT $__timeInterval(f.feedback_time) AS time,
       concat(name, ' · ', request_model) AS series,
       countIf(ifNull(negative, false)) / count() AS rate
{_RATED} AND event_id != '' AND negative IS NOT NULL AND (name, request_model) IN top
GROUP BY time, series
ORDER BY time, series""",
        ),
        Panel(
            title="Ratings",
            description="What came of each evaluation. Those without a request found none in time:"
            " they are in the table, and in no monitor.",
            kind=Kind.TABLE,
            columns=(
                Column("ratings", Unit.COUNT),
                Column("negative_share", Unit.SHARE),
                Column("without_request", Unit.COUNT),
            ),
            sql=f"""
SELECT toString(name) AS evaluation,
       toString(request_model) AS model,
       toString(source) AS given_by,
       count() AS ratings,
       countIf(ifNull(negative, false)) / nullIf(countIf(negative IS NOT NULL), 0)
           AS negative_share,
       countIf(event_id = '') AS without_request
{_RATED}
GROUP BY evaluation, model, given_by
ORDER BY ratings DESC, evaluation, model, given_by
LIMIT 200""",
        ),
    ),
)

QUALITY = Board(
    uid="kizashi-quality",
    title="Kizashi: Quality",
    description="The rates that are watched, their baselines, the evidence, the fingerprints, and"
    " what users think.",
    variables=_FILTERS,
    rows=(_RATES, _MONITORS, _FINGERPRINTS, _FEEDBACK),
)
