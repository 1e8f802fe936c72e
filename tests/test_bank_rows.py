"""Rows of monitors against a dict, and who could share a request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bank_packet import read_packet
from detectors.bank_rows import UNKNOWN, MonitorRows
from schemas.monitor import DEFAULT_GROUPINGS, Monitor, grouping_name
from schemas.signal import Source
from tests.support.packets import make_counts, make_packet

MONITORS = st.builds(
    lambda grouping, values: Monitor(grouping, tuple(values[: len(grouping)])),
    st.sampled_from(DEFAULT_GROUPINGS),
    st.lists(st.sampled_from(["", "a", "b", "日本"]), min_size=2, max_size=2),
)


def find(rows: MonitorRows, monitors: list[Monitor]) -> list[int]:
    names = tuple(grouping_name(g) for g in DEFAULT_GROUPINGS)
    counts = [
        make_counts(m.values, 1, 10**6, grouping=DEFAULT_GROUPINGS.index(m.grouping))
        for m in monitors
    ]
    packet = make_packet(Source("events", "e", 0, 1, 1), 0, names, counts)
    return rows.find(read_packet(packet)).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), MONITORS), max_size=40))
def test_rows_against_a_dict(changes: list[tuple[bool, Monitor]]) -> None:
    rows, expected = MonitorRows(), {}
    rows.grow(40)
    for add, monitor in changes:
        if add and monitor not in expected:
            expected[monitor] = rows.add(monitor)
        elif not add and monitor in expected:
            rows.remove(np.array([expected.pop(monitor)]))
        assert len(rows) == len(expected)
    assert dict(rows) == expected
    assert len(set(expected.values())) == len(expected)
    everyone = sorted({monitor for _, monitor in changes})
    assert find(rows, everyone) == [expected.get(m, UNKNOWN) for m in everyone]
    again = MonitorRows()
    again.restore(rows.capacity, rows.free, list(rows))
    assert dict(again) == expected
    assert again.free == rows.free


@settings(max_examples=100, deadline=None)
@given(st.lists(MONITORS, min_size=1, max_size=20, unique=True))
def test_who_could_share_a_request(monitors: list[Monitor]) -> None:
    rows = MonitorRows()
    rows.grow(len(monitors))
    at = np.array([rows.add(monitor) for monitor in monitors])
    for monitor, row in zip(monitors, at.tolist(), strict=True):
        labels = monitor.labels()
        expected = [
            all(labels.get(name, value) == value for name, value in other.labels().items())
            for other in monitors
        ]
        assert rows.overlap(at, row).tolist() == expected


@pytest.mark.parametrize("known", [False, True])
def test_a_monitor_that_stands_twice_is_found(known: bool) -> None:
    rows, twice = MonitorRows(), Monitor(DEFAULT_GROUPINGS[0], ("a",))
    rows.grow(2)
    if known:
        rows.add(twice)
    with pytest.raises(ValueError, match="twice"):
        find(rows, [twice, Monitor(DEFAULT_GROUPINGS[1], ("a",)), twice])


def test_a_row_without_a_monitor_is_asked_for_in_vain() -> None:
    rows = MonitorRows()
    rows.grow(1)
    with pytest.raises(LookupError):
        rows.monitor(0)
