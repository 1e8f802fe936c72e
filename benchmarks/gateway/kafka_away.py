"""Kafka away for a minute under load, and the gateway killed in its middle: what became of it all.

    python -m benchmarks.gateway.kafka_away [--seconds 60] [--how kill|pause] [--json]

A real broker, a real gateway process, OpenAI's own client, whole answers and streams by turns.
Half-way through, the gateway is killed with SIGKILL and started again on its spool. Afterwards
every id that a client was given is looked for on the events topic. Latencies are the clients',
by what the broker was when the request began; those over the kill itself get no answer. Exit
status 1: an event is neither there nor counted as lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition
from openai import APIError, AsyncOpenAI, DefaultAsyncHttpxClient
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gateway.servers import KEY, OURS, free_port, started
from pipeline.broker import Broker
from pipeline.config import KafkaSettings
from pipeline.topics import client_settings, create_topics

CLIENTS = 8
#: Between two requests of a client: the load is what one core can do beside its measurement.
PAUSE_S = 0.02
AROUND_S = 10.0
DRAIN_TIMEOUT_S = 180.0
ASK: list[Any] = [{"role": "user", "content": "Where is my parcel? " * 40}]


@dataclass
class Notes:
    """What the clients saw."""

    #: What the broker is: "before", "away", "back".
    phase: str = "before"
    answered: set[str] = field(default_factory=set)
    unanswered: int = 0
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    spool_bytes_max: float = 0.0


async def ask(client: AsyncOpenAI, *, stream: bool) -> str:
    """Return the id of a request that was answered to its end."""
    create = client.chat.completions.with_raw_response.create
    raw = await create(model="gpt-4o", messages=ASK, stream=stream)
    if stream:
        heard = ""
        async for chunk in raw.parse():  # type: ignore[attr-defined]
            heard += chunk.choices[0].delta.content or "" if chunk.choices else ""
        if not heard.strip().endswith("noon."):
            raise RuntimeError("a stream ended early without an error")
    return str(raw.headers["x-request-id"])


async def load(client: AsyncOpenAI, notes: Notes, over: asyncio.Event, number: int) -> None:
    """One client: request after request, until it is over."""
    while not over.is_set():
        number += 1
        phase, begun_s = notes.phase, time.perf_counter()
        try:
            notes.answered.add(await ask(client, stream=number % 2 == 0))
            taken_ms = 1000 * (time.perf_counter() - begun_s)
            notes.latencies_ms.setdefault(phase, []).append(taken_ms)
        except APIError:
            notes.unanswered += 1
        await asyncio.sleep(PAUSE_S)


def counted(url: str) -> dict[str, float]:
    """What the gateway says of its events."""
    request = urllib.request.urlopen(f"{url}/metrics", timeout=5)  # noqa: S310 - our own address
    with request as answer:
        text = answer.read().decode()
    found = {
        next(iter(sample.labels.values()), "spool_bytes"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("kizashi_gateway_events", "kizashi_gateway_spool"))
    }
    found["lost"] = sum(n for k, n in found.items() if k not in {"taken", "sent", "spool_bytes"})
    return found


def read_ids(kafka: KafkaSettings) -> Counter[str]:
    """Return the ids on the events topic, and how often each is there."""
    consumer = KafkaConsumer(
        **client_settings(kafka), consumer_timeout_ms=1_000, auto_offset_reset="earliest"
    )
    try:
        parts = [
            TopicPartition(kafka.events_topic, part)
            for part in consumer.partitions_for_topic(kafka.events_topic) or ()
        ]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends, found = consumer.end_offsets(parts), Counter[str]()
        while any(consumer.position(part) < ends[part] for part in parts):
            found.update(msgspec.json.decode(each.value)["event.id"] for each in consumer)
        return found
    finally:
        consumer.close(autocommit=False)


@contextlib.asynccontextmanager
async def loading(port: int, notes: Notes) -> AsyncIterator[None]:
    """Put the gateway under load for as long as this lasts."""
    over = asyncio.Event()
    http = DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    url = f"http://127.0.0.1:{port}/v1"
    async with AsyncOpenAI(api_key=KEY, base_url=url, max_retries=0, http_client=http) as client:
        running = [asyncio.ensure_future(load(client, notes, over, n)) for n in range(CLIENTS)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*running)


async def drain(url: str, notes: Notes) -> tuple[dict[str, float], float]:
    """Wait until nothing waits any more; return the books, and how long that took."""
    begun_s = time.monotonic()
    while True:
        books = await asyncio.to_thread(counted, url)
        notes.spool_bytes_max = max(notes.spool_bytes_max, books["spool_bytes"])
        if books["taken"] <= books["sent"] + books["lost"]:
            return books, time.monotonic() - begun_s
        if time.monotonic() - begun_s > DRAIN_TIMEOUT_S:
            raise RuntimeError(f"events still wait: {books}")
        await asyncio.sleep(0.2)


async def play(directory: Path, broker: Broker, seconds: float, how: str) -> dict[str, Any]:
    """Play the whole; return what is to be told of it."""
    kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
    create_topics(kafka)
    upstream, port, notes = free_port(), free_port(), Notes()
    config = directory / "kizashi.toml"
    kafka_port = broker.bootstrap_servers.rpartition(":")[2]
    text = OURS.format(kafka=kafka_port, upstream=upstream, spool=directory / "spool")
    config.write_text(text, encoding="utf-8")
    module = [sys.executable, "-m", "benchmarks.gateway.upstream", str(upstream)]
    command = [sys.executable, "-m", "pipeline", "--config", str(config), "gateway"]
    ours = ("kizashi", [*command, "--port", str(port)], port, "/health", {"BENCHMARK_KEY": KEY})
    with contextlib.ExitStack() as stack:
        stack.enter_context(started("direct", module, upstream, "/", {}, directory / "up.log"))
        first = stack.enter_context(started(*ours, directory / "first.log"))
        async with loading(port, notes):
            await asyncio.sleep(AROUND_S)
            (broker.kill if how == "kill" else broker.pause)()
            notes.phase = "away"
            await asyncio.sleep(seconds / 2)
            os.kill(first.pid, signal.SIGKILL)
            second = await asyncio.to_thread(
                stack.enter_context, started(*ours, directory / "second.log")
            )
            await asyncio.sleep(seconds / 2)
            notes.spool_bytes_max = (await asyncio.to_thread(counted, second.url))["spool_bytes"]
            await asyncio.to_thread(broker.restart if how == "kill" else broker.resume)
            notes.phase = "back"
            await asyncio.sleep(AROUND_S)
        books, drained_s = await drain(second.url, notes)
    arrived = await asyncio.to_thread(read_ids, kafka)
    return {**tell(notes, books, arrived), "drained_s": drained_s}


def tell(notes: Notes, books: dict[str, float], arrived: Counter[str]) -> dict[str, Any]:
    """Return the figures."""
    missing = notes.answered - arrived.keys()
    told: dict[str, Any] = {
        "answered": len(notes.answered),
        "unanswered": notes.unanswered,
        "arrived": len(arrived),
        "repeated": arrived.total() - len(arrived),
        "missing": len(missing),
        "lost": {k: int(n) for k, n in books.items() if n and k not in _NO_LOSS},
        "unaccounted": max(0, len(missing) - int(books["lost"])),
        "spool_mib": notes.spool_bytes_max / 2**20,
    }
    for phase, latencies in notes.latencies_ms.items():
        told[f"{phase}_requests"] = len(latencies)
        told[f"{phase}_p50_ms"] = quantile(latencies, 0.5)
        told[f"{phase}_p99_ms"] = quantile(latencies, 0.99)
    return told


_NO_LOSS = frozenset({"taken", "sent", "spool_bytes", "lost"})


def quantile(latencies_ms: Sequence[float], q: float) -> float:
    ordered = sorted(latencies_ms)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for which Kafka is away")
    parser.add_argument("--how", choices=("kill", "pause"), default="kill")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(prefix="kizashi-away-")
    with temporary as directory, Broker() as broker:
        told = asyncio.run(play(Path(directory), broker, given.seconds, given.how))
    told = {k: round(v, 2) if isinstance(v, float) else v for k, v in told.items()}
    if given.json:
        print(json.dumps(told), flush=True)
    else:
        print(*(f"{name:18} {value}" for name, value in told.items()), sep="\n")
    sys.exit(1 if told["unaccounted"] else 0)


if __name__ == "__main__":
    main()
