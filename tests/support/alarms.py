"""Alarms and investigations made by hand: a small world of slices, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.incidents.explain import CANDIDATES, LINEAGE, MIX_DIMENSIONS, Investigation, Slice
from schemas.alarm import Alarm, Direction, Rate, Transition
from schemas.signal import Family, Signal

#: 2025-06-15 15:06:40 UTC.
CHANGE_MS = 1_750_000_000_000


def make_alarm(number: int, monitor: dict[str, str] | None = None, **named: Any) -> Alarm:
    """An alarm about refusals that rose from 0.9 % to 20 %, unless it is said otherwise."""
    known: dict[str, Any] = {
        "alarm_id": f"{number:016x}",
        "transition": Transition.RAISED,
        "event_index": 1_000 + number,
        "time_ms": CHANGE_MS + 60_000,
        "monitor": {"route": "support"} if monitor is None else monitor,
        "family": Family.REFUSAL,
        "signal": Signal.REFUSAL,
        "direction": Direction.RISE,
        "e_value": 52_340.0,
        "threshold": 96.0,
        "baseline": Rate(22, 2_498),
        "current": Rate(100, 500),
        "change_time_ms": CHANGE_MS,
    } | named
    return Alarm(grouping=",".join(known["monitor"]), **known)


def clear(alarm: Alarm, time_ms: int) -> Alarm:
    """The alarm's own end."""
    fields = {name: getattr(alarm, name) for name in alarm.__struct_fields__}
    cleared = {"transition": Transition.CLEARED, "time_ms": time_ms, "clear_reason": "recovered"}
    return Alarm(**fields | cleared)


class Traffic(NamedTuple):
    """Requests that are alike: what they are, and their counts before the change and since."""

    labels: Mapping[str, str]
    before: Rate
    after: Rate


def look_at(alarm: Alarm, world: list[Traffic]) -> Investigation:
    """What ClickHouse would answer, counted here in the plainest way."""
    inside = [t for t in world if alarm.monitor.items() <= t.labels.items()]
    names = sorted({(), *CANDIDATES, LINEAGE, *((d,) for d in MIX_DIMENSIONS)})
    slices = []
    for dimensions in names:
        values = {tuple((d, t.labels.get(d, "")) for d in dimensions) for t in world}
        for labels in sorted(values):
            # As the query does: a slice without a value is none.
            if all(value for _, value in labels):
                slices.append(count_slice(labels, world, inside))  # noqa: PERF401
    return Investigation(tuple(slices))


def count_slice(
    labels: tuple[tuple[str, str], ...], world: list[Traffic], inside: list[Traffic]
) -> Slice:
    wanted = dict(labels).items()
    here = [t for t in world if wanted <= t.labels.items()]
    both = [t for t in inside if wanted <= t.labels.items()]
    rates = [add(t[field] for t in some) for some in (here, both) for field in (1, 2)]
    return Slice(labels, *rates)


def add(rates: Any) -> Rate:
    some = list(rates)
    return Rate(sum(r.count for r in some), sum(r.total for r in some))


def observe(world: list[Traffic], number: int, monitor: dict[str, str], **named: Any) -> Alarm:
    """The alarm that this monitor would raise in this world."""
    inside = [t for t in world if monitor.items() <= t.labels.items()]
    before, after = add(t.before for t in inside), add(t.after for t in inside)
    fell = after.value < before.value
    known = {
        "baseline": before,
        "current": after,
        "direction": Direction.FALL if fell else Direction.RISE,
    }
    return make_alarm(number, monitor, **known | named)
