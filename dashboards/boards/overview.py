"""Overview: how much, how fast, how well and for how much money the gateway answers."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit, stat
from dashboards.sql import PER_HOUR, PER_MINUTE, RANGE_S, rollups, share
from schemas.monitor import Dimension

_FILTERS = (Dimension.REQUEST_MODEL, Dimension.ROUTE)
#: Every request is in this grouping once, and it can be filtered both ways.
_ROLLUPS = rollups(_FILTERS, *_FILTERS)


def _stat(title: str, description: str, sql: str, unit: Unit, *thresholds: Threshold) -> Panel:
    return stat(title, description, sql, unit, *thresholds, width=3)


def _percentiles(title: str, description: str, histogram: str) -> Panel:
    quantiles = ",\n       ".join(
        f"histogramQuantile(histogram, {q / 100}) AS p{q}" for q in (50, 95, 99)
    )
    return Panel(
        title=title,
        description=f"{description} Read from histograms whose buckets are 2 % wide.",
        kind=Kind.TIME_SERIES,
        unit=Unit.MILLISECONDS,
        sql=f"""
SELECT time,
       {quantiles}
FROM (
    SELECT $__timeInterval(minute) AS time, sumMap({histogram}) AS histogram
    {_ROLLUPS}
    GROUP BY time
)
ORDER BY time""",  # noqa: S608 — the parts are constants
    )


_NOW = Row(
    "The time range as a whole",
    (
        _stat(
            "Requests",
            "Per minute; mean over the time range; failed requests count too.",
            f"SELECT sum(requests) * 60 / {RANGE_S} AS requests_per_minute\n{_ROLLUPS}",
            Unit.PER_MINUTE,
        ),
        _stat(
            "Errors",
            "Share of requests that failed.",
            f"SELECT {share('errors', 'requests')} AS error_share\n{_ROLLUPS}",
            Unit.SHARE,
            Threshold(0.02, Colour.YELLOW),
            Threshold(0.1, Colour.RED),
        ),
        _stat(
            "Refusals",
            "Share of the answered requests that the model refused.",
            f"SELECT {share('refusals', 'answered')} AS refusal_share\n{_ROLLUPS}",
            Unit.SHARE,
            Threshold(0.05, Colour.YELLOW),
            Threshold(0.2, Colour.RED),
        ),
        _stat(
            "Median duration",
            "Of whole requests, failed and cached ones too.",
            f"SELECT histogramQuantile(sumMap(duration_ms), 0.5) AS duration_ms_p50\n{_ROLLUPS}",
            Unit.MILLISECONDS,
        ),
        _stat(
            "Duration p95",
            "One request in twenty took longer.",
            f"SELECT histogramQuantile(sumMap(duration_ms), 0.95) AS duration_ms_p95\n{_ROLLUPS}",
            Unit.MILLISECONDS,
        ),
        _stat(
            "Cost per hour",
            "Mean over the time range, of the requests whose price is known.",
            f"SELECT toFloat64(sum(cost_usd)) * 3600 / {RANGE_S} AS usd_per_hour\n{_ROLLUPS}",
            Unit.USD,
        ),
        _stat(
            "Unpriced",
            "Share of requests whose price is not known: their cost is missing above, not zero.",
            f"SELECT {share('unpriced', 'requests')} AS unpriced_share\n{_ROLLUPS}",
            Unit.SHARE,
            Threshold(0.01, Colour.YELLOW),
            Threshold(0.1, Colour.RED),
        ),
        _stat(
            "Open incidents",
            "As it is now, whatever the time range and the filters.",
            "SELECT count() AS open_incidents FROM incidents WHERE status != 'resolved'",
            Unit.COUNT,
            Threshold(1, Colour.RED),
        ),
    ),
)

_TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            title="Requests per minute by model",
            description="The ten models with the most requests, and all others together.",
            kind=Kind.TIME_SERIES,
            unit=Unit.PER_MINUTE,
            stacked=True,
            sql=f"""
