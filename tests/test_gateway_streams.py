"""Streams that are cut by the client, the upstream or a guardrail. Nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import sse
from gateway.answer import Answer
from gateway.app import Endpoint
from gateway.asked import Asked
from gateway.errors import Code
from gateway.fake_provider import Reply
from gateway.openai_api import OpenAIDialect, Part
from gateway.relay import Relay
from gateway.routing import Failure, UpstreamFailure
from gateway.sse import Reader, SentEvent
from gateway.stages import Action, AnswerGuards, Stages, Verdict
from gateway.upstream import Upstream
from tests.support.gateway import Stand, ask, stand

ASK: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]
STREAMS = 10_000


# --- Server-sent events -----------------------------------------------------------------------


@given(
    st.lists(st.binary(min_size=1, max_size=30).map(lambda b: b.translate(None, b"\r\n"))),
    st.lists(st.integers(1, 40), max_size=20),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_any_cut_of_the_bytes_gives_the_same_events(
    datas: list[bytes], cuts: list[int], end: bytes
) -> None:
    raw = b"".join(b"data: " + data + end + end for data in datas)
    reader, found = Reader(), list[SentEvent]()
    while raw:
        size = cuts.pop() if cuts else len(raw)
        found += reader.feed(raw[:size])
        raw = raw[size:]
    found += reader.finish()
    assert [event.data for event in found] == datas


def test_names_comments_and_data_in_lines() -> None:
    events = Reader().feed(b": hello\n\nevent: ping\ndata: a\ndata:b\nid: 7\n\n")
    assert events == [SentEvent(b"a\nb", "ping")]


def test_an_event_without_an_end_is_refused() -> None:
    reader = Reader()
    reader.feed(b"x" * sse.EVENT_BYTES_MAX)
    with pytest.raises(sse.TooLong):
        reader.feed(b"x")


# --- One stream -------------------------------------------------------------------------------


async def settled(s: Stand, streams: int) -> None:
    """Wait until the upstreams have seen the end of every stream, and its event is there."""
    for _ in range(500):
        over = all(p.counts["streams_open"] == 0 for p in s.providers.values())
        if over and len(s.events.raws) >= streams and s.gateway.served == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a stream is still open")


async def test_a_client_that_goes_away_stops_the_upstream() -> None:
    endless = Reply(text="x" * 100_000, piece_characters=1, piece_s=0.001)
    async with stand({"gpt-4o": lambda _: endless}) as s:
        sent = await s.client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True)
        async with aclosing(sent.response):
            async for _ in sent:
                break
        await settled(s, 1)
        assert s.provider.counts["streams_left"] == 1
        [event] = s.events.decoded
        assert event["error.type"] == "client_disconnected"


async def test_a_client_that_waits_for_a_whole_answer_and_goes_away_stops_it_too() -> None:
    async with stand({"gpt-4o": lambda _: Reply(first_s=30)}) as s:
        asking = asyncio.ensure_future(
            s.client.chat.completions.create(model="gpt-4o", messages=ASK)
        )
        while not s.provider.counts["requests"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        asking.cancel()
        await settled(s, 1)
        assert s.events.decoded[0]["error.type"] == "client_disconnected"


async def test_a_client_that_does_not_read_holds_the_upstream_back() -> None:
    much = Reply(text="x" * 64_000_000, piece_characters=64_000)
    async with stand({"gpt-4o": lambda _: much}) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(s.url.rpartition(":")[2]))
        body = msgspec.json.encode({"model": "gpt-4o", "messages": ASK, "stream": True})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"\r\n" + body)
        await reader.read(1_000)
        await asyncio.sleep(0.5)
        assert s.events.raws == []
        assert s.provider.counts["streams_open"] == 1
        writer.close()
        await settled(s, 1)


class Stop:
    """A guard that stops an answer at a word, and redacts another, across cuts."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._held = ""

    def open(self, asked: Asked) -> Stop:
        return Stop()

    def feed(self, text: str) -> str:
        self._held += text
        if "secret" in self._held:
            self._held = self._held.replace("secret", "[…]")
            self.verdicts.append(Verdict("test.secret", Action.REDACTED))
        if "forbidden" in self._held:
            self.verdicts.append(Verdict("test.forbidden", Action.BLOCKED))
        ready, self._held = self._held[:-9], self._held[-9:]
        return ready

    def close(self) -> str:
        held, self._held = self._held, ""
        return held


