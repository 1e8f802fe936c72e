"""Requests: single requests, filtered by every variable; where the other dashboards lead."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit, stat
from dashboards.sql import PER_MINUTE, chosen
from schemas.monitor import Dimension

_FILTERS = (
    Dimension.PROVIDER,
    Dimension.ROUTE,
    Dimension.TENANT,
    Dimension.REQUEST_MODEL,
    Dimension.PROMPT_VERSION,
)
_REQUESTS = f"FROM requests FINAL WHERE $__timeFilter(event_time) AND {chosen(*_FILTERS)}"


def _stat(title: str, description: str, expression: str, unit: Unit, *steps: Threshold) -> Panel:
    return stat(title, description, f"SELECT {expression}\n{_REQUESTS}", unit, *steps)


_TOTALS = Row(
    "What was chosen",
    (
        _stat("Requests", "In the time range.", "count() AS requests_total", Unit.COUNT),
        _stat(
            "Errors",
            "Share of requests that failed.",
            "countIf(error_type != '') / nullIf(count(), 0) AS error_share",
            Unit.SHARE,
            Threshold(0.02, Colour.YELLOW),
            Threshold(0.1, Colour.RED),
        ),
        _stat(
            "Refusals",
            "Share of the answered requests that the model refused.",
            "countIf(refused AND error_type = '') / nullIf(countIf(error_type = ''), 0)"
            " AS refusal_share",
            Unit.SHARE,
            Threshold(0.05, Colour.YELLOW),
            Threshold(0.2, Colour.RED),
        ),
        _stat(
            "Cost",
            "Of the requests whose price is known.",
            "toFloat64(sum(cost_usd)) AS cost_usd_total",
            Unit.USD,
        ),
    ),
)

_LIST = Row(
    "Requests",
    (
        Panel(
            title="Requests per minute by outcome",
            description="Answered, refused, cut short, or failed.",
            kind=Kind.TIME_SERIES,
            unit=Unit.PER_MINUTE,
            stacked=True,
            sql=f"""
SELECT $__timeInterval(event_time) AS time,
       multiIf(error_type != '', 'failed', refused, 'refused', truncated, 'cut short', 'answered')
           AS outcome,
       count() {PER_MINUTE} AS requests_per_minute
{_REQUESTS}
GROUP BY time, outcome
ORDER BY time, outcome""",
        ),
        Panel(
            title="Duration",
            description="Exact percentiles of the chosen requests.",
            kind=Kind.TIME_SERIES,
            unit=Unit.SECONDS,
            sql=f"""
SELECT $__timeInterval(event_time) AS time,
       quantile(0.5)(duration_s) AS p50,
       quantile(0.95)(duration_s) AS p95,
       quantile(0.99)(duration_s) AS p99
{_REQUESTS} AND duration_s IS NOT NULL
GROUP BY time
ORDER BY time""",
        ),
        Panel(
            title="Latest requests",
            description="At most 500.",
            kind=Kind.TABLE,
            width=24,
            height=16,
            columns=(
                Column("event_time", Unit.TIME),
                Column("duration_s", Unit.SECONDS),
                Column("time_to_first_chunk_s", Unit.SECONDS),
                Column("cost", Unit.USD),
            ),
            sql=f"""
SELECT event_time, event_id, provider, request_model, response_model, route, tenant, prompt_name,
       prompt_version, region, error_type, refused, truncated, cache, fallback_from,
       input_tokens, output_tokens, toFloat64(cost_usd) AS cost, duration_s,
       time_to_first_chunk_s, finish_reasons
{_REQUESTS}
ORDER BY event_time DESC, event_id
LIMIT 500""",
        ),
    ),
)

REQUESTS = Board(
    uid="kizashi-requests",
    title="Kizashi: Requests",
    description="Single requests, filtered by every variable; where the other dashboards lead.",
    variables=_FILTERS,
    span="1h",
    rows=(_TOTALS, _LIST),
)
