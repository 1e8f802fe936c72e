"""Reading events from a file: NDJSON, plain or gzip, or standard input.

Streaming and bounded: one line is in memory at a time, and never more of it
than `LINE_BYTES_MAX`. A line's bytes are not judged here; that is the codec's
business, and a bad line is a dead letter like any other.
"""

from __future__ import annotations

import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from pipeline.errors import PermanentError

#: Below Kafka's cap on a dead letter (4 MiB), with room for its headers.
LINE_BYTES_MAX = 4_000_000
STDIN = Path("-")
_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER_BYTES = 1024 * 1024


class InputError(PermanentError):
    """A file that cannot be read to its end: missing, a directory, a damaged gzip."""


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of `path` (``-``: standard input), without their line endings.

    Gzip is told by its first two bytes, whatever the name. Empty lines are
    skipped. Of a line longer than `LINE_BYTES_MAX` only the first
    ``LINE_BYTES_MAX + 1`` bytes are given, so that the caller can tell and
    refuse it.

    Raises:
        InputError: the file cannot be read. What could be read was yielded
            first; a last line that a damaged gzip cuts short was not.
    """
    with _explained(path), _opened(path) as stream:
        while line := _read_line(stream):
            if bare := _without_ending(line):
                yield bare


def size_known_bytes(path: Path) -> int | None:
    """Return the bytes that `read_lines` will read, where that can be known: a plain file.

    Raises:
        InputError: the file cannot be opened.
    """
    if path == STDIN:
        return None
    with _explained(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        with path.open("rb") as file:
            return None if file.read(2) == _GZIP_MAGIC else status.st_size


class _Rejoined(io.RawIOBase):
    """A stream with bytes put back in front: a pipe cannot be rewound after a look at the magic."""

    def __init__(self, head: bytes, rest: io.BufferedReader) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # read1, because a slow pipe's lines should come out as they come in.
        chunk = self._head[: len(buffer)] or self._rest.read1(len(buffer))
        self._head = self._head[len(chunk) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open `path`, unpacked if it is gzip; standard input is left open."""
    if path == STDIN:
        yield _unpacked(cast("io.BufferedReader", sys.stdin.buffer))
        return
    with path.open("rb") as file:
        yield _unpacked(file)


def _unpacked(file: io.BufferedReader) -> IO[bytes]:
    head = file.read(len(_GZIP_MAGIC))
    whole = io.BufferedReader(_Rejoined(head, file), _BUFFER_BYTES)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=whole)) if head == _GZIP_MAGIC else whole


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    name = "standard input" if path == STDIN else str(path)
    try:
        yield
    except EOFError:
        raise InputError(f"{name}: the gzip data end too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name}: the gzip data are damaged: {error}") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None


def _read_line(stream: IO[bytes]) -> bytes:
    """One line with its ending, or the beginning of one that is too long; b"" at the end."""
    line = stream.readline(LINE_BYTES_MAX + len(b"\r\n"))
    if len(_without_ending(line)) <= LINE_BYTES_MAX:
        return line
    rest = line
    while rest and not rest.endswith(b"\n"):
        rest = stream.readline(_BUFFER_BYTES)
    return line[: LINE_BYTES_MAX + 1]


def _without_ending(line: bytes) -> bytes:
    return line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")
