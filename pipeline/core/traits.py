"""Traits: what an event shows that is neither its outcome nor its time.

Sizes and costs are measured, and NaN where there is nothing to measure; the rest are
flags. A flag that only some events can have comes with one that says which: of a cache
that nobody asked, no share is known. The gateway's cache answers with what a model said
before, so its hits say nothing about the models and are left out of all but its own share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.core.chunk import CodedColumn
from pipeline.core.language import compare_languages
from pipeline.core.pricing import Costs
from pipeline.core.repetition import is_repetitive

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Finish reasons of an answer that is a call of a tool, by the providers' own words: its
#: text may be empty.
TOOL_REASONS = frozenset({"tool_calls", "tool_use", "function_call", "TOOL_CALL", "tool-calls"})
#: What an answer without usage is taken to have, so that its size can be told at all.
CHARACTERS_PER_TOKEN = 4
#: A token count that is not known.
ABSENT = -1


class Traits(Struct, frozen=True):
    """Columns over n events, shape (n,) each."""

    #: Characters of the answer, `ABSENT` without a text.
    answer_chars: Ints
    #: Tokens of a whole answer that can be read: without those spent on reasoning.
    answer_size: Floats
    #: US dollars, of requests that a model answered and that have a price.
    cost_usd: Floats
    cache_lookups: Bools
    guardrails: Bools
    #: Answers to canaries that were judged, and those that were not as expected.
    canaries: Bools
    canary_failures: Bools
    #: Answers of which it is known whether they say anything, and those that do not.
    contents: Bools
    empty_answers: Bools
    #: Answers whose text came and says something, and those of them that loop.
    texts: Bools
    repetitions: Bools
    #: Answers whose language is known like their prompt's, and those where it is another.
    languages: Bools
    language_mismatches: Bools
    #: Whole answers that have a reference, and what it says of them: `pipeline.core.relevance`.
    marked: Bools
    off_prompts: Bools
    novel_prompts: Bools


class Outcomes(Struct, frozen=True):
    """How n requests ended, shape (n,) each."""

    errors: Bools
    refusals: Bools
    truncations: Bools
    cache_hits: Bools
    #: Tuples of strings.
    finish_reasons: CodedColumn


def find_traits(
    labels: Mapping[str, CodedColumn],
    fields: Mapping[str, list[Any]],
    outcomes: Outcomes,
    tokens: Mapping[str, Ints],
    costs: Costs,
) -> Traits:
    """Return the traits of n events, by their columns: see `pipeline.core.features`."""
    answers: list[str | None] = fields["response_text"]
    fresh = ~(outcomes.errors | outcomes.cache_hits)
    whole = fresh & ~(outcomes.refusals | outcomes.truncations)
    chars = _count_characters(answers)
    passed = fields["canary_passed"]
    # A gateway knows that it was a canary, and not what was expected of the answer.
    canaries = ~_are_in(labels["canary"], {""}) & _are_known(passed)
    contents, empty = _find_empty(answers, outcomes, fresh, tokens["output_tokens"], chars)
    return Traits(
        answer_chars=chars,
        answer_size=np.where(whole, _measure_size(tokens, chars), np.nan),
        cost_usd=np.where(fresh & costs.priced, costs.picodollars / 1e12, np.nan),
        cache_lookups=_are_in(labels["cache"], _LOOKUPS),
        guardrails=~_are_in(labels["guardrail"], {""}),
        canaries=canaries,
        canary_failures=canaries & _are_false(passed),
        contents=contents,
        empty_answers=empty,
        **_read_texts(fields["prompt_text"], answers, contents & ~empty & (chars > 0)),
        **dict.fromkeys(("marked", "off_prompts", "novel_prompts"), np.zeros_like(empty)),
    )


_LOOKUPS = frozenset({"hit", "miss"})


def _are_in(column: CodedColumn, members: Set[str]) -> Bools:
    """Which rows hold one of these? Asked once for each distinct value."""
    return np.array([value in members for value in column.values], np.bool_)[column.codes]


def _are_known(values: Sequence[bool | None]) -> Bools:
    if values.count(None) == len(values):
        return np.zeros(len(values), np.bool_)
    return np.array([value is not None for value in values], np.bool_)


def _are_false(values: Sequence[bool | None]) -> Bools:
    if values.count(None) == len(values):
        return np.zeros(len(values), np.bool_)
    return np.array([value is False for value in values], np.bool_)


def _count_characters(texts: Sequence[str | None]) -> Ints:
    return np.array([ABSENT if text is None else len(text) for text in texts], np.int64)


def _read_texts(
    prompts: Sequence[str | None], answers: Sequence[str | None], texts: Bools
) -> dict[str, Bools]:
    """What the texts of answers show that are `texts`."""
    rows = np.flatnonzero(texts)
    repetitions, languages, mismatches = (np.zeros(len(texts), np.bool_) for _ in range(3))
    asked = [prompts[row] or "" for row in rows.tolist()]
    answered = [answers[row] or "" for row in rows.tolist()]
    repetitions[rows] = np.fromiter(map(is_repetitive, answered), np.bool_, len(rows))
    languages[rows], mismatches[rows] = compare_languages(asked, answered)
    return {
        "texts": texts,
        "repetitions": repetitions,
        "languages": languages,
        "language_mismatches": mismatches,
    }


def _measure_size(tokens: Mapping[str, Ints], chars: Ints) -> Floats:
    """Output tokens without reasoning; without usage a share of the characters."""
    read = tokens["output_tokens"] - np.maximum(tokens["reasoning_tokens"], 0)
    estimated = np.where(chars == ABSENT, np.nan, chars / CHARACTERS_PER_TOKEN)
    return np.where(tokens["output_tokens"] == ABSENT, estimated, np.maximum(read, 0))


def _find_empty(
    answers: Sequence[str | None],
    outcomes: Outcomes,
    fresh: Bools,
    output_tokens: Ints,
    chars: Ints,
) -> tuple[Bools, Bools]:
    """Of which answers it is known whether they are empty, and which of those are.

    By the text; without one, an answer of no tokens is empty.
    """
    reasons = outcomes.finish_reasons
    calls = np.array([not TOOL_REASONS.isdisjoint(each) for each in reasons.values], np.bool_)
    known = fresh & ~outcomes.refusals & ~calls[reasons.codes]
    known &= (chars != ABSENT) | (output_tokens != ABSENT)
    blank = np.where(chars == ABSENT, output_tokens == 0, chars == 0)
    # Of a short text it is worth asking whether there is more than white space in it.
    for row in np.flatnonzero(known & (chars > 0) & (chars <= MOST_BLANK)).tolist():
        blank[row] = (answers[row] or "").isspace()
    return known, known & blank


#: White space beyond so many characters is no empty answer but another fault.
MOST_BLANK = 64
