"""`kizashi slo`: how the objectives stand, what is left of their budgets, and how fast it goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pipeline.cli_configured import configured
from pipeline.sinks.text import json_line

if TYPE_CHECKING:
    from pipeline.config import Config


@click.command()
@click.option("--json", "as_json", is_flag=True, help="An object per objective.")
@configured
def slo(config: Config, as_json: bool) -> None:
    """Say how the objectives stand, from the rollups."""
    from pipeline.asking import render_table
    from pipeline.incidents.objectives import WINDOWS_S
    from pipeline.sinks.clickhouse import open_store
    from pipeline.sinks.objectives import ObjectiveStore

    with open_store(config.clickhouse) as store:
        objectives = ObjectiveStore(store, config.ingest.groupings[0])
        now_ms = round(time.time() * 1000)
        standings = [objectives.measure(each, now_ms) for each in config.objectives]
    if as_json:
        for each in standings:
            click.echo(json_line(each))
        return
    rows = [
        (
            each.name,
            f"{each.target:.4g}",
            f"{each.good_share:.5f}",
            each.requests,
            f"{each.budget_left:.1%}",
            *(f"{each.burn[w]:.2f}" for w in WINDOWS_S),
            each.urgency.value,
        )
        for each in standings
    ]
    burns = (f"burn {w // 3600}h" if w >= 3600 else f"burn {w // 60}m" for w in WINDOWS_S)
    head = ("objective", "target", "good", "requests", "budget left", *burns, "asks for")
    render_table(head, rows)
