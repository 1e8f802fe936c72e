"""The book of incidents: one cause, one incident, one page. Pure; time is a parameter.

Delivery guarantee: none of its own, and none needed. An alarm that comes again
changes nothing, and a book restored from the stored incidents goes on where the
last stored change left it. Alarms beyond an incident's cap change nothing at all, and so many
incidents are looked at again at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import NamedTuple

from msgspec import Struct, structs

from pipeline.incidents.complaints import Complaint, Organ
from pipeline.incidents.diagnosis import Diagnosis, diagnose
from pipeline.incidents.explain import EXPLAINING_SHARE, Investigation
from pipeline.incidents.lifecycle import carry_out
from pipeline.incidents.own import LABEL, end_own, is_own, open_own, worsen
from pipeline.incidents.silencing import find_silence
from pipeline.incidents.wording import rate_severity
from schemas.alarm import Alarm, Transition
from schemas.command import Command
from schemas.incident import Action, Cause, Incident, Severity, Status
from schemas.silence import Silence

#: Looks an alarm up in what is stored, as of a time in milliseconds.
Investigate = Callable[[Alarm, int], Investigation]
#: Finds a few ids of events that an alarm counted, inside a cause.
FindExamples = Callable[[Alarm, Cause], tuple[str, ...]]

#: Of several changes of one incident, what is said of all together.
_WEIGHT = (Action.UPDATE, Action.TRIGGER, Action.ACKNOWLEDGE, Action.RESOLVE)
#: An open incident explains an alarm when it carries at least half of its excess.
MERGING_SHARE = 0.5


class BookConfig(Struct, frozen=True):
    #: Change points this far apart may still be one change.
    overlap_ms: int = 900_000
    #: An incident is resolved when all its alarms have been clear for this long.
    hold_ms: int = 120_000
    #: So long after it was opened, an incident is explained anew from what is stored by then.
    review_ms: tuple[int, ...] = (30_000, 120_000)
    #: So many at a time, those first that have waited longest: each is a look at an hour's traffic.
    reviews: int = 8
    #: An alarm is held against so many open incidents, those first that have the same cause.
    compared: int = 8
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
        #: Alarm → the incident that it is a part of.
        self._homes: dict[str, str] = {}
        for incident in sorted(incidents, key=lambda i: (i.opened_ms, i.incident_id)):
            self._incidents[incident.incident_id] = incident
            self._note_home(incident)
        # Until they are known, an incident stays as silent as it was.
        self._silences: tuple[Silence, ...] | None = None

    @property
    def open(self) -> list[Incident]:
        return [i for i in self._incidents.values() if i.status is Status.OPEN]

    def handle(
        self, alarm: Alarm, investigate: Investigate, find_examples: FindExamples
    ) -> list[Entry]:
        """Take in an alarm: open an incident, add to one, or note that an alarm has cleared."""
        if alarm.transition is Transition.CLEARED:
            return self._note_clear(alarm)
        if not self.is_new(alarm):
            return []
        found = investigate(alarm, alarm.time_ms)
        seen = diagnose(alarm, found)
        matches = [
            (incident, again)
            for incident in self._overlapping(alarm, seen)
            if (again := self._find_shared(incident, alarm, seen, found, investigate)) is not None
        ]
        if not matches:
            return [self._open(alarm, seen, find_examples)]
        incident, again = matches[0]
        merged = self._merge(incident, alarm, seen, again, find_examples)
        others = [i for i, d in matches[1:] if d.cause.labels == again.cause.labels]
        return self._absorb(merged, others, alarm.time_ms)

    def is_new(self, alarm: Alarm) -> bool:
        """True for a raise that no incident has; it has to be looked up."""
        return alarm.transition is Transition.RAISED and alarm.alarm_id not in self._homes

    def leads(self, incident: Incident) -> list[Alarm]:
        """Return the incident's first alarm of each kind, as the leads of those that may join."""
        leads: dict[tuple[str, str], Alarm] = {}
        for alarm in incident.alarms:
            if not alarm.detector:
                leads.setdefault((alarm.signal, alarm.direction), alarm)
        return list(leads.values())

    def may_join(self, incident: Incident, lead: Alarm, alarm: Alarm) -> bool:
        """True when nothing but the cause has to be asked about, to know that it is a part."""
        alike = (alarm.signal, alarm.direction, alarm.detector)
        return (
            alike == (lead.signal, lead.direction, lead.detector)
            and incident.status is Status.OPEN
            and not incident.is_mix_shift
            and self.is_new(alarm)
            and self._is_near(incident, alarm)
            and not _is_the_way_back(incident, alarm)
            # What pages takes the lead of what only informs: that is more than to join it.
            and (
                incident.severity is not Severity.INFO
                or rate_severity(alarm, incident.cause) is Severity.INFO
            )
        )

    def join(self, incident_id: str, alarms: Iterable[Alarm]) -> list[Entry]:
        """Add alarms that the incident's cause explains, as far as there is room for them."""
        entries = []
        for alarm in alarms:
            incident = self._incidents[incident_id]
            if self.is_new(alarm) and len(incident.alarms) < self._config.alarms:
                joined = _add(incident, alarm, rate_severity(alarm, incident.cause))
                entries.append(self._keep(joined, Action.UPDATE, alarm.time_ms))
        return entries

    def carry_out(self, command: Command) -> list[Entry]:
        """Do what a person wants done; a command for an incident that is not known does nothing."""
        incident = self._find(command)
        done = None if incident is None else carry_out(incident, command)
        return [] if done is None else [self._keep(*done, command.time_ms, command.via)]

    def review(
        self, now_ms: int, investigate: Investigate, find_examples: FindExamples
    ) -> list[Entry]:
        """Look again at what is young: the first alarm spoke when little was known."""
        entries = []
        looked_up = (i for i in self.open if not i.is_mix_shift and not is_own(i))
        due = [i for i in looked_up if self._is_due(i, now_ms)]
        for incident in sorted(due, key=lambda i: i.explained_ms)[: self._config.reviews]:
            first = incident.alarms[0]
            found = diagnose(first, investigate(first, now_ms))
            looked = structs.replace(incident, explained_ms=now_ms)
            if found.is_known and not found.is_mix_shift:
                looked = _explain(looked, found, now_ms, find_examples)
            entries.append(self._keep(looked, Action.UPDATE, now_ms))
        return entries

    def _is_due(self, incident: Incident, now_ms: int) -> bool:
        due = (incident.opened_ms + after for after in self._config.review_ms)
        # What has cleared meanwhile would only thin out what there was.
        stands = len(incident.cleared) < len(incident.alarms)
        return stands and any(incident.explained_ms < at <= now_ms for at in due)

    def tick(self, now_ms: int) -> list[Entry]:
        """Resolve the incidents whose alarms have all been clear for long enough."""
        due = [
            i
            for i in self.open
            if not is_own(i)
            and len(i.cleared) == len(i.alarms)
            and now_ms - i.last_alarm_ms >= self._config.hold_ms
            and not i.reopened_by
        ]
        return [
            self._keep(
                structs.replace(i, status=Status.RESOLVED, resolved_ms=i.last_alarm_ms),
                Action.RESOLVE,
                i.updated_ms,
            )
            for i in due
        ]

    def attend(
        self, complaints: Iterable[Complaint], well: frozenset[Organ], now_ms: int
    ) -> list[Entry]:
        """Open, worsen and resolve incidents of Kizashi's own, at most one for each organ.

        What a person has resolved opens again only for another reason. An organ that is
        neither complained of nor well is left as it is.
        """
        entries = []
        for complaint in complaints:
            current = self._find_own(complaint.organ)
            if current is None and complaint.name not in self._incidents:
                opened = open_own(complaint)
                entries.append(self._keep(opened, Action.TRIGGER, complaint.found_ms))
            elif current is not None and (worse := worsen(current, complaint)) is not None:
                entries.append(self._keep(worse, Action.UPDATE, now_ms))
        for organ in sorted(well):
            current = self._find_own(organ)
            if current is not None and not current.reopened_by:
                entries.append(self._keep(end_own(current, now_ms), Action.RESOLVE, now_ms))
        return entries

    def _find_own(self, organ: Organ) -> Incident | None:
        own = (i for i in self.open if is_own(i) and i.cause.labels.get(LABEL) == organ)
        return next(own, None)

    def observe(self, silences: tuple[Silence, ...], now_ms: int) -> list[Entry]:
        """Take the silences that hold now for what counts; what that changes may be told anew."""
        self._silences = silences
        return [
            self._keep(i, Action.UPDATE, now_ms)
            for i in self.open
            if find_silence(silences, i) != i.silenced
        ]

    def _find(self, command: Command) -> Incident | None:
        if command.incident_id or not command.external_id:
            return self._incidents.get(command.incident_id)
        named = (command.via, command.external_id)
        return next(
            (i for i in self._incidents.values() if named in i.external_ids.items()),
            None,
        )

    def _overlapping(self, alarm: Alarm, seen: Diagnosis) -> list[Incident]:
        """Return what the alarm may be a part of, the incidents of the same cause first."""
        found = [
            i
            for i in self._incidents.values()
            if not is_own(i)
            and self._is_near(i, alarm)
            and _takes_part(i, alarm, self._config.overlap_ms)
            and not _is_the_way_back(i, alarm)
            # What is worth a page must not disappear in traffic that has moved.
            and not (i.is_mix_shift and seen.severity is not Severity.INFO)
        ]
        found.sort(key=lambda i: i.cause.labels != seen.cause.labels)
        return found[: self._config.compared]

    def _is_near(self, incident: Incident, alarm: Alarm) -> bool:
        reach = self._config.overlap_ms
        earliest_ms, latest_ms = incident.change_time_ms - reach, incident.last_alarm_ms + reach
        return earliest_ms <= alarm.change_time_ms <= latest_ms

    def _find_shared(
        self,
        incident: Incident,
        alarm: Alarm,
        seen: Diagnosis,
        found: Investigation,
        investigate: Investigate,
    ) -> Diagnosis | None:
        """Return what is behind the incident if that is behind the alarm as well."""
        mine = tuple(incident.cause.labels.items())
        theirs = tuple(seen.cause.labels.items())
        # The first alarm spoke when little was known. Ask again what is behind it: the new
        # cause may explain it as well, and the figures are those since *its* change point.
        first = incident.alarms[0]
        looked = investigate(first, alarm.time_ms)
        again = diagnose(first, looked)
        if again.cause.labels == seen.cause.labels:
            return again
        if mine == theirs or found.explains(mine, MERGING_SHARE) or seen.is_mix_shift:
            same = again.cause.labels == incident.cause.labels
            return again if same else _as_it_stands(incident)
        return again if looked.explains(theirs, EXPLAINING_SHARE) else None

    def _open(self, alarm: Alarm, seen: Diagnosis, find_examples: FindExamples) -> Entry:
        incident = Incident(
            incident_id=f"inc-{alarm.alarm_id}",
            version=0,
            status=Status.OPEN,
            severity=seen.severity,
            family=alarm.family,
            symptom=seen.symptom,
            root_cause=seen.root_cause,
            opened_ms=alarm.time_ms,
            triaged_ms=alarm.time_ms if seen.is_known else None,
            updated_ms=alarm.time_ms,
            explained_ms=alarm.time_ms,
            last_alarm_ms=alarm.time_ms,
            change_time_ms=alarm.change_time_ms,
            summary=seen.summary,
            suggestion=seen.suggestion,
            moved=seen.moved,
            cause=seen.cause,
            explanation=seen.explanation,
            is_mix_shift=seen.is_mix_shift,
            alarms=(alarm,),
            example_event_ids=find_examples(alarm, seen.cause),
        )
        return self._keep(incident, Action.TRIGGER, alarm.time_ms)

    def _merge(
        self,
        incident: Incident,
        alarm: Alarm,
        seen: Diagnosis,
        again: Diagnosis,
        find_examples: FindExamples,
    ) -> list[Entry]:
        if len(incident.alarms) >= self._config.alarms:
            return []
        merged = _add(incident, alarm, seen.severity)
        if incident.severity is Severity.INFO and seen.severity is not Severity.INFO:
            # What only informed has turned out to be a part of what pages, which leads from now on.
            merged = structs.replace(merged, family=alarm.family, alarms=(alarm, *incident.alarms))
            merged = _explain(merged, seen, alarm.time_ms, find_examples)
        elif not seen.is_mix_shift:
            # Traffic that moved says nothing new about the incident.
            merged = _explain(merged, again, alarm.time_ms, find_examples)
        return [self._keep(merged, Action.UPDATE, alarm.time_ms)]

    def _absorb(self, merged: list[Entry], others: list[Incident], now_ms: int) -> list[Entry]:
        """Make one of the incidents that have turned out to have the same cause."""
        if not merged:
            return []
        entries = list(merged)
        whole = merged[0].incident
        for other in others:
            if Status.RESOLVED in {whole.status, other.status}:
                continue
            room = self._config.alarms - len(whole.alarms)
            moving = other.alarms[:room]
            whole = structs.replace(
                whole,
                severity=_louder(whole.severity, other.severity),
                change_time_ms=min(whole.change_time_ms, other.change_time_ms),
                last_alarm_ms=max(whole.last_alarm_ms, other.last_alarm_ms),
                alarms=(*whole.alarms, *moving),
                # Of those that there is no room for, nobody waits for the end.
                cleared=(*whole.cleared, *(a.alarm_id for a in moving if _has_cleared(other, a))),
                notes=(*whole.notes, *other.notes),
            )
            part = structs.replace(
                other, status=Status.RESOLVED, resolved_ms=now_ms, merged_into=whole.incident_id
            )
            entries.append(self._keep(whole, Action.UPDATE, now_ms))
            whole = entries[-1].incident
            entries.append(self._keep(part, Action.RESOLVE, now_ms))
        return entries

    def _note_clear(self, alarm: Alarm) -> list[Entry]:
        incident = self._incidents.get(self._homes.get(alarm.alarm_id, ""))
        if incident is None or _has_cleared(incident, alarm):
            return []
        return [self._keep(_clear(incident, alarm), Action.UPDATE, alarm.time_ms)]

    def _keep(self, incident: Incident, action: Action, now_ms: int, via: str = "") -> Entry:
        kept = structs.replace(
            incident,
            version=incident.version + 1,
            updated_ms=max(now_ms, incident.updated_ms),
            via=via,
        )
        if self._silences is not None and kept.status is Status.OPEN:
            kept = structs.replace(kept, silenced=find_silence(self._silences, kept))
        self._incidents[kept.incident_id] = kept
        self._note_home(kept)
        self._forget()
        return Entry(kept, action)

    def _note_home(self, incident: Incident) -> None:
        """Remember whose its alarms are; those of a part are its whole's, where that took them."""
        for alarm in incident.alarms:
            if incident.merged_into:
                self._homes.setdefault(alarm.alarm_id, incident.incident_id)
            else:
                self._homes[alarm.alarm_id] = incident.incident_id

    def _forget(self) -> None:
        resolved = [i for i in self._incidents.values() if i.status is Status.RESOLVED]
        for incident in resolved[: max(0, len(resolved) - self._config.remembered)]:
            del self._incidents[incident.incident_id]
            for alarm in incident.alarms:
                if self._homes.get(alarm.alarm_id) == incident.incident_id:
                    del self._homes[alarm.alarm_id]


