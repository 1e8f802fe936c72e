"""The book of incidents: one cause, one incident, one page. Pure; time is a parameter.

Delivery guarantee: none of its own, and none needed. An alarm that comes again
changes nothing, and a book restored from the stored incidents goes on where the
last stored change left it. Alarms beyond an incident's cap change nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct, structs

from pipeline.incidents.explain import EXPLAINING_SHARE, Investigation
from pipeline.incidents.wording import (
    describe_moved,
    rate_severity,
    suggest,
    summarise,
    summarise_mix_shift,
)
from schemas.alarm import Alarm, Transition
from schemas.incident import Action, Cause, Incident, Severity, Status

#: Looks an alarm up in what is stored, as of a time in milliseconds.
Investigate = Callable[[Alarm, int], Investigation]
#: Finds a few ids of events that an alarm counted, inside a cause.
FindExamples = Callable[[Alarm, Cause], tuple[str, ...]]

_RANK = (Severity.INFO, Severity.WARNING, Severity.ERROR, Severity.CRITICAL)
#: An open incident explains an alarm when it carries at least half of its excess.
MERGING_SHARE = 0.5


class BookConfig(Struct, frozen=True):
    #: Change points this far apart may still be one change.
    overlap_ms: int = 900_000
    #: An incident is resolved when all its alarms have been clear for this long.
    hold_ms: int = 120_000
    #: Resolved incidents are remembered, so that an alarm that comes again is recognised.
    remembered: int = 1_000
    #: At most this many alarms are kept in one incident.
    alarms: int = 200


class Entry(NamedTuple):
    """A change of an incident, and what the destinations should hear of it."""

    incident: Incident
    action: Action


class IncidentBook:
    """All open incidents, and the last few resolved ones."""

    def __init__(self, config: BookConfig, incidents: Iterable[Incident] = ()) -> None:
        self._config = config
        self._incidents: dict[str, Incident] = {}
        for incident in sorted(incidents, key=lambda i: (i.opened_ms, i.incident_id)):
            self._incidents[incident.incident_id] = incident

    @property
    def open(self) -> list[Incident]:
        return [i for i in self._incidents.values() if i.status is Status.OPEN]

    def handle(
        self, alarm: Alarm, investigate: Investigate, find_examples: FindExamples
    ) -> list[Entry]:
        """Take in an alarm: open an incident, add to one, or note that an alarm has cleared."""
        if alarm.transition is Transition.CLEARED:
            return self._note_clear(alarm)
        if any(alarm.alarm_id == a.alarm_id for i in self._incidents.values() for a in i.alarms):
            return []
        found = investigate(alarm, alarm.time_ms)
        cause = found.find_cause(alarm)
        mixed = found.is_mix_shift(alarm)
        severity = Severity.INFO if mixed else rate_severity(alarm, cause)
        for incident in self._overlapping(alarm):
            if incident.severity is Severity.INFO and severity is not Severity.INFO:
                # What is worth a page must not disappear in what is not.
                continue
            revised = self._shared_cause(incident, alarm, cause, found, investigate)
            if revised is not None:
                return self._merge(incident, alarm, revised, severity, mixed)
        return [
            self._open(alarm, cause, describe_moved(found.moved), severity, mixed, find_examples)
        ]

    def tick(self, now_ms: int) -> list[Entry]:
        """Resolve the incidents whose alarms have all been clear for long enough."""
        due = [
            i
            for i in self.open
            if len(i.cleared) == len(i.alarms) and now_ms - i.updated_ms >= self._config.hold_ms
        ]
        return [
            self._keep(
                structs.replace(i, status=Status.RESOLVED, resolved_ms=i.updated_ms),
                Action.RESOLVE,
                i.updated_ms,
            )
            for i in due
        ]

    def _overlapping(self, alarm: Alarm) -> list[Incident]:
        reach = self._config.overlap_ms
        return [
            i
            for i in self.open
            if i.change_time_ms - reach <= alarm.change_time_ms <= i.updated_ms + reach
            and not _is_the_way_back(i, alarm)
        ]

    def _shared_cause(
        self,
        incident: Incident,
        alarm: Alarm,
        cause: Cause,
        found: Investigation,
        investigate: Investigate,
    ) -> Cause | None:
        """Return the cause that the incident and the alarm have in common, if they have one."""
        mine = tuple(incident.cause.labels.items())
        theirs = tuple(cause.labels.items())
        # The first alarm spoke when little was known. Ask again what is behind it: the new
        # cause may explain it as well, and the figures are those since *its* change point.
        first = incident.alarms[0]
        again = investigate(first, alarm.time_ms)
        latest = again.find_cause(first)
        if latest.labels == cause.labels:
            return latest
        if mine == theirs or found.explains(mine, MERGING_SHARE) or found.is_mix_shift(alarm):
            return latest if latest.labels == incident.cause.labels else incident.cause
        return latest if again.explains(theirs, EXPLAINING_SHARE) else None

    def _open(
        self,
        alarm: Alarm,
        cause: Cause,
        moved: str,
        severity: Severity,
        mixed: bool,
        find_examples: FindExamples,
    ) -> Entry:
        incident = Incident(
            incident_id=f"inc-{alarm.alarm_id}",
            version=0,
            status=Status.OPEN,
            severity=severity,
            family=alarm.family,
            opened_ms=alarm.time_ms,
            updated_ms=alarm.time_ms,
            change_time_ms=alarm.change_time_ms,
            summary=summarise_mix_shift(alarm) if mixed else summarise(alarm, cause, moved),
            suggestion="" if mixed else suggest(alarm, cause),
            moved=moved,
            cause=cause,
            alarms=(alarm,),
            example_event_ids=find_examples(alarm, cause),
        )
        return self._keep(incident, Action.TRIGGER, alarm.time_ms)

    def _merge(
        self, incident: Incident, alarm: Alarm, cause: Cause, severity: Severity, mixed: bool
    ) -> list[Entry]:
        if len(incident.alarms) >= self._config.alarms:
            return []
        first = incident.alarms[0]
        merged = structs.replace(
            incident,
            severity=max(incident.severity, severity, key=_RANK.index),
            change_time_ms=min(incident.change_time_ms, alarm.change_time_ms),
            alarms=(*incident.alarms, alarm),
        )
        if not mixed:
            # Traffic that moved says nothing new about the incident.
            merged = structs.replace(
                merged,
                cause=cause,
                summary=summarise(first, cause, incident.moved),
                suggestion=suggest(first, cause),
            )
        return [self._keep(merged, Action.UPDATE, alarm.time_ms)]

    def _note_clear(self, alarm: Alarm) -> list[Entry]:
        for incident in self.open:
            known = {a.alarm_id for a in incident.alarms}
            if alarm.alarm_id in known and alarm.alarm_id not in incident.cleared:
                cleared = structs.replace(incident, cleared=(*incident.cleared, alarm.alarm_id))
                return [self._keep(cleared, Action.UPDATE, alarm.time_ms)]
        return []

    def _keep(self, incident: Incident, action: Action, now_ms: int) -> Entry:
        kept = structs.replace(
            incident,
            version=incident.version + 1,
            updated_ms=max(now_ms, incident.updated_ms),
        )
        self._incidents[kept.incident_id] = kept
        self._forget()
        return Entry(kept, action)

    def _forget(self) -> None:
        resolved = [i for i in self._incidents.values() if i.status is Status.RESOLVED]
        for incident in resolved[: max(0, len(resolved) - self._config.remembered)]:
            del self._incidents[incident.incident_id]


def _is_the_way_back(incident: Incident, alarm: Alarm) -> bool:
    """True for a fall of what has risen: perhaps the end of the incident, never a part of it.

    A monitor that first learned during the incident takes its end for a change. As a
    part of it, it would keep the incident open.
    """
    first = incident.alarms[0]
    return first.family is alarm.family and first.direction is not alarm.direction
