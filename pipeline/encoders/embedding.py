"""Where an event's vectors come from: an encoder that reads its texts, or the event itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.encoders.base import Encoder, Vectors, normalize, select_share
from schemas.event import Event

Bools = npt.NDArray[np.bool_]


class EncodedTexts:
    """Encodes prompts and answers: those of all events, or of a fixed share of them."""

    def __init__(self, encoder: Encoder, share: float = 1.0) -> None:
        self._encoder = encoder
        self._share = share

    @property
    def name(self) -> str:
        return self._encoder.name

    def select(self, events: Sequence[Event]) -> Bools:
        if self._share >= 1:
            return np.ones(len(events), np.bool_)
        return select_share([e.event_id for e in events], self._share)

    def embed(self, events: Sequence[Event]) -> tuple[Vectors, Vectors]:
        prompts = [e.prompt_text or "" for e in events]
        # In one call: an encoder takes many texts with less effort than few.
        both = self._encoder.encode(prompts + [e.response_text or "" for e in events])
        return both[: len(prompts)], both[len(prompts) :]


class CarriedVectors:
    """The vectors that events bring along, of one model; others are passed over."""

    def __init__(self, model: str, dimensions: int) -> None:
        self.name = f"{model}-{dimensions}"
        self._model = model
        self._dimensions = dimensions

    def select(self, events: Sequence[Event]) -> Bools:
        return np.array([self._is_ours(e) for e in events], np.bool_)

    def _is_ours(self, event: Event) -> bool:
        prompt, response = event.prompt_embedding or (), event.response_embedding or ()
        right = len(prompt) == len(response) == self._dimensions
        return right and event.embedding_model == self._model

    def embed(self, events: Sequence[Event]) -> tuple[Vectors, Vectors]:
        return (
            _to_unit([e.prompt_embedding or [] for e in events], self._dimensions),
            _to_unit([e.response_embedding or [] for e in events], self._dimensions),
        )


def _to_unit(rows: Sequence[Sequence[float]], dimensions: int) -> Vectors:
    wide = np.array(rows, np.float64).reshape(len(rows), dimensions)
    # JSON has numbers whose squares, or they themselves, are beyond a float32.
    largest = np.abs(wide).max(axis=1, initial=0.0)
    largest[largest == 0] = 1
    return normalize((wide / largest[:, None]).astype(np.float32))
