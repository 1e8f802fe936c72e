"""Builders of spans as the OpenTelemetry Collector's Kafka exporter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.support.events import NOW_MS

Json = dict[str, Any]
CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 812,
    "gen_ai.usage.output_tokens": 164,
}
SERVICE = {"service.name": "support", "cloud.region": "eu-west"}


def make_span(
    number: int = 1,
    attributes: Mapping[str, Any] = CHAT,
    *,
    events: Sequence[tuple[str, Mapping[str, Any]]] = (),
    failed: bool = False,
    end_ms: int = NOW_MS,
    duration_ms: int = 3_200,
) -> Json:
    """Return a span in the JSON form of OTLP."""
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": "chat gpt-4o",
        "kind": 3,
        "startTimeUnixNano": str((end_ms - duration_ms) * 1_000_000),
        "endTimeUnixNano": str(end_ms * 1_000_000),
        "attributes": to_pairs(attributes),
        "events": [
            {
                "name": name,
                "timeUnixNano": str((end_ms - duration_ms + 400) * 1_000_000),
                "attributes": to_pairs(held),
            }
            for name, held in events
        ],
        "status": {"code": 2} if failed else {},
    }


def to_pairs(attributes: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": to_value(value)} for key, value in attributes.items()]


def to_value(value: Any) -> Json:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [to_value(each) for each in value]}}
        case dict():
            return {"kvlistValue": {"values": to_pairs(value)}}
    return {"stringValue": value}


def to_json(spans: Sequence[Any], resource: Mapping[str, Any] = SERVICE) -> bytes:
    """Return a record of `otlp_json`."""
    scope = {"scope": {"name": "tests"}, "spans": list(spans)}
    traces = {"resource": {"attributes": to_pairs(resource)}, "scopeSpans": [scope]}
    return json.dumps({"resourceSpans": [traces]}).encode()


def to_proto(spans: Sequence[Json], resource: Mapping[str, Any] = SERVICE) -> bytes:
    """Return the same as a record of `otlp_proto`."""
    data = trace_pb2.TracesData()
    of_resource = data.resource_spans.add()
    of_resource.resource.attributes.extend(_pair(k, v) for k, v in resource.items())
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = "tests"
    of_scope.spans.extend(_span(each) for each in spans)
    raw: bytes = data.SerializeToString()
    return raw


def _span(span: Json) -> trace_pb2.Span:
    return trace_pb2.Span(
        trace_id=bytes.fromhex(span["traceId"]),
        span_id=bytes.fromhex(span["spanId"]),
        name=span["name"],
        start_time_unix_nano=int(span["startTimeUnixNano"]),
        end_time_unix_nano=int(span["endTimeUnixNano"]),
        attributes=[_pair(p["key"], _plain(p["value"])) for p in span["attributes"]],
        events=[
            trace_pb2.Span.Event(
                name=e["name"],
                time_unix_nano=int(e["timeUnixNano"]),
                attributes=[_pair(p["key"], _plain(p["value"])) for p in e["attributes"]],
            )
            for e in span["events"]
        ],
        status=trace_pb2.Status(code=span["status"].get("code", 0)),
    )


def _plain(value: Json) -> Any:
    ((kind, held),) = value.items()
    if kind == "arrayValue":
        return [_plain(each) for each in held["values"]]
    if kind == "kvlistValue":
        return {p["key"]: _plain(p["value"]) for p in held["values"]}
    return int(held) if kind == "intValue" else held


def _pair(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=_any(value))


def _any(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[_any(each) for each in value]))
        case dict():
            return AnyValue(
                kvlist_value=KeyValueList(values=[_pair(k, v) for k, v in value.items()])
            )
    return AnyValue(string_value=value)
