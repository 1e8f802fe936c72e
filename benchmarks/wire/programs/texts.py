"""What every encoding program shares: the texts, the vectors, and how it is measured.

Options: ``texts`` (how many), ``data`` (a file of prose), ``vectors`` (a folder as
`pipeline.encoders` keeps it), ``save`` (where the first vectors are put, to be compared).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from benchmarks.wire.events import cut_texts, read_prose
from benchmarks.wire.task import Meter, Task

SAVED = 1_024
_UNKNOWN = "[UNK]"


def measure(task: Task, batch: int, encode: Callable[[list[str]], np.ndarray]) -> NoReturn:
    """Encode all texts in batches, save the first vectors, and report."""
    data = task.options.get("data")
    count = task.options["texts"]
    texts = cut_texts(read_prose(Path(data) if data else None), count)
    if save := task.options.get("save"):
        saved = np.vstack([encode(part) for part in _cut(texts[:SAVED], batch)])
        np.save(save, saved.astype(np.float32))
    meter = Meter(count, task.seconds)
    for part in _cut(texts, batch):
        encode(part)
        if meter.add(len(part)):
            meter.finish()
    raise AssertionError("the texts are as many as were asked for")


def _cut(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[i : i + size] for i in range(0, len(texts), size))


def load_vectors(folder: Path) -> tuple[np.ndarray, Tokenizer]:
    """Return our token vectors, float32 of shape (tokens, d), and BERT's tokenizer over them."""
    steps, scale = np.load(folder / "vectors.npy"), np.load(folder / "scale.npy")
    tokens = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]
    vectors = steps * scale.astype(np.float32)
    # Our encoder leaves unknown tokens out.
    vectors[tokens.index(_UNKNOWN)] = 0
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=_UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return vectors, tokenizer
