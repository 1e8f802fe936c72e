"""Records by HTTP: what a body holds, what of it is taken, and the answer. No server in here.

Delivery: what the answer says was taken, the broker has (acks from all in-sync replicas). What
is refused is refused for good, with the reason that a worker would dead-letter it for. Whoever
gets 503 sends the same again: an id that is known already counts once.
"""

from __future__ import annotations

import hmac
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from pipeline.config import IngestSettings
from pipeline.errors import RetryableError
from schemas.codec import CodecLimits, decode_event
from schemas.feedback import decode_feedback
from schemas.rejection import Rejected

#: Records of one body.
RECORDS_MAX = 10_000
#: Refusals that are told one by one.
TOLD_MAX = 1_000
#: After so long a client may try again.
RETRY_AFTER_S = 5
_LINES = frozenset({"application/x-ndjson", "application/jsonl", "application/ndjson"})
_JSON = "application/json"
#: Bytes are unpacked so many at a time.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_DAY_MS = 86_400_000

#: Says why a record is refused, or what is sent for it: a key, and the record.
Judge = Callable[[bytes], "tuple[bytes, bytes] | Rejected"]
#: Sends records, each with its key; returns for each whether the broker has it. Raises
#: RetryableError when none of them can have arrived.
Send = Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[Sequence[bool]]]


class Refused(Struct, frozen=True):
    """A record that will never be taken: its place in the body, and why."""

    index: int
    reason: str
    detail: str


class Judged(Struct, frozen=True):
    """A body's records: what is sent of them, each with its key, and what is refused."""

    good: list[tuple[bytes, bytes]]
    refused: list[Refused]

    def describe(self, taken: int) -> dict[str, Any]:
        """Return what a client is told of them."""
        told: dict[str, Any] = {"taken": taken, "refused": len(self.refused)}
        if self.refused:
            told["refusals"] = [msgspec.structs.asdict(each) for each in self.refused[:TOLD_MAX]]
        return told


class Answer(Struct, frozen=True):
    """What the client is told."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = {}


class Unreadable(Exception):
    """A body of which nothing can be taken: the status, and what is wrong."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def is_known_key(keys: Sequence[bytes], authorization: str) -> bool:
    """Whether ``Authorization: Bearer KEY`` names one of the keys; in constant time for each."""
    scheme, _, given = authorization.partition(" ")
    offered = given.strip().encode(errors="replace")
    known = [hmac.compare_digest(offered, key) for key in keys]
    return scheme.lower() == "bearer" and any(known)


def build_limits(ingest: IngestSettings) -> CodecLimits:
    """What an event may be, at every door."""
    return CodecLimits(
        event_bytes=ingest.event_bytes,
        attributes=ingest.attributes,
        age_ms=round(ingest.event_age_days * _DAY_MS),
        ahead_ms=round(ingest.event_ahead_s * 1000),
    )


def judge_event(now_ms: int, limits: CodecLimits) -> Judge:
    """Return what judges events that are written now, by the rules of the worker."""

    def judge(raw: bytes) -> tuple[bytes, bytes] | Rejected:
        result = decode_event(raw, now_ms, limits)
        if isinstance(result, Rejected):
            return result
        # The key keeps the repeats of an event in one partition.
        return result.event.event_id.encode(), raw

    return judge


def judge_feedback(now_ms: int, limits: CodecLimits) -> Judge:
    """Return what judges feedback that is written now, by the rules of the worker."""

    def judge(raw: bytes) -> tuple[bytes, bytes] | Rejected:
        result = decode_feedback(raw, now_ms, limits)
        if isinstance(result, Rejected):
            return result
        # As above: its repeats lie in one partition.
        return result.feedback.feedback_id.encode(), raw

    return judge


async def receive(
    body: bytes, content_type: str, encoding: str, limit_bytes: int, judge: Judge, send: Send
) -> Answer:
    """Take what can be taken of a body, and return what to answer.

    `content_type` and `encoding` are the values of the headers.
    """
    try:
        judged = judge_body(body, content_type, encoding, limit_bytes, judge)
    except Unreadable as error:
        return Answer(error.status, {"taken": 0, "error": str(error)})
    try:
        arrived = await send(judged.good) if judged.good else []
    except RetryableError:
        arrived = [False] * len(judged.good)
    return _answer(judged, sum(arrived))


def judge_body(
    body: bytes, content_type: str, encoding: str, limit_bytes: int, judge: Judge
) -> Judged:
    """Return what is to become of the records of a body.

    Raises:
        Unreadable: nothing of it can be taken.
    """
    judged = Judged([], [])
    for index, record in enumerate(split_body(unpack(body, encoding, limit_bytes), content_type)):
        verdict = judge(record)
        if isinstance(verdict, Rejected):
            judged.refused.append(Refused(index, verdict.reason.value, verdict.detail))
        else:
            judged.good.append(verdict)
    return judged


def _answer(judged: Judged, taken: int) -> Answer:
    body = judged.describe(taken)
    if missing := len(judged.good) - taken:
        body["unanswered"] = missing
        body["error"] = "the broker did not confirm all of them: send the same again"
        return Answer(503, body, {"Retry-After": str(RETRY_AFTER_S)})
    if judged.refused:
        return Answer(207 if taken else 422, body)
    return Answer(200, body)


def unpack(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return the body without its gzip; never more of it than the limit.

    Raises:
        Unreadable: it is larger, damaged, or packed in another way.
    """
    if encoding.strip().lower() in ("gzip", "x-gzip"):
        body = _gunzip(body, limit_bytes)
    elif encoding.strip().lower() not in ("", "identity"):
        raise Unreadable(415, "Content-Encoding: gzip, or none")
    if len(body) > limit_bytes:
        raise Unreadable(413, f"more than {limit_bytes} bytes")
    return body


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    """Members one after the other, as gzip allows."""
    whole = bytearray()
    try:
        while body:
            stream = zlib.decompressobj(_GZIP_WINDOW)
            whole += stream.decompress(body, limit_bytes + 1 - len(whole))
            if len(whole) > limit_bytes:
                return bytes(whole)
            if not stream.eof:
                raise Unreadable(400, "the gzip data end too early")
            body = stream.unused_data
    except zlib.error:
        raise Unreadable(400, "the gzip data are damaged") from None
    return bytes(whole)


def split_body(body: bytes, content_type: str) -> list[bytes]:
    """Return the records of a body: an object, an array of objects, or one a line.

    Raises:
        Unreadable: it holds none, too many, or is of another type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _LINES:
        records = [line.strip() for line in body.split(b"\n")]
        records = [line for line in records if line]
    elif kind == _JSON:
        records = _split_json(body.strip())
    else:
        raise Unreadable(415, f"Content-Type: {_JSON}, or application/x-ndjson")
    if not records:
        raise Unreadable(400, "no record in it")
    if len(records) > RECORDS_MAX:
        raise Unreadable(413, f"more than {RECORDS_MAX} records")
    return records


def _split_json(body: bytes) -> list[bytes]:
    if not body.startswith(b"["):
        return [body] if body else []
    try:
        # As they came, to the byte.
        return [bytes(each) for each in msgspec.json.decode(body, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unreadable(400, "not JSON") from None
