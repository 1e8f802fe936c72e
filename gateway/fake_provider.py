"""A provider that answers by a script: OpenAI's and Anthropic's APIs as an ASGI application.

It stands behind the gateway in the demo, in the benchmark and in the tests. A `Script`
decides for every request what becomes of it; nothing here is random.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from gateway import sse

Headers = list[tuple[bytes, bytes]]


class Reply(Struct, frozen=True, kw_only=True):
    """What becomes of one request."""

    text: str = "Hello! How can I help you today?"
    status: int = 200
    #: With an error status: the error's code and message.
    code: str = "server_error"
    message: str = "The server had an error."
    retry_after_s: float | None = None
    #: Until the answer begins, and between its pieces.
    first_s: float = 0.0
    piece_s: float = 0.0
    #: Characters of a piece of a stream.
    piece_characters: int = 8
    #: A stream is cut after so many pieces; a whole answer is cut in the middle.
    cut_after: int | None = None
    finish_reason: str = "stop"
    refusal: str | None = None
    #: The model that the answer names; None: the one that was asked for.
    model: str | None = None
    input_tokens: int = 12
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 9
    reasoning_tokens: int = 0
    tool_arguments: str | None = None


Script = Callable[[dict[str, Any]], Reply]
_CREATED_S = 1_700_000_000
_JSON: Headers = [(b"content-type", b"application/json")]
_STREAM: Headers = [(b"content-type", b"text/event-stream")]


class FakeProvider:
    """The application. Counts what it saw; `seen` keeps the newest bodies, `seen_max` at most."""

    def __init__(self, script: Script | None = None, seen_max: int = 100) -> None:
        self._script: Script = script or (lambda _: Reply())
        self._seen_max = seen_max
        self.counts: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = msgspec.json.decode(await _read(receive))
        self._note(scope, body)
        reply = self._script(body)
        if reply.first_s:
            await asyncio.sleep(reply.first_s)
        if reply.status != 200:
            await _answer_error(reply, send)
        elif scope["path"].endswith("/embeddings"):
            await _answer(msgspec.json.encode(_embedding(body, reply)), send)
        else:
            shape = _Anthropic if scope["path"].endswith("/messages") else _OpenAI
            await self._chat(shape(body, reply), reply, receive, send)

    def _note(self, scope: Scope, body: dict[str, Any]) -> None:
        self.counts["requests"] += 1
        self.seen = [*self.seen, body][-self._seen_max :]
        headers = {k.decode(): v.decode("latin-1") for k, v in scope["headers"]}
        self.headers = [*self.headers, headers][-self._seen_max :]

    async def _chat(self, shape: _Shape, reply: Reply, receive: Receive, send: Send) -> None:
        if not shape.body.get("stream"):
            raw = msgspec.json.encode(shape.whole())
            await _answer(raw, send, cut=reply.cut_after is not None)
            return
        gone = asyncio.ensure_future(_until_gone(receive))
        self.counts["streams_open"] += 1
        try:
            await _start(send, 200, _STREAM)
            for number, piece in enumerate(shape.pieces()):
                if gone.done():
                    self.counts["streams_left"] += 1
                    return
                if number == reply.cut_after:
                    self.counts["streams_cut"] += 1
                    raise CutError
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(reply.piece_s)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.counts["streams_open"] -= 1
            gone.cancel()


class CutError(Exception):
    """The connection is closed in the middle of an answer, as the script has it."""


class _Shape:
    """An answer in one API's form."""

    def __init__(self, body: dict[str, Any], reply: Reply) -> None:
        self.body = body
        self.reply = reply
        self.model = reply.model or body.get("model", "")

    def texts(self) -> Iterator[str]:
        text, size = self.reply.text, self.reply.piece_characters
        for start in range(0, len(text), size):
            yield text[start : start + size]

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def pieces(self) -> Iterator[bytes]:
        raise NotImplementedError


