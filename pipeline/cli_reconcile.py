"""`kizashi reconcile`: do the rollups add up to the stored requests?"""

from __future__ import annotations

import datetime as dt
import sys
import time
from typing import TYPE_CHECKING

import click

from pipeline.cli_configured import configured
from pipeline.sinks.text import json_line

if TYPE_CHECKING:
    from pipeline.config import Config

#: Of people, in UTC.
TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
DAY_MS = 86_400_000


@click.command()
@click.option("--since", type=TIME, help="From then on [default: the last day].")
@click.option("--json", "as_json", is_flag=True, help="An object per difference.")
@configured
def reconcile(config: Config, since: dt.datetime | None, as_json: bool) -> None:
    """Compare the rollups of closed minutes with the stored requests; 1 if they differ."""
    from pipeline.asking import render_table
    from pipeline.sinks.clickhouse import open_store
    from pipeline.sinks.reconciliation import Reconciler
    from pipeline.sinks.times import to_datetime

    now_ms = round(time.time() * 1000)
    given = None if since is None else round(since.replace(tzinfo=dt.UTC).timestamp() * 1000)
    first_ms = now_ms - DAY_MS if given is None else given
    with open_store(config.clickhouse) as store:
        found = Reconciler(store, config.ingest.groupings).compare(first_ms, now_ms, now_ms)
    if as_json:
        for each in found.differences:
            click.echo(json_line(each))
    elif found.differences:
        head = ("minute", "grouping", "sum", "rolled up", "stored")
        rows = [
            (to_datetime(d.minute_ms), d.grouping, d.what, d.rolled_up, d.stored)
            for d in found.differences
        ]
        render_table(head, rows)
    click.echo(f"{found.compared} sums compared, {found.differing} differ", err=as_json)
    if found.differences:
        sys.exit(1)
