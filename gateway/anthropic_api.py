"""Anthropic's Messages API behind OpenAI's: requests and answers translated, streams too.

Pure. What has no counterpart (logprobs, several choices, seeds) is left out. Usage becomes
OpenAI's: Anthropic's `input_tokens` excludes what was read from a cache or written to it,
OpenAI's includes it. Reference: Anthropic's Messages API, version 2023-06-01.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway.answer import Chunk, Completion
from gateway.asked import Asked, Message, text_of
from gateway.errors import Code, GatewayError
from gateway.openai_api import Call, Part, read_failure
from gateway.routing import Failure, UpstreamFailure
from gateway.sse import SentEvent
from pipeline.gateway_settings import UpstreamSettings

VERSION = "2023-06-01"
#: The Messages API requires a bound; who gives none gets this.
MAX_TOKENS = 4_096
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_TOOL_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


class AnthropicDialect:
    """How Anthropic is spoken to."""

    def __init__(self, settings: UpstreamSettings, key: str | None) -> None:
        self._headers = {
            "Content-Type": "application/json",
            "anthropic-version": settings.api_version or VERSION,
        }
        if key is not None:
            self._headers["x-api-key"] = key

    def call(self, asked: Asked, model: str) -> Call:
        if asked.operation != "chat":
            raise UpstreamFailure(Failure.MISCONFIGURED, "Anthropic embeds nothing")
        body = translate_request(asked.body, model)
        return Call("/messages", self._headers, msgspec.json.encode(body))

    def read(self, raw: bytes) -> tuple[bytes, Completion]:
        try:
            message = msgspec.json.decode(raw, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamFailure(Failure.SERVER_ERROR, f"unreadable answer: {error}") from None
        completion = translate_answer(message)
        return msgspec.json.encode(completion), msgspec.convert(completion, Completion)

    def stream_reader(self) -> StreamReader:
        return StreamReader()

    def failure(self, status: int, raw: bytes, retry_after: str | None) -> UpstreamFailure:
        return read_failure(status, raw, retry_after)


# --- Requests --------------------------------------------------------------------------------


def translate_request(body: dict[str, Any], model: str) -> dict[str, Any]:
    """Return OpenAI's chat as a request for a message.

    Raises:
        GatewayError: a tool call's arguments are no JSON.
    """
    system, messages = _split(body["messages"])
    most = body.get("max_completion_tokens") or body.get("max_tokens") or MAX_TOKENS
    stop = body.get("stop")
    told: dict[str, Any] = {
        "model": model,
        "max_tokens": most,
        "messages": messages,
        "system": system or None,
        "stream": body.get("stream") or None,
        "temperature": _temperature(body.get("temperature")),
        "top_p": body.get("top_p"),
        "stop_sequences": [stop] if isinstance(stop, str) else stop,
        "tools": [_tool(tool) for tool in body.get("tools") or ()] or None,
        "tool_choice": _tool_choice(body.get("tool_choice"), body.get("parallel_tool_calls")),
        "metadata": {"user_id": body["user"]} if isinstance(body.get("user"), str) else None,
    }
    if not told["tools"]:
        told["tool_choice"] = None
    return {key: value for key, value in told.items() if value is not None}


def _temperature(value: Any) -> Any:
    # OpenAI's goes up to 2, Anthropic's to 1.
    return min(value, 1.0) if isinstance(value, int | float) else value


def _split(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """System turns apart; the others in turns that alternate, as the Messages API has them."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message["role"]
        if role in {"system", "developer"}:
            system.append(text_of(message.get("content")))
            continue
        speaker = "assistant" if role == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": speaker, "content": blocks})
    return "\n\n".join(system), turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    content = message.get("content")
    if message["role"] == "tool":
        called = message.get("tool_call_id")
        return [{"type": "tool_result", "tool_use_id": called, "content": text_of(content)}]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    blocks = [block for part in parts if (block := _part(part)) is not None]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        given = _arguments(function.get("arguments"))
        name = function.get("name")
        blocks.append({"type": "tool_use", "id": call.get("id"), "name": name, "input": given})
    return blocks


def _part(part: Any) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        return None
    if part.get("type") == "text":
        # An empty text is an error there.
        return {"type": "text", "text": part["text"]} if part.get("text") else None
    if part.get("type") == "image_url":
        url = (part.get("image_url") or {}).get("url", "")
        return {"type": "image", "source": _image(url)}
    raise GatewayError(Code.INVALID_REQUEST, f"part {part.get('type')}", param="messages")


def _image(url: str) -> dict[str, str]:
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        kind = head.removeprefix("data:").removesuffix(";base64")
        return {"type": "base64", "media_type": kind, "data": data}
    return {"type": "url", "url": url}


def _arguments(text: Any) -> Any:
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, TypeError):
        raise GatewayError(
            Code.INVALID_REQUEST, "arguments are no JSON", param="messages"
        ) from None


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function") or {}
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    told = {"name": function.get("name"), "input_schema": schema}
    if function.get("description"):
        told["description"] = function["description"]
    return told


