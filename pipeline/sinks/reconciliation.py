"""Reconciliation: do the rollups of closed minutes add up to the requests that are stored?

Both are written from the same chunk, under a token each, so they can only part where a token
was forgotten or somebody changed a table by hand. Sums are exact: cost is a decimal.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, structs

from pipeline.incidents.complaints import Reconciled
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.monitor import Grouping, grouping_name

MINUTE_MS = 60_000
#: A minute is closed when nothing of it was written for so long: a chunk's requests and its
#: rollups are stored one after the other, and tried again while ClickHouse is away.
SETTLED_MS = 10 * MINUTE_MS
#: Longer spans are compared in pieces, for `FINAL` merges in memory what it reads.
SPAN_MS = 60 * MINUTE_MS
#: What takes longer is given up: it keeps chunks from being stored.
SECONDS_MAX = 30
#: Name → (what a rollup adds up, how it is recomputed).
SUMS = {
    "requests": ("sum(requests)", "count()"),
    "errors": ("sum(errors)", "countIf(error_type != '')"),
    "refusals": ("sum(refusals)", "countIf(refused)"),
    "truncations": ("sum(truncations)", "countIf(truncated)"),
    "cache_hits": ("sum(cache_hits)", "countIf(cache = 'hit')"),
    "input_tokens": ("sum(input_tokens)", "sum(ifNull(input_tokens, 0))"),
    "output_tokens": ("sum(output_tokens)", "sum(ifNull(output_tokens, 0))"),
    "cost_usd": ("sum(cost_usd)", "sum(ifNull(cost_usd, 0))"),
    "unpriced": ("sum(unpriced)", "countIf(cost_usd IS NULL)"),
}


#: What is compared every time, by the time of the events …
USUAL_MS = 75 * MINUTE_MS
#: … and what differed is compared again for so long.
AGAIN_MS = 1_440 * MINUTE_MS


class Difference(Struct, frozen=True):
    """A minute in which one of a grouping's sums is not what it should be."""

    minute_ms: int
    grouping: str
    what: str
    rolled_up: str
    stored: str


class Comparison(Struct, frozen=True):
    """What was found between two times."""

    first_ms: int
    last_ms: int
    #: Minutes, times groupings.
    compared: int
    differences: tuple[Difference, ...]

    def __add__(self, other: Comparison) -> Comparison:
        """The same times in more groupings."""
        return structs.replace(
            self,
            compared=self.compared + other.compared,
            differences=(*self.differences, *other.differences),
        )

    @property
    def first_differing_ms(self) -> int | None:
        return min((each.minute_ms for each in self.differences), default=None)

    @property
    def differing(self) -> int:
        return len({(each.minute_ms, each.grouping) for each in self.differences})


class Reconciler:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store, groupings: Sequence[Grouping]) -> None:
        self._store = store
        self._groupings = groupings

    def compare(self, first_ms: int, last_ms: int, now_ms: int) -> Comparison:
        """Compare all closed minutes from one time to another, an hour at once.

        Over all monitors of a grouping: those over the cap are counted under another name.
        """
        compared, differences = 0, list[Difference]()
        for start_ms in range(first_ms // MINUTE_MS * MINUTE_MS, last_ms, SPAN_MS):
            for grouping in self._groupings:
                found, wrong = self._compare(
                    grouping, start_ms, min(start_ms + SPAN_MS, last_ms), now_ms
                )
                compared += found
                differences += wrong
        return Comparison(first_ms, last_ms, compared, tuple(differences))

    def _compare(
        self, grouping: Grouping, start_ms: int, end_ms: int, now_ms: int
    ) -> tuple[int, list[Difference]]:
        rolled = ", ".join(f"toString({sql})" for sql, _ in SUMS.values())
        recomputed = ", ".join(f"toString({sql})" for _, sql in SUMS.values())
        has = " OR ".join(f"{dimension} != ''" for dimension in grouping)
        times = "{0} >= {{start:DateTime64(3, 'UTC')}} AND {0} < {{end:DateTime64(3, 'UTC')}}"
        rows = self._store.rows(
            f"""
            SELECT minute, groupArrayIf(sums, side = 0), groupArrayIf(sums, side = 1)
            FROM (
                SELECT 0 AS side, minute, [{rolled}] AS sums, max(record_time) AS written
                FROM rollup_1m WHERE {times.format("minute")} AND grouping = {{grouping:String}}
                GROUP BY minute
                UNION ALL
                SELECT 1, toStartOfMinute(event_time) AS minute, [{recomputed}], max(record_time)
                FROM requests FINAL WHERE {times.format("event_time")} AND ({has})
                GROUP BY minute
            )
            GROUP BY minute HAVING max(written) < {{settled:DateTime64(3, 'UTC')}}
                AND minute NOT IN (SELECT minute FROM erased_minutes) ORDER BY minute
            SETTINGS max_execution_time = {SECONDS_MAX}
            """,  # noqa: S608 — constants, dimensions of the configuration, bound parameters
            {
                "start": to_datetime(start_ms),
                "end": to_datetime(end_ms),
                "settled": to_datetime(now_ms - SETTLED_MS),
                "grouping": grouping_name(grouping),
            },
        )
        name, nothing = grouping_name(grouping), [["0"] * len(SUMS)]
        return len(rows), [
            Difference(round(minute.timestamp() * 1000), name, what, mine, theirs)
            for minute, rolled_up, stored in rows
            for what, mine, theirs in zip(
                SUMS, (rolled_up or nothing)[0], (stored or nothing)[0], strict=True
            )
            if mine != theirs
        ]

    def save(self, found: Comparison, now_ms: int) -> None:
        """Store what a comparison came to."""
        first_ms = found.first_differing_ms
        row = {
            "checked_at": to_datetime(now_ms),
            "first_minute": to_datetime(found.first_ms).replace(microsecond=0),
            "last_minute": to_datetime(found.last_ms).replace(microsecond=0),
            "compared": found.compared,
            "differing": found.differing,
            "first_differing": None if first_ms is None else to_datetime(first_ms),
        }
        self._store.insert_rows("reconciliations", [row])


def find_start(last: Reconciled | None, now_ms: int) -> int:
    """Return from when on the next reconciliation compares: what differed has to be mended."""
    usual_ms = now_ms - USUAL_MS
    if last is None or last.first_differing_ms is None:
        return usual_ms
    return min(usual_ms, max(last.first_differing_ms, now_ms - AGAIN_MS))


def read_last(store: Store) -> Reconciled | None:
    """Return what the last reconciliation came to; None when there has been none."""
    rows = store.rows(
        "SELECT toUnixTimestamp64Milli(checked_at), toUnixTimestamp(first_minute) * 1000,"
        " toUnixTimestamp(last_minute) * 1000, compared, differing,"
        " toUnixTimestamp(first_differing) * 1000"
        " FROM reconciliations ORDER BY checked_at DESC LIMIT 1"
    )
    return Reconciled(*rows[0]) if rows else None
