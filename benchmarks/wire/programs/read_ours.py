"""Read and decode with Faust over our transport: one agent, and the codec of the contract."""

from __future__ import annotations

from typing import Any

import faust

from benchmarks.wire.task import Meter, read_task
from pipeline.app import build_faust
from pipeline.config import KafkaSettings
from pipeline.process import settle_process
from pipeline.transport import to_batch
from schemas.codec import decode_events
from schemas.event import Received


def main() -> None:
    task = read_task()
    meter = Meter(task.events, task.seconds)
    app = build_faust(
        KafkaSettings(
            bootstrap_servers=task.bootstrap, group_id=task.group, events_topic=task.topic
        )
    )

    @app.agent(app.topic(task.topic, value_type=bytes, value_serializer="raw", acks=False))
    async def read(stream: Any) -> None:
        async for event in stream.noack().events():
            records = to_batch(event.message).records
            decoded = decode_events([r.value for r in records], [r.written_ms for r in records])
            assert all(type(d) is Received for d in decoded)
            if meter.add(len(decoded)):
                meter.finish()

    settle_process()
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
