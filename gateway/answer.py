"""What comes back: OpenAI's completions and chunks as far as the gateway reads them.

The bytes of an upstream are handed on as they came unless a stage changed them; what is
decoded here is what events, limits and guardrails need. Decoding skips every other key.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

TOKENS_MAX = 2**31 - 1


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens by the event contract's rules: input includes cached, output includes reasoning."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_creation_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def total(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)


class PromptDetails(Struct, frozen=True):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: int | None = None


class OpenAIUsage(Struct, frozen=True):
    """As OpenAI writes it: `prompt_tokens` includes what was cached."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def normalised(self) -> Usage:
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            input_tokens=_counted(self.prompt_tokens),
            output_tokens=_counted(self.completion_tokens),
            cache_read_tokens=_counted(prompt.cached_tokens) if prompt else None,
            cache_creation_tokens=_counted(prompt.cache_write_tokens) if prompt else None,
            reasoning_tokens=_counted(completion.reasoning_tokens) if completion else None,
        )


def _counted(tokens: int | None) -> int | None:
    """An upstream's count, where the event contract can hold it."""
    return tokens if tokens is not None and 0 <= tokens <= TOKENS_MAX else None


class Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct, frozen=True):
    index: int = 0
    function: Function | None = None


class Message(Struct, frozen=True):
    """An answer's message, and also what a chunk adds to one."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


_NO_MESSAGE = Message()


class Choice(Struct, frozen=True):
    index: int = 0
    message: Message = _NO_MESSAGE
    finish_reason: str | None = None


class Completion(Struct, frozen=True):
    """A whole answer, `chat.completion` or an embedding, and its bytes."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: OpenAIUsage | None = None


class ChunkChoice(Struct, frozen=True):
    index: int = 0
    delta: Message = _NO_MESSAGE
    finish_reason: str | None = None


class Chunk(Struct, frozen=True):
    """A `chat.completion.chunk`."""

    id: str | None = None
    model: str | None = None
    choices: list[ChunkChoice] = msgspec.field(default_factory=list)
    usage: OpenAIUsage | None = None
    #: Some upstreams break off with an error in a chunk's place.
    error: msgspec.Raw | None = None


_decode_completion = msgspec.json.Decoder(Completion).decode
_decode_chunk = msgspec.json.Decoder(Chunk).decode
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Unreadable(ValueError):
    """An upstream's bytes are not what its API promises."""


def decode_completion(raw: bytes) -> Completion:
    """Decode an answer.

    Raises:
        Unreadable: it is none.
    """
    try:
        return _decode_completion(raw)
    except _BROKEN as error:
        raise Unreadable(str(error)) from None


def decode_chunk(raw: bytes) -> Chunk:
    """Decode a chunk.

    Raises:
        Unreadable: it is none.
    """
    try:
        return _decode_chunk(raw)
    except _BROKEN as error:
        raise Unreadable(str(error)) from None


class Answer:
    """What is known of an answer, whole or chunk by chunk. Text is kept up to `characters`."""

    def __init__(self, characters: int) -> None:
        self.response_id: str | None = None
        self.response_model: str | None = None
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, str] = {}
        self.refused = False
        self.has_tool_calls = False
        self._characters = characters
        self._texts: list[str] = []
        self._held = 0

    @property
    def text(self) -> str:
        """Of the first choice."""
        return "".join(self._texts)

    @property
    def is_clipped(self) -> bool:
        """Whether there may be more text than is held."""
        return self._held >= self._characters

    @property
    def reasons(self) -> list[str]:
        return [self.finish_reasons[index] for index in sorted(self.finish_reasons)]

    def take_completion(self, completion: Completion) -> None:
        self._take_head(completion.id, completion.model, completion.usage)
        for choice in completion.choices:
            self._take(choice.index, choice.message, choice.finish_reason)

    def take_chunk(self, chunk: Chunk) -> None:
        self._take_head(chunk.id, chunk.model, chunk.usage)
        for choice in chunk.choices:
            self._take(choice.index, choice.delta, choice.finish_reason)

    def replace_text(self, text: str) -> None:
        """Let `text` stand for what came: a guardrail has changed it."""
        self._texts, self._held = [], 0
        self._add(text)

    def _take_head(self, id_: str | None, model: str | None, usage: OpenAIUsage | None) -> None:
        self.response_id = id_ or self.response_id
        self.response_model = model or self.response_model
        if usage is not None:
            self.usage = usage.normalised()

    def _take(self, index: int, message: Message, reason: str | None) -> None:
        if reason:
            self.finish_reasons[index] = reason
        if message.refusal:
            self.refused = True
        if message.tool_calls:
            self.has_tool_calls = True
        if index == 0 and (text := message.content or message.refusal):
            self._add(text)

    def _add(self, text: str) -> None:
        if (room := self._characters - self._held) > 0:
            self._texts.append(text[:room])
            self._held += min(len(text), room)


def chunks_of(completion: dict[str, Any], *, usage: bool) -> list[dict[str, Any]]:
    """Return a whole completion as the chunks of a stream: what a cache answers a stream with.

    With `usage` the last chunk says what was used, as OpenAI's `include_usage` has it.
    """
    head: dict[str, Any] = {k: completion[k] for k in ("id", "created", "model") if k in completion}
    head["object"] = "chat.completion.chunk"
    chunks: list[dict[str, Any]] = []
    for choice in completion.get("choices", ()):
        index, message = choice.get("index", 0), dict(choice["message"])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "index": i} for i, call in enumerate(calls)]
        said = {"index": index, "delta": message, "finish_reason": None}
        ended = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}
        chunks += [{**head, "choices": [said]}, {**head, "choices": [ended]}]
    if usage and "usage" in completion:
        chunks.append({**head, "choices": [], "usage": completion["usage"]})
    return chunks
