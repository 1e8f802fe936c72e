"""Finds what must not be stored in a text, and replaces it.

`find` says where, `redact` replaces by ``[kind]``. The time of both is linear in the
text, whatever the text is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from pipeline.core.redaction.labelled import find_labelled
from pipeline.core.redaction.numbers import find_ibans, find_numbers
from pipeline.core.redaction.plain import to_alike, to_bytes
from pipeline.core.redaction.secrets import find_secrets
from pipeline.core.redaction.spans import Kind, Span, merge_spans

EVERY_KIND = frozenset(Kind)


class Redacted(NamedTuple):
    """A text without what was found in it, and how often each kind was."""

    text: str
    counts: Mapping[Kind, int]


def find(text: str, kinds: Collection[Kind] = EVERY_KIND) -> list[Span]:
    """Return what of these kinds is in `text`: in order of place, without overlaps.

    Places are those of `text` itself, full-width characters and all.
    """
    return merge_spans(span for span in _search(text) if span.kind in kinds)


def redact(text: str, kinds: Collection[Kind] = EVERY_KIND) -> Redacted:
    """Return `text` with ``[kind]`` in place of everything that was found."""
    return replace_spans(text, find(text, kinds))


def replace_spans(text: str, spans: Sequence[Span]) -> Redacted:
    """Replace what was found; `spans` are in order and do not overlap."""
    if not spans:
        return Redacted(text, {})
    parts: list[str] = []
    end = 0
    for span in spans:
        parts += (text[end : span.start], f"[{span.kind}]")
        end = span.end
    parts.append(text[end:])
    return Redacted("".join(parts), Counter(span.kind for span in spans))


def redact_texts(texts: Sequence[str], kinds: Collection[Kind] = EVERY_KIND) -> list[str]:
    """Return each as `redact` does. Many are read at once: most hold nothing.

    They are read with a NUL between two. Of a text in which nothing is found that way,
    not even across its borders, `redact` would find nothing: what goes before and behind
    can only make patterns match that would not have matched.
    """
    if not kinds:
        return list(texts)
    done = list(texts)
    ends = list(accumulate(len(text) + 1 for text in texts))
    touched: set[int] = set()
    for span in _search("\0".join(texts)):
        touched.update(range(bisect_right(ends, span.start), bisect_left(ends, span.end) + 1))
    for at in touched:
        done[at] = redact(texts[at], kinds).text
    return done


def _search(text: str) -> Iterator[Span]:
    alike = to_alike(text)
    plain = to_bytes(alike)
    yield from find_secrets(plain)
    yield from find_ibans(plain)
    yield from find_numbers(plain, alike)
    yield from find_labelled(alike)
