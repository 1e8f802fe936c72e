"""Encode texts with model2vec's `encode`, over the same vectors."""

from __future__ import annotations

from pathlib import Path

from model2vec import StaticModel

from benchmarks.wire.programs.texts import load_vectors, measure
from benchmarks.wire.task import read_task, use_one_core


def main() -> None:
    task = read_task()
    use_one_core()
    vectors, tokenizer = load_vectors(Path(task.options["vectors"]))
    model = StaticModel(vectors, tokenizer, normalize=True)
    # By default it looks at 512 tokens and no further.
    measure(task, 1_024, lambda texts: model.encode(texts, max_length=None))


if __name__ == "__main__":
    main()
