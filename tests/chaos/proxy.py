"""What stands between the workers and ClickHouse, and can go wrong in every way that a network can.

An HTTP proxy in a thread of its own. A request is read whole, passed on whole, and answered
whole: what fails, fails between two of these.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

from pipeline.sinks.endpoint import decompress, first_word

_BODY_BYTES = 128 * 1024 * 1024
_START_TIMEOUT_S = 10.0
#: Below the time-out of the workers' requests.
SLOW_S = 4.0
_DROPPED_HEADERS = {"host", "content-length", "transfer-encoding", "connection"}
#: ClickHouse's code → what it says with it.
_SAYS = {
    164: "Cannot execute query in readonly mode. (READONLY)",
    252: "Too many parts (300). Merges are processing significantly slower than inserts."
    " (TOO_MANY_PARTS)",
}


class FaultProxy:
    """Passes everything on, until `mode` says otherwise. Use as a context manager.

    Modes: ``refuse`` (hang up unread), ``hang`` (no answer until the client gives up), ``slow``
    (everything takes `SLOW_S` longer), ``cut`` (pass a write on, and hang up when it is done),
    ``164`` and ``252`` (answer writes with this error of ClickHouse's). `on_applied`, once set, is
    called when the next insert has been done and before anybody hears of it; then the connection
    is cut.
    """

    host = "127.0.0.1"

    def __init__(self, target_port: int) -> None:
        self._target = f"http://127.0.0.1:{target_port}/"
        self.mode = ""
        self.on_applied: Callable[[], None] | None = None
        #: How many requests the mode has hit.
        self.hits = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.mode = ""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_START_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        # A connection for each request: one that was cut with the server must not be used again.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        )
        app = web.Application(client_max_size=_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, auto_decompress=False, max_line_size=256 * 1024,
            shutdown_timeout=1.0, handler_cancellation=True,
        )  # fmt: skip
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, 0).start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        inserts = _inserts(request, body)
        mode = self.mode
        if mode == "refuse":
            return self._hang_up(request)
        if mode == "hang":
            self.hits += 1
            await asyncio.Event().wait()  # ends with the client: its handler is cancelled
        if mode == "slow":
            self.hits += 1
            await asyncio.sleep(SLOW_S)
        if mode.isdecimal() and inserts:
            self.hits += 1
            return _fail(int(mode))
        try:
            answer = await self._pass_on(request, body)
        except aiohttp.ClientError:
            return self._hang_up(request)
        if inserts and (on_applied := self.on_applied) is not None:
            self.on_applied = None
            await asyncio.get_running_loop().run_in_executor(None, on_applied)
            return self._hang_up(request)
        if mode == "cut" and inserts:
            return self._hang_up(request)
        return answer

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _DROPPED_HEADERS}
        url = self._target + request.path_qs.removeprefix("/")
        async with self._session.request(
            request.method, URL(url, encoded=True), headers=headers, data=body
        ) as answer:
            content = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _DROPPED_HEADERS}
            return web.Response(status=answer.status, headers=kept, body=content)

    def _hang_up(self, request: web.Request) -> web.Response:
        self.hits += 1
        if request.transport is not None:
            with suppress(OSError):
                request.transport.abort()
        return web.Response(status=503)


def _inserts(request: web.Request, body: bytes) -> bool:
    if statement := request.query.get("query", ""):
        return first_word(statement.encode()) == b"INSERT"
    encoding = request.headers.get("Content-Encoding", "")
    return first_word(decompress(body, encoding, _BODY_BYTES)) == b"INSERT"


def _fail(code: int) -> web.Response:
    return web.Response(
        status=500,
        headers={"X-ClickHouse-Exception-Code": str(code)},
        text=f"Code: {code}. DB::Exception: {_SAYS[code]}\n",
    )
