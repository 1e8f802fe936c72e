"""What is in force after any history of fits and orders."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.reference_history import Action, Order, Standing, find_standing


def pin(at: int, version: int) -> Order:
    return Order(at, Action.PIN, version)


def unpin(at: int) -> Order:
    return Order(at, Action.UNPIN)


def reset(at: int) -> Order:
    return Order(at, Action.RESET)


@pytest.mark.parametrize(
    ("versions", "orders", "expected"),
    [
        ([], [], Standing()),
        ([5], [], Standing(5, False, 5)),
        ([5, 9], [], Standing(9, False, 9)),
        # A pin of what is in force changes nothing, and keeps the next one out.
        ([5, 9], [pin(6, 5)], Standing(5, True, 5)),
        # An earlier one comes back.
        ([5, 9], [pin(12, 5)], Standing(5, True, 12)),
        ([5, 9], [pin(6, 5), unpin(20)], Standing(9, False, 20)),
        ([5], [pin(6, 5), unpin(20)], Standing(5, False, 5)),
        # A reset ends a pin and all that was; what is fitted afterwards counts.
        ([5], [reset(7)], Standing(0, False, 7, 7)),
        ([5], [pin(6, 5), reset(7)], Standing(0, False, 7, 7)),
        ([5, 9], [reset(7)], Standing(9, False, 9, 7)),
        ([5], [reset(7), unpin(8)], Standing(0, False, 7, 7)),
        # People may bring back what a reset put away.
        ([5, 9], [reset(7), pin(12, 5)], Standing(5, True, 12, 7)),
        # Of a version that is not there (of another encoder) nothing is pinned.
        ([5, 9], [pin(12, 6)], Standing(9, False, 9)),
        ([5], [reset(5)], Standing(0, False, 5, 5)),
        ([], [reset(7)], Standing(0, False, 0, 7)),
    ],
)
def test_what_is_in_force(versions: list[int], orders: list[Order], expected: Standing) -> None:
    for shuffled in permutations(orders):
        assert find_standing(reversed(versions), shuffled) == expected


@given(
    st.lists(st.integers(1, 20), unique=True, max_size=5),
    st.lists(
        st.builds(Order, st.integers(21, 40), st.sampled_from(Action), st.integers(1, 20)),
        unique_by=lambda o: o.ordered_ms,
        max_size=5,
    ),
)
def test_what_is_in_force_was_fitted_and_a_change_of_it_has_a_time(
    versions: list[int], orders: list[Order]
) -> None:
    """Workers know a set by the time of its last change."""
    before = Standing()
    for count in range(len(orders) + 1):
        standing = find_standing(versions, sorted(orders)[:count])
        assert standing.version_ms in (0, *versions)
        if count and standing.version_ms != before.version_ms:
            assert standing.since_ms == sorted(orders)[count - 1].ordered_ms
        elif count:
            assert standing.since_ms == before.since_ms
        before = standing
