"""Rejects as data: why a record was not taken, and the bytes as they came."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Reason(StrEnum):
    """Why a record is dead-lettered. The value is also the metric label and the topic header."""

    TOMBSTONE = "tombstone"
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    INVALID_UTF8 = "invalid_utf8"
    LONE_SURROGATE = "lone_surrogate"
    INVALID_JSON = "invalid_json"
    INVALID_PROTOBUF = "invalid_protobuf"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    CONTROL_CHARACTER = "control_character"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    TOO_MANY_ATTRIBUTES = "too_many_attributes"
    #: The event decoded, but ClickHouse will never take its row.
    UNSTORABLE = "unstorable"


class Rejected(Struct, frozen=True):
    """A record that is not a valid event. `raw` is untouched; `detail` never quotes it."""

    reason: Reason
    detail: str
    raw: bytes
