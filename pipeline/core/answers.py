"""Whole answers as numbers: what was asked, and how it was answered, for every event with a text.

An answer is read when it is one: not an error, not from the gateway's cache, not
refused, not cut off. Those have families of their own, and would move this one too.

Of the answer's vector only its likeness to the prompt's is used: components of what
answers mean follow what is asked, and made changes of model harder to see
(`benchmarks/swaps.py`), not easier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.features import Features
from pipeline.core.style import (
    LAYOUT_FEATURES,
    STYLE_FEATURES,
    measure_layout,
    measure_style,
)
from schemas.event import Event

Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Leading components of a prompt's vector that are used: they carry most of what sets it apart.
PROMPT_COMPONENTS = 32
PROMPT_WIDTH = PROMPT_COMPONENTS + len(LAYOUT_FEATURES)
ANSWER_WIDTH = len(STYLE_FEATURES) + 1
ANSWER_NAMES = (*(feature.name for feature in STYLE_FEATURES), "likeness to the prompt")


class Embedding(Protocol):
    """Where the vectors of an event come from; `pipeline.encoders` has them."""

    @property
    def name(self) -> str: ...

    def select(self, events: Sequence[Event]) -> npt.NDArray[np.bool_]:
        """Which events it has vectors for, shape (n,)."""

    def embed(self, events: Sequence[Event]) -> tuple[Floats32, Floats32]:
        """Return the unit vectors of prompts and answers, shape (n, d) both."""


class Answers(NamedTuple):
    """m answers of a chunk."""

    #: Whose vectors these are; those of another do not compare.
    embedding: str
    #: Their events, rising, shape (m,).
    rows: Ints
    #: What a reference predicts from: vector, then layout; shape (m, `PROMPT_WIDTH`).
    prompts: Floats32
    #: What it predicts: style, then likeness to the prompt; shape (m, `ANSWER_WIDTH`).
    answers: Floats32


def read_answers(features: Features, embedding: Embedding) -> Answers:
    """Read the whole answers among n events."""
    events = [r.event for r in features.received]
    whole = ~(features.errors | features.cache_hits | features.refusals | features.truncations)
    whole &= np.array([bool(e.response_text) for e in events], np.bool_)
    whole &= embedding.select(events)
    rows = np.flatnonzero(whole)
    kept = [events[i] for i in rows.tolist()]
    if not kept:
        return Answers(embedding.name, rows, _nothing(PROMPT_WIDTH), _nothing(ANSWER_WIDTH))
    prompts, answers = embedding.embed(kept)
    asked = measure_layout([e.prompt_text or "" for e in kept])
    answered = measure_style([e.response_text or "" for e in kept])
    return Answers(
        embedding.name,
        rows,
        np.column_stack([_leading(prompts, PROMPT_COMPONENTS), asked]),
        np.column_stack([answered, np.einsum("ij,ij->i", prompts, answers)]),
    )


def _nothing(width: int) -> Floats32:
    return np.zeros((0, width), np.float32)


def _leading(vectors: Floats32, components: int) -> Floats32:
    """Cut to so many components; a shorter vector is filled up with zeros."""
    missing = max(components - vectors.shape[1], 0)
    return np.pad(vectors[:, :components], ((0, 0), (0, missing)))
