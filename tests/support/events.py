"""Builders of gateway events, and the plain reading of one event that serves as an oracle."""

from __future__ import annotations

import datetime as dt
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import msgspec
import numpy as np
from hypothesis import strategies as st

from pipeline.core.chunk import Chunk, Record
from pipeline.core.language import compare_languages
from pipeline.core.pricing import Price, PriceEntry, PriceTable, Rates, Usage, cost_of
from pipeline.core.refusal import Refusal, decide_refusal
from pipeline.core.repetition import is_repetitive
from schemas.codec import decode_event
from schemas.event import Event, Received
from schemas.monitor import DIMENSIONS, OTHER, Grouping, Monitor
from schemas.signal import Source

#: 2025-10-09T08:53:20Z; when every record of a test was written unless it says otherwise.
NOW_MS = 1_760_000_000_000
MINUTE_MS = 60_000
#: Attribute of `Event` → key on the wire.
KEYS = {f.name: f.encode_name for f in msgspec.structs.fields(Event)}

Json = dict[str, Any]


# --- One event -------------------------------------------------------------------------------


def make_event(event_id: str = "e-1", **fields: Any) -> Json:
    """Return an event as it stands on the wire.

    `fields` are named as the attributes of `Event`; None leaves one out. ``time_ms`` may be given
    for the event's time.
    """
    time_ms = fields.pop("time_ms", NOW_MS)
    fields = {"event_time": time_ms / 1000, "request_model": "gpt-4o", **fields}
    return {"event.id": event_id} | {KEYS[k]: v for k, v in fields.items() if v is not None}


def to_bytes(event: Json) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def make_raw(event_id: str = "e-1", **fields: Any) -> bytes:
    return to_bytes(make_event(event_id, **fields))


def receive(events: Iterable[Json]) -> list[Received]:
    """Decode events that must be valid."""
    results = [decode_event(to_bytes(e), NOW_MS) for e in events]
    assert all(isinstance(r, Received) for r in results), results
    return results


def make_chunk(
    values: Sequence[bytes | None],
    first: int = 0,
    *,
    topic: str = "events",
    epoch: str = "1",
    partition: int = 0,
    written_ms: int = NOW_MS,
) -> Chunk:
    """Return consecutive records of one partition."""
    source = Source(topic, epoch, partition, first, first + len(values) - 1)
    return Chunk(source, [Record(first + i, written_ms, v) for i, v in enumerate(values)])


# --- Prices ----------------------------------------------------------------------------------


def _price(model: str, provider: str, **rates: int) -> PriceEntry:
    return PriceEntry(
        model=model,
        provider=provider,
        effective_from_ms=0,
        price=Price(rates=Rates(**rates)),
        prefix=True,
    )


#: Picodollars per token. "mystery-1" has no price.
PRICES = PriceTable(
    (
        _price("gpt-4o", "openai", input=2_500_000, output=10_000_000, cached=1_250_000),
        _price("claude-sonnet-4", "anthropic", input=3_000_001, output=15_000_007),
    )
)


# --- Traffic ---------------------------------------------------------------------------------

MODELS = (("gpt-4o", "openai"), ("claude-sonnet-4", "anthropic"), ("mystery-1", "other"))
ANSWERS = (
    None,
    "",
    "The invoice was paid on Monday.",
    "I'm sorry, but I can't help with that.",
    "申し訳ありませんが、そのご依頼にはお応えできません。",
    "請求書は月曜日に支払われました。",
)


