"""Prompt injection: how much in a text speaks for an attempt to take over the model.

Patterns in English and Japanese, and the commonest in nine more languages, each with a weight
(`gateway.injection_patterns`); what stands close together adds up. A text that quotes such
words and speaks *about* them is not meant. Patterns are RE2's, over plain readings
(`gateway.disguise`): the time is linear in the text, whatever the text is. Pure.

It knows what attacks look like, not what they mean: docs/gateway.md says how many it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import re2

from gateway.disguise import Reading, read, squeeze
from gateway.injection_patterns import (
    FLAT,
    LINED,
    QUOTED,
    SQUEEZED,
    TALK_ABOUT,
    TALK_AGAINST,
    TRIGGERS,
    TRIGGERS_SQUEEZED,
    Family,
    Pattern,
)

#: From this score on a text counts as an attempt.
FOUND_FROM = 1.0
#: In redacting, a sentence with so much evidence goes.
_PART_FROM = 0.4
#: What is weaker only adds to what there is, and no more than this.
_STRONG_FROM, _WEAK_MAX = 0.5, 0.5
#: Bytes before and behind a trigger that are looked at together.
_BEFORE, _BEHIND = 240, 480
_WINDOW_MAX = 1_600
#: Speaking of how to fend attacks off takes so much away.
_AGAINST = 0.6
#: What was hidden well is meant to be hidden.
_DECODED = 0.4
_UNIT_CHARACTERS = 400
#: One automaton for so many patterns, and what it may take of memory.
_GROUP_SIZE, _GROUP_BYTES = 16, 16 * 1024 * 1024
_UNIT_ENDS = re2.compile("[.!?。！？\n]+\\s*")
REPLACEMENT = "[injection]"


class Group(NamedTuple):
    """Patterns that are asked together first: most windows match none of them."""

    any_of: re2._Regexp
    patterns: tuple[Pattern, ...]


def _group(patterns: tuple[Pattern, ...]) -> tuple[Group, ...]:
    options = re2.Options()
    options.never_capture = True
    options.max_mem = _GROUP_BYTES
    parts = [patterns[at : at + _GROUP_SIZE] for at in range(0, len(patterns), _GROUP_SIZE)]
    return tuple(
        Group(re2.compile("|".join(f"(?:{each.source})" for each in part), options), part)
        for part in parts
    )


_FLAT, _LINED, _SQUEEZED = _group(FLAT), _group(LINED), _group(SQUEEZED)


class Evidence(NamedTuple):
    """How much speaks for an attempt, and of which family most of it is."""

    score: float
    family: Family | None

    @property
    def is_found(self) -> bool:
        return self.score >= FOUND_FROM


NOTHING = Evidence(0.0, None)


def weigh(text: str) -> Evidence:
    """Return the strongest evidence in `text`, over its readings and places."""
    best = NOTHING
    for reading in read(text):
        for found in _weigh_reading(reading):
            # What a decoder made is evidence only if it says something.
            if reading.decoded and found.score >= _STRONG_FROM:
                found = found._replace(score=found.score + _DECODED)
            best = max(best, found, key=lambda each: each.score)
    return best


def strip(text: str) -> str:
    """Return `text` with each sentence that is part of an attempt replaced by ``[injection]``.

    Where it cannot be told which are, nothing of it stays.
    """
    if not weigh(text).is_found:
        return text
    units = list(_units(text))
    kept = [REPLACEMENT if weigh(unit).score >= _PART_FROM else unit for unit in units]
    stripped = "".join(_merged(kept))
    return REPLACEMENT if weigh(stripped).is_found else stripped


def _merged(units: list[str]) -> Iterator[str]:
    for at, unit in enumerate(units):
        if unit != REPLACEMENT or at == 0 or units[at - 1] != REPLACEMENT:
            yield unit


def _units(text: str) -> Iterator[str]:
    """Cut a text into sentences and lines; put together they are the text."""
    begin = 0
    for match in (*_UNIT_ENDS.finditer(text), None):
        end = len(text) if match is None else match.end()
        while begin < end:
            yield text[begin : min(end, begin + _UNIT_CHARACTERS)]
            begin += _UNIT_CHARACTERS
        begin = end


def _weigh_reading(reading: Reading) -> Iterator[Evidence]:
    lined = reading.lined.encode("utf-8", "replace")
    flat = lined.replace(b"\n", b" ")
    for begin, end in _windows(TRIGGERS, flat):
        yield _weigh_window(flat[begin:end], lined[begin:end])
    squeezed = squeeze(_without_quotes(lined).decode("utf-8", "replace")).encode()
    for begin, end in _windows(TRIGGERS_SQUEEZED, squeezed):
        yield _add_up(_matching(_SQUEEZED, squeezed[begin:end]), flat)


def _windows(triggers: re2._Regexp, utf8: bytes) -> Iterator[tuple[int, int]]:
    """Yield what is around the triggers, joined where it overlaps, in pieces that do overlap."""
    begin = end = -1
    for match in triggers.finditer(utf8):
        start, stop = max(0, match.start() - _BEFORE), match.end() + _BEHIND
        if start > end or stop - begin > _WINDOW_MAX:
            if begin >= 0:
                yield begin, end
            begin = start
        end = stop
    if begin >= 0:
        yield begin, end


def _weigh_window(flat: bytes, lined: bytes) -> Evidence:
    if (quiet := _without_quotes(flat)) != flat:
        flat = lined = quiet
    squeezed = squeeze(flat.decode("utf-8", "ignore")).encode()
    found = (*_matching(_FLAT, flat), *_matching(_LINED, lined), *_matching(_SQUEEZED, squeezed))
    return _add_up(found, flat)


def _without_quotes(text: bytes) -> bytes:
    """Drop what is quoted, where the rest speaks about such texts; far from it, it does not."""
    if len(text) > _WINDOW_MAX or TALK_ABOUT.search(text) is None:
        return text
    rest: bytes = QUOTED.sub(b' "" ', text)
    # The talk must not be part of what is quoted.
    return text if TALK_ABOUT.search(rest) is None else rest


def _matching(groups: tuple[Group, ...], utf8: bytes) -> list[Pattern]:
    return [
        each
        for group in groups
        if group.any_of.search(utf8) is not None
        for each in group.patterns
        if each.regex.search(utf8) is not None
    ]


def _add_up(found: Sequence[Pattern], around: bytes) -> Evidence:
    if not found:
        return NOTHING
    families: dict[Family, float] = {}
    for each in found:
        families[each.family] = families.get(each.family, 0.0) + each.weight
    strong = sum(each.weight for each in found if each.weight >= _STRONG_FROM)
    weak = sum(each.weight for each in found if each.weight < _STRONG_FROM)
    score = strong + min(_WEAK_MAX, weak)
    if TALK_AGAINST.search(around) is not None:
        score = max(0.0, score - _AGAINST)
    return Evidence(score, max(families, key=lambda family: families[family]))
