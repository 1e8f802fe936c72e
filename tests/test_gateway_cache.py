"""The semantic cache: whose answers are given to whom, to which questions, and for how long."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from benchmarks.gateway.cache_pairs import read_pairs
from gateway import vectors
from gateway.answer import Usage
from gateway.asked import Asked
from gateway.build import build_cache
from gateway.cache import CONVERSATION_CHARACTERS, Gone, SemanticCache
from gateway.fake_provider import Reply
from gateway.likeness import facts_of, wants_another, wording_of, words_of
from gateway.stages import Looked
from gateway.vectors import Vector, VectorSpace
from pipeline.encoders.static import StaticEncoder
from pipeline.gateway_settings import CacheSettings, GatewaySettings
from tests.support.gateway import KEY, Stand, ask, stand

TEXT = "Where is my parcel?"
ON = {"enabled": True}


def alike(_: str) -> Vector:
    """An encoder to which all texts mean the same: nothing but the space parts them."""
    return np.array([1, 0], np.float32)


def apart(text: str) -> Vector:
    """An encoder to which no two texts mean the same."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    drawn = np.random.default_rng(seed).normal(size=64).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn), np.float32)


def cache_of(encode: Any = alike, **given_: Any) -> SemanticCache:
    chosen = CacheSettings(**{"enabled": True, "same": "facts", **given_})
    return SemanticCache(chosen, frozenset({"m"}), encode)


def asked(text: Any = TEXT, *, tenant: str = "t", key: str = "k", **body: Any) -> Asked:
    cache_control = {name: body.pop(name, False) for name in ("no_cache", "no_store")}
    whole = {"model": "m", "messages": [{"role": "user", "content": text}], **body}
    return Asked(
        request_id="r",
        operation="chat",
        tenant=tenant,
        key=key,
        model=whole["model"],
        body=whole,
        **cache_control,
    )


def completion(text: str = "Here.") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def keep(cache: SemanticCache, request: Asked, text: str = "Here.", now_s: float = 0.0) -> Looked:
    looked = cache.look_up(request, now_s)
    cache.keep(looked, completion(text), now_s, usage=Usage(output_tokens=9), provider="openai")
    return looked


def said(looked: Looked) -> str | None:
    if looked.completion is None:
        return None
    return str(looked.completion["choices"][0]["message"]["content"])


# --- Whose answers ----------------------------------------------------------------------------

OWNERS = st.tuples(st.sampled_from(["", "a", "b", "key a"]), st.sampled_from(["a", "b", "c"]))
ASKED = st.tuples(OWNERS, st.sampled_from([TEXT, "Is it there?", "x" * 3_000]))


@settings(deadline=None)
@given(st.lists(ASKED, max_size=30), st.integers(1, 20))
def test_nobody_is_ever_answered_from_another_tenants_cache(
    requests: list[tuple[tuple[str, str], str]], entries: int
) -> None:
    cache = cache_of(entries=entries)
    for now_s, ((tenant, key), text) in enumerate(requests):
        request = asked(text, tenant=tenant, key=key)
        owner = f"tenant {tenant}" if tenant else f"key {key}"
        looked = cache.look_up(request, now_s)
        assert said(looked) in {None, owner}
        if looked.outcome == "miss":
            keep(cache, request, owner, now_s)
            assert said(cache.look_up(request, now_s)) == owner


def test_keys_of_a_tenant_share_and_keys_without_one_do_not() -> None:
    cache = cache_of()
    keep(cache, asked(tenant="t", key="one"))
    assert cache.look_up(asked(tenant="t", key="two"), 0).outcome == "hit"
    keep(cache, asked(tenant="", key="one"))
    assert cache.look_up(asked(tenant="", key="two"), 0).outcome == "miss"


