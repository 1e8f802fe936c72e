"""What others do about answers: windows that are held against a reference, one after the other.

The same nine swaps, the same answers to prompts that our reference has not seen. A rival has the
500 answers before the stream as its reference and compares every W answers with it, by

- the *kernel* two-sample test (MMD, Gaussian kernel of the median distance), as for embeddings;
- *Kolmogorov–Smirnov* on each feature, the largest of them;
- the *mean*, all features together (Hotelling).

It is given either what it would have, the answers' *raw* features, whitened, or our *residuals*.
Each rival's threshold, and ours, is where its nulls alarm once in 10,000 answers: a null's largest
statistic within the horizon exceeds it in that share of runs. Of the rivals' references and
streams the prompts are the same, of ours not, which is to their advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from benchmarks.swaps import (
    BATCH,
    ENGLISH,
    MARGINAL_RIDGE,
    QUIET,
    REFERENCE,
    WATCHED,
    English,
    Stream,
    split_all,
)
from detectors.shift import ShiftDetector, ShiftDetectorConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: From a window, larger the less it is like the reference.
Distance = Callable[[Floats], float]
#: Takes a reference in.
Statistic = Callable[[Floats], Distance]

RUN_LENGTH = 1e4
#: Answers of a null.
HORIZON = 6_016
WINDOWS = (100, 250, 500)
#: Answers of the reference from which the kernel takes its width.
KERNEL_SAMPLE = 200


@dataclass(frozen=True)
class Peer:
    """A way to watch answers: median delay over the swaps, and how many are found, at one ARL."""

    name: str
    features: str
    window: int
    run_length: float
    median_delay: float | None
    found: int
    #: Each swap's median delay, None where most runs find nothing.
    delays: list[float | None]


def kernel(reference: Floats) -> Distance:
    """Squared maximum mean discrepancy, without the diagonal."""
    some = reference[:KERNEL_SAMPLE]
    width = float(np.median(cdist(some, some, "sqeuclidean")))
    within = _mean_off_diagonal(np.exp(-cdist(reference, reference, "sqeuclidean") / width))

    def distance(window: Floats) -> float:
        across = np.exp(-cdist(reference, window, "sqeuclidean") / width).mean()
        inside = np.exp(-cdist(window, window, "sqeuclidean") / width)
        return float(within + _mean_off_diagonal(inside) - 2 * across)

    return distance


def _mean_off_diagonal(matrix: Floats) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


def kolmogorov_smirnov(reference: Floats) -> Distance:
    """The largest distance between distribution functions, over the features."""

    def distance(window: Floats) -> float:
        both = np.concatenate([reference, window])
        order = np.argsort(both, axis=0, kind="stable")
        step = np.where(order < len(reference), 1 / len(reference), -1 / len(window))
        return float(np.abs(np.cumsum(step, axis=0)).max())

    return distance


def mean(reference: Floats) -> Distance:
    """Squared distance of the means."""
    middle = reference.mean(axis=0)
    return lambda window: float(((middle - window.mean(axis=0)) ** 2).sum())


STATISTICS: dict[str, Statistic] = {
    "kernel": kernel,
    "Kolmogorov–Smirnov": kolmogorov_smirnov,
    "mean": mean,
}


# --- Paths ---------------------------------------------------------------------------------------


def draw_run(stream: Stream, swap: bool, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A reference and a stream of residuals, p + q; the swap comes after `QUIET` answers."""
    size = QUIET + WATCHED if swap else HORIZON
    drawn = rng.integers(0, len(stream.before), REFERENCE + size)
    values = stream.before[drawn]
    if swap:
        values[REFERENCE + QUIET :] = stream.after[drawn[REFERENCE + QUIET :]]
    return values[:REFERENCE], values[REFERENCE:]


def watch_windows(
    runs: Sequence[tuple[Floats, Floats]], statistic: Statistic, window: int, swap: bool
) -> list[Floats]:
    """The statistic of each window, run by run. A swap may come anywhere within a window."""
    rng = np.random.default_rng(9)
    found = []
    for reference, values in runs:
        # The windows' phase: so many answers before the first are let go.
        first = int(rng.integers(0, window)) if swap else 0
        starts = range(first, len(values) - window + 1, window)
        distance = statistic(reference)
        found.append(np.array([distance(values[at : at + window]) for at in starts]))
    return found


