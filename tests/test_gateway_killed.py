"""The process: Kafka away, killed under load, started again; every event is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from openai import APIError, AsyncOpenAI, DefaultAsyncHttpxClient
from prometheus_client.parser import text_string_to_metric_families

from gateway.fake_provider import FakeProvider, Reply
from gateway.server import listen, serve
from pipeline.broker import Broker
from pipeline.config import KafkaSettings
from pipeline.topics import create_topics
from tests.support.feedback import make_feedback
from tests.support.gateway import KEY
from tests.support.kafka import consume, own_broker, settings_for, unique_prefix

__all__ = ["own_broker"]
ASK: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]
LOAD_S = 3.0
START_TIMEOUT_S = 60.0

CONFIG = """
[kafka]
bootstrap_servers = "{kafka.bootstrap_servers}"
events_topic = "{kafka.events_topic}"
feedback_topic = "{kafka.feedback_topic}"
[[gateway.upstreams]]
name = "fake"
base_url = "http://127.0.0.1:{upstream}/v1"
[[gateway.models]]
name = "gpt-4o"
targets = [{{upstream = "fake", model = "gpt-4o"}}]
[gateway.events]
spool = "{spool}"
"""


@contextlib.contextmanager
def running(config: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Give a gateway that answers."""
    command = [sys.executable, "-m", "pipeline", "--config", str(config), "gateway"]
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def client_of(port: int) -> AsyncIterator[AsyncOpenAI]:
    http = DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    url = f"http://127.0.0.1:{port}/v1"
    async with AsyncOpenAI(api_key=KEY, base_url=url, max_retries=0, http_client=http) as client:
        yield client


async def load(port: int, seconds: float, process: subprocess.Popen[bytes] | None) -> set[str]:
    """Ask for a while; return the ids of the requests that were answered. Then kill, if told."""
    answered: set[str] = set()
    until_s = time.monotonic() + seconds

    async def ask_on(client: AsyncOpenAI) -> None:
        while True:
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model="gpt-4o", messages=ASK
                )
            except APIError:
                return
            answered.add(raw.headers["x-request-id"])
            if process is None and time.monotonic() > until_s:
                return

    async with client_of(port) as client:
        asking = [asyncio.ensure_future(ask_on(client)) for _ in range(8)]
        if process is not None:
            await asyncio.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        await asyncio.gather(*asking)
    return answered


def counted(port: int) -> dict[str, float]:
    """What the gateway's metrics say of its events."""
    with httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as client:
        text = client.get(f"http://127.0.0.1:{port}/metrics").text
    return {
        next(iter(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("kizashi_gateway_events")
    }


def now_ms() -> int:
    return round(time.time() * 1000)


def free_port() -> int:
    with listen("127.0.0.1", 0) as listening:
        return int(listening.getsockname()[1])


def write_config(directory: Path, kafka: KafkaSettings, upstream: int) -> Path:
    text = CONFIG.format(kafka=kafka, upstream=upstream, spool=directory / "spool")
    config = directory / "kizashi.toml"
    config.write_text(text, encoding="utf-8")
    return config


async def test_a_kill_while_kafka_is_away_loses_nothing_uncounted(
    tmp_path: Path, own_broker: Broker
) -> None:
    kafka = settings_for(own_broker.bootstrap_servers, unique_prefix())
    create_topics(kafka)
    own_broker.kill()
    async with serve(FakeProvider(lambda _: Reply(first_s=0.01)), lifespan=False) as upstream:
        config, port = write_config(tmp_path, kafka, upstream), free_port()
        with running(config, port) as process:
            async with client_of(port) as client:
                await client.post(
                    "/feedback", cast_to=object, body=make_feedback("f", time_ms=now_ms())
                )
            answered = await load(port, LOAD_S, process)
        own_broker.restart()
        with running(config, port) as process:
            answered |= await load(port, 0.5, None)
            deadline_s = time.monotonic() + 60
            while (found := await asyncio.to_thread(counted, port))["taken"] > found["sent"] + sum(
                n for reason, n in found.items() if reason not in {"taken", "sent"}
            ):
                assert time.monotonic() < deadline_s, found
                await asyncio.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            # uvicorn raises the signal again once everything is over.
            assert await asyncio.to_thread(process.wait, 30) == -signal.SIGTERM
    assert [record.key for record in consume(kafka, kafka.feedback_topic)] == [b"f"]
    arrived = {msgspec.json.decode(r.value)["event.id"] for r in consume(kafka, kafka.events_topic)}
    missing = answered - arrived
    assert len(answered) > 50
    assert len(missing) <= found["killed"]
    lost = {reason: n for reason, n in found.items() if reason not in {"taken", "sent"} and n}
    assert lost.keys() <= {"killed"}
    # Answers that were under way when it was killed make no more than the load had.
    assert found["killed"] <= 8
    assert not list((tmp_path / "spool").glob("*.segment"))