def turns(*texts: str, system: str = "Be brief.") -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(texts)
    said_ = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *said_]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"temperature": 0},
        {"top_p": 0.5},
        {"seed": 1},
        {"max_tokens": 5},
        {"stop": ["."]},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "low"},
        {"messages": turns(TEXT, system="Be long.")},
        {"messages": turns("Hello", "Hi.", TEXT)},
        {"messages": turns("Hello", "Yes?", TEXT)},
        {"messages": [*turns(), {"role": "user", "content": TEXT, "name": "jane"}]},
    ],
)
def test_another_model_prompt_or_parameter_is_another_space(other: dict[str, Any]) -> None:
    chosen = CacheSettings(enabled=True, same="facts")
    cache = SemanticCache(chosen, frozenset({"m", "n"}), alike)
    first = {"messages": turns(TEXT)}
    keep(cache, asked(**first))
    assert cache.look_up(asked(**first), 0).outcome == "hit"
    assert cache.look_up(asked(**(first | other)), 0).outcome == "miss"


def test_what_changes_no_answer_is_no_other_space() -> None:
    cache = cache_of()
    keep(cache, asked(user="jane", stream=True, stream_options={"include_usage": True}))
    same = asked([{"type": "text", "text": TEXT}], tools=[], logprobs=False, n=1, seed=None)
    assert cache.look_up(same, 0).outcome == "hit"


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "request_",
    [
        asked(tools=[TOOL]),
        asked(n=2),
        asked(logprobs=True),
        asked(temperature=1.1),
        asked(temperature="hot"),
        asked(web_search_options={"a": 1}),
        asked(unheard_of=1),
        asked([{"type": "text", "text": TEXT}, IMAGE]),
        asked(messages=[{"role": "user", "content": [IMAGE]}, *turns(TEXT)[1:]]),
        asked(messages=turns(TEXT, "Well,")),
        asked(messages=[{"role": "tool", "content": "1"}, *turns(TEXT)]),
        asked(messages=[{"role": "assistant", "tool_calls": [TOOL]}, *turns(TEXT)]),
        asked(""),
        asked("x" * (CONVERSATION_CHARACTERS + 1)),
        asked("Tell me another joke."),
        asked("ランダムな名前をください"),
        asked(model="unknown"),
        asked(no_store=True),
    ],
)
def test_some_requests_are_left_alone(request_: Asked) -> None:
    cache = cache_of()
    assert keep(cache, request_) == Looked("bypass")
    assert len(cache) == 0


def test_who_wants_a_fresh_answer_gets_one_and_it_replaces_the_old() -> None:
    cache = cache_of()
    keep(cache, asked(), "old")
    assert keep(cache, asked(no_cache=True), "new").outcome == "bypass"
    assert said(cache.look_up(asked(), 0)) == "new"
    assert (len(cache), cache.gone[Gone.REPLACED]) == (1, 1)