def window_delays(paths: Sequence[Floats], threshold: float, window: int) -> Floats:
    """Answers from the swap to the alarm; not positive where it came before, inf for never."""
    rng = np.random.default_rng(9)
    delays = []
    for path in paths:
        first = int(rng.integers(0, window))
        over = np.flatnonzero(path >= threshold)
        end = first + (over[0] + 1) * window - QUIET if len(over) else math.inf
        delays.append(float(end))
    return np.array(delays)


def watch_ours(
    streams: Sequence[Stream],
    runs: Sequence[tuple[Floats, Floats]],
    config: ShiftDetectorConfig,
) -> Floats:
    """Evidence after each batch, shape (batches, runs)."""
    detector, rows = ShiftDetector(config, len(runs)), np.arange(len(runs))
    known = np.array([s.known for s in streams])
    values = np.stack([values for _, values in runs])
    total = np.full(len(runs), BATCH)
    return np.array(
        [
            detector.update(
                rows,
                values[:, at : at + BATCH].sum(axis=1),
                total,
                known,
                total.astype(float),
                0 * rows + at,
            )
            for at in range(0, values.shape[1] - BATCH + 1, BATCH)
        ]
    )


def threshold_of(most: Floats, run_length: float = RUN_LENGTH) -> float:
    """Where so many runs of `HORIZON` answers have had an alarm: they come like a Poisson process.

    `most` is each null's largest statistic.
    """
    return float(np.quantile(most, math.exp(-HORIZON / run_length)))


def summarise(name: str, features: str, window: int, delays: Floats) -> Peer:
    """`delays` (swaps, runs): not positive before the change, inf for never."""
    medians: list[float | None] = []
    for each in delays:
        late = each[each > 0]
        median = float(np.quantile(late, 0.5, method="higher")) if len(late) else math.inf
        medians.append(median if median <= WATCHED else None)
    overall = float(np.median([math.inf if m is None else m for m in medians]))
    return Peer(
        name,
        features,
        window,
        RUN_LENGTH,
        overall if math.isfinite(overall) else None,
        sum(m is not None for m in medians),
        medians,
    )


# --- All of it -----------------------------------------------------------------------------------


def measure(english: English, splits: int) -> list[dict[str, object]]:
    streams = english.split(splits)
    raw_fit = replace(english.fit, prompt_directions=0, ridge=MARGINAL_RIDGE)
    raw = split_all(english.corpus, ENGLISH, splits, raw_fit)
    peers = [measure_ours(streams, english.config)]
    p = english.config.dimensions
    for features, some in (("raw", raw), ("residuals", streams)):
        peers += list(measure_windows(some, features, p))
    return [asdict(peer) for peer in peers]


def measure_ours(streams: Sequence[Stream], config: ShiftDetectorConfig) -> Peer:
    rng = np.random.default_rng(8)
    nulls = watch_ours(streams, [draw_run(s, False, rng) for s in streams], config)
    evidence = watch_ours(streams, [draw_run(s, True, rng) for s in streams], config)
    over = evidence >= threshold_of(nulls.max(axis=0))
    first = np.where(over.any(axis=0), (over.argmax(axis=0) + 1.0) * BATCH - QUIET, math.inf)
    return summarise("ours", "residuals", BATCH, first.reshape(len(ENGLISH), -1))


def measure_windows(streams: Sequence[Stream], features: str, p: int) -> Iterator[Peer]:
    rng = np.random.default_rng(8)
    runs = {
        swap: [tuple(each[:, :p] for each in draw_run(s, swap, rng)) for s in streams]
        for swap in (False, True)
    }
    for name, statistic in STATISTICS.items():
        for window in WINDOWS:
            nulls = watch_windows(runs[False], statistic, window, swap=False)  # type: ignore[arg-type]
            threshold = threshold_of(np.array([path.max() for path in nulls]))
            paths = watch_windows(runs[True], statistic, window, swap=True)  # type: ignore[arg-type]
            delays = window_delays(paths, threshold, window)
            yield summarise(name, features, window, delays.reshape(len(ENGLISH), -1))
