"""The static encoder gives what the tokenizer gives, whatever the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.encoders import distil, static
from pipeline.encoders.base import Vectors, select_share
from pipeline.encoders.static import BUILT_IN, UNKNOWN, StaticEncoder, WordCache

#: White space and what passes for it, what the tokenizer deletes, and what changes its neighbours.
ODD = (
    " \t\n\r\x00\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u1680\u180e\u2000\u2009\u200b\u200c\u200d"
    "\u200e\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd\u0301\u0338\u3099\u309a\u0903\u20e3\ufe0f"
    "İıßſKÅΣςéÀǅﬁ①²½…—’“”·・ー〜～゛゜。、「」！？々〇々漢字㐀䶿丌龥鿿豈𠀀𪛖가힣ᄀがぱヴヵ한עا🙂👍🏽"
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~aAzZ09"
)
LITERALS = ("[CLS]", "[UNK]", "[SEP]", "[MASK]", "[PAD]", "##ing", "x" * 101, "が" * 60, "the cat")
odd_texts = st.lists(
    st.sampled_from([*ODD, *LITERALS]) | st.characters(codec="utf-8"), max_size=30
).map("".join)
utf8_texts = st.text(st.characters(codec="utf-8"), max_size=60)
words = st.text("abinggsthe019ABTHがかバんーヾ", min_size=1, max_size=12)
texts = st.lists(odd_texts | utf8_texts | st.lists(words).map(" ".join), max_size=6)


@cache
def vocabulary() -> tuple[str, ...]:
    return tuple((BUILT_IN / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1])


@cache
def encoder(capacity: int) -> StaticEncoder:
    """Small whole numbers, so that sums are exact and any other multiset of tokens shows."""
    vectors = np.random.default_rng(0).integers(-1000, 1000, (len(vocabulary()), 8))
    return StaticEncoder(vectors.astype(np.float32), vocabulary(), "test", capacity)


def oracle(of: StaticEncoder, texts: Sequence[str]) -> Vectors:
    """The tokenizer over each whole text, one vector per token."""
    table = of.token_vectors
    found = of.tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return np.array([table[each.ids].sum(axis=0) for each in found]).reshape(
        len(texts), of.dimensions
    )


@settings(max_examples=120, deadline=None)
@given(texts, st.sampled_from([8, 1024]))
@example(["a\x0bb \x0c c\x1cd", "e \u0301f", "[CLS] [UNK]", "x" * 150 + " y"], 8)
@example(["", " ", "日本語です。が゙ガ", "1\u30992"], 8)
def test_the_tokens_are_those_of_the_whole_text(texts: list[str], capacity: int) -> None:
    of = encoder(capacity)
    assert np.array_equal(of.sum_tokens(texts), oracle(of, texts))


def test_every_character_may_stand_inside_a_word() -> None:
    # All but the inside of the large blocks of one script.
    ranges = [
        (0, 0x3500),
        (0x4D00, 0x4F00),
        (0x9F00, 0xAC80),
        (0xF880, 0x10400),
        (0x1F000, 0x20010),
    ]
    texts = ["".join(f"the{chr(c)}a {chr(c)}" for c in range(*each)) for each in ranges]
    assert np.array_equal(encoder(1024).sum_tokens(texts), oracle(encoder(1024), texts))


def test_a_cut_inside_a_word_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python sees white space in \\x1c, and the tokenizer deletes it."""
    texts = ["play\x1cing"]
    monkeypatch.setattr(static, "find_cuts", lambda utf8: np.append(utf8 == 0x1C, True))
    assert not np.array_equal(encoder(1024).sum_tokens(texts), oracle(encoder(1024), texts))


@settings(deadline=None)
@given(words)
@example("がんばって")
@example("x" * 100)
def test_a_plain_word_is_cut_without_the_tokenizer(word: str) -> None:
    of = encoder(1024)
    pieces = of.words.pieces(word)
    unknown = vocabulary().index(UNKNOWN)
    found = of.tokenizer.encode(word, add_special_tokens=False).ids
    assert pieces == [token for token in found if token != unknown]


def test_rows_are_unit_vectors_or_zero() -> None:
    vectors = StaticEncoder.load().encode(
        ["The cat sat on the mat.", "", " \n", "\U0001f642", "猫"]
    )
    lengths = np.linalg.norm(vectors, axis=1)
    assert vectors.dtype == np.float32
    assert lengths == pytest.approx([1, 0, 0, 0, lengths[4]])
    assert encoder(2).encode([]).shape == (0, 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(odd_texts | utf8_texts, min_size=1, max_size=4))
def test_one_text_alone_has_the_vector_that_it_has_among_others(texts: list[str]) -> None:
    of = encoder(64)
    alone = np.array([of.encode_one(text) for text in texts])
    np.testing.assert_allclose(alone, of.encode(texts), atol=1e-6)


def test_meaning_counts_more_than_words() -> None:
    of = StaticEncoder.load()
    cat, kitten, market = of.encode(
        ["a cat sat down", "the kitten was sitting", "the stock market crashed today"]
    )
    assert cat @ kitten > 0.4 > 0.2 > cat @ market