WITH top AS (
    SELECT request_model
    {_ROLLUPS}
    GROUP BY request_model ORDER BY sum(requests) DESC, request_model LIMIT 10
)
SELECT $__timeInterval(minute) AS time,
       if(request_model IN top, toString(request_model), 'all others') AS model,
       sum(requests) {PER_MINUTE} AS requests_per_minute
{_ROLLUPS}
GROUP BY time, model
ORDER BY time, model""",
        ),
        Panel(
            title="Errors, refusals, truncations",
            description="Errors as a share of all requests; the others of the answered ones.",
            kind=Kind.TIME_SERIES,
            unit=Unit.SHARE,
            sql=f"""
SELECT $__timeInterval(minute) AS time,
       {share("errors", "requests")} AS error_share,
       {share("refusals", "answered")} AS refusal_share,
       {share("truncations", "answered")} AS truncation_share
{_ROLLUPS}
GROUP BY time
ORDER BY time""",
        ),
        _percentiles("Duration", "Of whole requests, failed and cached ones too.", "duration_ms"),
        _percentiles(
            "Time to first chunk",
            "Of answered requests that were streamed and not cached.",
            "first_chunk_ms",
        ),
        Panel(
            title="Tokens per minute",
            description="Input includes cached tokens, output includes reasoning.",
            kind=Kind.TIME_SERIES,
            unit=Unit.PER_MINUTE,
            sql=f"""
SELECT $__timeInterval(minute) AS time,
       sum(input_tokens) {PER_MINUTE} AS input,
       sum(cache_read_tokens) {PER_MINUTE} AS cached_input,
       sum(output_tokens) {PER_MINUTE} AS output
{_ROLLUPS}
GROUP BY time
ORDER BY time""",
        ),
        Panel(
            title="Cost per hour over time",
            description="Of the requests whose price is known.",
            kind=Kind.TIME_SERIES,
            unit=Unit.USD,
            sql=f"""
SELECT $__timeInterval(minute) AS time, toFloat64(sum(cost_usd)) {PER_HOUR} AS usd_per_hour
{_ROLLUPS}
GROUP BY time
ORDER BY time""",
        ),
    ),
)

_TOP = Row(
    "Routes and models",
    (
        Panel(
            title="Top routes and models",
            description="By number of requests. A click on one shows its requests.",
            kind=Kind.TABLE,
            width=24,
            height=10,
            columns=(
                Column("route", leads_to=(Dimension.ROUTE, Dimension.REQUEST_MODEL)),
                Column("request_model", leads_to=(Dimension.REQUEST_MODEL,)),
                Column("requests_total", Unit.COUNT),
                Column("error_share", Unit.SHARE),
                Column("refusal_share", Unit.SHARE),
                Column("truncation_share", Unit.SHARE),
                Column("duration_ms_p95", Unit.MILLISECONDS),
                Column("first_chunk_ms_p95", Unit.MILLISECONDS),
                Column("cost_usd_total", Unit.USD),
                Column("unpriced_share", Unit.SHARE),
            ),
            sql=f"""
SELECT route,
       request_model,
       sum(requests) AS requests_total,
       {share("errors", "requests")} AS error_share,
       {share("refusals", "answered")} AS refusal_share,
       {share("truncations", "answered")} AS truncation_share,
       histogramQuantile(sumMap(duration_ms), 0.95) AS duration_ms_p95,
       histogramQuantile(sumMap(first_chunk_ms), 0.95) AS first_chunk_ms_p95,
       toFloat64(sum(cost_usd)) AS cost_usd_total,
       {share("unpriced", "requests")} AS unpriced_share
{_ROLLUPS}
GROUP BY route, request_model
ORDER BY requests_total DESC, route, request_model
LIMIT 50""",
        ),
    ),
)

OVERVIEW = Board(
    uid="kizashi-overview",
    title="Kizashi: Overview",
    description="How much, how fast, how well and for how much money the gateway answers.",
    variables=_FILTERS,
    rows=(_NOW, _TRAFFIC, _TOP),
)
