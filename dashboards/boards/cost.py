"""Cost: who spends what on which model, what the cache saves, and what has no price."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit, stat
from dashboards.sql import PER_HOUR, rollups, share
from schemas.monitor import Dimension

#: Every request has a model, so this grouping is the whole.
_MODELS = rollups((Dimension.REQUEST_MODEL,))


def _stat(title: str, description: str, expression: str, unit: Unit, *steps: Threshold) -> Panel:
    return stat(title, description, f"SELECT {expression}\n{_MODELS}", unit, *steps)


def _over_time(dimension: Dimension) -> Panel:
    source = rollups((dimension,))
    return Panel(
        title=f"Cost per hour by {_in_words(dimension)}",
        description="The ten that cost most, and all others together.",
        kind=Kind.TIME_SERIES,
        unit=Unit.USD,
        stacked=True,
        width=8,
        sql=f"""
WITH top AS (
    SELECT {dimension}
    {source}
    GROUP BY {dimension} ORDER BY sum(cost_usd) DESC, {dimension} LIMIT 10
)
SELECT $__timeInterval(minute) AS time,
       if({dimension} IN top, toString({dimension}), 'all others') AS series,
       toFloat64(sum(cost_usd)) {PER_HOUR} AS usd_per_hour
{source}
GROUP BY time, series
ORDER BY time, series""",
    )


def _in_total(dimension: Dimension) -> Panel:
    return Panel(
        title=f"Cost by {_in_words(dimension)}",
        description="The twenty that cost most in the time range.",
        kind=Kind.BAR,
        unit=Unit.USD,
        width=8,
        sql=f"""
SELECT toString({dimension}) AS name, toFloat64(sum(cost_usd)) AS cost_usd_total
{rollups((dimension,))}
GROUP BY name
ORDER BY cost_usd_total DESC, name
LIMIT 20""",
    )


def _in_words(dimension: Dimension) -> str:
    return "model" if dimension is Dimension.REQUEST_MODEL else dimension.value


_SPLITS = (Dimension.REQUEST_MODEL, Dimension.TENANT, Dimension.ROUTE)

_TOTALS = Row(
    "The time range as a whole",
    (
        _stat(
            "Cost",
            "Of the requests whose price is known.",
            "toFloat64(sum(cost_usd)) AS cost_usd_total",
            Unit.USD,
        ),
        _stat(
            "Cost per 1,000 priced requests",
            "Failed requests count too; those without a price do not.",
            "toFloat64(sum(cost_usd)) * 1000 / nullIf(sum(requests) - sum(unpriced), 0) AS cost",
            Unit.USD,
        ),
        _stat(
            "Cached input",
            "Share of the input tokens that the provider read from its prompt cache.",
            f"{share('cache_read_tokens', 'input_tokens')} AS cached_share",
            Unit.SHARE,
        ),
        _stat(
            "Unpriced requests",
            "Their cost is missing in every panel here, not zero.",
            "sum(unpriced) AS unpriced_total",
            Unit.COUNT,
            Threshold(1, Colour.YELLOW),
        ),
    ),
)

_TABLES = Row(
    "Models",
    (
        Panel(
            title="Models",
            description="A click on a model shows its requests.",
            kind=Kind.TABLE,
            width=24,
            height=9,
            columns=(
                Column("request_model", leads_to=(Dimension.REQUEST_MODEL,)),
                Column("requests_total", Unit.COUNT),
                Column("cost_usd_total", Unit.USD),
                Column("cost_usd_per_1000", Unit.USD),
                Column("input_tokens_total", Unit.COUNT),
                Column("output_tokens_total", Unit.COUNT),
                Column("reasoning_share", Unit.SHARE),
                Column("cached_share", Unit.SHARE),
                Column("answered_from_cache_share", Unit.SHARE),
                Column("unpriced_share", Unit.SHARE),
            ),
            sql=f"""
SELECT request_model,
       sum(requests) AS requests_total,
       toFloat64(sum(cost_usd)) AS cost_usd_total,
       toFloat64(sum(cost_usd)) * 1000 / nullIf(sum(requests) - sum(unpriced), 0)
           AS cost_usd_per_1000,
       sum(input_tokens) AS input_tokens_total,
       sum(output_tokens) AS output_tokens_total,
       {share("reasoning_tokens", "output_tokens")} AS reasoning_share,
       {share("cache_read_tokens", "input_tokens")} AS cached_share,
       {share("cache_hits", "requests")} AS answered_from_cache_share,
       {share("unpriced", "requests")} AS unpriced_share
{_MODELS}
GROUP BY request_model
ORDER BY cost_usd_total DESC, request_model
LIMIT 200""",
        ),
        Panel(
            title="Models without a price",
            description="Add them to the price table: `kizashi prices check` says how.",
            kind=Kind.TABLE,
            width=24,
            columns=(
                Column("request_model", leads_to=(Dimension.REQUEST_MODEL,)),
                Column("first_seen", Unit.TIME),
                Column("last_seen", Unit.TIME),
            ),
            sql=f"""
SELECT request_model,
       sum(unpriced) AS unpriced_total,
       sum(input_tokens) AS input_tokens_total,
       sum(output_tokens) AS output_tokens_total,
       min(minute) AS first_seen,
       max(minute) AS last_seen
{_MODELS} AND unpriced > 0
GROUP BY request_model
ORDER BY unpriced_total DESC, request_model
LIMIT 200""",
        ),
    ),
)

COST = Board(
    uid="kizashi-cost",
    title="Kizashi: Cost",
    description="Who spends what on which model, what caches save, and what has no price.",
    span="24h",
    rows=(
        _TOTALS,
        Row("Over time", tuple(map(_over_time, _SPLITS))),
        Row("In total", tuple(map(_in_total, _SPLITS))),
        _TABLES,
    ),
)
