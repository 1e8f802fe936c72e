"""`POST /v1/events` and `/v1/feedback` on the page's server, for who has no Kafka client.

What is read and answered is in `pipeline.receiving`; here are the key, the limits and aiohttp.
Nothing is read of a request without a key, of one that is too large, or slower than
`READ_TIMEOUT_S`; at most `AT_ONCE` bodies are held, more are answered 503.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web

from pipeline.receiving import RETRY_AFTER_S, Answer, Judge, Send, is_known_key, receive

READ_TIMEOUT_S = 30.0
AT_ONCE = 8


class Door:
    """One path. Calling it adds the route to an aiohttp application."""

    def __init__(
        self,
        path: str,
        keys: Sequence[bytes],
        body_bytes: int,
        judge: Callable[[], Judge],
        send: Send,
        close: Callable[[], None],
    ) -> None:
        """`body_bytes` bounds a body, packed and unpacked; `judge` gives who judges by now."""
        if not keys:
            raise ValueError("without a key anyone could send")
        self._path = path
        self._keys = tuple(keys)
        self._body_bytes = body_bytes
        self._judge = judge
        self._send = send
        self._close = close
        self._held = 0

    def __call__(self, app: web.Application) -> None:
        app.router.add_post(self._path, self.handle)
        app.on_cleanup.append(self._clean_up)

    async def _clean_up(self, _: web.Application) -> None:
        await asyncio.to_thread(self._close)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        if not is_known_key(self._keys, request.headers.get("Authorization", "")):
            return _respond(
                Answer(401, {"error": "a key is needed"}, {"WWW-Authenticate": "Bearer"})
            )
        if self._held >= AT_ONCE:
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            return _respond(Answer(503, {"error": "too many at once"}, retry))
        self._held += 1
        try:
            return _respond(await self._take(request))
        finally:
            self._held -= 1

    async def _take(self, request: web.Request) -> Answer:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await self._read(request)
        except TimeoutError:
            return Answer(408, {"error": "too slow"})
        if body is None:
            return Answer(413, {"error": f"more than {self._body_bytes} bytes"})
        headers = request.headers
        return await receive(
            body,
            headers.get("Content-Type", ""),
            headers.get("Content-Encoding", ""),
            self._body_bytes,
            self._judge(),
            self._send,
        )

    async def _read(self, request: web.Request) -> bytes | None:
        if (request.content_length or 0) > self._body_bytes:
            return None
        body = bytearray()
        async for part in request.content.iter_any():
            body += part
            if len(body) > self._body_bytes:
                return None
        return bytes(body)


def _respond(answer: Answer) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(answer.body),
        status=answer.status,
        content_type="application/json",
        headers=answer.headers,
    )
