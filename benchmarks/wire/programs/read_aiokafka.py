"""Read and decode with the bare aiokafka consumer: `getmany` and the standard library's JSON."""

from __future__ import annotations

import asyncio
import json

from aiokafka import AIOKafkaConsumer

from benchmarks.wire.task import Meter, read_task


async def main() -> None:
    task = read_task()
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
            if meter.add(len(events)):
                meter.finish()


if __name__ == "__main__":
    asyncio.run(main())
