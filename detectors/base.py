"""What every detector has in common, and what the contract suite asks of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[np.generic]]


class Detector(Protocol):
    """Detectors for many streams side by side, one row each.

    The contract, which `tests/contract/test_detectors.py` holds every detector to:

    - *Promise*: while nothing changes, P(evidence ≥ A at any time within T) ≤ T / A,
      T being the sum of the weights given to `update`.
    - *Determinism*: the state is a function of the updates, in order, and of nothing
      else; `restore` of a `snapshot` goes on bit for bit.
    - *Atomicity*: input out of range raises ValueError and changes nothing, so that
      one bad batch can neither silence a row nor poison it.
    - *Independence*: an update of some rows changes no other row.
    - *Bounds*: cost per update is fixed by the rows in it, memory by `rows`.
    """

    @property
    def rows(self) -> int:
        """How many streams there is room for."""

    def update(self, rows: Ints, /, *batch: Any, **named: Any) -> Floats:
        """Take in one batch for distinct `rows` and return their log evidence, shape (m,)."""

    def log_evidence(self, rows: Ints) -> Floats:
        """Return the logarithm of the e-value of each row, shape (m,); -inf for no evidence."""

    def resize(self, rows: int) -> None:
        """Add rows that have seen nothing, up to `rows`; the old ones stay as they are."""

    def reset(self, rows: Ints) -> None:
        """Forget all evidence of these rows."""

    def snapshot(self) -> Arrays:
        """Return copies of the whole state."""

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`; raises ValueError for one that does not fit."""
