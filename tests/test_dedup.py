"""The window of seen ids against one that is searched by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.dedup import SeenIds

IDS = st.lists(st.sampled_from("abcdefg"), max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), IDS)
def test_an_id_is_a_repeat_while_it_is_among_the_last_that_were_new(
    capacity: int, ids: list[str]
) -> None:
    seen, window = SeenIds(capacity), []
    for event_id in ids:
        new = event_id not in window
        if new:
            window = [*window, event_id][-capacity:]
        assert seen.add(event_id) is new
        assert len(seen) == len(window)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8), st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=9))
def test_a_chunk_at_once_is_the_same_as_one_by_one(capacity: int, chunks: list[list[str]]) -> None:
    at_once, one_by_one = SeenIds(capacity), SeenIds(capacity)
    for chunk in chunks:
        assert at_once.add_all(chunk) == [one_by_one.add(i) for i in chunk]
        assert len(at_once) == len(one_by_one)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), IDS, IDS)
def test_a_window_read_back_goes_on_like_the_one_that_was_lost(
    capacity: int, before: list[str], after: list[str]
) -> None:
    """After a crash the ids come from what is stored: the new ones alone, oldest first."""
    seen = SeenIds(capacity)
    stored = [event_id for event_id in before if seen.add(event_id)]
    again = SeenIds(capacity, stored[-capacity:])
    assert [again.add(i) for i in after] == [seen.add(i) for i in after]


def test_a_repeat_does_not_renew_its_place() -> None:
    seen = SeenIds(2, ["a", "b"])
    assert not seen.add("a")
    assert seen.add("c")  # pushes out "a"
    assert seen.add("a")


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_window_of_nothing_lets_everything_through(capacity: int) -> None:
    seen = SeenIds(capacity)
    assert [seen.add(i) for i in "abab"] == [True] * 4
    assert len(seen) == capacity
