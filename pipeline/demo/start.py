"""`kizashi demo`: sets the stage, plays the hour, says what came of it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator

from rich.console import Console

from pipeline.config import Config
from pipeline.demo.company import Company
from pipeline.demo.over_kafka import play_over_kafka
from pipeline.demo.run import Pipeline, run_demo
from pipeline.demo.stage import OWN_DATABASE, TOPIC, Stage, set_stage
from pipeline.demo.summary import render_summary, summarise_as_json
from pipeline.demo.trace import HOUR_MS
from pipeline.demo.view import choose_view
from pipeline.local import LocalPipeline


def play_demo(config: Config, seconds: float, *, as_json: bool, over_kafka: bool) -> None:
    """Play the hour in `seconds`. With `as_json` the last line of stdout is one JSON object.

    Raises:
        ConfigError: `seconds` is not a positive number.
        SinkUnavailable: ClickHouse or Kafka is away.
    """
    stdout, stderr = Console(), Console(stderr=True)
    stage = set_stage(config)
    try:
        company = Company(start_ms=round(time.time() * 1000) - HOUR_MS)
        with _open(stage, over_kafka=over_kafka) as pipeline:
            result = run_demo(
                pipeline,
                company,
                seconds=seconds,
                clock=time.monotonic,
                sleep=time.sleep,
                view=choose_view(stdout, stderr, as_json=as_json),
            )
    finally:
        stage.store.close()
    if as_json:
        print(summarise_as_json(result), flush=True)
        return
    stdout.print(render_summary(result))
    if stage.is_own:
        stdout.print(f" with KIZASHI_CLICKHOUSE__DATABASE={OWN_DATABASE} before the command")


@contextlib.contextmanager
def _open(stage: Stage, *, over_kafka: bool) -> Iterator[Pipeline]:
    if over_kafka:
        with play_over_kafka(stage) as pipeline:
            yield pipeline
        return
    yield LocalPipeline(stage.config, stage.store, epoch=uuid.uuid4().hex[:12], topic=TOPIC)
