"""What a process opens to those who look on: the page, and the embedded store's endpoint.

Neither keeps the process from its work: a port that is taken is logged, and what could
not be opened is not there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from pipeline.config import ClickHouseSettings, Config, WebSettings
from pipeline.errors import ConfigError, KizashiError
from pipeline.sinks.endpoint import Endpoint, EndpointConfig
from pipeline.web.reading import build_reader
from pipeline.web.server import Extension, WebServer

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The first start opens the embedded engine; the end waits for queries in progress.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class Front:
    """The page and the endpoint as the configuration asks for them.

    With `any_port`, a port that is taken is replaced by one that is free.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float],
        about: Callable[[], dict[str, Any]] = dict,
        extensions: Sequence[Extension] = (),
        *,
        any_port: bool = False,
    ) -> None:
        self._config = config
        self._clock = clock
        self._about = about
        self._extensions = tuple(extensions)
        self._any_port = any_port
        self._web: WebServer | None = None
        self._endpoint: Endpoint | None = None

    @property
    def page_url(self) -> str | None:
        """Where the page is; None while it is not."""
        return self._web.url if self._web else None

    @property
    def clickhouse_port(self) -> int | None:
        """Where ClickHouse's clients are answered; None while they are not."""
        return self._endpoint.port if self._endpoint else None

    async def start(self) -> None:
        """Open what is asked for."""
        clickhouse = self._config.clickhouse
        if self._config.web.enabled:
            self._web = await self._attempt(self._open_web, self._config.web.port)
        if clickhouse.endpoint.enabled:
            self._endpoint = await self._attempt(self._open_endpoint, clickhouse.endpoint.port)

    async def stop(self) -> None:
        """Close what was opened."""
        web, endpoint = self._web, self._endpoint
        self._web = self._endpoint = None
        if web is not None:
            await web.stop()
        if endpoint is not None:
            await endpoint.stop()

    async def _attempt(
        self, open_at: Callable[[int], Coroutine[Any, Any, T]], port: int
    ) -> T | None:
        try:
            return await open_at(port)
        except ConfigError as error:
            if self._any_port and port:
                return await self._attempt(open_at, 0)
            logger.warning("%s", error)
        except KizashiError as error:
            logger.warning("%s", error)
        return None

    async def _open_web(self, port: int) -> WebServer:
        settings: WebSettings = self._config.web.model_copy(update={"port": port})
        reader = await asyncio.to_thread(build_reader, self._config.clickhouse, settings)
        web = WebServer(settings, reader, self._clock, self._about, self._extensions)
        await web.start()
        logger.info("the page is at %s", web.url)
        return web

    async def _open_endpoint(self, port: int) -> Endpoint:
        endpoint = Endpoint(endpoint_config(self._config.clickhouse, port))
        await endpoint.start()
        logger.info("ClickHouse's clients are answered on port %d", endpoint.port)
        return endpoint


def without_front(config: Config) -> Config:
    """Return the configuration of a worker that opens nothing, where somebody else does."""
    endpoint = config.clickhouse.endpoint.model_copy(update={"enabled": False})
    clickhouse = config.clickhouse.model_copy(update={"endpoint": endpoint})
    web = config.web.model_copy(update={"enabled": False})
    return config.model_copy(update={"clickhouse": clickhouse, "web": web})


def endpoint_config(clickhouse: ClickHouseSettings, port: int) -> EndpointConfig:
    """Return how the embedded store is served: read-only, and capped."""
    settings = clickhouse.endpoint
    password = settings.password
    return EndpointConfig(
        clickhouse.path,
        settings.host,
        port,
        username=settings.username,
        password=None if password is None else password.get_secret_value(),
    )


class FrontThread:
    """A front in a thread with a loop of its own, for programs that have none."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="web", daemon=True)

    def __enter__(self) -> Front:
        self._thread.start()
        self._run(self._front.start(), START_TIMEOUT_S)
        return self._front

    def __exit__(self, *_: object) -> None:
        self._run(self._front.stop(), STOP_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)