@pytest.mark.parametrize("stream", [False, True])
async def test_a_guard_changes_an_answer_across_its_pieces(stream: bool) -> None:
    reply = Reply(text="The secret is out, said the secretary.", piece_characters=3)
    async with stand({"gpt-4o": lambda _: reply}, stages=Stages(output_guard=Stop())) as s:
        text, _ = await ask(s, stream=stream)
        assert text == "The […] is out, said the […]ary."
        [event] = s.events.decoded
        assert event["gateway.guardrail"] == "test.secret:redacted"
        assert event["response.text"] == text
        assert event["gen_ai.usage.output_tokens"] == reply.output_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_a_guard_stops_an_answer(stream: bool) -> None:
    reply = Reply(text="This is quite forbidden, and more of it. " * 50, piece_s=0.001)
    async with stand({"gpt-4o": lambda _: reply}, stages=Stages(output_guard=Stop())) as s:
        heard, error = await ask(s, stream=stream)
        assert error is not None
        assert error.code == "answer_blocked"
        assert "forbidden" not in heard
        await settled(s, 1)
        [event] = s.events.decoded
        assert event["error.type"] == "answer_blocked"
        assert event["gateway.guardrail"] == "test.forbidden:blocked"
        assert "response.text" not in event


# --- Ten thousand -----------------------------------------------------------------------------


class Scripted(Upstream):
    """An upstream in memory: its streams end, break, or never end, and are counted."""

    def __init__(self, like: Upstream) -> None:
        super().__init__(like.settings, OpenAIDialect(like.settings, None))
        self.asked = self.open = 0

    async def open_stream(self, asked: Asked, model: str, within_s: float) -> Any:
        self.asked += 1
        self.open += 1
        return ScriptedStream(self, asked.body["messages"][0]["content"])


class ScriptedStream:
    def __init__(self, upstream: Scripted, what: str) -> None:
        self._upstream = upstream
        self._what = what
        self._sent = 0
        self._closed = False

    async def next_parts(self) -> list[Part]:
        self._sent += 1
        await asyncio.sleep(0)
        if self._what == "endless" or self._sent < 4:
            return parts("word ")
        if self._what == "break":
            raise UpstreamFailure(Failure.UNREACHABLE, "cut")
        if self._what == "vanish":
            return []
        if self._what == "forbidden":
            return parts("forbidden")
        return [*parts("", "stop"), Part(None, done=True)]

    def close(self) -> None:
        assert not self._closed
        self._closed = True
        self._upstream.open -= 1


def parts(text: str, reason: str | None = None) -> list[Part]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    data = msgspec.json.encode({"id": "c", "model": "m", "choices": [choice]})
    return list(OpenAIDialect.stream_reader(None).read(SentEvent(data)))  # type: ignore[arg-type]


class Client:
    """An ASGI client that goes away after so many pieces, or stays."""

    def __init__(self, what: str, leave_after: int | None) -> None:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": what}], "stream": True}
        self._requests = [{"type": "http.request", "body": msgspec.json.encode(body)}]
        self._leave_after = leave_after
        self._gone = asyncio.Event()
        self.heard: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        if self._requests:
            return self._requests.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.heard.append(message.get("body", b""))
        if self._leave_after is not None and len(self.heard) > self._leave_after:
            self._gone.set()
            await asyncio.sleep(0)


