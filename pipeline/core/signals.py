"""Pack a chunk's counts for the detectors, split by the partition each monitor lives in."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.core.features import Features
from pipeline.core.histogram import find_buckets
from pipeline.core.monitors import Split
from pipeline.core.sums import count_by_key, sum_by_key
from schemas.monitor import Monitor, grouping_name
from schemas.signal import Buckets, MonitorCounts, SignalPacket, Source

Ints = npt.NDArray[np.int64]
#: Keeps a packet well under Kafka's message limit.
MAX_MONITORS_PER_PACKET = 2_000


def assign_partition(monitor: Monitor, partitions: int) -> int:
    """Return the signals partition that owns the monitor; the same in every process and version."""
    return zlib.crc32("\0".join((*monitor.grouping, *monitor.values)).encode()) % partitions


def pack_signals(
    source: Source, features: Features, splits: Sequence[Split], partitions: int
) -> dict[int, tuple[SignalPacket, ...]]:
    """Return the packets of each signals partition, parts in order."""
    groupings = tuple(grouping_name(s.grouping) for s in splits)
    by_partition: dict[int, list[MonitorCounts]] = {}
    for index, split in enumerate(splits):
        for monitor, counts in zip(split.monitors, _count(index, features, split), strict=True):
            partition = assign_partition(monitor, partitions)
            by_partition.setdefault(partition, []).append(counts)
    return {
        partition: tuple(
            SignalPacket(source, part, groupings, tuple(counts[i : i + MAX_MONITORS_PER_PACKET]))
            for part, i in enumerate(range(0, len(counts), MAX_MONITORS_PER_PACKET))
        )
        for partition, counts in sorted(by_partition.items())
    }


def _count(index: int, features: Features, split: Split) -> list[MonitorCounts]:
    """One MonitorCounts per monitor of the split, in its order."""
    inside = split.code >= 0
    keys = np.arange(len(split.monitors))
    _, sums = sum_by_key(split.code[inside], _count_matrix(features)[inside])
    first, last = _time_span(features.time_ms[inside], split.code[inside], len(keys))
    chunk_ms = _histograms(features.first_chunk_s * 1e3, split.code, keys)
    token_us = _histograms(features.token_s * 1e6, split.code, keys)
    return [
        MonitorCounts(
            index, monitor.values, *map(int, sums[i]), first[i], last[i], chunk_ms[i], token_us[i]
        )
        for i, monitor in enumerate(split.monitors)
    ]


def _count_matrix(features: Features) -> Ints:
    """Shape (n, 5): requests, errors, answered, refusals, truncations."""
    ones = np.ones(len(features), np.int64)
    columns = (ones, features.errors, ~features.errors, features.refusals, features.truncations)
    return np.stack([np.asarray(c, np.int64) for c in columns], axis=1)


def _time_span(time_ms: Ints, code: Ints, size: int) -> tuple[list[int], list[int]]:
    first = np.full(size, np.iinfo(np.int64).max)
    last = np.full(size, np.iinfo(np.int64).min)
    np.minimum.at(first, code, time_ms)
    np.maximum.at(last, code, time_ms)
    return first.tolist(), last.tolist()


def _histograms(values: npt.NDArray[np.float64], code: Ints, keys: Ints) -> list[Buckets]:
    use = np.isfinite(values) & (code >= 0)
    offsets, items, counts = count_by_key(code[use], find_buckets(values[use]), keys)
    return [
        dict(zip(items[a:b].tolist(), counts[a:b].tolist(), strict=True))
        for a, b in pairwise(offsets)
    ]
