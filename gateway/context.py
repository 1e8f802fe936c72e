"""Trims a conversation to a model's context window: the newest turns stay, whole.

Always kept: system and developer messages, the last user message and what was said last. As
much of the rest as fits comes back, newest first and without gaps: of the turn under way its
steps (a call of tools and its results are one), of older turns the whole turn. Pure.

Tokens are counted with a model's own `tokenizer.json` where its settings name one. Else they
are estimated from how many characters of each class a text has; docs/gateway.md has the error.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from tokenizers import Tokenizer

from gateway.asked import Asked, Message
from gateway.errors import Code, GatewayError
from pipeline.errors import ConfigError
from pipeline.gateway_settings import ModelSettings

Count = Callable[[str], int]
#: Around each message, and before the answer: what chat formats add, rounded up.
MESSAGE_TOKENS = 5
#: An image in full detail; more than most count for one, and nothing less is known of others.
PART_TOKENS = 1_105
#: Room for the answer where the request does not say: so many, or this share of the window.
ANSWER_TOKENS = 1_024
_ANSWER_SHARE = 4
#: Tokens per character of each class: least squares on the larger of cl100k's and o200k's
#: counts, over English, Japanese, code and JSON, with a tenth on top.
_CLASSES: tuple[tuple[bytes, float], ...] = (
    (string.ascii_letters.encode(), 0.1906),
    (string.digits.encode(), 0.6146),
    (string.punctuation.encode(), 0.5582),
    (b" ", 0.1614),
    (b"\n\t\r", 0.5383),
)
_NOT_ASCII = 1.1142
_MARGIN = 1.1
_SYSTEM = frozenset({"system", "developer"})
_RESULTS = frozenset({"tool", "function"})


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, more often too many than too few."""
    utf8 = text.encode("utf-8", "replace")
    ascii_only = text.encode("ascii", "ignore")
    tokens = _NOT_ASCII * (len(text) - len(ascii_only))
    for characters, weight in _CLASSES:
        tokens += weight * (len(ascii_only) - len(ascii_only.translate(None, characters)))
    # No tokenizer in use gives more than one for each byte.
    return min(len(utf8), int(_MARGIN * tokens) + 1) if text else 0


def load_counts(models: Iterable[ModelSettings]) -> dict[str, Count]:
    """Return how to count for each model that has a tokenizer of its own.

    Raises:
        ConfigError: a file is missing or is no tokenizer.
    """
    files = {m.name: m.tokenizer for m in models if m.tokenizer is not None}
    return {name: counting(_load(name, str(file))) for name, file in files.items()}


def _load(name: str, file: str) -> Tokenizer:
    try:
        return Tokenizer.from_file(file)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"gateway.models.{name}.tokenizer: {error}") from None


def counting(tokenizer: Tokenizer) -> Count:
    """Return a function that counts as `tokenizer` does."""

    def count(text: str) -> int:
        # A lone surrogate is no text to it.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return len(tokenizer.encode(clean, add_special_tokens=False).ids)

    return count


class TrimmedHistory:
    """A `ContextWindow`. Holds one counting function for each model that has its own."""

    def __init__(self, counts: Mapping[str, Count] | None = None) -> None:
        self._counts = dict(counts or {})

    def fit(self, asked: Asked, context_tokens: int) -> Asked:
        """Return the request with no more history than fits.

        Raises:
            GatewayError: CONTEXT_LENGTH_EXCEEDED, when not even what is always kept fits.
        """
        budget = context_tokens - _answer_tokens(asked, context_tokens)
        # Most requests are far from the end: a token has at least one byte.
        if _most_tokens(asked) <= budget:
            return asked
        count = self._counts.get(asked.model, estimate_tokens)
        budget -= count(_rest_of(asked.body)) + MESSAGE_TOKENS
        kept = choose_messages(asked.messages, budget, lambda m: count_message(m, count))
        if kept is None:
            detail = f"what must stay is over {context_tokens} tokens"
            raise GatewayError(Code.CONTEXT_LENGTH_EXCEEDED, detail, param="messages")
        if len(kept) == len(asked.messages):
            return asked
        return asked.with_messages([asked.messages[at] for at in kept])


def choose_messages(
    messages: Sequence[Message], budget: int, count: Callable[[Message], int]
) -> list[int] | None:
    """Return the places of the messages that stay, in order; None: what must stay is too much."""
    pinned, optional = _part(messages)
    left = budget - sum(count(messages[at]) for at in pinned)
    if left < 0:
        return None
    kept = list(pinned)
    for unit in reversed(optional):
        left -= sum(count(messages[at]) for at in unit)
        if left < 0:
            break
        kept += unit
    return sorted(kept)


def count_message(message: Message, count: Count) -> int:
    """Return the tokens of one message with what is around it."""
    content = message.get("content")
    tokens = MESSAGE_TOKENS + count(_rest_of(message))
    if isinstance(content, str):
        return tokens + count(content)
    for part in content or ():
        text = part.get("text") if isinstance(part, dict) else None
        tokens += count(text) if isinstance(text, str) else PART_TOKENS
    return tokens


def _part(messages: Sequence[Message]) -> tuple[list[int], list[list[int]]]:
    """Return what must stay, and the units of which the newest may."""
    pinned = [at for at, m in enumerate(messages) if m["role"] in _SYSTEM]
    steps = list(_steps(messages))
    users = [at for at, step in enumerate(steps) if _begins_turn(messages, step)]
    begin = users[-1] if users else 0
    turns: list[list[int]] = []
    for step in steps[:begin]:
        if not turns or _begins_turn(messages, step):
            turns.append([])
        turns[-1] += step
    under_way = steps[begin:]
    pinned += [at for step in under_way[-1:] for at in step]
    if users and len(under_way) > 1:
        pinned += under_way.pop(0)
    return pinned, turns + under_way[:-1]


def _begins_turn(messages: Sequence[Message], step: list[int]) -> bool:
    return bool(messages[step[0]]["role"] == "user")


def _steps(messages: Sequence[Message]) -> Iterable[list[int]]:
    """Put the results of tools with the message that called them."""
    step: list[int] = []
    for at, message in enumerate(messages):
        if message["role"] in _SYSTEM:
            continue
        if step and message["role"] not in _RESULTS:
            yield step
            step = []
        step.append(at)
    if step:
        yield step


def _answer_tokens(asked: Asked, context_tokens: int) -> int:
    said = asked.body.get("max_completion_tokens") or asked.body.get("max_tokens")
    if isinstance(said, int) and not isinstance(said, bool) and said > 0:
        return said
    return min(ANSWER_TOKENS, context_tokens // _ANSWER_SHARE)


def _most_tokens(asked: Asked) -> int:
    parts = sum(
        isinstance(part, dict) and not isinstance(part.get("text"), str)
        for m in asked.messages
        if isinstance(content := m.get("content"), list)
        for part in content
    )
    around = MESSAGE_TOKENS * (len(asked.messages) + 1) + PART_TOKENS * parts
    return len(msgspec.json.encode(asked.body)) + around


def _rest_of(body: Mapping[str, object]) -> str:
    """Return what else of a body or a message becomes tokens: tools, calls, formats."""
    keys = ("tools", "functions", "response_format", "tool_calls", "function_call", "name")
    rest = {key: body[key] for key in keys if body.get(key)}
    return msgspec.json.encode(rest).decode("utf-8", "replace") if rest else ""
