"""Answers off their prompts and prompts of a new kind: as many as promised, and when planted."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.fingerprint import fit_reference
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH, Answers
from pipeline.core.chunk import CodedColumn, code_values
from pipeline.core.fingerprints import FIT, ReferenceSet, take_fingerprints
from pipeline.core.relevance import NOVEL_SHARE, Marks, mark_answers

WEIGHTS = np.random.default_rng(99).standard_normal((PROMPT_WIDTH, ANSWER_WIDTH)) / 9
#: Prompts vary in fewer ways than they have features.
WAYS = np.random.default_rng(98).standard_normal((12, PROMPT_WIDTH)) / 3
MODELS = code_values(["known"])


def draw(seed: int, n: int, liking: float = 0.0, moved: float = 0.0) -> Answers:
    """Prompts, and answers that follow from them but for noise."""
    rng = np.random.default_rng(seed)
    prompts = (rng.standard_normal((n, 12)) + moved) @ WAYS
    prompts += 0.3 * rng.standard_normal((n, PROMPT_WIDTH))
    answers = prompts @ WEIGHTS + rng.standard_normal((n, ANSWER_WIDTH))
    answers[:, -1] += liking
    rows = np.arange(n, dtype=np.int64)
    return Answers("ours", rows, prompts.astype(np.float32), answers.astype(np.float32))


PAST = draw(1, 3_000)
SET = ReferenceSet("ours", 1, {"known": fit_reference(PAST.prompts, PAST.answers, FIT)})


def mark(answers: Answers, models: CodedColumn | None = None) -> Marks:
    n = len(answers.rows)
    models = models or CodedColumn(np.zeros(n, np.int32), MODELS.values)
    return mark_answers(answers, models, SET, take_fingerprints(answers, models, SET, n))


def test_without_a_change_a_tenth_is_off_its_prompt_and_a_twentieth_is_novel() -> None:
    marks = mark(draw(2, 4_000))
    assert marks.known.all()
    assert marks.off_prompt.mean() == pytest.approx(0.1, abs=0.02)
    assert marks.novel.mean() == pytest.approx(NOVEL_SHARE, abs=0.045)


def test_what_is_asked_does_not_make_an_answer_irrelevant() -> None:
    """The likeness itself falls by much more than its spread; what the prompt expects does too."""
    far = draw(3, 2_000, moved=1.0)
    marks = mark(far)
    assert abs(far.answers[:, -1].mean()) > 0.1
    assert marks.off_prompt.mean() == pytest.approx(0.1, abs=0.03)
    assert marks.novel.mean() > 0.1


def test_answers_to_something_else_are_off_their_prompts() -> None:
    marks = mark(draw(4, 2_000, liking=-1.0))
    assert marks.off_prompt.mean() > 0.3
    assert marks.novel.mean() == pytest.approx(NOVEL_SHARE, abs=0.045)


def test_nothing_is_said_of_a_model_without_a_reference() -> None:
    answers = draw(5, 10, liking=-9.0)
    marks = mark(answers, code_values(["known", "other"] * 5))
    assert marks.known.tolist() == [True, False] * 5
    assert marks.off_prompt.tolist() == [True, False] * 5


def test_nothing_is_said_of_vectors_of_another_kind() -> None:
    marks = mark(draw(6, 10)._replace(embedding="theirs"))
    assert not (marks.known | marks.off_prompt | marks.novel).any()


def test_no_answers_no_marks() -> None:
    empty = draw(7, 3)
    rows = np.zeros(0, np.int64)
    none = Answers("ours", rows, empty.prompts[:0], empty.answers[:0])
    models = CodedColumn(np.zeros(3, np.int32), MODELS.values)
    marks = mark_answers(none, models, SET, take_fingerprints(none, models, SET, 3))
    assert marks.known.tolist() == [False] * 3
