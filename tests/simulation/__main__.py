"""``python -m tests.simulation``: as many schedules as one likes, or one of them, told in full."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator

from tests.simulation.controls import CONTROLS, Protocol
from tests.simulation.schedule import Schedule, draw_schedule
from tests.simulation.world import World

#: What runs, and in how many of a hundred schedules.
KINDS: dict[tuple[str, ...], int] = {
    ("ingest",): 52,
    ("respond",): 36,
    ("detect",): 9,
    ("ingest", "detect", "respond"): 3,
}
#: The last lines of a failing run that are shown.
SHOWN = 60


def choose_agents(seed: int) -> tuple[str, ...]:
    """Which agents a seed is about."""
    at = seed * 37 % 100
    for agents, share in KINDS.items():
        at -= share
        if at < 0:
            return agents
    raise AssertionError("the shares are a hundred")


def play(schedule: Schedule, protocol: Protocol | None = None) -> tuple[World, Exception | None]:
    """Run one schedule; returns what went wrong, if anything did."""
    world = World(schedule, protocol)
    try:
        world.run()
    except Exception as error:
        return world, error
    return world, None


def tell(world: World, lines: int) -> Iterator[str]:
    """The schedule of a run, and the last of what happened in it."""
    yield str(world.schedule)
    yield from (f"{at_s:8.3f}  {who}: {what}" for at_s, who, what in world.trace[-lines:])


def main() -> int:
    """Run what the command line asks for; the status is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="so many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one, with all that happens in it")
    parser.add_argument("--agents", help="only these, for example ingest,detect")
    parser.add_argument("--control", choices=sorted(CONTROLS), help="a broken protocol instead")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    agents = tuple(chosen.agents.split(",")) if chosen.agents else None
    protocol = None
    if chosen.control:
        agents, protocol = CONTROLS[chosen.control]
    seeds = [chosen.seed] if chosen.seed is not None else range(chosen.seeds)
    failed, steps, begin_s = 0, 0, time.process_time()
    for seed in seeds:
        seed = seed if chosen.seed is not None else chosen.first + seed
        world, error = play(draw_schedule(seed, agents or choose_agents(seed)), protocol)
        steps += world.steps
        if error is not None or chosen.seed is not None:
            lines = len(world.trace) if chosen.seed is not None else SHOWN
            print("\n".join(tell(world, lines)))
        if error is not None:
            failed += 1
            print(f"FAILED: {type(error).__name__}: {error}\n")
    seconds = time.process_time() - begin_s
    print(
        f"{len(seeds)} schedules, {failed} failed; {steps} steps in {seconds:.1f} s of CPU,"
        f" {1e3 * seconds / len(seeds):.1f} ms each"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
