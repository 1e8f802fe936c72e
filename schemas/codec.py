"""Bytes in, `Received` or `Rejected` out: the one door through which events come.

Decoding is strict (RFC 8259 JSON, RFC 3339 times, no coercion) and total: any
bytes give one of the two, and nothing is raised.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from schemas.event import EVENT_KEYS, Event, Received
from schemas.rejection import Reason, Rejected

#: Nested deeper than this, an unknown key's value is not worth keeping.
MAX_DEPTH = 32
MAX_DETAIL = 300
#: Events whose times and bytes are looked at together: few enough for the cache.
BLOCK_EVENTS = 512

_FIELDS: tuple[msgspec.structs.FieldInfo, ...] = msgspec.structs.fields(Event)

_LABEL_ATTRIBUTES = tuple(
    f.name for f in _FIELDS if f.name not in {"prompt_embedding", "response_embedding"}
)
_decode_event = msgspec.json.Decoder(Event).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
#: What decoders of JSON raise of bytes that they cannot take.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: Stands where a record gave none.
_NO_EVENT = Event(event_id="-", event_time=0, request_model="-")
#: How a NUL stands in JSON.
NUL = rb"\u0000"
_MISSING = re.compile(r"missing required field")
_UNKNOWN = "unknown field"
_ENUM_VALUE = re.compile(r"^Invalid enum value .*(?= - at )", re.DOTALL)
_NOT_OBJECT = re.compile(r"^Expected `object`, got")
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)
#: What every column of time can hold: minutes are kept as ClickHouse's DateTime (1970 to 2106).
_STORABLE_MS = range(2**32 * 1000)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)


class _Known(Event, frozen=True, forbid_unknown_fields=False):
    """The same contract, blind to every other key."""


_decode_known = msgspec.json.Decoder(_Known).decode


class CodecLimits(Struct, frozen=True):
    """What the codec accepts beyond the schema itself."""

    event_bytes: int = 1_000_000
    attributes: int = 64
    attribute_bytes: int = 16_384
    #: Bounds of the event's time against the time its record was written, in milliseconds.
    age_ms: int = 1_826 * 86_400_000
    ahead_ms: int = 86_400_000


DEFAULT_LIMITS = CodecLimits()


def decode_event(
    raw: bytes | None, written_ms: int, limits: CodecLimits = DEFAULT_LIMITS
) -> Received | Rejected:
    """Decode one record.

    `written_ms` is when the record was written (the Kafka timestamp): bounds on
    the event's time are taken against it and not against a clock, so that a
    replay years later decides the same way.
    """
    if raw is None:
        return Rejected(Reason.TOMBSTONE, "the record has no value", b"")
    if len(raw) > limits.event_bytes:
        detail = f"{len(raw)} bytes are over the limit of {limits.event_bytes}"
        return Rejected(Reason.TOO_LARGE, detail, raw)
    try:
        event = _decode_event(raw)
    except DECODE_ERRORS as error:
        return _recover(error, raw, written_ms, limits)
    return _accept(event, {}, raw, written_ms, limits)


def decode_events(
    raws: Sequence[bytes | None], written_ms: Sequence[int], limits: CodecLimits = DEFAULT_LIMITS
) -> list[Received | Rejected]:
    """Decode a chunk: of each record what `decode_event` says of it.

    What is asked of every event alike is asked of a block at once: its time, and a NUL.

    Raises:
        ValueError: the columns differ in length.
    """
    if len(raws) != len(written_ms):
        raise ValueError("the columns differ in length")
    blocks = (slice(i, i + BLOCK_EVENTS) for i in range(0, len(raws), BLOCK_EVENTS))
    decoded = (_decode_block(raws[block], written_ms[block], limits) for block in blocks)
    return list(chain.from_iterable(decoded))


def _decode_block(
    raws: Sequence[bytes | None], written_ms: Sequence[int], limits: CodecLimits
) -> list[Received | Rejected]:
    events: list[Event] = []
    settled: dict[int, Received | Rejected] = {}
    for row, raw in enumerate(raws):
        if raw is None or len(raw) > limits.event_bytes:
            settled[row] = decode_event(raw, written_ms[row], limits)
            events.append(_NO_EVENT)
            continue
        try:
            events.append(_decode_event(raw))
        except DECODE_ERRORS as error:
            settled[row] = _recover(error, raw, written_ms[row], limits)
            events.append(_NO_EVENT)
    time_ms = _to_ms_all([e.event_time for e in events])
    written = np.array(written_ms, np.float64)
    fine = (time_ms >= written - limits.age_ms) & (time_ms <= written + limits.ahead_ms)
    fine &= (time_ms >= _STORABLE_MS.start) & (time_ms < _STORABLE_MS.stop) & ~_may_hold_nul(raws)
    for row in np.flatnonzero(~fine).tolist():
        if row not in settled:
            settled[row] = _accept(events[row], {}, raws[row] or b"", written_ms[row], limits)
    times = np.where(fine, time_ms, 0).astype(np.int64).tolist()
    decoded: list[Received | Rejected] = list(map(Received, events, times, [{} for _ in events]))
    for row, result in settled.items():
        decoded[row] = result
    return decoded


def _to_ms_all(times: list[dt.datetime | float]) -> npt.NDArray[np.float64]:
    """What `_to_ms` says of each, NaN for None; beyond 1e15 the numbers may be others."""
    try:
        seconds = np.array(times, np.float64)
    except (TypeError, OverflowError):  # there are `datetime`s among them, or huge integers
        return np.array(list(map(_to_ms, times)), np.float64)
    with np.errstate(over="ignore"):
        ms: npt.NDArray[np.float64] = np.floor(seconds * 1000)
    return ms


def _may_hold_nul(raws: Sequence[bytes | None]) -> npt.NDArray[np.bool_]:
    """Which records hold a NUL's escape. `in` takes three times as long as the comparison."""
    held = [raw or b"" for raw in raws]
    joined = np.frombuffer(b"".join((*held, b" " * len(NUL))), np.uint8)
    at = np.flatnonzero(joined[: -len(NUL)] == NUL[0])
    for place, byte in enumerate(NUL[1:], 1):
        at = at[joined[at + place] == byte]
    ends = np.cumsum(np.fromiter(map(len, held), np.int64, len(held)))
    found = np.zeros(len(held), np.bool_)
    # The last bytes of one record and the first of the next may look like one: read closely.
    found[np.searchsorted(ends, at, "right")] = True
    return found


