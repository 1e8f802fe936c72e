"""Names and passwords that a label gives away, in Japanese and English.

Who is meant by a name without a label only a model of language could say; that is left to
one, and said in SECURITY.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.core.redaction.spans import Kind, Span

_JP_NAME_LABELS = (
    "口座名義人", "口座名義", "名義人", "名義", "氏名", "お名前", "名前", "フリガナ", "ふりがな",
    "ご本人様", "契約者名", "宛名", "担当者名", "患者名", "会員名",
)  # fmt: skip
_JP_SECRET_LABELS = ("パスワ-ド", "パスワード", "暗証番号", "合言葉", "秘密鍵", "アクセスト-クン")
#: Letters of a Japanese or Latin name; the likeness of the prolonged sound mark is a dash.
_NAME_LETTER = r"[一-龠々ぁ-んァ-ヶｦ-ﾟA-Za-z゛゜-]"
_JP_NAME = re.compile(
    rf"(?:{'|'.join(_JP_NAME_LABELS)})[ ]?(?:\([^()\n]{{0,12}}\))?[ ]?[:=は][ ]?"
    rf"({_NAME_LETTER}{{1,14}}(?:[ ・]{_NAME_LETTER}{{1,14}}){{0,2}})"
)
#: Where a sentence goes on after the name.
_JP_NAME_END = re.compile(
    r"(?:です|と申し|と言い|といい|になり|でお願|様|さん|殿|ですか|何|誰|ござ).*"
)
_JP_SECRET = re.compile(rf"(?:{'|'.join(_JP_SECRET_LABELS)})[ ]?[:=は][ ]?([!-~]{{4,128}})")
_EN_NAME = re.compile(
    r"(?i:\b(?:account ?holder(?:'s)?(?: name)?|account name|name on (?:the )?(?:card|account)"
    r"|card ?holder(?:'s)?(?: name)?|beneficiary(?: name)?|full name|first name|last name|surname"
    r"|patient(?:'s)? name|customer(?:'s)? name|my name))[\"']?"
    r"(?:[ ]?[:=][ ]?[\"']?| is )"
    r"([A-ZÀ-Þ][\w'.-]{0,30}(?: (?:(?:van|von|de|da|del|la|bin|al) )?[A-ZÀ-Þ][\w'.-]{0,30}){0,3})"
)
_EN_HINTS = ("name", "holder", "beneficiary")


def find_labelled(alike: str) -> Iterator[Span]:
    """Find what a label names. `alike` is the text with the likenesses in it, case kept."""
    if not alike.isascii():
        if any(label in alike for label in _JP_NAME_LABELS):
            yield from _find_japanese_names(alike)
        if any(label in alike for label in _JP_SECRET_LABELS):
            for match in _JP_SECRET.finditer(alike):
                yield Span(Kind.PASSWORD, *match.span(1))
    lower = alike.lower()
    if any(hint in lower for hint in _EN_HINTS):
        for match in _EN_NAME.finditer(alike):
            yield Span(Kind.NAME, *match.span(1))


def _find_japanese_names(alike: str) -> Iterator[Span]:
    for match in _JP_NAME.finditer(alike):
        start, name = match.start(1), _JP_NAME_END.sub("", match[1]).rstrip(" ・")
        if name:
            yield Span(Kind.NAME, start, start + len(name))