def test_a_full_cache_keeps_the_words_that_are_used_most() -> None:
    of = encoder(4)
    cache = WordCache(of.tokenizer, of.token_vectors, 4)
    frequent = [cache.rows(["the", "cat"]) for _ in range(3)][-1]
    cache.rows(["sat", "mat"])
    cache.rows(["dog"])
    assert cache.rows(["the", "cat"]).tolist() == frequent.tolist() == [0, 1]
    assert cache.size == 3


def test_long_words_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "MOST_CHARACTERS", 500)
    of = encoder(1024)
    cache = WordCache(of.tokenizer, of.token_vectors, 1024)
    for number in range(20):
        cache.rows(["the", f"{number}" * 400])
    assert cache.size <= 3


def test_the_name_is_bound_to_the_content(tmp_path: Path) -> None:
    for file in BUILT_IN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    name = StaticEncoder.load(tmp_path).name
    assert name.removeprefix(tmp_path.name) == StaticEncoder.load().name.removeprefix(BUILT_IN.name)
    scale = np.load(tmp_path / "scale.npy") * 2
    np.save(tmp_path / "scale.npy", scale)
    assert StaticEncoder.load(tmp_path).name != name


def test_what_ships_is_small_plain_and_attributed() -> None:
    files = {file.name: file.stat().st_size for file in BUILT_IN.iterdir() if file.is_file()}
    assert set(files) == {"NOTICE", "scale.npy", "vectors.npy", "vocabulary.txt"}
    assert sum(files.values()) <= 8_000_000
    assert "Apache" in (BUILT_IN / "NOTICE").read_text(encoding="utf-8")


def test_vectors_and_vocabulary_must_fit() -> None:
    with pytest.raises(ValueError, match="one vector per token"):
        StaticEncoder(np.zeros((2, 3), np.float32), [UNKNOWN], "x")
    with pytest.raises(ValueError, match=r"\[UNK\]"):
        StaticEncoder(np.zeros((1, 3), np.float32), ["the"], "x")


def test_long_chunks_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the cat", "", "x" * 300, "sat on", "a mat " * 40, ""]
    whole = encoder(1024).sum_tokens(texts)
    monkeypatch.setattr(static, "BLOCK_CHARACTERS", 10)
    assert list(static.blocks(texts)) == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert np.array_equal(encoder(1024).sum_tokens(texts), whole)


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=20), st.floats(0, 1))
def test_a_larger_share_contains_the_smaller(ids: list[str], share: float) -> None:
    chosen = select_share(ids, share)
    assert chosen.shape == (len(ids),)
    assert (select_share(ids, min(1.0, share * 2)) | ~chosen).all()
    assert select_share(ids[::-1], share)[::-1].tolist() == chosen.tolist()


def test_a_share_is_about_as_large_as_it_says() -> None:
    ids = [f"event-{n}" for n in range(20_000)]
    assert select_share(ids, 0.1).mean() == pytest.approx(0.1, abs=0.01)
    assert select_share(ids, 1).all()
    assert not select_share(ids, 0).any()
    # The hash is the same for ever: a replay years later selects the same events.
    assert np.flatnonzero(select_share(ids[:40], 0.1)).tolist() == [1, 15, 32, 34]
    with pytest.raises(ValueError, match="between 0 and 1"):
        select_share(ids, 1.5)


def test_fitting_to_bags_finds_the_vectors_that_made_the_answers() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(20, 4)).astype(np.float32)
    bags = rng.integers(0, 20, (4000, 5))
    answers = truth[bags].sum(axis=1) / np.sqrt(np.float32(5))
    alone = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    recipe = distil.Recipe(ridge=1e-6, steps=40)
    fitted = distil.fit_tokens(alone, bags, answers, recipe)
    # A shift of all vectors is a shift of all answers, and that is taken off.
    fitted -= fitted.mean(axis=0) - truth.mean(axis=0)
    assert np.allclose(fitted, truth, atol=1e-3)
    assert not np.allclose(alone, truth, atol=0.5)


def test_the_first_axes_carry_most() -> None:
    vectors = StaticEncoder.load().token_vectors
    variance = (vectors**2).sum(axis=0)
    assert variance[:32].sum() > variance[32:64].sum() > variance[96:].sum()


@given(st.integers(0, 2**32 - 1))
def test_a_byte_is_off_by_half_a_step_at_most(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(5, 7)) * [[0], [1e-3], [1], [10], [1e4]]
    steps, scale = distil.quantize(vectors)
    assert (np.abs(steps * scale.astype(np.float64) - vectors) <= scale * 0.5001 + 1e-12).all()


def test_what_is_distilled_can_be_loaded(tmp_path: Path) -> None:
    vectors = np.eye(3)
    distil.save(tmp_path, vectors, [UNKNOWN, "the", "cat"])
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    of = StaticEncoder.load(tmp_path)
    assert of.encode(["cat", "dog", "the the"]).tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    distil.save(tmp_path, vectors, [UNKNOWN, "the", "cat"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
