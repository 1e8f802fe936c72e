"""Which silences hold at a time, and which incident lies within one. Pure; time is a parameter."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from zoneinfo import ZoneInfo

from msgspec import Struct

from schemas.incident import Incident, Silenced
from schemas.signal import Family
from schemas.silence import Silence

_DAY = dt.timedelta(days=1)


class WeeklyWindow(Struct, frozen=True):
    """Maintenance that comes again: from a time of day in a time zone, for so long.

    Its length is real time, also on the day when the clocks change.
    """

    name: str
    #: Monday is 0.
    days: frozenset[int]
    at: dt.time
    zone: ZoneInfo
    length: dt.timedelta
    labels: dict[str, str] = {}
    families: tuple[Family, ...] = ()
    why: str = ""


def find_active(
    silences: Sequence[Silence], windows: Sequence[WeeklyWindow], now_ms: int
) -> tuple[Silence, ...]:
    """Return the silences that hold, those of windows too, the one that ends last first."""
    coming = [s for window in windows if (s := _find_occurrence(window, now_ms)) is not None]
    active = [s for s in (*silences, *coming) if s.starts_ms <= now_ms < s.ends_ms]
    return tuple(sorted(active, key=lambda s: (-s.ends_ms, s.silence_id)))


def find_silence(active: Sequence[Silence], incident: Incident) -> Silenced | None:
    """Return the first silence that the incident lies within."""
    for each in active:
        if (not each.families or incident.family in each.families) and _is_inside(
            each.labels, incident
        ):
            return Silenced(each.silence_id, each.why, each.by, each.ends_ms)
    return None


def _is_inside(labels: Mapping[str, str], incident: Incident) -> bool:
    """Within the slice is what is explained by it, or what was seen nowhere else."""
    wanted = labels.items()
    if wanted <= incident.cause.labels.items():
        return True
    return bool(incident.alarms) and all(wanted <= a.monitor.items() for a in incident.alarms)


def _find_occurrence(window: WeeklyWindow, now_ms: int) -> Silence | None:
    """Return the window's occurrence at that time; it may have begun on a day before."""
    now = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    today = now.astimezone(window.zone).date()
    for ago in range(window.length // _DAY + 2):
        day = today - ago * _DAY
        if day.weekday() not in window.days:
            continue
        start = dt.datetime.combine(day, window.at, window.zone).astimezone(dt.UTC)
        if start <= now < start + window.length:
            return Silence(
                silence_id=f"window/{window.name}",
                starts_ms=_to_ms(start),
                ends_ms=_to_ms(start + window.length),
                labels=window.labels,
                families=window.families,
                by="configuration",
                why=window.why or window.name,
            )
    return None


def _to_ms(moment: dt.datetime) -> int:
    return round(moment.timestamp() * 1000)
