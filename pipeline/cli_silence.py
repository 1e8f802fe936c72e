"""`kizashi silence`: for a time, tell nobody of what happens in a slice of traffic."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from msgspec import structs

from pipeline.cli_configured import configured, name_asker
from pipeline.sinks.text import json_line
from schemas.monitor import parse_grouping
from schemas.signal import Family
from schemas.silence import Silence

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.sinks.silences import SilenceStore

NAME_CHARS = 200
WHY_CHARS = 1_000
LONGEST_S = 366 * 86_400
_SPAN = re.compile(r"(\d{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}


@click.group()
def silence() -> None:
    """Silences: incidents are recorded, and nobody is told."""


@silence.command()
@click.option("--grouping", help="Dimensions of the slice, such as route or prompt_name.")
@click.option("--value", "values", multiple=True, help="Its values, one for each dimension.")
@click.option("--family", "families", multiple=True, type=click.Choice([f.value for f in Family]))
@click.option("--everything", is_flag=True, help="All traffic and all families.")
@click.option("--for", "span", required=True, help="How long, such as 90m, 2h or 3d.")
@click.option("--why", required=True, help="Stands with every incident that it silences.")
@click.option("--by", help="Who says so [default: $USER].")
@configured
def add(
    config: Config,
    grouping: str | None,
    values: tuple[str, ...],
    families: tuple[str, ...],
    everything: bool,
    span: str,
    why: str,
    by: str | None,
) -> None:
    """Silence a slice of traffic, some families, or both, from now on."""
    labels = _read_slice(grouping, values)
    if everything == bool(labels or families):
        raise click.UsageError("give --grouping and --value, --family, or --everything")
    now_ms = round(time.time() * 1000)
    made = Silence(
        silence_id=f"s-{uuid.uuid4().hex[:12]}",
        starts_ms=now_ms,
        ends_ms=now_ms + read_span_s(span) * 1000,
        labels=labels,
        families=tuple(map(Family, families)),
        by=name_asker(by, NAME_CHARS),
        why=why[:WHY_CHARS],
    )
    with _opened(config) as store:
        store.save(made, now_ms)
    click.echo(made.silence_id)


@silence.command("list")
@click.option("--all", "everything", is_flag=True, help="Those that are over too.")
@click.option("--json", "as_json", is_flag=True, help="An object per silence.")
@configured
def list_silences(config: Config, everything: bool, as_json: bool) -> None:
    """List the silences that hold or will."""
    from pipeline.asking import render_table
    from pipeline.sinks.times import to_datetime

    with _opened(config) as store:
        found = store.load(0 if everything else round(time.time() * 1000))
    if as_json:
        for each in found:
            click.echo(json_line(each))
        return
    rows = [
        (
            each.silence_id,
            to_datetime(each.starts_ms),
            to_datetime(each.ends_ms),
            ", ".join(f"{k}={v}" for k, v in each.labels.items()) or "all traffic",
            ", ".join(each.families) or "all",
            each.by,
            each.why,
        )
        for each in found
    ]
    render_table(("silence", "from", "until", "slice", "families", "by", "why"), rows)


@silence.command()
@click.argument("name", metavar="ID")
@configured
def end(config: Config, name: str) -> None:
    """End a silence now; the beginning of its id is enough."""
    now_ms = round(time.time() * 1000)
    with _opened(config) as store:
        found = store.find(name)
        if len(found) != 1:
            raise click.ClickException(f"{'no' if not found else 'more than one'} silence {name}")
        [standing] = found
        if standing.ends_ms > now_ms:
            store.save(structs.replace(standing, ends_ms=now_ms), now_ms)
    click.echo(f"{standing.silence_id} is over")


def read_span_s(span: str) -> int:
    """Return seconds; raises click.UsageError for what is no span, or longer than a year."""
    parsed = _SPAN.fullmatch(span)
    seconds = int(parsed[1]) * _SECONDS[parsed[2]] if parsed else 0
    if not 0 < seconds <= LONGEST_S:
        raise click.UsageError("--for: a number and m, h or d, up to a year")
    return seconds


def _read_slice(grouping: str | None, values: tuple[str, ...]) -> dict[str, str]:
    if grouping is None:
        if values:
            raise click.UsageError("--value needs --grouping")
        return {}
    try:
        dimensions = parse_grouping(grouping)
        return {d.value: v for d, v in zip(dimensions, values, strict=True)}
    except ValueError as error:
        raise click.UsageError(f"--grouping: {error}") from None


@contextmanager
def _opened(config: Config) -> Iterator[SilenceStore]:
    from pipeline.sinks.clickhouse import open_store
    from pipeline.sinks.silences import SilenceStore

    with open_store(config.clickhouse) as store:
        yield SilenceStore(store)
