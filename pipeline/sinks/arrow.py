"""Columns of the core as Arrow tables: the form in which ClickHouse takes them fastest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.core.chunk import CodedColumn, Columns, ListColumn, MapColumn, MoneyColumn
from schemas.monitor import DIMENSIONS

_TEXT = pa.string()
_TIME = pa.timestamp("ms", "UTC")
_COUNT = pa.uint64()
_TEXT_MAP = pa.map_(_TEXT, _TEXT)
_VECTOR = pa.list_(pa.float32())
_BUCKETS = pa.map_(pa.int16(), _COUNT)
_DIMENSIONS = dict.fromkeys((d.value for d in DIMENSIONS), _TEXT)

#: Table → column → Arrow type. What has no entry is a count, or a `MoneyColumn`.
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "requests": {
        "event_time": _TIME,
        "event_id": _TEXT,
        **_DIMENSIONS,
        "operation": _TEXT,
        "response_id": _TEXT,
        "finish_reasons": pa.list_(_TEXT),
        "stream": pa.bool_(),
        "temperature": pa.float32(),
        "max_tokens": pa.uint32(),
        "error_type": _TEXT,
        "refused": pa.bool_(),
        "partly_refused": pa.bool_(),
        "refusal_source": _TEXT,
        "truncated": pa.bool_(),
        "empty": pa.bool_(),
        "off_prompt": pa.bool_(),
        "novel_prompt": pa.bool_(),
        "repetitive": pa.bool_(),
        "language_mismatch": pa.bool_(),
        "cache": _TEXT,
        "fallback_from": _TEXT,
        "attempts": pa.uint16(),
        "guardrail": _TEXT,
        "canary": _TEXT,
        "canary_passed": pa.bool_(),
        "input_tokens": pa.uint32(),
        "output_tokens": pa.uint32(),
        "cache_read_tokens": pa.uint32(),
        "cache_creation_tokens": pa.uint32(),
        "reasoning_tokens": pa.uint32(),
        "output_chars": pa.uint32(),
        "duration_s": pa.float64(),
        "time_to_first_chunk_s": pa.float64(),
        "time_per_token_s": pa.float64(),
        "fingerprint": _VECTOR,
        "user_hash": _TEXT,
        "attributes": _TEXT_MAP,
        "record_time": _TIME,
        "topic": _TEXT,
        "epoch": _TEXT,
        "partition": pa.uint32(),
        "offset": pa.int64(),
    },
    "request_texts": {
        "event_time": _TIME,
        "event_id": _TEXT,
        "prompt_text": _TEXT,
        "response_text": _TEXT,
        "record_time": _TIME,
    },
    "answer_samples": {
        "event_time": _TIME,
        "event_id": _TEXT,
        "request_model": _TEXT,
        "embedding": _TEXT,
        "prompt": _VECTOR,
        "answer": _VECTOR,
        "record_time": _TIME,
    },
    "rollup_1m": {
        "minute": pa.uint32(),
        "grouping": _TEXT,
        **_DIMENSIONS,
        "error_types": pa.map_(_TEXT, _COUNT),
        "cost_usd": pa.decimal128(38, 12),
        "duration_ms": _BUCKETS,
        "first_chunk_ms": _BUCKETS,
        "output_token_us": _BUCKETS,
        "record_time": _TIME,
    },
    "feedback": {
        "feedback_time": _TIME,
        "feedback_id": _TEXT,
        "name": _TEXT,
        "score": pa.float64(),
        "label": _TEXT,
        "negative": pa.bool_(),
        "source": _TEXT,
        "explanation": _TEXT,
        "about_event_id": _TEXT,
        "about_response_id": _TEXT,
        "about_tenant": _TEXT,
        "event_id": _TEXT,
        "request_time": _TIME,
        **_DIMENSIONS,
        "guardrail": _TEXT,
        "user_hash": _TEXT,
        "record_time": _TIME,
        "topic": _TEXT,
        "epoch": _TEXT,
        "partition": pa.uint32(),
        "offset": pa.int64(),
    },
    "deadletters": {
        "record_time": _TIME,
        "topic": _TEXT,
        "epoch": _TEXT,
        "partition": pa.uint32(),
        "offset": pa.int64(),
        "item": pa.uint32(),
        "reason": _TEXT,
        "event_id": _TEXT,
        "detail": _TEXT,
        "bytes": pa.uint32(),
        "sha256": pa.binary(32),
    },
    "chunk_books": {
        "record_time": _TIME,
        "topic": _TEXT,
        "epoch": _TEXT,
        "partition": pa.uint32(),
        "first_offset": pa.int64(),
        "last_offset": pa.int64(),
    },
    "verdicts": {
        "time": _TIME,
        "grouping": _TEXT,
        **_DIMENSIONS,
        "family": _TEXT,
        "signal": _TEXT,
        "state": _TEXT,
        "log_evidence": pa.float64(),
        "log_threshold": pa.float64(),
        "baseline_count": _COUNT,
        "baseline_total": _COUNT,
        "baseline_low": pa.float64(),
        "baseline_high": pa.float64(),
        "current_count": _COUNT,
        "current_total": _COUNT,
        "change_time": _TIME,
    },
}


def to_table(name: str, columns: Columns) -> pa.Table:
    """Return the columns as a table for ClickHouse's table `name`.

    A column without an entry in `SCHEMAS` is a count (UInt64) or money.
    """
    types = SCHEMAS[name]
    return pa.table(
        {key: to_array(column, types.get(key, _COUNT)) for key, column in columns.items()}
    )


def to_array(column: object, kind: pa.DataType) -> pa.Array:
    """Return one column as an Arrow array of the given type; what is one already stays as it is."""
    if isinstance(column, pa.Array):
        return column
    if isinstance(column, MoneyColumn):
        return _money(column)
    if isinstance(column, CodedColumn):
        return _coded(column, kind)
    if isinstance(column, MapColumn):
        keys, items = pa.array(column.keys, kind.key_type), pa.array(column.values, kind.item_type)
        return pa.MapArray.from_arrays(pa.array(column.offsets, pa.int32()), keys, items)
    if isinstance(column, ListColumn):
        return pa.ListArray.from_arrays(column.offsets, pa.array(column.values, kind.value_type))
    if isinstance(column, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(column)
        # Arrow checks the range of masked values too.
        return pa.array(np.where(mask, 0, column.data), kind, mask=mask)
    return pa.array(column, kind)


def _coded(column: CodedColumn, kind: pa.DataType) -> pa.Array:
    values = pa.array(column.values, kind)
    if pa.types.is_string(kind):
        # As it stands: ClickHouse reads a dictionary as what it is.
        return pa.DictionaryArray.from_arrays(column.codes, values)
    return values.take(pa.array(column.codes))


def _money(column: MoneyColumn) -> pa.Array:
    """Picodollars are a decimal of scale 12: lay the integers out as 128 bits, sign extended."""
    words = np.stack([column.picodollars, column.picodollars >> 63], axis=1)
    valid = pa.py_buffer(np.packbits(column.known, bitorder="little").tobytes())
    return pa.Array.from_buffers(
        pa.decimal128(38, 12), len(column.known), [valid, pa.py_buffer(words.tobytes())]
    )
