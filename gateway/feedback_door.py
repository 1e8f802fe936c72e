"""`POST /v1/feedback`: what people think of answers, from whoever may ask for answers.

Delivery guarantee: what is answered as taken is in the spool, and is sent from there at least
once, also by the next process (`gateway.shipping`). What the spool cannot take is answered 503,
and none of it was taken; sent again with the same ids it counts once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request

from gateway.errors import Code, GatewayError
from gateway.ratings import judge_of
from pipeline.gateway_settings import FeedbackSettings, KeySettings
from pipeline.receiving import RETRY_AFTER_S, Judged, Unreadable, judge_body
from schemas.codec import CodecLimits

#: Bodies above this are judged in a thread, beside the loop.
LONG_BYTES = 8_192
_CODES = {413: Code.REQUEST_TOO_LARGE, 415: Code.UNSUPPORTED_TYPE}


class FeedbackSink(Protocol):
    """Takes feedback towards Kafka."""

    async def keep(self, raws: Sequence[bytes]) -> bool:
        """Return whether all of these are safe now; else none is. Does not wait for Kafka."""
        ...


class FeedbackDoor:
    """Reads, judges and hands on; who asks is known by then."""

    def __init__(self, settings: FeedbackSettings, limits: CodecLimits, sink: FeedbackSink) -> None:
        self._body_bytes = settings.body_bytes
        self._limits = limits
        self._sink = sink

    async def take(
        self, request: Request, key: KeySettings, now_ms: int
    ) -> tuple[int, dict[str, Any]]:
        """Take what can be taken of a request; returns the status and what is told.

        Raises:
            GatewayError: nothing was taken.
        """
        judged = await self._judge(await self._read(request), request, key, now_ms)
        taken = [raw for _, raw in judged.good]
        if not taken:
            raise GatewayError(Code.FEEDBACK_REFUSED, told=judged.describe(0))
        if not await self._sink.keep(taken):
            raise GatewayError(Code.FEEDBACK_UNAVAILABLE, retry_after_s=RETRY_AFTER_S)
        return (207 if judged.refused else 200), judged.describe(len(taken))

    async def _judge(self, body: bytes, request: Request, key: KeySettings, now_ms: int) -> Judged:
        kind = request.headers.get("content-type", "")
        encoding = request.headers.get("content-encoding", "")
        judge = judge_of(key.tenant or "", now_ms, self._limits)
        work = partial(judge_body, body, kind, encoding, self._body_bytes, judge)
        try:
            # A small body may be packed: unpacked it can be as large as any.
            if len(body) > LONG_BYTES or encoding:
                return await asyncio.to_thread(work)
            return work()
        except Unreadable as error:
            code = _CODES.get(error.status, Code.INVALID_REQUEST)
            raise GatewayError(code, str(error)) from None

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        parts: AsyncIterator[bytes] = request.stream()
        async for part in parts:
            body += part
            if len(body) > self._body_bytes:
                raise GatewayError(Code.REQUEST_TOO_LARGE, f"over {self._body_bytes} bytes")
        return bytes(body)
