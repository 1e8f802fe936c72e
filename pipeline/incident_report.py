"""Incidents at a terminal: a line each, one in full, as JSON, and the times of many.

What came with events is neutralised: it must not move a cursor or forge a line.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commanding import Outcome
from pipeline.incidents.lifecycle import measure_stages
from pipeline.sinks.text import json_line, plain
from schemas.alarm import Rate
from schemas.command import Command, Verb
from schemas.incident import Attribution, Incident, Silenced

_WIDE = 4_000
_PROSE_CHARS = 2_000
_LABEL_CHARS = 200
_DONE = {
    Verb.ACKNOWLEDGE: "acknowledged",
    Verb.UNACKNOWLEDGE: "given back",
    Verb.MITIGATE: "mitigated",
    Verb.RESOLVE: "resolved",
    Verb.REOPEN: "open again",
    Verb.NOTE: "noted",
    Verb.LINK: "linked",
}


def to_json_line(incident: Incident) -> str:
    """Return the incident as stored, and its stage and how long each took, as one line."""
    described = msgspec.to_builtins(incident)
    described |= {"stage": incident.stage.value, **measure_stages(incident)._asdict()}
    return json_line(described)


def print_list(incidents: Sequence[Incident]) -> None:
    """Print a line for each incident."""
    _print_table(
        ("opened", "incident", "stage", "severity", "symptom", "cause", "what"),
        [
            (
                _clock(i.opened_ms),
                i.incident_id,
                i.stage.value + (" (silenced)" if i.silenced else ""),
                i.severity.value,
                _words(i.symptom),
                _labels(i.cause.labels),
                plain(i.summary, _PROSE_CHARS).split(": ")[0],
            )
            for i in incidents
        ],
    )


def print_stats(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print, for each symptom, how soon each stage came: median and 90th percentile."""
    stages = ("detect", "acknowledge", "mitigate", "resolve")
    _print_table(
        ("symptom", "incidents", *(f"time to {s} p50 / p90 (of)" for s in stages)),
        [
            (
                _words(row["symptom"]),
                str(row["incidents"]),
                *(
                    f"{_span(row[f'{s}_s_p50'])} / {_span(row[f'{s}_s_p90'])} ({row[f'{s}_count']})"
                    for s in stages
                ),
            )
            for row in rows
        ],
    )


def describe_outcome(outcome: Outcome, command: Command, incident: Incident | None) -> str:
    """Say what became of a command."""
    name = incident.incident_id if incident is not None else plain(command.incident_id, 200)
    match outcome:
        case Outcome.CHANGED:
            return f"{name} is {_DONE[command.verb]}"
        case Outcome.UNCHANGED:
            stage = "" if incident is None else f": it is {incident.stage.value}"
            return f"{name} is left as it is{stage}"
        case Outcome.WAITING:
            return f"{name}: the command waits for a worker on the alarms topic"


def report(incident: Incident) -> str:
    """Return all that is known of the incident, for a person."""
    return "\n".join(_lines(incident))


def _lines(incident: Incident) -> Iterator[str]:
    yield (
        f"{incident.incident_id}  {incident.stage.value}  {incident.severity.value}"
        f"  {incident.family.value}"
    )
    yield ""
    yield plain(incident.summary, _PROSE_CHARS)
    if incident.suggestion:
        yield f"Try first: {plain(incident.suggestion, _PROSE_CHARS)}"
    yield ""
    yield f"symptom            {_words(incident.symptom)}"
    yield f"likely root cause  {_words(incident.root_cause)}"
    yield f"cause              {_labels(incident.cause.labels)}"
    if incident.merged_into:
        yield f"part of            {incident.merged_into}"
    if incident.silenced is not None:
        yield f"silenced           {describe_silenced(incident.silenced)}"
    yield from _times(incident)
    if incident.explanation:
        yield from ("", "what explains it")
        yield from map(_attribution, incident.explanation)
    if incident.example_event_ids:
        yield from ("", "examples")
        yield from (f"  {plain(each, _LABEL_CHARS)}" for each in incident.example_event_ids)
    if incident.alarms:
        yield from ("", f"alarms ({len(incident.cleared)} of {len(incident.alarms)} cleared)")
    for alarm in incident.alarms:
        mark = "cleared" if alarm.alarm_id in incident.cleared else "stands "
        change = f"{alarm.signal.value} {_rate(alarm.baseline)} → {_rate(alarm.current)}"
        yield f"  {_clock(alarm.time_ms)}  {mark}  {_labels(alarm.monitor)}: {change}"
    if incident.notes:
        yield from ("", "notes")
    for note in incident.notes:
        via = f" via {note.via}" if note.via else ""
        by = plain(note.by, _LABEL_CHARS)
        yield f"  {_clock(note.time_ms)}  {by}{via}: {plain(note.text, _PROSE_CHARS)}"


def describe_silenced(silenced: Silenced) -> str:
    """Say until when nobody is told, and why."""
    by = f" by {plain(silenced.by, _LABEL_CHARS)}" if silenced.by else ""
    why = plain(silenced.why, _PROSE_CHARS) or "no reason given"
    return f"until {_clock(silenced.until_ms)}{by}: {why} ({silenced.silence_id})"


def _times(incident: Incident) -> Iterator[str]:
    took = measure_stages(incident)
    rows = (
        ("changed", incident.change_time_ms, None, ""),
        ("detected", incident.opened_ms, took.detect_s, ""),
        ("triaged", incident.triaged_ms, None, ""),
        ("acknowledged", incident.acknowledged_ms, took.acknowledge_s, incident.acknowledged_by),
        ("mitigated", incident.mitigated_ms, took.mitigate_s, incident.mitigated_by),
        ("resolved", incident.resolved_ms, took.resolve_s, incident.resolved_by),
    )
    for name, time_ms, seconds, by in rows:
        if time_ms is not None:
            after = "" if seconds is None else f"  after {_span(seconds)}"
            who = f"  by {plain(by, _LABEL_CHARS)}" if by else ""
            yield f"{name:<19}{_clock(time_ms)}{after}{who}"


def _attribution(each: Attribution) -> str:
    return (
        f"  {each.share:>4.0%}  surprise {each.surprise:.2f}  {_labels(each.labels)}:"
        f" {_rate(each.before)} → {_rate(each.after)}"
    )


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{k}={plain(v, _LABEL_CHARS)}" for k, v in labels.items()) or "all traffic"


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.count:,} of {rate.total:,})"


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _clock(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*names, show_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    # For reading and for cutting with other tools: never folded to the terminal.
    Console(width=_WIDE).print(table)
