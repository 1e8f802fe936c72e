"""A packet as arrays, checked: whatever stands in it, nothing gets past here that could do harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.monitor import Grouping, parse_grouping
from schemas.signal import (
    BUCKET_COUNT_TYPE,
    BUCKET_TYPE,
    COUNT_TYPE,
    COUNTED,
    FIRST_TIME_MS,
    GROUPING_TYPE,
    LAST_TIME_MS,
    OFFSET_TYPE,
    REQUESTS,
    SUM_TYPE,
    Histograms,
    SignalPacket,
    Sums,
)

Ints = npt.NDArray[np.int64]

#: More requests than this in one packet are no traffic; below it nothing that is added overflows.
MAX_REQUESTS = 2**40
#: The end of the year 9999.
MAX_TIME_MS = 253_402_300_799_999
#: Vectors are at most so wide.
MAX_WIDTH = 4_096
_parse_grouping = lru_cache(maxsize=1_024)(parse_grouping)


class HistogramView(NamedTuple):
    """m histograms: row i holds ``buckets[offsets[i]:offsets[i+1]]`` and the same of `counts`."""

    offsets: Ints
    buckets: Ints
    counts: Ints

    def sizes(self) -> Ints:
        """How many buckets each row holds, shape (m,)."""
        return np.diff(self.offsets)

    def sum_rows(self, entries: Ints) -> Ints:
        """Sum one number for each bucket over each row, shape (m,)."""
        before = np.zeros(len(entries) + 1, np.int64)
        np.cumsum(entries, out=before[1:])
        return np.diff(before[self.offsets])

    def take(self, at: Ints) -> HistogramView:
        """Return the rows `at`, in that order."""
        sizes = self.sizes()[at]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(self.offsets[at] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return HistogramView(offsets, self.buckets[entries], self.counts[entries])


class SumsView(NamedTuple):
    """`matrix` (m, p) holds the sum of `counts` (m,) vectors of each monitor."""

    #: See `Sums`.
    version: int
    known: int
    counts: Ints
    matrix: npt.NDArray[np.float64]

    def take(self, at: Ints) -> SumsView:
        return SumsView(self.version, self.known, self.counts[at], self.matrix[at])


@dataclass(frozen=True)
class PacketView:
    """What a packet says about m monitors."""

    groupings: tuple[Grouping, ...]
    #: Index into `groupings` of each monitor.
    grouping: Ints
    values: tuple[tuple[str, ...], ...]
    columns: dict[str, Ints]
    histograms: dict[str, HistogramView]
    sums: dict[str, SumsView]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, at: Ints) -> PacketView:
        """Return the monitors `at`, in that order."""
        return PacketView(
            self.groupings,
            self.grouping[at],
            tuple(self.values[i] for i in at.tolist()),
            {name: column[at] for name, column in self.columns.items()},
            {name: each.take(at) for name, each in self.histograms.items()},
            {name: each.take(at) for name, each in self.sums.items()},
        )


def read_packet(packet: SignalPacket) -> PacketView:
    """Return the packet as arrays.

    Raises:
        ValueError: its columns do not fit together, or what they say is impossible. That no
            monitor stands in it twice is not looked at here.
    """
    m = len(packet.values)
    groupings = tuple(_parse_grouping(name) for name in packet.groupings)
    grouping = _read(packet.grouping, GROUPING_TYPE, m, "the groupings")
    _check_monitors(groupings, grouping, packet.values)
    columns = {name: _read(raw, COUNT_TYPE, m, name) for name, raw in packet.columns.items()}
    _check_columns(columns)
    return PacketView(
        groupings,
        grouping,
        packet.values,
        columns,
        {name: _read_histograms(each, m, name) for name, each in packet.histograms.items()},
        {name: _read_sums(each, m, name) for name, each in packet.sums.items()},
    )


def _read(raw: bytes, kind: str, length: int, name: str) -> npt.NDArray[np.int64]:
    dtype = np.dtype(kind)
    if len(raw) != length * dtype.itemsize:
        raise ValueError(f"{name}: {len(raw)} bytes where there should be {length} numbers")
    return np.frombuffer(raw, dtype).astype(np.int64, copy=False)


def _check_monitors(
    groupings: tuple[Grouping, ...], grouping: Ints, values: tuple[tuple[str, ...], ...]
) -> None:
    if not ((grouping >= 0) & (grouping < len(groupings))).all():
        raise ValueError("a monitor is not a value of a grouping in the packet")
    sizes = np.array([len(each) for each in groupings], np.int64)
    if not np.array_equal(sizes[grouping], np.fromiter(map(len, values), np.int64, len(values))):
        raise ValueError("a monitor is not a value of its grouping in the packet")


def _check_columns(columns: Mapping[str, Ints]) -> None:
    times = (FIRST_TIME_MS, LAST_TIME_MS)
    if missing := [name for name in (REQUESTS, *times) if name not in columns]:
        raise ValueError(f"the packet lacks {', '.join(missing)}")
    requests, first, last = columns[REQUESTS], *(columns[name] for name in times)
    if not ((first >= 0) & (first <= last) & (last <= MAX_TIME_MS)).all():
        raise ValueError("impossible times")
    counts = np.stack([column for name, column in columns.items() if name not in times])
    if not ((counts >= 0) & (counts <= np.minimum(requests, MAX_REQUESTS))).all():
        raise ValueError("impossible counts: negative, or of more events than there were")
    for count, total in COUNTED.values():
        if count in columns and (columns[count] > columns.get(total, 0)).any():
            raise ValueError(f"impossible counts: more {count} than {total}")


def _read_histograms(histograms: Histograms, m: int, name: str) -> HistogramView:
    offsets = _read(histograms.offsets, OFFSET_TYPE, m + 1, name)
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name}: impossible offsets")
    entries = int(offsets[-1])
    buckets = _read(histograms.buckets, BUCKET_TYPE, entries, name)
    counts = _read(histograms.counts, BUCKET_COUNT_TYPE, entries, name)
    if (counts < 0).any():
        raise ValueError(f"{name}: impossible counts")
    return HistogramView(offsets, buckets, counts)


def _read_sums(sums: Sums, m: int, name: str) -> SumsView:
    if not 0 < sums.width <= MAX_WIDTH:
        raise ValueError(f"{name}: vectors of {sums.width} entries")
    counts = _read(sums.counts, COUNT_TYPE, m, name)
    if len(sums.matrix) != m * sums.width * np.dtype(SUM_TYPE).itemsize:
        raise ValueError(f"{name}: {len(sums.matrix)} bytes are not {m} rows of {sums.width}")
    matrix = np.frombuffer(sums.matrix, SUM_TYPE).reshape(m, sums.width).astype(np.float64)
    if not ((counts >= 0) & (counts <= MAX_REQUESTS)).all():
        raise ValueError(f"{name}: impossible counts")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: sums that are not finite")
    if sums.version < 0 or not 0 < sums.known <= MAX_REQUESTS:
        raise ValueError(f"{name}: version {sums.version} of {sums.known} answers")
    return SumsView(sums.version, sums.known, counts, matrix)
