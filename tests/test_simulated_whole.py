"""All three agents, simulated together; and broken protocols, which must be found out."""

from __future__ import annotations

import pytest

from tests.simulation.controls import CONTROLS
from tests.simulation.schedule import draw_schedule
from tests.simulation.world import World
from tests.support.schedules import find_violation, play_all

SCHEDULES, EACH = 60, 10
ALL = ("ingest", "detect", "respond")


@pytest.mark.parametrize("first", range(0, SCHEDULES, EACH))
def test_schedules(first: int) -> None:
    play_all(ALL, range(first, first + EACH))


@pytest.mark.parametrize("control", sorted(CONTROLS))
def test_a_broken_protocol_is_found_out(control: str) -> None:
    """A simulation whose controls pass is broken itself."""
    assert find_violation(control, range(300)) is not None


def test_a_seed_tells_the_same_story_twice() -> None:
    stories = []
    for _ in range(2):
        world = World(draw_schedule(7, ALL))
        world.run()
        stories.append(world.trace)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 100
