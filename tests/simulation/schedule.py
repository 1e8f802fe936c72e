"""A schedule: what befalls a run, drawn from one seed."""

from __future__ import annotations

import random
from typing import NamedTuple

#: After this, all that was broken is mended, and everything must come to its end.
HORIZON_S = 14.0


class Blow(NamedTuple):
    """Something that happens at a time, whatever the workers are doing."""

    at_s: float
    what: str
    #: Which worker, as a number that is taken modulo their count.
    worker: int = 0
    #: For how long, where it ends by itself.
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:6.2f} s  {self.what}{lasting}"


#: What can happen, and how often it is drawn.
BLOWS = {
    "kill": 6,
    "stop": 5,
    "start another worker": 2,
    "leave": 2,
    "rebalance": 3,
    "clickhouse away": 2,
    "kafka away": 2,
    "pagerduty away": 1,
}
INGEST_BLOWS = {"add a partition": 1, "create the topic anew": 1}


class Schedule(NamedTuple):
    """Everything about a run that is not the code's own doing."""

    seed: int
    agents: tuple[str, ...]
    workers: int
    #: The chance that a call fails before its effect, after it, or dies in the middle.
    fault: float
    #: The chance that a worker dies after one of its steps.
    crash: float
    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {' and '.join(self.agents)} on {self.workers} workers;"
            f" a call fails with {self.fault:.1%}, a step kills with {self.crash:.2%}"
        )
        return "\n".join([head, *map(str, self.blows)])


def draw_schedule(seed: int, agents: tuple[str, ...]) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(f"{seed}/{'/'.join(agents)}")
    kinds = BLOWS | (INGEST_BLOWS if "ingest" in agents else {})
    blows = [
        Blow(
            rng.uniform(0.5, HORIZON_S),
            rng.choices(list(kinds), list(kinds.values()))[0],
            rng.randrange(100),
            rng.choice([1.0, 2.0, 5.0]) * rng.uniform(0.3, 1.5),
        )
        for _ in range(rng.randint(0, 7))
    ]
    return Schedule(
        seed,
        agents,
        workers=rng.randint(1, 3),
        fault=rng.choice([0.0, 0.02, 0.05, 0.1]),
        crash=rng.choice([0.0, 0.002, 0.005, 0.01]),
        blows=tuple(sorted(blows)),
    )
