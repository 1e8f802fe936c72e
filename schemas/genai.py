"""From a span with GenAI attributes to an event of ours, by old names and new.

Names: OpenTelemetry's semantic conventions for generative AI (semantic-conventions-genai, and
what they were before: gen_ai.system, prompt_tokens, gen_ai.content.prompt), OpenLLMetry's
(gen_ai.prompt.0.content, llm.request.type), and OpenInference's (llm.model_name,
llm.token_count.prompt), which Envoy AI Gateway writes. Where several are there, the newest
name counts.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from schemas.event import EVENT_KEYS
from schemas.span import Attributes, Span, SpanEvent

#: Operations that are no request to a model, though their spans may name one.
NOT_REQUESTS = frozenset(
    {
        "create_agent",
        "execute_tool",
        "invoke_agent",
        "invoke_workflow",
        "plan",
        "retrieval",
    }
)
#: The same, by what OpenInference and OpenLLMetry call a span's kind.
_REQUEST_KINDS = frozenset({"LLM", "EMBEDDING"})
_TASK_KINDS = frozenset({"agent", "task", "tool", "workflow"})

#: Key of an event → attributes that say the same, the newest name first.
NAMES: dict[str, tuple[str, ...]] = {
    "gen_ai.operation.name": ("llm.request.type",),
    "gen_ai.provider.name": ("gen_ai.system", "llm.provider", "llm.system"),
    "gen_ai.request.model": ("llm.request.model", "llm.model_name", "embedding.model_name"),
    "gen_ai.response.model": ("llm.response.model",),
    "gen_ai.request.stream": ("llm.is_streaming",),
    "gen_ai.response.finish_reasons": ("gen_ai.response.finish_reason", "llm.finish_reason"),
    "gen_ai.usage.input_tokens": (
        "gen_ai.usage.prompt_tokens",
        "llm.usage.prompt_tokens",
        "llm.token_count.prompt",
    ),
    "gen_ai.usage.output_tokens": (
        "gen_ai.usage.completion_tokens",
        "llm.usage.completion_tokens",
        "llm.token_count.completion",
    ),
    "gen_ai.usage.cache_read.input_tokens": (
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.cached_tokens",
        "llm.token_count.prompt_details.cache_read",
    ),
    "gen_ai.usage.cache_creation.input_tokens": (
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "llm.token_count.prompt_details.cache_write",
    ),
    "gen_ai.usage.reasoning.output_tokens": (
        "gen_ai.usage.reasoning_tokens",
        "gen_ai.usage.reasoning_output_tokens",
        "llm.token_count.completion_details.reasoning",
    ),
    "gen_ai.response.time_to_first_chunk": (
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.ttft",
    ),
    "gateway.tenant": ("tenant.id",),
    "gateway.user": ("user.id", "enduser.id"),
    "gateway.region": ("cloud.region",),
    "gateway.route": ("service.name",),
}
#: What providers were called before the conventions named them anew.
PROVIDERS = {
    "az.ai.inference": "azure.ai.inference",
    "az.ai.openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}
#: OpenLLMetry's and OpenInference's names of operations.
_OPERATIONS = {"completion": "text_completion", "embedding": "embeddings"}
_KIND_OPERATIONS = {"LLM": "chat", "EMBEDDING": "embeddings"}
#: Names from before it was agreed that the input holds its cached tokens: Anthropic's does not.
_EXCLUSIVE_CACHE = (
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
)
_INPUT = "gen_ai.usage.input_tokens"
_CACHED = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_creation.input_tokens")

#: Only the span itself can say these.
_OWN = {"event.id", "event.time", "gen_ai.client.operation.duration"}
_COUNTS = frozenset(key for key in EVENT_KEYS if "_tokens" in key) | {"gateway.attempts"}
_REALS = frozenset({"gen_ai.request.temperature", "gen_ai.response.time_to_first_chunk"})
_READ = tuple(sorted(EVENT_KEYS - _OWN))
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_INDEXED = re.compile(
    r"^(?:(gen_ai\.(?:prompt|completion))|llm\.(input_messages|output_messages))\.(\d{1,4})\."
    r"(?:message\.)?(role|content|finish_reason)$"
)

Json = dict[str, Any]


def translate_span(span: Span, names: Mapping[str, str], keep: Iterable[str] = ()) -> Json | None:
    """Return the span as an event on the wire; None for one that is no request to a model.

    `names` says what further attributes mean: attribute → key of an event. Attributes in `keep`
    are handed on under their own names; all others are left behind, for they may hold texts.
    Whether the event is valid is not judged here.
    """
    if not _is_request(span.attributes, names):
        return None
    event = _read_fields(span, names)
    _settle_usage(event, span.attributes)
    _settle_outcome(event, span)
    event |= _read_messages(span, event)
    for key in keep:
        if (value := _find(span, key)) is not None:
            event[key] = value
    return event | _read_times(span) | _read_id(span)


def _is_request(attributes: Attributes, names: Mapping[str, str]) -> bool:
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return str(operation) not in NOT_REQUESTS
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return str(kind) in _REQUEST_KINDS
    if str(attributes.get("traceloop.span.kind")) in _TASK_KINDS:
        return False
    models = ("gen_ai.request.model", "gen_ai.response.model", *NAMES["gen_ai.request.model"])
    given = (name for name, key in names.items() if key == "gen_ai.request.model")
    return any(attributes.get(name) is not None for name in (*models, *given))


def _find(span: Span, name: str) -> Any:
    value = span.attributes.get(name)
    return span.resource.get(name) if value is None else value


def _read_fields(span: Span, names: Mapping[str, str]) -> Json:
    event: Json = {}
    for key in _READ:
        given = (name for name, meant in names.items() if meant == key)
        values = (_find(span, name) for name in (key, *given, *NAMES.get(key, ())))
        if (value := next((v for v in values if v is not None and v != ""), None)) is not None:
            event[key] = _coerce(key, value)
    event.setdefault("gen_ai.request.model", event.get("gen_ai.response.model"))
    kind = str(span.attributes.get("openinference.span.kind", ""))
    event.setdefault("gen_ai.operation.name", _KIND_OPERATIONS.get(kind))
    _rename(event, "gen_ai.provider.name", PROVIDERS)
    _rename(event, "gen_ai.operation.name", _OPERATIONS)
    return {key: value for key, value in event.items() if value is not None}


def _rename(event: Json, key: str, names: Mapping[str, str]) -> None:
    value = event.get(key)
    if isinstance(value, str):
        event[key] = names.get(value.lower(), value)


def _coerce(key: str, value: Any) -> Any:
    """Numbers that came as texts, or 3.0 for 3: meant well. Anything else is the codec's affair."""
    if key == "gen_ai.response.finish_reasons":
        return _read_reasons(value)
    if key not in _COUNTS and key not in _REALS:
        return value
    try:
        number = float(value) if not isinstance(value, bool) else value
    except (TypeError, ValueError):
        return value
    if key in _COUNTS and isinstance(number, float) and number.is_integer():
        return int(number)
    return number


