"""`kizashi gateway`: the gateway as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from gateway.app import build_app
from gateway.build import open_gateway
from gateway.metrics import SpoolCollector
from gateway.server import run
from gateway.serving import Gateway
from gateway.shipping import KafkaCourier, Shipping
from pipeline.config import Config
from pipeline.errors import ConfigError

#: For sending what still waits when the process is told to stop; the rest is sent by the next.
_STOP_PATIENCE_S = 5.0


def run_gateway(config: Config, host: str | None = None, port: int | None = None) -> None:
    """Serve until the process is told to stop.

    Raises:
        ConfigError: no model is configured, or a key is missing.
    """
    if not config.gateway.models:
        raise ConfigError("gateway.models: there is none; docs/gateway.md has a first one")

    address = host or config.gateway.host, config.gateway.port if port is None else port
    run(build_app(partial(open_with_events, config)), *address)


@asynccontextmanager
async def open_with_events(config: Config) -> AsyncIterator[Gateway]:
    """Give the configured gateway, whose events go through the spool to Kafka.

    Raises:
        ConfigError: a key is missing, or the spool cannot be used.
    """
    settings = config.gateway.events
    if not settings.enabled:
        async with open_gateway(config, sink=None) as gateway:
            yield gateway
        return
    shipping = Shipping(settings, KafkaCourier(config.kafka))
    try:
        async with open_gateway(config, sink=shipping) as gateway:
            gateway.metrics.registry.register(SpoolCollector(shipping.spool))
            yield gateway
    finally:
        await asyncio.to_thread(shipping.stop, _STOP_PATIENCE_S)
