"""Run in LiteLLM's own environment: drives the real package, with our callback in its way.

``library FOLDER``: starts of the callback, and calls of every kind; what came of the starts goes
to ``starts.json`` there, and the events, one a line, to ``events.ndjson``.
``proxy CONFIG``: two requests to the real proxy; the events go to Kafka.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import litellm

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "なぜ?"}]},
]
MARK = {"requester_metadata": {"route": "support", "tenant": "acme", "prompt_name": "triage"}}


async def ask(**changes: Any) -> None:
    asked = {"model": "gpt-4o", "messages": MESSAGES, "mock_response": "Because."} | changes
    try:
        answer = await litellm.acompletion(**asked)
        if asked.get("stream"):
            async for _ in answer:
                pass
    except litellm.exceptions.APIError as error:
        print(type(error).__name__, file=sys.stderr)
    except litellm.exceptions.RateLimitError as error:
        print(type(error).__name__, file=sys.stderr)


async def call_library(events: list[bytes]) -> None:
    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while len(events) < count:  # noqa: ASYNC110 - litellm logs when it likes
                await asyncio.sleep(0.05)

    await ask(metadata=MARK, user="ada", temperature=0.5, max_tokens=50)
    await until(1)
    await ask(stream=True)
    await until(2)
    await ask(mock_response="litellm.RateLimitError")
    await until(3)
    litellm.cache = litellm.Cache()
    await ask(caching=True)
    await until(4)
    await asyncio.sleep(0.5)
    await ask(caching=True)
    await until(5)
    litellm.cache = None
    litellm.turn_off_message_logging = True
    await ask()
    await until(6)
    litellm.turn_off_message_logging = False


def start_callback(servers: str) -> str:
    """Return what it died of; empty when it came up."""
    os.environ["KIZASHI_KAFKA__BOOTSTRAP_SERVERS"] = servers
    try:
        importlib.import_module("litellm_callback")
    except ValueError as error:
        return str(error)
    return ""


def run_library(folder: Path) -> None:
    brokers = ("127.0.0.1:1,kafka.example.com:9092", "[::1]:1")
    starts = {servers: start_callback(servers) for servers in brokers}
    (folder / "starts.json").write_text(json.dumps(starts))
    callback = importlib.import_module("litellm_callback")
    events: list[bytes] = []
    litellm.callbacks = [callback.Kizashi(lambda _, raw: events.append(raw))]
    asyncio.run(call_library(events))
    litellm.completion(model="claude-sonnet-4-20250514", messages=MESSAGES, mock_response="Sync.")
    deadline_s = time.monotonic() + 20
    while len(events) < 7 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    (folder / "events.ndjson").write_bytes(b"\n".join(events))


def run_proxy(config: Path) -> None:
    from fastapi.testclient import TestClient
    from litellm.proxy.proxy_server import app, initialize

    asyncio.run(initialize(config=str(config)))
    key = {"Authorization": f"Bearer {os.environ['LITELLM_MASTER_KEY']}"}
    with TestClient(app) as client:
        for stream in (False, True):
            body = {"model": "house-model", "messages": MESSAGES, "stream": stream}
            body["metadata"] = {"route": "support"}
            answer = client.post("/v1/chat/completions", json=body, headers=key)
            print(answer.status_code, answer.text[:200], file=sys.stderr)
        # The proxy loads the file by itself: to import it would make another one.
        (ours,) = [each for each in litellm.callbacks if type(each).__name__ == "Kizashi"]
        sender = ours._offer.__self__
        deadline_s = time.monotonic() + 30
        while sender.sent < 2 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        print(f"sent {sender.sent}, lost {dict(sender.lost)}", file=sys.stderr)


if __name__ == "__main__":
    {"library": run_library, "proxy": run_proxy}[sys.argv[1]](Path(sys.argv[2]))
