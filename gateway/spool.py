"""The spool: records on disk between the gateway and Kafka, in segments, with a ledger of losses.

Files of one directory, which one process may hold:

- ``<number>.segment``: frames of (sequence number, length, CRC-32, event), appended.
- ``ledger``: counters and the reader's position, mapped into memory, so that they survive
  the process: a kill -9 loses what was not yet written, and the next start knows how much.

Delivery guarantee: what was appended survives the process, and from the next `sync` on also
the machine. Every event that is taken is at any time under way, waiting here, sent, or
counted as lost with a `Loss`. The directory holds `bytes_max` at most.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError

_FRAME = struct.Struct("<QII")
_HEAD = struct.Struct("<QI")
_SLOT = struct.Struct("<Q")
_LEDGER_BYTES = 4_096
_OFFSET_BITS = 40
#: One event; what is longer the pipeline would refuse.
EVENT_BYTES_MAX = 1_000_000
READ_BYTES = 1024 * 1024


class Loss(StrEnum):
    """Why an event did not arrive."""

    #: Came faster than the disk takes them.
    OVERRUN = "overrun"
    #: The spool is full: Kafka has been away for too long.
    SPOOL_FULL = "spool_full"
    #: The disk refused.
    DISK_ERROR = "disk_error"
    TOO_LARGE = "too_large"
    #: Taken, but not written yet when the process ended.
    KILLED = "killed"
    #: Unreadable on disk.
    CORRUPT = "corrupt"
    #: Kafka will never take it.
    REFUSED = "refused"


class Slot(IntEnum):
    """Where a number stands in the ledger. The file's form: never renumber."""

    TAKEN = 0
    SPOOLED = 1
    SENT = 2
    POSITION = 3
    OVERRUN = 8
    SPOOL_FULL = 9
    DISK_ERROR = 10
    TOO_LARGE = 11
    KILLED = 12
    CORRUPT = 13
    REFUSED = 14


_LOSSES = {loss: Slot[loss.name] for loss in Loss}
_BEFORE_SPOOL = (Loss.OVERRUN, Loss.SPOOL_FULL, Loss.DISK_ERROR, Loss.TOO_LARGE, Loss.KILLED)


class Place(NamedTuple):
    """Between two frames."""

    segment: int
    offset: int


