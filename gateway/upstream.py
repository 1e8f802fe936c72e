"""An upstream, called over HTTP with aiohttp: one pool of connections each.

A call that is cancelled closes its connection, which is how a client that goes away stops
the upstream. Of a stream no more is read than the client takes: aiohttp stops reading
from the socket once 128 KiB wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

import aiohttp

from gateway.answer import Completion
from gateway.asked import Asked
from gateway.openai_api import Call, Part
from gateway.routing import Failure, UpstreamFailure
from gateway.sse import Reader, SentEvent, TooLong
from pipeline.gateway_settings import UpstreamSettings

#: Of an answer that is no stream.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
_ERROR_BYTES_MAX = 16 * 1024
_KEEPALIVE_S = 30.0
_UNREACHABLE = (aiohttp.ClientError, OSError)


class PartReader(Protocol):
    """Events of one stream → its parts. May have state: one for each stream."""

    def read(self, event: SentEvent) -> Iterator[Part]: ...


class Dialect(Protocol):
    """How an upstream is spoken to: `gateway.openai_api`, `gateway.anthropic_api`."""

    def call(self, asked: Asked, model: str) -> Call: ...
    def read(self, raw: bytes) -> tuple[bytes, Completion]: ...
    def stream_reader(self) -> PartReader: ...
    def failure(self, status: int, raw: bytes, retry_after: str | None) -> UpstreamFailure: ...


class Upstream:
    """One upstream. Open it as a context manager, in the loop that will use it."""

    def __init__(self, settings: UpstreamSettings, dialect: Dialect) -> None:
        self.settings = settings
        self.dialect = dialect
        self._base = str(settings.base_url).rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._whole = _timeouts(settings, settings.timeout_s)
        self._chunked = _timeouts(settings, settings.chunk_timeout_s)

    @property
    def provider(self) -> str:
        return self.settings.provider or self.settings.kind

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self.settings.connections, keepalive_timeout=_KEEPALIVE_S
        )
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, asked: Asked, model: str, within_s: float) -> tuple[bytes, Completion]:
        """Return a whole answer.

        Raises:
            UpstreamFailure: there is none within `within_s`, or the upstream's own limit.
        """
        call = self.dialect.call(asked, model)
        with self.mapped():
            async with asyncio.timeout(min(within_s, self.settings.timeout_s)):
                async with self._post(call, self._whole) as response:
                    if response.status != 200:
                        raise await self.failure(response)
                    raw = await self._read_whole(response)
        return self.dialect.read(raw)

    async def open_stream(self, asked: Asked, model: str, within_s: float) -> UpstreamStream:
        """Return a stream whose first parts are there; it must be closed.

        Raises:
            UpstreamFailure: none began within `within_s`, or the upstream's own limit.
        """
        call = self.dialect.call(asked, model)
        with self.mapped():
            async with asyncio.timeout(min(within_s, self.settings.timeout_s)):
                response = await self._post(call, self._chunked)
                stream = UpstreamStream(self, response)
                try:
                    await stream.begin()
                except BaseException:
                    response.close()
                    raise
        return stream

    def _post(
        self, call: Call, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("the upstream is not open")
        return self._session.post(
            self._base + call.path,
            data=call.body,
            headers=call.headers,
            timeout=timeout,
            # A redirect would carry the key to another host.
            allow_redirects=False,
        )

    async def _read_whole(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        while piece := await response.content.readany():
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_BYTES_MAX:
                response.close()
                detail = f"{self.settings.name}: more than {ANSWER_BYTES_MAX} bytes"
                raise UpstreamFailure(Failure.SERVER_ERROR, detail)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def failure(self, response: aiohttp.ClientResponse) -> UpstreamFailure:
        """Return what an answer with an error status means; its body is read in part."""
        raw = await response.content.read(_ERROR_BYTES_MAX)
        if not response.content.at_eof():
            response.close()
        failed = self.dialect.failure(response.status, raw, response.headers.get("Retry-After"))
        failed.detail = f"{self.settings.name}: {failed.detail}"
        return failed

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Say what went wrong in our own words."""
        name = self.settings.name
        try:
            yield
        except TimeoutError:
            raise UpstreamFailure(Failure.TIMEOUT, f"{name}: no answer in time") from None
        except TooLong as error:
            raise UpstreamFailure(Failure.SERVER_ERROR, f"{name}: {error}") from None
        except _UNREACHABLE as error:
            detail = f"{name}: {type(error).__name__}: {error}"
            raise UpstreamFailure(Failure.UNREACHABLE, detail) from None


class UpstreamStream:
    """A stream under way. `close` ends it; one that was read to its end keeps its connection."""

    def __init__(self, upstream: Upstream, response: aiohttp.ClientResponse) -> None:
        self._upstream = upstream
        self._response = response
        self._reader = Reader()
        self._codec = upstream.dialect.stream_reader()
        self._first: list[Part] = []
        self._over = False

    async def begin(self) -> None:
        """Wait for the first parts; what fails until here may be tried elsewhere."""
        if self._response.status != 200:
            raise await self._upstream.failure(self._response)
        self._first = await self._read()

    async def next_parts(self) -> list[Part]:
        """Return what has come since, at least one part; nothing at the end.

        Raises:
            UpstreamFailure: the stream broke.
        """
        if self._first:
            parts, self._first = self._first, []
            return parts
        with self._upstream.mapped():
            return await self._read()

    async def _read(self) -> list[Part]:
        content = self._response.content
        while not self._over:
            piece = await content.readany()
            events = self._reader.feed(piece) if piece else self._reader.finish()
            self._over = not piece
            if parts := [part for event in events for part in self._codec.read(event)]:
                return parts
        return []

    def close(self) -> None:
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _timeouts(settings: UpstreamSettings, read_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None, sock_connect=settings.connect_timeout_s, sock_read=read_s
    )
