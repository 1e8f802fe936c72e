"""Aggregate and store with confluent-kafka: `consume`, a dictionary of minutes, batch inserts."""

from __future__ import annotations

import json

from confluent_kafka import Consumer

from benchmarks.wire.programs.minutes import Minutes, request_row
from benchmarks.wire.programs.tables import Tables
from benchmarks.wire.task import Meter, read_task


def main() -> None:
    task = read_task()
    tables, minutes = Tables(task.directory), Minutes()
    meter = Meter(task.events, task.seconds)
    consumer = Consumer(
        {
            "bootstrap.servers": task.bootstrap,
            "group.id": task.group,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([task.topic])
    while True:
        messages = consumer.consume(num_messages=1_000, timeout=1.0)
        events = [json.loads(message.value()) for message in messages if not message.error()]
        for event in events:
            minutes.add(event)
        tables.add_requests(map(request_row, events))
        tables.add_minutes(minutes.take_closed())
        if events and meter.add(len(events)):
            tables.flush()
            tables.add_minutes(minutes.take_all())
            meter.finish(check=tables.check)


if __name__ == "__main__":
    main()
