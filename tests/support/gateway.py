"""A gateway with fake providers behind it, in the test's own loop, and OpenAI's real client."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from openai import APIError, AsyncOpenAI, DefaultAsyncHttpxClient

from gateway.app import build_app
from gateway.build import open_gateway
from gateway.fake_provider import FakeProvider, Script
from gateway.feedback_door import FeedbackSink
from gateway.server import serve
from gateway.serving import Gateway
from gateway.stages import NO_STAGES, Stages
from pipeline.config import Config

KEY = "sk-test-0123456789abcdef"


@dataclass
class Events:
    """An event sink that keeps what it is given."""

    raws: list[bytes] = field(default_factory=list)

    def put(self, raw: bytes) -> None:
        self.raws.append(raw)

    @property
    def decoded(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(raw) for raw in self.raws]


@dataclass
class Ratings:
    """A feedback sink that keeps what it is given, as long as there is room."""

    raws: list[bytes] = field(default_factory=list)
    has_room: bool = True

    async def keep(self, raws: Sequence[bytes]) -> bool:
        self.raws += raws if self.has_room else ()
        return self.has_room

    @property
    def decoded(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(raw) for raw in self.raws]


@dataclass
class Stand:
    """A running gateway."""

    client: AsyncOpenAI
    providers: Mapping[str, FakeProvider]
    events: Events
    ratings: Ratings
    gateway: Gateway
    url: str

    @property
    def provider(self) -> FakeProvider:
        [provider] = self.providers.values()
        return provider


async def ask(
    stand_: Stand, text: str = "Where is my parcel?", *, model: str = "gpt-4o", stream: bool = False
) -> tuple[str, APIError | None]:
    """Return what a client hears, and the error that it ends with."""
    messages: list[Any] = [{"role": "user", "content": text}]
    create = stand_.client.chat.completions.create
    heard = ""
    try:
        if not stream:
            answer = await create(model=model, messages=messages)
            return answer.choices[0].message.content or "", None
        async for chunk in await create(model=model, messages=messages, stream=True):
            heard += chunk.choices[0].delta.content or ""
    except APIError as error:
        return heard, error
    return heard, None


@asynccontextmanager
async def stand(
    scripts: Mapping[str, Script | None] | None = None,
    *,
    stages: Stages | None = NO_STAGES,
    feedback_sink: FeedbackSink | None = None,
    upstream: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Stand]:
    """Give a gateway with one fake provider for each script, and a model of the same name.

    `upstream` and `model` are settings for all of them. With no `stages` the settings make them;
    with no `feedback_sink` feedback goes to the stand's own.
    """
    scripts = scripts or {"gpt-4o": None}
    providers = {name: FakeProvider(script) for name, script in scripts.items()}
    events, ratings = Events(), Ratings()
    async with AsyncExitStack() as stack:
        ports = {
            name: await stack.enter_async_context(serve(provider, lifespan=False))
            for name, provider in providers.items()
        }
        config = Config(
            gateway={
                "upstreams": [
                    {"name": name, "base_url": f"http://127.0.0.1:{port}/v1", **(upstream or {})}
                    for name, port in ports.items()
                ],
                "models": [
                    {"name": n, "targets": [{"upstream": n, "model": n}], **(model or {})}
                    for n in ports
                ],
                "backoff_s": 0.001,
                **settings,
            }
        )
        opened: list[Gateway] = []

        @asynccontextmanager
        async def open_one() -> AsyncIterator[Gateway]:
            async with open_gateway(
                config, sink=events, feedback=feedback_sink or ratings, stages=stages
            ) as gateway:
                opened.append(gateway)
                yield gateway

        port = await stack.enter_async_context(serve(build_app(open_one)))
        url = f"http://127.0.0.1:{port}"
        # Nothing here is TLS, and reading the authorities takes a quarter of a second.
        http = DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        client = AsyncOpenAI(
            api_key=KEY, base_url=f"{url}/v1", max_retries=0, timeout=10, http_client=http
        )
        await stack.enter_async_context(client)
        yield Stand(client, providers, events, ratings, opened[0], url)
