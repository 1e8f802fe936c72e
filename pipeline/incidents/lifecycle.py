"""What a command changes about an incident, and how long each stage took. Pure.

Delivery guarantee: a command that was carried out changes nothing again, as long as
it is among the last `COMMANDS` of the incident; most verbs change nothing twice anyway.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import structs

from schemas.command import NAME_CHARS, TEXT_CHARS, Command, Verb
from schemas.incident import Action, Incident, Note, Status

#: Of each incident, so many of the latest notes and of the ids of commands are kept.
NOTES = 100
COMMANDS = 200

#: What destinations are told; of anything else, that something has changed.
_ACTIONS = {
    Verb.ACKNOWLEDGE: Action.ACKNOWLEDGE,
    Verb.RESOLVE: Action.RESOLVE,
    Verb.REOPEN: Action.TRIGGER,
}


class StageTimes(NamedTuple):
    """Seconds from the change to its detection, and from there on; None where it has not come."""

    detect_s: float
    acknowledge_s: float | None
    mitigate_s: float | None
    resolve_s: float | None


def measure_stages(incident: Incident) -> StageTimes:
    """Return how long each stage took; a clock that went backwards counts as no time at all."""

    def since_detected(time_ms: int | None) -> float | None:
        return None if time_ms is None else max(0, time_ms - incident.opened_ms) / 1000

    return StageTimes(
        max(0, incident.opened_ms - incident.change_time_ms) / 1000,
        since_detected(incident.acknowledged_ms),
        since_detected(incident.mitigated_ms),
        since_detected(incident.resolved_ms),
    )


def carry_out(incident: Incident, command: Command) -> tuple[Incident, Action] | None:
    """Return the incident as the command leaves it, and what is to be told; None for no change."""
    if command.command_id in incident.commands:
        return None
    changed = _change(incident, command)
    linked = _link(incident if changed is None else _write_note(changed, command), command)
    if linked == incident:
        return None
    commands = (*incident.commands, command.command_id)[-COMMANDS:]
    action = Action.UPDATE if changed is None else _ACTIONS.get(command.verb, Action.UPDATE)
    return structs.replace(linked, commands=commands, via=command.via), action


def _change(incident: Incident, command: Command) -> Incident | None:
    is_open = incident.status is Status.OPEN
    by, at = command.by[:NAME_CHARS], command.time_ms
    match command.verb:
        case Verb.ACKNOWLEDGE if is_open and incident.acknowledged_ms is None:
            return structs.replace(incident, acknowledged_ms=at, acknowledged_by=by)
        case Verb.UNACKNOWLEDGE if is_open and incident.acknowledged_ms is not None:
            return structs.replace(incident, acknowledged_ms=None, acknowledged_by="")
        case Verb.MITIGATE if is_open and incident.mitigated_ms is None:
            return structs.replace(_taken_on(incident, at, by), mitigated_ms=at, mitigated_by=by)
        case Verb.RESOLVE if is_open:
            return _resolve(_taken_on(incident, at, by), at, by)
        case Verb.REOPEN if not is_open and not incident.merged_into:
            return structs.replace(
                incident,
                status=Status.OPEN,
                resolved_ms=None,
                resolved_by="",
                mitigated_ms=None,
                mitigated_by="",
                reopened_by=by,
            )
        case Verb.NOTE if command.text.strip():
            return incident
    return None


def _write_note(incident: Incident, command: Command) -> Incident:
    text = command.text.strip()[:TEXT_CHARS]
    if not text:
        return incident
    note = Note(command.time_ms, command.by[:NAME_CHARS], text, command.via)
    return structs.replace(incident, notes=(*incident.notes, note)[-NOTES:])


def _taken_on(incident: Incident, at: int, by: str) -> Incident:
    """Whoever mitigates or resolves it has taken it on, if nobody had before."""
    if incident.acknowledged_ms is not None:
        return incident
    return structs.replace(incident, acknowledged_ms=at, acknowledged_by=by)


def _resolve(incident: Incident, at: int, by: str) -> Incident:
    mitigated = at if incident.mitigated_ms is None else min(at, incident.mitigated_ms)
    return structs.replace(
        incident,
        status=Status.RESOLVED,
        resolved_ms=at,
        resolved_by=by,
        mitigated_ms=mitigated,
        mitigated_by=incident.mitigated_by if incident.mitigated_ms is not None else by,
        reopened_by="",
    )


def _link(incident: Incident, command: Command) -> Incident:
    if not command.via or not command.external_id:
        return incident
    known = {**incident.external_ids, command.via: command.external_id}
    return structs.replace(incident, external_ids=known)
