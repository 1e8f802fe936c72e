"""Records that no one can read: what broken clients, cut connections and old versions send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

Event = dict[str, Any]
_encode = msgspec.json.encode


def _cut_short(event: Event) -> bytes:
    raw = _encode(event)
    return raw[: len(raw) * 2 // 3]


def _break_utf8(event: Event) -> bytes:
    return _encode(event).replace(b'"chat"', b'"ch\xe3t"')


def _write_nan(event: Event) -> bytes:
    event = {**event, "gen_ai.request.temperature": "NaN"}
    return _encode(event).replace(b'"NaN"', b"NaN")


def _wrap(event: Event) -> bytes:
    return _encode([event])


def _without(key: str) -> Callable[[Event], bytes]:
    return lambda event: _encode({k: v for k, v in event.items() if k != key})


def _with(key: str, value: Any) -> Callable[[Event], bytes]:
    return lambda event: _encode({**event, key: value})


#: Each turns an event into a record that `schemas.codec` refuses.
MALFORMATIONS: tuple[Callable[[Event], bytes], ...] = (
    _cut_short,
    _with("gen_ai.usage.input_tokens", "many"),
    _with("gen_ai.usage.output_tokens", -5),
    _without("event.id"),
    _break_utf8,
    _without("gen_ai.request.model"),
    _with("event.time", "2026-02-30 12:00"),
    _wrap,
    _with("gateway.cache", "maybe"),
    _write_nan,
    _without("event.time"),
    _with("gen_ai.response.finish_reasons", "stop"),
)
