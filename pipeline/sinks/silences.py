"""Silences in ClickHouse.

Delivery guarantee: a silence that was saved holds; saving it again replaces it.
"""

from __future__ import annotations

from typing import Any

from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.signal import Family
from schemas.silence import Silence

_COLUMNS = (
    "silence_id, toUnixTimestamp64Milli(starts_at), toUnixTimestamp64Milli(ends_at),"
    " labels, families, created_by, why"
)


class SilenceStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def save(self, silence: Silence, now_ms: int) -> None:
        """Store a silence, over what was stored under its id before `now_ms`."""
        row = {
            "silence_id": silence.silence_id,
            "starts_at": to_datetime(silence.starts_ms),
            "ends_at": to_datetime(silence.ends_ms),
            "labels": silence.labels,
            "families": [family.value for family in silence.families],
            "created_by": silence.by,
            "why": silence.why,
            "revision": now_ms,
        }
        self._store.insert_rows("silences", [row])

    def load(self, after_ms: int = 0, limit: int = 1_000) -> list[Silence]:
        """Return those that end after a time, the one that ends last first: at most `limit`."""
        rows = self._store.rows(
            f"SELECT {_COLUMNS} FROM silences FINAL"  # noqa: S608 — constants
            " WHERE ends_at > {after:DateTime64(3, 'UTC')}"
            " ORDER BY ends_at DESC, silence_id LIMIT {limit:UInt32}",
            {"after": to_datetime(after_ms), "limit": limit},
        )
        return [_read(row) for row in rows]

    def find(self, name: str) -> list[Silence]:
        """Return the silence whose id is `name`, or else those that begin with it."""
        rows = self._store.rows(
            f"SELECT {_COLUMNS} FROM silences FINAL"  # noqa: S608 — constants
            " WHERE startsWith(silence_id, {name:String})"
            " ORDER BY silence_id != {name:String}, silence_id LIMIT 5",
            {"name": name},
        )
        found = [_read(row) for row in rows]
        return found[:1] if found and found[0].silence_id == name else found


def _read(row: tuple[Any, ...]) -> Silence:
    name, starts_ms, ends_ms, labels, families, by, why = row
    return Silence(
        silence_id=name,
        starts_ms=int(starts_ms),
        ends_ms=int(ends_ms),
        labels=dict(labels),
        families=tuple(map(Family, families)),
        by=by,
        why=why,
    )
