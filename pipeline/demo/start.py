"""`kizashi demo`: sets the stage, plays the hour, says what came of it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console

from pipeline.config import Config
from pipeline.demo.company import Company
from pipeline.demo.over_kafka import play_over_kafka
from pipeline.demo.run import DemoResult, Hour, Pipeline, run_demo
from pipeline.demo.stage import OWN_DATABASE, TOPIC, Stage, set_stage
from pipeline.demo.summary import render_summary, summarise_as_json
from pipeline.demo.trace import HOUR_MS
from pipeline.demo.view import WatchedView, choose_view
from pipeline.local import LocalPipeline
from pipeline.web.front import Front, FrontThread


class Played(NamedTuple):
    """What is played: the hour, the pipeline to feed, and the clock that paces it."""

    hour: Hour
    pipeline: Pipeline
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


#: Puts it together: (config, when the hour starts, the pipeline, its seconds) → what is played.
SetUp = Callable[[Config, int, Pipeline, float], contextlib.AbstractContextManager[Played]]


@contextlib.contextmanager
def simulated(
    config: Config, start_ms: int, pipeline: Pipeline, seconds: float
) -> Iterator[Played]:
    """The simulated company's hour."""
    yield Played(Company(start_ms=start_ms), pipeline)


def play_demo(
    config: Config,
    seconds: float,
    *,
    as_json: bool,
    over_kafka: bool,
    stay: bool = False,
    set_up: SetUp = simulated,
) -> None:
    """Play the hour in `seconds`. With `as_json` the last line of stdout is one JSON object.

    The page shows the run while it lasts and, with `stay`, until the process is interrupted.

    Raises:
        ConfigError: `seconds` is not a positive number.
        SinkUnavailable: ClickHouse or Kafka is away.
    """
    stdout, stderr = Console(), Console(stderr=True)
    stage = set_stage(config)
    try:
        start_ms = round(time.time() * 1000) - HOUR_MS
        view = WatchedView(choose_view(stdout, stderr, as_json=as_json), start_ms)
        with (
            _show(stage, view, stderr) as front,
            _open(stage, over_kafka=over_kafka) as opened,
            set_up(stage.config, start_ms, opened, seconds) as played,
        ):
            result = run_demo(
                played.pipeline,
                played.hour,
                seconds=seconds,
                clock=played.clock,
                sleep=played.sleep,
                view=view,
            )
            _tell(result, stage, stdout, as_json=as_json)
            if stay and front.page_url:
                stderr.print(f"The page stays at {front.page_url} until Ctrl+C.", soft_wrap=True)
                threading.Event().wait()
    finally:
        stage.store.close()


def _tell(result: DemoResult, stage: Stage, stdout: Console, *, as_json: bool) -> None:
    if as_json:
        print(summarise_as_json(result), flush=True)
        return
    stdout.print(render_summary(result))
    if stage.is_own:
        stdout.print(f" with KIZASHI_CLICKHOUSE__DATABASE={OWN_DATABASE} before the command")


@contextlib.contextmanager
def _show(stage: Stage, view: WatchedView, stderr: Console) -> Iterator[Front]:
    """Open the page on the run, and say where it is."""
    opened = Front(stage.config, view.now_s, view.about, any_port=True)
    with FrontThread(opened) as front:
        if front.page_url:
            stderr.print(f"Watch it in a browser: {front.page_url}", soft_wrap=True)
        if front.clickhouse_port:
            stderr.print(f"ClickHouse clients: port {front.clickhouse_port}", soft_wrap=True)
        yield front


@contextlib.contextmanager
def _open(stage: Stage, *, over_kafka: bool) -> Iterator[Pipeline]:
    if over_kafka:
        with play_over_kafka(stage) as pipeline:
            yield pipeline
        return
    yield LocalPipeline(stage.config, stage.store, epoch=uuid.uuid4().hex[:12], topic=TOPIC)
