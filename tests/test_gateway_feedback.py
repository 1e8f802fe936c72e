"""Feedback at the gateway: whose it is, what is taken, and that nothing taken is lost."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIStatusError

from gateway.errors import WORDINGS, Code
from gateway.feedback_door import LONG_BYTES
from gateway.ratings import judge_of, own, read_key
from gateway.shipping import FeedbackShipping
from gateway.spool import Slot
from pipeline.core.feedback import Subject, Subjects
from pipeline.errors import SinkUnavailable
from pipeline.gateway_settings import EventSettings, FeedbackSettings
from schemas.codec import DEFAULT_LIMITS
from schemas.feedback import ReceivedFeedback, decode_feedback
from schemas.monitor import DIMENSIONS, Dimension
from schemas.rejection import Rejected
from tests.support.events import NOW_MS, to_bytes
from tests.support.feedback import feedback_raw, make_feedback, valid_feedback
from tests.support.gateway import KEY, Stand, ask, stand

JSON, LINES = "application/json", "application/x-ndjson"
OTHER_KEY = f"{KEY}-other"
#: Reading the authorities takes a quarter of a second.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def keys(monkeypatch: pytest.MonkeyPatch, **acme: Any) -> list[dict[str, Any]]:
    monkeypatch.setenv("ACME_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", OTHER_KEY)
    return [
        {"name": "acme", "key_env": "ACME_KEY", "tenant": "acme", **acme},
        {"name": "other", "key_env": "OTHER_KEY", "tenant": "other"},
    ]


def now_ms(s: Stand) -> int:
    return round(s.gateway.clocks.wall_s() * 1000)


def thumb(s: Stand, feedback_id: str = "f-1", **fields: Any) -> dict[str, Any]:
    return make_feedback(feedback_id, time_ms=now_ms(s), **fields)


async def post(
    s: Stand, body: bytes, kind: str = JSON, key: str | None = KEY, **headers: str
) -> httpx.Response:
    sent = {"Content-Type": kind, **headers}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        return await client.post(f"{s.url}/v1/feedback", content=body, headers=sent)


def code_of(answer: httpx.Response) -> str:
    """The error's code, and that it is told as all errors are."""
    error = answer.json()["error"]
    wording = WORDINGS[Code(error["code"])]
    assert (answer.status_code, error["message"]) == (wording.status, wording.en)
    assert error["request_id"] == answer.headers["x-request-id"]
    return str(error["code"])


# --- What is taken ---------------------------------------------------------------------------


async def test_openais_client_says_what_it_thinks_of_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stand(keys=keys(monkeypatch)) as s:
        raw = await s.client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": "Hello"}]
        )
        said = thumb(s, about=raw.headers["x-request-id"], response_id=raw.parse().id, score=0)
        told = await s.client.post("/feedback", cast_to=object, body=said)
        assert told == {"taken": 1, "refused": 0}
        [event] = s.events.decoded
        [kept] = s.ratings.decoded
        assert kept["event.id"] == event["event.id"]
        assert kept["gen_ai.response.id"] == event["gen_ai.response.id"]
        assert kept["gateway.tenant"] == event["gateway.tenant"] == "acme"
        assert kept == {**said, "feedback.id": "acme/f-1", "gateway.tenant": "acme"}


@pytest.mark.parametrize("kind", [JSON, LINES])
@pytest.mark.parametrize("packed", [False, True])
async def test_many_are_taken_and_what_is_not_is_named(kind: str, packed: bool) -> None:
    async with stand() as s:
        raws = [to_bytes(thumb(s, f"f-{i}")) for i in range(100)] + [b'{"feedback.id": "x"}']
        body = b"[" + b",".join(raws) + b"]" if kind == JSON else b"\n".join(raws)
        assert len(body) > LONG_BYTES
        headers = {"Content-Encoding": "gzip"} if packed else {}
        answer = await post(s, gzip.compress(body) if packed else body, kind, **headers)
        told = answer.json()
        assert (answer.status_code, told["taken"], told["refused"]) == (207, 100, 1)
        assert [(r["index"], r["reason"]) for r in told["refusals"]] == [(100, "missing_field")]
        # A key without a tenant is taken at its word.
        assert s.ratings.raws == raws[:100]


async def test_when_none_is_valid_the_error_says_why() -> None:
    async with stand() as s:
        old = make_feedback(time_ms=0)
        answer = await post(s, to_bytes(old))
        assert code_of(answer) == "feedback_refused"
        [refusal] = answer.json()["refusals"]
        assert (answer.json()["taken"], refusal["reason"]) == (0, "time_out_of_range")
        assert s.ratings.raws == []


