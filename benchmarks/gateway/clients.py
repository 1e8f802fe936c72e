"""What it costs to ask an upstream once: OpenAI's client, httpx, aiohttp.

``python -m benchmarks.gateway.clients`` prints processor time of this process a request,
the least of `ROUNDS` rounds.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import httpx
from openai import AsyncOpenAI

from benchmarks.gateway.servers import free_port, started

REQUESTS = 300
ROUNDS = 5
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Where is my parcel?"}]}


async def measure(url: str) -> dict[str, float]:
    """Return milliseconds a request by client."""
    path = f"{url}/v1/chat/completions"
    async with (
        AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as openai,
        httpx.AsyncClient() as plain,
        aiohttp.ClientSession() as session,
    ):

        async def with_openai() -> None:
            await openai.chat.completions.create(**BODY)  # type: ignore[call-overload]

        async def with_httpx() -> None:
            (await plain.post(path, json=BODY)).json()

        async def with_aiohttp() -> None:
            async with session.post(path, json=BODY) as response:
                await response.json()

        asks = {"openai": with_openai, "httpx": with_httpx, "aiohttp": with_aiohttp}
        rounds = [{name: await cost_ms(ask) for name, ask in asks.items()} for _ in range(ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in asks}


async def cost_ms(ask: Callable[[], Awaitable[None]]) -> float:
    begun_s = time.process_time()
    for _ in range(REQUESTS):
        await ask()
    return 1000 * (time.process_time() - begun_s) / REQUESTS


def main() -> None:
    port = free_port()
    module = [sys.executable, "-m", "benchmarks.gateway.upstream", str(port)]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "upstream.log"
        with started("direct", module, port, "/", {}, log) as upstream:
            for name, ms in asyncio.run(measure(upstream.url)).items():
                print(f"{name:8} {ms:.2f} ms")


if __name__ == "__main__":
    main()
