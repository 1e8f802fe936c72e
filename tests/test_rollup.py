"""Per-minute aggregates against a loop over events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.chunk import CodedColumn, Columns, MapColumn
from pipeline.core.features import extract_features
from pipeline.core.monitors import MonitorRegistry, split_events
from pipeline.core.pricing import Pricer
from pipeline.core.rollup import roll_up
from schemas.event import Received
from schemas.monitor import DEFAULT_GROUPINGS, DIMENSIONS, Dimension, Grouping, grouping_name
from tests.support.events import (
    ALL_GROUPINGS,
    MINUTE_MS,
    NOW_MS,
    PRICES,
    TOKENS,
    Facts,
    count_buckets,
    find_monitors,
    make_event,
    make_traffic,
    read_facts,
    receive,
)

COUNTED = ("error", "refusal", "truncation", "cache_hit", "fallback")
COLUMNS = ("errors", "refusals", "truncations", "cache_hits", "fallbacks")
HISTOGRAMS = ("duration_ms", "first_chunk_ms", "output_token_us")

Row = dict[str, Any]


def roll(
    received: Sequence[Received], groupings: Sequence[Grouping] = DEFAULT_GROUPINGS
) -> list[Row]:
    features = extract_features(received, Pricer(PRICES))
    splits = split_events(features.dimensions, groupings, MonitorRegistry(10_000))
    return to_rows(roll_up(features, splits, NOW_MS))


def to_rows(columns: Columns) -> list[Row]:
    plain = {name: to_values(column) for name, column in columns.items()}
    assert len({len(values) for values in plain.values()}) == 1
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def to_values(column: object) -> list[Any]:
    if isinstance(column, CodedColumn):
        return column.decode()
    if isinstance(column, MapColumn):
        keys = list(np.asarray(column.keys).tolist())
        values = column.values.tolist()
        ends = column.offsets.tolist()
        assert ends[-1] == len(keys) == len(values)
        return [dict(zip(keys[a:b], values[a:b], strict=True)) for a, b in pairwise(ends)]
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def roll_by_hand(
    received: Sequence[Received], groupings: Sequence[Grouping] = DEFAULT_GROUPINGS
) -> list[Row]:
    gathered: dict[Any, list[Facts]] = defaultdict(list)
    for each in received:
        for monitor in find_monitors(each, groupings):
            gathered[each.time_ms // MINUTE_MS * 60, monitor].append(read_facts(each))
    return [
        {
            "minute": minute,
            "grouping": grouping_name(monitor.grouping),
            **dict.fromkeys((d.value for d in DIMENSIONS), ""),
            **monitor.labels(),
            **count(facts),
            "record_time": NOW_MS,
        }
        for (minute, monitor), facts in gathered.items()
    ]


def count(facts: Sequence[Facts]) -> Row:
    costs = [f.picodollars for f in facts]
    return {
        "requests": len(facts),
        "answered": sum(not f.error for f in facts),
        **{
            column: sum(getattr(f, name) for f in facts)
            for column, name in zip(COLUMNS, COUNTED, strict=True)
        },
        **{name: sum(f.tokens[name] for f in facts) for name in TOKENS},
        "unpriced": costs.count(None),
        "cost_usd": Decimal(sum(filter(None, costs))).scaleb(-12),
        **{name: count_buckets(getattr(f, name) for f in facts) for name in HISTOGRAMS},
        "error_types": dict(Counter(f.error_type for f in facts if f.error_type)),
    }


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(
        rows, key=lambda row: [str(row[name]) for name in ("minute", "grouping", *DIMENSIONS)]
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_chunk_is_counted_as_by_hand(seed: int) -> None:
    received = receive(make_traffic(seed, 600))
    assert in_order(roll(received)) == in_order(roll_by_hand(received))


def test_every_grouping_of_two_dimensions() -> None:
    received = receive(make_traffic(4, 200))
    assert in_order(roll(received, ALL_GROUPINGS)) == in_order(
        roll_by_hand(received, ALL_GROUPINGS)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 10**8))
def test_chunks_of_any_size_and_span(seed: int, size: int, span_ms: int) -> None:
    received = receive(make_traffic(seed, size, span_ms))
    assert in_order(roll(received)) == in_order(roll_by_hand(received))


def test_parts_add_up_to_the_whole() -> None:
    """What lets partitions, and chunks, be counted apart."""
    received = receive(make_traffic(5, 400))
    parts = [row for i in range(0, 400, 130) for row in roll(received[i : i + 130])]
    assert merge(parts) == merge(roll(received))


def merge(rows: list[Row]) -> dict[Any, Any]:
    key = ("minute", "grouping", *(d.value for d in DIMENSIONS))
    merged: dict[Any, dict[str, Any]] = {}
    for row in rows:
        into = merged.setdefault(tuple(row[k] for k in key), {})
        for name in set(row) - {*key, "record_time"}:
            value = Counter(row[name]) if isinstance(row[name], dict) else row[name]
            into[name] = into[name] + value if name in into else value
    return merged


def test_an_event_on_the_minute_belongs_to_the_minute_that_begins() -> None:
    start = NOW_MS // MINUTE_MS * MINUTE_MS
    events = [make_event(str(i), time_ms=start + d) for i, d in enumerate((-1, 0, 59_999, 60_000))]
    rows = roll(receive(events), [(Dimension.REQUEST_MODEL,)])
    minute = start // 1000
    assert [(r["minute"], r["requests"]) for r in rows] == [
        (minute - 60, 1),
        (minute, 2),
        (minute + 60, 1),
    ]


def test_a_grouping_that_no_event_has_makes_no_rows() -> None:
    rows = roll(receive([make_event()]), [(Dimension.ROUTE,), (Dimension.REQUEST_MODEL,)])
    assert [row["grouping"] for row in rows] == ["request_model"]
    assert roll(receive([make_event()]), [(Dimension.ROUTE,)]) == []


def test_absurd_token_counts_overflow_nothing() -> None:
    """Four billion tokens an event: their cost in picodollars passes 2^63 within hundreds."""
    most = {"input_tokens": 2**31 - 1, "output_tokens": 2**31 - 1, "provider": "anthropic"}
    events = [make_event(str(i), request_model="claude-sonnet-4", **most) for i in range(400)]
    (row,) = roll(receive(events), [(Dimension.REQUEST_MODEL,)])
    each = (2**31 - 1) * (3_000_001 + 15_000_007)
    assert 400 * each > 2**63
    assert row["cost_usd"] == Decimal(400 * each).scaleb(-12)
    assert row["output_tokens"] == 400 * (2**31 - 1)