@pytest.mark.parametrize(
    ("body", "kind", "headers", "code"),
    [
        (b"x" * 3_000, JSON, {}, "request_too_large"),
        (gzip.compress(b" " * 500_000), JSON, {"Content-Encoding": "gzip"}, "request_too_large"),
        (b"{}", "text/plain", {}, "unsupported_media_type"),
        (b"{}", JSON, {"Content-Encoding": "br"}, "unsupported_media_type"),
        (b"not gzip", JSON, {"Content-Encoding": "gzip"}, "invalid_request"),
        (b"[", JSON, {}, "invalid_request"),
        (b"", JSON, {}, "invalid_request"),
        (b"{", JSON, {}, "feedback_refused"),
    ],
)
async def test_what_cannot_be_read_is_an_error_of_the_gateways_form(
    body: bytes, kind: str, headers: dict[str, str], code: str
) -> None:
    async with stand(feedback={"body_bytes": 2_000}) as s:
        assert code_of(await post(s, body, kind, **headers)) == code
        assert s.ratings.raws == []
        text = s.gateway.metrics.render().decode()
        assert f'turned_away_total{{code="{code}"}} 1' in text


async def test_errors_are_told_in_japanese_and_tell_nothing_of_the_body() -> None:
    async with stand() as s:
        secret = b'{"feedback.id": "sk-live-CANARY'
        answer = await post(s, secret, JSON, **{"Accept-Language": "ja"})
        assert answer.json()["error"]["message"] == WORDINGS[Code.FEEDBACK_REFUSED].ja
        assert "CANARY" not in answer.text


async def test_nothing_is_read_of_a_request_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand(keys=keys(monkeypatch)) as s:
        for key in (None, "x", "sk-nobody-0123456789", KEY[:-1]):
            assert code_of(await post(s, to_bytes(thumb(s)), key=key)) == "invalid_api_key"
        assert s.ratings.raws == []
        async with httpx.AsyncClient(verify=NO_TLS) as client:
            assert code_of(await client.get(f"{s.url}/v1/feedback")) == "method_not_allowed"


async def test_what_breaks_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand() as s:

        async def fail(_: Sequence[bytes]) -> bool:
            raise ValueError("CANARY")

        monkeypatch.setattr(s.ratings, "keep", fail)
        answer = await post(s, to_bytes(thumb(s)))
        assert code_of(answer) == "internal_error"
        assert "CANARY" not in answer.text
        assert s.gateway.served == 0


# --- Whose it is -----------------------------------------------------------------------------


async def test_a_key_cannot_speak_for_another_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand(keys=keys(monkeypatch)) as s:
        for key in (KEY, OTHER_KEY):
            for tenant in ("acme", "other", "", None):
                answer = await post(s, to_bytes(thumb(s, tenant=tenant)), key=key)
                assert answer.status_code == 200
        said = [(f["gateway.tenant"], f["feedback.id"]) for f in s.ratings.decoded]
        # The same id of two tenants is two ids.
        assert said == [("acme", "acme/f-1")] * 4 + [("other", "other/f-1")] * 4


def subject(tenant: str) -> Subject:
    return Subject("e", NOW_MS, tuple(tenant if d is Dimension.TENANT else "x" for d in DIMENSIONS))


@given(
    st.sampled_from(["acme", "a/b", "日本", "100%", '"', "other"]),
    valid_feedback(),
    st.sampled_from(["acme", "a/b", "", "other", "acme/"]),
)
def test_only_a_request_of_the_keys_tenant_is_ever_found(
    tenant: str, feedback: dict[str, Any], whose: str
) -> None:
    verdict = judge_of(tenant, NOW_MS, DEFAULT_LIMITS)(to_bytes(feedback))
    if isinstance(verdict, Rejected):
        # With the tenant before it the id may be too long, and nothing else can be wrong.
        assert len(feedback["feedback.id"]) > 256 - 3 * len(tenant) - 1
        return
    key, raw = verdict
    received = decode_feedback(raw, NOW_MS, DEFAULT_LIMITS)
    assert isinstance(received, ReceivedFeedback)
    given_ = received.feedback
    ids = (given_.event_id or "", given_.response_id or "")
    found = Subjects(*({each: subject(whose)} for each in ids)).find(given_)
    assert (found is not None) == (whose == tenant)
    assert key == read_key(raw) == given_.feedback_id.encode()
    kept = {**feedback, "feedback.id": given_.feedback_id, "gateway.tenant": tenant}
    assert json.loads(raw) == kept


HOSTILE = [
    b'{"gateway.tenant": "other", "gateway.tenant": "other"}',
    b'{"gateway\\u002etenant": "other", "gateway.tenant": "acme"}',
    b'{"gateway.tenant": "acme", "gateway\\u002etenant": "other"}',
    b'{"gateway.tenant": null}',
    b'{"feedback.id": 5}',
    b'{"feedback.id": ""}',
    b'{"feedback.id": "\\ud800"}',
    b'{"x": "\xff", "gateway.tenant": "other"}',
    b'{"x": 1e999, "gateway.tenant": "other"}',
    b'{"x": [1, 2}, "gateway.tenant": "other"}',
    b'{} {"gateway.tenant": "other"}',
    b"[]",
    b"null",
    b"",
]


