"""Numbers that belong to a person: cards, telephones, accounts, social security, postal codes.

A run of digits and separators is cut into its groups, and windows of consecutive
groups are held against the rules: a check digit where the number has one (Luhn,
ISO/IEC 7812-1; ISO 13616 for an IBAN; the Japanese ministerial order on My Number),
a shape, or a word that stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import re2

from pipeline.core.redaction.spans import Kind, Span

#: At least six digits; between two of them up to three separators.
_RUN = re2.compile(rb"\+?\(?\d(?:[ ().\-/]{0,3}\d){5,}")
_GROUP = re.compile(rb"\d+")
#: No number of these kinds has more digits: ISO/IEC 7812-1 allows a card 19.
_DIGITS_MAX = 19
_DIGITS_MIN = 6
_BEHIND_CHARS = 8
_ZERO = ord("0")
_CARD_SEPARATORS = {b"", b" ", b"-"}
#: Prefixes of the networks' numbers, as a range of the first four digits, and their lengths.
_NETWORKS = (
    (range(4000, 5000), {13, 16, 19}),  # Visa
    (range(5100, 5600), {16}),  # Mastercard
    (range(2221, 2721), {16}),
    (range(3400, 3500), {15}),  # American Express
    (range(3700, 3800), {15}),
    (range(3528, 3590), {16, 17, 18, 19}),  # JCB
    (range(3000, 3060), {14, 16}),  # Diners Club
    (range(3600, 3700), {14, 16}),
    (range(3800, 4000), {14, 16}),
    (range(6011, 6012), {16, 17, 18, 19}),  # Discover
    (range(6440, 6600), {16, 17, 18, 19}),
    (range(6200, 6300), {16, 17, 18, 19}),  # UnionPay
    (range(5000, 5100), {16, 18, 19}),  # Maestro
    (range(5600, 5900), {16, 18, 19}),
    (range(6304, 6305), {16, 18, 19}),
    (range(6759, 6764), {16, 18, 19}),
)
_CARD_LENGTHS = range(13, 20)
_CARD_SHAPES = {(4, 6, 5), (4, 6, 4), (4, 4, 5)}

#: What is said before a number, on the text with its likenesses, in any case.
_CONTEXT_CHARS = 24
_SAYS_PHONE = re.compile(
    r"tel\b|phone|mobile|\bcell\b|\bfax\b|\bcall\b|whatsapp|\bsms\b|\btext (?:me|us)\b|contact"
    r"|電話|携帯|ケ-タイ|連絡先|ファックス|ファクス|内線",
    re.IGNORECASE,
)
#: ``TEL03-1234-5678``: labels that stand at a number without a space.
_GLUED = re.compile(rb"(?i:tel|phone|fax|mobile|no)\Z")
_GLUED_CHARS = 6
_SAYS_ACCOUNT = re.compile(
    r"口座|普通預?金?|当座|貯蓄預金|account (?:number|no)|acct", re.IGNORECASE
)
_SAYS_MY_NUMBER = re.compile(r"マイナンバ-|マイナンバー|個人番号|my ?number", re.IGNORECASE)
_SAYS_POSTAL = re.compile(r"〒|郵便番号|postal|\bzip\b|postcode", re.IGNORECASE)
_SAYS_SSN = re.compile(r"\bssn\b|social security", re.IGNORECASE)
_POSTAL_CONTEXT_CHARS = 12
_PREFECTURE = re.compile(r"[ ]{0,2}(?:東京都|北海道|京都府|大阪府|[一-龠]{2,3}県)")
#: The plan of North America: neither the area nor the exchange begins with 0 or 1.
_NANP = re.compile(rb"1?[2-9]\d\d[2-9]\d{6}")
_SSN = re.compile(rb"(?!000|666|9)\d{3}(?!00)\d\d(?!0000)\d{4}")
_JP_MOBILE = re.compile(rb"0[5789]0[1-9]\d{7}")
_JP_FREE = re.compile(rb"0120\d{6}|0800\d{7}")
_YEAR = re.compile(rb"(?:19|20)\d\d")

#: Of each country, how long an IBAN is (SWIFT's registry).
_IBAN_LENGTHS = {
    b"AD": 24, b"AE": 23, b"AL": 28, b"AT": 20, b"AZ": 28, b"BA": 20, b"BE": 16, b"BG": 22,
    b"BH": 22, b"BI": 27, b"BR": 29, b"BY": 28, b"CH": 21, b"CR": 22, b"CY": 28, b"CZ": 24,
    b"DE": 22, b"DJ": 27, b"DK": 18, b"DO": 28, b"EE": 20, b"EG": 29, b"ES": 24, b"FI": 18,
    b"FK": 18, b"FO": 18, b"FR": 27, b"GB": 22, b"GE": 22, b"GI": 23, b"GL": 18, b"GR": 27,
    b"GT": 28, b"HN": 28, b"HR": 21, b"HU": 28, b"IE": 22, b"IL": 23, b"IQ": 23, b"IS": 26,
    b"IT": 27, b"JO": 30, b"KW": 30, b"KZ": 20, b"LB": 28, b"LC": 32, b"LI": 21, b"LT": 20,
    b"LU": 20, b"LV": 21, b"LY": 25, b"MC": 27, b"MD": 24, b"ME": 22, b"MK": 19, b"MN": 20,
    b"MR": 27, b"MT": 31, b"MU": 30, b"NI": 28, b"NL": 18, b"NO": 15, b"OM": 23, b"PK": 24,
    b"PL": 28, b"PS": 29, b"PT": 25, b"QA": 29, b"RO": 24, b"RS": 22, b"RU": 33, b"SA": 24,
    b"SC": 31, b"SD": 18, b"SE": 24, b"SI": 19, b"SK": 24, b"SM": 27, b"SO": 23, b"ST": 25,
    b"SV": 28, b"TL": 23, b"TN": 24, b"TR": 26, b"UA": 29, b"VA": 22, b"VG": 24, b"XK": 20,
    b"YE": 30,
}  # fmt: skip
_IBAN = re2.compile(rb"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}")


class _Window(NamedTuple):
    """Consecutive groups of a run."""

    start: int
    end: int
    digits: bytes
    shape: tuple[int, ...]
    separators: tuple[bytes, ...]
    #: What stands before the whole run, and right behind the window.
    before: str
    behind: str
    #: Whether a plus stands before it.
    plus: bool


class _Run(NamedTuple):
    """Digits and their separators, with what they are part of."""

    plain: bytes
    alike: str
    start: int
    before: str
    #: Places of the groups of digits.
    groups: list[tuple[int, int]]

    def has_plus(self, first: int) -> bool:
        start = self.groups[first][0]
        return b"+" in self.plain[max(self.start, start - 2) : start]

    def begin_of(self, window: _Window) -> int:
        """Where the window begins with the plus and the bracket that belong to it."""
        begin = window.start
        while begin > self.start and self.plain[begin - 1 : begin] in {b"+", b"("}:
            begin -= 1
        return begin

    def window(self, first: int, end: int) -> _Window:
        """The groups from `first` up to and without `end`."""
        groups = self.groups[first:end]
        return _Window(
            groups[0][0],
            groups[-1][1],
            b"".join(self.plain[a:b] for a, b in groups),
            tuple(b - a for a, b in groups),
            tuple(self.plain[left[1] : right[0]] for left, right in pairwise(groups)),
            self.before,
            self.alike[groups[-1][1] : groups[-1][1] + _BEHIND_CHARS],
            self.has_plus(first),
        )


def find_numbers(plain: bytes, alike: str) -> Iterator[Span]:
    """Find numbers in `plain`; `alike` is the same text with the likenesses in it."""
    for run in _RUN.finditer(plain):
        start, end = run.span()
        if _borders_word(plain, start, end):
            continue
        yield from _search_run(plain, alike, start, end)


def find_ibans(plain: bytes) -> Iterator[Span]:
    """Find IBANs with their check digits right, in one piece or in groups."""
    for match in _IBAN.finditer(plain):
        places = [i for i in range(*match.span()) if plain[i] not in b" -"]
        length = _IBAN_LENGTHS.get(plain[places[0] : places[0] + 2], 0)
        compact = bytes(plain[i] for i in places[:length])
        if 0 < length <= len(places) and _mod_97(compact) == 1:
            yield Span(Kind.IBAN, places[0], places[length - 1] + 1)


def _borders_word(plain: bytes, start: int, end: int) -> bool:
    """Whether a letter or an underscore touches the run: then it is part of an identifier."""
    before, after = plain[max(0, start - _GLUED_CHARS) : start], plain[end : end + 1]
    if after.isalpha() or after == b"_" or before.endswith(b"_"):
        return True
    return before[-1:].isalpha() and not _GLUED.search(before)


def _search_run(plain: bytes, alike: str, start: int, end: int) -> Iterator[Span]:
    groups = [match.span() for match in _GROUP.finditer(plain, start, end)]
    run = _Run(plain, alike, start, alike[max(0, start - _CONTEXT_CHARS) : start], groups)
    said = _SAYS_PHONE.search(run.before) is not None
    at = 0
    while at < len(groups):
        found = _find_at(run, at) if said or _may_begin(run, at) else None
        if found is None:
            at += 1
            continue
        last, span = found
        yield span
        at = last + 1


def _may_begin(run: _Run, first: int) -> bool:
    """Whether any rule lets a number begin with this group: most groups end here."""
    start, end = run.groups[first]
    if end - start > 2 or run.has_plus(first):
        return True
    if run.plain[start] == _ZERO:
        return end - start > 1
    following = run.groups[first + 1 : first + 2]
    return bool(following) and following[0][1] - following[0][0] == 3


def _find_at(run: _Run, first: int) -> tuple[int, Span] | None:
    """The longest window that begins with this group and is something; and its last group."""
    size, last = 0, first
    while last < len(run.groups):
        size += run.groups[last][1] - run.groups[last][0]
        if size > _DIGITS_MAX:
            break
        last += 1
    for end in range(last, first, -1):
        window = run.window(first, end)
        if len(window.digits) < _DIGITS_MIN:
            return None
        if (kind := _classify(window)) is not None:
            return end - 1, Span(kind, run.begin_of(window), window.end)
    return None


def _classify(window: _Window) -> Kind | None:
    n = len(window.digits)
    if n in _CARD_LENGTHS and not window.plus and _is_card(window):
        return Kind.CARD
    if n == 12 and not window.plus and _is_my_number(window):
        return Kind.MY_NUMBER
    if n == 9 and _is_ssn(window):
        return Kind.US_SSN
    if n == 7 and _is_postal_code(window):
        return Kind.JP_POSTAL_CODE
    if 6 <= n <= 12 and len(window.shape) == 1 and _SAYS_ACCOUNT.search(window.before):
        return Kind.BANK_ACCOUNT
    return Kind.PHONE if _is_phone(window) else None


def _is_card(window: _Window) -> bool:
    digits, shape = window.digits, window.shape
    if not _CARD_SEPARATORS.issuperset(window.separators):
        return False
    even = shape[0] > 3 and all(a == b for a, b in pairwise(shape[:-1])) and shape[-1] <= shape[0]
    if not (even or shape in _CARD_SHAPES):
        return False
    prefix = int(digits[:4])
    known = any(prefix in numbers and len(digits) in sizes for numbers, sizes in _NETWORKS)
    return known and _luhn(digits) and len(set(digits)) > 1


def _is_my_number(window: _Window) -> bool:
    # Where it is said to be one, a wrong check digit is a slip of the pen.
    if _SAYS_MY_NUMBER.search(window.before):
        return True
    return window.shape == (4, 4, 4) and _checks_my_number(window.digits)


def _is_ssn(window: _Window) -> bool:
    if not _SSN.fullmatch(window.digits):
        return False
    if _SAYS_SSN.search(window.before):
        return True
    return window.shape == (3, 2, 4) and window.separators == (b"-", b"-")


def _is_postal_code(window: _Window) -> bool:
    if window.shape not in {(3, 4), (7,)}:
        return False
    said = _SAYS_POSTAL.search(window.before[-_POSTAL_CONTEXT_CHARS:])
    return bool(said or (window.shape == (3, 4) and _PREFECTURE.match(window.behind)))


def _is_phone(window: _Window) -> bool:
    digits, shape = window.digits, window.shape
    n = len(digits)
    if not 7 <= n <= 15:
        return False
    if window.plus:
        return digits[:1] != b"0"
    if _is_date(window):
        return False
    if _SAYS_PHONE.search(window.before):
        return True
    if len(shape) == 1:
        return bool(_JP_MOBILE.fullmatch(digits) or _JP_FREE.fullmatch(digits))
    if shape in {(3, 3, 4), (1, 3, 3, 4)}:
        return bool(_NANP.fullmatch(digits)) or digits[:1] == b"0"
    if digits[:2] == b"00":
        return n >= 11
    return digits[:1] == b"0" and 9 <= n <= 12 and 2 <= len(shape) <= 5 and shape[0] > 1


def _is_date(window: _Window) -> bool:
    """Whether it begins with a day: 21.11.2026 or 2026-11-21, perhaps with an hour behind it."""
    digits, shape = window.digits, window.shape
    if shape[:3] == (2, 2, 4):
        return _YEAR.match(digits, 4) is not None
    return shape[:3] in {(4, 2, 2), (4, 1, 2), (4, 2, 1), (4, 1, 1)} and bool(_YEAR.match(digits))


def _luhn(digits: bytes) -> bool:
    total = 0
    for place, code in enumerate(reversed(digits)):
        digit = code - 48
        if place % 2:
            digit = digit * 2 - 9 * (digit > 4)
        total += digit
    return total % 10 == 0


def _checks_my_number(digits: bytes) -> bool:
    """Order of the Ministry of Internal Affairs No. 85 of 2014, article 5."""
    weighted = (
        (code - 48) * (n + 1 if n <= 6 else n - 5) for n, code in enumerate(digits[10::-1], 1)
    )
    remainder = sum(weighted) % 11
    return digits[11] - 48 == (0 if remainder <= 1 else 11 - remainder)


def _mod_97(iban: bytes) -> int:
    """ISO 7064: the number that the characters spell, letters being 10 to 35."""
    turned = (iban[4:] + iban[:4]).decode("ascii")
    return int("".join(str(int(character, 36)) for character in turned)) % 97