# --- Which questions --------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _one_encoder() -> Iterator[None]:
    """Each gateway reads it anew; here they share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticEncoder, "load", functools.cache(StaticEncoder.load))
        yield


@pytest.fixture(scope="module")
def real() -> SemanticCache:
    chosen = {"upstreams": [{"name": "u", "base_url": "http://localhost"}]}
    model = {"name": "m", "targets": [{"upstream": "u", "model": "m"}]}
    return build_cache(GatewaySettings(**chosen, models=[model], cache=ON))


def answers(cache: SemanticCache, one: str, other: str) -> bool:
    """Whether an answer to `one` would be given to `other`."""
    owner = hashlib.sha256(f"{one}\0{other}".encode()).hexdigest()
    keep(cache, asked(one, tenant=owner))
    return cache.look_up(asked(other, tenant=owner), 0).outcome == "hit"


def test_questions_that_only_look_alike_are_not_answered(real: SemanticCache) -> None:
    near = [p for p in read_pairs() if p.what == "near"]
    assert len(near) > 90
    wrong = [p for p in near if answers(real, p.one, p.other) or answers(real, p.other, p.one)]
    assert wrong == []


def test_politeness_is_looked_through(real: SemanticCache) -> None:
    polite = [p for p in read_pairs() if p.kind == "polite"]
    found = sum(answers(real, p.one, p.other) for p in polite)
    assert found == len(polite)


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("Could you please tell me how to reset my password?", "how to reset my password"),
        ("How can I reset my password", "how to reset my password"),
        ("What’s the price?", "price"),
        ("List what people can't eat.", "list what people can not eat"),
        ('Translate "The End", please!', 'translate "The End"'),
        ("How do you say thank you?", "how do you say thank you"),
        ("What is a haiku?", "what is haiku"),
        ("Version 3.11, not 3.12!", "version 3.11 not 3.12"),
        ("ブラジルの首都はどこですか？", "ブラジルの首都はどこ"),
        ("首都を教えてください。", "首都"),
        ("三つ挙げてください", "三つ挙げて"),
        ("再帰を、説明して", "再帰を説明して"),
        ("", ""),
    ],
)
def test_politeness_and_marks_are_taken_off(text: str, wording: str) -> None:
    assert wording_of(text) == wording


def test_light_words_do_not_count() -> None:
    assert words_of("cats and also dogs are loud") == words_of("cats dogs loud")
    assert words_of("is it 'and' or this") == "it 'and' or this"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("What is 12 + 5?", "12 + 5"),
        ("Ask Maria, not Marco, on Friday.", "maria not marco on friday"),
        ("Don't use `x = 1`", "not `x = 1`"),
        ("使えない", "使 not"),
        ("Please explain it", ""),
    ],
)
def test_the_facts_of_a_text(text: str, facts: str) -> None:
    assert facts_of(text) == facts


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    assert isinstance(words_of(wording_of(text)), str)
    assert isinstance(facts_of(text), str)
    assert isinstance(wants_another(text), bool)


def test_below_the_cosine_nothing_is_found() -> None:
    def encode(text: str) -> Vector:
        angle = 0.1 * len(text)
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    cache = cache_of(encode, similarity=0.95)
    keep(cache, asked("a"))
    looked = cache.look_up(asked("aaaa"), 0)
    assert looked.outcome == "hit"
    assert looked.similarity == pytest.approx(np.cos(0.3), abs=1e-6)
    assert cache.look_up(asked("aaaaa"), 0).outcome == "miss"


def test_long_texts_and_unknown_ones_are_compared_to_the_letter() -> None:
    cache = cache_of(text_characters=10)
    keep(cache, asked("x" * 11))
    assert cache.look_up(asked("x" * 11), 0).outcome == "hit"
    assert cache.look_up(asked("x" * 12), 0).outcome == "miss"
    nothing = cache_of(lambda _: np.zeros(2, np.float32))
    keep(nothing, asked("§"))
    assert nothing.look_up(asked("§"), 0).outcome == "hit"
    assert nothing.look_up(asked("¶"), 0).outcome == "miss"


# --- For how long, and how many -----------------------------------------------------------------


def test_an_answer_has_its_time() -> None:
    cache = cache_of(ttl_s=10)
    keep(cache, asked(), now_s=100)
    looked = cache.look_up(asked(), 109.9)
    assert (looked.outcome, looked.age_s) == ("hit", pytest.approx(9.9))
    # That it was used makes it no younger.
    assert cache.look_up(asked(), 110).outcome == "miss"
    assert (len(cache), cache.bytes, cache.gone[Gone.EXPIRED]) == (0, 0, 1)


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = cache_of(apart, entries=3)
    for text in ("one", "two", "three"):
        keep(cache, asked(text), text)
    cache.look_up(asked("one"), 1)
    keep(cache, asked("four"), "four")
    kept = {t for t in ("one", "two", "three", "four") if said(cache.look_up(asked(t), 1))}
    assert kept == {"one", "three", "four"}
    assert cache.gone[Gone.FULL] == 1


def test_one_tenant_cannot_push_the_others_out() -> None:
    cache = cache_of(apart, entries=10)
    for n in range(4):
        keep(cache, asked(f"quiet {n} x", tenant="quiet"))
    for n in range(100):
        keep(cache, asked(f"loud {n} x", tenant="loud"))
    assert all(said(cache.look_up(asked(f"quiet {n} x", tenant="quiet"), 0)) for n in range(4))
    assert len(cache) == 10


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans()), max_size=120),
    st.integers(1, 12),
)
def test_the_caps_hold_and_the_books_balance(
    steps: list[tuple[int, int, bool]], entries: int
) -> None:
    cache = cache_of(apart, entries=entries, bytes=65_536, ttl_s=15)
    for now_s, (number, owner, long) in enumerate(steps):
        text = "y" * (20_000 if long else 10)
        keep(cache, asked(f"question {number}", tenant=str(owner), no_cache=True), text, now_s)
        assert len(cache) <= entries
        assert cache.bytes <= 65_536
        assert cache.stored == len(cache) + sum(cache.gone.values())
    cache.look_up(asked("nothing"), 10_000)
    cache.look_up(asked("nothing"), 10_000)
    assert (len(cache), cache.bytes) == (0, 0)


def test_an_answer_over_the_cap_is_not_kept() -> None:
    cache = cache_of(bytes=65_536)
    keep(cache, asked(), "y" * 70_000)
    assert len(cache) == 0


# --- The index --------------------------------------------------------------------------------


def clustered(count: int, seed: int) -> Vector:
    """Return unit vectors around a few directions, shape (count, 32)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 32))
    drawn = centres[rng.integers(0, 20, count)] + 0.35 * rng.normal(size=(count, 32))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


