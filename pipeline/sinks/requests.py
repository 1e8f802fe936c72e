"""Where the effects of a chunk are stored, and read back after a crash.

Delivery guarantee: exactly once per chunk. Every table gets the chunk's own
token, so a chunk that is stored again, by this worker or by its successor, adds
nothing; a crash between two tables is mended by storing the chunk again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.core.chunk import ChunkCounts, ChunkEffects, Columns, DeadLetter
from pipeline.sinks.arrow import to_table
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.refusing import store_or_refuse
from schemas.monitor import OTHER, Grouping, Monitor, grouping_name
from schemas.signal import Source


class RequestStore:
    """All that comes of a chunk, and its books. Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find_unstorable(self, effects: ChunkEffects) -> dict[int, str]:
        """Store the requests; returns row index → why for those that ClickHouse refuses.

        The usual answer is an empty dict after one insert. When the block is
        refused it is halved down to the offending rows, and the rest is stored.
        """
        if not effects.requests:
            return {}
        rows = to_table("requests", effects.requests)
        return store_or_refuse(self._store, "requests", rows, token_of(effects.source))

    def store_rest(self, effects: ChunkEffects, written_ms: int) -> None:
        """Store everything but the requests, and at last the chunk's books.

        `written_ms` is when its last record was written.
        """
        self.store_effects(effects)
        self.store_books(effects.source, effects.counts, written_ms)

    def store_effects(self, effects: ChunkEffects) -> None:
        """Store everything but the requests and the books."""
        token = token_of(effects.source)
        if effects.texts:
            self._store.insert("request_texts", effects.texts, token)
        if effects.samples:
            self._store.insert("answer_samples", effects.samples, token)
        if effects.rollups:
            self._store.insert("rollup_1m", effects.rollups, token)
        insert_letters(self._store, effects.source, effects.deadletters)

    def store_books(self, source: Source, counts: ChunkCounts, written_ms: int) -> None:
        """Store what was read of a range, and what became of it."""
        insert_books(self._store, source, counts, written_ms)

    def read_recent_ids(self, source: Source, limit: int) -> list[str]:
        """Return the ids of the last `limit` events admitted below the range, oldest first.

        What could not be stored was admitted too: a repeat of it is a repeat, before a
        crash and after. Events of one record have its offset, and stood in order of their ids.
        """
        if not limit:
            return []
        below = (
            "topic = {topic:String} AND epoch = {epoch:String}"
            " AND partition = {partition:UInt32} AND offset < {first:Int64}"
        )
        rows = self._store.rows(
            f"SELECT event_id FROM (SELECT event_id, offset FROM requests WHERE {below}"  # noqa: S608
            f" UNION ALL SELECT event_id, offset FROM deadletters WHERE {below} AND event_id != '')"
            " ORDER BY offset DESC, event_id DESC LIMIT {limit:UInt64}",
            {
                "topic": source.topic,
                "epoch": source.epoch,
                "partition": source.partition,
                "first": source.first_offset,
                "limit": limit,
            },
        )
        return [row[0] for row in reversed(rows)]

    def read_monitors(self, groupings: Sequence[Grouping], limit: int) -> list[Monitor]:
        """Return the monitors that have been counted, at most `limit` for each grouping.

        What was counted under `OTHER` is none: it would take the place of one that is.
        """
        return [m for grouping in groupings for m in self._read_monitors_of(grouping, limit)]

    def _read_monitors_of(self, grouping: Grouping, limit: int) -> list[Monitor]:
        columns = ", ".join(grouping)
        rows = self._store.rows(
            f"SELECT {columns} FROM rollup_1m"  # noqa: S608
            f" WHERE grouping = {{name:String}} AND {grouping[0]} != {{other:String}}"
            f" GROUP BY {columns} ORDER BY min(minute), {columns} LIMIT {{limit:UInt64}}",
            {"name": grouping_name(grouping), "other": OTHER, "limit": limit},
        )
        return [Monitor(grouping, tuple(map(str, row))) for row in rows]


def token_of(source: Source) -> str:
    """Return the name of a chunk's effects: the full range and the epoch, so never reused."""
    return (
        f"{source.topic}:{source.epoch}:{source.partition}"
        f":{source.first_offset}-{source.last_offset}"
    )


def insert_letters(store: Store, source: Source, letters: Sequence[DeadLetter]) -> None:
    """Store a chunk's dead letters, once however often it is called."""
    if letters:
        store.insert("deadletters", deadletter_rows(source, letters), token_of(source))


def insert_books(store: Store, source: Source, counts: ChunkCounts, written_ms: int) -> None:
    """Store what was read of a range and what became of it, once however often it is called."""
    if any(counts):
        store.insert("chunk_books", book_row(source, counts, written_ms), token_of(source))


def book_row(source: Source, counts: ChunkCounts, written_ms: int) -> Columns:
    """Return the columns of the table `chunk_books`: what became of a chunk."""
    return {
        "record_time": [written_ms],
        "topic": [source.topic],
        "epoch": [source.epoch],
        "partition": [source.partition],
        "first_offset": [source.first_offset],
        "last_offset": [source.last_offset],
        **{name: [number] for name, number in counts._asdict().items()},
    }


def deadletter_rows(source: Source, letters: Sequence[DeadLetter]) -> Columns:
    """Return the columns of the table `deadletters`."""
    raw = [letter.rejected.raw for letter in letters]
    return {
        "record_time": [letter.record.written_ms for letter in letters],
        "topic": [source.topic] * len(letters),
        "epoch": [source.epoch] * len(letters),
        "partition": [source.partition] * len(letters),
        "offset": [letter.record.offset for letter in letters],
        "item": [letter.item for letter in letters],
        "reason": [letter.rejected.reason.value for letter in letters],
        "event_id": [letter.event_id for letter in letters],
        "detail": [letter.rejected.detail for letter in letters],
        "bytes": [len(each) for each in raw],
        "sha256": [hashlib.sha256(each).digest() for each in raw],
    }
