"""Fingerprints: the answers of a chunk against the references of the models that were asked.

A reference belongs to a *request* model: a silent swap keeps the name its caller
asked for. All references in use form a set; sums taken against different sets do not
add, so the detectors start anew when the set changes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.fingerprint import FingerprintConfig, FingerprintReference, residuals
from pipeline.core.answers import Answers
from pipeline.core.chunk import CodedColumn
from pipeline.core.signals import Vectors

Ints = npt.NDArray[np.int64]

#: How every reference is fitted.
FIT = FingerprintConfig()
DIRECTIONS = FIT.directions
#: Of what is summed: the directions, and behind them those of the prompt.
WIDTH = FIT.directions + FIT.prompt_directions


@dataclass(frozen=True)
class ReferenceSet:
    """The references that are in use, by request model, for the vectors of one embedding."""

    embedding: str
    #: When the latest of them was fitted, milliseconds since the epoch.
    version: int
    by_model: Mapping[str, FingerprintReference]

    @property
    def known(self) -> int:
        """How many answers the mean of the poorest known of them counts for."""
        return min((r.known for r in self.by_model.values()), default=0)


def take_fingerprints(
    answers: Answers, models: CodedColumn, references: ReferenceSet, events: int
) -> Vectors:
    """Return the residual of each answer whose model has a reference, for a chunk of n events.

    Behind it stand the leading features of the prompt, by which the detector tells
    other traffic from other answers. `models` are the request models of all n.
    """
    has = np.zeros(events, np.bool_)
    values = np.zeros((events, WIDTH), np.float32)
    if answers.embedding == references.embedding:
        asked = models.codes[answers.rows]
        for code, model in enumerate(models.values):
            if (reference := references.by_model.get(model)) is None:
                continue
            mine = np.flatnonzero(asked == code)
            rows = answers.rows[mine]
            values[rows] = residuals(reference, answers.prompts[mine], answers.answers[mine])
            has[rows] = True
    return Vectors(references.version, references.known, has, values)


def select_sample(answers: Answers, models: CodedColumn, ids: Sequence[str], most: int) -> Ints:
    """Choose at most so many answers of each model to be stored, as indices into `answers`.

    By the hash of the event's id: a replay chooses the same, and nothing else about an
    event decides whether a reference will rest on it.
    """
    asked = models.codes[answers.rows]
    keys = np.array([zlib.crc32(ids[row].encode()) for row in answers.rows.tolist()], np.int64)
    order = np.lexsort((keys, asked))
    place = np.arange(len(order)) - np.searchsorted(asked[order], asked[order])
    return np.sort(order[place < most])
