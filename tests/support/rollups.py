"""Rollups beside what the stored requests say: the two must be the same, to the last picodollar."""

from __future__ import annotations

from typing import Any

from pipeline.sinks.clickhouse import Store

GROUPINGS = ("request_model", "route", "request_model,route", "tenant", "provider,region")
_ROLLED = """
    SELECT minute, {dimensions}, sum(requests), sum(errors), sumMap(error_types), sum(answered),
           sum(refusals), sum(truncations), sum(cache_hits), sum(input_tokens),
           sum(output_tokens), sum(cache_read_tokens), sum(cost_usd), sum(unpriced),
           arraySum(mapValues(sumMap(duration_ms)))
    FROM rollup_1m WHERE grouping = '{dimensions}' GROUP BY minute, {dimensions} ORDER BY ALL
"""
_RECOMPUTED = """
    SELECT toStartOfMinute(event_time) AS minute, {dimensions}, count(), countIf(error_type != ''),
           mapFilter((k, v) -> k != '', sumMap(map(error_type, 1::UInt64))),
           countIf(error_type = ''), countIf(refused), countIf(truncated), countIf(cache = 'hit'),
           sum(ifNull(input_tokens, 0)), sum(ifNull(output_tokens, 0)),
           sum(ifNull(cache_read_tokens, 0)), sum(ifNull(cost_usd, 0)), countIf(cost_usd IS NULL),
           countIf(duration_s IS NOT NULL)
    FROM requests GROUP BY minute, {dimensions} ORDER BY ALL
"""


def rollups_that_differ(store: Store) -> list[str]:
    """Return the groupings whose rollups are not what the stored requests add up to."""
    return [
        grouping
        for grouping in GROUPINGS
        if _plain(store, _ROLLED.format(dimensions=grouping))
        != _plain(store, _RECOMPUTED.format(dimensions=grouping))
    ]


def _plain(store: Store, sql: str) -> list[list[str]]:
    return [
        [str(sorted(v.items())) if isinstance(v, dict) else str(v) for v in row]
        for row in store.rows(sql)
    ]


def total_of(store: Store, grouping: str) -> int:
    """Return how many requests the rollups of a grouping have counted."""
    counted: list[tuple[Any, ...]] = store.rows(
        "SELECT sum(requests) FROM rollup_1m WHERE grouping = {grouping:String}",
        {"grouping": grouping},
    )
    return int(counted[0][0])
