"""A chunk's accepted events as arrays: what every later step counts and sums."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

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
    dimensions: dict[Dimension, list[str]]
    error_types: list[str]
    errors: Bools
    refusals: Bools
    partial_refusals: Bools
    refusal_sources: list[str]
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


def extract_features(received: Sequence[Received], pricer: Pricer) -> Features:
    """Turn accepted events into columns, priced and judged for refusal."""
    events = [r.event for r in received]
    time_ms = np.fromiter((r.time_ms for r in received), np.int64, len(events))
    error_types = [e.error_type or "" for e in events]
    errors = np.array([bool(t) for t in error_types], dtype=np.bool_)
    cache_hits = np.array([e.cache == "hit" for e in events], dtype=np.bool_)
    tokens = {name: _optional_ints(events, name) for name in TOKEN_FIELDS}
    duration = _optional_floats(events, "duration_s")
    first_chunk = _optional_floats(events, "time_to_first_chunk_s")
    measured = ~errors & ~cache_hits
    refusals, sources = decide_refusals(
        [e.refusal for e in events],
        [e.finish_reasons for e in events],
        [e.response_text for e in events],
    )
    return Features(
        received=received,
        time_ms=time_ms,
        dimensions={d: [getattr(e, d.value) or "" for e in events] for d in DIMENSIONS},
        error_types=error_types,
        errors=errors,
        refusals=(refusals == Refusal.FULL) & ~errors,
        partial_refusals=(refusals == Refusal.PARTIAL) & ~errors,
        refusal_sources=[RefusalSource(s).value for s in sources],
        truncations=_find_truncations(events) & ~errors,
        cache_hits=cache_hits,
        fallbacks=np.array([bool(e.fallback_from) for e in events], dtype=np.bool_),
        tokens=tokens,
        duration_s=duration,
        first_chunk_s=np.where(measured, first_chunk, np.nan),
        token_s=_time_per_token(duration, first_chunk, tokens["output_tokens"], measured),
        costs=pricer.price_chunk(_usage_columns(events, time_ms, tokens, cache_hits, errors)),
    )


def _optional_ints(events: Sequence[Event], name: str) -> Ints:
    values = (getattr(e, name) for e in events)
    return np.fromiter((ABSENT if v is None else v for v in values), np.int64, len(events))


def _optional_floats(events: Sequence[Event], name: str) -> Floats:
    values = (getattr(e, name) for e in events)
    return np.fromiter((np.nan if v is None else v for v in values), np.float64, len(events))


def _find_truncations(events: Sequence[Event]) -> Bools:
    return np.array(
        [not TRUNCATION_REASONS.isdisjoint(e.finish_reasons or ()) for e in events], dtype=np.bool_
    )


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


def _usage_columns(
    events: Sequence[Event],
    time_ms: Ints,
    tokens: dict[str, Ints],
    cache_hits: Bools,
    errors: Bools,
) -> UsageColumns:
    return UsageColumns(
        request_model=[e.request_model for e in events],
        response_model=[e.response_model or "" for e in events],
        provider=[e.provider or "" for e in events],
        time_ms=time_ms,
        cache_hit=cache_hits,
        failed=errors,
        **tokens,
    )


def hash_users(users: Sequence[str | None], key: bytes | None) -> list[str]:
    """Return each user's HMAC-SHA256, hex, cut to 128 bits; empty without a key or a user."""
    if key is None:
        return [""] * len(users)
    known = {u: _hash_user(u, key) for u in set(users) if u}
    return [known.get(u, "") if u else "" for u in users]


def _hash_user(user: str, key: bytes) -> str:
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:32]
