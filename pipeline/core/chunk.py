"""Chunks: the unit of work, and everything that has to happen because of one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from schemas.rejection import Rejected
from schemas.signal import SignalPacket, Source

#: Column name → its values: a list (None is NULL), an array, a `MapColumn` or a `MoneyColumn`.
Columns = dict[str, object]


class Record(NamedTuple):
    """One record as it lies in the topic."""

    offset: int
    #: When it was written, milliseconds since the epoch.
    written_ms: int
    value: bytes | None


class Chunk(Struct, frozen=True):
    """Consecutive records of one partition."""

    source: Source
    records: list[Record]


class MapColumn(NamedTuple):
    """n maps in one: row ``i`` holds ``keys[offsets[i]:offsets[i+1]]`` and the same of `values`."""

    offsets: npt.NDArray[np.int32]
    keys: object
    values: npt.NDArray[np.uint64]


class MoneyColumn(NamedTuple):
    """Picodollars (1e-12 USD) with a mask: where `known` is False the value is NULL."""

    picodollars: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]


class DeadLetter(NamedTuple):
    """A record that was refused, with where and when it was written."""

    record: Record
    rejected: Rejected


class ChunkCounts(NamedTuple):
    """The books of one chunk: ``read == stored + deadlettered + duplicates``."""

    read: int = 0
    stored: int = 0
    deadlettered: int = 0
    duplicates: int = 0

    def plus(self, other: ChunkCounts) -> ChunkCounts:
        return ChunkCounts(*(a + b for a, b in zip(self, other, strict=True)))


class ChunkEffects(Struct, frozen=True):
    """What one chunk must bring about. The same chunk always has the same effects."""

    source: Source
    counts: ChunkCounts
    requests: Columns
    texts: Columns | None
    rollups: Columns
    deadletters: tuple[DeadLetter, ...]
    #: Partition of the signals topic → its packets, in order.
    packets: dict[int, tuple[SignalPacket, ...]]
