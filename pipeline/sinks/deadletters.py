"""What was refused, as ClickHouse knows it: everything about a dead letter but its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime

_COLUMNS = (
    "toUnixTimestamp64Milli(record_time), topic, epoch, partition, offset, item, reason,"
    " event_id, detail, bytes, lower(hex(sha256))"
)


class Letter(Struct, frozen=True):
    """One record, or one event of a record of several, that was refused."""

    written_ms: int
    topic: str
    epoch: str
    partition: int
    offset: int
    item: int
    reason: str
    #: Of an event that no table took; empty for all others.
    event_id: str
    detail: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """What it is called on the command line: its place among the events."""
        place = f"{self.partition}/{self.offset}"
        return f"{place}/{self.item}" if self.item else place


class DeadLetterStore:
    """Calls block."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def latest(self, since_ms: int, reasons: Sequence[str], limit: int) -> list[Letter]:
        """Return the latest dead letters, the newest first; of all reasons where none is given."""
        return self._read(
            "record_time >= {since:DateTime64(3, 'UTC')}"
            " AND (empty({reasons:Array(String)}) OR has({reasons:Array(String)}, reason))",
            {"since": to_datetime(since_ms), "reasons": list(reasons), "limit": limit},
        )

    def find(self, partition: int, offset: int, item: int) -> Letter | None:
        """Return the latest of this place: a topic that was created anew has places again."""
        found = self._read(
            "partition = {partition:UInt32} AND offset = {offset:Int64} AND item = {item:UInt32}",
            {"partition": partition, "offset": offset, "item": item, "limit": 1},
        )
        return found[0] if found else None

    def _read(self, where: str, parameters: dict[str, Any]) -> list[Letter]:
        rows = self._store.rows(
            f"SELECT {_COLUMNS} FROM deadletters FINAL WHERE {where}"  # noqa: S608 — constants
            " ORDER BY record_time DESC, partition, offset DESC, item LIMIT {limit:UInt32}",
            parameters,
        )
        return [Letter(*row) for row in rows]
