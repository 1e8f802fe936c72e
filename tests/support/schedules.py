"""Schedules of the simulation as tests: a failing one prints how to see it again."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest

from tests.simulation.__main__ import SHOWN, play, tell
from tests.simulation.controls import CONTROLS
from tests.simulation.schedule import draw_schedule
from tests.simulation.world import Violation


def play_all(agents: tuple[str, ...], seeds: Iterable[int]) -> None:
    """Play the schedules of these seeds; the first that breaks a promise ends the test."""
    logging.disable(logging.CRITICAL)
    try:
        for seed in seeds:
            world, error = play(draw_schedule(seed, agents))
            if error is not None:
                story = "\n".join(tell(world, SHOWN))
                again = f"make simulate SEED={seed} ARGS='--agents {','.join(agents)}'"
                pytest.fail(f"{error!r}\n{story}\n{again}", pytrace=False)
    finally:
        logging.disable(logging.NOTSET)


def find_violation(control: str, seeds: Iterable[int]) -> Violation | None:
    """Play a broken protocol until it is found out."""
    agents, protocol = CONTROLS[control]
    logging.disable(logging.CRITICAL)
    try:
        for seed in seeds:
            _, error = play(draw_schedule(seed, agents), protocol)
            if isinstance(error, Violation):
                return error
            if error is not None:
                raise error
    finally:
        logging.disable(logging.NOTSET)
    return None
