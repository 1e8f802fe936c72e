"""How soon each scripted incident was found, and what was found besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from pipeline.demo.script import PlayedIncident
from pipeline.demo.snapshot import Query
from schemas.incident import Incident

#: Late requests of an incident still arrive for a while after its end.
GRACE_MS = 120_000


class Detection(Struct, frozen=True):
    """A scripted incident, and the incident that the pipeline opened for it, if it did."""

    scripted: PlayedIncident
    incident: Incident | None
    #: Requests that the incident touched, from its start until it was found; None if unknown.
    events: int | None

    @property
    def delay_s(self) -> float | None:
        """Seconds of event time from the scripted start until the incident was opened."""
        if self.incident is None:
            return None
        return (self.incident.opened_ms - self.scripted.started_ms) / 1000


def score(
    scripted: Sequence[PlayedIncident], incidents: Sequence[Incident], query: Query
) -> tuple[Detection, ...]:
    """Match each scripted incident with the first that was opened for it."""
    detections = []
    for played in scripted:
        found = min(
            (i for i in incidents if _explains(i, played)), key=lambda i: i.opened_ms, default=None
        )
        events = None if found is None else _count_events(played, found.opened_ms, query)
        detections.append(Detection(played, found, events))
    return tuple(detections)


def find_unscripted(
    detections: Sequence[Detection], incidents: Sequence[Incident]
) -> tuple[Incident, ...]:
    """Return the incidents that are nobody's first: repeats and false alarms."""
    matched = {d.incident.incident_id for d in detections if d.incident is not None}
    return tuple(i for i in incidents if i.incident_id not in matched)


def _explains(incident: Incident, played: PlayedIncident) -> bool:
    in_time = played.started_ms <= incident.opened_ms <= played.ended_ms + GRACE_MS
    return (
        incident.family is played.family
        and in_time
        and not _contradict(incident.cause.labels, played.where)
    )


def _contradict(labels: Mapping[str, str], where: Mapping[str, str]) -> bool:
    return any(where.get(name, value) != value for name, value in labels.items())


def _count_events(played: PlayedIncident, until_ms: int, query: Query) -> int | None:
    rows = query(count_sql(played, until_ms))
    count = rows[0]["events"] if rows else None
    return count if isinstance(count, int) else None


def count_sql(played: PlayedIncident, until_ms: int) -> str:
    """Count the requests that the incident touched from its start until `until_ms`."""
    touched = "".join(f" AND {name} = '{value}'" for name, value in played.where.items())
    return (
        "SELECT count() AS events FROM requests"  # noqa: S608 (the script is ours)
        f" WHERE event_time >= fromUnixTimestamp64Milli({played.started_ms})"
        f" AND event_time <= fromUnixTimestamp64Milli({until_ms}){touched}"
    )
