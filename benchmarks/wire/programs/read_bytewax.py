"""Read and decode with Bytewax: the Kafka input, a map, and a sink that counts."""

from __future__ import annotations

import json
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from benchmarks.wire.task import Meter, read_task

task = read_task()
meter = Meter(task.events, task.seconds)


class Counting(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        if meter.add(len(items)):
            meter.finish()


class CountingSink(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Counting:
        return Counting()


def decode(message: KafkaSourceMessage[Any, Any]) -> Any:
    return json.loads(message.value)


flow = Dataflow("read")
source = kop.input("events", flow, brokers=[task.bootstrap], topics=[task.topic])
op.output("count", op.map("decode", source.oks, decode), CountingSink())

if __name__ == "__main__":
    cli_main(flow)
