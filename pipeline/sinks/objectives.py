"""Objectives in ClickHouse: what was good, counted from the rollups, and how they stood.

Delivery guarantee: a standing is stored once a minute at most; storing it again replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import ObjectiveSettings
from pipeline.core.histogram import find_buckets
from pipeline.incidents.objectives import (
    DAY_S,
    MINUTE_S,
    WINDOWS_S,
    Objective,
    Standing,
    Tally,
    Urgency,
    assess,
)
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.monitor import Grouping, grouping_name

_COUNTS = {"error": "errors", "refusal": "refusals", "truncation": "truncations"}


class ObjectiveStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store, everything: Grouping) -> None:
        """`everything` is a grouping that every request is counted in once."""
        self._store = store
        self._everything = everything

    def measure(self, settings: ObjectiveSettings, now_ms: int) -> Standing:
        """Return how an objective stands at the beginning of this minute."""
        objective = to_objective(settings)
        until_s = now_ms // 1000 // MINUTE_S * MINUTE_S
        spans = sorted({*WINDOWS_S, objective.window_s})
        tallies = self._count(settings, until_s, spans)
        return assess(objective, dict(zip(spans, tallies, strict=True)), until_s * 1000)

    def save(self, standings: Sequence[Standing]) -> None:
        """Store how objectives stand."""
        self._store.insert_rows("objective_standings", [_row(each) for each in standings])

    def _count(
        self, settings: ObjectiveSettings, until_s: int, spans: Sequence[int]
    ) -> list[Tally]:
        grouping = settings.grouping or self._everything
        bad = " + ".join([*(_COUNTS[b] for b in settings.bad), *_slow(settings)]) or "0"
        inside = "".join(f" AND {d} = {{value_{d}:String}}" for d in settings.grouping or ())
        columns = ", ".join(
            f"sumIf(bad, minute >= {{from_{i}:DateTime('UTC')}}),"
            f" sumIf(requests, minute >= {{from_{i}:DateTime('UTC')}})"
            for i in range(len(spans))
        )
        parameters: dict[str, Any] = {
            "grouping": grouping_name(grouping),
            "until": to_datetime(until_s * 1000),
            "from": to_datetime((until_s - max(spans)) * 1000),
            "slowest": _find_bucket(settings),
        }
        parameters |= {f"from_{i}": to_datetime((until_s - s) * 1000) for i, s in enumerate(spans)}
        parameters |= {
            f"value_{d}": v for d, v in zip(settings.grouping or (), settings.values, strict=True)
        }
        [row] = self._store.rows(
            f"""
            SELECT {columns} FROM (
                SELECT minute, requests, {bad} AS bad FROM rollup_1m
                WHERE grouping = {{grouping:String}}{inside}
                  AND minute >= {{from:DateTime('UTC')}} AND minute < {{until:DateTime('UTC')}}
            )
            """,  # noqa: S608 — constants of this file, dimensions and bound parameters
            parameters,
        )
        # What failed may have been slow as well: it counts as bad once where that shows.
        return [
            Tally(min(int(b), int(n)), int(n)) for b, n in zip(row[::2], row[1::2], strict=True)
        ]


def to_objective(settings: ObjectiveSettings) -> Objective:
    """Return what the arithmetic needs of the settings."""
    return Objective(
        settings.name, settings.target, settings.window_days * DAY_S, settings.least_bad
    )


def _slow(settings: ObjectiveSettings) -> list[str]:
    if settings.latency_s is None:
        return []
    return ["arraySum(mapValues(mapFilter((k, v) -> k > {slowest:Int16}, duration_ms)))"]


def _find_bucket(settings: ObjectiveSettings) -> int:
    """The last bucket of the histogram that is in time."""
    if settings.latency_s is None:
        return 0
    return int(find_buckets(np.array([settings.latency_s * 1e3]))[0])


def _row(standing: Standing) -> dict[str, Any]:
    assert math.isfinite(standing.budget_left)  # noqa: S101 — a target of 1 has no budget
    return {
        "time": to_datetime(standing.time_ms),
        "objective": standing.name,
        "target": standing.target,
        "urgency": standing.urgency.value,
        "urgency_level": [*Urgency].index(standing.urgency),
        "good_share": standing.good_share,
        "requests": standing.requests,
        "budget_left": standing.budget_left,
        "burn": standing.burn,
    }
