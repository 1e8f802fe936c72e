"""Undoes the disguises in which words are hidden from patterns: a text → its plain readings.

Full-width and styled letters (Unicode NFKC), characters that show nothing, accents, letters
of other alphabets that look Latin, digits for letters, letters set apart, base64, hex, ROT13,
and reversed text. What is read is in lower case. Pure; the time is linear in the text.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import re2

#: Of the blobs in one text so many are decoded, and so much of each.
BLOBS_MAX = 64
BLOB_CHARACTERS_MAX = 16_384
_BLOB_CHARACTERS_MIN = 20
_PRINTABLE_SHARE = 0.95

_BASE64 = re2.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
_HEX = re2.compile(r"(?:[0-9A-Fa-f]{2}[ :]?){12,}")
#: Words with digits or signs for letters, in lower case.
_LEET = re2.compile(r"[a-z][0134579@$!|]+[a-z]|\b[0134579@$|]+[a-z]{2}|[a-z]{2}[013457@$|]+\b")
_LEET_LETTERS = str.maketrans("0134579@$!|", "oieastgasil")
_ROT13 = {ord(c): codecs.encode(c, "rot13") for c in "abcdefghijklmnopqrstuvwxyz"}
#: Cyrillic and Greek letters, in lower case, that pass for Latin ones (Unicode TR 39).
_LOOKALIKES = str.maketrans("аеорсухіјѕԁһԛԝьгкмтαοενρτυικωχγη", "aeopcyxijsdhqwbrkmtaoevptuikwxyn")
#: Characters that show nothing although they are letters.
_UNSEEN = frozenset("\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5")


class Reading(NamedTuple):
    """One way to read a text."""

    #: Lower case; white space is one space, or one line's end.
    lined: str
    #: It took a decoder to read it.
    decoded: bool = False

    @property
    def flat(self) -> str:
        """As many characters, in one line."""
        return self.lined.replace("\n", " ")


def squeeze(text: str) -> str:
    """Return letters, digits, kana and ideographs alone."""
    return "".join(filter(str.isalnum, text))


def to_plain(text: str) -> str:
    """Return `text` in lower case, without what shows nothing, without styles and accents."""
    if text.isascii():
        return text.lower()
    kept = []
    # Composed first: a voiced kana is a letter of its own, an accent is none.
    for character in unicodedata.normalize("NFKC", text):
        if character < "\x80" or "\u3040" <= character <= "\u9fff":
            kept.append(character)
        elif character not in _UNSEEN and unicodedata.category(character) not in {"Cf", "Mn"}:
            kept.append(_bare(character))
    return "".join(kept).lower()


def _bare(character: str) -> str:
    """A letter without its accent."""
    return unicodedata.normalize("NFD", character)[0] if character < "\u0250" else character


def read(text: str) -> Iterator[Reading]:
    """Yield the readings of a text: as it is first, then what may be hidden in it."""
    plain = _narrow(to_plain(text))
    yield Reading(plain)
    if not plain.isascii() and (folded := plain.translate(_LOOKALIKES)) != plain:
        yield Reading(folded)
    if _LEET.search(plain.encode("utf-8", "replace")) is not None:
        yield Reading(plain.translate(_LEET_LETTERS))
    for blob in decode_blobs(text):
        yield Reading(_narrow(to_plain(blob)), decoded=True)
    latin = plain.encode("ascii", "ignore").decode("ascii")
    yield Reading(latin.translate(_ROT13), decoded=True)
    yield Reading(plain[::-1], decoded=True)


def _narrow(plain: str) -> str:
    lines = (" ".join(line.split()) for line in plain.splitlines())
    return "\n".join(filter(None, lines))


def decode_blobs(text: str) -> Iterator[str]:
    """Yield what base64 and hex in `text` say, where that is text."""
    if len(text) < _BLOB_CHARACTERS_MIN:
        return
    utf8, left = text.encode("utf-8", "replace"), BLOBS_MAX
    for pattern, decode in ((_HEX, _from_hex), (_BASE64, _from_base64)):
        for match in pattern.finditer(utf8):
            left -= 1
            if left < 0:
                return
            if (said := decode(match.group()[:BLOB_CHARACTERS_MAX])) is not None:
                yield said


def _from_base64(blob: bytes) -> str | None:
    body = blob.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    # A last letter that stands alone is no byte.
    body = body[: len(body) - (len(body) % 4 == 1)]
    try:
        return _as_text(base64.b64decode(body + b"=" * (-len(body) % 4)))
    except binascii.Error:
        return None


def _from_hex(blob: bytes) -> str | None:
    pairs = blob.translate(None, b" :")
    return _as_text(bytes.fromhex(pairs[: len(pairs) // 2 * 2].decode("ascii")))


def _as_text(raw: bytes) -> str | None:
    """Decode what is text, mostly; what was no text makes little that can be printed."""
    said = raw.decode("utf-8", "ignore")
    seen = sum(c.isprintable() or c.isspace() for c in said)
    whole = len(said.encode()) >= _PRINTABLE_SHARE * len(raw)
    return said if said and whole and seen >= _PRINTABLE_SHARE * len(said) else None
