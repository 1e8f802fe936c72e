"""Ten thousand streams over sockets, most of them cut, and what is left of them afterwards.

    python -m benchmarks.gateway.cut_streams [--streams 10000] [--at-once 50]

By turns a stream is read to its end, left by its client, broken by its upstream, or stopped by
a guardrail. Gateway, upstream and clients share one process, so that it can be counted what
each stream leaves: tasks, sockets, connections of the pool, and an event. Exit status 1:
something was left, or an event is missing or says another end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from gateway.app import build_app
from gateway.build import build_stages, open_gateway
from gateway.fake_provider import FakeProvider, Reply
from gateway.server import serve
from gateway.serving import Gateway
from pipeline.config import Config

#: How a stream ends, and the `error.type` of its event.
ENDS = {
    "whole": "ok",
    "left": "client_disconnected",
    "broken": "stream_broken",
    "stopped": "answer_blocked",
}
_SETTLE_S = 30.0


class Ends:
    """An event sink that counts how requests ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def put(self, raw: bytes) -> None:
        event = msgspec.json.decode(raw)
        self.counts[event.get("error.type", "ok")] += 1


def script(body: dict[str, Any]) -> Reply:
    """What the upstream does, by the question."""
    match body["messages"][0]["content"]:
        case "left":
            return Reply(text="word " * 20_000, piece_characters=5, piece_s=0.001)
        case "broken":
            return Reply(text="word " * 10, cut_after=3)
        case "stopped":
            return Reply(text="Pay with 4111 1111 1111 1111, as always. " * 3)
        case _:
            return Reply(text="word " * 10)


def configuration(upstream: int) -> Config:
    return Config(
        gateway={
            "upstreams": [
                {
                    "name": "fake",
                    "base_url": f"http://127.0.0.1:{upstream}/v1",
                    # Its broken streams are the point.
                    "breaker_failures": 10_000,
                }
            ],
            "models": [{"name": "m", "targets": [{"upstream": "fake", "model": "m"}]}],
            "guardrails": {"output": {"card": "block"}},
        }
    )


@asynccontextmanager
async def standing(ends: Ends) -> AsyncIterator[tuple[Gateway, FakeProvider, str]]:
    """Give a running gateway, its upstream and its address."""
    provider, opened = FakeProvider(script, seen_max=1), list[Gateway]()
    async with serve(provider, lifespan=False) as upstream:
        config = configuration(upstream)

        @asynccontextmanager
        async def open_one() -> AsyncIterator[Gateway]:
            async with open_gateway(config, sink=ends, stages=build_stages(config)) as gateway:
                opened.append(gateway)
                yield gateway

        async with serve(build_app(open_one)) as port:
            yield opened[0], provider, f"http://127.0.0.1:{port}/v1/chat/completions"


async def play(session: aiohttp.ClientSession, url: str, end: str) -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": end}]}
    async with session.post(url, json=body) as response:
        if end == "left":
            await response.content.readany()
            response.close()
            return
        await response.read()


def sockets() -> int:
    """Sockets that this process has open."""
    links = (str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return sum(link.startswith("socket:") for link in links)


async def settle(gateway: Gateway, provider: FakeProvider, ends: Ends, streams: int) -> None:
    """Wait until nothing is under way."""
    for _ in range(round(_SETTLE_S / 0.02)):
        quiet = gateway.served == 0 and provider.counts["streams_open"] == 0
        if quiet and ends.counts.total() >= streams:
            return
        await asyncio.sleep(0.02)


async def measure(streams: int, at_once: int) -> dict[str, Any]:
    """Play the streams; return what was open before and after them, and how they ended."""
    ends, kinds = Ends(), list(ENDS)
    async with standing(ends) as (gateway, provider, url):

        async def play_some(first: int, number: int) -> None:
            connector = aiohttp.TCPConnector(limit=at_once, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                for start in range(first, first + number, at_once):
                    numbers = range(start, min(start + at_once, first + number))
                    await asyncio.gather(*(play(session, url, kinds[n % 4]) for n in numbers))
            await settle(gateway, provider, ends, first + number)
            await asyncio.sleep(0.5)
            gc.collect()

        # What is opened once and kept: threads' pipes, the pool's idle connections.
        await play_some(0, 4 * at_once)
        before = {"tasks": len(asyncio.all_tasks()), "sockets": sockets()}
        ends.counts.clear()
        await play_some(0, streams)
        session = gateway.upstreams["fake"]._session
        acquired = session.connector._acquired if session and session.connector else ()  # type: ignore[attr-defined]
        return {
            "before": before,
            "after": {"tasks": len(asyncio.all_tasks()), "sockets": sockets()},
            "pool_in_use": len(acquired),
            "under_way": gateway.served,
            "upstream_open": provider.counts["streams_open"],
            "ends": dict(ends.counts),
        }


def find_faults(found: dict[str, Any], streams: int) -> list[str]:
    """Return what should not be as it is."""
    faults = [f"{key} is {found[key]}" for key in _ZERO if found[key]]
    for what, before in found["before"].items():
        if found["after"][what] > before:
            faults.append(f"{what}: {before} before, {found['after'][what]} after")
    wanted = Counter(list(ENDS.values())[n % 4] for n in range(streams))
    return faults + ([] if wanted == found["ends"] else [f"ends should be {dict(wanted)}"])


_ZERO = ("pool_in_use", "under_way", "upstream_open")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=50)
    given = parser.parse_args()
    # The upstream and the gateway say of each broken stream that it broke.
    logging.disable(logging.ERROR)
    found = asyncio.run(measure(given.streams, given.at_once))
    print(*(f"{name:14} {value}" for name, value in found.items()), sep="\n")
    faults = find_faults(found, given.streams)
    print(*faults, sep="\n", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
