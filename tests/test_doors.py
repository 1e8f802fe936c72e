"""What others send, through a real worker: every event once, every bad one with its reason."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence

import httpx
import pytest
from kafka import KafkaProducer

from pipeline.config import InputSettings, TopicSettings
from pipeline.topics import client_settings
from schemas.wire import WireFormat
from tests.support.events import make_raw
from tests.support.kafka import consume
from tests.support.otlp import CHAT, make_span, to_json, to_proto
from tests.support.workers import Stack, free_port

pytestmark = pytest.mark.kafka
RECORDS = 300
SPANS = 20


@pytest.fixture
def stack(start_stack: Callable[..., Stack], topic_prefix: str) -> Stack:
    inputs = (
        InputSettings(topic=f"{topic_prefix}spans", format=WireFormat.OTLP_PROTO),
        InputSettings(topic=f"{topic_prefix}json", format=WireFormat.OTLP_JSON),
    )
    stack = start_stack(TopicSettings(partitions=2, signals_partitions=2), inputs=inputs)
    stack.extra = {
        "KIZASHI_KAFKA__INPUTS": json.dumps([each.model_dump(mode="json") for each in inputs]),
        "KIZASHI_INGEST__CHUNK_EVENTS": "40",
    }
    return stack


def send(stack: Stack, topic: str, records: Sequence[bytes]) -> None:
    producer = KafkaProducer(**client_settings(stack.kafka), acks="all")
    try:
        for each in [producer.send(topic, record) for record in records]:
            each.get(timeout=20)
    finally:
        producer.close()


def test_events_by_http_are_stored_and_the_page_keeps_its_own_token(stack: Stack) -> None:
    port, key = free_port(), "a key of sixteen and more"
    stack.extra |= {
        "KIZASHI_WEB__PORT": str(port),
        "KIZASHI_WEB__TOKEN": "another token for the page",
        "KIZASHI_WEB__EVENT_KEYS": json.dumps([key]),
    }
    stack.worker()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        stack.wait(lambda: is_listening(client), 60, "the page's server")
        now_ms = round(time.time() * 1000)
        lines = [make_raw(f"http-{i}", time_ms=now_ms) for i in range(100)]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
        body = gzip.compress(b"\n".join([*lines, b"{}", lines[0]]))
        packed = headers | {"Content-Encoding": "gzip"}
        answer = client.post("/v1/events", content=body, headers=packed, timeout=30)
        assert (answer.status_code, answer.json()["taken"]) == (207, 101)
        assert client.post("/v1/events", content=lines[0]).status_code == 401
        assert client.get("/api/boards", headers=headers).status_code == 401
    stack.wait(lambda: stack.count("SELECT count() FROM requests") == 100, 60, "the events")


def is_listening(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


def spans_of(record: int, now_ms: int) -> list[dict[str, object]]:
    first = record * SPANS
    return [make_span(first + i + 1, end_ms=now_ms - 60_000 + first + i) for i in range(SPANS)]


def test_spans_in_both_forms_are_stored_once_though_the_worker_is_killed(stack: Stack) -> None:
    proto, as_json = stack.kafka.input_topics[1:]
    now_ms = round(time.time() * 1000)
    bad = [make_span(10**9 + i, {"gen_ai.operation.name": "chat"}) for i in range(2)]
    other = make_span(10**9 + 5, {"http.request.method": "GET"})
    worker = stack.worker()
    half = RECORDS // 2
    send(stack, proto, [to_proto(spans_of(n, now_ms)) for n in range(half // 2)])
    stack.wait(lambda: stack.count("SELECT count() FROM requests") > 0, 60, "the first events")
    worker.kill()
    send(stack, proto, [to_proto(spans_of(n, now_ms)) for n in range(half // 2, half)])
    send(stack, as_json, [to_json(spans_of(n, now_ms)) for n in range(half, RECORDS)])
    send(stack, as_json, [b"not json", to_json([bad[0], make_span(1, CHAT), bad[1], other])])
    worker.start()
    # The last record repeats the first span, of the other topic: it collapses in the table.
    events = RECORDS * SPANS
    stack.wait(
        lambda: stack.count("SELECT uniqExact(event_id) FROM requests") == events, 90, "all events"
    )
    letters = "SELECT count() FROM deadletters FINAL"
    stack.wait(lambda: stack.count(letters) == 3, 30, "the dead letters")
    found = stack.store.rows("SELECT reason, item FROM deadletters FINAL ORDER BY reason, item")
    assert found == [("invalid_json", 0), ("missing_field", 0), ("missing_field", 1)]
    rolled = "SELECT sum(requests) FROM rollup_1m WHERE grouping = 'route'"
    stack.wait(lambda: stack.count(rolled) >= events, 30, "all rollups")
    assert stack.count(rolled) == stack.count("SELECT count() FROM requests") <= events + 1
    assert worker.stop() == 0


def test_a_dead_letter_of_a_span_is_an_event_that_can_be_mended_and_sent(stack: Stack) -> None:
    as_json = stack.kafka.input_topics[2]
    secret = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "what nobody may keep"}
    bad = make_span(7, {"gen_ai.operation.name": "chat", "gen_ai.system": "openai", **secret})
    now_ms = round(time.time() * 1000)
    stack.worker()
    send(stack, as_json, [to_json([make_span(1, end_ms=now_ms), bad])])
    topic = stack.kafka.deadletter_topic
    stack.wait(lambda: len(consume(stack.kafka, topic)) == 1, 60, "the dead letter")
    (letter,) = consume(stack.kafka, topic)
    headers = {key: value.decode() for key, value in letter.headers}
    assert (headers["topic"], headers["reason"]) == (as_json, "missing_field")
    assert b"nobody" not in letter.value
    mended = json.loads(letter.value) | {"gen_ai.request.model": "gpt-4o"}
    send(stack, stack.kafka.events_topic, [json.dumps(mended).encode()])
    routes = "SELECT count() FROM requests WHERE route = 'support' AND request_model = 'gpt-4o'"
    stack.wait(lambda: stack.count(routes) == 2, 30, "the mended span")
