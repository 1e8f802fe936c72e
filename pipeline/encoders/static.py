"""Static encoder: a text's vector is the sum of its tokens' vectors, at wire speed.

The tokens are BERT's (Devlin et al., "BERT", 2019): the text is cleaned, cut at
white space and punctuation, and every piece is cut again by WordPiece. No step looks
across a cut. So the vector of a *word* is the sum over its tokens wherever it stands,
and a cache of words gives what the tokenizer would give for the whole text.

A chunk of texts is one buffer of UTF-8. It is cut in numpy, the words are numbered by
Arrow's hash table, only the distinct ones pass through Python, and one product of a
sparse matrix (texts × words) with the cached vectors adds them up.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipeline.encoders.base import Vectors, normalize

#: The distilled vectors that come with Kizashi.
BUILT_IN = Path(__file__).parent / "static_minilm"
UNKNOWN = "[UNK]"
#: Characters of text that are worked on at a time.
BLOCK_CHARACTERS = 2**21
#: Characters of all the words in a cache, and of one word that stays when room is made.
MOST_CHARACTERS = 2**22
LONGEST_KEPT = 64

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int32]


class StaticEncoder:
    """Sums of token vectors, weighted beforehand; tokens that are unknown are left out.

    Exact: the tokens are those of `tokenizer` over the whole text, for any text that is
    valid UTF-8 (no lone surrogates), whatever stands in the cache.

    Not thread-safe. Memory: 4·d bytes for each token of the vocabulary and each of
    `capacity` cached words, and some 100 bytes more per word; 60 MB as it comes,
    and twice that with a chunk at work. When
    the cache is full, the half that was used least makes room.
    """

    def __init__(
        self, vectors: Vectors, vocabulary: Sequence[str], name: str, capacity: int = 2**16
    ) -> None:
        if len(vectors) != len(vocabulary) or UNKNOWN not in vocabulary:
            raise ValueError(f"one vector per token is needed, and {UNKNOWN} among the tokens")
        self.name = name
        self.tokenizer = build_tokenizer(vocabulary)
        known = vectors.astype(np.float32)
        known[vocabulary.index(UNKNOWN)] = 0
        self.token_vectors = known
        self.words = WordCache(self.tokenizer, known, capacity)

    @classmethod
    def load(cls, folder: Path = BUILT_IN) -> StaticEncoder:
        """Load what `distil` saved; the name carries a hash of it.

        Raises:
            OSError: a file is missing.
            ValueError: a file is not what `distil` writes.
        """
        digest = hashlib.sha256()
        for file in ("vectors.npy", "scale.npy", "vocabulary.txt"):
            digest.update((folder / file).read_bytes())
        steps = np.load(folder / "vectors.npy", allow_pickle=False)
        scale = np.load(folder / "scale.npy", allow_pickle=False)
        vocabulary = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]
        name = f"{folder.name}-{steps.shape[1]}-{digest.hexdigest()[:12]}"
        return cls(steps * scale.astype(np.float32), vocabulary, name)

    @property
    def dimensions(self) -> int:
        return int(self.token_vectors.shape[1])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return shape (n, d), rows of length 1; a zero row where a text has no known token."""
        return normalize(self.sum_tokens(texts))

    def encode_one(self, text: str) -> Vectors:
        """Return the vector of a short text, shape (d,), as `encode` does, in a tenth of the time.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
        """
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        vector: Vectors = normalize(self.token_vectors[tokens].sum(axis=0, keepdims=True))[0]
        return vector

    def sum_tokens(self, texts: Sequence[str]) -> Vectors:
        """Return the sum of each text's token vectors, shape (n, d).

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        sums = np.zeros((len(texts), self.dimensions), np.float32)
        for start, stop in blocks(texts):
            self._add(texts[start:stop], sums[start:stop])
        return sums

    def _add(self, texts: Sequence[str], sums: Vectors) -> None:
        """Add to each row of `sums` the vectors of the text's words."""
        column = pa.array(texts, pa.string())
        words, first = cut(column)
        self._add_words(words, first, sums)

    def _add_words(self, words: pa.StringArray, first: Indices, sums: Vectors) -> None:
        numbered = words.dictionary_encode()
        trimmed = pc.ascii_rtrim_whitespace(numbered.dictionary).dictionary_encode()
        distinct = trimmed.dictionary.to_pylist()
        if len(distinct) > self.words.most_at_once:
            half = len(words) // 2
            self._add_words(words[:half], np.minimum(first, half), sums)
            self._add_words(words[half:], np.maximum(first - half, 0), sums)
            return
        rows = self.words.rows(distinct)[np.asarray(trimmed.indices)]
        columns = rows[np.asarray(numbered.indices)]
        ones = np.ones(len(columns), np.float32)
        shape = (len(sums), len(self.words.vectors))
        sums += csr_array((ones, columns, first), shape=shape) @ self.words.vectors


