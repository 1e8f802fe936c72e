"""`kizashi deadletter`: what was refused and why, its bytes, and a second chance."""

from __future__ import annotations

import datetime as dt
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_configured import configured
from pipeline.errors import ConfigError
from pipeline.sinks.text import json_line, printable
from schemas.rejection import Reason

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.sinks.deadletters import Letter

LIMIT_MAX = 10_000
#: Of people, in UTC.
TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
_NAME = re.compile(r"(\d{1,9})/(\d{1,18})(?:/(\d{1,9}))?")

_since = click.option("--since", type=TIME, help="Only what was written from then on.")
_reason = click.option(
    "--reason", "reasons", multiple=True, type=click.Choice([r.value for r in Reason])
)
_limit = click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=100, show_default=True, help="At most."
)


@click.group()
def deadletter() -> None:
    """Dead letters: records that were refused. A letter's name is PARTITION/OFFSET."""


@deadletter.command("list")
@_since
@_reason
@_limit
@click.option("--json", "as_json", is_flag=True, help="An object per letter.")
@configured
def list_letters(
    config: Config, since: dt.datetime | None, reasons: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List what was refused, the latest first."""
    from pipeline.asking import render_table
    from pipeline.sinks.times import to_datetime

    found = _select(config, since, reasons, limit)
    if as_json:
        for each in found:
            click.echo(json_line({"name": each.name} | _fields(each)))
        return
    rows = [
        (each.name, to_datetime(each.written_ms), each.reason, each.bytes, printable(each.detail))
        for each in found
    ]
    render_table(("letter", "written", "reason", "bytes", "why"), rows)


@deadletter.command()
@click.argument("name")
@click.option("--raw", is_flag=True, help="Its bytes and nothing else, as they are.")
@configured
def show(config: Config, name: str, raw: bool) -> None:
    """Show one letter and its bytes."""
    from pipeline.deadletters import NoBytes, find_bytes

    letter = _find(config, name)
    found = find_bytes(config.kafka, [letter]).get(letter)
    if not raw:
        for key, value in _fields(letter).items():
            click.echo(f"{key}: {printable(str(value))}")
    if found is None:
        raise NoBytes(_why_missing(letter))
    if raw:
        sys.stdout.buffer.write(found.raw)
        return
    click.echo("exact: " + ("yes" if found.exact else "no, personal data is replaced"))
    click.echo(printable(found.raw.decode(errors="replace")))


@deadletter.command()
@click.argument("names", nargs=-1)
@_since
@_reason
@_limit
@click.option(
    "--file",
    "edited",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="These bytes instead, for one letter: what `show --raw` gave, mended.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@configured
def replay(
    config: Config,
    names: tuple[str, ...],
    since: dt.datetime | None,
    reasons: tuple[str, ...],
    limit: int,
    edited: Path | None,
    dry_run: bool,
) -> None:
    """Send letters to the topic that they came from once more: by name, or by --reason or --since.

    Each is marked with the header kizashi-replay-of. What is refused again is a new letter.
    """
    from pipeline.deadletters import find_bytes, send_again

    if bool(names) == bool(since or reasons):
        raise click.UsageError("give names of letters, or --reason or --since")
    if edited is not None and len(names) != 1:
        raise click.UsageError("--file takes the place of one letter: name it")
    letters = [_find(config, n) for n in names] or _select(config, since, reasons, limit)
    if edited is not None:
        records = [(letters[0], edited.read_bytes())]
    else:
        found = find_bytes(config.kafka, letters) if letters else {}
        records = [(each, found[each].raw) for each in letters if each in found]
        for each in letters:
            if each not in found:
                click.echo(f"kizashi: {_why_missing(each)}", err=True)
    # A tombstone has nothing to say a second time.
    records = [(letter, raw) for letter, raw in records if raw]
    if not dry_run and records:
        send_again(config.kafka, records)
    for letter, raw in records:
        click.echo(f"{letter.name}: {len(raw)} bytes {'to send' if dry_run else 'sent'}")
    if len(records) < len(letters):
        sys.exit(1)


def _fields(letter: Letter) -> dict[str, object]:
    return {name: getattr(letter, name) for name in letter.__struct_fields__}


def _select(
    config: Config, since: dt.datetime | None, reasons: tuple[str, ...], limit: int
) -> list[Letter]:
    from pipeline.sinks.clickhouse import open_store
    from pipeline.sinks.deadletters import DeadLetterStore

    since_ms = 0 if since is None else round(since.replace(tzinfo=dt.UTC).timestamp() * 1000)
    with open_store(config.clickhouse) as store:
        return DeadLetterStore(store).latest(since_ms, reasons, limit)


def _find(config: Config, name: str) -> Letter:
    from pipeline.sinks.clickhouse import open_store
    from pipeline.sinks.deadletters import DeadLetterStore

    match = _NAME.fullmatch(name)
    if match is None:
        raise click.UsageError(f"{name}: a letter's name is PARTITION/OFFSET, as `list` prints it")
    with open_store(config.clickhouse) as store:
        found = DeadLetterStore(store).find(int(match[1]), int(match[2]), int(match[3] or 0))
    if found is None:
        raise ConfigError(f"there is no dead letter {name}")
    return found


def _why_missing(letter: Letter) -> str:
    if letter.topic == "local":
        return f"{letter.name}: it was read from a file, and its bytes are only there"
    return f"{letter.name}: retention has taken its bytes from both topics"
