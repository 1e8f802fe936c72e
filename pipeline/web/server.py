"""The page's HTTP server: static files, the panels' rows, and the SQL box.

What it promises:

* It reads and never writes; see `pipeline.web.reading`.
* Without a token it serves this machine only: it listens on a loopback address (the
  configuration sees to that) and answers only to a loopback name, so that no other site
  can reach it through the browser by a name of its own.
* With a token, everything but the static files wants it, as ``Authorization: Bearer``;
  it is compared in constant time. There are no cookies, hence nothing to forge.
* At most `MAX_WAITING` requests wait for ClickHouse; more are answered 503.

Others hang their own routes on it: see `Extension`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web

from dashboards.filling import Span
from pipeline.config import WebSettings, is_loopback
from pipeline.errors import ConfigError, KizashiError
from pipeline.sinks.endpoint import QueryFailed
from pipeline.web.pictures import Chosen, Pictures, describe_boards
from pipeline.web.reading import Reader

logger = logging.getLogger(__name__)

#: Adds routes to the application before it starts. Those under `OPEN_PREFIXES` are not asked for
#: the page's token nor for a loopback name: they say themselves whom they believe.
Extension = Callable[[web.Application], None]
OPEN_PREFIXES = ("/hooks/", "/v1/")
#: What wants the page's token, where there is one; the static files do not.
GUARDED_PREFIXES = ("/api/", "/metrics")

MAX_WAITING = 64
MAX_BODY_BYTES = 256 * 1024
MAX_RANGE_S = 90 * 86_400
_THREADS = 2
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """The server. Start it in a running event loop; what it asks runs in threads of its own.

    `clock` gives the time up to which the pictures reach, in unix seconds: now, or where a
    replay stands. `about` is told to the page with every answer (where a demo stands).
    """

    def __init__(
        self,
        settings: WebSettings,
        reader: Reader,
        clock: Callable[[], float],
        about: Callable[[], dict[str, Any]] = dict,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._clock = clock
        self._about = about
        self._extensions = extensions
        self._waiting = 0
        self._port = 0
        token = settings.token
        self._token = None if token is None else token.get_secret_value().encode()

    @property
    def url(self) -> str:
        """Where the page is, once started."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/"

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken.
        """
        self._threads = ThreadPoolExecutor(_THREADS, "web")
        self._pictures = Pictures(self._reader, self._threads)
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=2.0,
            # Whoever takes packed bodies unpacks them, within its own bounds.
            auto_decompress=False,
        )
        await self._runner.setup()
        settings = self._settings
        try:
            await web.TCPSite(self._runner, settings.host, settings.port).start()
        except OSError as error:
            await self.stop()
            raise ConfigError(f"web.port: cannot listen on {settings.port}: {error}") from None
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and let go of ClickHouse."""
        await self._runner.cleanup()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._reader.close)

    def _application(self) -> web.Application:
        application = web.Application(
            client_max_size=MAX_BODY_BYTES, middlewares=[_guard_with(self._check)]
        )
        router = application.router
        for name, body in _static_files().items():
            router.add_get("/" if name == "index.html" else f"/{name}", _give(name, body))
        router.add_get("/api/boards", self._list_boards)
        router.add_get("/api/boards/{name}", self._show_board)
        router.add_get("/api/boards/{name}/options", self._list_options)
        router.add_post("/api/sql", self._run_sql)
        for extend in self._extensions:
            extend(application)
        return application

    # --- Who may ask -------------------------------------------------------------------------

    def _check(self, request: web.Request) -> None:
        """Raise what an uninvited request is answered with."""
        if request.path.startswith(OPEN_PREFIXES):
            return
        if self._token is None and not is_loopback(_host_name(request)):
            raise web.HTTPForbidden(text="this page answers to localhost only\n")
        if self._token is None or not request.path.startswith(GUARDED_PREFIXES):
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(errors="replace"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise web.HTTPUnauthorized(text="token\n", headers={"WWW-Authenticate": "Bearer"})

    # --- What they get -----------------------------------------------------------------------

    async def _list_boards(self, _: web.Request) -> web.Response:
        return _json({"boards": describe_boards(), "about": self._about(), "now": self._clock()})

    async def _show_board(self, request: web.Request) -> web.Response:
        span, chosen = self._read_span(request), _read_chosen(request)
        only = [int(n) for n in request.query.getall("panel", []) if n.isdecimal()]
        panels = await self._in_turn(
            self._pictures.board(request.match_info["name"], span, chosen, only)
        )
        head = msgspec.json.encode({"about": self._about(), "span": span})
        return _json_bytes(head[:-1] + b',"panels":' + panels + b"}")

    async def _list_options(self, request: web.Request) -> web.Response:
        return _json_bytes(await self._in_turn(self._pictures.options(request.match_info["name"])))

    async def _run_sql(self, request: web.Request) -> web.Response:
        sql = await _read_sql(request)
        rows = self._settings.rows
        try:
            # One more than is shown, so that the page can say that there are more.
            body = await self._in_turn(self._ask(sql, rows + 1))
        except KizashiError as error:
            code = error.code if isinstance(error, QueryFailed) else 0
            return _json({"error": str(error), "code": code}, status=400 if code else 503)
        return _json_bytes(b'{"rows":%d,"result":%b}' % (rows, body))

    async def _ask(self, sql: str, rows: int) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: self._reader.read(sql, rows=rows))

    async def _in_turn(self, answer: Coroutine[Any, Any, bytes]) -> bytes:
        if self._waiting >= MAX_WAITING:
            answer.close()
            raise web.HTTPServiceUnavailable(text="too many questions at once\n")
        self._waiting += 1
        try:
            return await answer
        except KeyError:
            raise web.HTTPNotFound(text="no such board\n") from None
        finally:
            self._waiting -= 1

    def _read_span(self, request: web.Request) -> Span:
        """``range`` seconds up to now, or up to ``end``."""
        query = request.query
        length, end = query.get("range", "3600"), query.get("end", "")
        if not length.isdecimal() or not 60 <= int(length) <= MAX_RANGE_S:
            raise web.HTTPBadRequest(text="range: seconds, from 60 to 90 days\n")
        if end and not (end.isdecimal() and len(end) <= 10):
            raise web.HTTPBadRequest(text="end: unix seconds\n")
        return Span.ending(int(end or self._clock()), int(length))


