"""A refused record as it may be kept: its bytes, without what must not be stored.

The bytes may be anything: no JSON, no UTF-8, cut in half. So nothing is parsed and
encoded again; what is found is replaced where it stands, and all else stays as it
came, to the byte. JSON's escapes are looked through: ``\\u0040`` is an at sign.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection
from typing import NamedTuple

from pipeline.core.redaction.redactor import EVERY_KIND, Redacted, find, replace_spans
from pipeline.core.redaction.spans import Kind, Span

_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_STRING = r'"\s*:\s*"((?:[^"\\]|\\.)*)'
_USER = re.compile(r'"gateway\.user' + _STRING, re.DOTALL)
#: Keys of texts, ours and those of the APIs whose requests are sent here by mistake.
_TEXTS = re.compile(
    r'"(?:[\w.-]*[.])?(?:text|content|prompt|completion|response|input|output|messages?|explanation)'
    + _STRING,
    re.DOTALL,
)
#: No label may be this long: whatever it is called, it is a text.
_LONG = re.compile(r'"((?:[^"\\]|\\.){257,})', re.DOTALL)
USER, TEXT = "[user]", "[text]"


class RecordPolicy(NamedTuple):
    """What of a refused record may be kept."""

    kinds: frozenset[Kind] = EVERY_KIND
    #: Prompts and answers, redacted; without this none of their words.
    texts: bool = False


def redact_record(raw: bytes, policy: RecordPolicy) -> bytes:
    """Return what may be kept of a record. Bytes that are no UTF-8 stay where they were."""
    text = raw.decode("utf-8", "surrogateescape")
    text = _USER.sub(lambda m: _replace(m, USER), text)
    if not policy.texts:
        text = _TEXTS.sub(lambda m: _replace(m, TEXT), text)
        text = _LONG.sub(lambda m: _replace(m, TEXT), text)
    redacted = redact_escaped(text, policy.kinds).text
    return redacted.encode("utf-8", "surrogateescape")


def redact_escaped(text: str, kinds: Collection[Kind] = EVERY_KIND) -> Redacted:
    """Redact a text in which JSON's escapes stand for characters."""
    escapes = [m.span() for m in _ESCAPE.finditer(text)] if "\\" in text else []
    read, places = _read_through(text, escapes)
    found = find(read, kinds)
    written = [Span(k, _place(places, start), _place(places, end)) for k, start, end in found]
    return replace_spans(text, written)


class _Places(NamedTuple):
    """Where the text that is read differs from the one that is written: at the escapes."""

    #: Behind each escape, in what is read, and by how much what is written is ahead.
    read: list[int]
    ahead: list[int]


def _read_through(text: str, escapes: list[tuple[int, int]]) -> tuple[str, _Places]:
    parts: list[str] = []
    places = _Places([], [])
    end = ahead = 0
    for begin, stop in escapes:
        parts += (text[end:begin], _character(text[begin:stop]))
        ahead += stop - begin - 1
        places.read.append(stop - ahead)
        places.ahead.append(ahead)
        end = stop
    parts.append(text[end:])
    return "".join(parts), places


def _character(escape: str) -> str:
    if escape[1] == "u":
        return chr(int(escape[2:], 16))
    return _SHORT.get(escape[1], escape[1])


def _place(places: _Places, read: int) -> int:
    """Where in what is written a place of what is read is."""
    at = bisect_left(places.read, read + 1)
    return read + (places.ahead[at - 1] if at else 0)


def _replace(match: re.Match[str], by: str) -> str:
    return match[0][: match.start(1) - match.start()] + by
