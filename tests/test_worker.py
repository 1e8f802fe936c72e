"""Real workers, real Kafka, the real ClickHouse engine: nothing lost, nothing twice."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.config import TopicSettings
from pipeline.core.redaction import RecordPolicy, redact_record
from pipeline.producing import produce
from pipeline.referencing import reset
from pipeline.sinks.references import ReferenceStore
from pipeline.topics import connect_admin, create_topics
from schemas.monitor import Dimension
from tests.support.clickhouse import ClickHouseServer
from tests.support.kafka import consume
from tests.support.pagerduty import ROUTING_KEY, FakePagerDuty
from tests.support.rollups import GROUPINGS, rollups_that_differ, total_of
from tests.support.workers import Stack

pytestmark = pytest.mark.kafka
EVENTS = 200_000
SESSION_S = 6


@pytest.fixture
def stack(start_stack: Callable[..., Stack]) -> Stack:
    return start_stack(TopicSettings(partitions=4, signals_partitions=2))


def chance(i: int, salt: int) -> float:
    """A number in [0, 1) that looks random, and is the same in every run."""
    return zlib.crc32(f"{i}/{salt}".encode()) / 2**32


def event(i: int, now_s: float, **changes: Any) -> bytes:
    fields = {
        "event.id": f"event-{i}",
        "event.time": round(now_s - 600 + i * 600 / EVENTS, 3),
        "gen_ai.provider.name": ("openai", "anthropic")[i % 2],
        "gen_ai.request.model": ("gpt-4o", "claude-3-5-sonnet-20241022")[i % 2],
        "gen_ai.usage.input_tokens": 100 + int(900 * chance(i, 1)),
        "gen_ai.usage.output_tokens": 100 + int(200 * chance(i, 2)),
        "gen_ai.usage.cache_read.input_tokens": int(100 * chance(i, 3)),
        "gen_ai.client.operation.duration": round(2 + 3 * chance(i, 4), 3),
        "gen_ai.response.time_to_first_chunk": round(0.1 + chance(i, 5), 3),
        "gen_ai.response.finish_reasons": ["length" if chance(i, 6) < 0.02 else "stop"],
        "gateway.route": f"route-{i % 5}",
        "gateway.tenant": f"tenant-{i % 7}",
        "gateway.region": ("us", "eu", "jp")[i % 3],
        "gateway.refusal": chance(i, 7) < 0.01,
        "gateway.cache": "hit" if chance(i, 8) < 0.1 else "miss",
    }
    if chance(i, 9) < 0.005:
        fields["error.type"] = ("timeout", "rate_limit")[i % 2]
    return json.dumps(fields | changes).encode()


def test_200_000_events_two_workers_one_killed(stack: Stack) -> None:
    stack.extra["KIZASHI_INGEST__PREPARERS"] = "1"
    first, second = stack.worker(), stack.worker()
    now_s = time.time()
    produce(stack.kafka, (event(i, now_s) for i in range(EVENTS // 2)))
    stack.wait(
        lambda: stack.count("SELECT count() FROM requests") > EVENTS // 10, 60, "the first events"
    )
    first.kill()
    produce(stack.kafka, (event(i, now_s) for i in range(EVENTS // 2, EVENTS)))
    first.start()
    stack.wait(
        lambda: stack.count("SELECT uniqExact(event_id) FROM requests") == EVENTS, 120, "all events"
    )
    # The last rollups follow the last requests; then a doubled chunk would still show.
    rolled = "SELECT sum(requests) FROM rollup_1m WHERE grouping = 'request_model'"
    stack.wait(lambda: stack.count(rolled) >= EVENTS, 30, "all rollups")
    assert stack.count("SELECT count() FROM requests") == EVENTS
    assert stack.count("SELECT uniqExact(event_id) FROM requests") == EVENTS
    assert stack.count("SELECT count() FROM (SELECT DISTINCT partition, offset FROM requests)") == (
        EVENTS
    )
    for grouping in GROUPINGS:
        assert total_of(stack.store, grouping) == EVENTS
    assert rollups_that_differ(stack.store) == []
    # The second has been at work all along; the first may still be on its way up.
    assert second.stop() == 0


def test_a_topic_that_is_created_anew_under_a_worker_is_stored_in_full(stack: Stack) -> None:
    """The same lines come to the same partitions and offsets: only the topic's id is another."""
    now_s = time.time()
    lines = [event(i, now_s) for i in range(60)]
    worker = stack.worker()
    counted = "SELECT sum(requests) FROM rollup_1m WHERE grouping = 'route'"
    for line in lines:
        produce(stack.kafka, [line])
    stack.wait(lambda: stack.count(counted) == len(lines), 120, "the first topic's events")
    with connect_admin(stack.kafka) as admin:
        admin.delete_topics([stack.kafka.events_topic])
    create_topics(stack.kafka)
    for line in lines:
        produce(stack.kafka, [line])
    stack.wait(lambda: stack.count(counted) == 2 * len(lines), 120, "the second topic's events")
    assert worker.running