def coalesce(entries: Iterable[Entry]) -> list[Entry]:
    """Make one entry of all those of an incident: as it stands, with the most that was done.

    Whoever is told of the last version needs none of those before it.
    """
    latest: dict[str, Entry] = {}
    for entry in entries:
        before = latest.get(entry.incident.incident_id, entry)
        action = max(before.action, entry.action, key=_WEIGHT.index)
        latest[entry.incident.incident_id] = Entry(entry.incident, action)
    return list(latest.values())


def _add(incident: Incident, alarm: Alarm, severity: Severity) -> Incident:
    added = structs.replace(
        incident,
        severity=_louder(incident.severity, severity),
        change_time_ms=min(incident.change_time_ms, alarm.change_time_ms),
        last_alarm_ms=max(incident.last_alarm_ms, alarm.time_ms),
        alarms=(*incident.alarms, alarm),
    )
    return _withdraw_mitigation(added, alarm)


def _has_cleared(incident: Incident, alarm: Alarm) -> bool:
    return alarm.alarm_id in incident.cleared


def _takes_part(incident: Incident, alarm: Alarm, reach: int) -> bool:
    """True while it is open; and for an echo of what a person has settled: that pages nobody."""
    if incident.status is Status.OPEN:
        return True
    at = incident.resolved_ms
    if at is None or not incident.resolved_by or incident.merged_into:
        return False
    return alarm.change_time_ms <= at and alarm.time_ms <= at + reach


