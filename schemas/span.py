"""A span, and a log record, of OpenTelemetry as we read it, whatever form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

#: What an attribute holds: text, number, truth, bytes, or lists and maps of these.
Attributes = Mapping[str, Any]


class SpanEvent(Struct, frozen=True):
    """Something that happened within a span."""

    name: str
    time_ns: int
    attributes: Attributes


class Span(Struct, frozen=True):
    """One span. Times are nanoseconds since the epoch, 0 where none was given; ids are hex."""

    trace_id: str
    span_id: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    #: Of what produced it: service, region, …
    resource: Attributes
    events: tuple[SpanEvent, ...]
    #: Its status is an error.
    failed: bool


class LogRecord(Struct, frozen=True):
    """One log record, as far as it is an event. The ids are of the span that it belongs to."""

    #: Of the event; empty for a line of a log.
    name: str
    trace_id: str
    span_id: str
    #: When it happened, or else was seen.
    time_ns: int
    attributes: Attributes
