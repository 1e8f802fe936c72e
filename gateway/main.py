"""`kizashi gateway`: the gateway as a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.app import build_app
from gateway.build import open_gateway
from gateway.server import run
from gateway.serving import Gateway
from pipeline.config import Config
from pipeline.errors import ConfigError


def run_gateway(config: Config, host: str | None = None, port: int | None = None) -> None:
    """Serve until the process is told to stop.

    Raises:
        ConfigError: no model is configured, or a key is missing.
    """
    if not config.gateway.models:
        raise ConfigError("gateway.models: there is none; docs/gateway.md has a first one")

    @asynccontextmanager
    async def opened() -> AsyncIterator[Gateway]:
        async with open_gateway(config, sink=None) as gateway:
            yield gateway

    run(
        build_app(opened),
        host or config.gateway.host,
        config.gateway.port if port is None else port,
    )
