"""Encode texts with sentence-transformers' `StaticEmbedding`, over the same vectors."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from benchmarks.wire.programs.texts import load_vectors, measure
from benchmarks.wire.task import read_task, use_one_core


def main() -> None:
    task = read_task()
    use_one_core()
    torch.set_num_threads(1)
    vectors, tokenizer = load_vectors(Path(task.options["vectors"]))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, vectors)], device="cpu")
    measure(task, 1_024, lambda texts: model.encode(texts, batch_size=1_024))


if __name__ == "__main__":
    main()
