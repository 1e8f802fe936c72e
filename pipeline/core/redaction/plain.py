"""A text as bytes, one for each character, so that places in the one are places in the other.

Full-width forms, the digits of other scripts, dashes and spaces become their ASCII
likenesses; what has none becomes ``?``. Patterns are then written once, in ASCII.
"""

from __future__ import annotations

_LAST_OF_BMP = 0x10000
_SURROGATES = range(0xD800, 0xE000)
_FULL_WIDTH = range(0xFF01, 0xFF5F)
_FULL_WIDTH_OFFSET = 0xFEE0
#: Mathematical digits: five alphabets of ten.
_MATHEMATICAL_DIGITS = range(0x1D7CE, 0x1D800)
#: Hyphens, dashes, minus signs, and the prolonged sound mark, which people type for a dash.
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u30fc\uff70\u2043\ufe63"
#: Spaces, and what shows nothing: within a number both are separators.
_SPACES = (
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u202f\u205f\u3000\u200b\u200c\u200d\u2060\ufeff\xad"
)


def _likenesses() -> dict[int, str]:
    table = {
        code: str(int(chr(code)))
        for code in range(0x80, _LAST_OF_BMP)
        if code not in _SURROGATES and chr(code).isdecimal()
    }
    table |= {code: str((code - _MATHEMATICAL_DIGITS[0]) % 10) for code in _MATHEMATICAL_DIGITS}
    table |= {code: chr(code - _FULL_WIDTH_OFFSET) for code in _FULL_WIDTH}
    table |= dict.fromkeys(map(ord, _DASHES), "-")
    return table | dict.fromkeys(map(ord, _SPACES), " ")


_LIKENESSES = _likenesses()


def to_alike(text: str) -> str:
    """Return as many characters, each with a likeness replaced by it."""
    return text if text.isascii() else text.translate(_LIKENESSES)


def to_bytes(alike: str) -> bytes:
    """Return as many ASCII bytes as `alike` has characters."""
    return alike.encode("ascii", "replace")
