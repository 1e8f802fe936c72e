"""Rate limits of each key, in requests and in tokens a minute, by the library `limits`.

A sliding window over two counters, so that its memory is two numbers for each limit
whatever the traffic. Tokens are known once an answer is there: a request passes while the
key is below its limit, and what it used counts from then on, so a key can overshoot by
what it has under way. Kept in memory, or in Redis for several gateways together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from redis.asyncio import ConnectionPool

from gateway.asked import Asked
from gateway.errors import Code, GatewayError
from pipeline.gateway_settings import KeySettings, LimitSettings

logger = logging.getLogger(__name__)
_REDIS_TIMEOUT_S = 0.5


class KeyLimits:
    """The limits of all keys. With Redis away, requests pass or not as configured."""

    def __init__(self, settings: LimitSettings, pool: ConnectionPool | None = None) -> None:
        """`pool`: connections to Redis other than those that the settings lead to."""
        self._settings = settings
        self._strategy = SlidingWindowCounterRateLimiter(_storage(settings, pool))
        #: How often Redis did not answer.
        self.away = 0

    async def admit(self, key: KeySettings, asked: Asked) -> None:
        """Count a request.

        Raises:
            GatewayError: RATE_LIMIT_EXCEEDED, with the seconds to wait.
        """
        if key.requests_per_min is not None or key.tokens_per_min is not None:
            await self._or_pass(self._admit(key), asked.request_id)

    async def admit_feedback(self, key: KeySettings, request_id: str) -> None:
        """Count a request that brings feedback, to the limit of requests but apart from them.

        Raises:
            GatewayError: as `admit`.
        """
        if key.requests_per_min is not None:
            await self._or_pass(self._count(key.requests_per_min, "feedback", key), request_id)

    async def _or_pass(self, counting: Awaitable[None], request_id: str) -> None:
        """Count, or let pass what cannot be counted where it is configured so."""
        try:
            await counting
        except StorageError as error:
            self.away += 1
            logger.warning("request %s: limits: %s", request_id, error)
            if not self._settings.open_when_away:
                raise GatewayError(Code.OVERLOADED, "no limits", retry_after_s=1.0) from None

    async def _admit(self, key: KeySettings) -> None:
        if key.tokens_per_min is not None:
            item = RateLimitItemPerMinute(key.tokens_per_min)
            if not await self._strategy.test(item, "tokens", key.name):
                raise await self._refuse(item, "tokens", key.name)
        if key.requests_per_min is not None:
            await self._count(key.requests_per_min, "requests", key)

    async def _count(self, per_min: int, what: str, key: KeySettings) -> None:
        item = RateLimitItemPerMinute(per_min)
        if not await self._strategy.hit(item, what, key.name):
            raise await self._refuse(item, what, key.name)

    async def charge(self, key: KeySettings, asked: Asked, tokens: int) -> None:
        """Count the tokens of a request that was served."""
        if key.tokens_per_min is None:
            return
        item = RateLimitItemPerMinute(key.tokens_per_min)
        try:
            # What is over the limit fills it: `hit` counts all or nothing.
            left = (await self._strategy.get_window_stats(item, "tokens", key.name)).remaining
            await self._strategy.hit(item, "tokens", key.name, cost=max(1, min(tokens, left)))
        except StorageError as error:
            self.away += 1
            logger.warning("request %s: limits: %s", asked.request_id, error)

    async def _refuse(self, item: RateLimitItem, *names: str) -> GatewayError:
        stats = await self._strategy.get_window_stats(item, *names)
        # When the window turns, what was counted in it still weighs: one more fits a little later.
        wait_s = max(0.0, stats.reset_time - time.time()) + item.get_expiry() / item.amount
        return GatewayError(Code.RATE_LIMIT_EXCEEDED, f"{names}: {item}", retry_after_s=wait_s)


def _storage(settings: LimitSettings, pool: ConnectionPool | None) -> Storage:
    if settings.redis_url is None:
        return MemoryStorage()
    url = settings.redis_url.get_secret_value()
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _REDIS_TIMEOUT_S)
    storage = storage_from_string(
        f"async+{url}",
        implementation="redispy",
        wrap_exceptions=True,
        **({"connection_pool": pool} if pool is not None else timeouts),
    )
    if not isinstance(storage, Storage):
        raise TypeError(f"{type(storage).__name__} is not asynchronous")
    return storage
