"""Encode texts with our static encoder."""

from __future__ import annotations

from pathlib import Path

from benchmarks.wire.programs.texts import measure
from benchmarks.wire.task import read_task, use_one_core
from pipeline.encoders.static import StaticEncoder


def main() -> None:
    task = read_task()
    use_one_core()
    encoder = StaticEncoder.load(Path(task.options["vectors"]))
    measure(task, 1_024, encoder.encode)


if __name__ == "__main__":
    main()
