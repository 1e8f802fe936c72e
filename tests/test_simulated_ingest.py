"""Ingest, simulated: nothing lost, nothing twice, whatever befalls the workers."""

from __future__ import annotations

import pytest

from tests.support.schedules import play_all

SCHEDULES, EACH = 2_600, 50


@pytest.mark.parametrize("first", range(0, SCHEDULES, EACH))
def test_schedules(first: int) -> None:
    play_all(("ingest",), range(first, first + EACH))


@pytest.mark.parametrize("seed", [8, 15, 16, 18])
def test_a_repeat_of_what_cannot_be_stored_is_a_repeat_after_a_crash_too(seed: int) -> None:
    """It was taken for new then, and the halves of its block came to lie elsewhere."""
    play_all(("ingest",), [seed])
