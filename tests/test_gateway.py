"""The gateway as OpenAI's client sees it: chats, streams, embeddings, errors, one event each."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from openai import (
    APIError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)

from gateway.asked import Asked
from gateway.fake_provider import Reply
from gateway.keys import read_keys
from gateway.serving import LONG_BYTES
from gateway.stages import Checked, Stages
from pipeline.canary.asking import CANARY_HEADER
from pipeline.errors import ConfigError
from pipeline.gateway_settings import GatewaySettings
from schemas.codec import decode_event
from schemas.event import Received
from tests.support.gateway import KEY, Stand, stand

ASK: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]


def event_of(stand_: Stand) -> dict[str, Any]:
    """The only event, which the pipeline's codec must take."""
    [raw] = stand_.events.raws
    now_ms = int(stand_.gateway.clocks.wall_s() * 1000)
    assert isinstance(decode_event(raw, now_ms), Received)
    return stand_.events.decoded[0]


async def test_a_chat_is_answered_and_makes_one_event() -> None:
    async with stand() as s:
        answer = await s.client.chat.completions.create(
            model="gpt-4o",
            messages=ASK,
            temperature=0.5,
            max_tokens=50,
            user="u1",
            extra_headers={"X-Kizashi-Route": "support", "X-Kizashi-Prompt-Version": "v7"},
        )
        assert answer.choices[0].message.content == Reply().text
        event = event_of(s)
        assert event["gen_ai.request.model"] == "gpt-4o"
        assert event["gen_ai.usage.input_tokens"] == Reply().input_tokens
        assert event["gen_ai.response.finish_reasons"] == ["stop"]
        assert event["prompt.text"] == "Where is my parcel?"
        assert event["response.text"] == Reply().text
        assert event["gateway.route"] == "support"
        assert event["gen_ai.prompt.version"] == "v7"
        assert event["gateway.user"] == "u1"
        assert event["gateway.attempts"] == 1
        assert "error.type" not in event


async def test_a_stream_comes_in_pieces_and_its_tokens_are_known() -> None:
    async with stand() as s:
        stream = await s.client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True)
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == Reply().text
        # The client has not asked for usage, so it gets none.
        assert all(chunk.choices for chunk in chunks)
        event = event_of(s)
        assert event["gen_ai.request.stream"] is True
        assert event["gen_ai.usage.output_tokens"] == Reply().output_tokens
        assert event["response.text"] == Reply().text
        first_s = event["gen_ai.response.time_to_first_chunk"]
        assert 0 < first_s <= event["gen_ai.client.operation.duration"]


