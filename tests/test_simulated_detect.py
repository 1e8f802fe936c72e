"""Detect, simulated: after any crash the state is that of an undisturbed run."""

from __future__ import annotations

import pytest

from tests.support.schedules import play_all

SCHEDULES, EACH = 450, 25


@pytest.mark.parametrize("first", range(0, SCHEDULES, EACH))
def test_schedules(first: int) -> None:
    play_all(("detect",), range(first, first + EACH))
