"""Gateway events of 1 KB, made from English prose: the same ones for the same arguments.

Only the standard library is used, so that any environment can run it. The
prose is that of Python's own manual (`pydoc_data.topics`), or of a file.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

EVENT_BYTES = 1_024
TEXT_LENGTH = 1_100
#: Bodies (texts, tokens, latencies) that are made once and drawn from; ids and times are new.
BODIES = 20_000
PROSE_LENGTH_MAX = 20_000_000
#: Underlines and the borders of tables are no prose, and every sign in them is a token.
_RULES = re.compile(r"[^\w\s]{4,}")
_SPACE = re.compile(r"\s+")
_PROMPT_SHARE = 1 / 3
_ERROR_RATE = 0.01
_REFUSAL_RATE = 0.02
_REFUSAL = "I'm sorry, but I can't help with that request."
_PROVIDERS = ("openai", "anthropic", "google", "mistral")
_MODELS = (
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("claude-sonnet-4-20250514", "claude-sonnet-4-20250514"),
    ("gemini-2.0-flash", "gemini-2.0-flash-001"),
    ("mistral-small-latest", "mistral-small-2503"),
    ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
    ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
    ("gemini-2.5-pro", "gemini-2.5-pro-001"),
    ("mistral-large-2411", "mistral-large-2411"),
)
_REGIONS = ("us-east", "eu-west", "ap-east")


@dataclass(frozen=True)
class Cast:
    """How many different values each dimension takes."""

    models: int
    routes: int
    tenants: int
    prompts: int
    versions: int
    regions: int

    @property
    def monitors(self) -> int:
        """How many monitors the default groupings make of it, once every value has been seen."""
        return self._shared + self.tenants

    @property
    def _shared(self) -> int:
        crossed = self.models * self.routes + self.prompts * self.versions
        providers = min(self.models, len(_PROVIDERS))
        return 2 * self.models + self.routes + crossed + self.prompts + providers * self.regions


def cast_for(monitors: int) -> Cast:
    """Return a cast with exactly so many monitors, at least 10: what is left over are tenants."""
    if monitors < 10:
        raise ValueError("the default groupings make at least 10 monitors of two tenants")
    large = monitors >= 100
    cast = Cast(
        models=min(len(_MODELS), 1 + monitors // 40),
        routes=min(10, 1 + monitors // 40),
        tenants=0,
        prompts=max(1, monitors // 5),
        versions=2 if large else 1,
        regions=len(_REGIONS) if large else 1,
    )
    while cast.monitors > monitors - 2:
        cast = Cast(cast.models, cast.routes, 0, cast.prompts - 1, cast.versions, cast.regions)
    tenants = monitors - cast.monitors
    return Cast(cast.models, cast.routes, tenants, cast.prompts, cast.versions, cast.regions)


def read_prose(data: Path | None = None) -> str:
    """Return prose as one line: of Python's manual, or of a gzipped file of JSON lines.

    A line of the file has its text under ``response``.
    """
    if data is None:
        from pydoc_data.topics import topics

        parts = [topics[name] for name in sorted(topics)]
    else:
        with gzip.open(data, "rt", encoding="utf-8") as lines:
            parts = [json.loads(line)["response"] for line in islice(lines, 100_000)]
    return _SPACE.sub(" ", _RULES.sub(" ", " ".join(parts)))[:PROSE_LENGTH_MAX]


def cut_texts(prose: str, count: int, length: int = TEXT_LENGTH, seed: int = 0) -> list[str]:
    """Return `count` windows of at most `length` characters, each from the start of a word."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    return [_window(prose, length, rng) for _ in range(count)]


