"""What is asked and answered: prompts, answers and refusals in English and Japanese.

The wording stands in ``data/texts.toml``. Every function is pure: what varies
comes out of the `Draws` it is given.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TypeVar

import msgspec
from msgspec import Struct

Item = TypeVar("Item")

#: Between an answer's opening and its closing there are at most so many sentences.
MAX_SENTENCES = 6
#: How an amount of so many euros is written, and what stands between two sentences.
_AMOUNT = {"en": "€{}.90", "ja": "{}00円"}
_JOINT = {"en": " ", "ja": ""}


class Phrases(Struct, frozen=True, forbid_unknown_fields=True):
    """What one route says in one language."""

    subject: str
    prompts: tuple[str, ...]
    openings: tuple[str, ...]
    sentences: tuple[str, ...]
    closings: tuple[str, ...]


class Wording(Struct, frozen=True, forbid_unknown_fields=True):
    """All of ``data/texts.toml``: slots by language, phrases by route and language."""

    slots: dict[str, dict[str, tuple[str, ...]]]
    routes: dict[str, dict[str, Phrases]]
    refusals: dict[str, tuple[str, ...]]


@cache
def load_wording() -> Wording:
    """Read the texts that come with the package."""
    file = resources.files(__package__).joinpath("data", "texts.toml")
    return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Wording)


class Draws:
    """A row of random integers, taken one after the other and then again from the first."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._next = 0

    def take(self) -> int:
        """Return the next integer, 0 or more."""
        number = self._numbers[self._next % len(self._numbers)]
        self._next += 1
        return number

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self.take() % len(items)]


class Topic(Struct, frozen=True):
    """What one request is about, so that its prompt and its answer speak of the same order."""

    route: str
    language: str
    slots: dict[str, str]


def choose_topic(route: str, language: str, draws: Draws) -> Topic:
    """Fill every slot of the language."""
    slots = {name: draws.pick(values) for name, values in load_wording().slots[language].items()}
    slots |= {
        "number": str(100_000 + draws.take() % 900_000),
        "days": str(2 + draws.take() % 13),
        "amount": _AMOUNT[language].format(20 + draws.take() % 900),
    }
    return Topic(route, language, slots)


def write_prompt(topic: Topic, draws: Draws) -> str:
    """Return what the user asked."""
    return draws.pick(_phrases(topic).prompts).format_map(topic.slots)


def write_answer(topic: Topic, draws: Draws) -> str:
    """Return a helpful answer, of whatever length.

    Not of that of its output tokens: in the trace they change with what is asked, hour
    by hour, and of that the prompts here say nothing. It would look like another model.
    """
    phrases = _phrases(topic)
    first = draws.take()
    count = first // 7 % (min(MAX_SENTENCES, len(phrases.sentences)) + 1)
    parts = [draws.pick(phrases.openings)]
    parts += [phrases.sentences[(first + i) % len(phrases.sentences)] for i in range(count)]
    if count:
        parts.append(draws.pick(phrases.closings))
    return _joint(topic).join(parts).format_map(topic.slots)


def write_refusal(topic: Topic, draws: Draws) -> str:
    """Return an answer that declines."""
    refusal = draws.pick(load_wording().refusals[topic.language])
    return refusal.format(subject=_phrases(topic).subject)


def cut_off(text: str) -> str:
    """Return the text as a token limit leaves it: broken off well before its end."""
    return text[: max(1, len(text) * 2 // 3)]


def _phrases(topic: Topic) -> Phrases:
    return load_wording().routes[topic.route][topic.language]


def _joint(topic: Topic) -> str:
    # A translation is written in the other language.
    written = {"en": "ja", "ja": "en"} if topic.route == "translate" else {}
    return _JOINT[written.get(topic.language, topic.language)]
