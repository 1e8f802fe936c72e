"""Aggregate and store with Quix Streams: grouped tumbling windows and batching sinks."""

from __future__ import annotations

from typing import Any

from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

from benchmarks.wire.programs.minutes import (
    GRACE_S,
    GROUPINGS,
    MINUTE_S,
    add_event,
    empty_sums,
    minute_row,
    request_row,
)
from benchmarks.wire.programs.tables import BATCH_ROWS, Tables
from benchmarks.wire.task import Meter, read_task


class RequestsSink(BatchingSink):
    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self._tables = tables

    def write(self, batch: SinkBatch) -> None:
        self._tables.add_requests(request_row(item.value) for item in batch)
        self._tables.flush()


class MinutesSink(BatchingSink):
    def __init__(self, tables: Tables, grouping: str) -> None:
        super().__init__()
        self._tables = tables
        self._grouping = grouping

    def write(self, batch: SinkBatch) -> None:
        rows = [
            minute_row(self._grouping, item.key, item.value["start"] / 1000, item.value["value"])
            for item in batch
        ]
        self._tables.add_minutes(rows)


def event_time_ms(value: Any, *_: object) -> int:
    return int(value["event.time"] * 1000)


def first_event(event: dict[str, Any]) -> list[float]:
    return add_event(empty_sums(), event)


def main() -> None:
    task = read_task()
    tables = Tables(task.directory)
    meter = Meter(task.events, task.seconds)
    app = Application(
        broker_address=task.bootstrap,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        state_dir=f"{task.directory}/state",
        commit_every=BATCH_ROWS,
        loglevel="WARNING",
    )
    topic = app.topic(task.topic, value_deserializer="json", timestamp_extractor=event_time_ms)
    events = app.dataframe(topic)
    requests = RequestsSink(tables)
    windows = [open_windows(events, grouping, key, tables) for grouping, key in GROUPINGS.items()]

    def count(event: dict[str, Any]) -> None:
        if meter.add(1):
            requests.flush()
            for sink in windows:
                sink.flush()
            meter.finish(check=tables.check)

    events.update(count).sink(requests)
    app.run()


def open_windows(events: Any, grouping: str, key: str, tables: Tables) -> MinutesSink:
    sink = MinutesSink(tables, grouping)
    grouped = events.group_by(key, name=grouping)
    windows = grouped.tumbling_window(MINUTE_S * 1000, grace_ms=GRACE_S * 1000, name=grouping)
    windows.reduce(reducer=add_event, initializer=first_event).final().sink(sink)
    return sink


if __name__ == "__main__":
    main()
