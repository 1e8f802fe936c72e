"""Trimming a conversation to a context window: what stays, what goes, and how tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import BadRequestError
from tokenizers import Tokenizer, models, pre_tokenizers

from gateway.asked import Asked, Message
from gateway.context import (
    TrimmedHistory,
    choose_messages,
    count_message,
    counting,
    estimate_tokens,
    load_counts,
)
from gateway.errors import Code, GatewayError
from gateway.fake_provider import Reply
from gateway.stages import Stages
from pipeline.errors import ConfigError
from pipeline.gateway_settings import ModelSettings
from tests.support.gateway import stand


def asked(messages: Sequence[Message], **body: Any) -> Asked:
    whole = {"messages": list(messages), **body}
    return Asked(request_id="r", operation="chat", tenant="", model="m", body=whole)


def say(role: str, content: str = "x" * 10, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """System messages anywhere, turns with calls of tools in them, one of them perhaps open."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(0, 3))):
        messages.append(say("system", "s" * draw(st.integers(0, 20))))
        for _ in range(draw(st.integers(0, 3))):
            messages.append(say("user", "u" * draw(st.integers(0, 50))))
            for call in range(draw(st.integers(0, 2))):
                ids = [f"{len(messages)}-{call}-{n}" for n in range(draw(st.integers(1, 2)))]
                messages.append(say("assistant", "", tool_calls=[{"id": i} for i in ids]))
                messages += [
                    say("tool", "t" * draw(st.integers(0, 50)), tool_call_id=i) for i in ids
                ]
            if draw(st.booleans()):
                messages.append(say("assistant", "a" * draw(st.integers(0, 50))))
    return messages or [say("user")]


def length(message: Message) -> int:
    return len(message["content"]) + 1


@given(conversations(), st.integers(0, 400))
def test_what_stays_is_whole_and_fits(messages: list[Message], budget: int) -> None:
    places = choose_messages(messages, budget, length)
    if places is None:
        return
    kept = [messages[at] for at in places]
    assert places == sorted(set(places))
    assert sum(map(length, kept)) <= budget
    assert [m for m in kept if m["role"] == "system"] == [
        m for m in messages if m["role"] == "system"
    ]
    assert len(messages) - 1 in places or messages[-1]["role"] == "system"
    called = {c["id"] for m in kept for c in m.get("tool_calls", ())}
    assert called == {m["tool_call_id"] for m in kept if m["role"] == "tool"}
    if users := [at for at, m in enumerate(messages) if m["role"] == "user"]:
        assert users[-1] in places
        spoken = [m["role"] for m in kept if m["role"] != "system"]
        assert spoken[0] == "user"


@given(conversations(), st.integers(0, 400), st.integers(0, 100))
def test_more_room_keeps_more(messages: list[Message], budget: int, more: int) -> None:
    less = choose_messages(messages, budget, length)
    if less is not None:
        assert set(less) <= set(choose_messages(messages, budget + more, length) or ())


@given(conversations())
def test_what_fits_is_not_touched(messages: list[Message]) -> None:
    given_ = asked(messages)
    assert TrimmedHistory().fit(given_, 1_000_000) is given_
    whole = sum(map(length, messages))
    assert choose_messages(messages, whole, length) == list(range(len(messages)))


def test_the_oldest_turns_go_first() -> None:
    messages = [say("system", "s"), *(say(r, f"{n} " * 40) for n in range(9) for r in ROLES)]
    messages.append(say("user", "now?"))
    fitted = TrimmedHistory().fit(asked(messages, max_tokens=50), 400)
    texts = [m["content"] for m in fitted.messages]
    assert texts[0] == "s"
    assert texts[-1] == "now?"
    assert 3 <= len(texts) < len(messages)
    assert texts[1:] == [m["content"] for m in messages[-len(texts) + 1 :]]
    assert len(messages) == 20  # what came in is as it was


ROLES = ("user", "assistant")


def test_old_steps_of_the_turn_under_way_go_before_its_question() -> None:
    steps = [
        m
        for n in range(4)
        for m in (
            say("assistant", "", tool_calls=[{"id": str(n)}]),
            say("tool", "t" * 50, tool_call_id=str(n)),
        )
    ]
    messages = [say("user", "old"), say("assistant", "old"), say("user", "u" * 10), *steps]
    assert choose_messages(messages, 11 + 2 * 52, length) == [2, 7, 8, 9, 10]


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(GatewayError) as caught:
        TrimmedHistory().fit(asked([say("user", "word " * 1_000)]), 200)
    assert caught.value.code is Code.CONTEXT_LENGTH_EXCEEDED


