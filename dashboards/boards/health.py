"""Pipeline health: whether Kizashi itself keeps up, and what it could not use or send."""

from __future__ import annotations

from dashboards.panels import Board, Colour, Column, Kind, Panel, Row, Threshold, Unit
from dashboards.sql import PER_MINUTE

#: Rows are partitioned by the event's own time, so a range of the record's time alone would have
#: every day read. A day on either side has all but the very late.
_STORED = (
    "FROM requests WHERE $__timeFilter(record_time)"
    " AND event_time >= $__fromTime - INTERVAL 1 DAY AND event_time <= $__toTime + INTERVAL 1 DAY"
)
_PENDING = "FROM notifications FINAL WHERE sent_at IS NULL AND failure = ''"
_MADE_AT = "fromUnixTimestamp64Milli(JSONExtractInt(notification, 'incident', 'updated_ms'))"


def _age(title: str, description: str, sql: str, yellow_s: float, red_s: float) -> Panel:
    return Panel(
        title=title,
        description=description,
        sql=sql,
        kind=Kind.STAT,
        unit=Unit.SECONDS,
        thresholds=(Threshold(yellow_s, Colour.YELLOW), Threshold(red_s, Colour.RED)),
        width=6,
        height=4,
    )


_AGES = Row(
    "Right now",
    (
        _age(
            "Since the last event",
            "Age of the newest record that was stored.",
            "SELECT dateDiff('second', max(record_time), now64(3)) AS age_s FROM rollup_1m"
            " WHERE minute >= now() - INTERVAL 2 DAY HAVING count() > 0",
            120,
            600,
        ),
        _age(
            "Oldest detector snapshot",
            "Of the newest snapshots of all partitions. After a crash the detectors begin there,"
            " so its age is how much they have to read again.",
            "SELECT max(age) AS age_s FROM (\n"
            "    SELECT dateDiff('second', max(written_at), now64(3)) AS age\n"
            "    FROM detector_snapshots GROUP BY topic, partition\n)",
            300,
            1800,
        ),
        _age(
            "Oldest unsent notification",
            "Age of the oldest message that no destination has taken or refused yet.",
            f"SELECT max(dateDiff('second', {_MADE_AT}, now64(3))) AS age_s\n{_PENDING}",
            60,
            600,
        ),
        Panel(
            title="Refused notifications",
            description="Messages that a destination will never take.",
            kind=Kind.STAT,
            unit=Unit.COUNT,
            thresholds=(Threshold(1, Colour.RED),),
            width=6,
            height=4,
            sql="SELECT count() AS refused FROM notifications FINAL WHERE failure != ''",
        ),
    ),
)

_FLOW = Row(
    "Flow",
    (
        Panel(
            title="Events stored per minute by partition",
            description="By the time the record was written; events more than a day late are"
            " stored but not shown.",
            kind=Kind.TIME_SERIES,
            unit=Unit.PER_MINUTE,
            stacked=True,
            sql=f"""
SELECT $__timeInterval(record_time) AS time,
       concat(topic, '/', toString(partition)) AS source,
       count() {PER_MINUTE} AS events_per_minute
{_STORED}
GROUP BY time, source
ORDER BY time, source""",
        ),
        Panel(
            title="Delay before the topic",
            description="From the end of a response to the writing of its record: what the gateway"
            " and its producer add. Events more than a day late are not shown.",
            kind=Kind.TIME_SERIES,
            unit=Unit.SECONDS,
            sql=f"""
SELECT time, delays[1] AS p50, delays[2] AS p95, delays[3] AS p99
FROM (
    SELECT $__timeInterval(record_time) AS time,
           quantiles(0.5, 0.95, 0.99)(
               dateDiff('millisecond', event_time, record_time) / 1000) AS delays
    {_STORED}
    GROUP BY time
)
ORDER BY time""",  # noqa: S608 — the parts are constants
        ),
        Panel(
            title="Dead letters per minute by reason",
            description="Records that were refused. Their bytes are on the dead-letter topic.",
            kind=Kind.TIME_SERIES,
            unit=Unit.PER_MINUTE,
            stacked=True,
            sql=f"""
SELECT $__timeInterval(record_time) AS time, reason, count() {PER_MINUTE} AS letters_per_minute
FROM deadletters FINAL
WHERE $__timeFilter(record_time)
GROUP BY time, reason
ORDER BY time, reason""",  # noqa: S608 — as above
        ),
        Panel(
            title="Dead letters by reason",
            description="In the time range.",
            kind=Kind.BAR,
            unit=Unit.COUNT,
            sql="""
SELECT toString(reason) AS name, count() AS letters
FROM deadletters FINAL
WHERE $__timeFilter(record_time)
GROUP BY name
ORDER BY letters DESC, name""",
        ),
    ),
)

