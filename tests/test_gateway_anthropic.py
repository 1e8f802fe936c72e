"""Anthropic's API behind OpenAI's client: turns, tools, streams, and what tokens count."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError

from gateway.anthropic_api import translate_request
from gateway.fake_provider import Reply
from tests.support.gateway import stand

ASK: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is my parcel?"},
]
ANTHROPIC = {"kind": "anthropic", "provider": "anthropic"}
REPLY = Reply(
    text="On its way.",
    finish_reason="end_turn",
    input_tokens=100,
    cached_tokens=60,
    cache_write_tokens=10,
    output_tokens=7,
)


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_count_as_with_openai(stream: bool) -> None:
    async with stand({"claude": lambda _: REPLY}, upstream=ANTHROPIC) as s:
        if stream:
            chunks = [
                chunk
                async for chunk in await s.client.chat.completions.create(
                    model="claude", messages=ASK, stream=True
                )
            ]
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            answer = await s.client.chat.completions.create(model="claude", messages=ASK)
            assert answer.choices[0].message.content is not None
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == ("On its way.", "stop")
        [event] = s.events.decoded
        assert event["gen_ai.provider.name"] == "anthropic"
        assert event["gen_ai.usage.input_tokens"] == 100
        assert event["gen_ai.usage.cache_read.input_tokens"] == 60
        assert event["gen_ai.usage.cache_creation.input_tokens"] == 10
        assert event["gen_ai.usage.output_tokens"] == 7
        asked = s.provider.seen[0]
        assert asked["system"] == "Be brief."
        assert asked["max_tokens"] > 0
        assert s.provider.headers[0]["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called(stream: bool) -> None:
    reply = Reply(text="", finish_reason="tool_use", tool_arguments='{"parcel":"A 1"}')
    tools: list[Any] = [
        {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    ]
    async with stand({"claude": lambda _: reply}, upstream=ANTHROPIC) as s:
        if stream:
            arguments = ""
            async for chunk in await s.client.chat.completions.create(
                model="claude", messages=ASK, tools=tools, stream=True
            ):
                for call in chunk.choices[0].delta.tool_calls or ():
                    arguments += (call.function and call.function.arguments) or ""
        else:
            answer = await s.client.chat.completions.create(
                model="claude", messages=ASK, tools=tools, tool_choice="required"
            )
            assert answer.choices[0].finish_reason == "tool_calls"
            [called] = answer.choices[0].message.tool_calls or ()
            assert called.type == "function"
            arguments = called.function.arguments
            assert s.provider.seen[0]["tool_choice"] == {"type": "any"}
        assert arguments == '{"parcel":"A 1"}'
        assert s.provider.seen[0]["tools"][0]["name"] == "look_up"


async def test_a_refusal_is_told_as_one() -> None:
    reply = Reply(text="", finish_reason="refusal")
    async with stand({"claude": lambda _: reply}, upstream=ANTHROPIC) as s:
        await s.client.chat.completions.create(model="claude", messages=ASK)
        assert s.events.decoded[0]["gen_ai.response.finish_reasons"] == ["content_filter"]


async def test_a_conversation_that_is_too_long_says_so() -> None:
    reply = Reply(status=400, code="invalid_request_error", message="prompt is too long: 9 > 8")
    async with stand({"claude": lambda _: reply}, upstream=ANTHROPIC) as s:
        with pytest.raises(BadRequestError) as caught:
            await s.client.chat.completions.create(model="claude", messages=ASK)
        assert caught.value.code == "context_length_exceeded"


def test_turns_alternate_and_keep_their_tool_calls_and_images() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    told = translate_request(
        {
            "messages": [
                {"role": "system", "content": "A"},
                {"role": "user", "content": [{"type": "text", "text": "B"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
                    ],
                },
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "done"},
                {"role": "developer", "content": "C"},
                {"role": "user", "content": "D"},
            ],
            "max_completion_tokens": 5,
            "temperature": 1.7,
            "stop": "END",
        },
        "claude-sonnet-4-5-20250929",
    )
    assert told == {
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 5,
        "temperature": 1.0,
        "stop_sequences": ["END"],
        "system": "A\n\nC",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "B"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "done"},
                    {"type": "text", "text": "D"},
                ],
            },
        ],
    }
