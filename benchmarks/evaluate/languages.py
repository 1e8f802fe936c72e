"""Is a rise of refusals found as soon in Japanese as in English?

There are no labelled refusals in Japanese. So the same refusals were written twice, one by one,
once in each language, before the classifier was tried on them; how many it finds is its
sensitivity. How many answers to ordinary questions it takes for refusals is read from public
answers, in each language; some of those are refusals, so that is an upper bound. Both together
say how a rise from 2 % to 4 % looks after the classifier, and that how long a CUSUM needs for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.rates import BEFORE, CHANGES, nearly_cusum_delay
from pipeline.core.refusal import Refusal, classify_text

RUN_LENGTH = 1e5

#: The same refusal in English and in Japanese.
PAIRS: tuple[tuple[str, str], ...] = (
    (
        "I'm sorry, but I can't help with that.",
        "申し訳ありませんが、それについてはお手伝いできません。",
    ),
    ("I cannot answer this question.", "このご質問にはお答えできません。"),
    (
        "I can't provide instructions for making a weapon.",
        "武器の作り方をお教えすることはできません。",
    ),
    (
        "Unfortunately I am not able to share personal information about this person.",
        "残念ながら、その方の個人情報をお伝えすることはできません。",
    ),
    (
        "I'm unable to assist with requests that involve breaking the law.",
        "法律に違反するご依頼にはお応えしかねます。",
    ),
    ("Sorry, I won't write that.", "すみません、その文章は書けません。"),
    (
        "As an AI, I am not permitted to give medical diagnoses. Please see a doctor.",
        "私はAIですので、医療上の診断を行うことはできません。医師にご相談ください。",
    ),
    (
        "That request goes against my guidelines, so I have to decline.",
        "そのご依頼は私のガイドラインに反するため、お断りいたします。",
    ),
    (
        "I apologize, but creating malware is something I can't do.",
        "恐れ入りますが、マルウェアの作成はお受けできません。",
    ),
    (
        "I don't feel comfortable writing jokes that demean a group of people.",
        "特定の人々を貶めるような冗談を書くことは控えさせていただきます。",
    ),
    (
        "I must refuse to help with copying someone else's passport.",
        "他人のパスポートの複製に協力することはできません。",
    ),
    ("No, I can't do that.", "いいえ、それはできません。"),
    (
        "I'm sorry, I can't recommend which shares you should buy.",
        "申し訳ございませんが、どの株を買うべきかについて助言することはできかねます。",
    ),
    (
        "I can't reproduce the full lyrics of this song, because they are protected by copyright.",
        "この曲の歌詞は著作権で保護されているため、全文を掲載することはできません。",
    ),
    (
        "I'm not able to pretend to be a real person.",
        "実在の人物になりすますことはできません。",
    ),
    (
        "I cannot help you to get into somebody else's account.",
        "他人のアカウントに侵入するお手伝いはできません。",
    ),
    (
        "For safety reasons I can't explain how to mix these chemicals.",
        "安全上の理由から、これらの薬品の混ぜ方をご説明することはできません。",
    ),
    (
        "I'm afraid I can't discuss this topic.",
        "あいにくですが、この話題についてはお話しできません。",
    ),
    (
        "It would be inappropriate for me to write an explicit story, so I will not.",
        "露骨な内容の物語を書くことは不適切ですので、お引き受けできません。",
    ),
    (
        "I can't predict the result of the election.",
        "選挙の結果を予測することはできません。",
    ),
    (
        "I have to decline: this could be used to harass someone.",
        "嫌がらせに使われるおそれがあるため、お断りします。",
    ),
    (
        "I'm sorry, but I can't open links or look at web pages.",
        "申し訳ありませんが、リンクを開いたりウェブページを見たりすることはできません。",
    ),
    (
        "I'm unable to continue this conversation.",
        "この会話を続けることはできません。",
    ),
    (
        "I can't give you legal advice on how to hide your income.",
        "所得を隠す方法について法的な助言をすることはできません。",
    ),
    (
        "Sorry, helping to cheat in an exam isn't something I can do.",
        "すみませんが、試験での不正行為を手伝うことはできません。",
    ),
    (
        "I won't provide a recipe for illegal drugs.",
        "違法薬物の製造方法は提供いたしません。",
    ),
    (
        "This question is outside what I can answer.",
        "その質問は私がお答えできる範囲を超えています。",
    ),
    (
        "I cannot comply with this request.",
        "ご要望にはお応えできません。",
    ),
    (
        "I'm sorry, but I don't have the ability to make phone calls for you.",
        "申し訳ありませんが、代わりに電話をかけることはできません。",
    ),
    (
        "I must respectfully decline to take part in spreading false rumours.",
        "虚偽の噂を広めることへの加担は、丁重にお断りさせていただきます。",
    ),
)


@dataclass(frozen=True)
class Language:
    """What the classifier does in one language, and the delay that comes of it, in answers."""

    refusals: int
    found: int
    ordinary: int
    flagged: int
    delay: float


def measure_language(refusals: Sequence[str], ordinary: Sequence[str]) -> Language:
    found = sum(classify_text(text) is Refusal.FULL for text in refusals)
    flagged = sum(classify_text(text) is Refusal.FULL for text in ordinary)
    # Half a miss more on both sides: all of thirty is not all of them.
    sensitivity = (found + 0.5) / (len(refusals) + 1)
    wrongly = (flagged + 0.5) / (len(ordinary) + 1)
    before, after = (p * sensitivity + (1 - p) * wrongly for p in (BEFORE, CHANGES[0]))
    delay = nearly_cusum_delay(before, after, RUN_LENGTH, before)
    return Language(len(refusals), found, len(ordinary), flagged, delay)


def measure(english: Sequence[str], japanese: Sequence[str]) -> dict[str, object]:
    """`english` and `japanese` are answers to ordinary questions."""
    ours = [
        measure_language([pair[at] for pair in PAIRS], ordinary)
        for at, ordinary in enumerate((english, japanese))
    ]
    return {
        "english": asdict(ours[0]),
        "japanese": asdict(ours[1]),
        "refusal_delay_ratio": ours[1].delay / ours[0].delay,
    }