async def test_a_client_that_asks_for_usage_gets_it() -> None:
    async with stand() as s:
        stream = await s.client.chat.completions.create(
            model="gpt-4o", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == Reply().input_tokens


async def test_texts_are_embedded() -> None:
    async with stand() as s:
        answer = await s.client.embeddings.create(
            model="gpt-4o", input=["a", "b"], encoding_format="float"
        )
        assert [d.index for d in answer.data] == [0, 1]
        assert event_of(s)["gen_ai.operation.name"] == "embeddings"


async def test_models_are_listed() -> None:
    async with stand({"gpt-4o": None, "small": None}) as s:
        assert [m.id async for m in s.client.models.list()] == ["gpt-4o", "small"]
        assert (await s.client.models.retrieve("small")).id == "small"
        with pytest.raises(NotFoundError):
            await s.client.models.retrieve("large")


async def test_a_pinned_version_is_what_the_upstream_is_asked_for() -> None:
    async with stand(
        model={"targets": [{"upstream": "gpt-4o", "model": "gpt-4o-2024-08-06"}]}
    ) as s:
        await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert s.provider.seen[0]["model"] == "gpt-4o-2024-08-06"
        event = event_of(s)
        assert event["gen_ai.request.model"] == "gpt-4o"
        assert event["gen_ai.response.model"] == "gpt-4o-2024-08-06"


# --- Errors ----------------------------------------------------------------------------------


async def test_an_unknown_model_is_not_found_and_still_makes_an_event() -> None:
    async with stand() as s:
        with pytest.raises(NotFoundError) as caught:
            await s.client.chat.completions.create(model="nope", messages=ASK)
        assert caught.value.code == "model_not_found"
        assert event_of(s)["error.type"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_a_body_that_cannot_be_read_names_the_key(body: dict[str, Any], param: str) -> None:
    async with stand() as s:
        with pytest.raises(BadRequestError) as caught:
            await s.client.chat.completions.create(model="gpt-4o", messages=ASK, extra_body=body)
        assert (caught.value.code, caught.value.param) == ("invalid_request", param)
        assert s.provider.counts["requests"] == 0


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model": 5}', b'{"model": ""}', b"\xff"])
async def test_what_is_no_request_is_refused_without_an_event(raw: bytes) -> None:
    async with stand() as s, httpx.AsyncClient() as client:
        answer = await client.post(f"{s.url}/v1/chat/completions", content=raw)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_request"
        assert s.events.raws == []
        assert (
            'turned_away_total{code="invalid_request"} 1'
            in (await client.get(f"{s.url}/metrics")).text
        )


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with stand(body_bytes=2_000) as s, httpx.AsyncClient() as client:
        answer = await client.post(f"{s.url}/v1/chat/completions", content=b"x" * 3_000)
        assert answer.status_code == 413


async def test_secrets_of_an_upstream_do_not_reach_the_client() -> None:
    canary = "sk-live-CANARY at host db-7.internal"

    def fail(_: dict[str, Any]) -> Reply:
        return Reply(status=400, code="bad", message=f"{canary}: {ASK[0]['content']}")

    async with stand({"gpt-4o": fail}) as s, httpx.AsyncClient() as client:
        answer = await client.post(
            f"{s.url}/v1/chat/completions",
            json={"model": "gpt-4o", "messages": ASK},
            headers={"Accept-Language": "ja-JP,ja;q=0.9,en;q=0.5"},
        )
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["code"] == "upstream_refused_request"
        assert error["message"] == "モデルがリクエストを受け付けませんでした。"
        assert error["request_id"] == answer.headers["x-request-id"]
        assert event_of(s)["event.id"] == error["request_id"]
        for secret in ("CANARY", "internal", "parcel", "127.0.0.1", "Traceback"):
            assert secret not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (Reply(status=429, retry_after_s=700), RateLimitError, "upstream_rate_limited"),
        (Reply(status=500), InternalServerError, "upstream_unavailable"),
        (Reply(status=401), InternalServerError, "upstream_unavailable"),
        (Reply(cut_after=0), InternalServerError, "upstream_unavailable"),
    ],
)
async def test_failures_of_an_upstream_have_stable_codes(
    reply: Reply, error: type[APIError], code: str
) -> None:
    async with stand({"gpt-4o": lambda _: reply}) as s:
        with pytest.raises(error) as caught:
            await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert caught.value.code == code
        assert event_of(s)["error.type"] == code


async def test_what_breaks_in_the_gateway_is_an_internal_error() -> None:
    async with stand() as s:
        s.gateway.models["gpt-4o"] = None  # type: ignore[assignment]
        with pytest.raises(InternalServerError) as caught:
            await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert caught.value.code == "internal_error"
        assert "NoneType" not in str(caught.value)
        assert event_of(s)["error.type"] == "internal_error"


async def test_addresses_that_are_not_there_are_errors_of_the_same_form() -> None:
    async with stand() as s, httpx.AsyncClient() as client:
        assert (await client.get(f"{s.url}/nope")).json()["error"]["code"] == "not_found"
        wrong = await client.get(f"{s.url}/v1/chat/completions")
        assert wrong.json()["error"]["code"] == "method_not_allowed"


# --- Keys ------------------------------------------------------------------------------------


async def test_a_key_gives_the_tenant_and_a_wrong_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACME_KEY", "sk-test-0123456789abcdef")
    keys = [{"name": "acme", "key_env": "ACME_KEY", "tenant": "acme", "models": ["gpt-4o"]}]
    async with stand({"gpt-4o": None, "other": None}, keys=keys) as s:
        await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert event_of(s)["gateway.tenant"] == "acme"
        with pytest.raises(APIError) as caught:
            await s.client.chat.completions.create(model="other", messages=ASK)
        assert caught.value.code == "model_not_allowed"
        assert [m.id async for m in s.client.models.list()] == ["gpt-4o"]
        stranger = s.client.with_options(api_key="sk-nobody-0123456789")
        for ask in (
            stranger.chat.completions.create(model="gpt-4o", messages=ASK),
            stranger.models.retrieve("gpt-4o"),
        ):
            with pytest.raises(AuthenticationError):
                await ask
        assert len(s.events.raws) == 2


