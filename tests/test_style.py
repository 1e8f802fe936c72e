"""Style features: every column against a slow and obvious count of the same text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import cast

import lz4.block
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.style import (
    BLOCK_TEXTS,
    HEAD_CHARS,
    LAYOUT_FEATURES,
    LOOP_BYTES,
    OFFER_BYTES,
    STYLE_FEATURES,
    TAIL_CHARS,
    WORD_BYTES,
    Scale,
    measure_layout,
    measure_style,
)

NAMES = tuple(feature.name for feature in STYLE_FEATURES)

# --- The oracle: one text at a time, character by character ----------------------------------

Quantity = float | int | bool


def shortened(text: str) -> str:
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def per(amount: float, count: int) -> float:
    return amount / max(count, 1)


def count(pattern: str, text: str) -> int:
    """Matches, overlapping ones too."""
    return len(re.findall(f"(?={pattern})", text))


SENTENCE_END = r"(?:\.(?=[ \n\"')*])|[!?。！？])"
CHARACTER_SHARES = {
    "capitals": "[A-Z]",
    "digits": "[0-9０-９]",
    "commas": "[,、，]",
    "colons": "[:：]",
    "semicolons": "[;；]",
    "exclamation marks": "[!！]",
    "question marks": "[?？]",
    "brackets": r"[(\[{「『【（]",
    "quotation marks": '"',
    "typographic marks": "[‘’‚“”„…]",
    "apostrophes": "'[a-z]",
    "hyphens": "-[a-z]",
    "dashes": "[–—―]",
    "emoji": "[\u2600-\u27bf\U0001f000-\U0001ffff]",
    "first person": "(?<![0-9A-Za-z])I[ ']",
    "kana": "[\u3040-\u30ff]",
    "kanji": "[\u3400-\u9fff]",
    "other scripts": "[\u0340-\u1fff\ua000-\udfff]",
}


def characters(text: str, length: int) -> dict[str, Quantity]:
    # The end of a text ends a line.
    line_ended = text + "\n"
    return {
        "length": length,
        "sentence length": per(len(text), count(SENTENCE_END, line_ended)),
        "bold": count(r"\*\*", text),
        "colons inside bold": count(r":\*", text),
        "colons at line ends": count(":\n", line_ended),
        **{name: per(count(p, text), len(text)) for name, p in CHARACTER_SHARES.items()},
    }


def body_of(line: str) -> str:
    """A line without up to eight spaces before it."""
    return line[min(len(line) - len(line.lstrip(" ")), 8) :]


ITEM = r"(?:[-*](?= )|[0-9]{1,2}[.)]|[•・])"


def layout(text: str) -> dict[str, Quantity]:
    lines = text.split("\n")
    written = [line for line in lines if body_of(line)]
    bodies = [body_of(line) for line in written]

    def matching(pattern: str) -> int:
        return sum(re.match(pattern, body) is not None for body in bodies)

    return {
        "lines": len(written),
        "line length": per(len(text), len(written)),
        "first line": len(raw(written[0])) if written else 0,
        "last line": len(raw(written[-1])) if written else 0,
        "blank lines": 1 - len(written) / len(lines),
        "indented lines": sum(line.startswith(" ") for line in written),
        "spaces at line ends": sum(line.endswith(" ") for line in lines),
        "dash bullets": matching("- "),
        "other bullets": matching(r"\* |[•・]"),
        "numbered items": matching(r"[0-9]{1,2}[.)]"),
        "headings": matching("#"),
        "code fences": matching("``"),
        "bold lead-ins": matching(rf"{ITEM}? ?\*\*"),
    }


def words_of(head: bytes) -> list[bytes]:
    """Runs without white space, each up to one byte before the next or the end."""
    return re.findall(rb"[^ \n]+(?:[ \n]*(?=[ \n][^ \n])|[ \n]*\Z)", head)


def mix(word: bytes) -> int:
    first, middle, last = word[0], word[len(word) // 2], word[-1]
    return (((first * 31 + middle) * 31 + last) * 31 + len(word)) % 1_024


def words(text: str) -> dict[str, Quantity]:
    head = raw(text)[:WORD_BYTES]
    found = words_of(head)
    return {
        "word length": per(len(head), len(found)),
        "long words": per(sum(len(word) >= 8 for word in found), len(found)),
        "distinct words": per(len({mix(word) for word in found}), len(found)),
    }


def compression(text: str) -> dict[str, Quantity]:
    tail = raw(text)[-LOOP_BYTES:]
    packed = lz4.block.compress(tail, mode="fast", acceleration=8, store_size=False)
    return {"compressed size": per(len(packed), len(tail))}


OPENINGS = {
    "opens with assent": ("Sure|Certainl|Of cours|Absolute|Great|Yes|はい|もち|承知|かし|了解"),
    "opens with “Here”": "Here|Below|以下",
    "opens with “I”": "I |I'|As a|私",
    "opens with apology": ("I'm sorr|I’m so|I am sor|Sorry|I apolog|Unfortun|申し|すみ|ごめ|残念"),
    "opens with layout": r"#|- |\* |\*\*|1\.|\||```|【|・",
}
OFFER = "let me know|feel free|hope th|happy to help|ould you like|お気軽に|幸いです"


def opening_and_ending(text: str) -> dict[str, Quantity]:
    body = body_of(text)
    left = 8
    while text and left and text[-1] in " \n":
        text, left = text[:-1], left - 1
    return {
        "opens with space": bool(re.match("[ \n]", text or " ")) if text else False,
        **{name: re.match(pattern, body) is not None for name, pattern in OPENINGS.items()},
        "ends open": bool(text) and text[-1] not in ".!?:;)]}\"'`*|>。！？」』）】”’…",
        "ends with exclamation": text.endswith(("!", "！")),
    }


def oracle(text: str) -> dict[str, float]:
    part = shortened(text)
    quantities = {
        **characters(part, len(text)),
        **layout(part),
        **words(part),
        **compression(part),
        **opening_and_ending(part),
        "opens with space": part.startswith((" ", "\n")),
        "closing offer": any(raw(offer) in raw(part)[-OFFER_BYTES:] for offer in OFFER.split("|")),
    }
    scales: dict[Scale, Callable[[float], float]] = {
        Scale.LOG: math.log1p,
        Scale.ROOT: lambda share: math.sqrt(min(share, 1)),
        Scale.SHARE: lambda share: min(share, 1),
    }
    return {f.name: scales[f.scale](float(quantities[f.name])) for f in STYLE_FEATURES}


def measure(text: str) -> dict[str, float]:
    return dict(zip(NAMES, cast(list[float], measure_style([text])[0].tolist()), strict=True))


# --- Texts ------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("\n", "\n\n", " ", "  ", "         ", "\n- ", "\n* ", "\n• ", "\n・", "\n1. ", "\n12) "),
        *(
            "\n# ",
            "\n```py\n",
            "**",
            "**Bold:** ",
            ":\n",
            ": ",
            "*",
            "-",
            "`",
            "``",
            "|",
            "$",
            "\\",
        ),
        *(
            "I",
            "I'm",
            " I ",
            "AI ",
            "word",
            "well-known",
            "a",
            "Internationalization",
            "3.14",
            "42",
        ),
        *(".", ". ", ".\n", "!", "?", ",", ";", "(", "[", '"', "'", "“", "’", "…", "—", "–", "•"),
        *(
            "はい",
            "カタカナ",
            "漢字",
            "。",
            "、",
            "「",
            "（",
            "！",
            "？",
            "：",
            "１",
            "　",
            "ー",
            "々",
        ),
        *(
            "é",
            "ß",
            "Привет",
            "안녕",
            "ไทย",
            "עב",
            "😀",
            "☀",
            "✓",
            "→",
            "\u0301",
            "\ufffd",
            "\U00020000",
        ),
        *("\0", "\r\n", "\t", "\x7f", "\x85", "\u2028", "\ud800", "\udc00", "\udfff", "\U0010ffff"),
        *("Sure", "Certainly", "Here is", "I'm sorry", "Unfortunately", "As an", "申し訳", "以下"),
        *("let me know", "feel free", "hope this helps", "would you like", "お気軽に"),
    ]
)
ANY = st.text(st.characters(exclude_categories=()), max_size=60)
TEXTS = st.one_of(ANY, st.lists(PIECES, max_size=40).map("".join))
LONG = st.tuples(st.lists(PIECES, min_size=1, max_size=8), st.integers(1, 3_000)).map(
    lambda p: ("".join(p[0]) * p[1])[:40_000]
)


@settings(deadline=None)
@given(TEXTS)
@example("")
@example("\0")
@example("\n")
@example(" ")
@example("       \n  - **Item:** yes. I\n\n")
@example("• **dot**\n・**dot**\n1.**x**\n 10. **x**")
@example("word " * 300)
@example("漢")
# The ends of the scripts' ranges.
@example("\u033f\u0340\u1fff\u2000\u25ff\u2600\u27bf\u27c0\u303f\u3040\u30ff\u3100")
@example("\u33ff\u3400\u9fff\ua000\udfff\ue000\U0001efff\U0001f000\U0001ffff\U00020000")
def test_every_column_is_what_the_oracle_counts(text: str) -> None:
    assert measure(text) == pytest.approx(oracle(text), rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(LONG)
@example("a" * (HEAD_CHARS + TAIL_CHARS))
@example("a" * (HEAD_CHARS + TAIL_CHARS + 1))
@example("漢字" * 20_000)
def test_long_texts_too(text: str) -> None:
    assert measure(text) == pytest.approx(oracle(text), rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=12))
def test_a_row_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    together = measure_style(texts)
    assert together.shape == (len(texts), len(STYLE_FEATURES))
    assert together.dtype == np.float32
    alone = [measure_style([text])[0] for text in texts]
    backwards = measure_style(texts[::-1])[::-1]
    np.testing.assert_allclose(together, np.reshape(alone, together.shape), rtol=1e-6)
    np.testing.assert_allclose(together, backwards, rtol=1e-6)


def test_a_row_does_not_depend_on_its_block() -> None:
    texts = ["- item: one\n" * (i % 7) + f"I am {i}." for i in range(2 * BLOCK_TEXTS + 3)]
    together = measure_style(texts)
    shifted = measure_style(texts[5:])
    np.testing.assert_allclose(together[5:], shifted, rtol=1e-6)
    np.testing.assert_allclose(together[-1], measure_style(texts[-1:])[0], rtol=1e-6)


@settings(deadline=None)
@given(st.lists(st.one_of(TEXTS, LONG), max_size=4))
def test_columns_are_finite_and_bounded(texts: list[str]) -> None:
    style = measure_style(texts)
    assert np.isfinite(style).all()
    for column, feature in zip(style.T, STYLE_FEATURES, strict=True):
        highest = math.log1p(50_000) if feature.scale is Scale.LOG else 1.0
        assert ((column >= 0) & (column <= highest)).all(), feature.name


@settings(deadline=None)
@given(st.lists(st.one_of(TEXTS, LONG), max_size=4))
def test_layout_is_columns_of_style(texts: list[str]) -> None:
    at = [STYLE_FEATURES.index(feature) for feature in LAYOUT_FEATURES]
    assert np.array_equal(measure_layout(texts), measure_style(texts)[:, at])


def test_no_texts_give_no_rows() -> None:
    assert measure_style([]).shape == (0, len(STYLE_FEATURES))
    assert measure_layout([]).shape == (0, len(LAYOUT_FEATURES))


def test_an_empty_text_is_one_blank_line_that_cannot_be_compressed() -> None:
    assert {name for name, value in measure("").items() if value} == {
        "blank lines",
        "compressed size",
    }


# --- What they tell ---------------------------------------------------------------------------

PLAIN = "The sky is blue because air scatters short waves more than long ones. That is all."
CHANGED = {
    "length": PLAIN * 2,
    "dash bullets": f"{PLAIN}\n- one\n- two",
    "other bullets": f"{PLAIN}\n* one\n* two",
    "numbered items": f"{PLAIN}\n1. one\n2. two",
    "headings": f"# Sky\n{PLAIN}",
    "code fences": f"{PLAIN}\n```\nsky()\n```",
    "bold": PLAIN.replace("blue", "**blue**"),
    "bold lead-ins": f"**Sky**: {PLAIN}",
    "colons inside bold": f"**Sky:** {PLAIN}",
    "colons at line ends": f"This is why:\n{PLAIN}",
    "indented lines": f"{PLAIN}\n  more",
    "spaces at line ends": f"{PLAIN} \nMore.",
    "capitals": PLAIN.upper(),
    "semicolons": PLAIN.replace(".", ";"),
    "dashes": PLAIN.replace("because", "—"),
    "emoji": f"{PLAIN} 😀",
    "first person": f"I say: {PLAIN}",
    "kana": "そらはあおい。",
    "kanji": "空青。",
    "other scripts": "Небо синее.",
    "opens with space": f" {PLAIN}",
    "opens with assent": f"Certainly! {PLAIN}",
    "opens with “Here”": f"Here is why. {PLAIN}",
    "opens with “I”": f"As an expert, {PLAIN}",
    "opens with apology": f"I'm sorry, but {PLAIN}",
    "opens with layout": f"1. {PLAIN}",
    "ends open": PLAIN[:-8],
    "ends with exclamation": PLAIN[:-1] + "!",
    "closing offer": f"{PLAIN} I hope this helps!",
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_column_rises_with_what_it_is_named_for(name: str) -> None:
    assert measure(CHANGED[name])[name] > measure(PLAIN)[name]


def test_a_loop_compresses_and_repeats_its_words() -> None:
    looping = measure("and so it goes, " * 60)
    assert looping["compressed size"] < 0.1
    assert looping["distinct words"] < 0.1 < measure(PLAIN)["distinct words"]


def test_a_loop_behind_a_long_answer_is_seen() -> None:
    varied = " ".join(str(i * i) for i in range(5_000))
    assert measure(varied)["compressed size"] > 0.4
    assert measure(varied + " again" * 1_000)["compressed size"] < 0.1


def test_only_the_ends_of_a_long_text_are_looked_at() -> None:
    text = "a " * 40_000
    changed = measure(text[:30_000] + "B" * 100 + text[30_100:])
    assert changed == measure(text)


def test_names_are_distinct_and_can_be_said() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(f.phrase and not f.phrase.endswith(".") for f in STYLE_FEATURES)
    with pytest.raises(FrozenInstanceError):
        STYLE_FEATURES[0].name = "size"  # type: ignore[misc]