class WordCache:
    """The summed vectors of the words seen lately.

    Capped at `capacity` words and, when a new chunk begins, `MOST_CHARACTERS`: a
    chunk of data without white space may be one long word.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: Vectors, capacity: int) -> None:
        if capacity < 2:
            raise ValueError("the cache must hold two words at least")
        self._tokenizer = tokenizer
        self._ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
        self._longest = longest_by_start(self._ids)
        self._tokens = tokens
        self._row: dict[str, int] = {}
        self._characters = 0
        self._uses = np.zeros(capacity, np.int64)
        #: Row i is the word of number i, shape (capacity, d).
        self.vectors: Vectors = np.zeros((capacity, tokens.shape[1]), np.float32)

    @property
    def size(self) -> int:
        return len(self._row)

    @property
    def most_at_once(self) -> int:
        """So many distinct words fit beside the half that is kept when room is made."""
        return len(self.vectors) // 2

    def rows(self, words: Sequence[str]) -> Indices:
        """Return the row of each word, shape (m,); words are distinct, `most_at_once` at most."""
        rows = self._find(words)
        missing = np.flatnonzero(rows < 0)
        full = len(self._row) + len(missing) > len(self.vectors)
        if len(missing) and (full or self._characters > MOST_CHARACTERS):
            self._make_room()
            rows = self._find(words)
            missing = np.flatnonzero(rows < 0)
        if len(missing):
            rows[missing] = self._learn([words[number] for number in missing.tolist()])
        self._uses[rows] += 1
        return rows

    def _find(self, words: Sequence[str]) -> Indices:
        """Return the row of each word, -1 where it is not in the cache."""
        return np.fromiter(map(self._row.get, words, repeat(-1)), np.int32, len(words))

    def _learn(self, words: list[str]) -> range:
        """Take in words that are not in the cache, and return their rows."""
        pieces = [self.pieces(word) for word in words]
        others = [word for word, found in zip(words, pieces, strict=True) if found is None]
        cut = self._tokenizer.encode_batch_fast(others, add_special_tokens=False)
        rest = (encoding.ids for encoding in cut)
        tokens = [next(rest) if found is None else found for found in pieces]
        rows = range(len(self._row), len(self._row) + len(words))
        self.vectors[rows.start : rows.stop] = sum_rows(self._tokens, tokens)
        self._row.update(zip(words, rows, strict=True))
        self._characters += sum(map(len, words))
        return rows

    def pieces(self, word: str) -> list[int] | None:
        """Do for a plain word what the tokenizer does, at a tenth of the price; else None."""
        if not _PLAIN.fullmatch(word):
            return None
        rest = word.lower() if word.isascii() else word.translate(_BARE_KANA).lower()
        found: list[int] = []
        while rest not in {"", "##"}:
            stop = self._longest.get(rest[:1] if not found else rest[:3], 0)
            while (token := self._ids.get(rest[:stop])) is None:
                stop -= 1
                if stop <= 0:
                    return []
            found.append(token)
            rest = "##" + rest[stop:]
        return found

    def _make_room(self) -> None:
        """Keep the most used half, without long words; halve what is known of its use."""
        words = list(self._row)
        short = np.flatnonzero(np.fromiter(map(len, words), np.int64) <= LONGEST_KEPT)
        order = np.argsort(-self._uses[short], kind="stable")
        kept = np.sort(short[order[: self.most_at_once]])
        self._row = {words[row]: new for new, row in enumerate(kept.tolist())}
        self._characters = sum(map(len, self._row))
        self.vectors[: len(kept)] = self.vectors[kept]
        uses, self._uses = self._uses, np.zeros_like(self._uses)
        self._uses[: len(kept)] = uses[kept] // 2


def build_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """Return BERT's uncased tokenizer over `vocabulary`; text is data, and "[CLS]" is five letters.

    No special token is registered: one that is would be found in the raw text.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut `texts` into ranges of about `BLOCK_CHARACTERS`; a longer text stands alone."""
    ends = np.cumsum([len(text) for text in texts])
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + BLOCK_CHARACTERS, side="right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def cut(column: pa.StringArray) -> tuple[pa.StringArray, Indices]:
    """Cut texts into words without copying them.

    Returns all words one after another, and per text the number of its first word,
    shape (n + 1,). Put together, the words are the texts again; white space stays at
    the end of its word, where the tokenizer drops it.
    """
    ends = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1)
    utf8 = np.frombuffer(column.buffers()[2] or b"", np.uint8)[: ends[-1]]
    starts = find_cuts(utf8)
    starts[ends] = True
    offsets = np.flatnonzero(starts).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), column.buffers()[2]]
    words = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    return words, np.searchsorted(offsets, ends).astype(np.int32)


def find_cuts(utf8: Bytes) -> npt.NDArray[np.bool_]:
    """Say before which bytes the tokenizer cuts for certain, shape (bytes + 1,).

    It cuts at more places than these. Those missed only make words longer; one too
    many would change the tokens. So control characters, which the tokenizer deletes
    and which therefore join what is around them, are no cuts here.
    """
    space = (utf8 == 0x20) | (utf8 == 0x0A) | (utf8 == 0x0D) | (utf8 == 0x09)
    # ASCII punctuation; what lies below a range wraps around to a large number.
    mark = (utf8 - 0x21 < 15) | (utf8 - 0x3A < 7) | (utf8 - 0x5B < 6) | (utf8 - 0x7B < 4)
    cuts = np.empty(len(utf8) + 1, np.bool_)
    cuts[0] = True
    cuts[1:] = space
    cuts[:-1] |= mark
    cuts[1:-1] |= mark[:-1] & ~space[1:]
    cut_around_wide(utf8, cuts)
    return cuts


def cut_around_wide(utf8: Bytes, cuts: npt.NDArray[np.bool_]) -> None:
    """Cut before and after ideographs (U+4E00–9FFF) and `_MARKS`, all three bytes long.

    The tokenizer sets each of them apart. Without this a Japanese sentence would be
    one word, new every time.
    """
    leads = np.flatnonzero(utf8 >= 0xE2)
    leads = leads[utf8[leads] < 0xF0]
    lead, second, third = utf8[leads], utf8[leads + 1], utf8[leads + 2]
    found = (lead - 0xE5 < 5) | ((lead == 0xE4) & (second >= 0xB8))
    for first, middle, last in _MARKS:
        found |= (lead == first) & (second == middle) & last[third]
    cuts[leads[found]] = True
    cuts[leads[found] + 3] = True


def longest_by_start(tokens: Iterable[str]) -> dict[str, int]:
    """Return the length of the longest token for every first character, "##" included."""
    longest: dict[str, int] = {}
    for token in tokens:
        start = token[:3] if token.startswith("##") else token[:1]
        longest[start] = max(longest.get(start, 0), len(token))
    return longest


def sum_rows(rows: Vectors, chosen: Sequence[Sequence[int]]) -> Vectors:
    """Return the sum of the chosen rows for each entry of `chosen`, shape (m, d)."""
    first = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum([len(each) for each in chosen], out=first[1:])
    columns = np.fromiter(chain.from_iterable(chosen), np.int32, first[-1])
    ones = np.ones(len(columns), np.float32)
    sums: Vectors = csr_array((ones, columns, first), shape=(len(chosen), len(rows))) @ rows
    return sums


def _by_bytes(characters: str) -> list[tuple[int, int, npt.NDArray[np.bool_]]]:
    """Group characters of three bytes: the first two, and a table of those that may follow."""
    tables: dict[bytes, npt.NDArray[np.bool_]] = {}
    for utf8 in map(str.encode, characters):
        tables.setdefault(utf8[:2], np.zeros(256, np.bool_))[utf8[2]] = True
    return [(start[0], start[1], table) for start, table in tables.items()]


#: Punctuation, and the white space of East Asia, that is frequent and never part of a word.
_MARKS = _by_bytes(
    "‐‑‒–—―‘’‚“”„†‡•…\u3000、。〃〈〉《》「」『』【】〔〕〜・！（），．：；？［］｛｝"
)
#: Letters, digits and kana: nothing in them is deleted or cut, and up to 100 make one word.
_PLAIN = re.compile(r"[0-9A-Za-zぁ-ゖァ-ヺーヽヾ]{1,100}")
#: The tokenizer drops the voicing marks of kana, as it drops accents.
_BARE_KANA = {
    number: unicodedata.normalize("NFD", chr(number))[0] for number in range(0x3041, 0x3100)
}