# --- Canaries, metrics ------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
async def test_only_a_key_that_may_says_that_it_asks_for_a_canary(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    keys = [{"name": "canary", "key_env": "CANARY_KEY", "canary": allowed}]
    async with stand(keys=keys) as s:
        await s.client.chat.completions.create(
            model="gpt-4o", messages=ASK, extra_headers={CANARY_HEADER: "refund"}
        )
        assert event_of(s).get("gateway.canary") == ("refund" if allowed else None)


async def test_who_says_nothing_is_a_user_without_keys_too() -> None:
    async with stand() as s:
        for headers in ({}, {CANARY_HEADER: ""}, {CANARY_HEADER: "refund"}):
            await s.client.chat.completions.create(
                model="gpt-4o", messages=ASK, extra_headers=headers
            )
        said = [event.get("gateway.canary") for event in s.events.decoded]
        assert said == [None, None, "refund"]
        # The pipeline takes it, and knows it for a canary that nobody has judged yet.
        received = decode_event(s.events.raws[-1], int(s.gateway.clocks.wall_s() * 1000))
        assert isinstance(received, Received)
        assert (received.event.canary, received.event.canary_passed) == ("refund", None)


async def test_metrics_may_have_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRAPER_KEY", "prometheus-0123456789")
    for configured, given, status in (
        ({}, "", 200),
        ({"metrics_key_env": "SCRAPER_KEY"}, "", 401),
        ({"metrics_key_env": "SCRAPER_KEY"}, f"Bearer {KEY}", 401),
        ({"metrics_key_env": "SCRAPER_KEY"}, "Basic prometheus-0123456789", 401),
        ({"metrics_key_env": "SCRAPER_KEY"}, "Bearer prometheus-0123456789", 200),
    ):
        async with stand(**configured) as s, httpx.AsyncClient() as http:
            answer = await http.get(f"{s.url}/metrics", headers={"Authorization": given})
            assert answer.status_code == status
            assert ("llm_requests" in answer.text) == (status == 200)


def test_a_key_for_metrics_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="metrics_key"):
        read_keys(GatewaySettings(metrics_key_env="NOT_SET_ANYWHERE"))


# --- Long requests ----------------------------------------------------------------------------


class Slow:
    """An input guard, and a context window, that take their time; notes where they were called."""

    def __init__(self, started: threading.Event, go_on: threading.Event) -> None:
        self.started, self.go_on = started, go_on
        self.threads: list[bool] = []

    def check(self, asked: Asked) -> Checked:
        self.threads.append(threading.current_thread() is threading.main_thread())
        if not self.threads[-1]:
            self.started.set()
            assert self.go_on.wait(10)
        return Checked(asked.with_messages([{"role": "user", "content": "hidden"}]))


async def test_a_long_request_is_looked_through_beside_the_loop() -> None:
    guard = Slow(threading.Event(), threading.Event())
    async with stand(stages=Stages(input_guards=(guard,))) as s:
        long: list[Any] = [{"role": "user", "content": "x" * LONG_BYTES}]
        asking = asyncio.ensure_future(
            s.client.chat.completions.create(model="gpt-4o", messages=long)
        )
        while not guard.started.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        # The loop serves others meanwhile.
        await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        guard.go_on.set()
        await asking
        assert guard.threads == [False, True]


async def test_what_a_guard_hides_is_hidden_though_the_client_went_away() -> None:
    guard = Slow(threading.Event(), threading.Event())
    async with stand(stages=Stages(input_guards=(guard,))) as s:
        long: list[Any] = [{"role": "user", "content": "secret" * LONG_BYTES}]
        asking = asyncio.ensure_future(
            s.client.chat.completions.create(model="gpt-4o", messages=long)
        )
        while not guard.started.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.sleep(0.05)
        guard.go_on.set()
        while not s.events.raws:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        event = event_of(s)
        assert event["error.type"] == "client_disconnected"
        assert event["prompt.text"] == "hidden"
        assert s.provider.counts["requests"] == 0
