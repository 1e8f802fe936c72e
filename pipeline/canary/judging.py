"""Is the answer as expected, and do enough of them pass? Pure.

Answers vary, so one that fails proves little. A case fails when even the upper
Clopper-Pearson bound of its pass rate is below what is required: that it is the sampling
alone has then a probability of at most `1 - confidence`. One that passes too seldom, but not
surely, is unsure: more samples would tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum

import msgspec
import numpy as np
from jsonschema import Draft202012Validator
from msgspec import Struct

from detectors.bounds import clopper_pearson
from pipeline.canary.cases import Case, Expectation
from pipeline.core.refusal import Refusal, decide_refusal

#: Cosine of two texts.
Similarity = Callable[[str, str], float]


class Answer(Struct, frozen=True):
    """What came back of one sample. `error` says why nothing did."""

    text: str = ""
    finish_reasons: tuple[str, ...] = ()
    #: The provider's own refusal signal.
    refusal: bool | None = None
    error: str = ""
    duration_s: float = 0.0
    response_id: str = ""
    response_model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


class Outcome(StrEnum):
    PASSED = "passed"
    #: Too few passed, though that may be chance.
    UNSURE = "unsure"
    FAILED = "failed"


class Verdict(Struct, frozen=True):
    """How a case stands after its samples."""

    case: str
    outcome: Outcome
    passed: int
    samples: int
    required: float
    #: Bounds of the pass rate.
    low: float
    high: float
    #: Why samples failed, each once.
    faults: tuple[str, ...]


def find_faults(expect: Expectation, answer: Answer, similarity: Similarity) -> list[str]:
    """Return what is not as expected, nothing of it quoted; empty when all is."""
    if answer.error:
        return [f"error: {answer.error}"]
    text = answer.text
    folded = text.casefold()
    faults = [f"lacks {word!r}" for word in expect.keywords if word.casefold() not in folded]
    faults += [f"has {word!r}" for word in expect.forbidden if word.casefold() in folded]
    if expect.pattern is not None and not re.search(expect.pattern, text):
        faults.append(f"does not match {expect.pattern!r}")
    if expect.json_schema is not None:
        faults += _find_json_faults(expect.json_schema, text)
    if expect.similar_to is not None:
        cosine = similarity(expect.similar_to, text)
        if cosine < expect.similarity:
            faults.append(f"likeness {cosine:.2f} is below {expect.similarity:g}")
    if expect.refuses is not None:
        judged, _ = decide_refusal(answer.refusal, answer.finish_reasons, text)
        if (judged is Refusal.FULL) != expect.refuses:
            faults.append("does not refuse" if expect.refuses else "refuses")
    return faults


def _find_json_faults(schema: dict[str, object], text: str) -> list[str]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ["is no JSON"]
    errors = sorted(Draft202012Validator(schema).iter_errors(value), key=lambda e: e.json_path)
    return [f"JSON at {error.json_path}: breaks {error.validator!r}" for error in errors[:3]]


def judge_case(case: Case, faults: Sequence[Sequence[str]], confidence: float) -> Verdict:
    """Judge a case by the faults of each of its samples."""
    passed, total = sum(not each for each in faults), len(faults)
    low, high = clopper_pearson(np.array([passed]), np.array([total]), 1 - confidence)
    outcome = Outcome.PASSED
    if passed < case.required * total:
        outcome = Outcome.FAILED if high[0] < case.required else Outcome.UNSURE
    return Verdict(
        case=case.name,
        outcome=outcome,
        passed=passed,
        samples=total,
        required=case.required,
        low=float(low[0]),
        high=float(high[0]),
        faults=tuple(dict.fromkeys(fault for each in faults for fault in each)),
    )
