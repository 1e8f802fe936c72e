"""Read and decode with stock Faust: batches by `take`, JSON by Faust's own codec."""

from __future__ import annotations

import faust

from benchmarks.wire.task import Meter, read_task

task = read_task()
meter = Meter(task.events, task.seconds)
app = faust.App(
    task.group,
    broker=f"kafka://{task.bootstrap}",
    consumer_auto_offset_reset="earliest",
    store="memory://",
    web_enabled=False,
    topic_disable_leader=True,
)
events = app.topic(task.topic, value_serializer="json")


@app.agent(events)
async def read(stream):  # type: ignore[no-untyped-def]
    async for batch in stream.take(1_000, within=1):
        if meter.add(len(batch)):
            meter.finish()


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()
