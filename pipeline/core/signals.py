"""Pack a chunk's counts and sums for the detectors, split by the partition of each monitor.

All groupings, intervals and partitions are counted in one go, as arrays. An
event stands in one *cell* for each grouping: its monitor in its batch (an
interval of event time, or a step of so many events). Cells that saw an event
are numbered in the order in which they are sent, so that every packet is a
slice of every column.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import structs

from pipeline.core.features import Features
from pipeline.core.histogram import find_classed_buckets, find_measured_buckets
from pipeline.core.monitors import Split
from pipeline.core.sums import count_pairs
from schemas.monitor import Grouping, Monitor, grouping_name
from schemas.signal import (
    BUCKET_COUNT_TYPE,
    BUCKET_TYPE,
    CLASSED,
    COUNT_TYPE,
    COUNTED,
    FIRST_TIME_MS,
    GROUPING_TYPE,
    LAST_TIME_MS,
    MEASURED,
    OFFSET_TYPE,
    REQUESTS,
    SUM_TYPE,
    Histograms,
    SignalPacket,
    Source,
    Sums,
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Packets = dict[int, tuple[SignalPacket, ...]]

#: How finely a packet resolves event time.
INTERVAL_MS = 10_000
MAX_MONITORS_PER_PACKET = 2_000
#: Keeps a packet well under Kafka's message limit of 1 MB; its frame comes on top.
MAX_BYTES_PER_PACKET = 600_000
#: Up to so many cells per event all of them have a place in an array; beyond, the used are sorted.
PLACES_PER_EVENT = 16
#: A vector with an entry beyond this is no measurement; so many below it add without overflow.
MAX_ENTRY = 1e30

#: Column → which events it counts. A new counted signal is a row here, and one in `COUNTED`.
FLAGS: dict[str, Callable[[Features], Bools]] = {
    "errors": lambda features: features.errors,
    "answered": lambda features: ~features.errors,
    "refusals": lambda features: features.refusals,
    "truncations": lambda features: features.truncations,
    "partial_refusals": lambda features: features.partial_refusals,
    "guardrails": lambda features: features.traits.guardrails,
    "contents": lambda features: features.traits.contents,
    "empty_answers": lambda features: features.traits.empty_answers,
    "texts": lambda features: features.traits.texts,
    "repetitions": lambda features: features.traits.repetitions,
    "languages": lambda features: features.traits.languages,
    "language_mismatches": lambda features: features.traits.language_mismatches,
    "marked": lambda features: features.traits.marked,
    "off_prompts": lambda features: features.traits.off_prompts,
    "novel_prompts": lambda features: features.traits.novel_prompts,
    "canaries": lambda features: features.traits.canaries,
    "canary_failures": lambda features: features.traits.canary_failures,
    "cache_lookups": lambda features: features.traits.cache_lookups,
    "cache_hits": lambda features: features.cache_hits,
}
#: Totals of what only some gateways tell.
OPTIONAL = frozenset({"contents", "cache_lookups", "texts", "languages", "marked", "canaries"})
#: Histogram → the measurement, NaN where there is none, and how many of its units make one of
#: the feature's. A new measured signal is a row here, and one in `MEASURED`.
MEASUREMENTS: dict[str, tuple[Callable[[Features], npt.NDArray[np.float64]], float]] = {
    "first_chunk_ms": (lambda features: features.first_chunk_s, 1e3),
    "output_token_us": (lambda features: features.token_s, 1e6),
    "answer_size": (lambda features: features.traits.answer_size, 1.0),
    "cost_microdollars": (lambda features: features.traits.cost_usd, 1e6),
}


_CLASSED = frozenset(MEASURED[signal] for signal in CLASSED)


class Vectors(NamedTuple):
    """A vector for some of n events, to be summed over each monitor."""

    #: Version of what they were taken against, and how many answers that rests on: see `Sums`.
    version: int
    known: int
    #: Which events have one, shape (n,).
    has: Bools
    #: Shape (n, p); one with an entry that is not finite counts as none.
    values: npt.NDArray[np.float32]


class _Events(NamedTuple):
    """n events, as far as they are counted; without features nothing is measured."""

    time_ms: Ints
    flags: Mapping[str, Bools]
    features: Features | None = None
    sums: Mapping[str, Vectors] = {}

    @classmethod
    def read(cls, features: Features, sums: Mapping[str, Vectors] | None) -> _Events:
        flags = {name: find(features) for name, find in _known_flags(features).items()}
        return cls(features.time_ms, flags, features, sums or {})


def assign_partition(monitor: Monitor, partitions: int) -> int:
    """Return the signals partition that owns the monitor; the same in every process and version."""
    return zlib.crc32(_name_values(monitor.values), _start(monitor.grouping)) % partitions


def _start(grouping: Grouping) -> int:
    return zlib.crc32("".join(f"{dimension}\0" for dimension in grouping).encode())


def _name_values(values: tuple[str, ...]) -> bytes:
    return "\0".join(values).encode()


def pack_signals(
    source: Source,
    features: Features,
    splits: Sequence[Split],
    partitions: int,
    sums: Mapping[str, Vectors] | None = None,
) -> Packets:
    """Return the packets of each signals partition, in order of event time.

    A chunk that spans more than `INTERVAL_MS` of event time is packed interval
    by interval: a worker that catches up on an hour finds in it what it would
    have found as it came.
    """
    return _pack(source, _Events.read(features, sums), splits, partitions)


def pack_counts(
    source: Source,
    time_ms: Ints,
    flags: Mapping[str, Bools],
    splits: Sequence[Split],
    partitions: int,
) -> Packets:
    """`pack_signals` of what are no requests: so many of n events (shape (n,)) had each flag."""
    return _pack(source, _Events(time_ms, flags), splits, partitions)


def _pack(source: Source, events: _Events, splits: Sequence[Split], partitions: int) -> Packets:
    counted = _count(events, splits, partitions, events.time_ms // INTERVAL_MS)
    packets: dict[int, list[SignalPacket]] = {}
    for start, end in counted.parts():
        mine = packets.setdefault(int(counted.partition[start]), [])
        mine.append(counted.slice(start, end, source, part=len(mine)))
    return {partition: tuple(mine) for partition, mine in packets.items()}


def pack_signals_in_steps(
    source: Source,
    offsets: Sequence[int],
    features: Features,
    splits: Sequence[Split],
    step: int,
    sums: Mapping[str, Vectors] | None = None,
) -> tuple[SignalPacket, ...]:
    """Return a packet for every `step` events, for a single partition.

    Without a broker between them the detectors can afford to look more often.
    `offsets` are those of the n events.
    """
    events = _Events.read(features, sums)
    counted = _count(events, splits, 1, np.arange(len(features)) // step)
    packets: list[SignalPacket] = []
    for start, end in counted.parts():
        first = int(counted.batch[start]) * step
        last = min(first + step, len(features)) - 1
        here = structs.replace(source, first_offset=offsets[first], last_offset=offsets[last])
        follows = packets and packets[-1].source == here
        part = packets[-1].part + 1 if follows else 0
        packets.append(counted.slice(start, end, here, part))
    return tuple(packets)


class _Table(NamedTuple):
    """Histograms of m cells, as `schemas.signal.Histograms`."""

    offsets: npt.NDArray[np.int32]
    buckets: Ints
    counts: Ints

    def slice(self, start: int, end: int) -> Histograms:
        low, high = self.offsets[start], self.offsets[end]
        return Histograms(
            (self.offsets[start : end + 1] - low).astype(OFFSET_TYPE).tobytes(),
            self.buckets[low:high].astype(BUCKET_TYPE).tobytes(),
            self.counts[low:high].astype(BUCKET_COUNT_TYPE).tobytes(),
        )


class _Sums(NamedTuple):
    version: int
    known: int
    counts: Ints
    matrix: npt.NDArray[np.float64]

    def slice(self, start: int, end: int) -> Sums:
        return Sums(
            self.version,
            self.known,
            self.matrix.shape[1],
            self.counts[start:end].astype(COUNT_TYPE).tobytes(),
            self.matrix[start:end].astype(SUM_TYPE).tobytes(),
        )


class _Cells(NamedTuple):
    """The m cells that saw an event, in the order in which they are sent."""

    partition: Ints
    #: Number of the interval or step.
    batch: Ints
    #: Index into all the splits' monitors, one split after the other.
    monitor: Ints
    #: Which cell each event stands in, for each of s groupings; m where in none. Shape (s, n).
    of_event: Ints


class _Counted(NamedTuple):
    """Columns over the m cells."""

    partition: Ints
    batch: Ints
    groupings: tuple[str, ...]
    grouping: Ints
    values: list[tuple[str, ...]]
    #: What the values take at most.
    text_bytes: Ints
    columns: dict[str, Ints]
    histograms: dict[str, _Table]
    sums: dict[str, _Sums]

    def parts(self) -> Iterator[tuple[int, int]]:
        """Where each packet begins and ends."""
        changes = (np.diff(self.partition) != 0) | (np.diff(self.batch) != 0)
        ends = [0, *(np.flatnonzero(changes) + 1).tolist(), len(self.values)]
        behind = self._bytes_behind()
        for start, end in pairwise(ends):
            while start < end:
                full = int(np.searchsorted(behind, behind[start] + MAX_BYTES_PER_PACKET, "right"))
                # A monitor that is over the limit by itself is sent by itself.
                stop = min(max(full - 1, start + 1), start + MAX_MONITORS_PER_PACKET, end)
                yield start, stop
                start = stop

    def _bytes_behind(self) -> Ints:
        """Bytes of the cells before each cell, and before the end, shape (m + 1,)."""
        columns = 8 * (len(self.columns) + len(self.sums)) + 4 * len(self.histograms)
        width = sum(each.matrix.shape[1] for each in self.sums.values())
        behind = np.zeros(len(self.values) + 1, np.int64)
        np.cumsum(self.text_bytes + columns + 4 * width, out=behind[1:])
        for histogram in self.histograms.values():
            behind += histogram.offsets * 6
        return behind

    def slice(self, start: int, end: int, source: Source, part: int) -> SignalPacket:
        return SignalPacket(
            source=source,
            part=part,
            groupings=self.groupings,
            grouping=self.grouping[start:end].astype(GROUPING_TYPE).tobytes(),
            values=tuple(self.values[start:end]),
            columns={
                name: column[start:end].astype(COUNT_TYPE).tobytes()
                for name, column in self.columns.items()
            },
            histograms={name: each.slice(start, end) for name, each in self.histograms.items()},
            sums={name: each.slice(start, end) for name, each in self.sums.items()},
        )


def _count(events: _Events, splits: Sequence[Split], partitions: int, batch: Ints) -> _Counted:
    sizes = [len(split.monitors) for split in splits]
    cells = _find_cells(splits, sizes, partitions, batch)
    values = [monitor.values for split in splits for monitor in split.monitors]
    text_bytes = np.array([5 + len("".join(each)) * 4 for each in values], np.int64)
    return _Counted(
        partition=cells.partition,
        batch=cells.batch,
        groupings=tuple(grouping_name(split.grouping) for split in splits),
        grouping=np.repeat(np.arange(len(splits)), sizes)[cells.monitor],
        values=list(map(values.__getitem__, cells.monitor.tolist())),
        text_bytes=text_bytes[cells.monitor],
        columns=_count_columns(events, cells),
        histograms=_count_histograms(events.features, cells),
        sums={name: _sum_vectors(vectors, cells) for name, vectors in events.sums.items()},
    )


def _find_cells(
    splits: Sequence[Split], sizes: Sequence[int], partitions: int, batch: Ints
) -> _Cells:
    # Monitor 0 of each batch stands for none.
    width = 1 + sum(sizes)
    batch = batch - batch.min() if len(batch) else batch
    key = np.empty((len(splits), len(batch)), np.int64)
    for row, split, base in zip(key, splits, np.cumsum([1, *sizes]).tolist(), strict=False):
        row[:] = np.where(split.code < 0, 0, split.code + base)
    key += batch * width
    used, at = _number(key, width * (int(batch.max(initial=0)) + 1))
    used_batch, used_monitor = np.divmod(used, width)
    some = np.flatnonzero(used_monitor)
    owner = _assign_partitions(splits, partitions)[used_monitor[some] - 1]
    order = some[np.argsort(owner, kind="stable")] if partitions > 1 else some
    place = np.full(len(used), len(order), np.int64)
    place[order] = np.arange(len(order))
    return _Cells(
        partition=np.sort(owner),
        batch=used_batch[order],
        monitor=used_monitor[order] - 1,
        of_event=place[at],
    )


def _number(key: Ints, places: int) -> tuple[Ints, Ints]:
    """Return the distinct keys, all below `places`, ascending, and of each key its number."""
    if places > PLACES_PER_EVENT * key.size:
        used, at = np.unique(key, return_inverse=True)
        return used, at.reshape(key.shape)
    used = np.flatnonzero(np.bincount(key.ravel(), minlength=places))
    number = np.zeros(places, np.int64)
    number[used] = np.arange(len(used))
    return used, number[key]


def _assign_partitions(splits: Sequence[Split], partitions: int) -> Ints:
    """`assign_partition` of all monitors of all splits, one after the other."""
    if partitions == 1:
        return np.zeros(sum(len(split.monitors) for split in splits), np.int64)
    hashes: list[int] = []
    for split in splits:
        start = _start(split.grouping)
        hashes += [zlib.crc32(_name_values(m.values), start) for m in split.monitors]
    return np.array(hashes, np.int64) % partitions


def _count_columns(events: _Events, cells: _Cells) -> dict[str, Ints]:
    requests = _count_events(cells)
    columns = {REQUESTS: requests}
    for name, flag in events.flags.items():
        # What most events have is counted by those that have it not.
        rare = 2 * np.count_nonzero(flag) <= len(flag)
        few = _count_events(cells, np.flatnonzero(flag if rare else ~flag))
        columns[name] = few if rare else requests - few
    columns[FIRST_TIME_MS], columns[LAST_TIME_MS] = _find_times(events.time_ms, cells)
    return columns


def _known_flags(features: Features) -> dict[str, Callable[[Features], Bools]]:
    """`FLAGS` without those of which this chunk knows nothing: they need no place in a packet."""
    unknown = {total for total in OPTIONAL if not FLAGS[total](features).any()}
    unknown |= {count for count, total in COUNTED.values() if total in unknown}
    return {name: find for name, find in FLAGS.items() if name not in unknown}


def _count_events(cells: _Cells, events: Ints | None = None) -> Ints:
    m = len(cells.monitor)
    at = cells.of_event if events is None else cells.of_event.take(events, 1)
    return np.bincount(at.ravel(), minlength=m + 1)[:m]


def _find_times(time_ms: Ints, cells: _Cells) -> tuple[Ints, Ints]:
    """Return the time of the first and of the last event of each cell."""
    order = np.argsort(time_ms, kind="stable")
    back = order[::-1].copy()
    first = np.empty(len(cells.monitor) + 1, np.int64)
    last = np.empty_like(first)
    for at in cells.of_event:
        # Of several values for one place, the last assigned stays.
        last[at[order]] = time_ms[order]
        first[at[back]] = time_ms[back]
    return first[:-1], last[:-1]


def _count_histograms(features: Features | None, cells: _Cells) -> dict[str, _Table]:
    if features is None:
        return {}
    return {name: _count_buckets(features, name, cells) for name in MEASUREMENTS}


def _count_buckets(features: Features, name: str, cells: _Cells) -> _Table:
    read, scale = MEASUREMENTS[name]
    values = read(features) * scale
    if name in _CLASSED:
        measured, buckets = find_classed_buckets(values, features.tokens["input_tokens"])
    else:
        measured, buckets = find_measured_buckets(values)
    use = np.flatnonzero(measured)
    m = len(cells.monitor)
    offsets, items, counts = count_pairs(cells.of_event.take(use, 1), buckets[use], m + 1)
    end = offsets[m]
    return _Table(offsets[: m + 1], items[:end], counts[:end])


def _sum_vectors(vectors: Vectors, cells: _Cells) -> _Sums:
    # As in `detectors.bounds`: slow to load.
    from scipy.sparse import coo_array

    # A comparison that NaN fails too.
    sound = (np.abs(vectors.values) <= MAX_ENTRY).all(axis=1)
    use = np.flatnonzero(vectors.has & sound)
    m = len(cells.monitor)
    at = cells.of_event.take(use, 1).ravel()
    event = np.tile(np.arange(len(use)), len(cells.of_event))
    picks = coo_array((np.ones(len(at)), (at, event)), shape=(m + 1, len(use))).tocsr()
    total = picks @ vectors.values[use].astype(np.float64)
    counts = np.bincount(at, minlength=m + 1)[:m]
    return _Sums(vectors.version, vectors.known, counts, total[:m])
