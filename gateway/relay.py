"""A stream's parts → the bytes that a client gets, and what is known of the answer by then.

Pure. What nobody has to change is handed on as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway import sse
from gateway.answer import Answer, Chunk
from gateway.asked import Asked
from gateway.errors import Code, GatewayError
from gateway.openai_api import Part
from gateway.stages import AnswerGuards


class Relay:
    """One stream on its way. Holds back only what a guardrail holds back."""

    def __init__(self, asked: Asked, answer: Answer, guards: AnswerGuards | None) -> None:
        self._wants_usage = wants_usage(asked)
        self._guards = guards
        self.answer = answer
        #: The stream's own end was seen.
        self.done = False
        #: A guardrail has stopped the answer: what was taken before it may still be sent.
        self.stopped: GatewayError | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its end, with or without the mark that says so."""
        return self.done or bool(self.answer.finish_reasons)

    def take(self, parts: Sequence[Part]) -> bytes:
        """Return the bytes to send for these parts; look at `done` and `stopped` then.

        Of the piece in which a guardrail finds what it stops, nothing is sent.
        """
        sent = []
        for part in parts:
            if part.done:
                self.done = True
                break
            if part.chunk is not None and self._is_wanted(part.chunk):
                sent.append(self._pass(part.raw, part.chunk))
            if self.stopped is not None:
                break
        return b"".join(sent)

    def _is_wanted(self, chunk: Chunk) -> bool:
        """A chunk of nothing but usage is for us alone, unless the client has asked for it."""
        if self._guards is None or not chunk.choices:
            self.answer.take_chunk(chunk)
        return self._wants_usage or bool(chunk.choices) or chunk.usage is None

    def _pass(self, raw: bytes, chunk: Chunk) -> bytes:
        if self._guards is None or not chunk.choices:
            return sse.write(raw)
        changed = self._guards.check_chunk(msgspec.json.decode(raw))
        if self._guards.blocked:
            self.stopped = GatewayError(Code.ANSWER_BLOCKED, str(self._guards.verdicts))
            return b""
        for each in changed:
            self.answer.take_chunk(msgspec.convert(each, Chunk))
        return b"".join(sse.write(msgspec.json.encode(each)) for each in changed)

    def end(self) -> bytes:
        """Return the stream's last bytes."""
        return sse.write(sse.DONE)


def wants_usage(asked: Asked) -> bool:
    """Whether the client asks for usage at a stream's end."""
    return bool((asked.body.get("stream_options") or {}).get("include_usage"))


def completion_of(answer: Answer, model: str, created_s: int) -> dict[str, Any] | None:
    """Return a stream as the whole answer that it adds up to, for a cache; None if it is none."""
    if list(answer.finish_reasons) != [0] or answer.has_tool_calls or answer.refused:
        return None
    if answer.is_clipped:
        return None
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reasons[0]}
    return {
        "id": answer.response_id or "",
        "object": "chat.completion",
        "created": created_s,
        "model": answer.response_model or model,
        "choices": [choice],
    }
