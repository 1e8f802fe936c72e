"""Respond, simulated: of each incident one page and one end, whoever dies or sleeps."""

from __future__ import annotations

import pytest

from tests.support.schedules import play_all

SCHEDULES, EACH = 1_950, 50


@pytest.mark.parametrize("first", range(0, SCHEDULES, EACH))
def test_schedules(first: int) -> None:
    play_all(("respond",), range(first, first + EACH))
