"""Aggregate and store with aiokafka: `getmany`, a dictionary of minutes, batch inserts."""

from __future__ import annotations

import asyncio
import json

from aiokafka import AIOKafkaConsumer

from benchmarks.wire.programs.minutes import Minutes, request_row
from benchmarks.wire.programs.tables import Tables
from benchmarks.wire.task import Meter, read_task


async def main() -> None:
    task = read_task()
    tables, minutes = Tables(task.directory), Minutes()
    meter = Meter(task.events, task.seconds)
    consumer = AIOKafkaConsumer(
        task.topic,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    while True:
        for messages in (await consumer.getmany(timeout_ms=1_000)).values():
            events = [json.loads(message.value) for message in messages]
            for event in events:
                minutes.add(event)
            tables.add_requests(map(request_row, events))
            tables.add_minutes(minutes.take_closed())
            if meter.add(len(events)):
                tables.flush()
                tables.add_minutes(minutes.take_all())
                meter.finish(check=tables.check)


if __name__ == "__main__":
    asyncio.run(main())
