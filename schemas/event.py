"""The gateway event: one LLM request and its response, as one JSON object on `llm.gateway.events`.

Keys are the OpenTelemetry GenAI attribute names wherever one exists
(semantic-conventions-genai, status Development); what that vocabulary lacks
(route, tenant, cache, …) stands under ``gateway.``.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from msgspec import Meta, Struct, field, structs

#: A count of tokens. The bound catches 2^63 and other overflow artefacts, not long contexts.
TokenCount = Annotated[int, Meta(ge=0, le=2**31 - 1)]
#: A duration in seconds; a day is far beyond any gateway's time-out.
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
#: A value that may become part of a monitor's key.
Label = Annotated[str, Meta(max_length=256)]
Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
FinishReason = Annotated[str, Meta(max_length=64)]
Embedding = Annotated[list[float], Meta(max_length=4096)]


# No event refers to another, so the garbage collector has nothing to find among them:
# with gc=False decoding a chunk of 10,000 takes a third of the time.
class Event(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """A decoded gateway event. `schemas.codec.decode_event` builds it and holds the rules."""

    event_id: Identifier = field(name="event.id")
    event_time: dt.datetime | float | int = field(name="event.time")

    operation: Label | None = field(name="gen_ai.operation.name", default=None)
    provider: Label | None = field(name="gen_ai.provider.name", default=None)
    request_model: Identifier = field(name="gen_ai.request.model")
    response_model: Label | None = field(name="gen_ai.response.model", default=None)
    response_id: Label | None = field(name="gen_ai.response.id", default=None)
    finish_reasons: Annotated[list[FinishReason], Meta(max_length=64)] | None = field(
        name="gen_ai.response.finish_reasons", default=None
    )

    stream: bool | None = field(name="gen_ai.request.stream", default=None)
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = field(
        name="gen_ai.request.temperature", default=None
    )
    max_tokens: TokenCount | None = field(name="gen_ai.request.max_tokens", default=None)

    #: Inclusive of cached tokens, as OpenAI counts them.
    input_tokens: TokenCount | None = field(name="gen_ai.usage.input_tokens", default=None)
    #: Inclusive of reasoning tokens.
    output_tokens: TokenCount | None = field(name="gen_ai.usage.output_tokens", default=None)
    cache_read_tokens: TokenCount | None = field(
        name="gen_ai.usage.cache_read.input_tokens", default=None
    )
    cache_creation_tokens: TokenCount | None = field(
        name="gen_ai.usage.cache_creation.input_tokens", default=None
    )
    reasoning_tokens: TokenCount | None = field(
        name="gen_ai.usage.reasoning.output_tokens", default=None
    )

    duration_s: Seconds | None = field(name="gen_ai.client.operation.duration", default=None)
    time_to_first_chunk_s: Seconds | None = field(
        name="gen_ai.response.time_to_first_chunk", default=None
    )

    prompt_name: Label | None = field(name="gen_ai.prompt.name", default=None)
    prompt_version: Label | None = field(name="gen_ai.prompt.version", default=None)
    error_type: Label | None = field(name="error.type", default=None)

    route: Label | None = field(name="gateway.route", default=None)
    tenant: Label | None = field(name="gateway.tenant", default=None)
    user: Label | None = field(name="gateway.user", default=None)
    region: Label | None = field(name="gateway.region", default=None)
    cache: Literal["hit", "miss", "bypass"] | None = field(name="gateway.cache", default=None)
    fallback_from: Label | None = field(name="gateway.fallback_from", default=None)
    attempts: Annotated[int, Meta(ge=0, le=1000)] | None = field(
        name="gateway.attempts", default=None
    )
    guardrail: Label | None = field(name="gateway.guardrail", default=None)
    #: The provider's own refusal signal; absent when it gave none.
    refusal: bool | None = field(name="gateway.refusal", default=None)

    #: Of a canary: the case that was asked, and whether the answer was as expected.
    canary: Label | None = field(name="gateway.canary", default=None)
    canary_passed: bool | None = field(name="gateway.canary.passed", default=None)

    #: The last user turn.
    prompt_text: str | None = field(name="prompt.text", default=None)
    response_text: str | None = field(name="response.text", default=None)
    prompt_embedding: Embedding | None = field(name="prompt.embedding", default=None)
    response_embedding: Embedding | None = field(name="response.embedding", default=None)
    embedding_model: Label | None = field(name="embedding.model", default=None)


#: The keys of an event.
EVENT_KEYS = frozenset(each.encode_name for each in structs.fields(Event))


class Received(Struct, frozen=True, gc=False):
    """An event that was accepted, with what the codec worked out about it."""

    event: Event
    #: When the response ended, milliseconds since the epoch (UTC).
    time_ms: int
    #: Keys outside the contract, kept as text (JSON for anything that is not a string).
    attributes: dict[str, str]