def make_traffic(seed: int, size: int, span_ms: int = 5 * MINUTE_MS) -> list[Json]:
    """Return `size` events of every kind, in order of time, over the `span_ms` before `NOW_MS`."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(NOW_MS - span_ms, NOW_MS, size))
    return [_make_any(rng, f"t{seed}-{i}", int(t)) for i, t in enumerate(times)]


def _make_any(rng: np.random.Generator, event_id: str, time_ms: int) -> Json:
    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def rarely(value: Any, probability: float = 0.1) -> Any:
        return value if rng.random() < probability else None

    model, provider = pick(*MODELS)
    output = int(rng.lognormal(4.0, 1.5))
    duration = float(rng.lognormal(0.0, 1.0))
    return make_event(
        event_id,
        time_ms=time_ms,
        request_model=model,
        provider=pick(provider, provider, None),
        response_model=pick(model, f"{model}-2025-01-01", None),
        route=pick("support", "search", None),
        tenant=pick("acme", "日本商事", "globex"),
        prompt_name=pick("triage", "", None),
        prompt_version=pick("1", "2", None),
        region=pick("eu", "us", None),
        user=pick("ada", "太郎", None),
        error_type=rarely(pick("timeout", "rate_limit", "")),
        refusal=rarely(pick(True, False), 0.3),
        finish_reasons=pick(["stop"], ["length"], ["content_filter"], ["stop", "max_tokens"], None),
        cache=pick("hit", "miss", "bypass", None),
        fallback_from=rarely("claude-opus-4"),
        stream=pick(True, False, None),
        temperature=pick(0.0, 0.7, None),
        attempts=pick(1, 3, None),
        input_tokens=pick(int(rng.lognormal(6.0, 1.0)), None),
        output_tokens=pick(output, output, None),
        cache_read_tokens=rarely(pick(0, 16, 10_000), 0.3),
        cache_creation_tokens=rarely(32),
        reasoning_tokens=rarely(output // 2, 0.2),
        duration_s=pick(duration, duration, 0.0, None),
        time_to_first_chunk_s=pick(duration / 3, None),
        response_text=pick(*ANSWERS),
        # Drawn from nothing, so that what is drawn stays as it was.
        guardrail="pii" if time_ms % 11 == 0 else None,
    )


# --- The plain reading -----------------------------------------------------------------------

_EDGES = [2.0 ** (i / 32) for i in range(-10 * 32 + 1, 31 * 32 + 1)]


def find_bucket(value: float) -> int:
    """Return the bucket of `pipeline.core.histogram`, found by search and not by logarithm."""
    return -10 * 32 + bisect_left(_EDGES, value)


def find_classed(e: Event, value: float) -> int:
    """Return the bucket of a classed histogram; classes end where half-octaves do."""
    coarse = find_bucket(value) // 8
    ends = [2 ** (n / 2) for n in range(11, 30)]
    return 256 * bisect_right(ends, e.input_tokens or 0) + coarse + 40


TOKENS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
)


class Facts(NamedTuple):
    """What one event counts for, worked out on its own."""

    time_ms: int
    error: bool
    error_type: str
    refusal: bool
    truncation: bool
    cache_hit: bool
    fallback: bool
    tokens: dict[str, int]
    picodollars: int | None
    duration_ms: int | None
    first_chunk_ms: int | None
    output_token_us: int | None
    answer_size: int | None
    cost_microdollars: int | None
    #: Columns in which it counts, beside those above.
    flags: frozenset[str]


def read_facts(received: Received) -> Facts:
    """Read one event, with `if` and `for`, by the rules that the columns must follow."""
    e = received.event
    error = bool(e.error_type)
    reasons = set(e.finish_reasons or [])
    measured = not error and e.cache != "hit"
    first = e.time_to_first_chunk_s if measured else None
    verdict, _ = decide_refusal(e.refusal, e.finish_reasons, e.response_text)
    refused = not error and verdict is Refusal.FULL
    truncated = not error and bool(
        reasons & {"length", "max_tokens", "max_output_tokens", "MAX_TOKENS"}
    )
    return Facts(
        time_ms=received.time_ms,
        error=error,
        error_type=e.error_type or "",
        refusal=refused,
        truncation=truncated,
        cache_hit=e.cache == "hit",
        fallback=bool(e.fallback_from),
        tokens={name: getattr(e, name) or 0 for name in TOKENS},
        picodollars=_cost(received),
        duration_ms=None if e.duration_s is None else find_bucket(e.duration_s * 1e3),
        first_chunk_ms=None if first is None else find_bucket(first * 1e3),
        output_token_us=_token_bucket(e, first) if measured else None,
        answer_size=_size_bucket(e) if measured and not refused and not truncated else None,
        cost_microdollars=_cost_bucket(received) if measured else None,
        flags=frozenset(_find_flags(e, measured, refused, verdict is Refusal.PARTIAL)),
    )


def _size_bucket(e: Event) -> int | None:
    if e.output_tokens is not None:
        return find_classed(e, max(0, e.output_tokens - (e.reasoning_tokens or 0)))
    return None if e.response_text is None else find_classed(e, len(e.response_text) / 4)


def _cost_bucket(received: Received) -> int | None:
    cost = _cost(received)
    return None if cost is None else find_classed(received.event, cost / 1e12 * 1e6)


def _find_flags(e: Event, measured: bool, refused: bool, partly: bool) -> Iterator[str]:
    if e.guardrail:
        yield "guardrails"
    if e.cache in ("hit", "miss"):
        yield "cache_lookups"
    if partly and not e.error_type:
        yield "partial_refusals"
    if measured and not refused and not {"tool_calls", "tool_use"} & set(e.finish_reasons or []):
        if e.response_text is not None:
            yield "contents"
            if not e.response_text.strip():
                yield "empty_answers"
            else:
                yield "texts"
                yield from _find_text_flags(e.prompt_text or "", e.response_text)
        elif e.output_tokens is not None:
            yield "contents"
            if e.output_tokens == 0:
                yield "empty_answers"


def _find_text_flags(prompt: str, answer: str) -> Iterator[str]:
    if is_repetitive(answer):
        yield "repetitions"
    ((known,), (differs,)) = compare_languages([prompt], [answer])
    if known:
        yield "languages"
    if differs:
        yield "language_mismatches"


def _token_bucket(e: Event, first: float | None) -> int | None:
    if e.output_tokens is None or e.output_tokens < 8 or e.duration_s is None:
        return None
    seconds = e.duration_s if first is None else e.duration_s - first
    tokens = e.output_tokens if first is None else e.output_tokens - 1
    return None if seconds < 0 else find_bucket(seconds / tokens * 1e6)


def _cost(received: Received) -> int | None:
    e = received.event
    price = PRICES.resolve(e.request_model, e.provider, received.time_ms, e.response_model)
    usage = Usage(
        input_tokens=e.input_tokens,
        output_tokens=e.output_tokens,
        cache_read_tokens=e.cache_read_tokens,
        cache_creation_tokens=e.cache_creation_tokens,
        reasoning_tokens=e.reasoning_tokens,
        cache_hit=e.cache == "hit",
        failed=bool(e.error_type),
    )
    return cost_of(usage, price)


def find_monitors(received: Received, groupings: Sequence[Grouping]) -> list[Monitor]:
    """Return the monitors that one event belongs to, where no cap is reached."""
    values = [tuple(getattr(received.event, d.value) or "" for d in g) for g in groupings]
    return [Monitor(g, v) for g, v in zip(groupings, values, strict=True) if any(v)]


def count_buckets(buckets: Iterable[int | None]) -> dict[int, int]:
    return dict(Counter(b for b in buckets if b is not None))


#: Every grouping of one or two dimensions.
ALL_GROUPINGS: tuple[Grouping, ...] = tuple(
    (a,) if a is b else (a, b) for a, b in product(DIMENSIONS, DIMENSIONS) if a <= b
)


def is_other(monitor: Monitor) -> bool:
    return all(value == OTHER for value in monitor.values)


# --- Strategies ------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_NAMES = TEXT.filter(bool)
_TOKENS = st.integers(0, 2**31 - 1)
_SECONDS = st.floats(0, 86_400) | st.integers(0, 86_400)
_VECTOR = st.lists(st.floats(-10, 10), max_size=3)
_OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda m: dt.timezone(dt.timedelta(minutes=m)))
_TIMES = (
    st.integers(NOW_MS - 365 * 86_400_000, NOW_MS).map(lambda ms: ms / 1000)
    | st.integers(NOW_MS // 1000 - 1_000_000, NOW_MS // 1000)
    | st.datetimes(
        dt.datetime(2024, 1, 1),  # noqa: DTZ001 — the zone comes from `timezones`
        dt.datetime(2025, 10, 1),  # noqa: DTZ001
        timezones=_OFFSETS,
    ).map(dt.datetime.isoformat)
)
#: Attribute of `Event` → its valid values.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(KEYS, TEXT),
    "event_id": _NAMES,
    "event_time": _TIMES,
    "request_model": _NAMES,
    "finish_reasons": st.lists(TEXT, max_size=3),
    "stream": st.booleans(),
    "temperature": st.floats(0, 2),
    "max_tokens": _TOKENS,
    "input_tokens": _TOKENS,
    "output_tokens": _TOKENS,
    "cache_read_tokens": _TOKENS,
    "cache_creation_tokens": _TOKENS,
    "reasoning_tokens": _TOKENS,
    "duration_s": _SECONDS,
    "time_to_first_chunk_s": _SECONDS,
    "cache": st.sampled_from(["hit", "miss", "bypass"]),
    "attempts": st.integers(0, 1000),
    "refusal": st.booleans(),
    "canary_passed": st.booleans(),
    "prompt_embedding": _VECTOR,
    "response_embedding": _VECTOR,
}
REQUIRED = ("event_id", "event_time", "request_model")
#: Any JSON value, without NUL and without numbers that no float can hold.
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
#: Keys outside the contract, with their values.
UNKNOWN = st.dictionaries(TEXT.filter(lambda k: k not in KEYS.values()), JSON_VALUES, max_size=3)


def valid_events() -> st.SearchStrategy[Json]:
    """Events of the contract's own keys, valid in all of them; optional ones may be null."""
    return st.fixed_dictionaries(
        {KEYS[name]: VALUES[name] for name in REQUIRED},
        optional={KEYS[n]: st.none() | v for n, v in VALUES.items() if n not in REQUIRED},
    )


def any_events() -> st.SearchStrategy[Json]:
    """Events whose values may be of any kind, and whose required keys may be missing."""
    return st.builds(
        lambda event, others, dropped: {
            k: v for k, v in (event | others).items() if k not in dropped
        },
        valid_events(),
        st.dictionaries(st.sampled_from(sorted(KEYS.values())), JSON_VALUES, max_size=2),
        st.sets(st.sampled_from([KEYS[name] for name in REQUIRED]), max_size=1)
        | st.just(frozenset()),
    )