def test_the_answer_and_the_tools_take_their_room() -> None:
    messages = [say("user", "a" * 60), say("assistant", "b" * 60), say("user", "c")]
    fit = TrimmedHistory().fit
    assert len(fit(asked(messages, max_tokens=20), 130).messages) == 3
    assert len(fit(asked(messages, max_tokens=95), 130).messages) == 1
    tools = [{"type": "function", "function": {"name": "look_up", "description": "d " * 100}}]
    assert len(fit(asked(messages, max_tokens=20, tools=tools), 130).messages) == 1


def test_parts_of_a_message_count() -> None:
    parts = [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {"url": "x"}}]
    whole = count_message(say("user", content=parts), len)  # type: ignore[arg-type]
    assert whole == 5 + 4 + 1_105
    assert count_message({"role": "assistant", "content": None}, len) == 5


# --- Counting ---------------------------------------------------------------------------------

#: Texts of our own and what they are in cl100k and o200k.
COUNTED = (
    ("The parcel was sent on Monday and should arrive by Thursday at the latest.", 15, 15),
    ("お荷物は月曜日に発送され、遅くとも木曜日までに届く予定です。", 35, 23),
    ("def add(left: int, right: int) -> int:\n    return left + right\n", 19, 19),
    ('{"id": 4711, "state": "sent", "weights": [1.5, 2.25, 10.0]}', 31, 31),
)


@pytest.mark.parametrize(("text", "cl100k", "o200k"), COUNTED)
def test_the_estimate_of_a_short_text_is_near(text: str, cl100k: int, o200k: int) -> None:
    most = max(cl100k, o200k)
    assert 0.85 * most <= estimate_tokens(text) <= 1.6 * most


@given(st.text())
def test_a_token_has_a_byte_at_least(text: str) -> None:
    assert estimate_tokens(text) <= len(text.encode("utf-8", "replace"))
    assert estimate_tokens(text) > 0 or not text


@given(st.text(), st.text())
def test_more_text_is_no_fewer_tokens(left: str, right: str) -> None:
    assert estimate_tokens(left + right) >= estimate_tokens(left)


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_model_with_a_tokenizer_is_counted_by_it(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    word_tokenizer().save(str(file))
    target = {"upstream": "u", "model": "m"}
    [(name, count)] = load_counts(
        [
            ModelSettings(name="m", targets=[target], tokenizer=file),  # type: ignore[list-item]
            ModelSettings(name="n", targets=[target]),  # type: ignore[list-item]
        ]
    ).items()
    assert (name, count("three whole words")) == ("m", 3)
    messages = [say("user", "longword" * 20), say("assistant", "yes"), say("user", "and?")]
    trimmed = TrimmedHistory().fit(asked(messages, max_tokens=10), 60)
    assert len(trimmed.messages) == 1
    exact = TrimmedHistory({name: count}).fit(asked(messages, max_tokens=10), 60)
    assert len(exact.messages) == 3


def test_a_lone_surrogate_is_counted() -> None:
    assert counting(word_tokenizer())("a \ud800 b") == 3


def test_a_tokenizer_that_is_none_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    target: Any = {"upstream": "u", "model": "m"}
    model = ModelSettings(name="m", targets=(target,), tokenizer=tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"gateway\.models\.m\.tokenizer"):
        load_counts([model])


async def test_the_upstream_gets_what_fits() -> None:
    seen: list[int] = []

    def script(body: dict[str, Any]) -> Reply:
        seen.append(len(body["messages"]))
        return Reply()

    messages: list[Any] = [say("user", "word " * 300), say("assistant", "yes"), say("user", "so?")]
    stages = Stages(context=TrimmedHistory())
    async with stand({"gpt-4o": script}, stages=stages, model={"context_tokens": 200}) as s:
        create = s.client.chat.completions.create
        await create(model="gpt-4o", messages=messages)
        assert seen == [1]
        with pytest.raises(BadRequestError) as caught:
            await create(model="gpt-4o", messages=messages[:1])
        assert caught.value.code == "context_length_exceeded"
        assert seen == [1]