def _recover(
    error: Exception, raw: bytes, written_ms: int, limits: CodecLimits
) -> Received | Rejected:
    """Decode the slower way what has keys outside the contract; say what is wrong with the rest."""
    if isinstance(error, msgspec.ValidationError) and _UNKNOWN in str(error):
        try:
            return _decode_with_attributes(raw, written_ms, limits)
        except DECODE_ERRORS as other:
            return explain_error(other, raw)
    return explain_error(error, raw)


def explain_error(error: Exception, raw: bytes) -> Rejected:
    """Say what is wrong with bytes of which a decoder has raised one of `DECODE_ERRORS`."""
    if isinstance(error, UnicodeDecodeError):
        return Rejected(Reason.INVALID_UTF8, _clip(f"{error.reason} at {error.start}"), raw)
    if isinstance(error, msgspec.ValidationError):
        return _explain(error, raw)
    if isinstance(error, msgspec.DecodeError):
        return _explain_malformed(error, raw)
    return Rejected(Reason.TOO_DEEP, "nested too deeply", raw)


def _decode_with_attributes(
    raw: bytes, written_ms: int, limits: CodecLimits
) -> Received | Rejected:
    """The slower way, taken only by events that have keys outside the contract."""
    # The known keys are read from the bytes again, not from the dict: numbers,
    # times and repeated keys must be judged by the rules of the fast way.
    event = Event(**msgspec.structs.asdict(_decode_known(raw)))
    extra = {k: v for k, v in _decode_object(raw).items() if k not in EVENT_KEYS}
    if (problem := _check_extra(extra, raw, limits)) is not None:
        return problem
    attributes = {key: _as_text(value) for key, value in extra.items()}
    if sum(len(k) + len(v) for k, v in attributes.items()) > limits.attribute_bytes:
        detail = f"unknown keys hold more than {limits.attribute_bytes} characters"
        return Rejected(Reason.TOO_MANY_ATTRIBUTES, detail, raw)
    return _accept(event, attributes, raw, written_ms, limits)


