"""Whether an answer refuses: the decision, and the judges of English and Japanese text."""

from pipeline.core.refusal.decision import (
    Refusal,
    RefusalSource,
    classify_text,
    classify_texts,
    decide_refusal,
    decide_refusals,
)
from pipeline.core.refusal.text import READ_CHARS

__all__ = [
    "READ_CHARS",
    "Refusal",
    "RefusalSource",
    "classify_text",
    "classify_texts",
    "decide_refusal",
    "decide_refusals",
]
