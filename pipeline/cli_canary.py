"""`kizashi canary`: ask what the answers to are known, and say whether they still are."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_configured import configured
from pipeline.sinks.text import json_line

if TYPE_CHECKING:
    from pipeline.canary.judging import Verdict
    from pipeline.config import Config


@click.command()
@click.argument("cases", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--once", is_flag=True, help="Ask once and end: 1 when a case failed. Sends nothing.")
@click.option("--strict", is_flag=True, help="With --once: what is unsure has failed too.")
@click.option("--model", help="Ask this model [default: canary.model, or the case's own].")
@click.option("--json", "as_json", is_flag=True, help="An object per case.")
@configured
def canary(
    config: Config, cases: Path, once: bool, strict: bool, model: str | None, as_json: bool
) -> None:
    """Ask the questions of a file, several times each, and hold the answers against the file.

    Without --once, again every `canary.every_s` seconds; every answer then becomes an event,
    and a pass rate that falls raises an alarm like any other.
    """
    from pipeline.canary.building import build_canary
    from pipeline.canary.judging import Outcome
    from pipeline.canary.running import encode_events
    from pipeline.sending import TopicSender

    runner = build_canary(config, cases, model)
    sender = None if once else TopicSender(config.kafka, config.kafka.events_topic)
    bad = {Outcome.FAILED, Outcome.UNSURE} if strict else {Outcome.FAILED}
    while True:
        failed = 0
        for case, samples, verdict in runner.run():
            failed += verdict.outcome in bad
            click.echo(json_line(verdict) if as_json else _to_words(verdict))
            if sender is not None:
                arrived = sender.send_and_wait(encode_events(runner, case, samples))
                if not all(arrived):
                    click.echo(f"{len(arrived) - sum(arrived)} events did not arrive", err=True)
        if once:
            sys.exit(1 if failed else 0)
        time.sleep(config.canary.every_s)


def _to_words(verdict: Verdict) -> str:
    line = (
        f"{verdict.outcome.value:<7} {verdict.case}: {verdict.passed} of {verdict.samples} passed"
        f" (rate {verdict.low:.2f} to {verdict.high:.2f}, required {verdict.required:g})"
    )
    return "\n".join([line, *(f"        {fault}" for fault in verdict.faults)])
