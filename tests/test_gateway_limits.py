"""Limits and metrics: who is told to wait and for how long, and what Prometheus is told."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import fakeredis
import httpx
import pytest
from openai import RateLimitError
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from gateway.asked import Asked
from gateway.errors import GatewayError, choose_language
from gateway.fake_provider import Reply
from gateway.limiting import KeyLimits
from gateway.metrics import Metrics
from pipeline.gateway_settings import KeySettings, LimitSettings
from pipeline.prices import builtin_table
from tests.support.gateway import KEY, Stand, ask, stand

ASK: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]
PRICED = "gpt-4o-2024-08-06"


def limited(monkeypatch: pytest.MonkeyPatch, **limits: int) -> list[dict[str, Any]]:
    monkeypatch.setenv("ACME_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", f"{KEY}-other")
    return [
        {"name": "acme", "key_env": "ACME_KEY", **limits},
        {"name": "other", "key_env": "OTHER_KEY"},
    ]


async def metrics(s: Stand) -> dict[str, dict[tuple[str, ...], float]]:
    async with httpx.AsyncClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as client:
        text = (await client.get(f"{s.url}/metrics")).text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


# --- Limits -----------------------------------------------------------------------------------


async def test_who_asks_too_often_is_told_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stand(keys=limited(monkeypatch, requests_per_min=3)) as s:
        for _ in range(3):
            await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        with pytest.raises(RateLimitError) as caught:
            await s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 81
        assert s.events.decoded[-1]["error.type"] == "rate_limit_exceeded"
        assert s.provider.counts["requests"] == 3
        other = s.client.with_options(api_key=f"{KEY}-other")
        await other.chat.completions.create(model="gpt-4o", messages=ASK)


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_that_were_used_count(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    reply = Reply(input_tokens=40, output_tokens=30)
    keys = limited(monkeypatch, tokens_per_min=100)
    async with stand({"gpt-4o": lambda _: reply}, keys=keys) as s:
        codes = [(await ask(s, stream=stream))[1] for _ in range(3)]
        assert codes[:2] == [None, None]
        assert isinstance(codes[2], RateLimitError)


async def test_gateways_that_share_a_redis_count_together() -> None:
    settings = LimitSettings(redis_url=SecretStr("redis://127.0.0.1:1"))
    server = fakeredis.FakeServer()
    one, two = (
        KeyLimits(settings, fakeredis.FakeAsyncRedis(server=server).connection_pool)
        for _ in range(2)
    )
    key = KeySettings(name="acme", sha256="0" * 64, requests_per_min=4)
    passed = 0
    for limits in (one, two, one, two, one, two):
        passed += await admits(limits, key)
    assert passed == 4
    assert one.away == two.away == 0


@pytest.mark.parametrize("open_when_away", [True, False])
async def test_a_redis_that_is_away_is_counted(open_when_away: bool) -> None:
    url = SecretStr("redis://127.0.0.1:1")
    limits = KeyLimits(LimitSettings(redis_url=url, open_when_away=open_when_away))
    key = KeySettings(name="acme", sha256="0" * 64, requests_per_min=4)
    assert await admits(limits, key) is open_when_away
    assert limits.away == 1


async def admits(limits: KeyLimits, key: KeySettings) -> bool:
    asked = Asked(request_id="r", operation="chat", tenant="", model="m", body={})
    try:
        await limits.admit(key, asked)
    except GatewayError:
        return False
    return True


async def test_what_is_over_the_gateway_itself_is_told_to_come_back() -> None:
    async with stand(requests=1, scripts={"gpt-4o": lambda _: Reply(first_s=0.3)}) as s:
        found = await asyncio.gather(*(ask(s) for _ in range(3)))
        codes = sorted(str(error and error.code) for _, error in found)
        assert codes == ["None", "gateway_overloaded", "gateway_overloaded"]


# --- Metrics ----------------------------------------------------------------------------------


async def test_metrics_hold_counts_tokens_and_costs() -> None:
    reply = Reply(input_tokens=1_000, cached_tokens=400, output_tokens=100)
    target = [{"upstream": "gpt-4o", "model": PRICED}]
    async with stand(
        {"gpt-4o": lambda _: reply}, model={"targets": target}, upstream={"provider": "openai"}
    ) as s:
        await ask(s)
        await ask(s, stream=True)
        await ask(s, model="of a stranger")
        found = await metrics(s)
    assert found["llm_requests_total"] == {
        ("gpt-4o", "ok"): 2,
        ("__other__", "model_not_found"): 1,
    }
    assert found["llm_latency_seconds_count"][("gpt-4o",)] == 2
    assert found["llm_tokens_used_total"][("gpt-4o", "input")] == 2_000
    assert found["llm_tokens_used_total"][("gpt-4o", "cached")] == 800
    # 600 at 2.50, 400 at 1.25 and 100 at 10 USD a million, twice.
    assert found["llm_cost_dollars_total"][("gpt-4o",)] == pytest.approx(2 * 0.003)
    names = ("chat", "openai", "gpt-4o")
    assert found["gen_ai_client_operation_duration_seconds_count"][("", *names)] == 2
    assert found["gen_ai_client_operation_time_to_first_chunk_seconds_count"][names] == 1
    assert found["gen_ai_client_token_usage_sum"][(*names, "output")] == 200


async def test_what_has_no_price_is_counted_and_costs_nothing_known() -> None:
    async with stand({"my-own": None}) as s:
        await ask(s, model="my-own")
        found = await metrics(s)
    assert found["llm_requests_unpriced_total"] == {("my-own",): 1}
    assert ("my-own",) not in found.get("llm_cost_dollars_total", {})


def test_the_names_of_strangers_are_no_labels() -> None:
    counted = Metrics(frozenset({"m"}), builtin_table())
    for number in range(100):
        counted.turn_away("invalid_api_key" if number else "invalid_request")
    assert counted.render().count(b"turned_away_total{") == 2


# --- Languages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("ja", "ja"),
        ("ja-JP,ja;q=0.9,en;q=0.5", "ja"),
        ("en-US,en;q=0.9,ja;q=0.8", "en"),
        ("fr,ja;q=0.1", "ja"),
        ("fr", "en"),
        ("ja;q=0", "en"),
        ("ja;q=nan, *;q=0.5", "en"),
        ("", "en"),
    ],
)
def test_the_clients_language_is_chosen(header: str, language: str) -> None:
    assert choose_language(header, "en") == language
