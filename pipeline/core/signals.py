"""Pack a chunk's counts for the detectors, split by the partition each monitor lives in."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from msgspec import structs

from pipeline.core.features import Features
from pipeline.core.histogram import find_measured_buckets
from pipeline.core.monitors import Split
from pipeline.core.sums import count_by_key, sum_by_key
from schemas.monitor import Monitor, grouping_name
from schemas.signal import Buckets, MonitorCounts, SignalPacket, Source

Ints = npt.NDArray[np.int64]
Packets = dict[int, tuple[SignalPacket, ...]]
#: How finely a packet resolves event time.
INTERVAL_MS = 10_000
#: Keeps a packet well under Kafka's message limit.
MAX_MONITORS_PER_PACKET = 2_000


def assign_partition(monitor: Monitor, partitions: int) -> int:
    """Return the signals partition that owns the monitor; the same in every process and version."""
    return zlib.crc32("\0".join((*monitor.grouping, *monitor.values)).encode()) % partitions


def pack_signals(
    source: Source, features: Features, splits: Sequence[Split], partitions: int
) -> Packets:
    """Return the packets of each signals partition, in order of event time.

    A chunk that spans more than `INTERVAL_MS` of event time is packed interval
    by interval: a worker that catches up on an hour finds in it what it would
    have found as it came.
    """
    counter = _Counter(features)
    packets: dict[int, list[SignalPacket]] = {}
    for events in _intervals(features.time_ms):
        for partition, counts in _count(counter, splits, partitions, events).items():
            _append(packets.setdefault(partition, []), source, splits, counts)
    return {partition: tuple(packets[partition]) for partition in sorted(packets)}


def pack_signals_in_steps(
    source: Source,
    offsets: Sequence[int],
    features: Features,
    splits: Sequence[Split],
    step: int,
) -> tuple[SignalPacket, ...]:
    """Return a packet for every `step` events, for a single partition.

    Without a broker between them the detectors can afford to look more often.
    `offsets` are those of the n events.
    """
    counter = _Counter(features)
    packets: list[SignalPacket] = []
    for start in range(0, len(features), step):
        events = np.arange(start, min(start + step, len(features)))
        here = structs.replace(
            source, first_offset=offsets[events[0]], last_offset=offsets[events[-1]]
        )
        for counts in _count(counter, splits, 1, events).values():
            part: list[SignalPacket] = []
            _append(part, here, splits, counts)
            packets += part
    return tuple(packets)


def _intervals(time_ms: Ints) -> list[Ints]:
    """The indices of the events of each interval, in order of time, then of arrival."""
    interval = time_ms // INTERVAL_MS
    order = np.argsort(interval, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(interval[order])) + 1)


def _count(
    counter: _Counter, splits: Sequence[Split], partitions: int, events: Ints
) -> dict[int, list[MonitorCounts]]:
    owned: dict[int, list[MonitorCounts]] = {}
    for index, split in enumerate(splits):
        for monitor, counts in counter.count(index, split, events):
            owned.setdefault(assign_partition(monitor, partitions), []).append(counts)
    return owned


def _append(
    packets: list[SignalPacket],
    source: Source,
    splits: Sequence[Split],
    counts: Sequence[MonitorCounts],
) -> None:
    groupings = tuple(grouping_name(s.grouping) for s in splits)
    for i in range(0, len(counts), MAX_MONITORS_PER_PACKET):
        some = tuple(counts[i : i + MAX_MONITORS_PER_PACKET])
        packets.append(SignalPacket(source, len(packets), groupings, some))


class _Counter:
    """The arrays that are counted, made once for a chunk."""

    def __init__(self, features: Features) -> None:
        ones = np.ones(len(features), np.int64)
        columns = (ones, features.errors, ~features.errors, features.refusals, features.truncations)
        self._counts = np.stack([np.asarray(c, np.int64) for c in columns], axis=1)
        self._time_ms = features.time_ms
        self._first_chunk = find_measured_buckets(features.first_chunk_s * 1e3)
        self._token = find_measured_buckets(features.token_s * 1e6)

    def count(self, index: int, split: Split, events: Ints) -> list[tuple[Monitor, MonitorCounts]]:
        """Count some of the events, for each monitor of the split that is among them."""
        inside = events[split.code[events] >= 0]
        code = split.code[inside]
        present, sums = sum_by_key(code, self._counts[inside])
        first, last = _time_span(self._time_ms[inside], code, present)
        first_chunk = _histograms(self._first_chunk, inside, code, present)
        token = _histograms(self._token, inside, code, present)
        return [
            (
                monitor := split.monitors[at],
                MonitorCounts(
                    index,
                    monitor.values,
                    requests=int(sums[i, 0]),
                    errors=int(sums[i, 1]),
                    answered=int(sums[i, 2]),
                    refusals=int(sums[i, 3]),
                    truncations=int(sums[i, 4]),
                    first_time_ms=first[i],
                    last_time_ms=last[i],
                    first_chunk_ms=first_chunk[i],
                    output_token_us=token[i],
                ),
            )
            for i, at in enumerate(present.tolist())
        ]


def _time_span(time_ms: Ints, code: Ints, present: Ints) -> tuple[list[int], list[int]]:
    row = np.searchsorted(present, code)
    first = np.full(len(present), np.iinfo(np.int64).max)
    last = np.full(len(present), np.iinfo(np.int64).min)
    np.minimum.at(first, row, time_ms)
    np.maximum.at(last, row, time_ms)
    return first.tolist(), last.tolist()


def _histograms(
    measured_buckets: tuple[npt.NDArray[np.bool_], Ints], inside: Ints, code: Ints, present: Ints
) -> list[Buckets]:
    measured, buckets = measured_buckets
    use = measured[inside]
    offsets, items, counts = count_by_key(code[use], buckets[inside][use], present)
    return [
        dict(zip(items[a:b].tolist(), counts[a:b].tolist(), strict=True))
        for a, b in pairwise(offsets)
    ]
