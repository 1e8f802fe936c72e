"""Where feedback is stored, and where the requests are found that it is about.

Delivery guarantee: exactly once per chunk, by the chunk's own token, like requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.core.chunk import ChunkCounts, Columns, DeadLetter
from pipeline.core.feedback import Subject, Subjects
from pipeline.sinks.arrow import to_table
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.refusing import store_or_refuse
from pipeline.sinks.requests import insert_books, insert_letters, token_of
from pipeline.sinks.times import to_datetime
from schemas.feedback import PREFIX
from schemas.monitor import DIMENSIONS, Grouping, Monitor
from schemas.signal import Source

#: So many ids are asked for at once.
IDS_AT_ONCE = 2_000
_DIMENSIONS = ", ".join(DIMENSIONS)
_SUBJECT = f"event_id, toUnixTimestamp64Milli({{time}}), {_DIMENSIONS}, guardrail"
_RANGE = "topic = {topic:String} AND epoch = {epoch:String} AND partition = {partition:UInt32}"


class FeedbackStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def store(self, source: Source, rows: Columns) -> dict[int, str]:
        """Store the feedback of a chunk; returns row index → why for what is refused."""
        if not rows:
            return {}
        return store_or_refuse(
            self._store, "feedback", to_table("feedback", rows), token_of(source)
        )

    def store_rest(
        self, source: Source, letters: Sequence[DeadLetter], counts: ChunkCounts, written_ms: int
    ) -> None:
        """Store a chunk's dead letters, and at last its books.

        `written_ms` is when its last record was written.
        """
        insert_letters(self._store, source, letters)
        insert_books(self._store, source, counts, written_ms)

    def find_subjects(
        self, event_ids: Sequence[str], response_ids: Sequence[str], since_ms: int
    ) -> Subjects:
        """Return those of the requests that are stored, of these ids and since then.

        Of several with one id the latest is meant.
        """
        return Subjects(
            dict(self._find("event_id", event_ids, since_ms)),
            dict(self._find("response_id", response_ids, since_ms)),
        )

    def _find(
        self, column: str, ids: Sequence[str], since_ms: int
    ) -> Iterator[tuple[str, Subject]]:
        distinct = sorted(set(ids))
        for start in range(0, len(distinct), IDS_AT_ONCE):
            rows = self._store.rows(
                f"SELECT {column}, {_SUBJECT.format(time='event_time')} FROM requests"  # noqa: S608 — names of ours
                f" WHERE {column} IN {{ids:Array(String)}}"
                " AND event_time >= {since:DateTime64(3, 'UTC')}"
                f" ORDER BY event_time DESC, event_id LIMIT 1 BY {column}",
                {"ids": distinct[start : start + IDS_AT_ONCE], "since": to_datetime(since_ms)},
            )
            yield from ((str(row[0]), _read_subject(row[1:])) for row in rows)

    def read_joins(self, source: Source) -> dict[str, Subject | None]:
        """Return what the feedback of a range was joined to when it was stored, by its id.

        What was counted of it rests on that: a replay may not join it anew.
        """
        rows = self._store.rows(
            f"SELECT feedback_id, {_SUBJECT.format(time='request_time')} FROM feedback"  # noqa: S608 — as above
            f" WHERE {_RANGE} AND offset BETWEEN {{first:Int64}} AND {{last:Int64}}",
            _place(source) | {"last": source.last_offset},
        )
        return {str(row[0]): _read_subject(row[1:]) if row[1] else None for row in rows}

    def read_recent_ids(self, source: Source, limit: int) -> list[str]:
        """Return the ids of the last `limit` pieces admitted below the range, oldest first."""
        if not limit:
            return []
        below = f"{_RANGE} AND offset < {{first:Int64}}"
        rows = self._store.rows(
            f"SELECT id FROM (SELECT feedback_id AS id, offset FROM feedback WHERE {below}"  # noqa: S608 — as above
            f" UNION ALL SELECT event_id AS id, offset FROM deadletters"
            f" WHERE {below} AND event_id != '')"
            " ORDER BY offset DESC, id DESC LIMIT {limit:UInt64}",
            _place(source) | {"limit": limit},
        )
        return [row[0] for row in reversed(rows)]

    def read_monitors(self, groupings: Sequence[Grouping], limit: int) -> list[Monitor]:
        """Return the monitors that have been counted, at most `limit` for each grouping."""
        return [m for grouping in groupings for m in self._read_monitors_of(grouping, limit)]

    def _read_monitors_of(self, grouping: Grouping, limit: int) -> list[Monitor]:
        values = ", ".join(f"{_prefixed(d)} AS v_{d}" for d in grouping)
        names = ", ".join(f"v_{d}" for d in grouping)
        some = " OR ".join(f"{d} != ''" for d in grouping)
        rows = self._store.rows(
            f"SELECT {values} FROM feedback"  # noqa: S608 — as above
            f" WHERE event_id != '' AND negative IS NOT NULL AND ({some})"
            f" GROUP BY {names} ORDER BY min(feedback_time), {names} LIMIT {{limit:UInt64}}",
            {"limit": limit},
        )
        return [Monitor(grouping, tuple(map(str, row))) for row in rows]


def _prefixed(column: str) -> str:
    """Return SQL for a dimension's value as the monitors of an evaluation have it."""
    name = "replaceAll(name, '/', ':')"
    return f"if({column} = '', '', concat('{PREFIX}', {name}, '/', {column}))"


def _place(source: Source) -> dict[str, object]:
    return {
        "topic": source.topic,
        "epoch": source.epoch,
        "partition": source.partition,
        "first": source.first_offset,
    }


def _read_subject(row: Sequence[object]) -> Subject:
    event_id, time_ms, *dimensions, guardrail = row
    return Subject(str(event_id), int(str(time_ms)), tuple(map(str, dimensions)), str(guardrail))
