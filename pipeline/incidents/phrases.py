"""What each signal counts, in the words of a page."""

from __future__ import annotations

from schemas.alarm import Alarm
from schemas.signal import Signal

#: Within a sentence: "… rose from 2 % to 9 %".
SUBJECTS = {
    Signal.REFUSAL: "refusals",
    Signal.ERROR: "errors",
    Signal.TRUNCATION: "truncated answers",
    Signal.SLOW_FIRST_CHUNK: "slow first chunks",
    Signal.SLOW_OUTPUT: "slow output",
    Signal.FINGERPRINT: "answers unlike before",
    Signal.LONG_ANSWER: "answers long for their prompts",
    Signal.SHORT_ANSWER: "answers short for their prompts",
    Signal.COSTLY: "requests dear for their prompts",
    Signal.PARTIAL_REFUSAL: "partial refusals",
    Signal.EMPTY_ANSWER: "empty answers",
    Signal.GUARDRAIL: "guardrail interventions",
    Signal.CACHE_HIT: "cache hits",
    Signal.OFF_PROMPT: "answers off their prompts",
    Signal.NOVEL_PROMPT: "prompts of a new kind",
    Signal.REPETITION: "answers that repeat themselves",
    Signal.LANGUAGE_MISMATCH: "answers in another language than their prompts",
    Signal.CANARY_FAILURE: "canaries that are not answered as expected",
    Signal.NEGATIVE_FEEDBACK: "negative ratings",
}
#: How many units of the histogram make one of the page's, and how that is written.
_EDGES = {
    Signal.SLOW_FIRST_CHUNK: (1e3, "{:.3g} s"),
    Signal.SLOW_OUTPUT: (1e3, "{:.3g} ms per token"),
}


def describe_edge(alarm: Alarm) -> str:
    """Above what a signal of latency counts, in brackets; empty for any other."""
    if alarm.edge is None or alarm.signal not in _EDGES:
        return ""
    units, form = _EDGES[alarm.signal]
    return f" (above {form.format(alarm.edge / units)})"