@settings(deadline=None)
@given(st.lists(st.integers(-30, 30).filter(bool), max_size=60), st.integers(0, 9))
def test_a_small_space_is_exact_whatever_came_and_went(steps: list[int], asked_: int) -> None:
    rows, space, kept = clustered(31, 1), VectorSpace(32), set[int]()
    for step in steps:
        number = abs(step)
        if step > 0 and number not in kept:
            space.add(number, rows[number])
            kept.add(number)
        elif step < 0 and number in kept:
            space.remove(number)
            kept.remove(number)
    query = clustered(10, 2)[asked_]
    found = space.nearest(query, 0.7, 5)
    exact = sorted((-float(rows[n] @ query), n) for n in kept if rows[n] @ query >= 0.7)[:5]
    assert [n for n, _ in found] == [n for _, n in exact]
    assert len(space) == len(kept)


def test_a_large_space_finds_nearly_all_that_brute_force_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors, "FEW", 64)
    rows, space = clustered(6_000, 3), VectorSpace(32)
    for number in range(3_000):
        space.add(number, rows[number])
    # All of them make room for others.
    for number in range(3_000):
        space.remove(number)
        space.add(3_000 + number, rows[3_000 + number])
    queries = rows[3_000:3_400] + 0.03 * clustered(400, 4)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    best = (rows[3_000:] @ queries.T).argmax(axis=0) + 3_000
    found = [space.nearest(q, 0.9, 1) for q in queries]
    recall = np.mean([bool(f) and f[0][0] == b for f, b in zip(found, best, strict=True)])
    assert recall >= 0.97
    assert all(f[0][1] >= 0.9 for f in found if f)


def test_a_number_that_is_not_there_cannot_go() -> None:
    with pytest.raises(KeyError):
        VectorSpace(2).remove(1)


# --- Through the gateway ----------------------------------------------------------------------


async def raw_ask(s: Stand, text: str = TEXT, **body: Any) -> httpx.Response:
    messages: list[Any] = [{"role": "user", "content": text}]
    answer = await s.client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=messages, **body
    )
    return answer.http_response


