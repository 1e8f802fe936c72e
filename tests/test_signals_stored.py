"""Each signal is found again in the stored requests: what was counted is what the slices count."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.fingerprint import fit_reference
from pipeline.config import ClickHouseSettings
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH
from pipeline.core.chunk import ChunkEffects
from pipeline.core.dedup import SeenIds
from pipeline.core.fingerprints import FIT, ReferenceSet
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import Pricer
from pipeline.core.step import Reading, StepConfig, admit, derive_effects
from pipeline.encoders.embedding import CarriedVectors
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.incidents import PREDICATES
from pipeline.sinks.requests import RequestStore
from schemas.codec import CodecLimits
from schemas.monitor import parse_grouping
from schemas.signal import CLASS_SPAN, CLASSED, COUNTED, LOWER_TAIL, MEASURED, Signal
from tests.support.events import PRICES, Json, make_chunk, make_event, make_traffic, to_bytes

#: What does not occur in the rest.
RARE = (
    make_event("partly", finish_reasons=["stop", "content_filter"]),
    make_event("loops", response_text="It is paid. " * 60, prompt_text="支払いは済みましたか。"),
    make_event("canary-1", canary="refund", canary_passed=True, route="refund"),
    make_event("canary-2", canary="refund", canary_passed=False, route="refund"),
    make_event("same", response_text="支払いました。", prompt_text="支払いは済みましたか。"),
)
EMBEDDING = CarriedVectors("ours", 4)


def make_reading() -> Reading:
    """One reference, by which many answers are off their prompts, and many prompts are novel."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((90, PROMPT_WIDTH)), rng.standard_normal((90, ANSWER_WIDTH))
    y[:, -1] /= 10
    fitted = fit_reference(x, y, FIT)
    # As if its prompts had varied less.
    narrow = replace(fitted, prompt_whitening=fitted.prompt_whitening * 3)
    by_model = {"gpt-4o": narrow}
    return Reading(EMBEDDING, ReferenceSet(EMBEDDING.name, 1, by_model), 10)


def carry_vectors(n: int) -> list[Json]:
    rng = np.random.default_rng(2)
    return [
        make_event(
            f"carried-{i}",
            prompt_text="Is it paid?" * (1 + 5 * (i % 7)),
            response_text=f"It was paid on day {i}.",
            embedding_model="ours",
            prompt_embedding=rng.standard_normal(4).tolist(),
            response_embedding=rng.standard_normal(4).tolist(),
        )
        for i in range(n)
    ]


CONFIG = StepConfig((parse_grouping("request_model"),), CodecLimits())


@pytest.fixture(scope="module")
def stored(embedded_path: Path) -> Iterator[tuple[ChunkEffects, Store]]:
    database = f"t{uuid.uuid4().hex[:12]}"
    # The events are of a fixed day, and must outlive it.
    store = Store(
        ClickHouseSettings(path=embedded_path, database=database, requests_ttl_days=10_000)
    )
    try:
        store.migrate()
        chunk = make_chunk(
            [to_bytes(e) for e in [*make_traffic(1, 1_500), *RARE, *carry_vectors(80)]]
        )
        admission = admit(chunk, CONFIG.limits, SeenIds(10_000))
        registry = MonitorRegistry(100)
        effects = derive_effects(admission, CONFIG, Pricer(PRICES), registry, make_reading())
        assert RequestStore(store).find_unstorable(effects) == {}
        yield effects, store
    finally:
        store.close()


def ask(store: Store, signal: Signal, parameters: dict[str, Any]) -> dict[str, tuple[int, int]]:
    over, counts = PREDICATES[signal]
    rows = store.rows(
        f"SELECT request_model, countIf({counts}), count() FROM requests WHERE {over}"
        " GROUP BY request_model",
        parameters,
    )
    return {str(model): (int(hits), int(total)) for model, hits, total in rows}


@pytest.mark.parametrize("signal", [s for s in COUNTED if s is not Signal.NEGATIVE_FEEDBACK])
def test_a_counted_signal_is_counted_alike_in_the_store(
    stored: tuple[ChunkEffects, Store], signal: Signal
) -> None:
    effects, store = stored
    counted: Counter[tuple[str, int]] = Counter()
    for packet in effects.packets[0]:
        for row in packet.counts:
            for at, name in enumerate(COUNTED[signal]):
                counted[row.values[0], at] += row.columns.get(name, 0)
    found = ask(store, signal, {})
    assert found == {m: (counted[m, 0], counted[m, 1]) for m in found}
    assert sum(hits for hits, _ in found.values()) > 0


@pytest.mark.parametrize("signal", MEASURED)
def test_a_measured_signal_is_counted_alike_in_the_store(
    stored: tuple[ChunkEffects, Store], signal: Signal
) -> None:
    effects, store = stored
    entries: Counter[tuple[str, int]] = Counter()
    for packet in effects.packets[0]:
        for row in packet.counts:
            for bucket, n in row.histograms[MEASURED[signal]].items():
                entries[row.values[0], bucket] += n
    parameters, beyond, known = choose_edges(signal)
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for (model, bucket), n in entries.items():
        totals[model] += n * known(bucket)
        hits[model] += n * beyond(bucket)
    found = ask(store, signal, parameters)
    assert found == {m: (hits[m], n) for m, n in totals.items() if n}
    assert sum(hits.values()) > 0


def choose_edges(signal: Signal) -> Any:
    """Edges in the middle of what occurs; of some classes none."""
    if signal not in CLASSED:
        at = 320 if signal is Signal.SLOW_FIRST_CHUNK else 450
        # No model has an edge of its own here.
        edge = {"edge": 2 ** ((at + 1) / 32), "own_models": [""], "own_edges": [0.0]}
        return edge, lambda bucket: bucket > at, lambda bucket: True
    at = {Signal.LONG_ANSWER: 26, Signal.SHORT_ANSWER: 22, Signal.COSTLY: 40}[signal]
    inner = 0 if signal in LOWER_TAIL else 1
    edges = np.where(np.arange(20) % 3 == 1, -1.0, 2 ** ((at + inner) / 4))

    def known(bucket: int) -> bool:
        return bool(edges[bucket // CLASS_SPAN] >= 0)

    def beyond(bucket: int) -> bool:
        coarse = bucket % CLASS_SPAN - 40
        return known(bucket) and (coarse < at if signal in LOWER_TAIL else coarse > at)

    return {"edges": edges.tolist()}, beyond, known
