"""`kizashi gateway`: the gateway as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from gateway.app import build_app
from gateway.build import open_gateway
from gateway.metrics import SpoolCollector
from gateway.server import run
from gateway.serving import Gateway
from gateway.shipping import FeedbackShipping, Shipping, events_courier, feedback_courier
from pipeline.config import Config
from pipeline.errors import ConfigError

#: For sending what still waits in a spool when the process is told to stop; the rest is sent by
#: the next.
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
    """Give the configured gateway, whose events and feedback go through spools to Kafka.

    Raises:
        ConfigError: a key is missing, or the spool cannot be used.
    """
    settings = config.gateway
    if not settings.events.enabled:
        async with open_gateway(config, sink=None) as gateway:
            yield gateway
        return
    async with AsyncExitStack() as stack:
        shipping = Shipping(settings.events, events_courier(config.kafka))
        stack.push_async_callback(asyncio.to_thread, shipping.stop, _STOP_PATIENCE_S)
        rating = _open_feedback(config) if settings.feedback.enabled else None
        if rating is not None:
            stack.push_async_callback(asyncio.to_thread, rating.stop, _STOP_PATIENCE_S)
        gateway = await stack.enter_async_context(
            open_gateway(config, sink=shipping, feedback=rating)
        )
        gateway.metrics.registry.register(SpoolCollector(shipping.spool, "events"))
        if rating is not None:
            gateway.metrics.registry.register(SpoolCollector(rating.spool, "feedback"))
        yield gateway


def _open_feedback(config: Config) -> FeedbackShipping:
    courier = feedback_courier(config.kafka)
    return FeedbackShipping(config.gateway.feedback, config.gateway.events, courier)
