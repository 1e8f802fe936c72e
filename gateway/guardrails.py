"""Guardrails: what may go into a model and what may come out of it, by rules that each have a mode.

In: length, prompt injection, personal data and secrets. Out: those kinds of the last whose form
shows where they end, on streams too. What is found is what `gateway.injection` and
`pipeline.core.redaction` find. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import re2

from gateway.asked import Asked
from gateway.injection import NOTHING, strip, weigh
from gateway.stages import Action, Checked, Verdict
from pipeline.core.redaction import Kind, Span, find, redact, replace_spans
from pipeline.core.redaction.plain import to_alike, to_bytes
from pipeline.gateway_settings import GuardMode, GuardrailSettings

#: A stretch of text without a place where everything ends is looked at in pieces of about this.
STRETCH = 1_024
_STEP = 256
#: What of a stretch cut by force is looked at once more, with what follows.
_OVERLAP = 128
#: What went before, as far as a recogniser looks back.
_CONTEXT = 64
_END_MARK = 80
_ACTIONS: dict[GuardMode, Action] = {
    "observe": Action.OBSERVED,
    "redact": Action.REDACTED,
    "block": Action.BLOCKED,
}
#: What can be part of something found, and is no letter or digit; a space is looked at apart.
_JOINS = frozenset(b"()._-+/=:@%'")
_SPACE = ord(" ")
_KEY_END = re2.compile(rb"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_ASKING = frozenset({"user", "tool", "function"})


class InputRules:
    """An `InputGuard`: the rules of ``[gateway.guardrails]`` for what comes in.

    Looked at is what users and tools say, in every message; what a system message or an
    earlier answer holds came from elsewhere.
    """

    def __init__(self, settings: GuardrailSettings) -> None:
        self._settings = settings
        self._kinds = frozenset(settings.input)

    def check(self, asked: Asked) -> Checked:
        """Return the request as it may go on, and what the rules say of it."""
        texts = [text for text in _texts_of(asked) if text]
        verdicts = self._check_length(texts)
        asked, injected = self._check_injection(asked, texts)
        verdicts += injected
        modes = self._settings.input
        found = {span.kind for text in texts for span in find(text, self._kinds)} if modes else ()
        verdicts += [_verdict(kind, modes[kind]) for kind in Kind if kind in found]
        # What is blocked is hidden too: it becomes part of the event.
        hidden = frozenset(kind for kind in found if modes[kind] != "observe")
        if hidden:
            asked = _rewrite(asked, lambda text: redact(text, hidden).text)
        return Checked(asked, tuple(verdicts))

    def _check_length(self, texts: Sequence[str]) -> list[Verdict]:
        most = self._settings.input_characters
        if most is None or sum(map(len, texts)) <= most:
            return []
        return [Verdict("length", _ACTIONS[self._settings.length])]

    def _check_injection(self, asked: Asked, texts: Sequence[str]) -> tuple[Asked, list[Verdict]]:
        mode = self._settings.injection
        if mode is None:
            return asked, []
        worst = max(map(weigh, texts), key=lambda each: each.score, default=NOTHING)
        if not worst.is_found:
            return asked, []
        if mode == "redact":
            asked = _rewrite(asked, strip)
        return asked, [Verdict(f"injection.{worst.family}", _ACTIONS[mode])]


class OutputRules:
    """An `OutputGuard`: the rules of ``[gateway.guardrails]`` for what comes out."""

    def __init__(self, modes: Mapping[Kind, GuardMode]) -> None:
        self._modes = dict(modes)

    def open(self, asked: Asked) -> StreamedText:
        return StreamedText(self._modes)


class StreamedText:
    """A `TextGuard`: redacts a text that comes in pieces as if it were whole.

    Held back is what follows the last place that nothing found can reach across: a line's
    end, most punctuation, a character of Japanese, the space behind a word; mostly a word.
    A stretch of over 1,024 characters without such a place is cut by force, so that no more
    than 1,280 are ever held. What is found at the end of one that is cut, its rest is hidden
    too, until such a place comes; a private key until its end.

    The same however the text is cut: what is decided by force is decided at every 256th
    character and nowhere else. Memory: the above.
    """

    def __init__(self, modes: Mapping[Kind, GuardMode]) -> None:
        self._modes = modes
        self._kinds = frozenset(modes)
        self._verdicts: dict[Kind, Verdict] = {}
        self._taken = 0
        #: Sent or hidden already; recognisers look back at it.
        self._before = ""
        self._held = ""
        #: What is under way, and hidden or sent as `_shows` says: the rest of a key.
        self._inside: Kind | None = None
        self._tail = ""
        #: A private key has just ended: what overlaps its end is part of it.
        self._behind_key = False

    @property
    def verdicts(self) -> Sequence[Verdict]:
        return tuple(self._verdicts.values())

    def feed(self, text: str) -> str:
        """Take in text; return what may be sent now."""
        sent = []
        while text:
            room = _STEP - self._taken % _STEP
            piece, text = text[:room], text[room:]
            self._taken += len(piece)
            sent.append(self._take(piece, at_step=len(piece) == room))
        return "".join(sent)

    def close(self) -> str:
        """The text is over: return what is left of it."""
        sent = self._release(len(self._held))
        self._inside, self._before = None, ""
        return sent

    def _take(self, piece: str, *, at_step: bool) -> str:
        sent = ""
        while piece:
            if self._inside is not None:
                gone, piece = self._skip(self._inside, piece)
                sent += gone
            self._held += piece
            # There is none in what was held before; its last character says what a space is.
            seen = max(0, len(self._held) - len(piece) - 1)
            end = seen + at if (at := _last_end(self._held[seen:])) else 0
            sent += self._release(end) if end else ""
            # What is held now is inside of what has begun before it.
            piece = ""
            if self._inside is not None:
                piece, self._held = self._held, ""
        if at_step and len(self._held) >= STRETCH:
            sent += self._force()
        return sent

    def _release(self, end: int) -> str:
        """Let go of what is held up to `end`, with what was found in it replaced."""
        spans = self._find(self._held[:end])
        if spans and spans[-1].end == end and spans[-1].kind is Kind.PRIVATE_KEY:
            self._begin_inside(spans[-1], self._held[:end])
        return self._let_go(end, spans)

    def _force(self) -> str:
        """Let go of most of a stretch that has no end."""
        spans = self._find(self._held)
        end = len(self._held) - _OVERLAP
        crossing = [span for span in spans if span.start < end < span.end]
        if crossing:
            end = crossing[0].end
            if end == len(self._held):
                self._begin_inside(crossing[0], self._held)
        return self._let_go(end, [span for span in spans if span.end <= end])

    def _let_go(self, end: int, spans: Sequence[Span]) -> str:
        gone, self._held = self._held[:end], self._held[end:]
        if not gone:
            return ""
        self._before = (self._before + gone)[-_CONTEXT:]
        sent = ""
        if self._behind_key and spans and spans[0].start < 0:
            joined, spans = spans[0].end, [_move(s, -spans[0].end) for s in spans[1:]]
            sent = gone[:joined] if self._modes[Kind.PRIVATE_KEY] == "observe" else ""
            gone = gone[joined:]
        self._behind_key = False
        for span in spans:
            self._verdicts.setdefault(span.kind, _verdict(span.kind, self._modes[span.kind]))
        hidden = [s._replace(start=max(0, s.start)) for s in spans if self._hides(s.kind)]
        return sent + replace_spans(gone, hidden).text

    def _hides(self, kind: Kind) -> bool:
        return self._modes[kind] != "observe"

    def _find(self, text: str) -> list[Span]:
        """Find in `text`, with what went before it in view: a span may begin there, below 0."""
        shift = len(self._before)
        found = find(self._before + text, self._kinds)
        return [_move(span, -shift) for span in found if span.end > shift]

    # --- Inside of something whose end has not come -----------------------------------------

    def _begin_inside(self, span: Span, text: str) -> None:
        if span.kind is Kind.PRIVATE_KEY and _key_end(text[max(0, span.start) :]) is not None:
            return
        self._inside, self._tail = span.kind, text[max(0, span.start) :][-_END_MARK:]

    def _skip(self, kind: Kind, piece: str) -> tuple[str, str]:
        """Part a piece into what is the rest of something, as it may be sent, and what follows."""
        if kind is Kind.PRIVATE_KEY:
            read = self._tail + piece
            end = _key_end(read)
            self._tail = read[-_END_MARK:]
            size = len(piece) if end is None else max(0, end - (len(read) - len(piece)))
        else:
            end = _first_end(piece)
            size = len(piece) if end is None else end
        if end is not None:
            self._inside, self._behind_key = None, kind is Kind.PRIVATE_KEY
        gone = piece[:size]
        self._before = (self._before + gone)[-_CONTEXT:]
        return "" if self._hides(kind) else gone, piece[size:]


def _verdict(kind: Kind, mode: GuardMode) -> Verdict:
    return Verdict(f"pii.{kind}", _ACTIONS[mode])


def _move(span: Span, by: int) -> Span:
    return Span(span.kind, span.start + by, span.end + by)


def _key_end(text: str) -> int | None:
    """Return where a private key that began before or in `text` ends."""
    plain = to_bytes(to_alike(text))
    match = _KEY_END.search(plain)
    return None if match is None else int(match.end())


def _last_end(text: str) -> int:
    """Return the last place that nothing found reaches across; 0: there is none."""
    plain = to_bytes(to_alike(text))
    for at in range(len(plain) - 1, -1, -1):
        if _is_break(plain[at]) or (plain[at] == _SPACE and plain[at - 1 : at].islower()):
            return at + 1
    return 0


def _first_end(text: str) -> int | None:
    """Return where the rest of a key ends: it has no space in it."""
    for at, code in enumerate(to_bytes(to_alike(text))):
        if code == _SPACE or _is_break(code):
            return at
    return None


def _is_break(code: int) -> bool:
    return code != _SPACE and code not in _JOINS and not chr(code).isalnum()


# --- What of a request is looked at -----------------------------------------------------------


def _texts_of(asked: Asked) -> list[str]:
    seen: list[str] = []

    def note(text: str) -> str:
        seen.append(text)
        return text

    _rewrite(asked, note)
    return seen


def _rewrite(asked: Asked, change: Callable[[str], str]) -> Asked:
    """Return the request with each text that is looked at replaced by what `change` makes of it."""
    if asked.operation == "embeddings":
        body = {**asked.body, "input": _rewrite_content(asked.body.get("input"), change)}
        return msgspec.structs.replace(asked, body=body)
    return asked.with_messages(
        [
            {**message, "content": _rewrite_content(message.get("content"), change)}
            if message["role"] in _ASKING
            else message
            for message in asked.messages
        ]
    )


def _rewrite_content(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, list):
        return [_rewrite_part(part, change) for part in content]
    return content


def _rewrite_part(part: Any, change: Callable[[str], str]) -> Any:
    if isinstance(part, str):
        return change(part)
    if isinstance(part, dict) and isinstance(text := part.get("text"), str):
        return {**part, "text": change(text)}
    return part
