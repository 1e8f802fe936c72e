"""`kizashi replay`: files through the whole pipeline without a broker, as JSON lines or words."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from pipeline.config import ClickHouseSettings, Config
from pipeline.inputs import read_lines
from pipeline.local import Counts, LocalPipeline
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.text import json_line
from pipeline.sinks.times import to_rfc3339
from schemas.alarm import Alarm, Rate
from schemas.incident import Incident

BATCH = 5_000
Item = dict[str, object]


def replay(config: Config, paths: Iterable[Path], *, keep: bool) -> Iterator[Item]:
    """Play the files one after the other; yields alarms and incidents as they come, then the books.

    Without `keep` nothing remains: the rows go to an engine of their own that
    is thrown away, so that a file can be played again and again.

    Raises:
        InputError: a file cannot be read to its end.
        SinkUnavailable: ClickHouse is away.
    """
    with _open_store(config, keep) as store:
        pipeline = LocalPipeline(config, store, epoch=uuid.uuid4().hex[:12], topic="replay")
        latest: dict[str, Incident] = {}
        for path in paths:
            lines = read_lines(path)
            while batch := list(islice(lines, BATCH)):
                yield from _describe(pipeline.feed(batch, _now_ms()), latest)
        yield from _describe(pipeline.finish(_now_ms()), latest)
        yield summarise(pipeline.counts, latest.values())


def _describe(news: list[Alarm | Incident], latest: dict[str, Incident]) -> Iterator[Item]:
    for each in news:
        if isinstance(each, Incident):
            latest[each.incident_id] = each
            yield describe_incident(each)
        else:
            yield describe_alarm(each)


def describe_alarm(alarm: Alarm) -> Item:
    """An alarm as a line of the replay's output; a clear is of the type ``cleared``."""
    return {
        "type": "alarm" if alarm.transition == "raised" else "cleared",
        "alarm_id": alarm.alarm_id,
        "event_index": alarm.event_index,
        "event_time": to_rfc3339(alarm.time_ms),
        "monitor": alarm.monitor,
        "family": alarm.family,
        "signal": alarm.signal,
        "direction": alarm.direction,
        "e_value": alarm.e_value,
        "threshold": alarm.threshold,
        "baseline": _describe_rate(alarm.baseline),
        "current": _describe_rate(alarm.current),
        "change_time": to_rfc3339(alarm.change_time_ms),
    }


def describe_incident(incident: Incident) -> Item:
    """An incident as a line of the replay's output; every change of it is a line."""
    resolved = incident.resolved_ms
    return {
        "type": "incident",
        "incident_id": incident.incident_id,
        "version": incident.version,
        "status": incident.status,
        "severity": incident.severity,
        "family": incident.family,
        "monitor": incident.cause.labels,
        "opened_at": to_rfc3339(incident.opened_ms),
        "changed_at": to_rfc3339(incident.change_time_ms),
        "resolved_at": None if resolved is None else to_rfc3339(resolved),
        "summary": incident.summary,
        "suggestion": incident.suggestion,
        "alarms": len(incident.alarms),
        "example_event_ids": incident.example_event_ids,
    }


def summarise(counts: Counts, incidents: Iterable[Incident]) -> Item:
    """The last line: the books, and each incident as it ended."""
    return {
        "type": "summary",
        **counts._asdict(),
        "incidents": [list_incident(i) for i in incidents],
    }


def list_incident(incident: Incident) -> Item:
    """An incident in a summary."""
    resolved = incident.resolved_ms
    return {
        "opened_at": to_rfc3339(incident.opened_ms),
        "family": incident.family,
        "monitor": incident.cause.labels,
        "summary": incident.summary,
        "resolved_at": None if resolved is None else to_rfc3339(resolved),
    }


def to_json_line(item: Item) -> str:
    """Return the item as one line of JSON."""
    return json_line(item)


def to_words(item: Item) -> str | None:
    """Return what a person at a terminal wants to read of it, or None."""
    if item["type"] == "incident" and item["version"] == 1:
        return f"{item['opened_at']}  {item['severity']}  {item['summary']}"
    if item["type"] == "incident" and item["resolved_at"]:
        return f"{item['resolved_at']}  resolved  {item['incident_id']}"
    if item["type"] == "summary":
        return (
            f"{item['events']} events: {item['stored']} stored,"
            f" {item['deadlettered']} dead-lettered, {item['duplicates']} repeats"
        )
    return None


def _describe_rate(rate: Rate) -> Item:
    return {"rate": rate.value, "count": rate.count, "total": rate.total}


@contextmanager
def _open_store(config: Config, keep: bool) -> Iterator[Store]:
    settings, scratch = config.clickhouse, None
    if not keep:
        scratch = tempfile.mkdtemp(prefix="kizashi-replay-")
        settings = ClickHouseSettings(mode="embedded", path=Path(scratch))
    store = Store(settings)
    try:
        store.migrate()
        yield store
    finally:
        store.close()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _now_ms() -> int:
    return round(time.time() * 1000)
