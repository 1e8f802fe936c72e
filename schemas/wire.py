"""What the records of a topic may hold."""

from __future__ import annotations

from enum import StrEnum


class WireFormat(StrEnum):
    """What the records of a topic hold."""

    #: One event in JSON: `schemas.event`.
    EVENTS = "events"
    #: Requests of the OpenTelemetry Protocol: `schemas.otlp`.
    OTLP_JSON = "otlp_json"
    OTLP_PROTO = "otlp_proto"
