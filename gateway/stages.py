"""What can be plugged into the gateway: guardrails, the answer cache, the context window.

Each is called on the event loop, one request at a time, and must return within about a
millisecond; time is a parameter. For long requests guards of what comes in and the context
window are called in threads instead, several at once. The order is

    guardrails in → cache → (for every attempt: context window → upstream) → guardrails out

so a cache sees what the guardrails let through, and keeps only whole answers of which the
guardrails had nothing to say. A stage that raises anything but `GatewayError` fails the
request with `internal_error`: a guardrail that broke must not let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from gateway.answer import Usage
from gateway.asked import Asked


class Action(StrEnum):
    """What a guardrail did, from the mildest to the hardest."""

    OBSERVED = "observed"
    REDACTED = "redacted"
    BLOCKED = "blocked"


class Verdict(Struct, frozen=True):
    """A guardrail spoke. What it saw is not in here: it would be logged."""

    #: A short stable name, e.g. ``pii.email``; it becomes part of the event.
    rule: str
    action: Action

    def __str__(self) -> str:
        return f"{self.rule}:{self.action}"


_HARDNESS = {action: rank for rank, action in enumerate(Action)}


def hardest(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the verdict that the event tells of: the first of the hardest."""
    return max(verdicts, key=lambda v: _HARDNESS[v.action], default=None)


class Checked(Struct, frozen=True):
    """A request after a guardrail: as it came or changed. BLOCKED among `verdicts` stops it."""

    asked: Asked
    verdicts: tuple[Verdict, ...] = ()


class InputGuard(Protocol):
    """Looks at a request before anything else does."""

    def check(self, asked: Asked) -> Checked: ...


class TextGuard(Protocol):
    """Looks at one text of one answer as it comes, in pieces of any cut.

    The same text must give the same result however it is cut, so a guard holds back what
    may be the beginning of something. Once BLOCKED is among `verdicts` nothing that was
    held back is sent, and the answer ends.
    """

    @property
    def verdicts(self) -> Sequence[Verdict]: ...

    def feed(self, text: str) -> str:
        """Take in text; return what may be sent now."""
        ...

    def close(self) -> str:
        """The text is over: return what is left of it."""
        ...


class OutputGuard(Protocol):
    """Makes a `TextGuard` for every text of an answer: each choice, each tool call's arguments."""

    def open(self, asked: Asked) -> TextGuard: ...


class Looked(Struct, frozen=True):
    """What a cache says. With no `place`, what is answered to the request is not to be kept."""

    outcome: Literal["hit", "miss", "bypass"]
    #: With a hit: a whole `chat.completion` object.
    completion: dict[str, Any] | None = None
    #: With a hit: the cosine of the two questions, and how long ago the answer was kept.
    similarity: float | None = None
    age_s: float = 0.0
    #: With a hit: what the answer used when it was made, and who made it.
    saved: Usage | None = None
    provider: str | None = None
    #: The cache's own, for `keep`.
    place: object | None = None


class AnswerCache(Protocol):
    """Answers from what was answered before. Bounded, and parted by `asked.owner`."""

    def look_up(self, asked: Asked, now_s: float) -> Looked: ...

    def keep(
        self,
        looked: Looked,
        completion: dict[str, Any],
        now_s: float,
        *,
        usage: Usage,
        provider: str | None,
    ) -> None:
        """Keep an answer where `look_up` gave a place: whole, and no guard has spoken.

        A stream's is given here as the `chat.completion` that it adds up to.
        """
        ...


class ContextWindow(Protocol):
    """Trims a conversation to what fits into a model."""

    def fit(self, asked: Asked, context_tokens: int) -> Asked:
        """Return the request with no more history than fits.

        Raises:
            GatewayError: CONTEXT_LENGTH_EXCEEDED, when even the newest turn does not fit.
        """
        ...


class Stages(Struct, frozen=True, kw_only=True):
    """The plugged-in stages of one gateway, put together in `gateway.build`."""

    input_guards: tuple[InputGuard, ...] = ()
    output_guard: OutputGuard | None = None
    cache: AnswerCache | None = None
    context: ContextWindow | None = None


NO_STAGES = Stages()
#: Where an answer's texts are, for the guards: (choice, "content"), (choice, "tool/0").
TextPlace = tuple[int, str]


class AnswerGuards:
    """The guards over one answer's texts. Without an `OutputGuard` everything passes."""

    def __init__(self, guard: OutputGuard, asked: Asked) -> None:
        self._guard = guard
        self._asked = asked
        self._open: dict[TextPlace, TextGuard] = {}

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for guard in self._open.values() for verdict in guard.verdicts]

    @property
    def blocked(self) -> bool:
        return any(v.action is Action.BLOCKED for v in self.verdicts)

    def check_completion(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return a whole answer with its texts as they may be sent; look at `blocked` then."""
        changed = msgspec.json.decode(msgspec.json.encode(completion))
        for choice in changed.get("choices") or ():
            self._rewrite(choice.get("index", 0), choice.get("message") or {}, whole=True)
        return dict(changed)

    def check_chunk(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what may be sent for a chunk: what was held back comes before the end."""
        tails = []
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            self._rewrite(index, choice.get("delta") or {}, whole=False)
            if choice.get("finish_reason"):
                tails += self._close(index, chunk)
        return [*tails, chunk]

    def _rewrite(self, index: int, message: dict[str, Any], *, whole: bool) -> None:
        for key in ("content", "refusal"):
            if isinstance(text := message.get(key), str):
                message[key] = self._pass((index, key), text, whole=whole)
        for position, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") or {}
            if isinstance(text := function.get("arguments"), str):
                place = (index, f"tool/{call.get('index', position)}")
                function["arguments"] = self._pass(place, text, whole=whole)

    def _pass(self, place: TextPlace, text: str, *, whole: bool) -> str:
        if place not in self._open:
            self._open[place] = self._guard.open(self._asked)
        guard = self._open[place]
        return guard.feed(text) + guard.close() if whole else guard.feed(text)

    def _close(self, index: int, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        tails = []
        for place, guard in self._open.items():
            if place[0] == index and (text := guard.close()):
                choice = {"index": index, "delta": _delta(place, text), "finish_reason": None}
                tails.append({**chunk, "choices": [choice], "usage": None})
        return tails


def _delta(place: TextPlace, text: str) -> dict[str, Any]:
    kind = place[1]
    if kind.startswith("tool/"):
        call = {"index": int(kind.removeprefix("tool/")), "function": {"arguments": text}}
        return {"tool_calls": [call]}
    return {kind: text}
