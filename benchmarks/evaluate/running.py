"""Runs parts side by side in processes of their own, and keeps what each has found."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.evaluate.parts import BY_NAME, Part, Task, measure
from benchmarks.wire.environments import install

PROCESSES = 2
#: One thread for each process: numpy's own would fight over the cores.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(parts: Sequence[Part], task: Task, kept: Path, found: dict[str, Any]) -> list[str]:
    """Run the parts and put what they found into `found` and `kept`; returns what failed."""
    kept.mkdir(parents=True, exist_ok=True)
    # Before numpy starts in a process of its own.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    for name in sorted({part.environment for part in parts if part.environment}):
        install(name)
    failed: list[str] = []
    # What takes time is run alone, before the others.
    for together in ([p for p in parts if p.alone], [p for p in parts if not p.alone]):
        if together:
            failed += run_together(together, task, kept, found)
    return failed


def run_together(parts: Sequence[Part], task: Task, kept: Path, found: dict[str, Any]) -> list[str]:
    failed, left = [], len(parts)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        running: dict[Future[Any], Part] = {
            pool.submit(measure_timed, part.name, task): part for part in parts
        }
        for part in parts:
            tell(f"{part.name}: {part.question}")
        for done in as_completed(running):
            part, left = running[done], left - 1
            if (error := done.exception()) is not None:
                failed.append(part.name)
                tell(f"{part.name} failed: {error!r} ({left} left)")
                continue
            figures, seconds, worked = done.result()
            found[part.name] = figures
            (kept / f"{part.name}.json").write_text(json.dumps(figures), encoding="utf-8")
            tell(f"{part.name}: measured in {seconds:.0f} s, {worked:.0f} s of work ({left} left)")
    return failed


def measure_timed(name: str, task: Task) -> tuple[Any, float, float]:
    """Run a part in this process; returns its figures as JSON has them, seconds, and of work."""
    began, worked = time.monotonic(), time.process_time()
    figures = json.loads(json.dumps(measure(name, task)))
    return figures, time.monotonic() - began, time.process_time() - worked


def load(kept: Path) -> dict[str, Any]:
    """What earlier runs have found."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(kept.glob("*.json"))
        if file.stem in BY_NAME
    }


def tell(message: str) -> None:
    """Say what is going on; standard output is for the result alone."""
    print(message, file=sys.stderr, flush=True)
