"""Alarms that come together: looked up by their cause, where many have the same. Pure.

When a provider breaks, every monitor that it serves alarms, thousands within a minute. To ask of
each what is behind it would take a scan of an hour's requests for each. So the first is asked,
and of the others only, many in one scan, whether the open incident's cause carries their excess.

Delivery guarantee: none of its own. What has been taken in is in the book, and an alarm that
comes again changes nothing there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from pipeline.incidents.book import MERGING_SHARE, Entry, IncidentBook
from pipeline.incidents.explain import Investigation
from schemas.alarm import Alarm
from schemas.incident import Cause, Incident

#: Fewer alarms than this are each looked up in full: that says more, and costs little.
CROWD = 8
#: What was found is as good as new for so long, by the time of the alarms …
FRESH_MS = 10_000
#: … and so many findings are kept: the largest have some thousand slices.
FINDINGS = 16


class Evidence(Protocol):
    """What is stored of the requests behind alarms. Every method may raise a RetryableError."""

    def investigate(self, alarm: Alarm, now_ms: int) -> Investigation:
        """Count the alarm's signal in every slice, before the change point and since."""
        ...

    def find_examples(self, alarm: Alarm, cause: Cause) -> tuple[str, ...]:
        """Return ids of the latest events inside the cause that counted."""
        ...

    def compare(
        self, lead: Alarm, labels: Mapping[str, str], alarms: Sequence[Alarm], now_ms: int
    ) -> Mapping[str, Investigation]:
        """Count in each alarm's monitor, and in what of it lies in the slice, all in one go.

        Of the lead's signal, by its thresholds and since its change point. Returns what was found
        by the alarm's id; an alarm about which nothing can be said is left out.
        """
        ...


class Intake:
    """Takes in alarms one step at a time; holds at most those it was given, and `FINDINGS`."""

    def __init__(self, book: IncidentBook, alarms: Iterable[Alarm]) -> None:
        self._book = book
        self._waiting = deque(alarms)
        #: (incident, its cause, lead) with which what waits has been compared.
        self._asked: set[tuple[str, str, str]] = set()
        self._findings: dict[str, tuple[int, Investigation]] = {}

    @property
    def done(self) -> bool:
        return not self._waiting

    def step(self, evidence: Evidence) -> list[Entry]:
        """Take in the crowds of open incidents, then alarms in order up to one to be looked up.

        Returns what has changed. After an error nothing is known of the book.
        """
        entries = []
        for incident in self._book.open:
            entries += self._join(incident, evidence)
        investigate = partial(self._investigate, evidence)
        while self._waiting:
            alarm = self._waiting.popleft()
            is_looked_up = self._book.is_new(alarm)
            entries += self._book.handle(alarm, investigate, evidence.find_examples)
            if is_looked_up:
                break
        return entries

    def _join(self, incident: Incident, evidence: Evidence) -> list[Entry]:
        """Let the incident have all that its cause explains."""
        entries: list[Entry] = []
        for lead in self._book.leads(incident):
            question = (incident.incident_id, repr(incident.cause.labels), lead.alarm_id)
            if question in self._asked:
                continue
            # What waits grows only less: asked once of one cause is asked for good.
            self._asked.add(question)
            crowd = [a for a in self._waiting if self._book.may_join(incident, lead, a)]
            if len(crowd) >= CROWD:
                parts = _find_parts(incident, lead, crowd, evidence)
                entries += self._book.join(incident.incident_id, parts)
                taken = set(map(id, parts))
                self._waiting = deque(alarm for alarm in self._waiting if id(alarm) not in taken)
        return entries

    def _investigate(self, evidence: Evidence, alarm: Alarm, now_ms: int) -> Investigation:
        """What was found a moment ago is not looked up again: that of every incident's first."""
        looked = self._findings.get(alarm.alarm_id)
        if looked is not None and abs(now_ms - looked[0]) <= FRESH_MS:
            return looked[1]
        found = evidence.investigate(alarm, now_ms)
        self._findings[alarm.alarm_id] = (now_ms, found)
        while len(self._findings) > FINDINGS:
            del self._findings[next(iter(self._findings))]
        return found


def _find_parts(
    incident: Incident, lead: Alarm, crowd: Sequence[Alarm], evidence: Evidence
) -> list[Alarm]:
    """Those of the crowd whose excess the incident's cause carries."""
    labels = incident.cause.labels
    # All of a monitor that lies within the cause does: nobody need be asked.
    inside = {a.alarm_id for a in crowd if labels and labels.items() <= a.monitor.items()}
    asked = [alarm for alarm in crowd if alarm.alarm_id not in inside]
    if len(asked) >= CROWD:
        found = evidence.compare(lead, labels, asked, max(alarm.time_ms for alarm in asked))
        inside |= {
            alarm.alarm_id
            for alarm in asked
            if alarm.alarm_id in found
            and found[alarm.alarm_id].accounts_for(alarm, labels, MERGING_SHARE)
        }
    return [alarm for alarm in crowd if alarm.alarm_id in inside]
