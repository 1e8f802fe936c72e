"""`kizashi incident`: look at incidents, take them on, and say when they are over."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pipeline.cli_configured import configured, name_asker
from pipeline.sinks.text import json_line
from schemas.command import NAME_CHARS, TEXT_CHARS, Command, Verb

if TYPE_CHECKING:
    from pipeline.config import Config

#: Incidents that are looked through; older ones are found by their id.
LISTED = 1_000
DAY_MS = 86_400_000


@click.group()
def incident() -> None:
    """Incidents: what is open, what explains it, and who is on it."""


_json = click.option("--json", "as_json", is_flag=True, help="An object per incident.")


@incident.command("list")
@click.option("--all", "everything", is_flag=True, help="Resolved ones too.")
@click.option("--limit", type=click.IntRange(1, LISTED), default=50, show_default=True)
@_json
@configured
def list_incidents(config: Config, everything: bool, limit: int, as_json: bool) -> None:
    """List incidents, the latest first."""
    from pipeline.commanding import reading
    from pipeline.incident_report import print_list, to_json_line
    from schemas.incident import Status

    with reading(config) as incidents:
        found = incidents.load_recent(LISTED)
    shown = [i for i in found if everything or i.status is Status.OPEN]
    shown.sort(key=lambda i: (-i.opened_ms, i.incident_id))
    if not as_json:
        print_list(shown[:limit])
        return
    for each in shown[:limit]:
        click.echo(to_json_line(each))


@incident.command()
@click.argument("name", metavar="ID")
@_json
@configured
def show(config: Config, name: str, as_json: bool) -> None:
    """Say all that is known about an incident; the beginning of its id is enough."""
    from pipeline.commanding import find_incident, reading
    from pipeline.incident_report import report, to_json_line

    with reading(config) as incidents:
        found = find_incident(incidents, name)
    click.echo(to_json_line(found) if as_json else report(found))


@incident.command()
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=90, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="An object per symptom.")
@configured
def stats(config: Config, days: float, as_json: bool) -> None:
    """Time to detect, acknowledge, mitigate and resolve, by symptom."""

    from pipeline.commanding import reading
    from pipeline.incident_report import print_stats

    since_ms = max(0, round(time.time() * 1000 - days * DAY_MS))
    with reading(config) as incidents:
        rows = incidents.measure_stages(since_ms)
    if not as_json:
        print_stats(rows)
        return
    for row in rows:
        click.echo(json_line(row))


def _commanding(verb: Verb, help_text: str) -> Callable[..., None]:
    """Make a command that has `verb` done."""

    @click.argument("name", metavar="ID")
    @click.option("--by", help="Who says so [default: $USER].")
    @click.option("-m", "--message", default="", help="A note beside it.")
    @_json
    @configured
    def command(config: Config, name: str, by: str | None, message: str, as_json: bool) -> None:
        _give(config, verb, name, by, message, as_json=as_json)

    command.__doc__ = help_text
    return command


for _name, _verb, _help in (
    ("ack", Verb.ACKNOWLEDGE, "Take an incident on."),
    ("unack", Verb.UNACKNOWLEDGE, "Give it back to whoever is next."),
    ("mitigate", Verb.MITIGATE, "Say that the harm is over, though the cause may stand."),
    ("resolve", Verb.RESOLVE, "Say that it is over."),
    ("reopen", Verb.REOPEN, "Say that it is not."),
):
    incident.command(_name)(_commanding(_verb, _help))


@incident.command()
@click.argument("name", metavar="ID")
@click.argument("text")
@click.option("--by", help="Who writes it [default: $USER].")
@_json
@configured
def note(config: Config, name: str, text: str, by: str | None, as_json: bool) -> None:
    """Write something down about an incident."""
    _give(config, Verb.NOTE, name, by, text, as_json=as_json)


def _give(
    config: Config, verb: Verb, name: str, by: str | None, text: str, *, as_json: bool
) -> None:
    from pipeline.commanding import Outcome, give
    from pipeline.incident_report import describe_outcome, to_json_line

    command = Command(
        command_id=f"cli/{uuid.uuid4().hex}",
        verb=verb,
        incident_id=name,
        time_ms=round(time.time() * 1000),
        by=name_asker(by, NAME_CHARS),
        text=text[:TEXT_CHARS],
    )
    outcome, found = give(config, command)
    if as_json and found is not None:
        click.echo(to_json_line(found))
    if not as_json or outcome is Outcome.WAITING:
        click.echo(describe_outcome(outcome, command, found), err=as_json)