def _is_the_way_back(incident: Incident, alarm: Alarm) -> bool:
    """True for a fall of what has risen: perhaps the end of the incident, never a part of it.

    A monitor that first learned during the incident takes its end for a change. As a
    part of it, it would keep the incident open.
    """
    alike = next((a for a in incident.alarms if a.family is alarm.family), None)
    return alike is not None and alike.direction is not alarm.direction


def _clear(incident: Incident, alarm: Alarm) -> Incident:
    cleared = (*incident.cleared, alarm.alarm_id)
    at = incident.mitigated_ms
    if at is None and len(cleared) == len(incident.alarms):
        at = alarm.time_ms
    return structs.replace(
        incident,
        cleared=cleared,
        last_alarm_ms=max(incident.last_alarm_ms, alarm.time_ms),
        mitigated_ms=at,
    )


def _withdraw_mitigation(incident: Incident, alarm: Alarm) -> Incident:
    at = incident.mitigated_ms
    if at is None or incident.status is not Status.OPEN:
        return incident
    if incident.mitigated_by and alarm.change_time_ms <= at:
        # Somebody has put an end to it, and this is what had happened before.
        return incident
    return structs.replace(incident, mitigated_ms=None, mitigated_by="")


def _explain(
    incident: Incident, found: Diagnosis, now_ms: int, find_examples: FindExamples
) -> Incident:
    """Put the incident in the words of what is known by now."""
    first = incident.alarms[0]
    examples = incident.example_event_ids
    if found.cause.labels != incident.cause.labels or not examples:
        until = max(first.time_ms, now_ms)
        examples = find_examples(structs.replace(first, time_ms=until), found.cause)
    triaged = now_ms if incident.triaged_ms is None and found.is_known else None
    return structs.replace(
        incident,
        explained_ms=max(incident.explained_ms, now_ms),
        cause=found.cause,
        explanation=found.explanation or incident.explanation,
        symptom=found.symptom,
        root_cause=found.root_cause,
        summary=found.summary,
        suggestion=found.suggestion,
        moved=found.moved or incident.moved,
        triaged_ms=incident.triaged_ms if triaged is None else triaged,
        example_event_ids=examples,
    )


def _as_it_stands(incident: Incident) -> Diagnosis:
    return Diagnosis(
        cause=incident.cause,
        explanation=incident.explanation,
        symptom=incident.symptom,
        root_cause=incident.root_cause,
        severity=incident.severity,
        is_mix_shift=incident.is_mix_shift,
        is_known=incident.triaged_ms is not None,
        moved=incident.moved,
        summary=incident.summary,
        suggestion=incident.suggestion,
    )


def _louder(one: Severity, other: Severity) -> Severity:
    return max(one, other, key=attrgetter("rank"))
