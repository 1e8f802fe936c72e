"""Which faults come when: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Where a worker can be told to die. `tests.chaos.worker` has them in its code.
POINTS = (
    "before-declared",
    "after-declared",
    "mid-insert",
    "between-tables",
    "after-insert",
    "after-signals",
    "before-next-commit",
    "after-alarms",
    "after-snapshot",
    "before-incident-saved",
)


class Part(StrEnum):
    """What a fault befalls. The faults of one part follow one another, those of two may meet."""

    WORKER = "worker"
    BROKER = "broker"
    CLICKHOUSE = "clickhouse"
    RECEIVER = "receiver"


@dataclass(frozen=True)
class Kind:
    """A way to fail, and how long it lasts, in units of the session time-out."""

    name: str
    part: Part
    least: float
    most: float


@dataclass(frozen=True)
class Fault:
    """One fault of a plan; times are seconds from the start of the load."""

    kind: str
    part: Part
    at_s: float
    lasting_s: float
    #: A number for whoever has to choose one of several.
    draw: int


KINDS = (
    Kind("worker_killed", Part.WORKER, 0.0, 0.3),
    *(Kind(f"worker_killed_{point}", Part.WORKER, 0.0, 0.2) for point in POINTS[:7]),
    Kind("worker_terminated", Part.WORKER, 0.0, 0.3),
    Kind("worker_frozen", Part.WORKER, 2.0, 2.0),
    Kind("worker_joined_and_left", Part.WORKER, 1.0, 2.0),
    Kind("worker_away", Part.WORKER, 0.5, 1.5),
    Kind("broker_killed", Part.BROKER, 0.1, 0.8),
    Kind("broker_paused", Part.BROKER, 0.2, 1.5),
    Kind("deadletters_away", Part.BROKER, 0.5, 1.5),
    Kind("clickhouse_killed", Part.CLICKHOUSE, 0.1, 0.8),
    Kind("clickhouse_paused", Part.CLICKHOUSE, 0.2, 1.0),
    Kind("clickhouse_refuses", Part.CLICKHOUSE, 0.2, 1.0),
    Kind("clickhouse_hangs", Part.CLICKHOUSE, 0.2, 1.0),
    Kind("clickhouse_cut_after_apply", Part.CLICKHOUSE, 0.2, 1.0),
    Kind("clickhouse_died_after_apply", Part.CLICKHOUSE, 0.1, 0.3),
    Kind("clickhouse_too_many_parts", Part.CLICKHOUSE, 0.2, 1.0),
    Kind("clickhouse_read_only", Part.CLICKHOUSE, 0.2, 1.0),
    Kind("pagerduty_429", Part.RECEIVER, 0.2, 1.0),
    Kind("pagerduty_500", Part.RECEIVER, 0.2, 1.0),
    Kind("pagerduty_silent_after_accept", Part.RECEIVER, 0.2, 1.0),
    Kind("grafana_429", Part.RECEIVER, 0.2, 1.0),
    Kind("grafana_500", Part.RECEIVER, 0.2, 1.0),
    Kind("grafana_lost_after_accept", Part.RECEIVER, 0.2, 1.0),
    *(Kind(f"worker_killed_{point}", Part.WORKER, 0.0, 0.2) for point in POINTS[7:]),
)
BY_NAME = {kind.name: kind for kind in KINDS}
#: Quiet time between two faults of one part, in units of the session time-out.
GAPS = {
    Part.WORKER: (0.3, 1.2),
    Part.BROKER: (1.5, 4.0),
    Part.CLICKHOUSE: (0.3, 1.5),
    Part.RECEIVER: (0.3, 1.5),
}
#: Nothing fails before the first events have come through.
WARM_UP_S = 3.0


def draw_plan(
    seed: int, seconds: float, session_s: float, names: Sequence[str] = tuple(BY_NAME)
) -> list[Fault]:
    """Return the faults of a run in order of time; all are over before `seconds`.

    Every part goes through its kinds in a shuffled order, again and again, so that each kind
    comes as often as any other.
    """
    rng = random.Random(seed)
    faults = []
    for part in Part:
        kinds = [BY_NAME[name] for name in names if BY_NAME[name].part is part]
        if kinds:
            faults += _fill(rng, part, kinds, seconds, session_s)
    return sorted(faults, key=lambda fault: fault.at_s)


def _fill(
    rng: random.Random, part: Part, kinds: list[Kind], seconds: float, session_s: float
) -> Iterator[Fault]:
    low, high = GAPS[part]
    now_s = WARM_UP_S + rng.uniform(0, low) * session_s
    while True:
        for kind in rng.sample(kinds, len(kinds)):
            lasting_s = rng.uniform(kind.least, kind.most) * session_s
            if now_s + lasting_s > seconds:
                return
            yield Fault(kind.name, part, now_s, lasting_s, rng.randrange(1_000_000))
            now_s += lasting_s + rng.uniform(low, high) * session_s
