"""Aggregate and store with Bytewax: three keyed tumbling windows and two sinks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.kafka import KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from benchmarks.wire.programs.minutes import (
    GRACE_S,
    GROUPINGS,
    MINUTE_S,
    add_event,
    empty_sums,
    merge_sums,
    minute_row,
    request_row,
)
from benchmarks.wire.programs.tables import Tables
from benchmarks.wire.task import Meter, read_task

task = read_task()
tables = Tables(task.directory)
meter = Meter(task.events, task.seconds)
ALIGNED_TO = datetime(2020, 1, 1, tzinfo=UTC)


class RequestsPartition(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        tables.add_requests(map(request_row, items))
        if meter.add(len(items)):
            tables.flush()
            meter.finish(check=tables.check)


class RequestsSink(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> RequestsPartition:
        return RequestsPartition()


class MinutesPartition(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        tables.add_minutes(items)


class MinutesSink(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> MinutesPartition:
        return MinutesPartition()


def decode(message: KafkaSourceMessage[Any, Any]) -> Any:
    return json.loads(message.value)


def event_time(event: Any) -> datetime:
    return datetime.fromtimestamp(event["event.time"], UTC)


flow = Dataflow("aggregate")
source = kop.input("events", flow, brokers=[task.bootstrap], topics=[task.topic])
events = op.map("decode", source.oks, decode)
clock = win.EventClock(event_time, wait_for_system_duration=timedelta(seconds=GRACE_S))
windower = win.TumblingWindower(length=timedelta(seconds=MINUTE_S), align_to=ALIGNED_TO)
for grouping, key in GROUPINGS.items():
    keyed = op.key_on(f"key_{grouping}", events, lambda event, key=key: event[key])
    folded = win.fold_window(
        f"fold_{grouping}", keyed, clock, windower, empty_sums, add_event, merge_sums
    )

    def to_row(item: Any, grouping: str = grouping) -> Any:
        value, (window, sums) = item
        start_s = ALIGNED_TO.timestamp() + window * MINUTE_S
        return minute_row(grouping, value, start_s, sums)

    rows = op.map(f"row_{grouping}", folded.down, to_row)
    op.output(f"store_{grouping}", rows, MinutesSink())
# Last, so that the windows have had a batch before its requests are counted as done.
op.output("requests", events, RequestsSink())

if __name__ == "__main__":
    cli_main(flow)