def kept_by(s: Stand) -> SemanticCache:
    cache = s.gateway.stages.cache
    assert isinstance(cache, SemanticCache)
    return cache


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
async def test_a_like_question_is_answered_and_the_client_is_told(
    first: bool, second: bool
) -> None:
    async with stand(stages=None, cache=ON) as s:
        assert (await ask(s, "How do I reset my password?", stream=first))[0] == Reply().text
        assert (await ask(s, "How can I reset my password", stream=second))[0] == Reply().text
        assert s.provider.counts["requests"] == 1
        miss, hit = s.events.decoded
        assert (miss["gateway.cache"], hit["gateway.cache"]) == ("miss", "hit")
        assert "gen_ai.usage.output_tokens" not in hit
        headers = (await raw_ask(s, "How can I reset my password")).headers
        assert headers["x-kizashi-cache"] == "hit"
        assert 0.95 <= float(headers["x-kizashi-cache-similarity"]) <= 1
        assert 0 <= int(headers["age"]) < 60
        assert (await ask(s, "How do I reset my router?"))[0] == Reply().text
        assert s.provider.counts["requests"] == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hit_uses_nothing_and_what_it_saved_is_counted(streamed: bool) -> None:
    reply = Reply(input_tokens=100, output_tokens=50, model="gpt-4o-2024-08-06")
    upstream = {"provider": "openai"}
    async with stand({"gpt-4o": lambda _: reply}, stages=None, upstream=upstream, cache=ON) as s:
        await ask(s, stream=streamed)
        answer = msgspec.json.decode((await raw_ask(s)).content)
        assert answer["usage"] == {
            "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0,
        }  # fmt: skip
        counted = s.gateway.metrics.render().decode()
        for line in (
            'kizashi_gateway_cache_saved_tokens_total{model="gpt-4o",token_type="output"} 50.0',
            'llm_tokens_used_total{model="gpt-4o",token_type="output"} 50.0',
            'kizashi_gateway_cache_total{outcome="hit"} 1.0',
            "kizashi_gateway_cache_stored_total 1.0",
            "kizashi_gateway_cache_entries 1.0",
        ):
            assert line in counted
        saved, cost = (
            float(next(v for v in counted.splitlines() if v.startswith(name)).split()[-1])
            for name in (
                "kizashi_gateway_cache_saved_dollars_total",
                "llm_cost_dollars_total",
            )
        )
        assert saved == cost > 0


async def test_a_stream_from_the_cache_says_its_usage_where_that_is_asked() -> None:
    async with stand(stages=None, cache=ON) as s:
        await ask(s)
        messages: list[Any] = [{"role": "user", "content": TEXT}]
        stream = await s.client.chat.completions.create(
            model="gpt-4o", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert [c.object for c in chunks] == ["chat.completion.chunk"] * 3
        assert chunks[1].choices[0].finish_reason == "stop"
        assert chunks[2].choices == []
        assert chunks[2].usage is not None
        assert chunks[2].usage.total_tokens == 0


async def test_no_tenant_hears_what_another_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[AsyncOpenAI] = []
    owners = ("acme", "globex", None, None)
    for number in range(len(owners)):
        monkeypatch.setenv(f"KEY_{number}", f"{KEY}-{number}")
    keys = [
        {"name": f"k{n}", "key_env": f"KEY_{n}", **({"tenant": t} if t else {})}
        for n, t in enumerate(owners)
    ]
    asked_: list[str] = []

    def script(body: dict[str, Any]) -> Reply:
        asked_.append("")
        return Reply(text=f"Answer {len(asked_)}")

    async with stand({"gpt-4o": script}, stages=None, keys=keys, cache=ON) as s:
        clients = [s.client.with_options(api_key=f"{KEY}-{n}") for n in range(len(owners))]
        messages: list[Any] = [{"role": "user", "content": TEXT}]
        for _ in range(2):
            heard = [
                (await c.chat.completions.create(model="gpt-4o", messages=messages)).choices[0]
                for c in clients
            ]
            assert [c.message.content for c in heard] == [f"Answer {n}" for n in range(1, 5)]


KEY_IN_ANSWER = "sk-proj-" + "a1B2c3D4" * 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["observe", "redact", "block"])
async def test_an_answer_of_which_a_guard_spoke_is_not_kept(stream: bool, mode: str) -> None:
    reply = Reply(text=f"It is {KEY_IN_ANSWER} indeed.")
    guardrails = {"output": {"api_key": mode}}
    async with stand(
        {"gpt-4o": lambda _: reply}, stages=None, cache=ON, guardrails=guardrails
    ) as s:
        for _ in range(2):
            await ask(s, stream=stream)
        assert s.provider.counts["requests"] == 2
        assert len(kept_by(s)) == 0


