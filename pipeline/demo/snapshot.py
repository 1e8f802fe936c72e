"""What the demo's view shows at one moment, and the queries that it is read with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from msgspec import Struct

from schemas.incident import Incident

#: Runs SQL over what has been stored so far; a row is column → value.
Query = Callable[[str], list[dict[str, object]]]

WINDOW_MS = 300_000
MINUTE_MS = 60_000
MINUTE_REQUESTS_MIN = 20


class Accounts(Struct, frozen=True):
    """Where every record went: ``events == stored + deadlettered + duplicates``."""

    events: int = 0
    stored: int = 0
    deadlettered: int = 0
    duplicates: int = 0


class Moment(Struct, frozen=True):
    """Where the demo stands. Times are event time, milliseconds since the epoch."""

    start_ms: int
    end_ms: int
    now_ms: int
    #: Seconds of event time in a second of the wall clock.
    speed: float
    accounts: Accounts
    #: Raised so far.
    alarms: int
    #: The latest version of each, in the order in which they were opened.
    incidents: tuple[Incident, ...]
    #: How far the pipeline is behind the wall clock.
    late_s: float = 0.0


class Slice(Struct, frozen=True):
    """One route or provider over the last `WINDOW_MS`; None where there is nothing to measure."""

    dimension: str
    name: str
    requests_per_min: float
    error_rate: float
    refusal_rate: float
    #: Of what a model answered: failures and cache hits are left out.
    duration_s_p50: float | None
    duration_s_p95: float | None
    first_chunk_s_p95: float | None
    tokens_per_min: float
    #: None when no price is known.
    cost_usd_per_hour: float | None
    #: Share that failed or was refused, one value per minute since the start.
    unanswered: tuple[float, ...] = ()


class Snapshot(Struct, frozen=True):
    moment: Moment
    slices: tuple[Slice, ...]


def take_snapshot(moment: Moment, query: Query) -> Snapshot:
    """Ask for the last minutes of each route and provider."""
    unanswered = _read_unanswered(moment, query)
    rows = query(window_sql(moment))
    slices = (_read_slice(row, moment, unanswered) for row in rows)
    return Snapshot(moment, tuple(sorted(slices, key=lambda s: (s.dimension != "route", s.name))))


def window_sql(moment: Moment) -> str:
    """One row per route, and one per provider."""
    answered = "error_type = '' AND cache != 'hit'"
    return f"""
        SELECT route, provider,
               count() AS requests,
               countIf(error_type != '') AS errors,
               countIf(refused) AS refusals,
               quantileIf(0.5)(duration_s, {answered}) AS duration_s_p50,
               quantileIf(0.95)(duration_s, {answered}) AS duration_s_p95,
               quantileIf(0.95)(time_to_first_chunk_s, {answered}) AS first_chunk_s_p95,
               sum(ifNull(input_tokens, 0) + ifNull(output_tokens, 0)) AS tokens,
               sumOrNull(toFloat64(cost_usd)) AS cost,
               countIf(cost_usd IS NOT NULL AND {answered}) AS priced
        FROM requests
        WHERE event_time > fromUnixTimestamp64Milli({_window_start(moment)})
          AND event_time <= fromUnixTimestamp64Milli({moment.now_ms})
        GROUP BY GROUPING SETS ((route), (provider))"""  # noqa: S608 (numbers of ours)


def unanswered_sql(moment: Moment) -> str:
    """What failed or was refused by minute since the start, per route and per provider.

    A minute with a handful of requests is held against `MINUTE_REQUESTS_MIN`:
    one failure of three is no outage.
    """
    return f"""
        SELECT intDiv(toUnixTimestamp64Milli(event_time) - {moment.start_ms}, {MINUTE_MS}) AS minute,
               route, provider,
               countIf(error_type != '' OR refused) / greatest(count(), {MINUTE_REQUESTS_MIN}) AS unanswered
        FROM requests
        WHERE event_time >= fromUnixTimestamp64Milli({moment.start_ms})
          AND event_time <= fromUnixTimestamp64Milli({moment.now_ms})
        GROUP BY GROUPING SETS ((minute, route), (minute, provider))"""  # noqa: S608, E501


def _window_start(moment: Moment) -> int:
    return max(moment.start_ms, moment.now_ms - WINDOW_MS)


def _slice_key(row: Mapping[str, object]) -> tuple[str, str]:
    """A dimension outside the grouping set is empty."""
    route = str(row["route"])
    return ("route", route) if route else ("provider", str(row["provider"]))


def _read_unanswered(moment: Moment, query: Query) -> dict[tuple[str, str], tuple[float, ...]]:
    minutes = (moment.now_ms - moment.start_ms) // MINUTE_MS + 1
    series: dict[tuple[str, str], list[float]] = {}
    for row in query(unanswered_sql(moment)):
        values = series.setdefault(_slice_key(row), [0.0] * minutes)
        minute = int(_number(row, "minute"))
        if minute < minutes:
            values[minute] = _number(row, "unanswered")
    return {key: tuple(values) for key, values in series.items()}


def _read_slice(
    row: Mapping[str, object],
    moment: Moment,
    unanswered: Mapping[tuple[str, str], tuple[float, ...]],
) -> Slice:
    dimension, name = _slice_key(row)
    minutes = max(moment.now_ms - _window_start(moment), 1) / MINUTE_MS
    requests = max(_number(row, "requests"), 1)
    cost = _number(row, "cost") if _number(row, "priced") else None
    return Slice(
        dimension=dimension,
        name=name,
        requests_per_min=_number(row, "requests") / minutes,
        error_rate=_number(row, "errors") / requests,
        refusal_rate=_number(row, "refusals") / requests,
        duration_s_p50=_measured(row, "duration_s_p50"),
        duration_s_p95=_measured(row, "duration_s_p95"),
        first_chunk_s_p95=_measured(row, "first_chunk_s_p95"),
        tokens_per_min=_number(row, "tokens") / minutes,
        cost_usd_per_hour=None if cost is None else cost / minutes * 60,
        unanswered=unanswered.get((dimension, name), ()),
    )


def _measured(row: Mapping[str, object], name: str) -> float | None:
    value = row[name]
    number = math.nan if value is None else _number(row, name)
    return number if math.isfinite(number) else None


def _number(row: Mapping[str, object], name: str) -> float:
    value = row[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, not a number")
    return float(value)