def generate(
    cast: Cast,
    prose: str,
    count: int,
    *,
    start_ms: int,
    rate_per_s: float,
    seed: int = 0,
    first: int = 0,
) -> Iterator[tuple[int, bytes]]:
    """Yield `count` events as (event time in ms, JSON); `rate_per_s` events in a second of theirs.

    Events are numbered from `first`, which goes into their ids. Tenants and
    prompts are drawn unevenly: the square of a uniform number.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    parts = _Parts(cast)
    bodies = _make_bodies(prose, parts.longest, rng, min(count, BODIES))
    step_ms = 1000 / rate_per_s
    draw, join = rng.random, b"".join
    for number in range(count):
        time_ms = start_ms + int(number * step_ms)
        head = b'{"event.id":"%08x-%016x","event.time":%d.%03d,' % (
            first + number, rng.getrandbits(64), time_ms // 1000, time_ms % 1000,
        )  # fmt: skip
        yield (
            time_ms,
            join(
                (
                    head,
                    parts.models[int(draw() * cast.models)],
                    parts.routes[int(draw() * cast.routes)],
                    parts.tenants[int(draw() ** 2 * cast.tenants)],
                    parts.prompts[int(draw() ** 2 * len(parts.prompts))],
                    parts.regions[int(draw() * cast.regions)],
                    bodies[int(draw() * len(bodies))],
                )
            ),
        )


class _Parts:
    """The dimensions' JSON, made once for every value."""

    def __init__(self, cast: Cast) -> None:
        self.models = [
            _members(
                {
                    "gen_ai.provider.name": _PROVIDERS[i % len(_PROVIDERS)],
                    "gen_ai.request.model": asked,
                    "gen_ai.response.model": answered,
                }
            )
            for i, (asked, answered) in enumerate(_MODELS[: cast.models])
        ]
        self.routes = [_members({"gateway.route": f"route-{i:02}"}) for i in range(cast.routes)]
        self.tenants = [_members({"gateway.tenant": f"tenant-{i:04}"}) for i in range(cast.tenants)]
        self.prompts = [
            _members({"gen_ai.prompt.name": f"prompt-{i:04}", "gen_ai.prompt.version": f"v{v + 1}"})
            for i in range(cast.prompts)
            for v in range(cast.versions)
        ]
        self.regions = [_members({"gateway.region": r}) for r in _REGIONS[: cast.regions]]

    @property
    def longest(self) -> int:
        """Bytes of the longest that can stand before a body."""
        every = (self.models, self.routes, self.tenants, self.prompts, self.regions)
        head = len(b'{"event.id":"-","event.time":.,') + 8 + 16 + 10 + 3
        return head + sum(max(map(len, parts)) for parts in every)


def _make_bodies(prose: str, head_bytes: int, rng: random.Random, count: int) -> list[bytes]:
    return [_body(prose, EVENT_BYTES - head_bytes, rng) for _ in range(max(1, count))]


def _body(prose: str, size: int, rng: random.Random) -> bytes:
    """The rest of an event: usage, latency, outcome and texts, at most `size` bytes."""
    input_tokens = int(rng.lognormvariate(6.0, 0.6)) + 1
    output_tokens = int(rng.lognormvariate(5.0, 0.7)) + 1
    first_chunk_s = rng.lognormvariate(-0.7, 0.4)
    members: dict[str, object] = {
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.cache_read.input_tokens": input_tokens // 4 if rng.random() < 0.2 else 0,
        "gateway.cache": "miss",
    }
    failed, refused = rng.random() < _ERROR_RATE, rng.random() < _REFUSAL_RATE
    if failed:
        members |= {
            "error.type": rng.choice(("timeout", "rate_limit", "server_error")),
            "gen_ai.client.operation.duration": round(rng.lognormvariate(0.5, 0.8), 3),
        }
    else:
        members |= {
            "gen_ai.usage.output_tokens": output_tokens,
            "gen_ai.client.operation.duration": round(
                first_chunk_s + output_tokens * rng.lognormvariate(-4.2, 0.2), 3
            ),
            "gen_ai.response.time_to_first_chunk": round(first_chunk_s, 3),
            "gen_ai.response.finish_reasons": ["length" if rng.random() < 0.02 else "stop"],
        }
    room = size - len(_members(members)) - len(_texts("", "")) - 1
    prompt = _window(prose, int(room * _PROMPT_SHARE), rng)
    room -= len(json.dumps(prompt)) - 2
    answer = "" if failed else _window(prose, room, rng)
    if refused and not failed:
        answer = _fit(f"{_REFUSAL} {answer}", room)
    return _members(members) + _texts(prompt, answer) + b"}"


def _texts(prompt: str, answer: str) -> bytes:
    return _members({"prompt.text": prompt, "response.text": answer})[:-1]


def _members(values: dict[str, object]) -> bytes:
    """The members of a JSON object, with a comma behind."""
    return json.dumps(values, separators=(",", ":"))[1:-1].encode() + b","


def _window(prose: str, length: int, rng: random.Random) -> str:
    start = prose.find(" ", int(rng.random() * (len(prose) - 2 * length - 100))) + 1
    return _fit(prose[start : start + length], length)


def _fit(text: str, length: int) -> str:
    """Cut a text until its JSON is no longer than `length` and the quotes."""
    while (over := len(json.dumps(text)) - 2 - length) > 0:
        text = text[:-over]
    return text