BAD = {
    "invalid_json": b"not json",
    "invalid_utf8": event(1, 0.0)[:-2] + b"\xe3\x81",
    "missing_field": b'{"event.time": 1, "gen_ai.request.model": "m"}',
    "not_an_object": b"[1, 2]",
    "too_large": b'{"prompt.text": "' + b"x" * 1_000_000 + b'"}',
}


def bad_records(now_s: float) -> list[tuple[str, bytes]]:
    deep = b"[" * 5_000 + b"]" * 5_000
    valid = event(0, now_s)[:-1]
    return [
        *BAD.items(),
        ("invalid_field", event(2, now_s, **{"gen_ai.usage.input_tokens": "12"})),
        ("invalid_field", event(3, now_s, **{"gen_ai.usage.input_tokens": -1})),
        ("invalid_field", event(4, now_s, **{"gen_ai.usage.input_tokens": 2**63})),
        ("invalid_json", valid + b', "gen_ai.request.temperature": NaN}'),
        ("too_deep", valid + b', "x": ' + deep + b"}"),
        ("control_character", event(5, now_s, **{"gateway.route": "a\0b"})),
        ("lone_surrogate", valid + b', "prompt.text": "\\ud800"}'),
        ("time_out_of_range", event(6, now_s, **{"event.time": now_s - 10 * 365 * 86_400})),
        ("time_out_of_range", event(7, now_s, **{"event.time": now_s + 10 * 365 * 86_400})),
    ]


def test_bad_input_is_dead_lettered_and_its_neighbours_are_stored(stack: Stack) -> None:
    now_s = time.time()
    bad = bad_records(now_s)
    good = [event(1_000 + i, now_s) for i in range(len(bad) + 2)]
    lines = [each for pair in zip(good, (raw for _, raw in bad), strict=False) for each in pair]
    lines += [good[-2], good[-1], good[0]]
    stack.worker()
    report = produce(stack.kafka, lines)
    assert report.failed == 0
    send_tombstone(stack)
    stack.wait(
        lambda: stack.count("SELECT count() FROM deadletters") == len(bad) + 1, 60, "dead letters"
    )
    stack.wait(
        lambda: stack.count("SELECT count() FROM requests") == len(good), 30, "good neighbours"
    )
    expected = sorted([reason for reason, _ in bad] + ["tombstone"])
    stored = stack.store.rows("SELECT reason FROM deadletters ORDER BY reason")
    assert [row[0] for row in stored] == expected
    stack.wait(
        lambda: len(consume(stack.kafka, stack.kafka.deadletter_topic)) == len(bad) + 1,
        30,
        "dead letters on their topic",
    )
    letters = consume(stack.kafka, stack.kafka.deadletter_topic)
    got = sorted((dict(r.headers)["reason"].decode(), r.value or b"") for r in letters)
    kept = [(reason, redact_record(raw, RecordPolicy())) for reason, raw in bad]
    assert got == sorted([*kept, ("tombstone", b"")])
    assert {dict(r.headers)["sha256"].decode() for r in letters} == {
        hashlib.sha256(raw).hexdigest() for raw in (*(raw for _, raw in bad), b"")
    }
    assert stack.count("SELECT sum(requests) FROM rollup_1m WHERE grouping = 'route'") == len(good)


def send_tombstone(stack: Stack) -> None:
    from kafka import KafkaProducer

    from pipeline.topics import client_settings

    producer = KafkaProducer(**client_settings(stack.kafka))
    producer.send(stack.kafka.events_topic, key=b"gone", value=None).get(timeout=10)
    producer.close()


