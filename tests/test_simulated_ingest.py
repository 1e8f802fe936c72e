"""Ingest, simulated: nothing lost, nothing twice, whatever befalls the workers."""

from __future__ import annotations

import pytest

from tests.support.schedules import play_all

SCHEDULES, EACH = 2_600, 50


@pytest.mark.parametrize("first", range(0, SCHEDULES, EACH))
def test_schedules(first: int) -> None:
    play_all(("ingest",), range(first, first + EACH))
