"""The rivals' two tables in the embedded ClickHouse, and inserts of 10,000 rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import clickhouse_connect

BATCH_ROWS = 10_000
_LABEL = "LowCardinality(String)"
REQUESTS = {
    "event_id": "String",
    "event_time": "DateTime64(3, 'UTC')",
    "provider": _LABEL,
    "request_model": _LABEL,
    "response_model": _LABEL,
    "route": _LABEL,
    "tenant": _LABEL,
    "prompt_name": _LABEL,
    "prompt_version": _LABEL,
    "region": _LABEL,
    "error_type": _LABEL,
    "input_tokens": "UInt32",
    "output_tokens": "UInt32",
    "cost_usd": "Float64",
    "duration_s": "Float64",
}
#: What the whole job stores besides.
JUDGED = {"refused": "UInt8", "distance": "Float64"}
MINUTES = {
    "grouping": _LABEL,
    "value": _LABEL,
    "minute": "DateTime('UTC')",
    "requests": "UInt64",
    "errors": "UInt64",
    "input_tokens": "UInt64",
    "output_tokens": "UInt64",
    "cost_usd": "Float64",
    "latency_sum_s": "Float64",
    "latency_max_s": "Float64",
}


class Tables:
    """Requests and minutes, in a directory of their own; at most 10,000 requests wait."""

    def __init__(self, directory: str, *, judged: bool = False) -> None:
        self._client = clickhouse_connect.get_client(interface="chdb", path=directory)
        self._requests = REQUESTS | (JUDGED if judged else {})
        self._create("requests", self._requests, "request_model, event_time")
        self._create("minutes", MINUTES, "grouping, value, minute")
        self._waiting: list[Sequence[Any]] = []

    def _create(self, name: str, columns: dict[str, str], key: str) -> None:
        listed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        self._client.command(f"CREATE TABLE {name} ({listed}) ENGINE = MergeTree ORDER BY ({key})")

    def add_requests(self, rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows, in batches: what does not fill one waits."""
        self._waiting.extend(rows)
        if len(self._waiting) >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Insert the requests that wait."""
        if self._waiting:
            self._client.insert("requests", self._waiting, column_names=list(self._requests))
            self._waiting = []

    def add_minutes(self, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            self._client.insert("minutes", rows, column_names=list(MINUTES))

    def check(self) -> dict[str, int]:
        """Return how many requests are stored, and how many were counted by route."""
        counted = "SELECT toUInt64(sum(requests)) FROM minutes WHERE grouping = 'route'"
        return {
            "stored": self._client.query("SELECT count() FROM requests").result_rows[0][0],
            "counted": self._client.query(counted).result_rows[0][0],
        }
