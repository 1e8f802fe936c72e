"""Read and decode with Quix Streams: a streaming data frame over a JSON topic."""

from __future__ import annotations

from quixstreams import Application

from benchmarks.wire.task import Meter, read_task


def main() -> None:
    task = read_task()
    meter = Meter(task.events, task.seconds)
    app = Application(
        broker_address=task.bootstrap,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        state_dir=task.directory,
        loglevel="WARNING",
    )

    def count(event: dict[str, object]) -> None:
        if meter.add(1):
            meter.finish()

    app.dataframe(app.topic(task.topic, value_deserializer="json")).update(count)
    app.run()


if __name__ == "__main__":
    main()
