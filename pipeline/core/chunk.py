"""Chunks: the unit of work, and everything that has to happen because of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from schemas.rejection import Reason, Rejected
from schemas.signal import SignalPacket, Source

#: Column name → its values: a list (None is NULL), an array, or one of the columns below.
Columns = dict[str, object]
_Places = npt.NDArray[np.int64]
_Codes = npt.NDArray[np.int32]


# Made once for every event, and nothing for the garbage collector to look into.
class Record(Struct, frozen=True, gc=False):
    """One record as it lies in the topic."""

    offset: int
    #: When it was written, milliseconds since the epoch.
    written_ms: int
    value: bytes | None


class Chunk(Struct, frozen=True):
    """Consecutive records of one partition."""

    source: Source
    records: list[Record]


class CodedColumn(NamedTuple):
    """n values of which few are distinct: row ``i`` holds ``values[codes[i]]``."""

    codes: npt.NDArray[np.int32]
    values: list[Any]

    def decode(self) -> list[Any]:
        """Return the n values themselves."""
        return [self.values[code] for code in self.codes.tolist()]


class Coder(dict[Any, int]):
    """Numbers distinct values in the order in which they appear. Memory: as many as it was given.

    A dictionary that is asked for what it does not know gives it the next number.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[_Codes] = []

    def __missing__(self, value: Hashable) -> int:
        self[value] = code = len(self)
        return code

    def add(self, values: Sequence[Hashable]) -> None:
        """Take in the values of the next rows."""
        self._parts.append(np.fromiter(map(self.__getitem__, values), np.int32, len(values)))

    def column(self) -> CodedColumn:
        """Return what was taken in."""
        parts = self._parts or [np.zeros(0, np.int32)]
        return CodedColumn(np.concatenate(parts), list(self))


def code_values(values: Iterable[Hashable]) -> CodedColumn:
    """Number the distinct values in the order in which they appear."""
    coder = Coder()
    coder.add(list(values))
    return coder.column()


def merge_empty(column: CodedColumn) -> CodedColumn:
    """Return a column of texts in which None is an empty text."""
    if None not in column.values:
        return column
    plain = code_values(value or "" for value in column.values)
    if len(plain.values) == len(column.values):
        return CodedColumn(column.codes, plain.values)
    return CodedColumn(plain.codes[column.codes], plain.values)


def repeat_value(value: Hashable, n: int) -> CodedColumn:
    """Return a column that holds one value n times."""
    return CodedColumn(np.zeros(n, np.int32), [value])


def combine_columns(columns: Sequence[CodedColumn]) -> CodedColumn:
    """Return the columns side by side as one; its values are tuples, in no particular order."""
    combined = columns[0].codes.astype(np.int64)
    for column in columns[1:]:
        combined = combined * len(column.values) + column.codes
    first, codes = _find_distinct(combined)
    parts = ([column.values[code] for code in column.codes[first].tolist()] for column in columns)
    return CodedColumn(codes.astype(np.int32), list(zip(*parts, strict=True)))


def _find_distinct(codes: npt.NDArray[np.int64]) -> tuple[_Places, _Places]:
    """Return where each distinct code comes first, by rising code, and each row's place there."""
    size = int(codes.max(initial=-1)) + 1
    if size > 4 * len(codes):
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        return first, inverse
    # With few codes, a table of where each comes first is faster than sorting.
    first = np.full(size, len(codes), np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    present = first < len(codes)
    return first[present], (np.cumsum(present) - 1)[codes]


class MapColumn(NamedTuple):
    """n maps in one: row ``i`` holds ``keys[offsets[i]:offsets[i+1]]`` and the same of `values`."""

    offsets: npt.NDArray[np.int32]
    keys: object
    values: object


class ListColumn(NamedTuple):
    """n lists of numbers in one: row ``i`` holds ``values[offsets[i]:offsets[i+1]]``."""

    offsets: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]


class MoneyColumn(NamedTuple):
    """Picodollars (1e-12 USD) with a mask: where `known` is False the value is NULL."""

    picodollars: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]


class DeadLetter(NamedTuple):
    """A record that was refused, or one item of it, with where and when it was written."""

    record: Record
    rejected: Rejected
    #: Tells the letters of one record apart.
    item: int = 0
    #: Of an event that was admitted and cannot be stored; empty where it was never read.
    event_id: str = ""


def number_letters(letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """A record may hold several events: its letters are told apart by number."""
    items: Counter[int] = Counter()
    numbered = []
    for letter in letters:
        offset = letter.record.offset
        numbered.append(letter._replace(item=items[offset]))
        items[offset] += 1
    return numbered


def refuse_rows(
    records: Sequence[Record], ids: Sequence[str], refused: Mapping[int, str]
) -> list[DeadLetter]:
    """Return the letters of admitted rows that cannot be stored: `refused` is index → why."""
    return [
        DeadLetter(
            records[i], Rejected(Reason.UNSTORABLE, why, records[i].value or b""), event_id=ids[i]
        )
        for i, why in refused.items()
    ]


class ChunkCounts(NamedTuple):
    """The books of one chunk: ``read == stored + deadlettered + duplicates``."""

    read: int = 0
    stored: int = 0
    deadlettered: int = 0
    duplicates: int = 0
    #: Read beside these, and none of ours: spans that are no request to a model.
    skipped: int = 0

    def plus(self, other: ChunkCounts) -> ChunkCounts:
        return ChunkCounts(*(a + b for a, b in zip(self, other, strict=True)))


class ChunkEffects(Struct, frozen=True):
    """What one chunk must bring about. The same chunk always has the same effects."""

    source: Source
    counts: ChunkCounts
    requests: Columns
    texts: Columns | None
    #: Whole answers as numbers, some of each model, for references to be fitted to.
    samples: Columns | None
    rollups: Columns
    deadletters: tuple[DeadLetter, ...]
    #: Partition of the signals topic → its packets, in order.
    packets: dict[int, tuple[SignalPacket, ...]]
