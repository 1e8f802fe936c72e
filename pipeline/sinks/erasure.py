"""Erases what is stored of a user: requests, their texts, the samples taken of them, ratings.

Delivery guarantee: idempotent. What hangs on the requests is erased before them, so an
erasure that was cut off is finished by another. When it returns, the rows are gone from
the parts on disk (mutations are waited for), not merely hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime

#: Tables whose rows are known by the request's time and id.
_DEPENDENT = {"texts": "request_texts", "samples": "answer_samples"}
_OF_USER = "SELECT event_time, event_id FROM requests WHERE user_hash IN {hashes:Array(String)}"
_THEIRS = f"(event_time, event_id) IN ({_OF_USER})"
_MINE = "user_hash IN {hashes:Array(String)}"
_MINUTE = "toUnixTimestamp(toStartOfMinute(event_time))"
#: What they rated, and what others thought of what they were answered.
_RATED = (
    f"({_MINE} OR event_id IN (SELECT event_id FROM requests WHERE {_MINE})"  # noqa: S608 - ours
    f" OR about_event_id IN (SELECT event_id FROM requests WHERE {_MINE})"
    " OR about_response_id IN"
    f" (SELECT response_id FROM requests WHERE {_MINE} AND response_id != ''))"
)


class Holdings(Struct, frozen=True):
    """How many rows of a user's each table has."""

    requests: int
    texts: int
    samples: int
    ratings: int

    @property
    def total(self) -> int:
        return self.requests + self.texts + self.samples + self.ratings


class Eraser:
    """Finds and erases by a user's hashes, one for each version of the key.

    Needs ALTER on the tables, which the worker's own user does not have.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def count(self, hashes: Sequence[str]) -> Holdings:
        """Return what there is."""
        dependent = {
            name: self._count(table, _THEIRS, hashes) for name, table in _DEPENDENT.items()
        }
        ratings = self._count("feedback", _RATED, hashes)
        return Holdings(self._count("requests", _MINE, hashes), **dependent, ratings=ratings)

    def erase(self, hashes: Sequence[str]) -> Holdings:
        """Erase it and return what was left to erase; safe to call again."""
        found = self.count(hashes)
        if found.requests:
            # Their rollups stay, and from now on hold more than there is.
            self._note_minutes(hashes)
        for name, table in _DEPENDENT.items():
            if getattr(found, name):
                self._store.delete(table, _THEIRS, {"hashes": list(hashes)})
        if found.ratings:
            self._store.delete("feedback", _RATED, {"hashes": list(hashes)})
        if found.requests:
            self._store.delete("requests", _MINE, {"hashes": list(hashes)})
        return found

    def _note_minutes(self, hashes: Sequence[str]) -> None:
        sql = f"SELECT DISTINCT {_MINUTE} FROM requests WHERE {_MINE}"  # noqa: S608 - of ours
        found = self._store.rows(sql, {"hashes": list(hashes)})
        rows = [{"minute": to_datetime(seconds * 1000)} for (seconds,) in found]
        self._store.insert_rows("erased_minutes", rows)

    def _count(self, table: str, where: str, hashes: Sequence[str]) -> int:
        sql = f"SELECT count() FROM {table} WHERE {where}"  # noqa: S608 - names of ours
        return int(self._store.rows(sql, {"hashes": list(hashes)})[0][0])