def _read_reasons(value: Any) -> Any:
    if isinstance(value, str):
        found = _parse(value)
        value = found if isinstance(found, list) else [value]
    return value


def _parse(text: Any) -> Any:
    """Return what a text holds in JSON; the value itself when it holds none, or is no text."""
    if not isinstance(text, str):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


# --- Usage, outcome, time ----------------------------------------------------------------------


def include_cached(input_tokens: int, cached: int, *, exclusive: bool) -> int:
    """Return the input with its cached tokens, as OpenAI counts and prices are applied.

    Anthropic counts them apart. What is `exclusive`, or could not be otherwise, has them added.
    """
    return input_tokens + cached if exclusive or input_tokens < cached else input_tokens


def _settle_usage(event: Json, attributes: Attributes) -> None:
    counts = [event.get(key) or 0 for key in (_INPUT, *_CACHED)]
    if not isinstance(event.get(_INPUT), int) or not all(isinstance(c, int) for c in counts):
        return
    provider = str(event.get("gen_ai.provider.name", ""))
    exclusive = "anthropic" in provider and any(name in attributes for name in _EXCLUSIVE_CACHE)
    event[_INPUT] = include_cached(counts[0], counts[1] + counts[2], exclusive=exclusive)


def _settle_outcome(event: Json, span: Span) -> None:
    """`error.type`, where the span says that it failed and not how, from its exception."""
    if "error.type" in event or not span.failed:
        return
    thrown = (e.attributes.get("exception.type") for e in span.events if e.name == "exception")
    # What the conventions say where nothing better is known.
    event["error.type"] = next((t for t in thrown if t), "_OTHER")


