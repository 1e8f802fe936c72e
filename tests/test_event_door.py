"""Events by HTTP: who may send, what is taken, and an answer that says so."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, KafkaSettings, WebSettings
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.event_door import AT_ONCE, Door
from pipeline.receiving import RECORDS_MAX, Unreadable, judge_event, split_body, unpack
from pipeline.sending import TopicSender
from schemas.codec import DEFAULT_LIMITS
from tests.support.events import NOW_MS, make_raw
from tests.support.kafka import KafkaServer, consume, settings_for

KEY = "a key of sixteen and more"
LIMIT = 200_000
JSON, LINES = "application/json", "application/x-ndjson"


class Topic:
    """Where the records go."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []
        self.away = False
        self.loses: set[bytes] = set()
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Semaphore(0)

    async def send(self, records: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        if self.hold is not None:
            self.held.release()
            await self.hold.wait()
        if self.away:
            raise SinkUnavailable("no broker")
        arrived = [key not in self.loses for key, _ in records]
        self.records += [r for r, has in zip(records, arrived, strict=True) if has]
        return arrived


class Client:
    def __init__(self, session: ClientSession, url: str, topic: Topic) -> None:
        self._session, self._url, self.topic = session, url, topic

    async def post(
        self, body: bytes, kind: str = JSON, key: str | None = KEY, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        sent = {"Content-Type": kind, **headers}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        async with self._session.post(self._url, data=body, headers=sent) as response:
            return response.status, await response.json()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    topic = Topic()
    door = Door(
        "/v1/events",
        [b"another key of sixteen", KEY.encode()],
        LIMIT,
        lambda: judge_event(NOW_MS, DEFAULT_LIMITS),
        topic.send,
        lambda: None,
    )
    app = web.Application()
    door(app)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession() as session:
            yield Client(session, f"http://127.0.0.1:{runner.addresses[0][1]}/v1/events", topic)
    finally:
        await runner.cleanup()


async def test_one_event_is_taken_as_it_came(client: Client) -> None:
    raw = make_raw("e-1", route="日本")
    assert await client.post(raw) == (200, {"taken": 1, "refused": 0})
    assert client.topic.records == [(b"e-1", raw)]


@pytest.mark.parametrize("kind", [JSON, LINES])
@pytest.mark.parametrize("packed", [False, True])
async def test_many_events_are_taken(client: Client, kind: str, packed: bool) -> None:
    raws = [make_raw(f"e-{i}") for i in range(50)]
    body = b"[" + b",\n".join(raws) + b"]" if kind == JSON else b"\r\n\n".join(raws)
    headers = {"Content-Encoding": "gzip"} if packed else {}
    status, told = await client.post(gzip.compress(body) if packed else body, kind, **headers)
    assert (status, told["taken"]) == (200, 50)
    assert [value for _, value in client.topic.records] == raws


async def test_what_is_not_taken_is_named_with_the_reason(client: Client) -> None:
    bad = [b'{"event.id": "x"}', make_raw("e-2", input_tokens=-1), b"[1]"]
    lines = [make_raw("e-1"), *bad, make_raw("e-3")]
    status, told = await client.post(b"\n".join(lines), LINES)
    assert (status, told["taken"], told["refused"]) == (207, 2, 3)
    named = [(each["index"], each["reason"]) for each in told["refusals"]]
    assert named == [(1, "missing_field"), (2, "invalid_field"), (3, "not_an_object")]
    assert "input_tokens" in told["refusals"][1]["detail"]


async def test_when_none_is_valid_nothing_is_sent(client: Client) -> None:
    status, told = await client.post(b"{}")
    assert (status, told["taken"], client.topic.records) == (422, 0, [])


async def test_what_the_broker_does_not_have_is_not_called_taken(client: Client) -> None:
    client.topic.away = True
    status, told = await client.post(make_raw("e-1"))
    assert (status, told["taken"], told["unanswered"]) == (503, 0, 1)
    client.topic.away, client.topic.loses = False, {b"e-2"}
    status, told = await client.post(b"[" + make_raw("e-1") + b"," + make_raw("e-2") + b"]")
    assert (status, told["taken"], told["unanswered"]) == (503, 1, 1)


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1], "鍵"])
async def test_without_a_key_nothing_is_taken(client: Client, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    status, told = await client.post(make_raw("e-1"), JSON, None, **headers)
    assert (status, client.topic.records) == (401, [])
    assert "taken" not in told


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status"),
    [
        (b"x" * (LIMIT + 1), JSON, {}, 413),
        (
            gzip.compress(b"[" + b" " * 50_000_000 + b"]", mtime=0),
            JSON,
            {"Content-Encoding": "gzip"},
            413,
        ),
        (b"not gzip", JSON, {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(make_raw("e"), mtime=0)[:-9], JSON, {"Content-Encoding": "gzip"}, 400),
        (make_raw("e"), JSON, {"Content-Encoding": "br"}, 415),
        (make_raw("e"), "text/plain", {}, 415),
        (b"[not json]", JSON, {}, 400),
        (b"", JSON, {}, 400),
        (b"[]", JSON, {}, 400),
        (b" \n \n", LINES, {}, 400),
        (b"{}\n" * (RECORDS_MAX + 1), LINES, {}, 413),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused_whole(
    client: Client, body: bytes, kind: str, headers: dict[str, str], status: int
) -> None:
    got, told = await client.post(body, kind, **headers)
    assert (got, told.get("taken", 0), client.topic.records) == (status, 0, [])
    assert told["error"]


async def test_more_at_once_than_can_be_held_are_sent_away(client: Client) -> None:
    client.topic.hold = asyncio.Event()
    waiting = [asyncio.create_task(client.post(make_raw(f"e-{i}"))) for i in range(AT_ONCE)]
    async with asyncio.timeout(30):
        for _ in waiting:
            await client.topic.held.acquire()
    assert await client.post(make_raw("late")) == (503, {"error": "too many at once"})
    client.topic.hold.set()
    assert {status for status, _ in await asyncio.gather(*waiting)} == {200}


@given(st.lists(st.binary(min_size=1, max_size=40).filter(bytes.strip), min_size=1, max_size=5))
def test_any_lines_are_split_where_they_end(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"x").strip() or b"x" for line in lines]
    assert split_body(b"\n".join(lines) + b"\n", LINES) == lines


@given(st.binary(max_size=400), st.integers(0, 300))
def test_what_is_packed_is_unpacked_within_the_limit(body: bytes, limit: int) -> None:
    if len(body) > limit:
        with pytest.raises(Unreadable):
            unpack(gzip.compress(body), "gzip", limit)
    else:
        assert unpack(gzip.compress(body), "gzip", limit) == body


def test_a_key_that_could_be_guessed_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="at least 16 characters"):
        WebSettings(event_keys=("short",))  # type: ignore[arg-type]  # as pydantic takes it
    with pytest.raises((ConfigError, ValueError), match="nothing listens"):
        Config(web=WebSettings(enabled=False, event_keys=(KEY,)))  # type: ignore[arg-type]


@pytest.mark.kafka
def test_the_sender_waits_for_the_broker(kafka_settings: KafkaSettings) -> None:
    from pipeline.topics import create_topics

    create_topics(kafka_settings)
    sender = TopicSender(kafka_settings, kafka_settings.events_topic)
    try:
        records = [(f"e-{i}".encode(), make_raw(f"e-{i}")) for i in range(100)]
        arrived = sender.send_and_wait([*records, (b"big", b"x" * 3 * 1024 * 1024)])
    finally:
        sender.close()
    assert arrived == [True] * 100 + [False]
    found = consume(kafka_settings, kafka_settings.events_topic)
    assert {record.value for record in found} == {value for _, value in records}


@pytest.mark.kafka
def test_a_topic_that_is_missing_is_said(kafka: KafkaServer, topic_prefix: str) -> None:
    settings = settings_for(kafka.bootstrap_servers, topic_prefix)
    sender = TopicSender(settings, "no-such-topic")
    with pytest.raises(SinkUnavailable, match="kizashi init"):
        sender.send_and_wait([(b"k", json.dumps({}).encode())])
    sender.close()