def _check_extra(extra: dict[str, Any], raw: bytes, limits: CodecLimits) -> Rejected | None:
    if len(extra) > limits.attributes:
        detail = f"{len(extra)} unknown keys are over the limit of {limits.attributes}"
        return Rejected(Reason.TOO_MANY_ATTRIBUTES, detail, raw)
    if any(_depth_exceeds(value, MAX_DEPTH) for value in extra.values()):
        return Rejected(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH}", raw)
    return None


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _accept(
    event: Event,
    attributes: dict[str, str],
    raw: bytes,
    written_ms: int,
    limits: CodecLimits,
) -> Received | Rejected:
    """The rules that a schema cannot say."""
    time_ms = settle_time("event.time", event.event_time, written_ms, limits, raw)
    if isinstance(time_ms, Rejected):
        return time_ms
    # A raw NUL is not JSON; it can only come in as an escape, which is rare
    # enough that the search for the six bytes pays for the exact check.
    if NUL in raw and (name := _find_nul(event, attributes)) is not None:
        return Rejected(Reason.CONTROL_CHARACTER, f"NUL in {name}", raw)
    return Received(event, time_ms, attributes)


def settle_time(
    key: str, time: dt.datetime | float, written_ms: int, limits: CodecLimits, raw: bytes
) -> int | Rejected:
    """Return a record's time in milliseconds since the epoch, or why it cannot be taken."""
    time_ms = _to_ms(time)
    if time_ms is None:
        detail = f"{key} has no time zone, or is not a time"
        return Rejected(Reason.INVALID_FIELD, detail, raw)
    if not written_ms - limits.age_ms <= time_ms <= written_ms + limits.ahead_ms:
        days = (time_ms - written_ms) / 86_400_000
        detail = f"{key} is {days:+.1f} days from the time of writing"
        return Rejected(Reason.TIME_OUT_OF_RANGE, detail, raw)
    # A record's own time can be forged, so the bounds against it are not enough.
    if time_ms not in _STORABLE_MS:
        return Rejected(Reason.TIME_OUT_OF_RANGE, f"{key} is not between 1970 and 2106", raw)
    return time_ms


def _to_ms(time: dt.datetime | float) -> int | None:
    """Milliseconds since the epoch, rounded down; None for what is not a point in time."""
    if isinstance(time, dt.datetime):
        return None if time.tzinfo is None else (time - _EPOCH) // _MILLISECOND
    # Not `isfinite`: an integer may be too large to become a float.
    if abs(time) > 1e12:
        return None
    return math.floor(time * 1000)


def _find_nul(event: Event, attributes: dict[str, str]) -> str | None:
    for name in _LABEL_ATTRIBUTES:
        value = getattr(event, name)
        texts = value if isinstance(value, list) else (value,)
        if any(isinstance(text, str) and "\0" in text for text in texts):
            return name
    if any("\0" in key or "\0" in value for key, value in attributes.items()):
        return "an unknown key"
    return None


def _explain(error: msgspec.ValidationError, raw: bytes) -> Rejected:
    # The one message that quotes a value.
    message = _clip(_ENUM_VALUE.sub("Invalid enum value", str(error)))
    if _MISSING.search(message):
        return Rejected(Reason.MISSING_FIELD, message, raw)
    if _NOT_OBJECT.search(message) and "`$" not in message:
        return Rejected(Reason.NOT_AN_OBJECT, message, raw)
    return Rejected(Reason.INVALID_FIELD, message, raw)


def _explain_malformed(error: msgspec.DecodeError, raw: bytes) -> Rejected:
    # msgspec calls a lone surrogate truncated or malformed JSON, and truncated
    # UTF-8 in a record that was cut off too. Say which it really is.
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        return Rejected(Reason.INVALID_UTF8, _clip(f"{bad.reason} at {bad.start}"), raw)
    # An escaped backslash begins no escape.
    if _LONE_SURROGATE.search(raw.replace(rb"\\", b"  ")):
        return Rejected(Reason.LONE_SURROGATE, "half of a UTF-16 surrogate pair", raw)
    return Rejected(Reason.INVALID_JSON, _clip(str(error)), raw)


def _clip(message: str) -> str:
    return message[:MAX_DETAIL]
