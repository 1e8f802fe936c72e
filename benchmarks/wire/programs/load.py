"""Fill a topic with events, as fast as librdkafka can or at a steady pace. Runs beside confluent.

Options: monitors, rate_per_s (of event time), start_ms, data, seed; with `paced`, the
events are sent as their time comes, and bear the time at which they are sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer

from benchmarks.wire.events import cast_for, generate, read_prose
from benchmarks.wire.task import Task, answer, read_task

_PACE_S = 0.02


def main() -> None:
    task = read_task()
    begin_s = time.perf_counter()
    producer = Producer({"bootstrap.servers": task.bootstrap, "linger.ms": 5})
    failures: list[str] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(str(error))

    paced = bool(task.options.get("paced"))
    start_s = time.time()
    for number, (time_ms, value) in enumerate(_events(task, start_s if paced else None)):
        if paced and time_ms / 1000 > time.time():
            producer.poll(0)
            time.sleep(max(_PACE_S, time_ms / 1000 - time.time()))
        # Turn about, so that all partitions stand at the same time of day.
        _send(producer, task.topic, value, number % task.partitions, time_ms, note)
    producer.flush()
    if failures:
        raise SystemExit(f"{len(failures)} events were not taken: {failures[0]}")
    answer({"events": task.events, "seconds": time.perf_counter() - begin_s})


def _events(task: Task, start_s: float | None) -> Iterator[tuple[int, bytes]]:
    options = task.options
    data = options.get("data")
    return generate(
        cast_for(options["monitors"]),
        read_prose(Path(data) if data else None),
        task.events,
        start_ms=round(start_s * 1000) if start_s is not None else options["start_ms"],
        rate_per_s=options["rate_per_s"],
        seed=options.get("seed", 0),
    )


def _send(
    producer: Producer,
    topic: str,
    value: bytes,
    partition: int,
    time_ms: int,
    note: Callable[[KafkaError | None, Message], None],
) -> None:
    while True:
        try:
            producer.produce(topic, value, partition=partition, timestamp=time_ms, on_delivery=note)
        except BufferError:
            producer.poll(0.1)
        else:
            return


if __name__ == "__main__":
    main()
