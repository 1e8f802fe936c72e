"""Running the cases: once, as a test before something goes live, or on a schedule.

Delivery: of a scheduled run every sample becomes an event (`gateway.canary`), sent to the
events topic after its case; what the broker does not confirm is logged and not sent again,
for the next run comes soon.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from pipeline.canary.asking import Endpoint
from pipeline.canary.cases import Case
from pipeline.canary.judging import Answer, Verdict, find_faults, judge_case
from pipeline.encoders.base import Encoder

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One answer, and what is wrong with it."""

    answer: Answer
    faults: list[str]
    #: When it came, unix seconds.
    time_s: float


class Canary:
    """Cases, whom they are asked, and how their answers are judged."""

    def __init__(
        self,
        cases: Sequence[Case],
        endpoint: Endpoint,
        encoder: Callable[[], Encoder],
        *,
        confidence: float,
        concurrency: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cases = cases
        self._endpoint = endpoint
        self._encoder = lru_cache(maxsize=1)(encoder)
        self._confidence = confidence
        self._concurrency = concurrency
        self._clock = clock
        for case in cases:
            endpoint.model_of(case)

    def run(self) -> Iterator[tuple[Case, list[Sample], Verdict]]:
        """Ask every case, one after the other, its samples side by side."""
        with ThreadPoolExecutor(self._concurrency, "canary") as threads:
            for case in self._cases:
                answers = list(threads.map(self._ask, [case] * case.samples))
                samples = [
                    Sample(answer, find_faults(case.expect, answer, self._similarity), time_s)
                    for answer, time_s in answers
                ]
                faults = [sample.faults for sample in samples]
                yield case, samples, judge_case(case, faults, self._confidence)

    def _ask(self, case: Case) -> tuple[Answer, float]:
        return self._endpoint.ask(case), self._clock()

    def _similarity(self, one: str, other: str) -> float:
        vectors = self._encoder().encode([one, other])
        return float(vectors[0] @ vectors[1])

    def to_event(self, case: Case, sample: Sample) -> dict[str, Any]:
        """Return a sample as an event on the wire."""
        answer = sample.answer
        event = {
            "event.id": f"canary-{uuid.uuid4()}",
            "event.time": sample.time_s,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": self._endpoint.model_of(case),
            "gen_ai.response.model": answer.response_model or None,
            "gen_ai.response.id": answer.response_id or None,
            "gen_ai.response.finish_reasons": list(answer.finish_reasons) or None,
            "gen_ai.usage.input_tokens": answer.input_tokens,
            "gen_ai.usage.output_tokens": answer.output_tokens,
            "gen_ai.client.operation.duration": answer.duration_s,
            "error.type": answer.error or None,
            "gateway.route": case.name,
            "gateway.canary": case.name,
            "gateway.canary.passed": not sample.faults,
        }
        return {key: value for key, value in event.items() if value is not None}


def encode_events(
    canary: Canary, case: Case, samples: Sequence[Sample]
) -> list[tuple[bytes, bytes]]:
    """Return the samples of a case as records: key and value."""
    events = [canary.to_event(case, sample) for sample in samples]
    return [(event["event.id"].encode(), msgspec.json.encode(event)) for event in events]
