"""Where vectors come from: encoded texts, or vectors that events bring along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import EncoderSettings
from pipeline.embedding import build_embedding
from pipeline.encoders.base import select_share
from pipeline.encoders.embedding import CarriedVectors, EncodedTexts
from schemas.event import Event
from tests.support.events import make_event, receive


class Lengths:
    """An encoder whose vectors are the lengths of the texts; it notes how often it is called."""

    name = "lengths-1"
    dimensions = 2

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.calls += 1
        return np.array([[len(t), 1] for t in texts], np.float32).reshape(-1, 2)


def events_of(*fields: dict[str, Any]) -> list[Event]:
    return [r.event for r in receive(make_event(f"e-{i}", **f) for i, f in enumerate(fields))]


# --- Texts -----------------------------------------------------------------------------------


def test_prompts_and_answers_are_encoded_in_one_call() -> None:
    encoder = Lengths()
    embedding = EncodedTexts(encoder)
    texts = [("why?", "because"), (None, "so"), ("how", None)]
    events = events_of(*({"prompt_text": p, "response_text": r} for p, r in texts))
    prompts, answers = embedding.embed(events)
    assert prompts.tolist() == [[4, 1], [0, 1], [3, 1]]
    assert answers.tolist() == [[7, 1], [2, 1], [0, 1]]
    assert encoder.calls == 1
    assert embedding.name == "lengths-1"


def test_all_events_are_read_unless_a_share_is_asked_for() -> None:
    assert EncodedTexts(Lengths()).select(events_of(*[{}] * 40)).tolist() == [True] * 40


def test_a_share_of_events_is_the_same_for_everyone() -> None:
    events = events_of(*[{}] * 2_000)
    chosen = EncodedTexts(Lengths(), 0.3).select(events)
    assert 0.26 < chosen.mean() < 0.34
    assert chosen.tolist() == select_share([e.event_id for e in events], 0.3).tolist()
    back = EncodedTexts(Lengths(), 0.3).select(events[::-1])
    assert back[::-1].tolist() == chosen.tolist()
    more = EncodedTexts(Lengths(), 0.5).select(events)
    assert more[chosen].all()
    assert more.sum() > chosen.sum()


# --- Carried vectors -------------------------------------------------------------------------


def carry(prompt: Any, response: Any, model: str | None = "ours") -> dict[str, Any]:
    return {
        "prompt_embedding": prompt,
        "response_embedding": response,
        "embedding_model": model,
    }


OURS = carry([3.0, 4.0], [0.0, -2.0])


def test_only_vectors_of_the_model_and_the_length_are_taken() -> None:
    events = events_of(
        OURS,
        carry([3.0, 4.0], [0.0, 2.0], "another"),
        carry([3.0, 4.0], [0.0, 2.0], None),
        carry([3.0, 4.0, 0.0], [0.0, 2.0, 0.0]),
        carry([3.0, 4.0], [0.0]),
        carry([3.0], [0.0, 1.0]),
        carry(None, [0.0, 2.0]),
        carry([3.0, 4.0], None),
        carry([], []),
        {},
        OURS,
    )
    chosen = CarriedVectors("ours", 2).select(events)
    assert np.flatnonzero(chosen).tolist() == [0, 10]


def test_carried_vectors_become_unit_vectors_of_their_own_column() -> None:
    embedding = CarriedVectors("ours", 2)
    prompts, answers = embedding.embed(events_of(OURS, carry([0.0, 0.0], [1.0, 0.0])))
    assert prompts == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
    assert answers == pytest.approx(np.array([[0, -1], [1, 0]]))
    assert prompts.dtype == answers.dtype == np.float32


def test_the_name_tells_models_and_lengths_apart() -> None:
    names = {CarriedVectors(m, d).name for m, d in [("a", 2), ("a", 3), ("b", 2)]}
    assert len(names) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_any_number_that_json_has_makes_a_unit_vector(vector: list[float]) -> None:
    """Squares of 1e20 are beyond a float32; 1e300 is by itself."""
    event = events_of({})[0]
    fields = {f: getattr(event, f) for f in event.__struct_fields__}
    carried = Event(**fields | {"prompt_embedding": vector, "response_embedding": vector})
    prompts, answers = CarriedVectors("ours", 3).embed([carried])
    assert np.isfinite(prompts).all()
    length = float(np.linalg.norm(prompts.astype(np.float64)))
    assert length == pytest.approx(1.0 if any(vector) else 0.0, abs=1e-6)
    assert np.array_equal(prompts, answers)


# --- From the configuration ------------------------------------------------------------------


def test_the_configuration_says_where_vectors_come_from() -> None:
    def build(**settings: Any) -> Any:
        return build_embedding(EncoderSettings(**settings))

    assert build(kind="none") is None
    carried = build(kind="carried", model="ours", dimensions=2)
    assert isinstance(carried, CarriedVectors)
    assert carried.name == "ours-2"
    static = build(share=0.25)
    assert isinstance(static, EncodedTexts)
    assert static.name.startswith("static_minilm-")
    assert not static.select(events_of(*[{}] * 40)).all()


def test_the_built_in_encoder_tells_prompts_from_answers() -> None:
    embedding = build_embedding(EncoderSettings())
    assert embedding is not None
    texts = {
        "prompt_text": "Where is my invoice?",
        "response_text": "The bridge was built in 1890.",
    }
    swapped = dict(zip(texts, reversed(texts.values()), strict=True))
    prompts, answers = embedding.embed(events_of(texts, swapped))
    assert np.allclose(prompts[0], answers[1], atol=1e-6)
    assert np.allclose(prompts[1], answers[0], atol=1e-6)
    assert float(prompts[0] @ answers[0]) < 0.9
