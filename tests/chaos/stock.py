"""A control: the worker that Faust's documentation leads to. `take()`, insert, next batch.

Faust acknowledges the batch when the loop's body gives back control, also by an exception, so what
was not inserted is lost. ``CHAOS_STOCK`` has its settings as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial

import clickhouse_connect
import faust

SETTINGS_VARIABLE = "CHAOS_STOCK"
settings = json.loads(os.environ[SETTINGS_VARIABLE])
app = faust.App(
    settings["group"],
    broker=f"kafka://{settings['bootstrap']}",
    broker_session_timeout=settings["session_s"],
    broker_heartbeat_interval=settings["session_s"] / 4,
    consumer_auto_offset_reset="earliest",
    store="memory://",
    web_enabled=False,
    topic_disable_leader=True,
)
topic = app.topic(settings["topic"], value_type=bytes, value_serializer="raw")
client = clickhouse_connect.get_client(
    host=settings["host"],
    port=settings["port"],
    database=settings["database"],
    send_receive_timeout=settings["timeout_s"],
    autogenerate_session_id=False,
    query_retries=0,
)


def read_id(raw: bytes) -> str | None:
    try:
        return str(json.loads(raw)["event.id"])
    except (ValueError, TypeError, KeyError):
        return None


@app.agent(topic)
async def store(stream):  # type: ignore[no-untyped-def]
    async for batch in stream.take(1_000, within=1):
        rows = [[found] for raw in batch if (found := read_id(raw)) is not None]
        await asyncio.get_running_loop().run_in_executor(
            None, partial(client.insert, "stock", rows, column_names=["event_id"])
        )


if __name__ == "__main__":
    worker = faust.Worker(app, loglevel="WARNING", redirect_stdouts=False, stdout=sys.stderr)
    worker.execute_from_commandline()
