"""Whether an answer refuses, by the first of three witnesses that has something to say.

The provider's signal is heard first, then the finish reason, then the text. How often the
text misleads is measured by ``benchmarks/refusal.py`` and stands in ``docs/refusals.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.core.refusal import english, japanese
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


#: By identity: an enum's own hash takes longer than the decision.
_PLACE = {id(source): place for place, source in enumerate(RefusalSource)}

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
    signals: Iterable[bool | None],
    finish_reasons: Iterable[Sequence[str] | None],
    texts: Iterable[str | None],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Decide a chunk: three columns of n in, n verdicts (`Refusal`) and n sources out.

    A source is its place in `RefusalSource`.

    Raises:
        ValueError: the columns differ in length.
    """
    decided = [decide_refusal(*row) for row in zip(signals, finish_reasons, texts, strict=True)]
    verdicts = np.fromiter((d[0] for d in decided), dtype=np.int8, count=len(decided))
    sources = np.fromiter((_PLACE[id(d[1])] for d in decided), dtype=np.int32, count=len(decided))
    return verdicts, sources


def classify_text(text: str) -> Refusal:
    """Judge an answer by its words alone. Empty text is `Refusal.NONE`.

    English and Japanese; an answer in another language counts as no refusal.
    """
    body = skip_reasoning(text)
    verdict = Refusal(english.judge(body))
    if verdict is not Refusal.FULL and not body.isascii():
        return max(verdict, Refusal(japanese.judge(body)))
    return verdict
