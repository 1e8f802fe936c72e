"""Spans and log records from OTLP, as the OpenTelemetry Collector's Kafka exporter writes them.

One record is one request of the OpenTelemetry Protocol (OTLP 1.x,
opentelemetry.proto.collector.trace.v1 and .logs.v1): Protobuf (`otlp_proto`) or its JSON form
(`otlp_json`), in which ids are hex and 64-bit integers may be texts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Meta, Struct
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from schemas.rejection import Reason, Rejected
from schemas.span import LogRecord, Span, SpanEvent
from schemas.wire import WireFormat

_ERROR = 2
T = TypeVar("T")


def read_spans(raw: bytes | None, wire: WireFormat) -> Iterator[Span | str] | Rejected:
    """Return the spans of a record, or why it is no traces request.

    A text stands for a span that cannot be read, and says why.
    """
    if wire is WireFormat.OTLP_PROTO:
        return _read(raw, lambda r: _spans_of_proto(trace_pb2.TracesData.FromString(r)), "traces")
    return _read(raw, lambda r: _spans_of_json(_decode_traces(r)), "traces")


def read_logs(raw: bytes | None, wire: WireFormat) -> Iterator[LogRecord | str] | Rejected:
    """The same of the log records of a logs request."""
    if wire is WireFormat.OTLP_PROTO:
        return _read(raw, lambda r: _logs_of_proto(logs_pb2.LogsData.FromString(r)), "logs")
    return _read(raw, lambda r: _logs_of_json(_decode_logs(r)), "logs")


def _read(
    raw: bytes | None, read: Callable[[bytes], Iterator[T]], what: str
) -> Iterator[T] | Rejected:
    if raw is None:
        return Rejected(Reason.TOMBSTONE, "the record has no value", b"")
    try:
        return read(raw)
    except DecodeError:
        reason, detail = Reason.INVALID_PROTOBUF, f"not a {what} request of OTLP in Protobuf"
    except UnicodeDecodeError as bad:
        reason, detail = Reason.INVALID_UTF8, f"{bad.reason} at {bad.start}"
    except msgspec.ValidationError as bad:
        reason, detail = Reason.INVALID_FIELD, str(bad)[:300]
    except msgspec.DecodeError as bad:
        reason, detail = Reason.INVALID_JSON, str(bad)[:300]
    except RecursionError:
        reason, detail = Reason.TOO_DEEP, "nested too deeply"
    return Rejected(reason, detail, raw)


# --- Protobuf ----------------------------------------------------------------------------------


def _spans_of_proto(data: trace_pb2.TracesData) -> Iterator[Span | str]:
    for of_resource in data.resource_spans:
        resource = _attributes_of_proto(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _read_proto(span, resource)


def _read_proto(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes_of_proto(span.attributes),
        resource=resource,
        events=tuple(
            SpanEvent(e.name, e.time_unix_nano, _attributes_of_proto(e.attributes))
            for e in span.events
        ),
        failed=span.status.code == _ERROR,
    )


def _logs_of_proto(data: logs_pb2.LogsData) -> Iterator[LogRecord | str]:
    for of_resource in data.resource_logs:
        for of_scope in of_resource.scope_logs:
            for log in of_scope.log_records:
                yield LogRecord(
                    name=log.event_name,
                    trace_id=log.trace_id.hex(),
                    span_id=log.span_id.hex(),
                    time_ns=log.time_unix_nano or log.observed_time_unix_nano,
                    attributes=_attributes_of_proto(log.attributes),
                )


def _attributes_of_proto(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value_of_proto(pair.value) for pair in pairs}


def _value_of_proto(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value_of_proto(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes_of_proto(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


# --- JSON --------------------------------------------------------------------------------------

_Hex = Annotated[str, Meta(pattern=r"^([0-9A-Fa-f]{2})*$")]
#: A 64-bit integer: proto3's JSON writes it as a text.
_Long = int | Annotated[str, Meta(pattern=r"^-?[0-9]{1,20}$")]
_TIMES_NS = range(2**64)


class _JsonValue(Struct):
    string_value: str | None = msgspec.field(name="stringValue", default=None)
    bool_value: bool | None = msgspec.field(name="boolValue", default=None)
    int_value: _Long | None = msgspec.field(name="intValue", default=None)
    double_value: float | Literal["NaN", "Infinity", "-Infinity"] | None = msgspec.field(
        name="doubleValue", default=None
    )
    bytes_value: str | None = msgspec.field(name="bytesValue", default=None)
    array_value: _JsonArray | None = msgspec.field(name="arrayValue", default=None)
    kvlist_value: _JsonMap | None = msgspec.field(name="kvlistValue", default=None)


class _JsonArray(Struct):
    values: list[_JsonValue] = []


class _JsonPair(Struct):
    key: str = ""
    value: _JsonValue = msgspec.field(default_factory=_JsonValue)


class _JsonMap(Struct):
    values: list[_JsonPair] = []


class _JsonEvent(Struct):
    name: str = ""
    time: _Long = msgspec.field(name="timeUnixNano", default=0)
    attributes: list[_JsonPair] = []


class _JsonStatus(Struct):
    code: int | str = 0


class _JsonSpan(Struct):
    trace_id: _Hex = msgspec.field(name="traceId", default="")
    span_id: _Hex = msgspec.field(name="spanId", default="")
    start: _Long = msgspec.field(name="startTimeUnixNano", default=0)
    end: _Long = msgspec.field(name="endTimeUnixNano", default=0)
    attributes: list[_JsonPair] = []
    events: list[_JsonEvent] = []
    status: _JsonStatus = msgspec.field(default_factory=_JsonStatus)


class _JsonResource(Struct):
    attributes: list[_JsonPair] = []


# Each span is read by itself: one that cannot be does not take its neighbours with it.
class _JsonScopeSpans(Struct):
    spans: list[msgspec.Raw] = []


class _JsonResourceSpans(Struct):
    resource: msgspec.Raw = msgspec.Raw(b"{}")
    scope_spans: list[_JsonScopeSpans] = msgspec.field(name="scopeSpans", default_factory=list)


class _JsonTraces(Struct):
    resource_spans: list[_JsonResourceSpans] = msgspec.field(
        name="resourceSpans", default_factory=list
    )


class _JsonLog(Struct):
    name: str = msgspec.field(name="eventName", default="")
    trace_id: _Hex = msgspec.field(name="traceId", default="")
    span_id: _Hex = msgspec.field(name="spanId", default="")
    time: _Long = msgspec.field(name="timeUnixNano", default=0)
    observed: _Long = msgspec.field(name="observedTimeUnixNano", default=0)
    attributes: list[_JsonPair] = []


class _JsonScopeLogs(Struct):
    logs: list[msgspec.Raw] = msgspec.field(name="logRecords", default_factory=list)


class _JsonResourceLogs(Struct):
    scope_logs: list[_JsonScopeLogs] = msgspec.field(name="scopeLogs", default_factory=list)


class _JsonLogs(Struct):
    resource_logs: list[_JsonResourceLogs] = msgspec.field(
        name="resourceLogs", default_factory=list
    )


_decode_traces = msgspec.json.Decoder(_JsonTraces).decode
_decode_logs = msgspec.json.Decoder(_JsonLogs).decode
_decode_span = msgspec.json.Decoder(_JsonSpan).decode
_decode_log = msgspec.json.Decoder(_JsonLog).decode
_decode_resource = msgspec.json.Decoder(_JsonResource).decode


def _spans_of_json(traces: _JsonTraces) -> Iterator[Span | str]:
    for of_resource in traces.resource_spans:
        resource = _read_resource(of_resource.resource)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield resource if isinstance(resource, str) else _read_json(span, resource)


def _read_resource(raw: msgspec.Raw) -> dict[str, Any] | str:
    try:
        return _attributes_of_json(_decode_resource(raw).attributes)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"resource: {str(error)[:250]}"


def _read_json(raw: msgspec.Raw, resource: dict[str, Any]) -> Span | str:
    try:
        span = _decode_span(raw)
        return Span(
            trace_id=span.trace_id.lower(),
            span_id=span.span_id.lower(),
            start_ns=_read_time(span.start),
            end_ns=_read_time(span.end),
            attributes=_attributes_of_json(span.attributes),
            resource=resource,
            events=tuple(
                SpanEvent(e.name, _read_time(e.time), _attributes_of_json(e.attributes))
                for e in span.events
            ),
            failed=span.status.code in (_ERROR, "STATUS_CODE_ERROR"),
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return str(error)[:280]


def _logs_of_json(logs: _JsonLogs) -> Iterator[LogRecord | str]:
    for of_resource in logs.resource_logs:
        for of_scope in of_resource.scope_logs:
            yield from map(_read_json_log, of_scope.logs)


def _read_json_log(raw: msgspec.Raw) -> LogRecord | str:
    try:
        log = _decode_log(raw)
        return LogRecord(
            name=log.name,
            trace_id=log.trace_id.lower(),
            span_id=log.span_id.lower(),
            time_ns=_read_time(log.time) or _read_time(log.observed),
            attributes=_attributes_of_json(log.attributes),
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return str(error)[:280]


def _attributes_of_json(pairs: Iterable[_JsonPair]) -> dict[str, Any]:
    return {pair.key: _value_of_json(pair.value) for pair in pairs}


def _value_of_json(value: _JsonValue) -> Any:
    if value.string_value is not None:
        return value.string_value
    if value.bool_value is not None:
        return value.bool_value
    if value.int_value is not None:
        return _read_integer(value.int_value)
    if value.double_value is not None:
        return float(value.double_value)
    if value.array_value is not None:
        return [_value_of_json(each) for each in value.array_value.values]
    if value.kvlist_value is not None:
        return _attributes_of_json(value.kvlist_value.values)
    return None if value.bytes_value is None else _read_base64(value.bytes_value)


def _read_integer(value: int | str) -> int:
    if not -(2**63) <= int(value) < 2**63:
        raise ValueError("an intValue that is no 64 bits")
    return int(value)


def _read_time(time: int | str) -> int:
    if int(time) not in _TIMES_NS:
        raise ValueError("a time that is no 64 bits")
    return int(time)


def _read_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"bytesValue: {error}") from None
