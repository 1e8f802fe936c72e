"""Feedback through real Kafka and a real worker that is killed: joined, stored once, and told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from kafka import KafkaProducer

from pipeline.config import TopicSettings
from pipeline.producing import produce
from pipeline.topics import client_settings
from tests.support.events import make_raw
from tests.support.feedback import feedback_raw
from tests.support.workers import Stack

pytestmark = pytest.mark.kafka
BEFORE, AFTER, STEP_MS = 4_000, 2_400, 500
SIZE = BEFORE + AFTER
MODELS = ("gpt-4o", "claude-sonnet-4")


@pytest.fixture
def stack(start_stack: Callable[..., Stack]) -> Stack:
    # One partition, so that what is sent at once is seen in its order.
    made = start_stack(TopicSettings(partitions=1, signals_partitions=1))
    made.extra |= {"KIZASHI_ENCODER__KIND": "none", "KIZASHI_FEEDBACK__JOIN_WAIT_S": "60"}
    return made


def send(stack: Stack, values: Sequence[bytes]) -> None:
    producer = KafkaProducer(**client_settings(stack.kafka), acks="all")
    try:
        for value in values:
            producer.send(stack.kafka.feedback_topic, value)
        producer.flush(30)
    finally:
        producer.close(5)


def make_ratings(start_ms: int) -> list[bytes]:
    """2 % are thumbs down; of gpt-4o 9 % since `BEFORE`. Every other names the response."""
    luck = np.random.default_rng(1).random(SIZE)
    rates = [0.09 if i >= BEFORE and i % 2 == 0 else 0.02 for i in range(SIZE)]
    return [
        feedback_raw(
            f"f-{i}",
            f"e-{i}" if i % 3 else None,
            response_id=f"r-{i}",
            score=int(luck[i] >= rates[i]),
            time_ms=start_ms + i * STEP_MS + 500,
        )
        for i in range(SIZE)
    ]


def test_a_rise_of_thumbs_down_is_told_though_the_worker_was_killed(stack: Stack) -> None:
    start_ms = int(time.time()) * 1000 - SIZE * STEP_MS
    ratings = make_ratings(start_ms)
    worker = stack.worker()
    # Faster than what it is about.
    send(stack, ratings[:100])
    produce(
        stack.kafka,
        (
            make_raw(
                f"e-{i}",
                time_ms=start_ms + i * STEP_MS,
                request_model=MODELS[i % 2],
                response_id=f"r-{i}",
            )
            for i in range(SIZE)
        ),
    )
    stored = "SELECT uniqExact(feedback_id) FROM feedback"
    stack.wait(lambda: stack.count(stored) == 100, 60, "the first ratings")
    send(stack, ratings[100:3_000])
    stack.wait(lambda: stack.count(stored) > 100, 30, "some more ratings")
    worker.kill()
    # Some come again, and some are no feedback.
    send(stack, [*ratings[2_900:], b"{}", feedback_raw("f-x", None)])
    worker.start()
    stack.wait(lambda: stack.count(stored) == SIZE, 60, "all ratings")
    letters = "SELECT count() FROM deadletters WHERE reason = 'missing_field'"
    stack.wait(lambda: stack.count(letters) == 2, 30, "the dead letters")
    assert stack.count("SELECT count() FROM feedback") == SIZE
    assert stack.count("SELECT countIf(event_id = '') FROM feedback") == 0
    wrong = "SELECT countIf(event_id != replaceOne(feedback_id, 'f-', 'e-')) FROM feedback"
    assert stack.count(wrong) == 0
    raised = "SELECT count() FROM alarms WHERE family = 'feedback' AND transition = 'raised'"
    stack.wait(lambda: stack.count(raised) > 0, 60, "the alarm")
    told = "SELECT count() FROM incidents WHERE family = 'feedback'"
    stack.wait(lambda: stack.count(told) == 1, 60, "the incident")
    assert stack.store.rows("SELECT cause, length(example_event_ids) FROM incidents") == [
        ({"request_model": "gpt-4o"}, 5)
    ]
