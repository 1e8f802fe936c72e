"""What asking the semantic cache costs with 100,000 answers in one space, and what it finds.

``python -m benchmarks.gateway.cache_lookup [--json]`` prints the time of a whole lookup and of
its index, beside a comparison with all vectors in NumPy, and recall@1: of the questions that
have a neighbour at or above 0.95, how many get their nearest; once more after as many answers
have come and gone as there are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from gateway.answer import Usage
from gateway.asked import Asked
from gateway.cache import SemanticCache
from gateway.likeness import wording_of
from gateway.vectors import Vector, VectorSpace
from pipeline.encoders.static import StaticEncoder
from pipeline.gateway_settings import CacheSettings

ENTRIES = 100_000
SIMILARITY = 0.95
LOOKUPS = 2_000
ROUNDS = 5
SEED = 7
#: Questions as near to each other as those of one product's users are.
_PARTS = (
    "write draft suggest prepare outline improve",
    "friendly formal short funny honest careful detailed cheerful",
    "email letter summary article speech headline slogan story plan checklist report review"
    " newsletter script description announcement",
    "garden kitchen travel music school health football coffee bread weather parcel invoice"
    " contract printer server database camera bicycle holiday wedding pension insurance"
    " mortgage hospital museum harbour railway airport forest library theatre laundry",
    "beginners experts children parents customers managers students neighbours",
)
COMPLETION: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "It is on its way to you. " * 20},
            "finish_reason": "stop",
        }
    ],
}


def questions() -> list[str]:
    """Return distinct questions that say no facts, in an order drawn once."""
    texts = [
        f"{verb} a {tone} {kind} about the {subject} for {reader}"
        for verb, tone, kind, subject, reader in product(*map(str.split, _PARTS))
    ]
    order = np.random.default_rng(SEED).permutation(len(texts))
    return [texts[at] for at in order.tolist()]


def ask(text: str, *, no_cache: bool = False) -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return Asked(
        request_id="r", operation="chat", tenant="t", model="m", body=body, no_cache=no_cache
    )


def fill(entries: int) -> tuple[SemanticCache, list[str]]:
    """Return a cache that holds so many answers in one space, and questions to ask it.

    Half of these were asked before in slightly other words, half were not.
    """
    encoder, texts = StaticEncoder.load(), questions()
    kept, fresh = texts[:entries], texts[entries : entries + LOOKUPS // 2]
    ready = dict(zip(map(wording_of, kept), encoder.encode(kept), strict=True))

    def encode(text: str) -> Vector:
        found: Vector | None = ready.get(text)
        return encoder.encode_one(text) if found is None else found

    # With "wording" each question would have a space of its own: the easier case.
    settings = CacheSettings(enabled=True, same="facts", entries=entries)
    cache = SemanticCache(settings, frozenset({"m"}), encode)
    for text in kept:
        # A fresh answer is kept even where a neighbour could answer.
        looked = cache.look_up(ask(text, no_cache=True), 0.0)
        cache.keep(looked, COMPLETION, 0.0, usage=Usage(), provider=None)
    ready.clear()
    like = [f"please {text}" for text in kept[: LOOKUPS // 2]]
    return cache, [text for pair in zip(like, fresh, strict=True) for text in pair]


def p99(times: Sequence[float]) -> float:
    return sorted(times)[int(0.99 * len(times))]


def time_ms(
    call: Callable[[Any], object], arguments: Sequence[Any], clock: Callable[[], float]
) -> list[float]:
    times = []
    for argument in arguments:
        begun_s = clock()
        call(argument)
        times.append(1000 * (clock() - begun_s))
    return times


def measure_p99_ms(entries: int = ENTRIES) -> float:
    """Return the 99th percentile of a whole lookup, by the wall; the median of rounds."""
    return measure_lookup(entries)["lookup_p99_ms"]


def measure_lookup(entries: int) -> dict[str, float]:
    """Return times of whole lookups: hash, facts, vector, index, answer."""
    cache, texts = fill(entries)
    asked = [ask(text) for text in texts]
    clocks = {"": time.perf_counter, "_cpu": time.thread_time}
    figures: dict[str, float] = {"entries": float(len(cache))}
    for name, clock in clocks.items():
        rounds = [
            time_ms(lambda each: cache.look_up(each, 1.0), asked, clock) for _ in range(ROUNDS)
        ]
        figures[f"lookup{name}_p50_ms"] = statistics.median(map(statistics.median, rounds))
        figures[f"lookup{name}_p99_ms"] = statistics.median(map(p99, rounds))
    outcomes = [cache.look_up(each, 1.0).outcome for each in asked]
    figures["hits"] = outcomes.count("hit") / len(outcomes)
    return figures


def measure_index(entries: int) -> dict[str, float]:
    """Return times and recall of the index alone, beside NumPy over all vectors."""
    encoder, texts = StaticEncoder.load(), questions()
    vectors = encoder.encode(texts)
    space = VectorSpace(encoder.dimensions)
    add_ms = time_ms(lambda at: space.add(at, vectors[at]), range(entries), time.thread_time)
    asked = encoder.encode([f"please {text}" for text in texts[:LOOKUPS]])
    figures = {"add_p50_ms": statistics.median(add_ms), "add_p99_ms": p99(add_ms)}
    figures["recall"] = recall(space, asked, vectors[:entries], range(entries))
    kept = vectors[:entries].copy()
    index_ms = time_ms(lambda v: space.nearest(v, SIMILARITY, 4), list(asked), time.thread_time)
    numpy_ms = time_ms(lambda v: int((kept @ v).argmax()), list(asked[:200]), time.thread_time)
    for name, times in (("index", index_ms), ("numpy", numpy_ms)):
        figures |= {f"{name}_p50_ms": statistics.median(times), f"{name}_p99_ms": p99(times)}
    return figures | measure_churn(space, encoder, texts, entries)


def measure_churn(
    space: VectorSpace, encoder: StaticEncoder, texts: Sequence[str], entries: int
) -> dict[str, float]:
    """Return recall after every vector of `space` has made room for another one."""
    others = encoder.encode([f"{text} and their friends" for text in texts[:entries]])
    for at in range(entries):
        space.remove(at)
        space.add(entries + at, others[at])
    asked = encoder.encode([f"please {text} and their friends" for text in texts[:LOOKUPS]])
    numbers = range(entries, 2 * entries)
    return {"recall_after_churn": recall(space, asked, others, numbers)}


def recall(space: VectorSpace, asked: Vector, kept: Vector, numbers: Sequence[int]) -> float:
    """Return the share of those with a neighbour in reach who get one as near as the nearest."""
    got, had = 0, 0
    for vector in asked:
        cosines = kept @ vector
        best = float(cosines.max())
        if best < SIMILARITY:
            continue
        had += 1
        found = space.nearest(vector, SIMILARITY, 1)
        # Two that are equally near are equally right.
        got += bool(found) and cosines[found[0][0] - numbers[0]] >= best - 1e-6
    return got / had


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.cache_lookup")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--entries", type=int, default=ENTRIES)
    given = parser.parse_args()
    shown = {}
    for measure in (measure_lookup, measure_index):
        for name, value in measure(given.entries).items():
            shown[name] = value
            if not given.json:
                print(f"{name:22} {value:.4f}", flush=True)
    if given.json:
        print(json.dumps(shown))


if __name__ == "__main__":
    main()
