"""Signals: the counts of one chunk for every monitor in it, packed for `llm.signals`.

Counts add, so a packet says all that the detectors need about thousands of
events, and its size depends on the number of monitors alone.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct


class Family(StrEnum):
    """Signals that speak about the same thing share a family, and one e-value."""

    REFUSAL = "refusal"
    ERROR = "error"
    TRUNCATION = "truncation"
    LATENCY = "latency"


class Signal(StrEnum):
    """One counted property: k of n events had it."""

    REFUSAL = "refusal"
    ERROR = "error"
    TRUNCATION = "truncation"
    #: Time to first chunk above the monitor's reference q90.
    SLOW_FIRST_CHUNK = "slow_first_chunk"
    #: Time per output token above the monitor's reference q90.
    SLOW_OUTPUT = "slow_output"


FAMILY_OF: dict[Signal, Family] = {
    Signal.REFUSAL: Family.REFUSAL,
    Signal.ERROR: Family.ERROR,
    Signal.TRUNCATION: Family.TRUNCATION,
    Signal.SLOW_FIRST_CHUNK: Family.LATENCY,
    Signal.SLOW_OUTPUT: Family.LATENCY,
}

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


class MonitorCounts(Struct, frozen=True, array_like=True):
    """What one monitor saw in one chunk."""

    #: Index into the packet's `groupings`.
    grouping: int
    values: tuple[str, ...]
    requests: int
    errors: int
    #: Requests that were answered: the denominator of refusals and truncations.
    answered: int
    refusals: int
    truncations: int
    first_time_ms: int
    last_time_ms: int
    first_chunk_ms: Buckets
    output_token_us: Buckets


class SignalPacket(Struct, frozen=True, array_like=True):
    """The signals of one chunk that belong to one partition of `llm.signals`.

    A chunk that spans much event time, or has very many monitors, is split into
    parts, sent in order; (last_offset, part) never goes back for one (topic,
    epoch, partition).
    """

    source: Source
    part: int
    groupings: tuple[str, ...]
    counts: tuple[MonitorCounts, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SignalPacket)


def encode_packet(packet: SignalPacket) -> bytes:
    """Return the packet as MessagePack."""
    return _encoder.encode(packet)


def decode_packet(raw: bytes) -> SignalPacket:
    """Inverse of `encode_packet`; raises msgspec.MsgspecError for anything else."""
    return _decoder.decode(raw)