#: What the stream does, when the client leaves, and the `error.type` that comes of it.
ENDS: Sequence[tuple[str, int | None, str | None]] = (
    ("whole", None, None),
    ("endless", 1, "client_disconnected"),
    ("endless", 5, "client_disconnected"),
    ("break", None, "stream_broken"),
    ("vanish", None, "stream_broken"),
    ("forbidden", None, "answer_blocked"),
)


async def test_ten_thousand_streams_that_are_cut_leave_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR, "gateway.serving")  # each of them says so
    async with stand(stages=Stages(output_guard=Stop())) as s:
        upstream = Scripted(s.gateway.upstreams["gpt-4o"])
        s.gateway.upstreams = {"gpt-4o": upstream}
        s.gateway.breakers["gpt-4o"].fail = lambda *_: None  # type: ignore[method-assign]

        class State:
            gateway = s.gateway

        class App:
            state = State

        endpoint = Endpoint(App, "chat")  # type: ignore[arg-type]
        tasks = len(asyncio.all_tasks())
        scope = {"type": "http", "headers": []}
        for start in range(0, STREAMS, 500):
            ends = [ENDS[n % len(ENDS)] for n in range(start, start + 500)]
            clients = [Client(what, leave) for what, leave, _ in ends]
            await asyncio.gather(*(endpoint(scope, c.receive, c.send) for c in clients))
            await asyncio.sleep(0)
            found = [event.get("error.type") for event in s.events.decoded]
            assert sorted(map(str, found)) == sorted(str(error) for _, _, error in ends)
            s.events.raws.clear()
        gc.collect()
        assert upstream.asked == STREAMS
        assert (upstream.open, s.gateway.served) == (0, 0)
        assert len(asyncio.all_tasks()) == tasks


async def test_streams_over_the_wire_give_their_connections_back() -> None:
    """Fewer, but with sockets: each end of a stream, 40 times."""

    def script(body: dict[str, Any]) -> Reply:
        what = body["messages"][0]["content"]
        if what == "break":
            return Reply(cut_after=2, piece_s=0.001)
        if what == "endless":
            return Reply(text="x" * 10_000, piece_characters=1, piece_s=0.001)
        return Reply()

    async with stand({"gpt-4o": script}, upstream={"breaker_failures": 10_000}) as s:

        async def leave(what: str) -> None:
            messages: list[Any] = [{"role": "user", "content": what}]
            sent = await s.client.chat.completions.create(
                model="gpt-4o", messages=messages, stream=True
            )
            async with aclosing(sent.response):
                await anext(aiter(sent))

        tasks = len(asyncio.all_tasks())
        for _ in range(10):
            whole = [ask(s, "whole", stream=True) for _ in range(4)]
            broken = [ask(s, "break", stream=True) for _ in range(4)]
            left = [leave("endless") for _ in range(4)]
            ended = await asyncio.gather(*whole, *broken, *left)
            codes = [None if each is None or each[1] is None else each[1].code for each in ended]
            assert codes == [None] * 4 + ["stream_broken"] * 4 + [None] * 4
        await settled(s, 120)
        assert s.provider.counts["requests"] == 120
        session = s.gateway.upstreams["gpt-4o"]._session
        assert session is not None
        assert session.connector is not None
        assert len(session.connector._acquired) == 0  # type: ignore[attr-defined]
        await s.client.close()
        for _ in range(100):
            if len(asyncio.all_tasks()) <= tasks:
                break
            await asyncio.sleep(0.02)
        assert len(asyncio.all_tasks()) <= tasks


def test_what_came_before_a_stop_is_sent() -> None:
    asked = Asked(request_id="r", operation="chat", tenant="", model="m", body={})
    relay = Relay(asked, Answer(100), AnswerGuards(Stop(), asked))
    come = [*parts("This is quite fine. "), *parts("This is forbidden."), *parts(" And more.")]
    sent = relay.take(come)
    assert b"This is qui" in sent
    assert b"forbidden" not in sent
    assert relay.stopped is not None
    assert relay.stopped.code is Code.ANSWER_BLOCKED
    assert relay.answer.text == "This is qui"
