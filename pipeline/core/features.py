"""A chunk's accepted events as arrays: what every later step counts and sums."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.core.chunk import CodedColumn, MapColumn, code_values, repeat_value
from pipeline.core.pricing import Costs, Pricer, UsageColumns
from pipeline.core.refusal import Refusal, RefusalSource, decide_refusals
from schemas.event import Event, Received
from schemas.monitor import DIMENSIONS, Dimension

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Finish reasons that say the answer was cut off by a token limit, by the providers' own words.
TRUNCATION_REASONS = frozenset({"length", "max_tokens", "max_output_tokens", "MAX_TOKENS"})
#: Below this many tokens the time per token is mostly the time to set up.
MIN_TOKENS_FOR_RATE = 8
ABSENT = -1


class Features(Struct, frozen=True):
    """n accepted events in columns; every array has shape (n,).

    Token counts that an event lacks are `ABSENT`, durations NaN.
    """

    received: Sequence[Received]
    time_ms: Ints
    dimensions: dict[Dimension, CodedColumn]
    #: Tuples of strings.
    finish_reasons: CodedColumn
    #: Empty for an event that did not fail.
    error_types: CodedColumn
    errors: Bools
    refusals: Bools
    partial_refusals: Bools
    refusal_sources: CodedColumn
    truncations: Bools
    cache_hits: Bools
    fallbacks: Bools
    tokens: dict[str, Ints]
    duration_s: Floats
    first_chunk_s: Floats
    token_s: Floats
    costs: Costs

    def __len__(self) -> int:
        return len(self.received)


TOKEN_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
)


def extract_features(
    received: Sequence[Received], pricer: Pricer, judge_texts: bool = True
) -> Features:
    """Turn accepted events into columns, priced and judged for refusal.

    Without `judge_texts` only the provider's signal and the finish reasons are heard.
    """
    events = [r.event for r in received]
    time_ms = np.fromiter((r.time_ms for r in received), np.int64, len(events))
    dimensions = {d: _read_strings(events, d.value) for d in DIMENSIONS}
    error_types = _read_strings(events, "error_type")
    errors = _are(error_types, bool)
    finish_reasons = code_values([tuple(e.finish_reasons or ()) for e in events])
    cache_hits = np.array([e.cache == "hit" for e in events], dtype=np.bool_)
    tokens = {name: _read_counts(events, name) for name in TOKEN_FIELDS}
    duration = _read_numbers(events, "duration_s")
    first_chunk = _read_numbers(events, "time_to_first_chunk_s")
    measured = ~errors & ~cache_hits
    refusals, sources = decide_refusals(
        [e.refusal for e in events],
        finish_reasons,
        [e.response_text if judge_texts else None for e in events],
    )
    return Features(
        received=received,
        time_ms=time_ms,
        dimensions=dimensions,
        finish_reasons=finish_reasons,
        error_types=error_types,
        errors=errors,
        refusals=(refusals == Refusal.FULL) & ~errors,
        partial_refusals=(refusals == Refusal.PARTIAL) & ~errors,
        refusal_sources=CodedColumn(sources, [s.value for s in RefusalSource]),
        truncations=_are(finish_reasons, _is_truncated) & ~errors,
        cache_hits=cache_hits,
        fallbacks=np.array([bool(e.fallback_from) for e in events], dtype=np.bool_),
        tokens=tokens,
        duration_s=duration,
        first_chunk_s=np.where(measured, first_chunk, np.nan),
        token_s=_time_per_token(duration, first_chunk, tokens["output_tokens"], measured),
        costs=pricer.price_chunk(
            UsageColumns(
                request_model=dimensions[Dimension.REQUEST_MODEL],
                provider=dimensions[Dimension.PROVIDER],
                response_model=dimensions[Dimension.RESPONSE_MODEL],
                time_ms=time_ms,
                cache_hit=cache_hits,
                failed=errors,
                **tokens,
            )
        ),
    )


def _read_strings(events: Sequence[Event], name: str) -> CodedColumn:
    return code_values([value or "" for value in map(attrgetter(name), events)])


def _read_numbers(events: Sequence[Event], name: str) -> Floats:
    # None becomes NaN.
    return np.array(list(map(attrgetter(name), events)), np.float64)


def _read_counts(events: Sequence[Event], name: str) -> Ints:
    numbers = _read_numbers(events, name)
    return np.where(np.isnan(numbers), ABSENT, numbers).astype(np.int64)


def _are(column: CodedColumn, holds: Callable[[Any], bool]) -> Bools:
    """For which rows is it true? Asked once for each distinct value."""
    return np.array([holds(value) for value in column.values], np.bool_)[column.codes]


def _is_truncated(finish_reasons: Sequence[str]) -> bool:
    return not TRUNCATION_REASONS.isdisjoint(finish_reasons)


def _time_per_token(
    duration_s: Floats, first_chunk_s: Floats, output_tokens: Ints, measured: Bools
) -> Floats:
    """Seconds per output token after the first, as OpenTelemetry's time_per_output_token.

    A response that was not streamed has no first chunk: its whole duration is
    spread over all its tokens.
    """
    streamed = np.isfinite(first_chunk_s)
    generation = np.where(streamed, duration_s - first_chunk_s, duration_s)
    count = np.where(streamed, output_tokens - 1, output_tokens)
    usable = measured & (output_tokens >= MIN_TOKENS_FOR_RATE) & (generation >= 0)
    return np.where(usable, generation / np.maximum(count, 1), np.nan)


def code_attributes(attributes: Sequence[dict[str, str]]) -> MapColumn:
    """Return keys outside the contract as one column; most chunks have none."""
    sizes = np.fromiter(map(len, attributes), np.int32, len(attributes))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    held = [each for each in attributes if each]
    keys = [key for each in held for key in each]
    return MapColumn(offsets, keys, [value for each in held for value in each.values()])


def hash_users(users: Sequence[str | None], key: bytes | None) -> CodedColumn:
    """Return each user's HMAC-SHA256, hex, cut to 128 bits; empty without a key or a user."""
    if key is None:
        return repeat_value("", len(users))
    known = {u: _hash_user(u, key) for u in set(users) if u}
    return code_values([known[u] if u else "" for u in users])


def _hash_user(user: str, key: bytes) -> str:
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:32]
