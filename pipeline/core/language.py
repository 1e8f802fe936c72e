"""The language of prompts and answers, as far as their script tells it.

Scripts are counted by code unit in the first part of a text. Kana make Japanese, Han
without kana Chinese; what is written in Latin letters is one class, so that an English
answer to a French question is not seen. That is what a script can tell, for a quarter of a
microsecond a pair of ASCII texts and five for others. An answer in another class than its
prompt may be what was asked for, a translation say. So it is counted as a rate, and the
reference knows how often that is.

Pure and total: any string is read, and no more than `HEAD_CHARS` characters of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HEAD_CHARS = 160
#: A text with fewer letters than this is in no language; an ideograph counts for several.
LEAST_LETTERS = 12
IDEOGRAPH_LETTERS = 3
#: Of kana and Han together, so much must be kana for Japanese.
LEAST_KANA = 0.1

NONE, LATIN, KANA, HAN, HANGUL, CYRILLIC, GREEK, HEBREW, ARABIC, INDIC, THAI = range(11)
_CLASSES = 11
#: Script → first and last code point, in ranges that hold hardly anything else.
_RANGES: tuple[tuple[int, int, int], ...] = (
    (LATIN, 0x41, 0x5A),
    (LATIN, 0x61, 0x7A),
    (LATIN, 0xC0, 0x24F),
    (GREEK, 0x370, 0x3FF),
    (CYRILLIC, 0x400, 0x52F),
    (HEBREW, 0x590, 0x5FF),
    (ARABIC, 0x600, 0x77F),
    (INDIC, 0x900, 0xDFF),
    (THAI, 0xE00, 0xE7F),
    (KANA, 0x3041, 0x30FF),
    (HAN, 0x3400, 0x9FFF),
    (HANGUL, 0xAC00, 0xD7A3),
)
_WIDE = (KANA, HAN, HANGUL)


def _make_table() -> npt.NDArray[np.uint8]:
    table = np.zeros(1 << 16, np.uint8)
    for script, first, last in _RANGES:
        table[first : last + 1] = script
    return table


_SCRIPT = _make_table()


def compare_languages(prompts: Sequence[str], answers: Sequence[str]) -> tuple[Bools, Bools]:
    """Of n pairs: whose languages are known, and which of those are not the same.

    Both of shape (n,).
    """
    known = np.fromiter(map(_are_long, prompts, answers), np.bool_, len(prompts))
    differs = np.zeros(len(prompts), np.bool_)
    # Two texts of ASCII are both in Latin letters, if in any.
    mixed = [
        row
        for row in np.flatnonzero(known).tolist()
        if not (prompts[row].isascii() and answers[row].isascii())
    ]
    if mixed:
        texts = [prompts[row] for row in mixed] + [skip_reasoning(answers[row]) for row in mixed]
        asked, answered = find_languages(texts).reshape(2, -1)
        known[mixed] = (asked != NONE) & (answered != NONE)
        differs[mixed] = known[mixed] & (asked != answered)
    return known, differs


def _are_long(prompt: str, answer: str) -> bool:
    least = LEAST_LETTERS // IDEOGRAPH_LETTERS
    if prompt.isascii() and answer.isascii():
        least = LEAST_LETTERS
    return len(prompt) >= least and len(answer) >= least


def skip_reasoning(text: str) -> str:
    """Drop a leading block of reasoning: models think in English whatever they answer in."""
    if not text.startswith("<think>"):
        return text
    return text[text.find("</think>") + len("</think>") :] if "</think>" in text else ""


def find_languages(texts: Sequence[str]) -> Ints:
    """Return the language of each text, as the script that stands for it; shape (n,)."""
    heads = [text[:HEAD_CHARS].encode("utf-16-le", "surrogatepass") for text in texts]
    sizes = np.fromiter(map(len, heads), np.int64, len(heads)) // 2
    scripts = _SCRIPT[np.frombuffer(b"".join(heads), "<u2")]
    cell = np.repeat(np.arange(len(heads)) * _CLASSES, sizes) + scripts
    letters = np.bincount(cell, minlength=len(heads) * _CLASSES).reshape(-1, _CLASSES)
    letters[:, NONE] = 0
    letters[:, _WIDE] *= IDEOGRAPH_LETTERS
    both = letters[:, KANA] + letters[:, HAN]
    japanese = letters[:, KANA] >= LEAST_KANA * np.maximum(both, 1)
    letters[:, KANA] = np.where(japanese, both, 0)
    letters[:, HAN] = np.where(japanese, 0, both)
    best: Ints = letters.argmax(axis=1)
    return np.where(letters.max(axis=1) >= LEAST_LETTERS, best, NONE)
