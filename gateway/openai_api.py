"""OpenAI's API, as OpenAI, Azure, vLLM and Ollama speak it: requests out, answers and failures in.

Pure. Reference: OpenAI's API, chat completions and embeddings; Azure OpenAI's deployments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from gateway.answer import Chunk, Completion, Unreadable, decode_chunk, decode_completion
from gateway.asked import Asked
from gateway.routing import Failure, UpstreamFailure
from gateway.sse import DONE, SentEvent
from pipeline.gateway_settings import UpstreamSettings

AZURE_API_VERSION = "2024-10-21"
_PATHS = {"chat": "/chat/completions", "embeddings": "/embeddings"}
_DETAIL_CHARACTERS = 500
_TOO_LONG_CODES = {"context_length_exceeded", "string_above_max_length"}
_TOO_LONG_WORDS = ("maximum context length", "context length", "prompt is too long", "too many tok")


class Call(Struct, frozen=True):
    """A request to an upstream: what comes behind its base URL, and what is sent."""

    path: str
    headers: dict[str, str]
    body: bytes


class Part(Struct, frozen=True):
    """A chunk of a stream, with its bytes as a client may get them. `done` ends the stream."""

    chunk: Chunk | None
    raw: bytes = b""
    done: bool = False


class OpenAIDialect:
    """How an upstream of OpenAI's kind is spoken to."""

    def __init__(self, settings: UpstreamSettings, key: str | None) -> None:
        self._settings = settings
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            name, value = ("api-key", key) if self._is_azure else ("Authorization", f"Bearer {key}")
            self._headers[name] = value

    @property
    def _is_azure(self) -> bool:
        return self._settings.kind == "azure"

    def call(self, asked: Asked, model: str) -> Call:
        body: dict[str, Any] = {**asked.body, "model": model}
        if asked.stream:
            # Without it nobody would know what a stream cost.
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return Call(self._path(asked.operation, model), self._headers, msgspec.json.encode(body))

    def _path(self, operation: str, model: str) -> str:
        if not self._is_azure:
            return _PATHS[operation]
        version = quote(self._settings.api_version or AZURE_API_VERSION, safe="")
        deployment = quote(model, safe="")
        return f"/openai/deployments/{deployment}{_PATHS[operation]}?api-version={version}"

    def read(self, raw: bytes) -> tuple[bytes, Completion]:
        """Return a whole answer's bytes for the client, and what they say.

        Raises:
            UpstreamFailure: it is no answer.
        """
        try:
            return raw, decode_completion(raw)
        except Unreadable as error:
            raise UpstreamFailure(Failure.SERVER_ERROR, f"unreadable answer: {error}") from None

    def stream_reader(self) -> StreamReader:
        return StreamReader()

    def failure(self, status: int, raw: bytes, retry_after: str | None) -> UpstreamFailure:
        return read_failure(status, raw, retry_after)


class StreamReader:
    """Events of a stream → its parts."""

    def read(self, event: SentEvent) -> Iterator[Part]:
        """Give the parts of one event.

        Raises:
            UpstreamFailure: the upstream says that it failed, or what it says is unreadable.
        """
        if event.data == DONE:
            yield Part(None, done=True)
            return
        try:
            chunk = decode_chunk(event.data)
        except Unreadable as error:
            raise UpstreamFailure(Failure.SERVER_ERROR, f"unreadable chunk: {error}") from None
        if chunk.error is not None:
            raise UpstreamFailure(Failure.SERVER_ERROR, _clip(bytes(chunk.error)))
        yield Part(chunk, event.data)


class _ErrorBody(Struct):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None


class _Error(Struct):
    error: _ErrorBody | str | None = None
    message: str | None = None


def read_failure(status: int, raw: bytes, retry_after: str | None) -> UpstreamFailure:
    """Say what an answer with an error status means."""
    detail = f"status {status}: {_clip(raw)}"
    return UpstreamFailure(_classify(status, raw), detail, read_retry_after(retry_after))


def _classify(status: int, raw: bytes) -> Failure:
    if status == 429:
        return Failure.RATE_LIMITED
    if status in {408, 504}:
        return Failure.TIMEOUT
    if status >= 500:  # 529 is Anthropic's "overloaded"
        return Failure.SERVER_ERROR
    if status in {401, 403, 404} or status < 400:  # redirects are not followed
        return Failure.MISCONFIGURED
    return Failure.CONTEXT_TOO_LONG if _is_too_long(raw) else Failure.REFUSED


def _is_too_long(raw: bytes) -> bool:
    try:
        error = msgspec.json.decode(raw, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    body = error.error if isinstance(error.error, _ErrorBody) else _ErrorBody(error.message)
    words = (body.message or "").lower()
    return body.code in _TOO_LONG_CODES or any(each in words for each in _TOO_LONG_WORDS)


def read_retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header; its dates are not read."""
    try:
        seconds = float(value) if value else -1.0
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 86_400 else None


def _clip(raw: bytes) -> str:
    return raw[:_DETAIL_CHARACTERS].decode(errors="replace")
