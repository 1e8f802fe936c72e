"""Prompts and answers by script: each against an oracle that goes letter by letter."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import language
from pipeline.core.language import compare_languages, find_languages

ENGLISH = "Where is the parcel that I ordered last week?"
GERMAN = "Wo ist das Paket, das ich letzte Woche bestellt habe? Schöne Grüße!"
JAPANESE = "先週注文した荷物はどこにありますか。"
CHINESE = "我上周订购的包裹现在在哪里？请尽快回复。"
KOREAN = "지난주에 주문한 소포는 어디에 있나요?"
RUSSIAN = "Где посылка, которую я заказал на прошлой неделе?"
ARABIC = "أين الطرد الذي طلبته الأسبوع الماضي؟"
THAI = "พัสดุที่ฉันสั่งเมื่อสัปดาห์ที่แล้วอยู่ที่ไหน"


def compare(prompt: str, answer: str) -> tuple[bool, bool]:
    known, differs = compare_languages([prompt], [answer])
    return bool(known[0]), bool(differs[0])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ENGLISH, language.LATIN),
        (GERMAN, language.LATIN),
        (JAPANESE, language.KANA),
        (CHINESE, language.HAN),
        (KOREAN, language.HANGUL),
        (RUSSIAN, language.CYRILLIC),
        (ARABIC, language.ARABIC),
        (THAI, language.THAI),
        ("1234 + 5678 = 6912 (!)", language.NONE),
        ("🎉🎉🎉🎉🎉🎉🎉", language.NONE),
        ("", language.NONE),
        # A name or a term does not make a text English.
        ("ClickHouseとKafkaの違いを教えてください。どちらが速いですか。", language.KANA),
    ],
)
def test_the_language_of_a_text(text: str, found: int) -> None:
    assert find_languages([text]).tolist() == [found]


def test_texts_do_not_depend_on_their_neighbours() -> None:
    texts = [ENGLISH, JAPANESE, "", CHINESE, KOREAN]
    assert find_languages(texts).tolist() == [int(find_languages([t])[0]) for t in texts]


@pytest.mark.parametrize(
    ("prompt", "answer", "known", "differs"),
    [
        (ENGLISH, GERMAN, True, False),
        (ENGLISH, ENGLISH, True, False),
        (JAPANESE, ENGLISH, True, True),
        (ENGLISH, JAPANESE, True, True),
        (JAPANESE, CHINESE, True, True),
        (JAPANESE, JAPANESE, True, False),
        (JAPANESE, f"<think>{ENGLISH}</think>{JAPANESE}", True, False),
        (JAPANESE, f"<think>{ENGLISH}", False, False),
        (JAPANESE, "42", False, False),
        (ENGLISH, "42", False, False),
        ("", ENGLISH, False, False),
    ],
)
def test_pairs(prompt: str, answer: str, known: bool, differs: bool) -> None:
    assert compare(prompt, answer) == (known, differs)


LETTERS = {
    "LATIN": language.LATIN,
    "CYRILLIC": language.CYRILLIC,
    "HIRAGANA": language.KANA,
    "HANGUL": language.HANGUL,
    "CJK": language.HAN,
}
ALPHABET = "abcXYZ äøñ деЖ ひらカ 漢字 한글 12,.!"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=120), min_size=1, max_size=6))
def test_against_a_count_of_letters(texts: list[str]) -> None:
    for text, found in zip(texts, find_languages(texts).tolist(), strict=True):
        weights = dict.fromkeys(set(LETTERS.values()), 0)
        for character in text:
            word = unicodedata.name(character, "?").replace("KATAKANA", "HIRAGANA").split()[0]
            if word in LETTERS:
                script = LETTERS[word]
                wide = script in {language.KANA, language.HAN, language.HANGUL}
                weights[script] += 3 if wide else 1
        both = weights[language.KANA] + weights[language.HAN]
        is_japanese = weights[language.KANA] >= 0.1 * both
        weights[language.KANA], weights[language.HAN] = (both, 0) if is_japanese else (0, both)
        most = max(weights.values())
        best = {script for script, weight in weights.items() if weight == most}
        assert found in best if most >= 12 else found == language.NONE


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_any_string_is_compared(pairs: list[tuple[str, str]]) -> None:
    known, differs = compare_languages([p for p, _ in pairs], [a for _, a in pairs])
    assert known.shape == differs.shape == (len(pairs),)
    assert not (differs & ~known).any()
