"""Finds what must not be stored in a text, and replaces it.

`find` says where, `redact` replaces by ``[kind]``. The time of both is linear in the
text, whatever the text is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
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
    spans = find(text, kinds)
    if not spans:
        return Redacted(text, {})
    parts: list[str] = []
    end = 0
    for span in spans:
        parts += (text[end : span.start], f"[{span.kind}]")
        end = span.end
    parts.append(text[end:])
    return Redacted("".join(parts), Counter(span.kind for span in spans))


def redact_bytes(raw: bytes, kinds: Collection[Kind] = EVERY_KIND) -> bytes:
    """Return bytes that were meant to be UTF-8, redacted; unchanged where nothing was found.

    What cannot be decoded stays as it is, and separates what stands beside it.
    """
    text = raw.decode("utf-8", "surrogateescape")
    redacted = redact(text, kinds)
    return redacted.text.encode("utf-8", "surrogateescape") if redacted.counts else raw


def _search(text: str) -> Iterator[Span]:
    alike = to_alike(text)
    plain = to_bytes(alike)
    yield from find_secrets(plain)
    yield from find_ibans(plain)
    yield from find_numbers(plain, alike)
    yield from find_labelled(alike)