def _tool_choice(choice: Any, parallel: Any) -> dict[str, Any] | None:
    told: dict[str, Any] | None = None
    if isinstance(choice, str) and choice in _TOOL_CHOICES:
        told = {"type": _TOOL_CHOICES[choice]}
    elif isinstance(choice, dict):
        told = {"type": "tool", "name": (choice.get("function") or {}).get("name")}
    if parallel is False:
        told = {**(told or {"type": "auto"}), "disable_parallel_tool_use": True}
    return told


# --- Answers ---------------------------------------------------------------------------------


class _Used(Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Block(Struct, frozen=True):
    type: str = ""
    text: str = ""
    id: str | None = None
    name: str | None = None
    input: Any = None


class _Answer(Struct, frozen=True):
    id: str = ""
    model: str = ""
    content: list[_Block] = msgspec.field(default_factory=list)
    stop_reason: str | None = None
    usage: _Used | None = None


def translate_usage(used: _Used) -> dict[str, Any]:
    """Return OpenAI's usage: the prompt includes what was cached."""
    read, written = used.cache_read_input_tokens or 0, used.cache_creation_input_tokens or 0
    prompt, said = (used.input_tokens or 0) + read + written, used.output_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }


def translate_answer(answer: _Answer) -> dict[str, Any]:
    """Return a message as a `chat.completion`."""
    texts = [block.text for block in answer.content if block.type == "text"]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": _written(block.input)},
        }
        for block in answer.content
        if block.type == "tool_use"
    ]
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "finish_reason": _reason(answer.stop_reason)}
    completion: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion",
        "created": 0,
        "model": answer.model,
        "choices": [choice],
    }
    if answer.usage is not None:
        completion["usage"] = translate_usage(answer.usage)
    return completion


def _reason(reason: str | None) -> str:
    return _REASONS.get(reason or "", "stop")


def _written(value: Any) -> str:
    return msgspec.json.encode({} if value is None else value).decode()


# --- Streams ---------------------------------------------------------------------------------


class _StreamDelta(Struct, frozen=True):
    type: str = ""
    text: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _StreamError(Struct, frozen=True):
    type: str = ""
    message: str = ""


class _Streamed(Struct, frozen=True):
    """Any event of a stream; a field is there where its type has it."""

    type: str = ""
    index: int = 0
    message: _Answer | None = None
    content_block: _Block | None = None
    delta: _StreamDelta | None = None
    usage: _Used | None = None
    error: _StreamError | None = None


_decode_event = msgspec.json.Decoder(_Streamed).decode


class StreamReader:
    """Events of one message → chunks of one completion."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {"object": "chat.completion.chunk", "created": 0}
        self._used = _Used()
        #: Index of a content block → index of the tool call that it is.
        self._calls: dict[int, int] = {}

    def read(self, event: SentEvent) -> Iterator[Part]:
        """Give the chunks of one event.

        Raises:
            UpstreamFailure: the upstream says that it failed, or what it says is unreadable.
        """
        try:
            streamed = _decode_event(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamFailure(Failure.SERVER_ERROR, f"unreadable event: {error}") from None
        if streamed.error is not None:
            overloaded = streamed.error.type == "overloaded_error"
            failure = Failure.RATE_LIMITED if overloaded else Failure.SERVER_ERROR
            raise UpstreamFailure(failure, f"{streamed.error.type}: {streamed.error.message}")
        if streamed.type == "message_stop":
            yield Part(None, done=True)
            return
        for chunk in self._chunks(streamed):
            yield Part(msgspec.convert(chunk, Chunk), msgspec.json.encode(chunk))

    def _chunks(self, streamed: _Streamed) -> Iterator[dict[str, Any]]:
        delta, block = streamed.delta, streamed.content_block
        if streamed.message is not None:
            self._head |= {"id": streamed.message.id, "model": streamed.message.model}
            self._used = streamed.message.usage or self._used
            yield self._chunk({"role": "assistant", "content": ""})
        elif block is not None and block.type == "tool_use":
            number = self._calls[streamed.index] = len(self._calls)
            function = {"name": block.name, "arguments": ""}
            call = {"index": number, "id": block.id, "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})
        elif delta is not None and delta.type == "text_delta":
            yield self._chunk({"content": delta.text})
        elif delta is not None and delta.type == "input_json_delta":
            call = {
                "index": self._calls.get(streamed.index, 0),
                "function": {"arguments": delta.partial_json},
            }
            yield self._chunk({"tool_calls": [call]})
        elif delta is not None and delta.stop_reason is not None:
            yield self._chunk({}, _reason(delta.stop_reason))
            self._used = _merged(self._used, streamed.usage)
            yield {**self._head, "choices": [], "usage": translate_usage(self._used)}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {**self._head, "choices": [choice]}


def _merged(begun: _Used, ended: _Used | None) -> _Used:
    """The end's counts are cumulative; what it does not say the beginning has said."""
    if ended is None:
        return begun
    said = {k: v for k, v in msgspec.structs.asdict(ended).items() if v is not None}
    return msgspec.structs.replace(begun, **said)
