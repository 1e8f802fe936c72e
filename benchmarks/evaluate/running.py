"""Runs parts side by side in processes of their own, and keeps what each has found."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.evaluate.parts import BY_NAME, Part, Task
from benchmarks.wire.environments import install

#: One thread for each process: numpy's own would fight over the cores.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Folder of the pieces of a part that is not whole yet.
PIECES = "pieces"


@dataclass
class Runner:
    """Measures in so many processes; what a part found comes into `found` and the folder `kept`.

    With `resume`, pieces count that an earlier run has measured.
    """

    task: Task
    kept: Path
    jobs: int
    resume: bool = False
    found: dict[str, Any] = field(default_factory=dict)

    def run(self, parts: Sequence[Part]) -> list[str]:
        """Run the parts; returns those that failed."""
        (self.kept / PIECES).mkdir(parents=True, exist_ok=True)
        if not self.resume:
            for piece in (self.kept / PIECES).glob("*.json"):
                piece.unlink()
        # Before numpy starts in a process of its own.
        os.environ.update(dict.fromkeys(THREADS, "1"))
        for name in sorted({part.environment for part in parts if part.environment}):
            install(name)
        failed: list[str] = []
        # What takes time is run alone, before the others.
        for together in ([p for p in parts if p.alone], [p for p in parts if not p.alone]):
            if together:
                failed += self._run_together(together)
        return failed

    def _run_together(self, parts: Sequence[Part]) -> list[str]:
        failed: set[str] = set()
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            running: dict[Future[Any], tuple[Part, int]] = {}
            for part in parts:
                tell(f"{part.name}: {part.question}")
                for piece in self._missing(part):
                    running[pool.submit(measure_timed, part.name, self.task, piece)] = part, piece
                self._join(part)
            for at, done in enumerate(as_completed(running), 1):
                part, piece = running[done]
                left = f"({len(running) - at} left)"
                if (error := done.exception()) is not None:
                    failed.add(part.name)
                    tell(f"{part.name} failed: {error!r} {left}")
                    continue
                figures, seconds, worked = done.result()
                write(self._file(part, piece), figures)
                self._join(part)
                tell(f"{part.name}: {seconds:.0f} s, {worked:.0f} s of work {left}")
        return sorted(failed)

    def _file(self, part: Part, piece: int) -> Path:
        return self.kept / PIECES / f"{part.name}-{piece}.json"

    def _missing(self, part: Part) -> list[int]:
        """The pieces that are to be measured."""
        pieces = range(part.count_pieces(self.task))
        return [piece for piece in pieces if not self._file(part, piece).is_file()]

    def _join(self, part: Part) -> None:
        """Once all its pieces are there, they are the part."""
        files = [self._file(part, piece) for piece in range(part.count_pieces(self.task))]
        if all(file.is_file() for file in files):
            self.found[part.name] = part.join([read(file) for file in files])
            write(self.kept / f"{part.name}.json", self.found[part.name])
            for file in files:
                file.unlink()


def measure_timed(name: str, task: Task, piece: int) -> tuple[Any, float, float]:
    """Run a piece in this process; returns its figures as JSON has them, seconds, and of work."""
    began, worked = time.monotonic(), time.process_time()
    figures = json.loads(json.dumps(BY_NAME[name].measure_piece(task, piece)))
    return figures, time.monotonic() - began, time.process_time() - worked


def load(kept: Path) -> dict[str, Any]:
    """What earlier runs have found."""
    return {file.stem: read(file) for file in sorted(kept.glob("*.json")) if file.stem in BY_NAME}


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, figures: Any) -> None:
    """All of it or nothing, for a run may be ended at any time."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(figures), encoding="utf-8")
    half.replace(file)


def tell(message: str) -> None:
    """Say what is going on; standard output is for the result alone."""
    print(message, file=sys.stderr, flush=True)
