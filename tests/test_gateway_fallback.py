"""Fallbacks: what is tried next, how often, how long, and when an upstream is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIStatusError

from gateway.errors import Code, GatewayError
from gateway.fake_provider import Reply
from gateway.routing import (
    Attempts,
    Breaker,
    Candidate,
    Failure,
    UpstreamFailure,
    candidates,
    order_by_weight,
)
from pipeline.gateway_settings import GatewaySettings, ModelSettings, TargetSettings
from tests.support.gateway import ask, stand

ASK: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]


def target(upstream: str, weight: float = 1.0) -> TargetSettings:
    return TargetSettings(upstream=upstream, model=upstream, weight=weight)


def model(name: str, *upstreams: str, **settings: Any) -> ModelSettings:
    return ModelSettings(name=name, targets=tuple(map(target, upstreams)), **settings)


def attempts(
    *upstreams: str, most: int = 4, models: Mapping[str, str] | None = None, **settings: Any
) -> Attempts:
    chain = [Candidate((models or {}).get(u, "m"), target(u)) for u in upstreams]
    asked = model("m", *upstreams, **settings)
    return Attempts(chain, asked, GatewaySettings(attempts=most), 0.0)


def breakers(*names: str) -> dict[str, Breaker]:
    return {name: Breaker(5, 15.0) for name in names}


def failure(kind: Failure, retry_after_s: float | None = None) -> UpstreamFailure:
    return UpstreamFailure(kind, "detail", retry_after_s)


# --- Decisions, without a clock ---------------------------------------------------------------


def test_weights_are_shares_of_the_first_tries() -> None:
    targets = [target("a", 3.0), target("b", 1.0)]
    grid = [(i + 0.5) / 100 for i in range(100)]
    first = Counter(order_by_weight(targets, [x, y])[0].upstream for x in grid for y in grid)
    assert first["a"] / first.total() == pytest.approx(0.75, abs=0.01)


def test_fallbacks_come_behind_all_targets_of_the_model() -> None:
    models = {"m": model("m", "a", "b", fallbacks=("n",)), "n": model("n", "c")}
    chain = candidates(models, "m", [0.1, 0.9, 0.99])
    assert [(c.model, c.target.upstream) for c in chain] == [("m", "b"), ("m", "a"), ("n", "c")]


def test_every_candidate_is_tried_before_any_is_tried_again_and_that_one_waits() -> None:
    tries, all_ = attempts("a", "b"), breakers("a", "b")
    found = []
    for _ in range(4):
        tried = tries.next(1.0, all_, 0.0)
        found.append((tried.candidate.target.upstream, tried.wait_s))
        tries.fail(failure(Failure.SERVER_ERROR), 1.0)
    assert [u for u, _ in found] == ["a", "b", "a", "b"]
    assert [w > 0 for _, w in found] == [False, False, True, True]
    with pytest.raises(GatewayError) as caught:
        tries.next(1.0, all_, 0.0)
    assert caught.value.code is Code.UPSTREAM_UNAVAILABLE


def test_an_upstream_that_asks_for_time_is_given_it() -> None:
    tries, all_ = attempts("a", deadline_s=60.0), breakers("a")
    tries.next(0.0, all_, 0.0)
    tries.fail(failure(Failure.RATE_LIMITED, 7.0), 1.0)
    assert tries.next(1.0, all_, 0.0).wait_s == pytest.approx(7.0)
    tries.fail(failure(Failure.RATE_LIMITED, 90.0), 8.0)
    with pytest.raises(GatewayError) as caught:  # 98 is beyond the deadline
        tries.next(8.0, all_, 0.0)
    assert caught.value.code is Code.UPSTREAM_RATE_LIMITED
    assert caught.value.retry_after_s == 90.0


def test_what_is_too_long_for_a_model_goes_to_another_model_only() -> None:
    tries, all_ = attempts("a", "b", "c", models={"c": "long"}), breakers("a", "b", "c")
    assert tries.next(0.0, all_, 0.0).candidate.target.upstream == "a"
    tries.fail(failure(Failure.CONTEXT_TOO_LONG), 0.0)
    assert tries.next(0.0, all_, 0.0).candidate.target.upstream == "c"


def test_a_request_that_is_wrong_is_wrong_everywhere() -> None:
    tries = attempts("a", "b")
    tries.next(0.0, breakers("a", "b"), 0.0)
    with pytest.raises(GatewayError) as caught:
        tries.fail(failure(Failure.REFUSED), 0.0)
    assert caught.value.code is Code.UPSTREAM_REFUSED


def test_only_what_is_configured_falls_back() -> None:
    tries = attempts("a", "b", fallback_on={"timeout"})
    tries.next(0.0, breakers("a", "b"), 0.0)
    tries.fail(failure(Failure.TIMEOUT), 0.0)
    tries.next(0.0, breakers("a", "b"), 0.0)
    with pytest.raises(GatewayError) as caught:
        tries.fail(failure(Failure.SERVER_ERROR), 0.0)
    assert caught.value.code is Code.UPSTREAM_UNAVAILABLE


def test_a_breaker_opens_pauses_and_lets_one_through() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(3):
        assert breaker.wait_s(100.0) == 0
        breaker.fail(Failure.TIMEOUT, 100.0)
    assert breaker.wait_s(104.0) == pytest.approx(6.0)
    assert breaker.wait_s(110.0) == 0
    breaker.begin(110.0)  # the one that is let through
    assert breaker.wait_s(110.0) == pytest.approx(10.0)
    breaker.succeed()
    assert breaker.wait_s(110.0) == 0
    assert not breaker.is_open


@given(st.lists(st.sampled_from([Failure.REFUSED, Failure.CONTEXT_TOO_LONG, Failure.RATE_LIMITED])))
def test_what_is_not_the_upstreams_fault_opens_no_breaker(failures: list[Failure]) -> None:
    breaker = Breaker(1, 10.0)
    for each in failures:
        breaker.fail(each, 0.0)
    assert not breaker.is_open


@given(
    st.lists(st.sampled_from(list(Failure)), max_size=40),
    st.integers(1, 8),
    st.floats(0, 0.999),
)
def test_attempts_end_whatever_fails(failures: list[Failure], most: int, jitter: float) -> None:
    tries, all_ = attempts("a", "b", "c", most=most, deadline_s=30.0), breakers("a", "b", "c")
    now_s, ended = 0.0, False
    for kind in [*failures, *[Failure.SERVER_ERROR] * 9]:
        try:
            tried = tries.next(now_s, all_, jitter)
            now_s += tried.wait_s + 0.01
            all_[tried.candidate.target.upstream].fail(kind, now_s)
            tries.fail(failure(kind), now_s)
        except GatewayError:
            ended = True
            break
    assert ended
    assert now_s <= tries.deadline_s + 0.01
    assert tries.made <= most


# --- Through the wire -------------------------------------------------------------------------


def failing(reply: Reply) -> dict[str, Any]:
    return {"first": lambda _: reply, "second": lambda _: Reply(text="From the second.")}


MODELS = [
    {"name": "m", "targets": [{"upstream": "first", "model": "x"}], "fallbacks": ["n"]},
    {"name": "n", "targets": [{"upstream": "second", "model": "y"}]},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429),
        Reply(status=503),
        Reply(status=400, code="context_length_exceeded"),
        Reply(status=401),
        Reply(first_s=5.0),
        Reply(cut_after=0),
    ],
    ids=["429", "503", "too long", "401", "time-out", "cut"],
)
async def test_another_model_answers(reply: Reply, stream: bool) -> None:
    async with stand(failing(reply), models=MODELS, upstream={"timeout_s": 0.8}) as s:
        text, _ = await ask(s, model="m", stream=stream)
        assert text == "From the second."
        [event] = s.events.decoded
        assert event["gen_ai.request.model"] == "n"
        assert event["gateway.fallback_from"] == "m"
        assert event["gateway.attempts"] == 2
        assert "error.type" not in event


async def test_an_upstream_that_is_unwell_is_left_alone() -> None:
    scripts = failing(Reply(status=500))
    async with stand(scripts, models=MODELS, upstream={"breaker_failures": 3}) as s:
        for _ in range(10):
            await s.client.chat.completions.create(model="m", messages=ASK)
        assert s.providers["first"].counts["requests"] == 3
        assert s.gateway.breakers["first"].is_open


async def test_the_deadline_is_over_all_attempts() -> None:
    slow = {"only": lambda _: Reply(first_s=5.0)}
    async with stand(slow, model={"deadline_s": 0.3}, upstream={"timeout_s": 0.2}) as s:
        with pytest.raises(APIStatusError) as caught:
            await s.client.chat.completions.create(model="only", messages=ASK)
        assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
        assert s.events.decoded[0]["gen_ai.client.operation.duration"] < 2


async def test_a_stream_that_broke_is_not_begun_again() -> None:
    async with stand(failing(Reply(cut_after=3, piece_s=0.01)), models=MODELS) as s:
        heard, error = await ask(s, model="m", stream=True)
        assert error is not None
        assert error.code == "stream_broken"
        assert Reply().text.startswith(heard)
        assert heard
        assert s.providers["second"].counts["requests"] == 0
        [event] = s.events.decoded
        assert event["error.type"] == "stream_broken"
        assert event["gateway.attempts"] == 1
