"""A server on loopback that stands where a service of somebody else's would."""

from __future__ import annotations

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from typing import Any, Self


class LoopbackServer:
    """Use as a context manager. Each request has a thread and a handler whose `fake` this is."""

    def __init__(self, handler: type[LoopbackHandler]) -> None:
        self._closing = threading.Event()
        bound = type("Bound", (handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for_close(self) -> None:
        self._closing.wait(30)


class LoopbackHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Any

    def respond(self) -> None:
        """Read one request, of whatever method, and answer it."""
        raise NotImplementedError

    def do_POST(self) -> None:
        self.respond()

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 — named by the base

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        """Close the connection without a word."""
        self.close_connection = True
        with suppress(OSError):  # the client may have gone first
            self.connection.shutdown(SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — named by the base
        """Say nothing."""