@given(
    st.sampled_from(HOSTILE) | st.binary(max_size=60),
    st.sampled_from([b"", to_bytes(make_feedback())]),
)
def test_no_bytes_are_taken_for_another_tenants(raw: bytes, base: bytes) -> None:
    # Laid upon what is valid, so that some of it is.
    raw = base[:-1] + b"," + raw[1:] if base else raw
    verdict = judge_of("acme", NOW_MS, DEFAULT_LIMITS)(raw)
    if isinstance(verdict, Rejected):
        return
    received = decode_feedback(verdict[1], NOW_MS, DEFAULT_LIMITS)
    assert isinstance(received, ReceivedFeedback)
    assert received.feedback.tenant == "acme"
    assert received.feedback.feedback_id.startswith("acme/")


def test_no_two_tenants_share_an_id() -> None:
    ids = [own(feedback_raw(i), t) for t, i in (("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c"))]
    assert len({json.loads(raw)["feedback.id"] for raw in ids if isinstance(raw, bytes)}) == 3


# --- Limits ----------------------------------------------------------------------------------


async def test_ratings_have_the_limit_of_requests_apart_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stand(keys=keys(monkeypatch, requests_per_min=2, tokens_per_min=1)) as s:
        assert (await ask(s))[1] is None
        # The tokens are used up, which is no matter of ratings.
        statuses = [(await post(s, to_bytes(thumb(s)))).status_code for _ in range(2)]
        assert statuses == [200, 200]
        late = await post(s, to_bytes(thumb(s)))
        assert code_of(late) == "rate_limit_exceeded"
        assert 1 <= int(late.headers["retry-after"]) <= 91
        assert (await post(s, to_bytes(thumb(s)), key=OTHER_KEY)).status_code == 200


async def test_over_the_gateways_own_limit_it_is_told_to_come_back() -> None:
    async with stand(requests=1) as s:
        s.gateway.served = 1
        answer = await post(s, to_bytes(thumb(s)))
        assert code_of(answer) == "gateway_overloaded"
        assert answer.headers["retry-after"] == "2"


# --- Nothing that was taken is lost ----------------------------------------------------------


class Away:
    """A courier that delivers nothing until it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.got: list[bytes] = []

    def deliver(self, raws: Sequence[bytes]) -> tuple[list[bytes], int]:
        if not self.let.is_set():
            raise SinkUnavailable("away")
        self.got += raws
        return [], 0

    def close(self) -> None:
        self.let.set()


def ship(spool: Path, courier: Away) -> FeedbackShipping:
    return FeedbackShipping(FeedbackSettings(), EventSettings(spool=spool), courier)


async def test_while_kafka_is_away_feedback_is_taken_and_sent_by_the_next_process(
    tmp_path: Path,
) -> None:
    shipping = ship(tmp_path, Away())
    async with stand(feedback_sink=shipping) as s:
        raws = [to_bytes(thumb(s, f"f-{i}")) for i in range(5)]
        for raw in raws:
            assert (await post(s, raw)).status_code == 200
    assert shipping.waiting == 5
    await asyncio.to_thread(shipping.stop, 0.01)
    following = Away()
    following.let.set()
    again = ship(tmp_path, following)
    # All that waits is sent before it ends.
    await asyncio.to_thread(again.stop, 10.0)
    assert following.got == raws


async def test_what_the_spool_cannot_take_is_told_and_not_called_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipping = ship(tmp_path, Away())
    async with stand(feedback_sink=shipping) as s:
        assert (await post(s, to_bytes(thumb(s, "f-1")))).status_code == 200
        monkeypatch.setattr(shipping.spool, "_bytes_max", shipping.spool.waiting_bytes)
        answer = await post(s, to_bytes(thumb(s, "f-2")))
        assert code_of(answer) == "feedback_unavailable"
        assert int(answer.headers["retry-after"]) >= 5
        with pytest.raises(APIStatusError) as caught:
            await s.client.post("/feedback", cast_to=object, body=thumb(s, "f-2"))
        assert caught.value.status_code == 503
    ledger = shipping.spool.ledger
    assert (ledger[Slot.TAKEN], ledger[Slot.SPOOLED], sum(ledger.lost.values())) == (1, 1, 0)
    await asyncio.to_thread(shipping.stop, 0.01)


async def test_without_a_sink_there_is_no_door(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand() as s:
        s.gateway.feedback = None
        assert code_of(await post(s, to_bytes(thumb(s)))) == "not_found"
