"""The books of the chunks, asked for what a stream used to bring."""

from __future__ import annotations

from pipeline.incidents.complaints import History
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime

WEEK_MS = 604_800_000
DAY_MS = 86_400_000
#: So many weeks are looked back.
WEEKS = 4


class BookStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read_history(self, topic: str, now_ms: int, span_ms: int) -> History | None:
        """Return what came on the topic in spans of `span_ms`; None where nothing ever did.

        By the times at which records were written.
        """
        rows = self._store.rows(
            "SELECT count(), toUnixTimestamp64Milli(min(record_time)),"
            " toUnixTimestamp64Milli(max(record_time)) FROM chunk_books"
            " WHERE topic = {topic:String}",
            {"topic": topic},
        )
        chunks, first_ms, last_ms = rows[0]
        if not chunks:
            return None
        starts = [now_ms - span_ms - week * WEEK_MS for week in range(1, WEEKS + 1)]
        weekly = tuple(self._count(topic, s, span_ms) for s in starts if s >= first_ms)
        day_ms = last_ms - DAY_MS // span_ms * span_ms
        least = None if day_ms < first_ms else self._find_least(topic, day_ms, last_ms, span_ms)
        return History(last_ms, weekly, least)

    def _count(self, topic: str, start_ms: int, span_ms: int) -> int:
        rows = self._store.rows(
            "SELECT sum(b.read) FROM (SELECT * FROM chunk_books FINAL WHERE topic = {topic:String}"
            " AND record_time >= {start:DateTime64(3, 'UTC')}"
            " AND record_time < {end:DateTime64(3, 'UTC')}) AS b",
            {
                "topic": topic,
                "start": to_datetime(start_ms),
                "end": to_datetime(start_ms + span_ms),
            },
        )
        return int(rows[0][0])

    def _find_least(self, topic: str, start_ms: int, end_ms: int, span_ms: int) -> int:
        """Return what the poorest span between these times brought."""
        rows = self._store.rows(
            "SELECT count(), min(events) FROM (SELECT sum(b.read) AS events FROM"
            " (SELECT * FROM chunk_books FINAL WHERE topic = {topic:String}"
            " AND record_time > {start:DateTime64(3, 'UTC')}"
            " AND record_time <= {end:DateTime64(3, 'UTC')}) AS b GROUP BY"
            " intDiv(toUnixTimestamp64Milli({end:DateTime64(3, 'UTC')})"
            " - toUnixTimestamp64Milli(b.record_time), {span:Int64}))",
            {
                "topic": topic,
                "start": to_datetime(start_ms),
                "end": to_datetime(end_ms),
                "span": span_ms,
            },
        )
        spans, least = rows[0]
        return int(least) if spans == (end_ms - start_ms) // span_ms else 0
