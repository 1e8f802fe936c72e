"""Running the gateway's application under uvicorn: as a process of its own, or inside another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

#: How long requests under way may take when the gateway is told to stop.
_STOP_TIMEOUT_S = 20
_BACKLOG = 2_048
_START_POLL_S = 0.005


def _config(app: ASGIApp, *, lifespan: bool, patience_s: int = _STOP_TIMEOUT_S) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        lifespan="on" if lifespan else "off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=patience_s,
    )


def run(app: ASGIApp, host: str, port: int, *, lifespan: bool = True) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished first."""
    listening = listen(host, port)
    uvicorn.Server(_config(app, lifespan=lifespan)).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class _Embedded(uvicorn.Server):
    """Leaves the signals to the process that it is in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve(
    app: ASGIApp, *, lifespan: bool = True, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve within this loop on a free port, which is given."""
    server = _Embedded(_config(app, lifespan=lifespan, patience_s=1))
    listening = listen(host, 0)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:
            if serving.done():
                serving.result()
                raise RuntimeError("the server ended before it began")
            await asyncio.sleep(_START_POLL_S)
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
        listening.close()