_BOOKS = Row(
    "The books",
    (
        Panel(
            title="What became of what was read",
            description="Events per minute, by the time at which their chunk's last record was"
            " written. Every one is stored, dead-lettered or a repeat.",
            kind=Kind.TIME_SERIES,
            unit=Unit.PER_MINUTE,
            stacked=True,
            sql=f"""
SELECT $__timeInterval(record_time) AS time,
       sum(b.stored) {PER_MINUTE} AS stored,
       sum(b.deadlettered) {PER_MINUTE} AS dead_lettered,
       sum(b.duplicates) {PER_MINUTE} AS repeats
FROM (SELECT * FROM chunk_books FINAL WHERE $__timeFilter(record_time)) AS b
GROUP BY time
ORDER BY time""",  # noqa: S608 — the parts are constants
        ),
        Panel(
            title="Reconciliations",
            description="Whether the rollups of closed minutes add up to the stored requests. Once"
            " an hour; `kizashi reconcile` names what differs.",
            kind=Kind.TABLE,
            columns=tuple(
                Column(name, Unit.TIME) for name in ("checked_at", "first_minute", "last_minute")
            ),
            sql="""
SELECT checked_at, first_minute, last_minute, compared, differing
FROM reconciliations FINAL
ORDER BY checked_at DESC
LIMIT 50""",
        ),
        Panel(
            title="Books by partition",
            description="Of the time range. Unaccounted is 0, or something is wrong; missing"
            " offsets are records that retention took before they were read, or markers of"
            " transactions.",
            kind=Kind.TABLE,
            width=24,
            columns=(Column("last_record", Unit.TIME),),
            sql="""
SELECT topic, partition, sum(b.read) AS events_read, sum(b.stored) AS events_stored,
       sum(b.deadlettered) AS dead_lettered, sum(b.duplicates) AS repeats,
       sum(b.skipped) AS of_others,
       toInt64(events_read) - events_stored - dead_lettered - repeats AS unaccounted,
       max(b.last_offset) + 1 - min(b.first_offset)
           - sum(b.last_offset - b.first_offset + 1) AS offsets_missing,
       max(b.last_offset) + 1 AS next_offset, max(b.record_time) AS last_record
FROM (SELECT * FROM chunk_books FINAL WHERE $__timeFilter(record_time)) AS b
GROUP BY topic, epoch, partition
ORDER BY topic, partition, last_record
LIMIT 1000""",
        ),
    ),
)

_DETAILS = Row(
    "Details",
    (
        Panel(
            title="Latest dead letters",
            description="Where they stand on the topic, and what is wrong with them.",
            kind=Kind.TABLE,
            width=24,
            columns=(Column("record_time", Unit.TIME),),
            sql="""
SELECT record_time, reason, detail, topic, partition, offset, bytes,
       lower(hex(sha256)) AS sha256_hex
FROM deadletters FINAL
WHERE $__timeFilter(record_time)
ORDER BY record_time DESC, topic, partition, offset
LIMIT 200""",
        ),
        Panel(
            title="Detector snapshots",
            description="The newest of each partition, as it is now.",
            kind=Kind.TABLE,
            columns=(Column("written", Unit.TIME), Column("age_s", Unit.SECONDS)),
            sql="""
SELECT topic, partition, max(written_at) AS written, argMax(position, written_at) AS last_position,
       dateDiff('second', max(written_at), now64(3)) AS age_s
FROM detector_snapshots
GROUP BY topic, partition
ORDER BY topic, partition""",
        ),
        Panel(
            title="Notifications that are not delivered",
            description="Waiting or refused, as it is now.",
            kind=Kind.TABLE,
            columns=(Column("made_at", Unit.TIME),),
            sql=f"""
SELECT {_MADE_AT} AS made_at, destination, action, incident_id, attempts, failure
FROM notifications FINAL
WHERE sent_at IS NULL
ORDER BY made_at, incident_id, destination, sequence
LIMIT 200""",  # noqa: S608 — as above
        ),
    ),
)

HEALTH = Board(
    uid="kizashi-health",
    title="Kizashi: Pipeline health",
    description="Whether Kizashi itself keeps up, and what it could not use or send.",
    rows=(_AGES, _FLOW, _BOOKS, _DETAILS),
)
