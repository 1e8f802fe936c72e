"""From the records of a topic to events, by what the topic is said to hold.

A record of ours is an event. A record of OTLP holds many spans, and so many events or
none: all of them have its offset, and stand in order of their ids, so that the window of
ids can be read back from what is stored. A span that is no valid event is a dead letter by
itself, as the event that it would have been: so its texts are known for what they are, and
are kept or not like all others. Its neighbours are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec import Struct

from pipeline.core.chunk import Record
from schemas.codec import CodecLimits, decode_event, decode_events
from schemas.event import Received
from schemas.genai import translate_span
from schemas.rejection import Reason, Rejected
from schemas.span import Span
from schemas.wire import WireFormat


class Wire(Struct, frozen=True):
    """What the records of a topic hold, and how they are read."""

    format: WireFormat = WireFormat.EVENTS
    #: Attribute → the key of an event that it stands for.
    names: Mapping[str, str] = {}
    #: Attributes that are kept beside those of the contract.
    keep: tuple[str, ...] = ()
    #: Whether what cannot be read is kept as it came: it may hold texts that nobody can tell.
    keep_unread: bool = False


EVENTS = Wire()
#: A longer record does not fit on the dead-letter topic.
LETTER_BYTES_MAX = 3_900_000


class Decoded(NamedTuple):
    """What came of n records: as many results, or more, or fewer."""

    #: The record of each result; of an event in OTLP, as if it had come by itself.
    records: list[Record]
    results: list[Received | Rejected]
    #: Spans that are no request to a model.
    skipped: int


#: None for what is none of ours.
_Result = tuple[Record, Received | Rejected | None]


def decode_records(records: list[Record], wire: Wire, limits: CodecLimits) -> Decoded:
    """Decode the records of a chunk."""
    if wire.format is WireFormat.EVENTS:
        values = [r.value for r in records]
        return Decoded(records, decode_events(values, [r.written_ms for r in records], limits), 0)
    read = [each for record in records for each in _decode_spans(record, wire, limits)]
    found = [(record, result) for record, result in read if result is not None]
    return Decoded(
        [record for record, _ in found], [result for _, result in found], len(read) - len(found)
    )


def _decode_spans(record: Record, wire: Wire, limits: CodecLimits) -> list[_Result]:
    """The events in order of their ids, then what is refused or skipped."""
    # Protobuf is slow to load: only where a topic holds spans.
    from schemas.otlp import read_spans

    spans = read_spans(record.value, wire.format)
    if isinstance(spans, Rejected):
        return [(record, drop_unless(spans, wire.keep_unread))]
    read = [_decode_span(span, record, wire, limits) for span in spans]
    return sorted(read, key=_place)


def _place(read: _Result) -> tuple[bool, str]:
    result = read[1]
    return (False, result.event.event_id) if isinstance(result, Received) else (True, "")


def drop_unless(rejected: Rejected, keep: bool) -> Rejected:
    """Return the rejection without its bytes, unless they are to be kept and are not too many."""
    if keep and len(rejected.raw) <= LETTER_BYTES_MAX:
        return rejected
    return Rejected(rejected.reason, rejected.detail, b"")


def _decode_span(span: Span | str, record: Record, wire: Wire, limits: CodecLimits) -> _Result:
    if isinstance(span, str):
        return record, Rejected(Reason.INVALID_FIELD, span, b"")
    event = translate_span(span, wire.names, wire.keep)
    if event is None:
        return record, None
    raw = msgspec.json.encode(event)
    # Through the one door through which all events come, so that all are held to its rules.
    result = decode_event(raw, record.written_ms, limits)
    return Record(record.offset, record.written_ms, raw), result
