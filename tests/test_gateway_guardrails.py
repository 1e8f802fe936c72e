"""Guardrails: rules for what goes in and what comes out, however a stream is cut."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.asked import Asked
from gateway.build import build_stages
from gateway.fake_provider import Reply
from gateway.guardrails import STRETCH, InputRules, StreamedText
from gateway.stages import Action, Verdict
from pipeline.config import Config
from pipeline.core.redaction import Kind, redact
from pipeline.gateway_settings import NOT_IN_ANSWERS, GuardMode, GuardrailSettings
from tests.support.gateway import ask, stand

KINDS = frozenset(Kind) - NOT_IN_ANSWERS
CARD = "4111 1111 1111 1111"
KEY = "sk-proj-" + "a1B2c3D4" * 5
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\nAAKCAQEA==\n-----END RSA PRIVATE KEY-----"
#: What is found, with all that stands around it.
FOUND = (
    CARD, "4111-1111-1111-1111", "４１１１１１１１１１１１１１１１", KEY, PEM, PEM[:50],
    "jane.doe@example.com", "090-1234-5678", "+1 650 253 0000", "call (650) 253-0000",
    "電話は０３－１２３４－５６７８", "GB29 NWBK 6016 1331 9268 19", "eyJhbGciOiJI.eyJzdWIi.c2ln",
    "AKIAIOSFODNN7EXAMPLE", "123-45-6789", "口座番号 1234567", "ghp_" + "x" * 36,
)  # fmt: skip
AROUND = (
    " ", "\n", ", ", ". ", " is ", "my card: ", "です。", "は", "A", "1", "12 34 ", "-", "(", "@",
    "The parcel was sent. ", "x_", "2026-11-21 ", "\u3000", "\u200b", "\ud800",
)  # fmt: skip
#: A machine that is busy is no failure.
patient = settings(deadline=None)
TEXTS = st.lists(st.sampled_from(FOUND + AROUND) | st.text(max_size=5), max_size=8).map("".join)


def stream(text: str, cuts: list[int], mode: GuardMode = "redact") -> tuple[str, StreamedText]:
    """Return what is sent of a text that comes in pieces of these sizes, over and over."""
    guard, sent, at, turn = StreamedText(dict.fromkeys(KINDS, mode)), "", 0, 0
    while at < len(text):
        size = cuts[turn % len(cuts)]
        sent += guard.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    return sent + guard.close(), guard


@patient
@given(TEXTS, st.lists(st.integers(1, 40), min_size=1, max_size=8))
@example(PEM + "jane.doe@example.com", [1])
def test_any_cut_is_redacted_as_the_whole_is(text: str, cuts: list[int]) -> None:
    whole = redact(text, KINDS)
    sent, guard = stream(text, cuts)
    assert sent == whole.text
    assert {v.rule for v in guard.verdicts} == {f"pii.{kind}" for kind in whole.counts}


@pytest.mark.parametrize("found", FOUND)
def test_one_character_at_a_time_leaks_nothing(found: str) -> None:
    text = f"Here it is: {found} and nothing more."
    assert stream(text, [1])[0] == redact(text, KINDS).text != text


@given(TEXTS, st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_observing_loses_and_changes_nothing(text: str, cuts: list[int]) -> None:
    sent, guard = stream(text, cuts, "observe")
    assert sent == text
    assert all(v.action is Action.OBSERVED for v in guard.verdicts)


LONG = st.lists(st.sampled_from(["1", "12 ", "A", "-", "4111111111111111", KEY]), min_size=1)


@patient
@given(LONG, st.integers(1, 300), st.lists(st.integers(1, 700), min_size=1, max_size=8))
@example([CARD, " "], 120, [1])
def test_a_stretch_without_an_end_is_cut_the_same_whatever_the_pieces(
    parts: list[str], times: int, cuts: list[int]
) -> None:
    text = ("".join(parts) * times)[: 4 * STRETCH]
    assert stream(text, cuts)[0] == stream(text, [len(text)])[0]
    assert stream(text, cuts, "observe")[0] == text


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_key_that_never_ends_is_hidden_to_its_end(size: int) -> None:
    text = "The key: sk-" + "a1B2c3D4" * 1_000 + " and then more."
    assert stream(text, [size])[0] == "The key: [api_key] and then more."


@pytest.mark.parametrize("place", [896, 1_000, 1_024, 1_270])
def test_a_card_at_a_forced_cut_is_found(place: int) -> None:
    text = "A" * (place - 1) + "=" + "4111111111111111" + "=" * 700
    assert "[card]" in stream(text, [13])[0]
    assert "4111" not in stream(text, [13])[0]


def test_little_is_held_back() -> None:
    guard = StreamedText({Kind.CARD: "redact"})
    assert guard.feed("The parcel was sent on Mon") == "The parcel was sent on "
    assert guard.feed("day, and so") == "Monday, and "
    assert guard.feed("お荷物は発送") == "soお荷物は発送"


@patient
@given(st.text(st.sampled_from("1A- "), max_size=3_000), st.integers(1, 300))
def test_what_is_held_has_a_bound(text: str, size: int) -> None:
    guard, sent = StreamedText(dict.fromkeys(KINDS, "observe")), 0
    for at in range(0, len(text), size):
        sent += len(guard.feed(text[at : at + size]))
        assert min(len(text), at + size) - sent <= STRETCH + 256


# --- What goes in -----------------------------------------------------------------------------


def asked(content: Any, role: str = "user") -> Asked:
    body = {"messages": [{"role": "system", "content": CARD}, {"role": role, "content": content}]}
    return Asked(request_id="r", operation="chat", tenant="", model="m", body=body)


RULES = InputRules(
    GuardrailSettings(
        input={Kind.CARD: "block", Kind.EMAIL: "redact", Kind.PHONE: "observe"}, input_characters=99
    )
)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_each_kind_has_its_mode(role: str) -> None:
    checked = RULES.check(asked("jane@example.com, 090-1234-5678", role))
    assert checked.verdicts == (
        Verdict("pii.email", Action.REDACTED),
        Verdict("pii.phone", Action.OBSERVED),
    )
    assert checked.asked.messages[1]["content"] == "[email], 090-1234-5678"
    assert checked.asked.messages[0]["content"] == CARD


def test_parts_and_texts_to_embed_are_looked_at() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    parts = [{"type": "text", "text": "jane@example.com"}, image]
    checked = RULES.check(asked(parts))
    assert checked.asked.messages[1]["content"] == [{"type": "text", "text": "[email]"}, image]
    embed = msgspec.structs.replace(
        asked(""), operation="embeddings", body={"input": ["a", "jane@example.com"]}
    )
    assert RULES.check(embed).asked.body == {"input": ["a", "[email]"]}


def test_what_is_blocked_is_hidden_from_the_event() -> None:
    checked = RULES.check(asked(f"pay with {CARD}"))
    assert checked.verdicts == (Verdict("pii.card", Action.BLOCKED),)
    assert checked.asked.messages[1]["content"] == "pay with [card]"


@given(st.integers(0, 200))
def test_a_length_is_allowed_and_one_more_is_not(size: int) -> None:
    verdicts = RULES.check(asked("x" * size)).verdicts
    assert verdicts == ((Verdict("length", Action.BLOCKED),) if size > 99 else ())


def test_a_request_in_which_nothing_is_found_goes_on_as_it_is() -> None:
    given_ = asked("Where is my parcel?")
    assert RULES.check(given_).asked is given_


@pytest.mark.parametrize("kind", sorted(NOT_IN_ANSWERS))
def test_what_no_stream_can_wait_for_is_no_rule_for_answers(kind: Kind) -> None:
    with pytest.raises(ValidationError, match=kind.value):
        GuardrailSettings(output={kind: "redact"})


# --- Through the gateway ----------------------------------------------------------------------

GUARDRAILS = {"input": {"card": "block"}, "output": {"card": "redact", "api_key": "block"}}


@pytest.mark.parametrize("streams", [False, True])
async def test_the_clients_see_it_and_the_events_tell_it(streams: bool) -> None:
    def script(body: dict[str, Any]) -> Reply:
        text = KEY if "key" in body["messages"][-1]["content"] else f"It is {CARD}, as you said."
        return Reply(text=f"Well. {text} ", piece_characters=3)

    stages = build_stages(Config(gateway={"guardrails": GUARDRAILS}))
    async with stand({"gpt-4o": script}, stages=stages) as s:
        assert await ask(s, stream=streams) == ("Well. It is [card], as you said. ", None)
        heard, error = await ask(s, "a key, please", stream=streams)
        assert error is not None
        assert error.code == "answer_blocked"
        assert "Well. ".startswith(heard)
        _, error = await ask(s, f"charge {CARD}", stream=streams)
        assert error is not None
        assert error.code == "input_blocked"
        assert s.provider.counts["requests"] == 2
        rules = [event["gateway.guardrail"] for event in s.events.decoded]
        assert rules == ["pii.card:redacted", "pii.api_key:blocked", "pii.card:blocked"]
        assert all(CARD not in raw.decode() for raw in s.events.raws)
