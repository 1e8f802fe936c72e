"""What is found in a text: a kind, and from where to where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from schemas.sensitive import Kind

__all__ = ["Kind", "Span", "merge_spans"]


class Span(NamedTuple):
    """``text[start:end]`` is of this kind."""

    kind: Kind
    start: int
    end: int


_RANKS = {kind: rank for rank, kind in enumerate(Kind)}


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return them in order of place, those that overlap made one: nothing of either is left."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            kind = min(last.kind, span.kind, key=_RANKS.__getitem__)
            merged[-1] = Span(kind, last.start, max(last.end, span.end))
        else:
            merged.append(span)
    return merged