class Ledger:
    """The counters. Each slot has one thread that writes it."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _LEDGER_BYTES)
            self._map = mmap.mmap(descriptor, _LEDGER_BYTES)
        finally:
            os.close(descriptor)

    def __getitem__(self, slot: Slot) -> int:
        value: int = _SLOT.unpack_from(self._map, slot * _SLOT.size)[0]
        return value

    def __setitem__(self, slot: Slot, value: int) -> None:
        _SLOT.pack_into(self._map, slot * _SLOT.size, value)

    def add(self, slot: Slot, number: int = 1) -> None:
        self[slot] += number

    def lose(self, loss: Loss, number: int = 1) -> None:
        self.add(_LOSSES[loss], number)

    @property
    def lost(self) -> dict[Loss, int]:
        return {loss: self[slot] for loss, slot in _LOSSES.items()}

    @property
    def waiting(self) -> int:
        """What is taken, and neither sent nor lost."""
        return self[Slot.TAKEN] - self[Slot.SENT] - sum(self.lost.values())

    @property
    def position(self) -> Place:
        """Up to where everything was sent or given up."""
        packed = self[Slot.POSITION]
        return Place(packed >> _OFFSET_BITS, packed & (1 << _OFFSET_BITS) - 1)

    @position.setter
    def position(self, place: Place) -> None:
        # One number, so that a kill cannot tear it.
        self[Slot.POSITION] = place.segment << _OFFSET_BITS | place.offset

    def settle(self, spooled: int) -> None:
        """After a start: count what an earlier process took and did not write."""
        self[Slot.SPOOLED] = spooled = max(spooled, self[Slot.SPOOLED])
        accounted = spooled + sum(self[_LOSSES[loss]] for loss in _BEFORE_SPOOL)
        if (killed := self[Slot.TAKEN] - accounted) > 0:
            self.lose(Loss.KILLED, killed)
        else:
            # A power failure can take the ledger back behind the segments.
            self[Slot.TAKEN] = accounted

    def close(self) -> None:
        self._map.flush()
        self._map.close()


class Frame(NamedTuple):
    sequence: int
    raw: bytes
    #: Where the next one begins.
    end: int


class Batch(NamedTuple):
    """Events read together."""

    raws: list[bytes]
    end: Place
    #: The sequence number behind the last of them.
    following: int


class Spool:
    """The directory. One thread appends, one reads and releases, one syncs.

    Raises:
        ConfigError: the directory cannot be used, or another process holds it.
    """

    def __init__(self, directory: Path, bytes_max: int, segment_bytes: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        # Only whole segments are given back: the one that is written to must leave room.
        self._segment_bytes = min(segment_bytes, bytes_max // 4)
        self._lock = _hold(directory)
        self.ledger = Ledger(directory / "ledger")
        numbers = self._numbers()
        self._sizes = {n: self._path(n).stat().st_size for n in numbers}
        self.ledger.settle(self._next_sequence(numbers))
        self._number = max(numbers, default=self.ledger.position.segment) + 1
        self._guard = threading.Lock()
        self._file: int | None = None
        self._unsynced: list[int] = []

    @property
    def waiting_bytes(self) -> int:
        """Of the segments that are not released yet."""
        return sum(list(self._sizes.values()))

    # --- Writing ------------------------------------------------------------------------

    def append(self, raws: Sequence[bytes]) -> None:
        """Write events, or count why they are lost. The file's page cache has them then."""
        fitting = [raw for raw in raws if len(raw) <= EVENT_BYTES_MAX]
        self.ledger.lose(Loss.TOO_LARGE, len(raws) - len(fitting))
        if fitting and (loss := self.offer(fitting)) is not None:
            self.ledger.lose(loss, len(fitting))

    def offer(self, raws: Sequence[bytes]) -> Loss | None:
        """Write all of these records or none, and return why none; what is lost is not counted."""
        size = sum(len(raw) + _FRAME.size for raw in raws)
        if self.waiting_bytes + size > self._bytes_max:
            return Loss.SPOOL_FULL
        first = self.ledger[Slot.SPOOLED]
        if not self._write(b"".join(_frame(first + i, raw) for i, raw in enumerate(raws))):
            return Loss.DISK_ERROR
        self.ledger.add(Slot.SPOOLED, len(raws))
        return None

    def _write(self, frames: bytes) -> bool:
        try:
            if self._file is None:
                self._open()
            file = self._file
            written = 0 if file is None else os.write(file, frames)
        except OSError:
            written = 0
        if written == len(frames):
            self._sizes[self._number] += written
            if self._sizes[self._number] >= self._segment_bytes:
                self._rotate()
            return True
        # Half a frame: nothing may be appended behind it.
        self._rotate()
        return False

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path(self._number), flags, 0o600)
        self._sizes[self._number] = 0

    def _rotate(self) -> None:
        with self._guard:
            if self._file is not None:
                self._unsynced.append(self._file)
                self._file = None
                self._number += 1

    def sync(self) -> None:
        """Bring what was appended so far onto the disk."""
        with self._guard:
            closed, self._unsynced = self._unsynced, []
            current = None if self._file is None else os.dup(self._file)
        for file in (*closed, *([] if current is None else [current])):
            try:
                os.fdatasync(file)
            finally:
                os.close(file)

    # --- Reading ------------------------------------------------------------------------

    def read(self) -> Batch:
        """Return the events that wait, the oldest first, about `READ_BYTES` of them.

        What is unreadable is counted as lost.
        """
        for number in sorted(n for n in list(self._sizes) if n >= self.ledger.position.segment):
            # Asked before reading: what is no longer written to has all that it will have.
            is_last = number >= self._number
            place = self.ledger.position
            frames = list(
                _read_frames(self._path(number), place.offset if place.segment == number else 0)
            )
            if frames:
                last = frames[-1]
                return Batch([f.raw for f in frames], Place(number, last.end), last.sequence + 1)
            if not is_last:
                self._leave(number)
        return Batch([], self.ledger.position, 0)

    def _leave(self, number: int) -> None:
        """A segment is read to its end: remove it."""
        following = min((n for n in list(self._sizes) if n > number), default=number + 1)
        ledger = self.ledger
        ledger.position = Place(following, 0)
        self._path(number).unlink(missing_ok=True)
        self._sizes.pop(number, None)
        # Sequence numbers have no gaps: what is missing between two segments was unreadable.
        if (first := next(_read_frames(self._path(following), 0), None)) is not None:
            passed = ledger[Slot.SENT] + ledger[Slot.REFUSED] + ledger[Slot.CORRUPT]
            ledger.lose(Loss.CORRUPT, max(0, first.sequence - passed))

    def release(self, batch: Batch, refused: int) -> None:
        """A batch was sent, but for `refused` events that never will be."""
        ledger = self.ledger
        ledger.lose(Loss.REFUSED, refused)
        # Not added up: a kill between this and the next line must not count twice.
        ledger[Slot.SENT] = batch.following - ledger[Slot.REFUSED] - ledger[Slot.CORRUPT]
        ledger.position = batch.end

    def close(self) -> None:
        """Give the directory back; texts that were sent do not stay in it."""
        self._rotate()
        self.sync()
        self.read()
        self.ledger.close()
        os.close(self._lock)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:010}.segment"

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._directory.glob("*.segment"))

    def _next_sequence(self, numbers: Sequence[int]) -> int:
        """Return one more than the last sequence number on disk; 0 if there is none."""
        for number in reversed(numbers):
            last: Frame | None = None
            offset = 0
            while frames := list(_read_frames(self._path(number), offset)):
                last = frames[-1]
                offset = last.end
            if last is not None:
                return last.sequence + 1
        return 0


def _hold(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"gateway.events.spool: {error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError(
            f"gateway.events.spool: another gateway holds {directory}: give each its own"
        ) from None
    return lock


def _frame(sequence: int, raw: bytes) -> bytes:
    return _FRAME.pack(sequence, len(raw), _check(sequence, raw)) + raw


def _check(sequence: int, raw: bytes) -> int:
    """Over the head too: zeros, which a file may be full of after a crash, must not pass."""
    return zlib.crc32(raw, zlib.crc32(_HEAD.pack(sequence, len(raw))))


def _read_frames(path: Path, offset: int) -> Iterator[Frame]:
    """Give the whole frames from `offset` on, about `READ_BYTES`; ends at one that is broken."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            held = file.read(READ_BYTES + EVENT_BYTES_MAX)
    except FileNotFoundError:
        return
    at = 0
    while at < READ_BYTES and at + _FRAME.size <= len(held):
        sequence, size, check = _FRAME.unpack_from(held, at)
        raw = held[at + _FRAME.size : at + _FRAME.size + size]
        if len(raw) < size or _check(sequence, raw) != check:
            return
        at += _FRAME.size + size
        yield Frame(sequence, raw, offset + at)
