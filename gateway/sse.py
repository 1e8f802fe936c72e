"""Server-sent events (HTML Living Standard, 9.2): bytes as they arrive → events.

Any cut of the bytes into pieces gives the same events.
"""

from __future__ import annotations

from msgspec import Struct

DONE = b"[DONE]"
#: A stream that sends this much without ending an event is none.
EVENT_BYTES_MAX = 8 * 1024 * 1024


class SentEvent(Struct, frozen=True):
    """One event: its lines of data joined, and its name."""

    data: bytes
    name: str = ""


class TooLong(ValueError):
    """An event that does not end."""


class Reader:
    """Collects bytes and gives the events that are complete. Holds `EVENT_BYTES_MAX` at most."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[SentEvent]:
        """Take in bytes; return the events that they completed.

        Raises:
            TooLong: an event is over `EVENT_BYTES_MAX`.
        """
        held = self._rest + piece if self._rest else piece
        if b"\r" in held:
            # A \r at the very end may be the first half of \r\n.
            tail = b"\r" if held.endswith(b"\r") else b""
            held = held.removesuffix(tail) if tail else held
            held = held.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            blocks = held.split(b"\n\n")
            blocks[-1] += tail
        else:
            blocks = held.split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > EVENT_BYTES_MAX:
            raise TooLong(f"an event of more than {EVENT_BYTES_MAX} bytes")
        return [event for block in blocks if (event := _read(block)) is not None]

    def finish(self) -> list[SentEvent]:
        """Return what stands there unended; some upstreams forget the last blank line."""
        rest, self._rest = self._rest, b""
        event = _read(rest.replace(b"\r", b"\n"))
        return [] if event is None else [event]


def _read(block: bytes) -> SentEvent | None:
    # Nearly every event is one line of data.
    if block.startswith(b"data: ") and b"\n" not in block:
        return SentEvent(block[6:])
    data, name = [], ""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode(errors="replace")
    return SentEvent(b"\n".join(data), name) if data else None


def write(data: bytes) -> bytes:
    """Return an event of one line of data, as it is sent."""
    return b"data: " + data + b"\n\n"
