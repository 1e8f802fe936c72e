"""Measure how answers are written, not what they say: one row of style features a text.

Layout (bullets, headings, bold, blank lines), punctuation, scripts, words, loops, the
opening and the ending. A model that is swapped in silence keeps the subject and
changes these. Nothing here knows a language except the openings and endings, which
are in English and Japanese.

A chunk is measured as bytes: the texts of a block are joined with newlines into one
UTF-8 buffer, so every line starts behind a newline and no pattern can reach into the
next text. Letters and spaces say nothing by themselves and are left out at once; of
what remains (a tenth of English) every character is put into a class by its own byte
and the next one, and the classes are counted per text.

Pure and total: any string gives finite numbers, and a text's row does not depend on
the texts beside it. Work is bounded: of a longer text only the first `HEAD_CHARS` and
the last `TAIL_CHARS` characters are looked at; its length is that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum, auto

import lz4.block
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

HEAD_CHARS = 6_144
TAIL_CHARS = 2_048
#: Texts and characters measured at a time: enough to spread numpy's overhead, few enough for the
#: cache.
BLOCK_TEXTS = 1_024
BLOCK_CHARS = 2**20
#: Repetition is looked for in the last part: an answer that loops loops until its end.
LOOP_BYTES = 2_048
#: Words are looked at in the first part only: the share of new ones falls as a text grows.
WORD_BYTES = 400
#: A closing offer stands in the last part.
OFFER_BYTES = 200

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Column = Ints | Floats | Bools
Counts = dict[str, Ints]


class Scale(StrEnum):
    """How a quantity becomes a column."""

    #: log(1 + x), for lengths and counts.
    LOG = "log"
    #: The root of a share, which evens out the noise of rare characters; in [0, 1].
    ROOT = "root"
    #: A share, or a yes or no, as it is; in [0, 1].
    SHARE = "share"

    @property
    def is_share(self) -> bool:
        return self is not Scale.LOG

    def undo(self, value: float) -> float:
        """Return the quantity that has this value in its column."""
        match self:
            case Scale.LOG:
                return math.expm1(value)
            case Scale.ROOT:
                return value * value
            case Scale.SHARE:
                return value


@dataclass(frozen=True)
class StyleFeature:
    """A column: its name, how a sentence puts the quantity, and its scale."""

    name: str
    phrase: str
    scale: Scale


STYLE_FEATURES: tuple[StyleFeature, ...] = (
    StyleFeature("length", "characters per answer", Scale.LOG),
    StyleFeature("lines", "lines per answer", Scale.LOG),
    StyleFeature("line length", "characters per line", Scale.LOG),
    StyleFeature("first line", "length of the first line", Scale.LOG),
    StyleFeature("last line", "length of the last line", Scale.LOG),
    StyleFeature("sentence length", "characters per sentence", Scale.LOG),
    StyleFeature("word length", "bytes per word", Scale.LOG),
    StyleFeature("long words", "share of long words", Scale.SHARE),
    StyleFeature("distinct words", "share of words that are new", Scale.SHARE),
    StyleFeature("compressed size", "share of the text left after compression", Scale.SHARE),
    StyleFeature("blank lines", "share of lines that are blank", Scale.SHARE),
    StyleFeature("indented lines", "indented lines per answer", Scale.LOG),
    StyleFeature("spaces at line ends", "lines that end in a space per answer", Scale.LOG),
    StyleFeature("colons at line ends", "lines that end in a colon per answer", Scale.LOG),
    StyleFeature("dash bullets", "bullets with a dash per answer", Scale.LOG),
    StyleFeature("other bullets", "bullets with a star or dot per answer", Scale.LOG),
    StyleFeature("numbered items", "numbered items per answer", Scale.LOG),
    StyleFeature("headings", "headings per answer", Scale.LOG),
    StyleFeature("code fences", "code fences per answer", Scale.LOG),
    StyleFeature("bold", "bold marks per answer", Scale.LOG),
    StyleFeature("bold lead-ins", "lines and items that open in bold per answer", Scale.LOG),
    StyleFeature("colons inside bold", "colons inside bold per answer", Scale.LOG),
    StyleFeature("capitals", "share of capitals", Scale.ROOT),
    StyleFeature("digits", "share of digits", Scale.ROOT),
    StyleFeature("commas", "share of commas", Scale.ROOT),
    StyleFeature("colons", "share of colons", Scale.ROOT),
    StyleFeature("semicolons", "share of semicolons", Scale.ROOT),
    StyleFeature("exclamation marks", "share of exclamation marks", Scale.ROOT),
    StyleFeature("question marks", "share of question marks", Scale.ROOT),
    StyleFeature("brackets", "share of brackets", Scale.ROOT),
    StyleFeature("quotation marks", "share of straight quotation marks", Scale.ROOT),
    StyleFeature("typographic marks", "share of curly quotes and ellipses", Scale.ROOT),
    StyleFeature("apostrophes", "share of apostrophes", Scale.ROOT),
    StyleFeature("hyphens", "share of hyphens within words", Scale.ROOT),
    StyleFeature("dashes", "share of long dashes", Scale.ROOT),
    StyleFeature("emoji", "share of emoji", Scale.ROOT),
    StyleFeature("first person", "share of “I”", Scale.ROOT),
    StyleFeature("kana", "share of kana", Scale.SHARE),
    StyleFeature("kanji", "share of kanji or hanzi", Scale.SHARE),
    StyleFeature("other scripts", "share of letters beyond Latin, kana and kanji", Scale.SHARE),
    StyleFeature("opens with space", "answers that open with white space", Scale.SHARE),
    StyleFeature("opens with assent", "answers that open with “Sure” or the like", Scale.SHARE),
    StyleFeature("opens with “Here”", "answers that open with “Here”", Scale.SHARE),
    StyleFeature("opens with “I”", "answers that open with “I” or “As a”", Scale.SHARE),
    StyleFeature("opens with apology", "answers that open with an apology", Scale.SHARE),
    StyleFeature("opens with layout", "answers that open with a list or heading", Scale.SHARE),
    StyleFeature("ends open", "answers that end without a closing mark", Scale.SHARE),
    StyleFeature("ends with exclamation", "answers that end with “!”", Scale.SHARE),
    StyleFeature("closing offer", "answers that close with an offer of help", Scale.SHARE),
)
#: All but words, repetition and offers, which cost most.
LAYOUT_FEATURES = tuple(
    feature
    for feature in STYLE_FEATURES
    if feature.name
    not in {"word length", "long words", "distinct words", "compressed size", "closing offer"}
)


def measure_style(texts: Sequence[str]) -> Floats32:
    """Return the style of n texts, shape (n, len(STYLE_FEATURES)), finite for any text."""
    if not texts:
        return np.empty((0, len(STYLE_FEATURES)), np.float32)
    tails: list[bytes] = []
    counts = [_count(_join(block), tails) for block in _blocks(texts)]
    quantities = _derive(_stack(counts) | {"offer": _find_offers(tails)})
    return _to_columns(quantities, STYLE_FEATURES)


def measure_layout(texts: Sequence[str]) -> Floats32:
    """Return the `LAYOUT_FEATURES` of n texts, a column each, at a third of the price."""
    if not texts:
        return np.empty((0, len(LAYOUT_FEATURES)), np.float32)
    counts = _stack([_count_layout(_join(block)) for block in _blocks(texts)])
    return _to_columns(_derive_layout(counts), LAYOUT_FEATURES)


def _to_columns(quantities: Mapping[str, Column], features: Sequence[StyleFeature]) -> Floats32:
    style = np.empty((len(features), len(quantities["length"])), np.float32)
    for column, feature in zip(style, features, strict=True):
        column[:] = quantities[feature.name]
        _rescale(column, feature.scale)
    return np.ascontiguousarray(style.T)


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut `texts` into blocks of `BLOCK_TEXTS` and about `BLOCK_CHARS` at most."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(np.minimum(sizes, HEAD_CHARS + TAIL_CHARS))
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + BLOCK_CHARS, "right"))
        stop = min(max(stop, start + 1), start + BLOCK_TEXTS)
        yield texts[start:stop]
        start = stop


def _stack(blocks: Sequence[Counts]) -> Counts:
    return {name: np.concatenate([b[name] for b in blocks], axis=-1) for name in blocks[0]}


def _count(block: _Block, tails: list[bytes]) -> Counts:
    """What has to be read from the bytes: whole numbers per text, shape (n,) or (classes, n).

    The last bytes of every text are added to `tails`.
    """
    tails += [part[-OFFER_BYTES:] for part in block.parts]
    return {
        **_count_layout(block),
        "bytes": block.end - block.newline - 1,
        **_count_words(block),
        "packed": _count_packed(block),
    }


def _count_layout(block: _Block) -> Counts:
    telling = _telling_positions(block.buffer)
    return {
        "length": block.length,
        "looked_at": block.looked_at,
        "classes": _count_classes(block, telling),
        **_count_lines(block, telling),
        **_read_opening(block),
        "ending": _read_ending(block),
    }


def _derive(counts: Counts) -> dict[str, Column]:
    """What is worth knowing of them, for all blocks at once: each step here has a fixed cost."""
    return {
        **_derive_layout(counts),
        **_derive_words(counts),
        "closing offer": counts["offer"],
    }


def _derive_layout(counts: Counts) -> dict[str, Column]:
    return {
        "length": counts["length"],
        **_derive_characters(counts),
        **_derive_lines(counts),
        **_derive_ends(counts),
    }


def _rescale(column: npt.NDArray[np.float32], scale: Scale) -> None:
    if scale is Scale.LOG:
        np.log1p(column, out=column)
        return
    # Compression makes a short text longer.
    np.minimum(column, 1.0, out=column)
    if scale is Scale.ROOT:
        np.sqrt(column, out=column)


# --- The block ----------------------------------------------------------------------

#: Newlines behind the last text, for patterns that look ahead.
_PADDING = b"\n" * 16


@dataclass(frozen=True)
class _Block:
    """n texts in one buffer, each behind a newline of its own; arrays of shape (n,)."""

    parts: list[bytes]
    buffer: Bytes
    #: Where a text's own newline stands, and where the text ends.
    newline: Ints
    end: Ints
    #: Characters of the whole text, and of what is looked at.
    length: Ints
    looked_at: Ints

    def __len__(self) -> int:
        return len(self.parts)

    def count(self, positions: Ints) -> Ints:
        """How many of the ascending positions lie in each text, its own newline included."""
        bounds = np.searchsorted(positions, self.newline)
        return np.diff(bounds, append=len(positions))


def _join(texts: Sequence[str]) -> _Block:
    length = np.fromiter(map(len, texts), np.int64, len(texts))
    most = HEAD_CHARS + TAIL_CHARS
    if length.max() > most:
        texts = [_shorten(text) if len(text) > most else text for text in texts]
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    sizes = np.fromiter(map(len, parts), np.int64, len(parts))
    end = np.cumsum(sizes + 1)
    joined = b"".join((b"\n", b"\n".join(parts), _PADDING))
    return _Block(
        parts=parts,
        buffer=np.frombuffer(joined, np.uint8),
        newline=end - sizes - 1,
        end=end,
        length=length,
        looked_at=np.where(length > most, most + 1, length),
    )


def _shorten(text: str) -> str:
    return f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def _per(amount: Ints, count: Ints) -> Floats:
    return amount / np.maximum(count, 1)


# --- Characters ---------------------------------------------------------------------


class _Class(IntEnum):
    OTHER = 0
    UPPER = auto()
    #: “I” by itself; within a word it is UPPER.
    ALONE = auto()
    DIGIT = auto()
    COMMA = auto()
    STOP = auto()
    COLON = auto()
    LINE_COLON = auto()
    BOLD_COLON = auto()
    SEMICOLON = auto()
    EXCLAMATION = auto()
    QUESTION = auto()
    BRACKET = auto()
    QUOTE = auto()
    TYPOGRAPHIC = auto()
    APOSTROPHE = auto()
    HYPHEN = auto()
    BOLD = auto()
    DASH = auto()
    EMOJI = auto()
    KANA = auto()
    KANJI = auto()
    SCRIPT = auto()
    #: The third byte decides: general and Japanese punctuation, full-width forms.
    E280 = auto()
    E380 = auto()
    EFBC = auto()


_LOWER = b"abcdefghijklmnopqrstuvwxyz"
_UPPER = _LOWER.upper()
_DIGITS = b"0123456789"

#: By the first byte of a character.
_ONE: dict[int, _Class] = {
    **dict.fromkeys(_UPPER, _Class.UPPER),
    **dict.fromkeys(_DIGITS, _Class.DIGIT),
    **dict.fromkeys(b"([{", _Class.BRACKET),
    ord(","): _Class.COMMA,
    ord(":"): _Class.COLON,
    ord(";"): _Class.SEMICOLON,
    ord("!"): _Class.EXCLAMATION,
    ord("?"): _Class.QUESTION,
    ord('"'): _Class.QUOTE,
    **dict.fromkeys(range(0xCD, 0xE2), _Class.SCRIPT),
    **dict.fromkeys(range(0xE4, 0xEA), _Class.KANJI),
    **dict.fromkeys(range(0xEA, 0xEE), _Class.SCRIPT),
}
#: By the first byte and the byte behind it, which may be that of the next character.
_TWO: dict[tuple[int, int], _Class] = {
    **{(ord("."), b): _Class.STOP for b in b" \n\"')*"},
    (ord(":"), ord("\n")): _Class.LINE_COLON,
    (ord(":"), ord("*")): _Class.BOLD_COLON,
    (ord("*"), ord("*")): _Class.BOLD,
    **{(ord("'"), b): _Class.APOSTROPHE for b in _LOWER},
    **{(ord("-"), b): _Class.HYPHEN for b in _LOWER},
    **{(ord("I"), b): _Class.ALONE for b in b" '"},
    **{(0xE3, b): _Class.KANA for b in (0x81, 0x82, 0x83)},
    **{(0xE3, b): _Class.KANJI for b in range(0x90, 0xC0)},
    **{(0xE2, b): _Class.EMOJI for b in range(0x98, 0x9F)},
    (0xF0, 0x9F): _Class.EMOJI,
    (0xE2, 0x80): _Class.E280,
    (0xE3, 0x80): _Class.E380,
    (0xEF, 0xBC): _Class.EFBC,
}
_THREE: dict[str, _Class] = {
    **dict.fromkeys("–—―", _Class.DASH),
    **dict.fromkeys("‘’‚“”„…", _Class.TYPOGRAPHIC),
    **dict.fromkeys("「『【（", _Class.BRACKET),
    **dict.fromkeys("、，", _Class.COMMA),
    "。": _Class.STOP,
    "：": _Class.COLON,
    "；": _Class.SEMICOLON,
    "！": _Class.EXCLAMATION,
    "？": _Class.QUESTION,
    **dict.fromkeys("０１２３４５６７８９", _Class.DIGIT),
}
_SENTENCE_ENDS = [_Class.STOP, _Class.EXCLAMATION, _Class.QUESTION]
_COUNTED = {
    "bold": _Class.BOLD,
    "colons inside bold": _Class.BOLD_COLON,
    "colons at line ends": _Class.LINE_COLON,
}
_SHARES = {
    "capitals": [_Class.UPPER, _Class.ALONE],
    "digits": [_Class.DIGIT],
    "commas": [_Class.COMMA],
    "colons": [_Class.COLON, _Class.LINE_COLON, _Class.BOLD_COLON],
    "semicolons": [_Class.SEMICOLON],
    "exclamation marks": [_Class.EXCLAMATION],
    "question marks": [_Class.QUESTION],
    "brackets": [_Class.BRACKET],
    "quotation marks": [_Class.QUOTE],
    "typographic marks": [_Class.TYPOGRAPHIC],
    "apostrophes": [_Class.APOSTROPHE],
    "hyphens": [_Class.HYPHEN],
    "dashes": [_Class.DASH],
    "emoji": [_Class.EMOJI],
    "first person": [_Class.ALONE],
    "kana": [_Class.KANA],
    "kanji": [_Class.KANJI],
    "other scripts": [_Class.SCRIPT],
}


def _byte_set(members: bytes) -> Bools:
    table = np.zeros(256, np.bool_)
    table[list(members)] = True
    return table


def _pair_table(one: Mapping[int, IntEnum], two: Mapping[tuple[int, int], IntEnum]) -> Bytes:
    """Class by two bytes, the first one the high one."""
    table = np.zeros((256, 256), np.uint8)
    for first, member in one.items():
        table[first] = member
    for pair, member in two.items():
        table[pair] = member
    return table.ravel()


def _third_table() -> Bytes:
    """Class by `_Class.E280` and its like (the high byte) and the third byte."""
    table = np.zeros((256, 256), np.uint8)
    for character, member in _THREE.items():
        first, second, third = character.encode()
        table[_TWO[first, second], third] = member
    return table.ravel()


_PAIRS = _pair_table(_ONE, _TWO)
_THIRDS = _third_table()
_IS_ALNUM = _byte_set(_LOWER + _UPPER + _DIGITS)


def _telling_positions(buffer: Bytes) -> Ints:
    """Where a character starts that is neither a small letter nor a space."""
    telling = (buffer - np.uint8(ord("a"))) > 25
    telling &= buffer != ord(" ")
    telling &= buffer.view(np.int8) >= -64  # the bytes within a character are 0b10xxxxxx
    telling[-len(_PADDING) :] = False
    return np.flatnonzero(telling)


def _pair(high: Bytes, low: Bytes) -> npt.NDArray[np.uint16]:
    pair: npt.NDArray[np.uint16] = high.astype(np.uint16) << np.uint16(8) | low
    return pair


def _count_classes(block: _Block, positions: Ints) -> Ints:
    buffer = block.buffer
    classes = _PAIRS[_pair(buffer[positions], buffer[positions + 1])]
    undecided = np.flatnonzero(classes >= _Class.E280)
    thirds = buffer[positions[undecided] + 2]
    classes[undecided] = _THIRDS[_pair(classes[undecided], thirds)]
    alone = np.flatnonzero(classes == _Class.ALONE)
    classes[alone[_IS_ALNUM[buffer[positions[alone] - 1]]]] = _Class.UPPER
    text = np.repeat(np.arange(len(block)), block.count(positions))
    return _histogram(text, classes, len(block), len(_Class))


def _derive_characters(counts: Counts) -> dict[str, Column]:
    classes, looked_at = counts["classes"], counts["looked_at"]
    shares = {
        name: _per(classes[members].sum(axis=0), looked_at) for name, members in _SHARES.items()
    }
    return {
        "sentence length": _per(looked_at, classes[_SENTENCE_ENDS].sum(axis=0)),
        **{name: classes[member] for name, member in _COUNTED.items()},
        **shares,
    }


def _histogram(text: Ints, classes: Bytes, texts: int, size: int) -> Ints:
    """How often each class occurs in each text, shape (size, texts)."""
    cells = np.bincount(text * size + classes, minlength=texts * size)
    return cells.reshape(texts, size).T


# --- Lines --------------------------------------------------------------------------

_EIGHT_SPACES = np.uint64(int.from_bytes(b" " * 8, "little"))


class _Line(IntEnum):
    PLAIN = 0
    BLANK = auto()
    DASH = auto()
    STAR = auto()
    DOT = auto()
    NUMBER = auto()
    NUMBER_OF_TWO = auto()
    HEADING = auto()
    FENCE = auto()
    #: The third byte decides: a number of two digits, a dot (• or ・).
    NUMBER_MAYBE = auto()
    DOT_MAYBE = auto()


_LINES = _pair_table(
    {ord("\n"): _Line.BLANK, ord("#"): _Line.HEADING},
    {
        (ord("-"), ord(" ")): _Line.DASH,
        (ord("*"), ord(" ")): _Line.STAR,
        (ord("`"), ord("`")): _Line.FENCE,
        **{(digit, b): _Line.NUMBER for digit in _DIGITS for b in b".)"},
        **{(digit, b): _Line.NUMBER_MAYBE for digit in _DIGITS for b in _DIGITS},
        (0xE2, 0x80): _Line.DOT_MAYBE,
        (0xE3, 0x83): _Line.DOT_MAYBE,
    },
)
_THIRD_LINES = _pair_table(
    {},
    {
        **{(_Line.NUMBER_MAYBE, b): _Line.NUMBER_OF_TWO for b in b".)"},
        **{(_Line.DOT_MAYBE, c.encode()[2]): _Line.DOT for c in "•・"},
    },
)
#: Bytes of a list item's mark.
_MARK_BYTES = np.zeros(len(_Line), np.int64)
_MARK_BYTES[[_Line.DASH, _Line.STAR, _Line.DOT]] = 1, 1, 3
_MARK_BYTES[[_Line.NUMBER, _Line.NUMBER_OF_TWO]] = 2, 3
_LINE_COUNTS = {
    "dash bullets": [_Line.DASH],
    "other bullets": [_Line.STAR, _Line.DOT],
    "numbered items": [_Line.NUMBER, _Line.NUMBER_OF_TWO],
    "headings": [_Line.HEADING],
    "code fences": [_Line.FENCE],
}


def _windows(buffer: Bytes, positions: Ints) -> npt.NDArray[np.uint64]:
    """The eight bytes from each position on, the first one the lowest."""
    every = np.ndarray((len(buffer) - 7,), "<u8", buffer, strides=(1,))
    return every[positions].astype(np.uint64, copy=False)


def _count_spaces(windows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """How many spaces stand first, at most eight: the zero bytes below the lowest bit set."""
    rest = windows ^ _EIGHT_SPACES
    below = (rest & (~rest + np.uint64(1))) - np.uint64(1)
    return np.bitwise_count(below) >> np.uint8(3)


def _count_lines(block: _Block, positions: Ints) -> Counts:
    buffer = block.buffer
    newline = positions[buffer[positions] == ord("\n")]
    end = np.append(newline[1:], block.end[-1])
    start = newline + 1 + _count_spaces(_windows(buffer, newline + 1))
    kinds = _LINES[_pair(buffer[start], buffer[start + 1])]
    maybe = np.flatnonzero(kinds >= _Line.NUMBER_MAYBE)
    kinds[maybe] = _THIRD_LINES[_pair(kinds[maybe], buffer[start[maybe] + 2])]
    body = start + _MARK_BYTES[kinds]
    body += buffer[body] == ord(" ")
    written = kinds != _Line.BLANK
    text = np.repeat(np.arange(len(block)), block.count(newline))

    def count(which: Bools) -> Ints:
        return np.bincount(text[which], minlength=len(block))

    lines = count(written)
    first, last = _ends_of_runs((end - newline - 1)[written], lines)
    return {
        "lines": lines,
        "first_line": first,
        "last_line": last,
        "kinds": _histogram(text, kinds, len(block), len(_Line)),
        "indented": count(written & (start > newline + 1)),
        "spaced": count(buffer[end - 1] == ord(" ")),
        "bold_lines": count((buffer[body] == ord("*")) & (buffer[body + 1] == ord("*"))),
    }


def _derive_lines(counts: Counts) -> dict[str, Column]:
    kinds, lines = counts["kinds"], counts["lines"]
    return {
        "lines": lines,
        "line length": _per(counts["looked_at"], lines),
        "first line": counts["first_line"],
        "last line": counts["last_line"],
        "blank lines": _per(kinds[_Line.BLANK], kinds.sum(axis=0)),
        "indented lines": counts["indented"],
        "spaces at line ends": counts["spaced"],
        "bold lead-ins": counts["bold_lines"],
        **{name: kinds[members].sum(axis=0) for name, members in _LINE_COUNTS.items()},
    }


def _ends_of_runs(values: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """The first and the last value of each run; 0 and 0 of an empty run."""
    values = np.append(values, 0)
    stop = np.cumsum(sizes)
    empty = sizes == 0
    return (
        np.where(empty, 0, values[stop - sizes]),
        np.where(empty, 0, values[stop - 1]),
    )


# --- Words --------------------------------------------------------------------------

#: Bytes of a long word.
_LONG = 8
#: Cells that the words of a text are hashed into; seventy words lose two or three.
_CELLS = 1 << 10


def _count_words(block: _Block) -> Counts:
    """Words stand between white space and reach up to one byte before the next word.

    Two are taken for the same if their length and three of their bytes hash alike.
    """
    heads = [part[:WORD_BYTES] for part in block.parts]
    buffer = np.frombuffer(b"".join((b"\n", b"\n".join(heads), b"\n")), np.uint8)
    head_bytes = np.fromiter(map(len, heads), np.int64, len(heads))
    end = np.cumsum(head_bytes + 1)
    white = _is_white(buffer)
    begin = np.flatnonzero(white[:-1] > white[1:]) + 1
    stop = np.searchsorted(begin, end)
    words = np.diff(stop, prepend=0)
    text = np.repeat(np.arange(len(heads)), words)
    size = np.diff(begin, append=len(buffer)) - 1
    some = words > 0
    size[stop[some] - 1] = end[some] - begin[stop[some] - 1]  # the last one ends with its text
    return {
        "head_bytes": head_bytes,
        "words": words,
        "long": np.bincount(text[size >= _LONG], minlength=len(heads)),
        "distinct": _count_distinct(buffer, begin, size, text, len(heads)),
    }


def _count_distinct(buffer: Bytes, begin: Ints, size: Ints, text: Ints, texts: int) -> Ints:
    mixed = buffer[begin].astype(np.uint16)
    for more in (buffer[begin + (size >> 1)], buffer[begin + size - 1], size.astype(np.uint16)):
        mixed *= np.uint16(31)
        mixed += more
    cells = text * _CELLS
    cells += mixed & np.uint16(_CELLS - 1)
    seen = np.zeros(texts * _CELLS, np.uint8)
    seen[cells] = 1
    # Eight cells are added at a time: no byte of the sum can be more than _CELLS / 8.
    lanes: npt.NDArray[np.uint64] = seen.view(np.uint64).reshape(texts, -1).sum(axis=1)
    distinct: Ints = lanes.view(np.uint8).reshape(texts, 8).sum(axis=1, dtype=np.int64)
    return distinct


def _count_packed(block: _Block) -> Ints:
    """Bytes of the last part after compression."""
    tails = [part[-LOOP_BYTES:] for part in block.parts]
    # Mode and acceleration favour speed: a loop is found at any setting.
    return np.array([len(lz4.block.compress(tail, "fast", False, 8)) for tail in tails])


def _derive_words(counts: Counts) -> dict[str, Column]:
    words = counts["words"]
    return {
        "word length": _per(counts["head_bytes"], words),
        "long words": _per(counts["long"], words),
        "distinct words": _per(counts["distinct"], words),
        "compressed size": _per(counts["packed"], np.minimum(counts["bytes"], LOOP_BYTES)),
    }


# --- The opening and the ending -----------------------------------------------------

#: Of each, at most the first eight bytes are compared.
_OPENINGS: dict[str, tuple[str, ...]] = {
    "opens with assent": (
        *("Sure", "Certainly", "Of course", "Absolutely", "Great", "Yes"),
        *("はい", "もちろん", "承知", "かしこまり", "了解"),
    ),
    "opens with “Here”": ("Here", "Below", "以下"),
    "opens with “I”": ("I ", "I'", "As a", "私"),
    "opens with apology": (
        *("I'm sorry", "I’m sorry", "I am sorry", "Sorry", "I apologize", "Unfortunately"),
        *("申し訳", "すみません", "ごめん", "残念"),
    ),
    "opens with layout": ("#", "- ", "* ", "**", "1.", "|", "```", "【", "・"),
}
_OFFERS = (
    *("let me know", "feel free", "hope th", "happy to help", "ould you like"),
    *("お気軽に", "幸いです"),
)
#: RE2 takes a pattern for bytes as characters of Latin-1.
_OFFER = "|".join(_OFFERS)
_CLOSING_MARKS = ".!?:;)]}\"'`*|>。！？」』）】”’…"


#: How far white space is followed at the end of a text.
_MAX_TRAILING = 8


def _is_white(values: Bytes) -> Bools:
    white: Bools = (values == ord(" ")) | (values == ord("\n"))
    return white


def _read_opening(block: _Block) -> Counts:
    """The first byte, and the first eight behind at most eight spaces."""
    first = block.newline + 1
    start = first + _count_spaces(_windows(block.buffer, first))
    return {
        "first": np.where(block.end > first, block.buffer[first], 0).astype(np.int64),
        "opening": _windows(block.buffer, start).view(np.int64),
    }


def _read_ending(block: _Block) -> Ints:
    """The last character that is not white, as `_is_one_of` wants it; −1 if there is none.

    Of a character beyond ASCII the last three bytes are taken.
    """
    last = block.end - 1
    for _ in range(_MAX_TRAILING):
        trailing = _is_white(block.buffer[last]) & (last > block.newline)
        if not trailing.any():
            break
        last = last - trailing
    one, two, three = (block.buffer[last - back].astype(np.int64) for back in range(3))
    code = np.where(one < 0x80, one, three << 16 | two << 8 | one)
    return np.where(last > block.newline, code, -1)


def _derive_ends(counts: Counts) -> dict[str, Column]:
    opening, ending = counts["opening"].view(np.uint64), counts["ending"]
    return {
        "opens with space": (counts["first"] == ord(" ")) | (counts["first"] == ord("\n")),
        **{name: _opens_with(opening, phrases) for name, phrases in _OPENINGS.items()},
        "ends open": (ending >= 0) & ~_is_one_of(ending, _CLOSING_MARKS),
        "ends with exclamation": _is_one_of(ending, "!！"),
    }


def _opens_with(opening: npt.NDArray[np.uint64], phrases: Sequence[str]) -> Bools:
    found: Bools = np.zeros(len(opening), np.bool_)
    for phrase in phrases:
        raw = phrase.encode()[:8]
        mask = np.uint64((1 << 8 * len(raw)) - 1)
        found |= (opening & mask) == np.uint64(int.from_bytes(raw, "little"))
    return found


def _is_one_of(codes: Ints, characters: str) -> Bools:
    found: Bools = np.isin(codes, [int.from_bytes(c.encode(), "big") for c in characters])
    return found


def _find_offers(tails: Sequence[bytes]) -> Ints:
    """1 for a text with an offer in its last bytes, else 0."""
    column = pa.array(tails, pa.binary())
    found: Bools = pc.match_substring_regex(column, _OFFER).to_numpy(zero_copy_only=False)
    return found.astype(np.int64)