@pytest.mark.parametrize(
    "reply",
    [
        Reply(cut_after=3, piece_s=0.002),
        Reply(finish_reason="length"),
        Reply(finish_reason="content_filter"),
        Reply(text=""),
    ],
)
async def test_half_a_stream_is_not_kept(reply: Reply) -> None:
    async with stand({"gpt-4o": lambda _: reply}, stages=None, cache=ON, attempts=1) as s:
        await ask(s, stream=True)
        assert len(kept_by(s)) == 0


async def test_what_a_client_left_is_not_kept() -> None:
    endless = Reply(text="x" * 100_000, piece_characters=1, piece_s=0.001)
    async with stand({"gpt-4o": lambda _: endless}, stages=None, cache=ON) as s:
        messages: list[Any] = [{"role": "user", "content": TEXT}]
        sent = await s.client.chat.completions.create(
            model="gpt-4o", messages=messages, stream=True
        )
        async with aclosing(sent.response):
            async for _ in sent:
                break
        while not s.events.raws:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert len(kept_by(s)) == 0


async def test_what_another_model_answered_is_not_kept() -> None:
    scripts = {"gpt-4o": lambda _: Reply(status=500), "small": None}
    async with stand(scripts, stages=None, cache=ON, attempts=2) as s:
        s.gateway.models["gpt-4o"] = s.gateway.models["gpt-4o"].model_copy(
            update={"fallbacks": ("small",)}
        )
        assert (await ask(s))[0] == Reply().text
        assert s.events.decoded[0]["gateway.fallback_from"] == "gpt-4o"
        assert len(kept_by(s)) == 0


async def test_a_model_may_be_left_out_and_without_a_setting_there_is_no_cache() -> None:
    async with stand(stages=None, cache=ON, model={"cache": False}) as s:
        assert (await raw_ask(s)).headers["x-kizashi-cache"] == "bypass"
    async with stand(stages=None) as s:
        assert s.gateway.stages.cache is None
        assert "x-kizashi-cache" not in (await raw_ask(s)).headers


@pytest.mark.parametrize(("control", "last"), [("no-cache", "hit"), ("no-store", "miss")])
async def test_a_client_says_what_the_cache_may_do(control: str, last: str) -> None:
    async with stand(stages=None, cache=ON) as s:
        fresh = s.client.with_options(default_headers={"Cache-Control": control})
        messages: list[Any] = [{"role": "user", "content": TEXT}]
        await fresh.chat.completions.create(model="gpt-4o", messages=messages)
        await ask(s)
        assert [e["gateway.cache"] for e in s.events.decoded] == ["bypass", last]


async def test_a_canary_hears_the_model_and_no_user_hears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACME_KEY", KEY)
    keys = [{"name": "acme", "key_env": "ACME_KEY", "canary": True}]
    async with stand(stages=None, cache=ON, keys=keys) as s:
        canary = s.client.with_options(default_headers={"X-Kizashi-Canary": "capital"})
        messages: list[Any] = [{"role": "user", "content": TEXT}]
        await canary.chat.completions.create(model="gpt-4o", messages=messages)
        await ask(s)
        await canary.chat.completions.create(model="gpt-4o", messages=messages)
        assert [e["gateway.cache"] for e in s.events.decoded] == ["bypass", "miss", "bypass"]
        assert s.provider.counts["requests"] == 3


async def test_a_lone_surrogate_is_no_trouble() -> None:
    async with stand(stages=None, cache=ON) as s:
        body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"\\ud800 hello there"}]}'
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{s.url}/v1/chat/completions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
        assert answer.status_code in {200, 400}