class _OpenAI(_Shape):
    def _usage(self) -> dict[str, Any]:
        reply = self.reply
        return {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-fake",
            "object": kind,
            "created": _CREATED_S,
            "model": self.model,
        }

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.refusal is not None:
            message |= {"content": None, "refusal": reply.refusal}
        if reply.tool_arguments is not None:
            function = {"name": "look_up", "arguments": reply.tool_arguments}
            call = {"id": "call_1", "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}

    def pieces(self) -> Iterator[bytes]:
        head = self._head("chat.completion.chunk")
        yield self._chunk(head, {"role": "assistant", "content": ""}, None)
        for text in self.texts():
            yield self._chunk(head, {"content": text}, None)
        yield self._chunk(head, {}, self.reply.finish_reason)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield sse.write(msgspec.json.encode({**head, "choices": [], "usage": self._usage()}))
        yield sse.write(sse.DONE)

    def _chunk(self, head: dict[str, Any], delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return sse.write(msgspec.json.encode({**head, "choices": [choice]}))


class _Anthropic(_Shape):
    """The Messages API."""

    def _usage(self) -> dict[str, int]:
        reply = self.reply
        return {
            # Exclusive of what was read from a cache or written to it.
            "input_tokens": reply.input_tokens - reply.cached_tokens - reply.cache_write_tokens,
            "cache_read_input_tokens": reply.cached_tokens,
            "cache_creation_input_tokens": reply.cache_write_tokens,
            "output_tokens": reply.output_tokens,
        }

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._usage(), "output_tokens": 1},
        }

    def whole(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": self.reply.text}]
        if self.reply.tool_arguments is not None:
            arguments = msgspec.json.decode(self.reply.tool_arguments)
            call = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": arguments}
            content.append(call)
        ended = {"stop_reason": self.reply.finish_reason, "usage": self._usage()}
        return self._message(content) | ended

    def pieces(self) -> Iterator[bytes]:
        yield self._event("message_start", {"message": self._message([])})
        block: dict[str, Any] = {"type": "text", "text": ""}
        yield self._event("content_block_start", {"index": 0, "content_block": block})
        yield self._event("ping", {})
        for text in self.texts():
            delta = {"type": "text_delta", "text": text}
            yield self._event("content_block_delta", {"index": 0, "delta": delta})
        yield self._event("content_block_stop", {"index": 0})
        if self.reply.tool_arguments is not None:
            yield from self._tool(self.reply.tool_arguments)
        usage = {"output_tokens": self.reply.output_tokens}
        delta = {"stop_reason": self.reply.finish_reason}
        yield self._event("message_delta", {"delta": delta, "usage": usage})
        yield self._event("message_stop", {})

    def _tool(self, arguments: str) -> Iterator[bytes]:
        block = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}
        yield self._event("content_block_start", {"index": 1, "content_block": block})
        for start in range(0, len(arguments), 5):
            delta = {"type": "input_json_delta", "partial_json": arguments[start : start + 5]}
            yield self._event("content_block_delta", {"index": 1, "delta": delta})
        yield self._event("content_block_stop", {"index": 1})

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        return f"event: {name}\n".encode() + sse.write(msgspec.json.encode({"type": name, **data}))


def _embedding(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors = [
        {"object": "embedding", "index": i, "embedding": [float(i), 0.5, -0.5]}
        for i, _ in enumerate(given)
    ]
    usage = {"prompt_tokens": reply.input_tokens, "total_tokens": reply.input_tokens}
    model = reply.model or body["model"]
    return {"object": "list", "data": vectors, "model": model, "usage": usage}


async def _answer_error(reply: Reply, send: Send) -> None:
    headers = list(_JSON)
    if reply.retry_after_s is not None:
        headers.append((b"retry-after", f"{reply.retry_after_s:g}".encode()))
    error = {"type": reply.code, "code": reply.code, "message": reply.message}
    await _start(send, reply.status, headers)
    await send({"type": "http.response.body", "body": msgspec.json.encode({"error": error})})


async def _answer(raw: bytes, send: Send, *, cut: bool = False) -> None:
    await _start(send, 200, [*_JSON, (b"content-length", str(len(raw)).encode())])
    if cut:
        await send({"type": "http.response.body", "body": raw[: len(raw) // 2], "more_body": True})
        raise CutError
    await send({"type": "http.response.body", "body": raw})


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
