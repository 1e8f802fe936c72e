"""Whether answers keep to their prompts, and whether prompts are of a kind that is known.

Both are read off the reference of the model that was asked. An answer is *off its
prompt* when its likeness to it (the cosine of their vectors) lies further below what
such a prompt lets one expect than that of one answer in ten. A prompt is *novel* when
it lies further from the middle of the reference's prompts, in their whitened leading
directions, than one in twenty would. Residuals are not quite normal, so the shares are
not quite those; they are rates, and every monitor learns its own.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.bank_shifts import ODD_DEVIATIONS
from detectors.fingerprint import FingerprintReference
from pipeline.core.answers import Answers
from pipeline.core.chunk import CodedColumn
from pipeline.core.fingerprints import DIRECTIONS, WIDTH, ReferenceSet
from pipeline.core.signals import Vectors

Bools = npt.NDArray[np.bool_]
Floats32 = npt.NDArray[np.float32]

NOVEL_SHARE = 0.05


class Marks(NamedTuple):
    """Which of n events have a whole answer and a reference, and what is said of those."""

    known: Bools
    off_prompt: Bools
    novel: Bools


def mark_answers(
    answers: Answers, models: CodedColumn, references: ReferenceSet, fingerprints: Vectors
) -> Marks:
    """Mark the answers that have a fingerprint; `models` are the request models of all n."""
    n = len(fingerprints.has)
    off = np.zeros(n, np.bool_)
    if fingerprints.has.any():
        asked = models.codes[answers.rows]
        for code, model in enumerate(models.values):
            if (reference := references.by_model.get(model)) is not None:
                mine = np.flatnonzero(asked == code)
                parts = (answers.prompts[mine], answers.answers[mine])
                off[answers.rows[mine]] = _are_off_prompt(reference, *parts)
    # A sum of squares that is not finite is beyond all bounds, or compares as False.
    distance = np.einsum("ij,ij->i", *[fingerprints.values[:, DIRECTIONS:]] * 2)
    known = fingerprints.has
    return Marks(known, off & known, known & (distance > _novel_above()))


@cache
def _novel_above() -> float:
    """Of the squared distance, in so many directions."""
    # As in `detectors.bounds`: slow to load.
    from scipy.special import chdtri

    return float(chdtri(WIDTH - DIRECTIONS, NOVEL_SHARE))


def _are_off_prompt(reference: FingerprintReference, prompts: Floats32, answers: Floats32) -> Bools:
    """Likeness to the prompt is the last feature of an answer."""
    expected = prompts @ reference.coefficients[:, -1] + reference.intercept[-1]
    below: Bools = expected - answers[:, -1] > ODD_DEVIATIONS * reference.spread[-1]
    return below
