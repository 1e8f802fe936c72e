"""Read and decode with confluent-kafka: `consume` and the standard library's JSON."""

from __future__ import annotations

import json

from confluent_kafka import Consumer

from benchmarks.wire.task import Meter, read_task


def main() -> None:
    task = read_task()
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
        if events and meter.add(len(events)):
            meter.finish()


if __name__ == "__main__":
    main()
