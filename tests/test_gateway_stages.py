"""What may be plugged in is called where it should be: guards, cache and context, by stand-ins."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.answer import Usage
from gateway.asked import Asked, text_of
from gateway.errors import Code, GatewayError
from gateway.fake_provider import Reply
from gateway.stages import Action, Checked, Looked, Stages, Verdict, hardest
from tests.support.gateway import Stand, ask, stand


class Words:
    """An input guard: stops one word, blots out another."""

    def check(self, asked: Asked) -> Checked:
        text = text_of(asked.messages[-1]["content"])
        if "forbidden" in text:
            return Checked(asked, (Verdict("words", Action.BLOCKED),))
        if "secret" not in text:
            return Checked(asked)
        changed = {**asked.messages[-1], "content": text.replace("secret", "[…]")}
        told = asked.with_messages([*asked.messages[:-1], changed])
        return Checked(told, (Verdict("words", Action.REDACTED),))


class Shelf:
    """A cache of whole answers by the last message."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def look_up(self, asked: Asked, now_s: float) -> Looked:
        if asked.no_cache:
            return Looked("bypass")
        text = text_of(asked.messages[-1]["content"])
        found = self.kept.get(text)
        return Looked("miss" if found is None else "hit", found, place=text)

    def keep(
        self,
        looked: Looked,
        completion: dict[str, Any],
        now_s: float,
        *,
        usage: Usage,
        provider: str | None,
    ) -> None:
        self.kept[str(looked.place)] = completion


class Newest:
    """A context window of so many messages."""

    def fit(self, asked: Asked, context_tokens: int) -> Asked:
        if context_tokens == 16:
            raise GatewayError(Code.CONTEXT_LENGTH_EXCEEDED)
        return asked.with_messages(asked.messages[-1:])


def outcomes(s: Stand) -> list[str]:
    return [event["gateway.cache"] for event in s.events.decoded]


async def test_what_a_guard_blots_out_reaches_neither_upstream_nor_event() -> None:
    async with stand(stages=Stages(input_guards=(Words(),))) as s:
        await ask(s, "my secret is out")
        assert s.provider.seen[0]["messages"][-1]["content"] == "my […] is out"
        [event] = s.events.decoded
        assert event["prompt.text"] == "my […] is out"
        assert event["gateway.guardrail"] == "words:redacted"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_guard_stops_reaches_no_upstream(stream: bool) -> None:
    async with stand(stages=Stages(input_guards=(Words(),))) as s:
        _, error = await ask(s, "something forbidden", stream=stream)
        assert error is not None
        assert error.code == "input_blocked"
        assert s.provider.counts["requests"] == 0
        [event] = s.events.decoded
        assert event["error.type"] == "input_blocked"
        assert event["gateway.guardrail"] == "words:blocked"


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
async def test_what_is_kept_answers_whole_and_as_a_stream(first: bool, second: bool) -> None:
    async with stand(stages=Stages(cache=Shelf())) as s:
        assert (await ask(s, stream=first))[0] == Reply().text
        assert (await ask(s, stream=second))[0] == Reply().text
        assert s.provider.counts["requests"] == 1
        assert outcomes(s) == ["miss", "hit"]
        hit = s.events.decoded[1]
        assert hit["response.text"] == Reply().text
        assert "gen_ai.usage.input_tokens" not in hit


HALF = {
    "length": Reply(finish_reason="length"),
    "filter": Reply(finish_reason="content_filter"),
    "cut": Reply(cut_after=3, piece_s=0.002),
    "error": Reply(status=500),
    # The fake provider streams text alone.
    "refusal": Reply(refusal="I cannot."),
    "tool": Reply(tool_arguments="{}", finish_reason="tool_calls"),
}


@pytest.mark.parametrize(
    ("name", "stream"),
    [*((name, False) for name in HALF), *((name, True) for name in list(HALF)[:4])],
)
async def test_half_answers_are_not_kept(name: str, stream: bool) -> None:
    reply = HALF[name]
    shelf = Shelf()
    async with stand({"gpt-4o": lambda _: reply}, stages=Stages(cache=shelf), attempts=1) as s:
        await ask(s, stream=stream)
        assert shelf.kept == {}
        assert outcomes(s) == ["miss"]


async def test_a_client_may_ask_for_a_fresh_answer() -> None:
    async with stand(stages=Stages(cache=Shelf())) as s:
        fresh = s.client.with_options(default_headers={"Cache-Control": "no-cache"})
        messages: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]
        for _ in range(2):
            await fresh.chat.completions.create(model="gpt-4o", messages=messages)
        assert outcomes(s) == ["bypass", "bypass"]
        assert s.provider.counts["requests"] == 2


async def test_history_is_trimmed_to_what_the_model_holds() -> None:
    messages: list[Any] = [{"role": "user", "content": str(n)} for n in range(5)]
    stages = Stages(context=Newest())
    async with stand(stages=stages, model={"context_tokens": 100}) as s:
        await s.client.chat.completions.create(model="gpt-4o", messages=messages)
        assert [m["content"] for m in s.provider.seen[0]["messages"]] == ["4"]
    async with stand(stages=stages, model={"context_tokens": 16}) as s:
        _, error = await ask(s)
        assert error is not None
        assert error.code == "context_length_exceeded"


class Broken:
    def check(self, asked: Asked) -> Checked:
        raise ZeroDivisionError


async def test_a_guard_that_breaks_lets_nothing_through() -> None:
    async with stand(stages=Stages(input_guards=(Broken(),))) as s:
        _, error = await ask(s)
        assert error is not None
        assert error.code == "internal_error"
        assert s.provider.counts["requests"] == 0


def test_the_event_tells_of_the_hardest_verdict() -> None:
    verdicts = [Verdict("a", Action.OBSERVED), Verdict("b", Action.BLOCKED)]
    assert hardest([*verdicts, Verdict("c", Action.REDACTED)]) == verdicts[1]
    assert hardest([]) is None