def _static_files() -> dict[str, bytes]:
    """Read once: nothing that a request names ever becomes a path."""
    folder = resources.files("pipeline.web") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _give(name: str, body: bytes) -> Handler:
    kind = _TYPES["." + name.rpartition(".")[2]]

    async def give(_: web.Request) -> web.Response:
        response = web.Response(body=body, content_type=kind, charset="utf-8")
        response.headers["Cache-Control"] = "no-cache"
        response.enable_compression()
        return response

    return give


def _guard_with(check: Callable[[web.Request], None]) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check(request)
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        response.headers.update(_HEADERS)
        return response

    return guard


def _host_name(request: web.Request) -> str:
    host = request.host
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _read_chosen(request: web.Request) -> Chosen:
    """Values of variables, each as ``v.NAME=value``, as often as there are values."""
    names = {name for name in request.query if name.startswith("v.")}
    return {name[2:]: tuple(request.query.getall(name)) for name in sorted(names)}


async def _read_sql(request: web.Request) -> str:
    # Another site cannot send this type without asking first, and is not allowed to.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="application/json\n")
    try:
        body = msgspec.json.decode(await request.read(), type=dict[str, str])
        return body["sql"]
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        raise web.HTTPBadRequest(text='{"sql": "…"}\n') from None


def _json(value: object, status: int = 200) -> web.Response:
    return _json_bytes(msgspec.json.encode(value), status)


def _json_bytes(body: bytes, status: int = 200) -> web.Response:
    response = web.Response(body=body, status=status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.enable_compression()
    return response
