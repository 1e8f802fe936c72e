"""Orders to the detectors, as records of `llm.signals` among the packets.

An order holds from its place in the log on: whoever reads the partition again comes
to the same state. A packet is a MessagePack array and an order a map.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from schemas.alarm import Rate
from schemas.monitor import Dimension, Monitor
from schemas.signal import Family, Signal, SignalPacket, decode_packet

#: More slices than this are no planned change.
MAX_SLICES = 200


class Reset(Struct, frozen=True, kw_only=True, tag="reset"):
    """A planned change: what is normal in these slices of traffic is learned anew."""

    reset_id: str
    #: When it was announced, milliseconds since the epoch.
    time_ms: int
    #: Dimension → value. A slice covers the monitors that have all of its values, and perhaps more.
    slices: tuple[dict[Dimension, str], ...]
    note: str = ""

    def covers(self, monitor: Monitor) -> bool:
        """Return whether all that the monitor sees lies in one of the slices."""
        values = dict(zip(monitor.grouping, monitor.values, strict=True))
        return any(each.items() <= values.items() for each in self.slices)

    @property
    def models(self) -> tuple[str, ...]:
        """The request models whose answers are to be learned anew."""
        whole = {Dimension.REQUEST_MODEL}
        return tuple(each[Dimension.REQUEST_MODEL] for each in self.slices if each.keys() == whole)


class Effect(Struct, frozen=True, kw_only=True):
    """What a planned change did to one signal of one monitor: the rate that was normal, and is."""

    reset_id: str
    #: Event time at which there was enough to say so.
    time_ms: int
    grouping: str
    monitor: dict[str, str]
    family: Family
    signal: Signal
    before: Rate
    after: Rate


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Reset)


def encode_reset(reset: Reset) -> bytes:
    """Return the order as MessagePack."""
    return _encoder.encode(reset)


def decode_signals(raw: bytes) -> SignalPacket | Reset:
    """Return what a record of `llm.signals` holds.

    Raises:
        msgspec.MsgspecError: neither a packet nor an order.
        ValueError: an order of no slice, or of more than `MAX_SLICES`.
    """
    if not _is_map(raw):
        return decode_packet(raw)
    reset = _decoder.decode(raw)
    if not 0 < len(reset.slices) <= MAX_SLICES or not all(reset.slices):
        raise ValueError(f"a reset of {len(reset.slices)} slices, or of one without a value")
    return reset


def _is_map(raw: bytes) -> bool:
    # fixmap, map 16, map 32 (MessagePack specification).
    return raw[:1] in (b"\xde", b"\xdf") or 0x80 <= (raw[0] if raw else 0) <= 0x8F
