"""A chunk's accepted events as arrays: what every later step counts and sums."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.core.chunk import (
    CodedColumn,
    Coder,
    MapColumn,
    code_values,
    merge_empty,
)
from pipeline.core.pricing import Costs, Pricer, UsageColumns
from pipeline.core.redaction import Kind, redact_texts
from pipeline.core.refusal import Refusal, RefusalSource, decide_refusals
from pipeline.core.traits import ABSENT, Outcomes, Traits, find_traits
from schemas.event import Event, Received
from schemas.monitor import DIMENSIONS, Dimension

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Finish reasons that say the answer was cut off by a token limit, by the providers' own words.
TRUNCATION_REASONS = frozenset({"length", "max_tokens", "max_output_tokens", "MAX_TOKENS"})
#: Before the values of a canary's dimensions.
CANARY_PREFIX = "canary/"
#: Below this many tokens the time per token is mostly the time to set up.
MIN_TOKENS_FOR_RATE = 8


class Features(Struct, frozen=True):
    """n accepted events in columns; every array has shape (n,).

    Token counts that an event lacks are `ABSENT`, durations NaN.
    """

    received: Sequence[Received]
    #: `read_columns` of the events.
    labels: dict[str, CodedColumn]
    fields: dict[str, list[Any]]
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
    traits: Traits

    def __len__(self) -> int:
        return len(self.received)


TOKEN_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
)
#: Fields whose values are few: read as codes. What an event lacks is an empty text.
LABELS = (
    *(d.value for d in DIMENSIONS),
    "error_type",
    "cache",
    "fallback_from",
    "operation",
    "guardrail",
    "canary",
)
#: Fields that are read as they are.
FIELDS = (
    *TOKEN_FIELDS,
    "event_id",
    "response_id",
    "finish_reasons",
    "stream",
    "temperature",
    "max_tokens",
    "duration_s",
    "time_to_first_chunk_s",
    "attempts",
    "refusal",
    "canary_passed",
    "prompt_text",
    "response_text",
    "user",
)
_read_row = attrgetter(*LABELS, *FIELDS)
#: Events that are read at once.
_BLOCK = 256


def extract_features(
    received: Sequence[Received], pricer: Pricer, judge_texts: bool = True
) -> Features:
    """Turn accepted events into columns, priced and judged for refusal.

    Without `judge_texts` only the provider's signal and the finish reasons are heard.
    """
    events = [r.event for r in received]
    time_ms = np.fromiter((r.time_ms for r in received), np.int64, len(events))
    labels, fields = read_columns(events)
    named = {d: labels[d.value] for d in DIMENSIONS}
    dimensions = _set_apart(named, _are(labels["canary"], bool))
    error_types = labels["error_type"]
    errors = _are(error_types, bool)
    finish_reasons = code_values([tuple(reasons or ()) for reasons in fields["finish_reasons"]])
    cache_hits = _are(labels["cache"], _is_hit)
    tokens = {name: _read_counts(fields[name]) for name in TOKEN_FIELDS}
    duration = _read_numbers(fields["duration_s"])
    first_chunk = _read_numbers(fields["time_to_first_chunk_s"])
    measured = ~errors & ~cache_hits
    refusals, sources = decide_refusals(
        fields["refusal"],
        finish_reasons,
        fields["response_text"] if judge_texts else [None] * len(events),
    )
    refused = (refusals == Refusal.FULL) & ~errors
    truncations = _are(finish_reasons, _is_truncated) & ~errors
    costs = pricer.price_chunk(
        UsageColumns(
            request_model=named[Dimension.REQUEST_MODEL],
            provider=named[Dimension.PROVIDER],
            response_model=named[Dimension.RESPONSE_MODEL],
            time_ms=time_ms,
            cache_hit=cache_hits,
            failed=errors,
            **tokens,
        )
    )
    outcomes = Outcomes(errors, refused, truncations, cache_hits, finish_reasons)
    return Features(
        received=received,
        labels=labels,
        fields=fields,
        time_ms=time_ms,
        dimensions=dimensions,
        finish_reasons=finish_reasons,
        error_types=error_types,
        errors=errors,
        refusals=refused,
        partial_refusals=(refusals == Refusal.PARTIAL) & ~errors,
        refusal_sources=CodedColumn(sources, [s.value for s in RefusalSource]),
        truncations=truncations,
        cache_hits=cache_hits,
        fallbacks=_are(labels["fallback_from"], bool),
        tokens=tokens,
        duration_s=duration,
        first_chunk_s=np.where(measured, first_chunk, np.nan),
        token_s=_time_per_token(duration, first_chunk, tokens["output_tokens"], measured),
        costs=costs,
        traits=find_traits(labels, fields, outcomes, tokens, costs),
    )


def read_columns(
    events: Sequence[Event],
) -> tuple[dict[str, CodedColumn], dict[str, list[Any]]]:
    """Return the columns of `LABELS` and those of `FIELDS`, of n rows each.

    An event lies in as many places of memory as it has values. A block of them at a time is
    read and coded, while it is near.
    """
    coders = [Coder() for _ in LABELS]
    fields: list[list[Any]] = [[] for _ in FIELDS]
    for start in range(0, len(events), _BLOCK):
        columns = zip(*map(_read_row, events[start : start + _BLOCK]), strict=True)
        # The labels come first, and this takes no more of the columns than there are coders.
        for coder, values in zip(coders, columns, strict=False):
            coder.add(values)
        for field, values in zip(fields, columns, strict=True):
            field += values
    labels = (merge_empty(coder.column()) for coder in coders)
    return dict(zip(LABELS, labels, strict=True)), dict(zip(FIELDS, fields, strict=True))


def _set_apart(
    dimensions: dict[Dimension, CodedColumn], canaries: Bools
) -> dict[Dimension, CodedColumn]:
    """Let canaries count in monitors of their own, and nowhere else: their values get a prefix."""
    if not canaries.any():
        return dimensions
    return {
        dimension: code_values(
            f"{CANARY_PREFIX}{value}" if canary and value else value
            for value, canary in zip(column.decode(), canaries.tolist(), strict=True)
        )
        for dimension, column in dimensions.items()
    }


def _read_numbers(values: Sequence[float | None]) -> Floats:
    if values.count(None) == len(values):
        return np.full(len(values), np.nan)
    # None becomes NaN.
    return np.array(values, np.float64)


def _read_counts(values: Sequence[int | None]) -> Ints:
    numbers = _read_numbers(values)
    return np.where(np.isnan(numbers), ABSENT, numbers).astype(np.int64)


def _are(column: CodedColumn, holds: Callable[[Any], bool]) -> Bools:
    """For which rows is it true? Asked once for each distinct value."""
    return np.array([holds(value) for value in column.values], np.bool_)[column.codes]


def _is_hit(cache: str) -> bool:
    return cache == "hit"


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


def code_attributes(attributes: Sequence[dict[str, str]], redact: Collection[Kind]) -> MapColumn:
    """Return keys outside the contract as one column, redacted: nobody has said what is in them.

    Most chunks have none.
    """
    sizes = np.fromiter(map(len, attributes), np.int32, len(attributes))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    held = [each for each in attributes if each]
    keys = [key for each in held for key in each]
    values = [value for each in held for value in each.values()]
    distinct = list({*keys, *values})
    stored = dict(zip(distinct, redact_texts(distinct, redact), strict=True))
    return MapColumn(offsets, [stored[key] for key in keys], [stored[value] for value in values])
