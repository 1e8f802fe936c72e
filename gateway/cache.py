"""The semantic cache: what was answered before answers a question that means the same.

Compared by meaning is the last user message alone, by the cosine of its vector to those of
questions asked before, and only within one space: same owner (tenant, else key), model,
parameters, earlier messages, and `gateway.likeness` of the message. A space is the hash of all
that, so an answer cannot be found from another's. Longer messages are compared to the letter.

Delivery: none promised. Answers are this process's alone and gone with it; of two like requests
at once both are sent. An answer is given for `ttl_s` from when it came, however often.

Memory: `entries` and `bytes` are caps. Above them goes what was used longest ago: of the owner
who adds, while that one has more than its share (`entries` over the number of owners, or
`bytes`), else of all. Owners are those of the configured keys.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from gateway.answer import Usage
from gateway.asked import Asked, text_of
from gateway.likeness import facts_of, wants_another, wording_of, words_of
from gateway.stages import Looked
from gateway.vectors import Vector, VectorSpace
from pipeline.gateway_settings import CacheSettings

#: Returns a text's vector, shape (d,), of length 1; all zeros where it knows nothing of a text.
Encode = Callable[[str], Vector]
#: In these nothing of an answer shows.
_NOT_IN_KEY = frozenset(
    {
        "messages", "metadata", "n", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "stream", "stream_options", "user",
    }
)  # fmt: skip
#: What else a request may have. With anything that is not known here it is left alone: tools,
#: searches of the web, sounds.
_IN_KEY = frozenset(
    {
        "chat_template_kwargs", "frequency_penalty", "logit_bias", "max_completion_tokens",
        "max_tokens", "min_p", "model", "presence_penalty", "reasoning_effort",
        "repetition_penalty", "response_format", "seed", "stop", "temperature", "top_k", "top_p",
        "verbosity",
    }
)  # fmt: skip
#: So long may all messages be together.
CONVERSATION_CHARACTERS = 100_000
#: An entry's part in dictionaries and in the graph, about.
_ENTRY_BYTES = 1_500
_ANSWERING = frozenset({"system", "developer", "user", "assistant"})
_CANDIDATES = 4
#: Of what is too old, so much goes with every call.
_EXPIRED_AT_ONCE = 16
_NOTHING_USED = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class Gone(StrEnum):
    """Why an entry went."""

    EXPIRED = "expired"
    FULL = "full"
    REPLACED = "replaced"


class Place(Struct, frozen=True):
    """Where an answer to a request belongs."""

    owner: str
    #: Of the whole request.
    exact: bytes
    #: None: the text is too long to be compared by meaning, or nothing of it is known.
    space: bytes | None = None
    vector: Any = None


class _Entry(Struct, frozen=True):
    number: int
    place: Place
    raw: bytes
    kept_s: float
    size: int
    usage: Usage
    provider: str | None


class SemanticCache:
    """An `AnswerCache`. Looking up takes well under a millisecond, keeping as long.

    Not thread-safe: it is called on the event loop.
    """

    def __init__(self, settings: CacheSettings, models: frozenset[str], encode: Encode) -> None:
        """`models`: those whose answers are kept."""
        self._settings = settings
        self._models = models
        self._encode = encode
        self._numbers = 0
        #: In the order of their last use: of all, and of each owner.
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._owned: dict[str, OrderedDict[int, int]] = {}
        self._owned_bytes: Counter[str] = Counter()
        #: In the order in which they came.
        self._by_age: OrderedDict[int, float] = OrderedDict()
        self._exact: dict[bytes, int] = {}
        self._spaces: dict[bytes, VectorSpace] = {}
        self.bytes = 0
        self.stored = 0
        self.gone: Counter[Gone] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, asked: Asked, now_s: float) -> Looked:
        """Find an answer. A request that wants a fresh one (``no-cache``) still gets a place."""
        self._expire(now_s)
        if asked.no_store or not self._is_cacheable(asked):
            return Looked("bypass")
        place = self._place(asked)
        if asked.no_cache:
            return Looked("bypass", place=place)
        if (number := self._exact.get(place.exact)) is not None:
            found = self._answer(number, 1.0, now_s)
            if found is not None:
                return found
        for number, similarity in self._near(place):
            if (found := self._answer(number, similarity, now_s)) is not None:
                return found
        return Looked("miss", place=place)

    def keep(
        self,
        looked: Looked,
        completion: dict[str, Any],
        now_s: float,
        *,
        usage: Usage,
        provider: str | None,
    ) -> None:
        """Keep an answer in the place that `look_up` gave. One that was there before goes."""
        place = looked.place
        if not isinstance(place, Place):
            return
        # Nothing is used when it is given again.
        raw = msgspec.json.encode({**completion, "usage": _NOTHING_USED})
        size = len(raw) + _ENTRY_BYTES + (0 if place.vector is None else place.vector.nbytes)
        if size > self._settings.bytes:
            return
        if (before := self._exact.get(place.exact)) is not None:
            self._drop(before, Gone.REPLACED)
        self._numbers += 1
        entry = _Entry(self._numbers, place, raw, now_s, size, usage, provider)
        self._add(entry)
        self._make_room(place.owner)

    # --- What a request is -----------------------------------------------------------------

    def _is_cacheable(self, asked: Asked) -> bool:
        body, messages = asked.body, asked.messages
        if asked.model not in self._models or not messages or messages[-1]["role"] != "user":
            return False
        if any(key not in _NOT_IN_KEY and key not in _IN_KEY for key in _given(body)):
            return False
        if body.get("n") not in (None, 1) or not self._is_calm(body.get("temperature")):
            return False
        texts = [_plain_text(message) for message in messages]
        if any(text is None for text in texts):
            return False
        if sum(len(text or "") for text in texts) > CONVERSATION_CHARACTERS:
            return False
        return bool(texts[-1]) and not wants_another(texts[-1] or "")

    def _is_calm(self, temperature: Any) -> bool:
        if temperature is None:
            return True
        is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        return is_number and temperature <= self._settings.temperature

    def _place(self, asked: Asked) -> Place:
        text = text_of(asked.messages[-1]["content"])
        around = _around(asked)
        exact = _digest(around, text)
        if len(text) > self._settings.text_characters:
            return Place(asked.owner, exact)
        wording = wording_of(text)
        vector = self._encode(wording)
        if not vector.any():
            return Place(asked.owner, exact)
        told = words_of(wording) if self._settings.same == "words" else facts_of(text)
        return Place(asked.owner, exact, _digest(around, told, "like"), vector)

    # --- Finding ---------------------------------------------------------------------------

    def _near(self, place: Place) -> Sequence[tuple[int, float]]:
        space = None if place.space is None else self._spaces.get(place.space)
        if space is None:
            return ()
        return space.nearest(place.vector, self._settings.similarity, _CANDIDATES)

    def _answer(self, number: int, similarity: float, now_s: float) -> Looked | None:
        entry = self._entries[number]
        if now_s - entry.kept_s >= self._settings.ttl_s:
            self._drop(number, Gone.EXPIRED)
            return None
        self._entries.move_to_end(number)
        self._owned[entry.place.owner].move_to_end(number)
        return Looked(
            "hit",
            msgspec.json.decode(entry.raw),
            similarity=min(1.0, similarity),
            age_s=max(0.0, now_s - entry.kept_s),
            saved=entry.usage,
            provider=entry.provider,
        )

    # --- Coming and going ------------------------------------------------------------------

    def _add(self, entry: _Entry) -> None:
        number, place = entry.number, entry.place
        self._entries[number] = entry
        self._by_age[number] = entry.kept_s
        self._exact[place.exact] = number
        self._owned.setdefault(place.owner, OrderedDict())[number] = number
        self._owned_bytes[place.owner] += entry.size
        self.bytes += entry.size
        self.stored += 1
        if place.space is not None:
            if place.space not in self._spaces:
                self._spaces[place.space] = VectorSpace(len(place.vector))
            self._spaces[place.space].add(number, place.vector)

    def _drop(self, number: int, why: Gone) -> None:
        entry = self._entries.pop(number)
        place = entry.place
        del self._by_age[number], self._exact[place.exact], self._owned[place.owner][number]
        self._owned_bytes[place.owner] -= entry.size
        self.bytes -= entry.size
        self.gone[why] += 1
        if not self._owned[place.owner]:
            del self._owned[place.owner], self._owned_bytes[place.owner]
        if place.space is not None:
            space = self._spaces[place.space]
            space.remove(number)
            if not len(space):
                del self._spaces[place.space]

    def _expire(self, now_s: float) -> None:
        for _ in range(_EXPIRED_AT_ONCE):
            number = next(iter(self._by_age), None)
            if number is None or now_s - self._by_age[number] < self._settings.ttl_s:
                return
            self._drop(number, Gone.EXPIRED)

    def _make_room(self, owner: str) -> None:
        most, most_bytes = self._settings.entries, self._settings.bytes
        while len(self._entries) > most or self.bytes > most_bytes:
            own: Mapping[int, int] = self._owned.get(owner, {})
            owners = len(self._owned)
            share = len(own) * owners > most or self._owned_bytes[owner] * owners > most_bytes
            over = len(own) > 1 and share
            self._drop(next(iter(own if over else self._entries)), Gone.FULL)


def _given(body: dict[str, Any]) -> list[str]:
    """Return the parameters that say something: not null, not empty, not off."""
    return [key for key, value in body.items() if not _is_empty(value)]


def _is_empty(value: Any) -> bool:
    # A temperature of 0 says something.
    return value is None or value is False or value == [] or value == {}


def _plain_text(message: dict[str, Any]) -> str | None:
    """Return a message's text; None where there is more to it than text."""
    if message["role"] not in _ANSWERING or message.get("tool_calls"):
        return None
    content = message.get("content")
    if isinstance(content, list):
        if any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
            return None
        return text_of(content)
    return content if isinstance(content, str) else None


def _around(asked: Asked) -> bytes:
    """Return all that must be the same to the letter."""
    parameters = {key: asked.body[key] for key in _given(asked.body) if key in _IN_KEY}
    last = {key: value for key, value in asked.messages[-1].items() if key != "content"}
    whole = [asked.owner, asked.model, parameters, asked.messages[:-1], last]
    return msgspec.json.encode(whole, order="deterministic")


def _digest(around: bytes, *texts: str) -> bytes:
    digest = hashlib.blake2b(around, digest_size=20)
    for text in texts:
        utf8 = text.encode("utf-8", "surrogatepass")
        digest.update(b"\0%d\0" % len(utf8))
        digest.update(utf8)
    return digest.digest()
