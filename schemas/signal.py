"""Signals: what one chunk counted for every monitor in it, packed for `llm.signals`.

Counts and sums add, so a packet says all that the detectors need about
thousands of events, and its size depends on the number of monitors alone. It is
columns, not records: whoever packs and whoever reads it works on arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class Family(StrEnum):
    """Signals that speak about the same thing share a family, and one e-value."""

    REFUSAL = "refusal"
    ERROR = "error"
    TRUNCATION = "truncation"
    LATENCY = "latency"
    #: How answers are written and what they say, given what was asked.
    FINGERPRINT = "fingerprint"


class Signal(StrEnum):
    """One counted property: k of n events had it."""

    REFUSAL = "refusal"
    ERROR = "error"
    TRUNCATION = "truncation"
    #: Time to first chunk above the monitor's reference q90.
    SLOW_FIRST_CHUNK = "slow_first_chunk"
    #: Time per output token above the monitor's reference q90.
    SLOW_OUTPUT = "slow_output"
    #: Summed and not counted: residuals of answers against the reference of their model.
    FINGERPRINT = "fingerprint"


FAMILY_OF: dict[Signal, Family] = {
    Signal.REFUSAL: Family.REFUSAL,
    Signal.ERROR: Family.ERROR,
    Signal.TRUNCATION: Family.TRUNCATION,
    Signal.SLOW_FIRST_CHUNK: Family.LATENCY,
    Signal.SLOW_OUTPUT: Family.LATENCY,
    Signal.FINGERPRINT: Family.FINGERPRINT,
}
#: Signals that are counted where the event is: the columns of their k and their n.
COUNTED: dict[Signal, tuple[str, str]] = {
    Signal.REFUSAL: ("refusals", "answered"),
    Signal.ERROR: ("errors", "requests"),
    Signal.TRUNCATION: ("truncations", "answered"),
}
#: Signals that count what lies above a quantile of the monitor's own past: their histogram.
MEASURED: dict[Signal, str] = {
    Signal.SLOW_FIRST_CHUNK: "first_chunk_ms",
    Signal.SLOW_OUTPUT: "output_token_us",
}
#: The columns that no packet can do without.
REQUESTS, FIRST_TIME_MS, LAST_TIME_MS = "requests", "first_time_ms", "last_time_ms"

# How the arrays lie in their bytes, as numpy spells it: little-endian on every machine.
COUNT_TYPE = "<i8"
GROUPING_TYPE = "<i2"
OFFSET_TYPE = "<i4"
BUCKET_TYPE = "<i2"
BUCKET_COUNT_TYPE = "<i4"
SUM_TYPE = "<f4"

#: Bucket index → count, a base-2 exponential histogram (see `pipeline.core.histogram`).
Buckets = dict[int, int]


class Source(Struct, frozen=True, array_like=True):
    """The range of input that a packet speaks for; both offsets are inclusive."""

    topic: str
    #: Changes when the topic is created anew, so that old offsets cannot be mistaken for new ones.
    epoch: str
    partition: int
    first_offset: int
    last_offset: int


class Histograms(Struct, frozen=True, array_like=True):
    """m histograms in one: row ``i`` holds ``buckets[offsets[i]:offsets[i+1]]`` and its counts."""

    #: `OFFSET_TYPE`, shape (m + 1,).
    offsets: bytes
    #: `BUCKET_TYPE` and `BUCKET_COUNT_TYPE`, shape (offsets[m],).
    buckets: bytes
    counts: bytes


class Sums(Struct, frozen=True, array_like=True):
    """For m monitors, the sum of the vectors of those of their events that have one."""

    #: Of the references that the vectors were taken against; a later one is greater. Sums of
    #: different versions do not add.
    version: int
    #: How many answers the poorest known of those references rests on.
    known: int
    width: int
    #: How many vectors each sum is made of: `COUNT_TYPE`, shape (m,).
    counts: bytes
    #: `SUM_TYPE`, shape (m, width).
    matrix: bytes


class MonitorCounts(Struct, frozen=True):
    """What a packet says about one monitor, for reading one by one."""

    #: Index into the packet's `groupings`.
    grouping: int
    values: tuple[str, ...]
    #: Column → count or time.
    columns: dict[str, int]
    histograms: dict[str, Buckets]

    @property
    def requests(self) -> int:
        return self.columns[REQUESTS]

    @property
    def first_time_ms(self) -> int:
        return self.columns[FIRST_TIME_MS]

    @property
    def last_time_ms(self) -> int:
        return self.columns[LAST_TIME_MS]


class SignalPacket(Struct, frozen=True, array_like=True):
    """The signals of one chunk that belong to one partition of `llm.signals`: m monitors.

    A chunk that spans much event time, or has very many monitors, is split into
    parts, sent in order; (last_offset, part) never goes back for one (topic,
    epoch, partition).
    """

    source: Source
    part: int
    groupings: tuple[str, ...]
    #: Index into `groupings` of each monitor: `GROUPING_TYPE`, shape (m,).
    grouping: bytes
    #: The monitors' values, one for each dimension of their grouping.
    values: tuple[tuple[str, ...], ...]
    #: Name → counts and times of the monitors: `COUNT_TYPE`, shape (m,).
    columns: dict[str, bytes]
    histograms: dict[str, Histograms]
    sums: dict[str, Sums] = {}

    @property
    def last_time_ms(self) -> int:
        """The time of the latest event in it; 0 for a packet of no monitors."""
        return max(_unpack("q", self.columns[LAST_TIME_MS]), default=0)

    @property
    def counts(self) -> tuple[MonitorCounts, ...]:
        """Return the monitors one by one; what computes takes the columns.

        Raises:
            ValueError: the columns are not of one length.
        """
        columns = {name: _unpack("q", raw) for name, raw in self.columns.items()}
        histograms = {name: _read_histograms(each) for name, each in self.histograms.items()}
        rows = zip(
            _unpack("h", self.grouping),
            self.values,
            _transpose(columns, len(self.values)),
            _transpose(histograms, len(self.values)),
            strict=True,
        )
        return tuple(MonitorCounts(*row) for row in rows)


def _unpack(kind: str, raw: bytes) -> tuple[int, ...]:
    size = struct.calcsize(f"<{kind}")
    if len(raw) % size:
        raise ValueError(f"{len(raw)} bytes are no column")
    return struct.unpack(f"<{len(raw) // size}{kind}", raw)


def _read_histograms(histograms: Histograms) -> list[Buckets]:
    buckets, counts = _unpack("h", histograms.buckets), _unpack("i", histograms.counts)
    return [
        dict(zip(buckets[a:b], counts[a:b], strict=True))
        for a, b in pairwise(_unpack("i", histograms.offsets))
    ]


def _transpose(columns: Mapping[str, Sequence[T]], rows: int) -> list[dict[str, T]]:
    if any(len(column) != rows for column in columns.values()):
        raise ValueError(f"the columns of {rows} monitors are not all of that length")
    return [{name: column[row] for name, column in columns.items()} for row in range(rows)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SignalPacket)


def encode_packet(packet: SignalPacket) -> bytes:
    """Return the packet as MessagePack."""
    return _encoder.encode(packet)


def decode_packet(raw: bytes) -> SignalPacket:
    """Inverse of `encode_packet`; raises msgspec.MsgspecError for anything else.

    That the columns are of one length, and what is in them, is not looked at.
    """
    return _decoder.decode(raw)
