"""Whole answers as numbers: which are read, and what stands in which column."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.answers import (
    ANSWER_WIDTH,
    PROMPT_COMPONENTS,
    PROMPT_WIDTH,
    Answers,
    read_answers,
)
from pipeline.core.features import extract_features
from pipeline.core.pricing import Pricer
from pipeline.core.style import STYLE_FEATURES, Scale, measure_layout, measure_style
from schemas.event import Event
from tests.support.events import PRICES, Json, make_event, make_traffic, read_facts, receive

STYLES = len(STYLE_FEATURES)


def vector_of(text: str | None, dimensions: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(zlib.crc32((text or "").encode()))
    vector = rng.standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class HashedTexts:
    """An embedding that has a vector of its own for every text, and passes over some events."""

    name = "hashed-1"

    def __init__(self, dimensions: int = 96, without: Sequence[str] = ()) -> None:
        self.dimensions = dimensions
        self.without = without

    def select(self, events: Sequence[Event]) -> npt.NDArray[np.bool_]:
        return np.array([e.event_id not in self.without for e in events], np.bool_)

    def embed(
        self, events: Sequence[Event]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return (
            np.stack([vector_of(e.prompt_text, self.dimensions) for e in events]),
            np.stack([vector_of(e.response_text, self.dimensions) for e in events]),
        )


def read(*events: Json, embedding: HashedTexts | None = None) -> Answers:
    features = extract_features(receive(events), Pricer(PRICES))
    return read_answers(features, embedding or HashedTexts())


def answer(event_id: str = "e-1", **fields: object) -> Json:
    known = {"prompt_text": "How long is a mile?", "response_text": "It is 1.6 km long."}
    return make_event(event_id, **known | fields)


# --- Which are read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"error_type": "timeout"},
        {"cache": "hit"},
        {"refusal": True},
        {"response_text": "I'm sorry, but I can't help with that."},
        {"finish_reasons": ["length"]},
        {"finish_reasons": ["stop", "max_tokens"]},
        {"response_text": None},
        {"response_text": ""},
    ],
    ids=str,
)
def test_what_is_no_whole_answer_is_left_out(fields: Json) -> None:
    answers = read(answer("a"), answer("b", **fields), answer("c"))
    assert answers.rows.tolist() == [0, 2]
    assert (len(answers.prompts), len(answers.answers)) == (2, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cache": "miss"},
        {"refusal": False},
        {"finish_reasons": ["stop"]},
        {"prompt_text": None},
        {"error_type": ""},
        {"fallback_from": "gpt-4o-mini"},
    ],
    ids=str,
)
def test_every_whole_answer_is_read(fields: Json) -> None:
    assert read(answer(**fields)).rows.tolist() == [0]


def test_whole_answers_by_the_plain_reading() -> None:
    received = receive(make_traffic(5, 400))
    answers = read_answers(extract_features(received, Pricer(PRICES)), HashedTexts())
    facts = [read_facts(r) for r in received]
    expected = [
        i
        for i, (r, f) in enumerate(zip(received, facts, strict=True))
        if r.event.response_text and not (f.error or f.cache_hit or f.refusal or f.truncation)
    ]
    assert answers.rows.tolist() == expected
    assert 20 < len(expected) < 380


def test_events_without_a_vector_are_passed_over() -> None:
    answers = read(answer("a"), answer("b"), answer("c"), embedding=HashedTexts(without="ac"))
    assert answers.rows.tolist() == [1]
    assert answers.embedding == "hashed-1"


@pytest.mark.parametrize("events", [(), (answer(error_type="timeout"),)], ids=["none", "no answer"])
def test_without_an_answer_there_are_columns_and_no_rows(events: tuple[Json, ...]) -> None:
    answers = read(*events)
    assert answers.embedding == "hashed-1"
    assert answers.rows.tolist() == []
    assert answers.prompts.shape == (0, PROMPT_WIDTH)
    assert answers.answers.shape == (0, ANSWER_WIDTH)
    assert answers.prompts.dtype == answers.answers.dtype == np.float32


# --- What stands where -----------------------------------------------------------------------


def test_prompts_and_answers_are_in_their_columns() -> None:
    texts = [("What is a mile?", "- 1.6 km\n- 5,280 feet"), ("", "Sure! It is **long**.")]
    answers = read(
        answer("x", error_type="timeout"),
        *(
            answer(str(i), prompt_text=prompt, response_text=text)
            for i, (prompt, text) in enumerate(texts)
        ),
    )
    assert answers.rows.tolist() == [1, 2]
    assert answers.prompts.shape == (2, PROMPT_WIDTH)
    assert answers.answers.shape == (2, ANSWER_WIDTH)
    for row, (prompt, text) in enumerate(texts):
        assert np.array_equal(
            answers.prompts[row, :PROMPT_COMPONENTS], vector_of(prompt, 96)[:PROMPT_COMPONENTS]
        )
        assert np.array_equal(answers.prompts[row, PROMPT_COMPONENTS:], measure_layout([prompt])[0])
        assert np.array_equal(answers.answers[row, :STYLES], measure_style([text])[0])
        likeness = float(vector_of(prompt, 96) @ vector_of(text, 96))
        assert answers.answers[row, STYLES] == pytest.approx(likeness, abs=1e-6)


def test_an_answer_that_says_what_was_asked_is_like_it() -> None:
    answers = read(answer(prompt_text="A mile.", response_text="A mile."), answer())
    assert answers.answers[0, -1] == pytest.approx(1.0)
    assert answers.answers[1, -1] < 0.9


def test_a_missing_prompt_is_an_empty_one() -> None:
    missing, empty = read(answer(prompt_text=None)), read(answer(prompt_text=""))
    assert np.array_equal(missing.prompts, empty.prompts)
    assert np.array_equal(missing.prompts[0, PROMPT_COMPONENTS:], measure_layout([""])[0])


def test_short_vectors_are_filled_up_with_zeros() -> None:
    answers = read(answer(), embedding=HashedTexts(dimensions=5))
    assert answers.prompts.shape == (1, PROMPT_WIDTH)
    assert np.count_nonzero(answers.prompts[0, :PROMPT_COMPONENTS]) == 5
    assert not answers.prompts[0, 5:PROMPT_COMPONENTS].any()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)))
def test_an_answer_does_not_depend_on_those_beside_it(order: list[int]) -> None:
    events = [
        answer(
            str(i), response_text=f"{'- ' * (i % 3)}It is {i} km.", error_type="x" * (i % 5 == 0)
        )
        for i in range(12)
    ]
    one, other = read(*events), read(*(events[i] for i in order))
    place = {order[row]: at for at, row in enumerate(other.rows.tolist())}
    back = [place[row] for row in one.rows.tolist()]
    assert np.array_equal(one.answers, other.answers[back])
    assert np.array_equal(one.prompts, other.prompts[back])


# --- From a column back to the quantity ------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(Scale), st.floats(0, 1))
def test_a_scale_can_be_undone(scale: Scale, share: float) -> None:
    quantity = share if scale.is_share else 1e6 * share
    columns = {
        Scale.LOG: math.log1p(quantity),
        Scale.ROOT: math.sqrt(quantity),
        Scale.SHARE: quantity,
    }
    assert scale.undo(columns[scale]) == pytest.approx(quantity)


def test_only_lengths_and_counts_are_no_shares() -> None:
    shares = {f.name for f in STYLE_FEATURES if f.scale.is_share}
    assert {"capitals", "long words", "kana"} <= shares
    assert not shares & {"length", "dash bullets", "lines"}


def test_a_measured_count_comes_back_as_it_was_counted() -> None:
    style = measure_style(["- one\n- two\n- three", "one two."])
    (at,) = (i for i, f in enumerate(STYLE_FEATURES) if f.name == "dash bullets")
    scale = STYLE_FEATURES[at].scale
    assert [scale.undo(float(v)) for v in style[:, at]] == pytest.approx([3, 0], abs=1e-5)
