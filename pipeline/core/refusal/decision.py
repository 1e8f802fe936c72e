"""Whether an answer refuses, by the first of three witnesses that has something to say.

The provider's signal is heard first, then the finish reason, then the text. How often the
text misleads is measured by ``benchmarks/refusal.py`` and stands in ``docs/refusals.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.core.chunk import CodedColumn
from pipeline.core.refusal import english, japanese
from pipeline.core.refusal.screen import may_refuse
from pipeline.core.refusal.text import BODY_CHARS, skip_reasoning, word_set


class Refusal(IntEnum):
    """How much of the request was declined. Only FULL counts in the refusal rate."""

    NONE = 0
    #: Declined a part, or declined and then helped with something close to it.
    PARTIAL = 1
    FULL = 2


class RefusalSource(StrEnum):
    """Which witness decided."""

    PROVIDER = "provider"
    FINISH_REASON = "finish_reason"
    TEXT = "text"
    #: There was nothing to judge by.
    UNKNOWN = "unknown"


_PLACE = {source.value: place for place, source in enumerate(RefusalSource)}
#: To set up the screen takes as long as to read so many answers.
SCREENED_FROM = 400

#: Finish reasons that say the answer was withheld, as letters and digits only. OpenAI and
#: Azure, Anthropic, Gemini and Vertex, Bedrock, Cohere, in this order.
_WITHHELD = word_set(
    """
    contentfilter refusal
    safety recitation blocklist prohibitedcontent spii modelarmor imagesafety
    imageprohibitedcontent
    guardrailintervened contentfiltered
    errortoxic
    blocked moderation policyviolation filtered
    """
)


@lru_cache(maxsize=1_024)
def _is_withheld(finish_reason: str) -> bool:
    """Spellings differ by provider and SDK: ``content_filter``, ``FinishReason.SAFETY``."""
    letters = "".join(c for c in finish_reason.casefold() if c.isalnum())
    return letters.removeprefix("finishreason") in _WITHHELD


def _judge_finish_reasons(finish_reasons: Sequence[str]) -> Refusal:
    """One reason per choice: all withheld is FULL, some is PARTIAL."""
    withheld = sum(map(_is_withheld, finish_reasons))
    if withheld == 0:
        return Refusal.NONE
    return Refusal.FULL if withheld == len(finish_reasons) else Refusal.PARTIAL


def decide_refusal(
    signal: bool | None, finish_reasons: Sequence[str] | None, text: str | None
) -> tuple[Refusal, RefusalSource]:
    """Decide one answer, and say by which witness.

    `signal` is the provider's own refusal flag, in either direction; `finish_reasons`
    hold one reason per choice; `text` is the answer. An ordinary finish reason
    (``stop``) proves nothing, for a refusal in words ends with it too.
    """
    if signal is not None:
        return (Refusal.FULL if signal else Refusal.NONE), RefusalSource.PROVIDER
    if finish_reasons and (judged := _judge_finish_reasons(finish_reasons)) is not Refusal.NONE:
        return judged, RefusalSource.FINISH_REASON
    if text and not text[:BODY_CHARS].isspace():
        return classify_text(text), RefusalSource.TEXT
    return Refusal.NONE, RefusalSource.UNKNOWN


def decide_refusals(
    signals: Sequence[bool | None], finish_reasons: CodedColumn, texts: Sequence[str | None]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Decide a chunk: three columns of n in, n verdicts (`Refusal`) and n sources out.

    Row by row what `decide_refusal` says. `finish_reasons` has a sequence of reasons in every
    row, empty where there are none; a source is its place in `RefusalSource`.

    Raises:
        ValueError: the columns differ in length.
    """
    if not len(signals) == len(finish_reasons.codes) == len(texts):
        raise ValueError("the columns differ in length")
    withheld = [_judge_finish_reasons(reasons) for reasons in finish_reasons.values]
    verdicts = np.array(withheld, np.int8)[finish_reasons.codes]
    sources = np.where(verdicts != Refusal.NONE, _PLACE["finish_reason"], _PLACE["unknown"])
    signalled = np.flatnonzero([signal is not None for signal in signals])
    said = [Refusal.FULL if signals[row] else Refusal.NONE for row in signalled.tolist()]
    verdicts[signalled] = said
    sources[signalled] = _PLACE["provider"]
    silent = np.flatnonzero(sources == _PLACE["unknown"]).tolist()
    rows = [row for row in silent if (text := texts[row]) and not text[:BODY_CHARS].isspace()]
    verdicts[rows] = classify_texts([texts[row] or "" for row in rows])
    sources[rows] = _PLACE["text"]
    return verdicts, sources


def classify_text(text: str) -> Refusal:
    """Judge an answer by its words alone. Empty text is `Refusal.NONE`.

    English and Japanese; an answer in another language counts as no refusal.
    """
    return _classify(skip_reasoning(text))


def classify_texts(texts: Sequence[str]) -> npt.NDArray[np.int8]:
    """Judge n answers as `classify_text` does: n verdicts (`Refusal`)."""
    bodies = list(map(skip_reasoning, texts))
    verdicts = np.full(len(bodies), Refusal.NONE, np.int8)
    screened = len(bodies) >= SCREENED_FROM
    close = np.flatnonzero(may_refuse(bodies)).tolist() if screened else range(len(bodies))
    verdicts[close] = [_classify(bodies[row]) for row in close]
    return verdicts


def _classify(body: str) -> Refusal:
    verdict = Refusal(english.judge(body))
    if verdict is not Refusal.FULL and not body.isascii():
        return max(verdict, Refusal(japanese.judge(body)))
    return verdict
