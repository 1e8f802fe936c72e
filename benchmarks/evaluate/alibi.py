"""alibi-detect's online MMD on the same swaps: where its environment is there, see `--alibi`.

Its licence (Business Source) does not allow production, and it brings PyTorch: so it is installed
for those alone who ask for it. It is given our residuals, the reference's as well, and asked for
the run length of its documentation's scale; it takes minutes to configure one stream, so three of
the nine swaps must do. Ours stands at the threshold that promises a million.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.evaluate.answers import draw_run
from benchmarks.swaps import ENGLISH, QUIET, THRESHOLD, WATCHED, English, Stream, split_all
from benchmarks.wire.environments import ROOT, python_of
from detectors.shift import ShiftDetector, ShiftDetectorConfig

Floats = npt.NDArray[np.float64]

ENVIRONMENT = "alibi"
SWAPS = ENGLISH[::3]
ASKED, WINDOW = 2_000, 50
#: Its documentation asks for ten times the run length.
BOOTSTRAPS = 20_000
RUNS = 10
SPEED_ROWS = 5_000


def measure(english: English) -> dict[str, Any]:
    streams = split_all(english.corpus, SWAPS, 1, english.fit)
    p, rng = english.config.dimensions, np.random.default_rng(8)
    runs = [[draw_run(stream, True, rng) for _ in range(RUNS)] for stream in streams]
    arrays: dict[str, Floats] = {}
    for at, stream in enumerate(streams):
        reference, null = draw_run(stream, False, rng)
        arrays[f"reference_{at}"], arrays[f"null_{at}"] = reference[:, :p], null[:, :p]
        arrays[f"swaps_{at}"] = np.stack([values[:, :p] for _, values in runs[at]])
    theirs = run_program(arrays, len(streams))
    delays = [delays_of(each["firsts"]) for each in theirs]
    ours = [
        delays_of([find_ours(english.config, stream, values) for _, values in some])
        for stream, some in zip(streams, runs, strict=True)
    ]
    return {
        "asked": ASKED,
        "window": WINDOW,
        "reference": len(arrays["reference_0"]),
        "tried": len(streams),
        "run_length": float(np.mean([each["run_length"] for each in theirs])),
        "configure_s": float(np.mean([each["configure_s"] for each in theirs])),
        "us": float(np.mean([each["us"] for each in theirs])),
        "median_delay": median_of(delays),
        "found": count_found(delays),
        "ours_run_length": THRESHOLD,
        "ours_us": microseconds(english.config),
        "ours_delay": median_of(ours),
        "ours_found": count_found(ours),
    }


def run_program(arrays: dict[str, Floats], streams: int) -> list[dict[str, Any]]:
    options = {"streams": streams, "ert": ASKED, "window": WINDOW, "bootstraps": BOOTSTRAPS}
    with tempfile.TemporaryDirectory(prefix="kizashi-alibi-") as directory:
        file = Path(directory) / "streams.npz"
        np.savez(file, **arrays)  # type: ignore[arg-type]
        command = [str(python_of(ENVIRONMENT)), "-m", "benchmarks.evaluate.alibi_program"]
        ended = subprocess.run(  # noqa: S603 - our own arguments
            [*command, str(file), json.dumps(options)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    found: list[dict[str, Any]] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def delays_of(firsts: list[int | None]) -> Floats:
    """Answers from the swap to the first alarm; runs that had one before it are left out."""
    delays = np.array([math.inf if first is None else first - QUIET for first in firsts])
    return delays[delays > 0]


def find_ours(config: ShiftDetectorConfig, stream: Stream, values: Floats) -> int | None:
    """Answers until our first alarm, judged sixteen at a time as in a bank."""
    detector, row, batch = ShiftDetector(config, 1), np.array([0]), 16
    for at in range(0, len(values) - batch + 1, batch):
        sums, total = values[at : at + batch].sum(axis=0)[None, :], np.array([batch])
        known, weight = np.array([stream.known]), np.array([float(batch)])
        evidence = detector.update(row, sums, total, known, weight, row + at)
        if evidence[0] >= math.log(THRESHOLD):
            return at + batch
    return None


def microseconds(config: ShiftDetectorConfig) -> float:
    """Processor time for an answer of ours, sixteen at a time, many monitors at once."""
    rng, rows, batch = np.random.default_rng(1), np.arange(SPEED_ROWS), 16
    detector, took = ShiftDetector(config, SPEED_ROWS), []
    total, weight = np.full(SPEED_ROWS, batch), np.full(SPEED_ROWS, float(batch))
    for at in range(8):
        sums = rng.normal(0, math.sqrt(batch), (SPEED_ROWS, config.width))
        began = time.process_time()
        detector.update(rows, sums, total, 0 * rows + 250, weight, 0 * rows + at)
        took.append(time.process_time() - began)
    return float(np.median(took)) / SPEED_ROWS / batch * 1e6


def median_of(delays: list[Floats]) -> float | None:
    medians = [
        np.quantile(each, 0.5, method="higher") if len(each) else math.inf for each in delays
    ]
    median = float(np.median(medians))
    return median if math.isfinite(median) else None


def count_found(delays: list[Floats]) -> int:
    return sum(bool(len(each)) and bool(np.median(each) <= WATCHED) for each in delays)