def test_clickhouse_away_under_load_loses_nothing(
    stack: Stack, clickhouse_server: ClickHouseServer
) -> None:
    """Away for 30 s: the worker holds what it may, stops reading, and goes on afterwards."""
    stack.extra = {"KIZASHI_INGEST__HELD_BYTES": str(2 * 1024 * 1024)}
    worker = stack.worker()
    now_s = time.time()
    count = 30_000
    produce(stack.kafka, (event(i, now_s) for i in range(count // 3)))
    stack.wait(lambda: stack.count("SELECT count() FROM requests") > 0, 60, "the first events")
    before_mb = worker.rss_mb
    clickhouse_server.kill()
    try:
        produce(stack.kafka, (event(i, now_s) for i in range(count // 3, count)))
        gone_at = time.monotonic()
        peak_mb = before_mb
        while time.monotonic() - gone_at < 30:
            peak_mb = max(peak_mb, worker.rss_mb)
            time.sleep(0.5)
        assert worker.running
    finally:
        clickhouse_server.start()
    stack.wait(
        lambda: stack.count("SELECT uniqExact(event_id) FROM requests") == count, 90, "all events"
    )
    total = "SELECT sum(requests) FROM rollup_1m WHERE grouping = 'route'"
    stack.wait(lambda: stack.count(total) == count, 30, "all rollups")
    assert stack.count("SELECT count() FROM requests") == count
    assert rollups_that_differ(stack.store) == []
    assert peak_mb < before_mb + 250


def test_pagerduty_failing_for_a_while_hears_of_each_incident_once(
    stack: Stack, pagerduty: FakePagerDuty
) -> None:
    stack.extra = {
        "KIZASHI_NOTIFY__PAGERDUTY__ROUTING_KEY": ROUTING_KEY,
        "KIZASHI_NOTIFY__PAGERDUTY__URL": pagerduty.url,
        "KIZASHI_NOTIFY__RETRY_MAX_S": "5",
        "KIZASHI_DETECTION__LEARN_EVENTS": "200",
    }
    pagerduty.answer(500)
    worker = stack.worker()
    # What waits for a worker is read partition by partition: it would learn from refusals.
    stack.wait(lambda: "the page is at" in worker.log, 60, "the worker")
    now_s = time.time()
    produce(stack.kafka, list(refusing_hour(now_s)), speed=120)
    stack.wait(lambda: len(pagerduty.received) >= 2, 60, "attempts")
    failing_since = time.monotonic()
    stack.wait(
        lambda: stack.count("SELECT count() FROM incidents WHERE status = 'resolved'") == 1,
        90,
        "the incident",
    )
    while time.monotonic() - failing_since < 30:
        time.sleep(0.5)
    assert not pagerduty.accepted
    pagerduty.recover()
    stack.wait(lambda: len(pagerduty.accepted) >= 2, 60, "trigger and resolve")
    assert pagerduty.actions == ["trigger", "resolve"]
    assert len({each["dedup_key"] for each in pagerduty.accepted}) == 1
    assert stack.count("SELECT count() FROM requests") == 6_000


def refusing_hour(now_s: float) -> Iterator[bytes]:
    """An hour in which one route refuses from minute 20 to 35."""
    for i in range(6_000):
        minute = i / 100
        refusing = 20 <= minute < 35 and i % 5 == 0
        yield event(
            i,
            now_s,
            **{
                "event.time": now_s - 3_600 + i * 0.6,
                "gateway.refusal": chance(i, 7) < (0.5 if refusing else 0.01),
                "error.type": None,
            },
        )


def test_a_planned_change_is_taken_in_without_a_restart(stack: Stack) -> None:
    """It refuses from minute 20 on and for good: an alarm, until somebody says it is meant so."""
    stack.worker()
    now_s = time.time()
    produce(stack.kafka, refusing_for_good(now_s, range(1)))
    # What waits for a worker is read partition by partition, and in no order of time.
    stack.wait(lambda: stack.count("SELECT count() FROM requests") > 0, 60, "the first event")
    produce(stack.kafka, list(refusing_for_good(now_s, range(1, 3_000))), speed=120)
    alarmed = "SELECT count() FROM alarms WHERE monitor['route'] = 'route-0'"
    stack.wait(lambda: stack.count(alarmed) > 0, 90, "the alarm")
    order = reset(stack.kafka, [{Dimension.ROUTE: "route-0"}], "a stricter prompt", 1)
    planned = f"{alarmed} AND transition = 'cleared' AND alarm LIKE '%\"planned\"%'"
    stack.wait(lambda: stack.count(planned) > 0, 60, "its end")
    produce(stack.kafka, list(refusing_for_good(now_s, range(3_000, 5_500))), speed=240)
    told = "SELECT count() FROM planned_effects WHERE signal = 'refusal'"
    stack.wait(lambda: stack.count(told) > 0, 60, "its effect")
    effects = ReferenceStore(stack.store).list_effects()
    (effect,) = [e for e in effects if e.signal == "refusal" and e.monitor == {"route": "route-0"}]
    assert (effect.order_id, effect.note) == (order.reset_id, "a stricter prompt")
    assert effect.before.value < 0.05
    assert effect.after.value > 0.4
    assert stack.count(f"{alarmed} AND transition = 'raised'") == stack.count(planned)


def refusing_for_good(now_s: float, numbers: range) -> Iterator[bytes]:
    for i in numbers:
        yield event(
            i,
            now_s,
            **{
                "event.time": now_s - 3_900 + i * 0.6,
                "gateway.refusal": chance(i, 7) < (0.6 if i >= 2_000 and i % 5 == 0 else 0.01),
                "error.type": None,
            },
        )
