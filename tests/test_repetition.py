"""Loops are found, lists and tables are not taken for loops, and any string is survived."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.repetition import LEAST_CHARS, TIMES, is_repetitive

PROSE = (
    "The invoice was paid on Monday, and the receipt went to the address that you gave us in"
    " March. If it has not come by the end of the week, look into the folder for unwanted mail"
    " first; some providers hold such messages back. We can send it again at any time, also as"
    " a letter. The amount is the one on the order, with the voucher taken off."
)


@pytest.mark.parametrize(
    "text",
    [
        PROSE + " and again" * 60,
        PROSE + "\nThe answer is 42." * 20,
        "はい、承知しました。" * 40,
        PROSE + "a" * 300,
        PROSE * 6,
        PROSE + "ha ha " * 80 + "\n\n   ",
        # Cut off in the middle of a round.
        PROSE + ("\n1. Check the cable and restart the device." * 40)[:-17],
    ],
)
def test_an_answer_that_repeats_its_end_is_a_loop(text: str) -> None:
    assert is_repetitive(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "again " * 10,
        PROSE,
        PROSE * (TIMES - 1),
        # It repeated itself and found out again.
        "and again " * 60 + PROSE,
        "".join(f"- {word} is one of the {len(word)} letter words\n" for word in PROSE.split()[:9]),
        "\n".join(f"    total[{i}] = left[{i + 3}] * right[{i * 7}]" for i in range(9)),
    ],
)
def test_prose_and_lists_are_none(text: str) -> None:
    assert not is_repetitive(text)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=80), st.text(max_size=400), st.integers(0, 50))
def test_what_is_repeated_often_enough_is_found(piece: str, before: str, cut: int) -> None:
    piece = piece.strip() or "x"
    text = (before + piece * 60)[: -(cut % len(piece)) or None]
    if len(piece * 58) >= 2 * LEAST_CHARS:
        assert is_repetitive(text)


@given(st.text(max_size=600))
def test_any_string_is_judged(text: str) -> None:
    assert is_repetitive(text) in (True, False)


def test_random_words_are_no_loop() -> None:
    rng = np.random.default_rng(1)
    words = [f"w{n}" for n in range(200)]
    for _ in range(200):
        assert not is_repetitive(" ".join(rng.choice(words, rng.integers(1, 400))))
