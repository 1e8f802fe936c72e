"""Messages between a worker and a process that prepares its chunks.

A message goes over a socket pair that nobody else has, as MessagePack; what is large lies
beside it as raw bytes, in a file in memory that its sender writes anew each time. Both ends are
ours and of one version. Nothing is pickled: what is read here is data and can be nothing else.

Delivery guarantee: none; a message arrives whole and in order, or the channel is lost.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from pipeline.core.chunk import ChunkCounts, Record
from pipeline.core.pricing import PriceEntry
from pipeline.core.step import StepConfig
from pipeline.errors import ProcessLost
from schemas.rejection import Reason
from schemas.signal import SignalPacket, Source

#: The kernel takes so many pieces at once.
_PIECES = 1_024
_HEAD = struct.Struct("<QQ")


class Message(Struct, frozen=True, tag=True):
    """What one side tells the other."""


class Setup(Message, frozen=True):
    """The worker's first word: everything of its configuration that preparing needs."""

    step: StepConfig
    prices: tuple[PriceEntry, ...]
    #: `EncoderSettings`.
    encoder: dict[str, Any]
    samples_per_model: int


class Ready(Message, frozen=True):
    """The answer: whose vectors it makes; None when it reads no texts."""

    embedding: str | None


class References(Message, frozen=True):
    """A `ReferenceSet` that holds from here on; each as `detectors.fingerprint.to_bytes`."""

    embedding: str
    version: int
    by_model: dict[str, bytes]


class Task(Message, frozen=True):
    """A chunk of n records; their values are the message's body."""

    source: Source
    #: Arrays of 64-bit integers, shape (n,); the size of a record without a value is -1.
    offsets: bytes
    written_ms: bytes
    sizes: bytes
    #: Row → why, of those to be stored: without these, if it is for the second time.
    refused: dict[int, str]


class Ids(Message, frozen=True):
    """Which of these valid ids of the chunk are new?"""

    event_ids: list[str]


class Wanted(Message, frozen=True):
    """Which monitors of the grouping at this place of `StepConfig.groupings` are watched?"""

    grouping: int
    values: list[tuple[str, ...]]


class Flags(Message, frozen=True):
    """The answer to either, in order."""

    each: list[bool]


class Letter(Struct, frozen=True, array_like=True):
    """A dead letter; what is as it came with the chunk does not cross again."""

    offset: int
    reason: Reason
    detail: str
    item: int
    event_id: str
    #: None: the chunk's own of that offset.
    record: Record | None
    #: None: the record's value.
    raw: bytes | None


class Done(Message, frozen=True):
    """The chunk's effects; its tables, as Arrow's stream format, are the message's body."""

    counts: ChunkCounts
    #: Field of `ChunkEffects` → bytes of its table, in order.
    tables: dict[str, int]
    letters: list[Letter]
    packets: dict[int, tuple[SignalPacket, ...]]


class Failed(Message, frozen=True):
    """It came to an error that no repeat will mend; the text is for people."""

    error: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    Setup | Ready | References | Task | Ids | Wanted | Flags | Done | Failed
).decode


class Ends(NamedTuple):
    """The file descriptors of one side: the socket, its own file, and the other's."""

    socket: int
    mine: int
    theirs: int


class Body(NamedTuple):
    """What lies beside a message. Reading it gives its memory back."""

    file: int
    size: int

    def read(self) -> bytearray:
        """Return all of it."""
        whole = bytearray(self.size)
        filled = 0
        while filled < self.size:
            filled += os.preadv(self.file, [memoryview(whole)[filled:]], filled)
        os.ftruncate(self.file, 0)
        return whole

    def split(self, sizes: Sequence[int]) -> list[bytes]:
        """Return its pieces, of these sizes, copied only once."""
        if not self.size:
            return [b"" for _ in sizes]
        with mmap.mmap(self.file, self.size, access=mmap.ACCESS_READ) as mapped:
            pieces = [mapped.read(size) for size in sizes]
        os.ftruncate(self.file, 0)
        return pieces


class Channel:
    """One side. Memory: a body lies in memory from when it is sent until it is read."""

    def __init__(self, ends: Ends) -> None:
        self._socket = socket.socket(fileno=ends.socket)
        self._mine, self._theirs = ends.mine, ends.theirs

    def send(self, message: Message, body: Sequence[bytes | memoryview] = ()) -> None:
        """Send a message; a body that lies there already must have been read.

        Raises:
            ProcessLost: the other side is gone.
        """
        size = self._write(body) if body else 0
        head = _encode(message)
        try:
            self._socket.sendall(_HEAD.pack(len(head), size) + head)
        except OSError as error:
            raise ProcessLost(f"the other side is gone: {error}") from error

    def receive(self) -> tuple[Any, Body]:
        """Wait for a message; its body is to be read before the next one is awaited.

        Raises:
            ProcessLost: the other side is gone.
        """
        head, size = _HEAD.unpack(self._read(_HEAD.size))
        return _decode(self._read(head)), Body(self._theirs, size)

    def close(self) -> None:
        self._socket.close()
        os.close(self._mine)
        os.close(self._theirs)

    def _write(self, body: Sequence[bytes | memoryview]) -> int:
        at = 0
        for start in range(0, len(body), _PIECES):
            pieces = body[start : start + _PIECES]
            size = sum(map(len, pieces))
            written = os.pwritev(self._mine, pieces, at)
            if written < size:
                os.pwrite(self._mine, b"".join(pieces)[written:], at + written)
            at += size
        return at

    def _read(self, size: int) -> bytearray:
        buffer = bytearray(size)
        rest = memoryview(buffer)
        while rest:
            try:
                count = self._socket.recv_into(rest)
            except OSError as error:
                raise ProcessLost(f"the other side is gone: {error}") from error
            if not count:
                raise ProcessLost("the other side is gone")
            rest = rest[count:]
        return buffer


def open_ends() -> tuple[Ends, Ends]:
    """Make a channel; returns the descriptors of both sides, each of which must be closed."""
    one, other = socket.socketpair()
    first, second = _open_in_memory(), _open_in_memory()
    return (
        Ends(one.detach(), first, second),
        Ends(other.detach(), os.dup(second), os.dup(first)),
    )


def _open_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kizashi")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
