"""The command: ``python -m benchmarks.gateway [--json] [--rounds 5] [--seconds 3]``.

Load is a closed loop of clients in this process. The three servers take turns, round by
round, so that what else the machine does falls on all of them; figures are medians of
rounds. ``rps`` is measured with `BUSY` clients, latency with `CALM`. What a gateway adds is
its p99 less that of the upstream asked directly, in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.gateway.servers import KEY, Server, three

BUSY = 32
CALM = 2
WARM_UP_REQUESTS = 200
QUESTION = "Where is my parcel? It should have been here on Tuesday. " * 4
#: What measures the semantic cache, where it is built: `measure_p99_ms() -> float`.
LOOKUP = "benchmarks.gateway.cache_lookup"


@dataclass(frozen=True)
class Round:
    """What one server did in one round."""

    requests: int
    seconds: float
    cpu_s: float
    latencies_ms: tuple[float, ...]

    @property
    def rps(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_s / self.requests

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def play(server: Server, clients: int, seconds: float, *, stream: bool) -> Round:
    """Ask `server` with so many clients at once, each with one request after the other."""
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": stream,
    }
    raw = msgspec.json.encode(body)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    url = f"{server.url}/v1/chat/completions"
    latencies: list[float] = []
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(until_s: float) -> None:
            while (begun_s := time.perf_counter()) < until_s:
                async with session.post(url, data=raw) as response:
                    answer = await response.read()
                if response.status != 200 or b"parcel" not in answer:
                    raise RuntimeError(f"{server.name}: {response.status} {answer[:200]!r}")
                latencies.append(1000 * (time.perf_counter() - begun_s))

        begun_s, cpu_s = time.perf_counter(), server.cpu_s()
        await asyncio.gather(*(ask(begun_s + seconds) for _ in range(clients)))
        taken_s = time.perf_counter() - begun_s
        return Round(len(latencies), taken_s, server.cpu_s() - cpu_s, tuple(latencies))


async def measure(servers: tuple[Server, ...], rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures of all servers."""
    found: dict[str, list[Round]] = {}
    for server in servers:
        await play(server, BUSY, seconds / 2, stream=False)
        await play(server, CALM, seconds / 2, stream=True)
    for number in range(rounds):
        for kind, clients, stream in (
            ("busy", BUSY, False),
            ("calm", CALM, False),
            ("stream", BUSY, True),
        ):
            for server in servers:
                played = await play(server, clients, seconds, stream=stream)
                found.setdefault(f"{server.name} {kind}", []).append(played)
                said = f"round {number + 1} {kind:6} {server.name:8} {played.rps:7.0f}/s"
                print(
                    f"{said} {played.cpu_ms:6.2f} ms CPU, p50 {played.quantile_ms(0.5):7.2f} ms,"
                    f" p99 {played.quantile_ms(0.99):7.2f} ms",
                    file=sys.stderr,
                )
    return summarize(found)


def summarize(found: dict[str, list[Round]]) -> dict[str, Any]:
    """Return medians over the rounds, and the ratios of rounds that stood side by side."""

    def median(name: str, figure: str) -> float:
        return statistics.median(getattr(each, figure) for each in found[name])

    def ratio(kind: str, figure: str) -> float:
        pairs = zip(found[f"kizashi {kind}"], found[f"litellm {kind}"], strict=True)
        return statistics.median(getattr(a, figure) / getattr(b, figure) for a, b in pairs)

    def added(name: str) -> list[float]:
        pairs = zip(found[f"{name} calm"], found["direct calm"], strict=True)
        return [a.quantile_ms(0.99) - b.quantile_ms(0.99) for a, b in pairs]

    added_p99 = {name: statistics.median(added(name)) for name in ("kizashi", "litellm")}
    shown: dict[str, Any] = {
        "rps_vs_litellm": ratio("busy", "rps"),
        "added_p99_vs_litellm": added_p99["kizashi"] / added_p99["litellm"],
        "cpu_vs_litellm": ratio("busy", "cpu_ms"),
        "streams_rps_vs_litellm": ratio("stream", "rps"),
    }
    for name in ("kizashi", "litellm"):
        shown[f"{name}_rps"] = median(f"{name} busy", "rps")
        shown[f"{name}_streams_rps"] = median(f"{name} stream", "rps")
        shown[f"{name}_cpu_ms_per_request"] = median(f"{name} busy", "cpu_ms")
        shown[f"{name}_added_p99_ms"] = added_p99[name]
    return {key: round(value, 3) for key, value in shown.items()}


def cache_lookup_p99_ms() -> float | None:
    """Return what the semantic cache's own measurement says; None where there is none."""
    if importlib.util.find_spec(LOOKUP) is None:
        return None
    return float(importlib.import_module(LOOKUP).measure_p99_ms())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the marks as the last line of stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    given = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(prefix="kizashi-bench-")
    with temporary as directory, three(Path(directory)) as servers:
        shown = asyncio.run(measure(servers, given.rounds, given.seconds))
    shown["cache_lookup_p99_ms"] = cache_lookup_p99_ms()
    if given.json:
        print(json.dumps(shown), flush=True)
        return
    for name, value in shown.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
