"""Aggregate and store with stock Faust: `take`, a dictionary of minutes, batch inserts.

Not Faust's windowed tables: they write every change to a changelog topic and
want the stream repartitioned by each key, which is several times slower.
"""

from __future__ import annotations

import faust

from benchmarks.wire.programs.minutes import Minutes, request_row
from benchmarks.wire.programs.tables import Tables
from benchmarks.wire.task import Meter, read_task

task = read_task()
tables, minutes = Tables(task.directory), Minutes()
meter = Meter(task.events, task.seconds)
app = faust.App(
    task.group,
    broker=f"kafka://{task.bootstrap}",
    consumer_auto_offset_reset="earliest",
    store="memory://",
    web_enabled=False,
    topic_disable_leader=True,
)
topic = app.topic(task.topic, value_serializer="json")


@app.agent(topic)
async def aggregate(stream):  # type: ignore[no-untyped-def]
    async for events in stream.take(1_000, within=1):
        for event in events:
            minutes.add(event)
        tables.add_requests(map(request_row, events))
        tables.add_minutes(minutes.take_closed())
        if meter.add(len(events)):
            tables.flush()
            tables.add_minutes(minutes.take_all())
            meter.finish(check=tables.check)


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()
