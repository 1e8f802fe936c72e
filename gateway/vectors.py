"""Nearest neighbours among unit vectors that come and go: exact while few, then by a graph.

The first `FEW` vectors of a space stand in an array, and all of them are compared. What comes on
top goes into an HNSW graph (Malkov & Yashunin, 2018; the library is usearch), which may overlook a
neighbour: docs/gateway.md has its recall. Memory: 4·d bytes a vector, and 300 more in the graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from usearch.index import Index

Vector = npt.NDArray[np.float32]

#: Comparing so many takes as long as asking a graph.
FEW = 1_024
#: Candidates that are looked at for a new vector's neighbours, and for an answer: the library's
#: own 128 and 64 take twice as long and find what these find.
_EXPANSION_ADD = 64
_EXPANSION_SEARCH = 16


class VectorSpace:
    """Vectors of length 1 by number. Not thread-safe; never grows but by `add`."""

    def __init__(self, dimensions: int) -> None:
        self._few = _Block(dimensions)
        self._dimensions = dimensions
        self._graph: Index | None = None

    def __len__(self) -> int:
        return len(self._few) + (0 if self._graph is None else len(self._graph))

    def add(self, number: int, vector: Vector) -> None:
        """Take in a vector, shape (d,), under a number that is not in use."""
        if len(self._few) < FEW:
            self._few.add(number, vector)
            return
        if self._graph is None:
            self._graph = Index(
                ndim=self._dimensions,
                metric="ip",
                dtype="f32",
                expansion_add=_EXPANSION_ADD,
                expansion_search=_EXPANSION_SEARCH,
            )
        self._graph.add(number, vector, threads=1)

    def remove(self, number: int) -> None:
        """Let go of a vector.

        Raises:
            KeyError: there is none of this number.
        """
        if self._few.remove(number):
            return
        if self._graph is None or not self._graph.remove(number, threads=1):
            raise KeyError(number)
        if not len(self._graph):
            self._graph = None

    def nearest(self, vector: Vector, similarity: float, most: int) -> list[tuple[int, float]]:
        """Return numbers and cosines of the nearest, best first: `most`, and none below."""
        found = self._few.nearest(vector, similarity, most)
        if self._graph is not None:
            matches = self._graph.search(vector, most, threads=1)
            cosines = 1.0 - matches.distances
            found += [
                (int(number), float(cosine))
                for number, cosine in zip(matches.keys, cosines, strict=True)
                if cosine >= similarity
            ]
            found.sort(key=lambda each: -each[1])
        return found[:most]


class _Block:
    """Rows without gaps: the last one moves to where one was taken out."""

    def __init__(self, dimensions: int) -> None:
        self._rows: Vector = np.empty((1, dimensions), np.float32)
        self._numbers: list[int] = []
        self._row_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, vector: Vector) -> None:
        row = len(self._numbers)
        if row == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[row] = vector
        self._row_of[number] = row
        self._numbers.append(number)

    def remove(self, number: int) -> bool:
        row = self._row_of.pop(number, None)
        if row is None:
            return False
        last = self._numbers.pop()
        if last != number:
            self._rows[row] = self._rows[len(self._numbers)]
            self._numbers[row] = last
            self._row_of[last] = row
        return True

    def nearest(self, vector: Vector, similarity: float, most: int) -> list[tuple[int, float]]:
        cosines = self._rows[: len(self._numbers)] @ vector
        near = np.flatnonzero(cosines >= similarity)
        best = near[np.argsort(-cosines[near], kind="stable")[:most]]
        return [(self._numbers[row], float(cosines[row])) for row in best.tolist()]
