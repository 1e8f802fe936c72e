"""Packets made by hand from what each monitor in them saw, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from schemas.signal import (
    BUCKET_COUNT_TYPE,
    BUCKET_TYPE,
    COUNT_TYPE,
    FIRST_TIME_MS,
    GROUPING_TYPE,
    LAST_TIME_MS,
    MEASURED,
    OFFSET_TYPE,
    Buckets,
    Histograms,
    MonitorCounts,
    SignalPacket,
    Source,
)

HISTOGRAMS = tuple(MEASURED.values())


def make_counts(
    values: tuple[str, ...],
    requests: int,
    last_ms: int,
    *,
    grouping: int = 0,
    span_ms: int = 9_999,
    histograms: Mapping[str, Buckets] | None = None,
    **counts: int,
) -> MonitorCounts:
    """One monitor's counts; of whatever is not given there was none."""
    columns = {
        "requests": requests,
        "errors": 0,
        "answered": requests - counts.get("errors", 0),
        "refusals": 0,
        "truncations": 0,
        FIRST_TIME_MS: last_ms - span_ms,
        LAST_TIME_MS: last_ms,
        **counts,
    }
    given = histograms or {}
    return MonitorCounts(grouping, values, columns, {n: given.get(n, {}) for n in HISTOGRAMS})


def make_packet(
    source: Source, part: int, groupings: Sequence[str], counts: Iterable[MonitorCounts]
) -> SignalPacket:
    """Pack what was given for each monitor; inverse of `SignalPacket.counts`."""
    rows = list(counts)
    names = list(rows[0].columns) if rows else ["requests", FIRST_TIME_MS, LAST_TIME_MS]
    return SignalPacket(
        source=source,
        part=part,
        groupings=tuple(groupings),
        grouping=to_bytes((row.grouping for row in rows), GROUPING_TYPE),
        values=tuple(row.values for row in rows),
        columns={n: to_bytes((row.columns[n] for row in rows), COUNT_TYPE) for n in names},
        histograms={n: pack_buckets([row.histograms[n] for row in rows]) for n in HISTOGRAMS},
    )


def pack_buckets(rows: Sequence[Buckets]) -> Histograms:
    """The same histograms as columns."""
    return Histograms(
        to_bytes(accumulate(map(len, rows), initial=0), OFFSET_TYPE),
        to_bytes((bucket for row in rows for bucket in row), BUCKET_TYPE),
        to_bytes((count for row in rows for count in row.values()), BUCKET_COUNT_TYPE),
    )


def to_bytes(numbers: Iterable[int], kind: str) -> bytes:
    return np.array(list(numbers), np.dtype(kind)).tobytes()
