"""How soon the rate detector speaks, against the optimum, and what an update costs.

    python -m benchmarks.detection_smoke            # under a minute
    python -m benchmarks.detection_smoke --json

The yardstick is CUSUM told the very change to look for: of all detectors with
its run length to a false alarm it is the soonest in the worst case (Moustakides,
Annals of Statistics 14, 1986). Its figures are computed, not simulated: a Markov
chain over a grid (Brook & Evans, Biometrika 59, 1972). The rate detector is told
nothing but the baseline. It is run at the threshold A that promises the same run
length, so that what it keeps in reserve counts against it.

``reset`` is the delay right after a reset, as CUSUM's is; ``watching`` the delay
after a long quiet time, which is what one meets.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from detectors.rate import RateDetector, RateDetectorConfig

BEFORE = 0.02
CHANGES = (0.04, 0.06)
THRESHOLDS = (1e4, 1e5)
#: Simulated streams for each delay: the standard error is about 2 %.
STREAMS = 1_000
#: Events without a change before it, for `watching`.
QUIET_EVENTS = 2_000
MAX_EVENTS = 50_000
#: Steps of CUSUM's grid for one event that does not count.
GRID = 4
ROWS = 5_000
PASSES = 100

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Delay:
    """Mean events from the change to the alarm, for one change and one threshold."""

    before: float
    after: float
    threshold: float
    cusum: float
    reset: float
    watching: float


@dataclass(frozen=True)
class Speed:
    """One core; a row update is one batch of one stream, against all alternatives."""

    rows: int
    alternatives: int
    row_updates_per_s: float
    alternative_updates_per_s: float


def cusum_delay(before: float, after: float, run_length: float) -> float:
    """Mean delay of the CUSUM from `before` to `after` with this mean run length to a false alarm.

    Between two heights of the grid the delay is interpolated in the logarithm of
    the run length.
    """
    low, high = 1, 2
    while mean_run(high, before, after, before) < run_length:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        shorter = mean_run(middle, before, after, before) < run_length
        low, high = (middle, high) if shorter else (low, middle)
    runs = [math.log(mean_run(h, before, after, before)) for h in (low, high)]
    delays = [mean_run(h, before, after, after) for h in (low, high)]
    return float(np.interp(math.log(run_length), runs, delays))


def mean_run(height: int, before: float, after: float, rate: float) -> float:
    """Mean events until a CUSUM from 0 reaches `height` grid steps while the rate is `rate`."""
    step = -math.log((1 - after) / (1 - before)) / GRID
    up = round(math.log(after / before) / step)
    states = np.arange(height)
    chain = np.eye(height)
    np.subtract.at(chain, (states, np.maximum(states - GRID, 0)), 1 - rate)
    stays = states[states + up < height]
    chain[stays, stays + up] -= rate
    return float(np.linalg.solve(chain, np.ones(height))[0])


def detector_delay(before: float, after: float, threshold: float, quiet: int) -> float:
    """Mean delay of the rate detector, over streams that did not alarm while it was quiet."""
    rng = np.random.default_rng(1)
    detector = RateDetector(RateDetectorConfig(), STREAMS)
    live, delays = np.arange(STREAMS), np.zeros(STREAMS)
    for event in range(-quiet, MAX_EVENTS):
        if not len(live):
            return float(delays[delays > 0].mean())
        m = len(live)
        count = (rng.random(m) < (before if event < 0 else after)).astype(np.int64)
        p, one = np.full(m, before), np.ones(m, np.int64)
        evidence = detector.update(live, count, one, p, p, np.ones(m), one)
        alarmed = evidence >= math.log(threshold)
        delays[live[alarmed]] = event + 1
        live = live[~alarmed]
    raise RuntimeError(f"{len(live)} streams have not alarmed after {MAX_EVENTS} events")


def measure_delays() -> list[Delay]:
    return [
        Delay(
            BEFORE,
            after,
            threshold,
            cusum=cusum_delay(BEFORE, after, threshold),
            reset=detector_delay(BEFORE, after, threshold, 0),
            watching=detector_delay(BEFORE, after, threshold, QUIET_EVENTS),
        )
        for after in CHANGES
        for threshold in THRESHOLDS
    ]


def measure_speed() -> Speed:
    """Best of many passes over all rows, which leaves out what else the machine was doing."""
    rng, config = np.random.default_rng(2), RateDetectorConfig()
    detector, rows = RateDetector(config, ROWS), np.arange(ROWS)
    total = np.full(ROWS, 20)
    low, high, weight = np.full(ROWS, 0.01), np.full(ROWS, 0.03), np.full(ROWS, 1e-5)
    took = math.inf
    for at in range(PASSES):
        count, start = rng.binomial(total, BEFORE), np.full(ROWS, at)
        began = time.perf_counter()
        detector.update(rows, count, total, low, high, weight, start)
        took = min(took, time.perf_counter() - began)
    updates, alternatives = ROWS / took, len(config.odds_ratios)
    return Speed(ROWS, alternatives, updates, updates * alternatives)


def table(delays: list[Delay], speed: Speed) -> str:
    lines = [
        "change          A        CUSUM    watching          reset",
        *(
            f"{d.before:.2f} → {d.after:.2f}  {d.threshold:7.0e}  {d.cusum:7.0f}"
            f"  {d.watching:7.0f} {d.watching / d.cusum:4.2f}×  {d.reset:7.0f}"
            f" {d.reset / d.cusum:4.2f}×"
            for d in delays
        ),
        "",
        f"{speed.rows:,} rows × {speed.alternatives} alternatives:"
        f" {speed.row_updates_per_s / 1e6:.1f} M row updates/s,"
        f" {speed.alternative_updates_per_s / 1e6:.0f} M with each alternative counted",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    delays, speed = measure_delays(), measure_speed()
    if arguments.json:
        print(json.dumps({"delays": [asdict(d) for d in delays], "speed": asdict(speed)}))
    else:
        print(table(delays, speed))


if __name__ == "__main__":
    main()
