"""A dead man's switch: an address that is asked for as long as Kizashi sees what it should.

Whoever is dead cannot page. So somebody else must: a service that pages when it is no longer
asked (healthchecks.io, Dead Man's Snitch, Cronitor, an Alertmanager behind a push gateway).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import httpx

from pipeline.config import HeartbeatSettings
from pipeline.errors import ConfigError, KizashiError
from pipeline.sinks.webhook import PinnedTransport, check_secret_url, post

SECTION = "notify.heartbeat"

logger = logging.getLogger(__name__)


class Heartbeat:
    """Posts to the address, at most once in `every_s`.

    Delivery guarantee: none, and none needed: a beat that is lost is followed by another, and
    the other side waits for several.
    """

    def __init__(
        self,
        settings: HeartbeatSettings,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Build it from settings that have a `url`.

        Raises:
            ConfigError: the URL is none, would travel in clear text, or leads inside.
        """
        if settings.url is None:
            raise ConfigError(f"{SECTION}.url is missing")
        self._url = settings.url
        check_secret_url(
            settings.url,
            SECTION,
            allow_private=settings.allow_private,
            allow_plain=settings.allow_private,
        )
        self._every_s = settings.every_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._transport = transport or PinnedTransport(
            allow_private=settings.allow_private, section=SECTION
        )
        self._beaten_s = -math.inf

    async def beat(self) -> bool:
        """Ask for the address if it is time; returns whether it was answered. Raises nothing."""
        now_s = self._clock()
        if 0 <= now_s - self._beaten_s < self._every_s:
            return False
        url = self._url.get_secret_value()
        try:
            answer = await post(self._transport, url, b"{}", {}, self._timeout_s, self._clock)
            answer.check()
        except KizashiError as error:
            # What was answered may quote the address.
            logger.warning("%s: not taken (%s)", SECTION, type(error).__name__)
            return False
        self._beaten_s = now_s
        return True

    async def close(self) -> None:
        """Release connections."""
        await self._transport.aclose()
