"""What every encoder is: texts in, unit vectors out; and which events are worth a dear one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into vectors whose cosine says how alike the texts are.

    Called from one thread at a time: an encoder may keep a cache without a lock.
    """

    @property
    def name(self) -> str:
        """Identity with version. Vectors of different names must never be compared."""

    @property
    def dimensions(self) -> int:
        """Length d of a vector."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return shape (n, d), rows of length 1; a zero row where nothing is known of a text."""


def normalize(vectors: Vectors) -> Vectors:
    """Scale the rows of `vectors`, shape (n, d), to length 1 in place; zero rows stay zero."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    length[length == 0] = 1
    vectors /= length[:, None]
    return vectors


def select_share(ids: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Say which events belong to a fixed share of all, shape (n,).

    An event's id alone decides, so a replay, another worker and another order select
    the same events, and a larger share contains every smaller one.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, and {share} does not")
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=4).digest() for i in ids)
    return np.frombuffer(digests, "<u4") < math.ceil(share * 2**32)
