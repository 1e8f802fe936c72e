"""What becomes of a request that is over: its event for the pipeline, and its metrics."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import Protocol

from gateway.events import write_event
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from pipeline.gateway_settings import EventSettings

logger = logging.getLogger(__name__)


class EventSink(Protocol):
    """Takes events towards Kafka. `put` never blocks and never raises."""

    def put(self, raw: bytes) -> None: ...


class Recording:
    """The gateway's `Recorder`. What goes wrong here is logged and counted, never felt."""

    def __init__(
        self,
        settings: EventSettings,
        metrics: Metrics,
        sink: EventSink | None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._wall_s = wall_s
        self._metrics = metrics
        self._sink = sink
        self._characters = settings.text_characters if settings.texts else None

    def record(self, exchange: Exchange) -> None:
        """Hand over the event of a request that is over."""
        now = dt.datetime.fromtimestamp(self._wall_s(), dt.UTC)
        try:
            self._metrics.observe(exchange, now)
            if self._sink is not None:
                self._sink.put(write_event(exchange, now, self._characters))
        except Exception:
            logger.exception("request %s: no event", exchange.asked.request_id)
            self._metrics.turn_away("event_unwritten")

    def turn_away(self, code: str) -> None:
        """Count a request that makes no event."""
        self._metrics.turn_away(code)