def _read_times(span: Span) -> Json:
    times: Json = {}
    if span.end_ns:
        times["event.time"] = _EPOCH + dt.timedelta(microseconds=span.end_ns // 1_000)
    if span.start_ns and span.end_ns:
        times["gen_ai.client.operation.duration"] = (span.end_ns - span.start_ns) / 1e9
    return times


def _read_id(span: Span) -> Json:
    """The same span has the same id, however often it is sent; zeros are no id (W3C)."""
    if not span.trace_id.strip("0") or not span.span_id.strip("0"):
        return {}
    return {"event.id": f"{span.trace_id}-{span.span_id}"}


# --- Messages ----------------------------------------------------------------------------------


def _read_messages(span: Span, event: Json) -> Json:
    """The last user turn, the answer, and what only messages say: why it ended, a refusal."""
    asked, answered = _gather(span)
    answer = answered[:1]
    found: Json = {
        "prompt.text": _last_user_text(asked),
        "response.text": _text_of(answer[0]) if answer else None,
        "gen_ai.response.finish_reasons": _reasons_of(answered),
        "gateway.refusal": True if any(_refuses(each) for each in answer) else None,
        "gen_ai.response.time_to_first_chunk": _first_token_s(span),
    }
    return {k: v for k, v in found.items() if v is not None and event.get(k) is None}


def _gather(span: Span) -> tuple[list[Json], list[Json]]:
    """Messages that went in and that came out, from the first place that has any."""
    holders: list[Attributes] = [span.attributes, *(e.attributes for e in span.events)]
    asked = _first_messages(holders, ("gen_ai.input.messages", "gen_ai.prompt"))
    answered = _first_messages(holders, ("gen_ai.output.messages", "gen_ai.completion"))
    indexed = _read_indexed(span.attributes)
    asked = asked or indexed["in"] or list(_event_messages(span.events))
    return asked, answered or indexed["out"] or list(_choices(span.events))


def _first_messages(holders: Sequence[Attributes], names: Sequence[str]) -> list[Json]:
    for name in names:
        for attributes in holders:
            if messages := _as_messages(attributes.get(name)):
                return messages
    return []


def _as_messages(value: Any) -> list[Json]:
    value = _parse(value)
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, dict):
        value = [value]
    return [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []


def _read_indexed(attributes: Attributes) -> dict[str, list[Json]]:
    """``gen_ai.prompt.0.content``, ``llm.input_messages.0.message.content``, …"""
    found: dict[str, dict[int, Json]] = {"in": {}, "out": {}}
    for key, value in attributes.items():
        if match := _INDEXED.match(key):
            old, new, number, field = match.groups()
            side = "in" if old == "gen_ai.prompt" or new == "input_messages" else "out"
            found[side].setdefault(int(number), {})[field] = value
    return {side: [held[n] for n in sorted(held)] for side, held in found.items()}


def _event_messages(events: Iterable[SpanEvent]) -> Iterator[Json]:
    """``gen_ai.user.message`` and its like, one event for each message."""
    for event in events:
        prefix, _, rest = event.name.partition("gen_ai.")
        role, _, kind = rest.partition(".")
        if not prefix and kind == "message":
            yield {"role": role, **event.attributes}


def _choices(events: Iterable[SpanEvent]) -> Iterator[Json]:
    for event in events:
        if event.name == "gen_ai.choice":
            message = _parse(event.attributes.get("message"))
            held = message if isinstance(message, dict) else {"content": message}
            yield {**event.attributes, **held}


def _last_user_text(messages: Sequence[Json]) -> str | None:
    users = [m for m in messages if m.get("role", "user") in ("user", "human")]
    return _text_of(users[-1]) if users else None


def _text_of(message: Json) -> str | None:
    """The text of a message: its content, or those of its parts that are text."""
    held = _parse(message.get("parts"))
    if not isinstance(held, list):
        held = message.get("content")
        # Only what looks like a list of parts: an answer in JSON is a text.
        parsed = _parse(held) if isinstance(held, str) and held.startswith("[{") else held
        held = parsed if _are_parts(parsed) else held
    if isinstance(held, str):
        return held
    texts = [_part_text(part) for part in held] if isinstance(held, list) else []
    known = [text for text in texts if text is not None]
    return "\n".join(known) if known else None


def _are_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(p, dict) and "type" in p for p in value)


def _part_text(part: Any) -> str | None:
    if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
        return part if isinstance(part, str) else None
    text = part.get("content", part.get("text"))
    return text if isinstance(text, str) else None


def _refuses(message: Json) -> bool:
    parts = _parse(message.get("parts"))
    told = isinstance(parts, list) and any(
        isinstance(part, dict) and part.get("type") == "refusal" for part in parts
    )
    return told or bool(message.get("refusal"))


def _reasons_of(messages: Sequence[Json]) -> list[str] | None:
    reasons = [m["finish_reason"] for m in messages if isinstance(m.get("finish_reason"), str)]
    return reasons or None


def _first_token_s(span: Span) -> float | None:
    """OpenInference marks the first token by an event of the span."""
    for event in span.events:
        if event.name == "First Token Stream Event" and span.start_ns and event.time_ns:
            return (event.time_ns - span.start_ns) / 1e9
    return None
