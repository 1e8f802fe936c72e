"""Splitting a chunk into monitors against one event at a time, and the cap."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.chunk import CodedColumn, code_values
from pipeline.core.monitors import MonitorRegistry, split_events
from schemas.monitor import (
    DEFAULT_GROUPINGS,
    DIMENSIONS,
    OTHER,
    Dimension,
    Grouping,
    Monitor,
    grouping_name,
    parse_grouping,
)
from tests.support.events import ALL_GROUPINGS

ROUTE = (Dimension.ROUTE,)
PAIR = (Dimension.ROUTE, Dimension.TENANT)
THREE = (Dimension.ROUTE, Dimension.TENANT, Dimension.REGION)

Row = dict[Dimension, str]
ROWS = st.lists(
    st.fixed_dictionaries({d: st.sampled_from(["", "a", "b", "日本"]) for d in DIMENSIONS}),
    min_size=1,
    max_size=25,
)


def columns_of(rows: list[Row]) -> dict[Dimension, CodedColumn]:
    return {d: code_values([row[d] for row in rows]) for d in DIMENSIONS}


def rows_of(*routes: str) -> list[Row]:
    return [dict.fromkeys(DIMENSIONS, "") | {Dimension.ROUTE: route} for route in routes]


def monitor_of(row: Row, grouping: Grouping) -> Monitor | None:
    values = tuple(row[d] for d in grouping)
    return Monitor(grouping, values) if any(values) else None


def split_of(
    rows: list[Row], grouping: Grouping, registry: MonitorRegistry
) -> list[Monitor | None]:
    """Return the monitor of each event."""
    (split,) = split_events(columns_of(rows), [grouping], registry)
    assert split.grouping == grouping
    assert len(set(split.monitors)) == len(split.monitors)
    assert set(split.code.tolist()) - {-1} == set(range(len(split.monitors)))
    return [None if code < 0 else split.monitors[code] for code in split.code]


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_every_event_finds_its_monitor(rows: list[Row]) -> None:
    groupings = [*DEFAULT_GROUPINGS, *ALL_GROUPINGS, THREE]
    splits = split_events(columns_of(rows), groupings, MonitorRegistry(1_000))
    assert [s.grouping for s in splits] == groupings
    for grouping in groupings:
        found = split_of(rows, grouping, MonitorRegistry(1_000))
        assert found == [monitor_of(row, grouping) for row in rows]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 5))
def test_over_the_cap_everything_counts_under_other(rows: list[Row], cap: int) -> None:
    registry = MonitorRegistry(cap)
    found = split_of(rows, PAIR, registry)
    named = {m for m in found if m is not None and m.values != (OTHER, OTHER)}
    wanted = {m for row in rows if (m := monitor_of(row, PAIR)) is not None}
    assert registry.count(PAIR) == len(named) == min(cap, len(wanted))
    for row, monitor in zip(rows, found, strict=True):
        mine = monitor_of(row, PAIR)
        assert monitor == (mine if mine in named or mine is None else Monitor(PAIR, (OTHER, OTHER)))
    # Nothing is lost: as many events have a monitor as name one.
    assert sum(m is not None for m in found) == sum(monitor_of(r, PAIR) is not None for r in rows)


def test_the_cap_is_each_groupings_own() -> None:
    registry = MonitorRegistry(1)
    rows = rows_of("a", "b")
    assert split_of(rows, ROUTE, registry)[0] == Monitor(ROUTE, ("a",))
    assert split_of(rows, PAIR, registry)[0] == Monitor(PAIR, ("a", ""))
    assert (registry.count(ROUTE), registry.count(PAIR), registry.count(THREE)) == (1, 1, 0)


def test_a_monitor_that_was_admitted_stays() -> None:
    registry = MonitorRegistry(2)
    split_of(rows_of("a", "b"), ROUTE, registry)
    found = split_of(rows_of("c", "a", "d", "c", "b"), ROUTE, registry)
    assert Counter(m.values[0] for m in found if m) == {OTHER: 3, "a": 1, "b": 1}
    assert registry.count(ROUTE) == 2


def test_a_registry_is_seeded_with_what_is_known() -> None:
    """A replay after a crash must count under the same names."""
    registry = MonitorRegistry(2, [Monitor(ROUTE, ("c",)), Monitor(ROUTE, ("d",))])
    found = split_of(rows_of("a", "c", "d"), ROUTE, registry)
    assert [m.values[0] for m in found if m] == [OTHER, "c", "d"]


def test_an_event_without_the_dimension_has_no_monitor() -> None:
    assert split_of(rows_of("", "a", ""), ROUTE, MonitorRegistry(1)) == [
        None,
        Monitor(ROUTE, ("a",)),
        None,
    ]


def test_codes_do_not_run_into_each_other() -> None:
    """Three dimensions of many values: the combined code must tell every combination apart."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 30, (500, 3)).astype(str)
    rows = [
        dict.fromkeys(DIMENSIONS, "") | dict(zip(THREE, map(str, row), strict=True))
        for row in values
    ]
    found = split_of(rows, THREE, MonitorRegistry(1_000))
    assert found == [Monitor(THREE, tuple(map(str, row))) for row in values]


def test_a_grouping_has_a_name_and_a_monitor_says_what_it_is() -> None:
    assert parse_grouping(grouping_name(PAIR)) == PAIR
    assert parse_grouping("route, tenant") == PAIR
    monitor = Monitor(PAIR, ("support", "acme"))
    assert monitor.labels() == {"route": "support", "tenant": "acme"}
    assert str(monitor) == "route=support, tenant=acme"


@pytest.mark.parametrize("name", ["", "user", "route,,tenant", "route,route"])
def test_a_grouping_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"Dimension|stands twice"):
        parse_grouping(name)
