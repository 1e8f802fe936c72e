"""How soon a silent swap of the model is found, on real answers to prompts never seen before.

    python -m benchmarks.swaps DATA_DIR             # a few minutes: what is published
    python -m benchmarks.swaps DATA_DIR --quick     # under a minute, a quarter of the splits
    python -m benchmarks.swaps DATA_DIR --json

DATA_DIR holds ``alpaca_eval.ndjson.gz`` (805 prompts × 18 models) and
``ja_shaberi.ndjson.gz`` (320 prompts × 34 models), one answer per prompt and model.

A *split* takes 500 prompts at random and fits the reference to the first model's
answers to them. The stream draws from the other prompts, with replacement: some 500
answers of the first model, then the second model's. Few prompts that come again and
again are harder than traffic: their mean is off the reference's for good, by more than
the reference's own error, and a change of their mix moves it. What is reported:

- *swaps*: answers from the swap to the alarm, and how many runs are found within 3,000;
- *nulls*: 3,000 answers of the first model from the start, no swap; and how often they
  reach a threshold of 10,000, as a share of what is promised for it;
- *mix*: the swap is one of traffic: the shares of the prompts' kinds are drawn anew
  (uniformly over all shares), the model stays. Once as it is, once *blind* to what the
  prompts moved by, and once *marginal*, with nothing predicted from the prompt either;
- *both*: the swap comes in the same moment as such a change of traffic;
- *Japanese*: references of 190 answers, for there are no more prompts; beside it English
  with as few;
- *told*: against a CUSUM told the exact shift and nothing to learn, with a reference of
  20,000. Here all draw with replacement from all prompts, and the thresholds are those
  at which their nulls really alarm once in 100,000 answers. Between the two stands what
  is *told the length* of the shift and not its direction: the Shiryaev–Roberts sum of the
  likelihood ratios over all directions alike. On normal residuals nothing that does not
  know the direction is sooner on average over the directions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ive

from detectors.fingerprint import FingerprintConfig, fit_reference, residuals
from detectors.shift import ShiftDetector, ShiftDetectorConfig
from pipeline.core.style import measure_layout, measure_style
from pipeline.encoders.static import StaticEncoder

Floats = npt.NDArray[np.float64]
Swap = tuple[str, str]

#: One false page in a million answers, by promise.
THRESHOLD = 1e6
#: Low enough for false alarms to be counted.
LOW_THRESHOLD = 1e4
REFERENCE = 500
QUIET, WATCHED = 512, 3_008
BATCH = 32
SPLITS = 24
#: There are no more prompts in Japanese.
SMALL_REFERENCE = 190
#: Leading components of the prompt's embedding from which the answer's style is predicted.
PROMPT_COMPONENTS = 32
#: A ridge this strong predicts nothing from the prompt.
MARGINAL_RIDGE = 1e12

ENGLISH: tuple[Swap, ...] = (
    ("claude-instant-1.2", "claude-2"),
    ("claude-2", "claude-2.1"),
    ("gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613"),
    ("gpt-3.5-turbo-0613", "gpt-3.5-turbo-1106"),
    ("gpt4_0613", "gpt4_0613_concise"),
    ("gpt-4o-2024-05-13", "gpt-4o-mini-2024-07-18"),
    ("Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.3"),
    ("Meta-Llama-3-70B-Instruct", "Meta-Llama-3-8B-Instruct"),
    ("llama-2-13b-chat-hf", "llama-2-7b-chat-hf"),
)
JAPANESE: tuple[Swap, ...] = (
    ("gpt-4-turbo-preview", "gpt-4o-2024-08-06"),
    ("gpt-4o-2024-08-06", "gpt-5-2025-08-07"),
    ("gemini-1.5-pro", "gemini__gemini-2.5-flash"),
    ("DeepSeek-V3-Q5_K_M", "deepseek-ai__DeepSeek-V3-0324"),
    ("google__gemma-3-12b-it", "google__gemma-3-4b-it"),
    ("Qwen__Qwen3-30B-A3B-FP8", "Qwen__Qwen3-8B"),
    ("Qwen__Qwen2.5-72B-Instruct", "Qwen__Qwen2.5-1.5B-Instruct"),
    (
        "tokyotech-llm__Llama-3.1-Swallow-70B-Instruct-v0.3",
        "tokyotech-llm__Llama-3.3-Swallow-70B-Instruct-v0.4",
    ),
    (
        "Mistral-Nemo-Japanese-Instruct-2408-FP8",
        "Mistral-Nemo-Japanese-Instruct-2408-GPTQ-w4a16-gs32-noact",
    ),
)


# --- Data ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Features x (prompts, dx) and, per model, y (prompts, dy): not finite where it has none."""

    kinds: npt.NDArray[np.int64]
    x: Floats
    y: dict[str, Floats]


@dataclass(frozen=True)
class Stream:
    """Residuals (n, p + q) of both models' answers to the n prompts that the reference lacks."""

    before: Floats
    after: Floats
    kinds: npt.NDArray[np.int64]
    known: int


def load(file: Path, models: set[str], encoder: StaticEncoder) -> Corpus:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [r for r in map(json.loads, lines) if r["model"] in models]
    prompts = {prompt: at for at, prompt in enumerate(sorted({r["prompt"] for r in rows}))}
    strata = sorted({r.get("stratum", "") for r in rows})
    kinds = np.zeros(len(prompts), np.int64)
    style = measure_style([r["response"] for r in rows])
    y = {m: np.full((len(prompts), style.shape[1]), np.nan) for m in models}
    for row, features in zip(rows, style, strict=True):
        y[row["model"]][prompts[row["prompt"]]] = features
        kinds[prompts[row["prompt"]]] = strata.index(row.get("stratum", ""))
    meaning = encoder.encode(list(prompts))[:, :PROMPT_COMPONENTS]
    x = np.concatenate([meaning, measure_layout(list(prompts))], axis=1).astype(np.float64)
    return Corpus(kinds, x, y)


def split(
    corpus: Corpus, swap: Swap, seed: int, reference: int, config: FingerprintConfig
) -> Stream:
    """Fit a reference to `reference` random answers; the other prompts are the stream."""
    before, after = (corpus.y[model] for model in swap)
    both = np.flatnonzero(np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1))
    order = np.random.default_rng(seed).permutation(both)
    known, rest = order[:reference], order[reference:]
    fitted = fit_reference(corpus.x[known], before[known], config)
    return Stream(
        residuals(fitted, corpus.x[rest], before[rest]).astype(np.float64),
        residuals(fitted, corpus.x[rest], after[rest]).astype(np.float64),
        corpus.kinds[rest],
        fitted.known,
    )


def split_all(
    corpus: Corpus,
    swaps: Sequence[Swap],
    splits: int,
    config: FingerprintConfig,
    reference: int = REFERENCE,
) -> list[Stream]:
    """Streams of every swap, `splits` each, swap by swap."""
    return [split(corpus, s, seed, reference, config) for s in swaps for seed in range(splits)]


# --- Runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What changes after `quiet` answers: the model (`swap`), the traffic (`mix`) or `both`."""

    change: str
    quiet: int = QUIET
    batch: int = BATCH
    threshold: float = THRESHOLD


def run(streams: list[Stream], config: ShiftDetectorConfig, scenario: Scenario) -> Floats:
    """Answers from the change to the alarm, one run per stream; inf where there was none.

    Alarms before the change come out as 0 or less.
    """
    rng, batch = np.random.default_rng(7), scenario.batch
    detector, rows = ShiftDetector(config, len(streams)), np.arange(len(streams))
    total, known = np.full(len(rows), batch), np.array([s.known for s in streams])
    shares = [uniform(s) for s in streams]
    other = [draw_shares(s, rng) for s in streams] if scenario.change in ("mix", "both") else shares
    delay = np.full(len(rows), math.inf)
    for at in range(0, scenario.quiet + WATCHED, batch):
        changed = at >= scenario.quiet
        sums = np.stack(
            [
                draw(stream, share, batch, changed and scenario.change in ("swap", "both"), rng)
                for stream, share in zip(streams, other if changed else shares, strict=True)
            ]
        )
        evidence = detector.update(rows, sums, total, known, total.astype(float), 0 * rows + at)
        alarmed = (evidence >= math.log(scenario.threshold)) & np.isinf(delay)
        delay[alarmed] = at + batch - scenario.quiet
    return delay


def uniform(stream: Stream) -> Floats:
    return np.arange(1, len(stream.kinds) + 1) / len(stream.kinds)


def draw_shares(stream: Stream, rng: np.random.Generator) -> Floats:
    """Cumulative probabilities of the prompts once the shares of their kinds are drawn anew."""
    count = np.bincount(stream.kinds)
    share = rng.dirichlet(np.ones(len(count)))
    cumulative: Floats = np.cumsum((share / np.maximum(count, 1))[stream.kinds])
    return cumulative / cumulative[-1]


def draw(
    stream: Stream, share: Floats, batch: int, swapped: bool, rng: np.random.Generator
) -> Floats:
    """Sum of the residuals of `batch` answers drawn with these cumulative probabilities."""
    chosen = np.searchsorted(share, rng.random(batch), side="right")
    total: Floats = (stream.after if swapped else stream.before)[chosen].sum(axis=0)
    return total


# --- Figures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Runs of one swap; delays in answers, None for never."""

    before: str
    after: str
    shift: float
    median: float | None
    quartiles: tuple[float | None, float | None]
    found: float
    early: float


def summarise(swap: Swap, streams: list[Stream], delay: Floats) -> Found:
    late = delay[delay > 0]
    low, median, high = (finite(q) for q in np.quantile(late, (0.25, 0.5, 0.75), method="higher"))
    square = np.mean([squared_shift(s) for s in streams])
    return Found(
        *swap,
        shift=math.sqrt(max(square, 0.0)),
        median=median,
        quartiles=(low, high),
        found=float((late <= WATCHED).mean()),
        early=float((delay <= 0).mean()),
    )


def squared_shift(stream: Stream) -> float:
    """Squared length of the mean shift, less what the few prompts' noise adds to it."""
    difference = stream.after - stream.before
    noise = difference.var(axis=0).sum() / len(difference)
    return float((difference.mean(axis=0) ** 2).sum() - noise)


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def swap_figures(
    streams: list[Stream], swaps: Sequence[Swap], config: ShiftDetectorConfig, scenario: Scenario
) -> list[Found]:
    delays = run(streams, config, scenario).reshape(len(swaps), -1)
    size = len(streams) // len(swaps)
    return [
        summarise(swap, streams[at * size : (at + 1) * size], delay)
        for at, (swap, delay) in enumerate(zip(swaps, delays, strict=True))
    ]


def paged(streams: list[Stream], config: ShiftDetectorConfig, scenario: Scenario) -> float:
    """Share of the runs that alarm after the change, of those that had not before."""
    delay = run(streams, config, scenario)
    return float((delay[delay > 0] <= WATCHED).mean())


def median_of_medians(figures: list[Found]) -> float:
    return float(np.median([math.inf if f.median is None else f.median for f in figures]))


# --- Told ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """Median delays at the thresholds with the same measured run length on nulls."""

    before: str
    after: str
    told: float
    told_length: float
    ours: float


#: The run length to a false alarm at which the two are compared, in answers.
TOLD_RUN_LENGTH = 1e5
TOLD_REFERENCE = 20_000
TOLD_ROWS = 100
#: Small, for the delays are short.
TOLD_BATCH = 8
TOLD_EVENTS = 20_000


def told_figures(
    corpus: Corpus, swap: Swap, fit: FingerprintConfig, config: ShiftDetectorConfig
) -> Told:
    """Compare with a CUSUM that knows the shift; reference and stream draw from all prompts."""
    rng = np.random.default_rng(11)
    before, after = (corpus.y[model] for model in swap)
    drawn = rng.integers(0, len(before), TOLD_REFERENCE)
    fitted = fit_reference(corpus.x[drawn], before[drawn], fit)
    pool = [residuals(fitted, corpus.x, y).astype(np.float64) for y in (before, after)]
    # Without the error of 20,000 draws, so that the CUSUM is told the truth.
    pool = [each - pool[0].mean(axis=0) for each in pool]
    paths = [told_paths(pool, config, quiet, rng) for quiet in (TOLD_EVENTS, QUIET)]
    delays = []
    for nulls, swapped in zip(*paths, strict=True):
        # Alarms at a low rate come like a Poisson process: this share of runs has had one.
        share = 1 - math.exp(-TOLD_EVENTS / TOLD_RUN_LENGTH)
        threshold = np.quantile(nulls.max(axis=0), 1 - share)
        late = swapped[QUIET // TOLD_BATCH :] >= threshold
        first = np.where(late.any(axis=0), late.argmax(axis=0) + 1.0, math.inf)
        delays.append(float(np.median(first)) * TOLD_BATCH)
    return Told(*swap, *delays)


def told_paths(
    pool: list[Floats], config: ShiftDetectorConfig, quiet: int, rng: np.random.Generator
) -> tuple[Floats, ...]:
    """Evidence after each batch, (batches, runs): told the shift, told its length, and ours."""
    shift = pool[1].mean(axis=0)[: config.dimensions]
    detector, rows = ShiftDetector(config, TOLD_ROWS), np.arange(TOLD_ROWS)
    sphere = SphereSum(float(np.linalg.norm(shift)), len(shift), TOLD_ROWS)
    total, known = np.full(TOLD_ROWS, TOLD_BATCH), np.full(TOLD_ROWS, TOLD_REFERENCE // 2)
    level = np.zeros(TOLD_ROWS)
    paths: tuple[list[Floats], ...] = ([], [], [])
    for at in range(0, quiet + (WATCHED if quiet == QUIET else 0), TOLD_BATCH):
        now = pool[int(at >= quiet)]
        sums = now[rng.integers(0, len(now), (TOLD_ROWS, TOLD_BATCH))].sum(axis=1)
        gain = sums[:, : len(shift)] @ shift - TOLD_BATCH * (shift @ shift) / 2
        level = np.maximum(level, 0) + gain
        evidence = detector.update(rows, sums, total, known, total.astype(float), 0 * rows + at)
        for path, each in zip(
            paths, (level.copy(), sphere.update(sums[:, : len(shift)]), evidence), strict=True
        ):
            path.append(each)
    return tuple(np.array(path) for path in paths)


class SphereSum:
    """Shiryaev–Roberts for a mean that moves by a known length in a direction unknown, p > 2.

    The likelihood ratio of n residuals of sum S, over all directions u alike, is
    E exp(s u·S − n s²/2), in closed form a Bessel function. Changes further back than
    `AGES` times what a told CUSUM needs are left out.
    """

    AGES = 60.0
    #: Points at which the Bessel function is worked out; between them its logarithm is all but
    #: straight.
    POINTS = 4_000

    def __init__(self, length: float, dimensions: int, rows: int) -> None:
        self._length, self._nu = length, dimensions / 2 - 1
        ages = 8 + math.ceil(self.AGES / length**2 / TOLD_BATCH)
        #: Running sum, and what it was after each of the last batches, in a ring.
        self._sum = np.zeros((rows, dimensions))
        self._past = np.zeros((rows, ages, dimensions))
        self._batches = 0
        # No sum is longer than all its residuals in one direction, and none comes near that.
        longest = length * TOLD_BATCH * ages * (length + 3.0)
        self._z = np.linspace(0.0, longest, self.POINTS)
        self._log_mean = self._log_mean_at(self._z)

    def update(self, sums: Floats) -> Floats:
        """Take in a batch, (rows, p); returns the log of the sum, (rows,)."""
        ages = self._past.shape[1]
        self._past[:, self._batches % ages] = self._sum
        self._sum += sums
        self._batches += 1
        seen = min(self._batches, ages)
        back = (self._batches - 1 - np.arange(seen)) % ages
        since = self._sum[:, None, :] - self._past[:, back]
        norms = np.sqrt(np.einsum("mkp,mkp->mk", since, since))
        counts = TOLD_BATCH * np.arange(1, seen + 1)
        ratio = np.interp(self._length * norms, self._z, self._log_mean)
        ratio -= counts * self._length**2 / 2
        most = ratio.max(axis=1)
        total: Floats = most + np.log(np.exp(ratio - most[:, None]).sum(axis=1))
        return total

    def _log_mean_at(self, z: Floats) -> Floats:
        """Log of the mean of exp(z·cosine) over all directions."""
        z, nu = np.maximum(z, 1e-9), self._nu
        bessel = np.log(np.maximum(ive(nu, z), 1e-300)) + z
        mean: Floats = float(gammaln(nu + 1)) + nu * np.log(2 / z) + bessel
        return mean


# --- Report --------------------------------------------------------------------------------


@dataclass(frozen=True)
class English:
    """What every question but the Japanese one is asked of."""

    corpus: Corpus
    fit: FingerprintConfig
    config: ShiftDetectorConfig

    @classmethod
    def read(cls, data: Path) -> English:
        fit, models = FingerprintConfig(), {m for s in ENGLISH for m in s}
        corpus = load(data / "alpaca_eval.ndjson.gz", models, StaticEncoder.load())
        return cls(corpus, fit, ShiftDetectorConfig(fit.directions, fit.prompt_directions))

    def split(self, splits: int) -> list[Stream]:
        return split_all(self.corpus, ENGLISH, splits, self.fit)


def measure(data: Path, splits: int) -> dict[str, Any]:
    english = English.read(data)
    return {
        **measure_swaps(english, splits),
        **measure_settings(english, splits),
        **measure_mix(english, splits),
        "japanese": measure_japanese(data, splits, english.corpus),
        "told": measure_told(english),
    }


def measure_swaps(english: English, splits: int) -> dict[str, Any]:
    """Delays of the nine swaps; and how often nothing is taken for one."""
    streams, config = english.split(splits), english.config
    swaps = swap_figures(streams, ENGLISH, config, Scenario("swap"))
    low = Scenario("none", quiet=0, threshold=LOW_THRESHOLD)
    return {
        "swaps": [asdict(f) for f in swaps],
        "median_delay": median_of_medians(swaps),
        "null": paged(streams, config, Scenario("none", quiet=0)),
        "null_runs": len(streams),
        "realised_to_promised": paged(streams, config, low) / (WATCHED / LOW_THRESHOLD),
    }


def measure_settings(english: English, splits: int) -> dict[str, Any]:
    """The same delays with other batches, and with more or less of a quiet time before."""
    streams = english.split(splits)

    def delay(scenario: Scenario) -> float:
        return median_of_medians(swap_figures(streams, ENGLISH, english.config, scenario))

    return {
        "median_delay_by_batch": {b: delay(Scenario("swap", batch=b)) for b in (16, 64)},
        "median_delay_by_quiet": {q: delay(Scenario("swap", quiet=q)) for q in (0, 2_048)},
    }


def measure_told(english: English, swaps: Sequence[Swap] = ENGLISH) -> list[dict[str, Any]]:
    return [asdict(told_figures(english.corpus, s, english.fit, english.config)) for s in swaps]


def measure_mix(english: English, splits: int) -> dict[str, float]:
    """How often other traffic pages that comes with no other model."""
    corpus, config, streams = english.corpus, english.config, english.split(splits)
    # Without the features of the prompt, which stand last, the detector cannot see them move.
    blind_fit = FingerprintConfig(prompt_directions=0)
    blind_config = replace(config, prompt_dimensions=0)
    blind = split_all(corpus, ENGLISH, splits, blind_fit)
    marginal = split_all(corpus, ENGLISH, splits, replace(blind_fit, ridge=MARGINAL_RIDGE))
    return {
        "both": paged(streams, config, Scenario("both")),
        "mix": paged(streams, config, Scenario("mix")),
        "mix_blind": paged(blind, blind_config, Scenario("mix")),
        "mix_marginal": paged(marginal, blind_config, Scenario("mix")),
    }


def measure_japanese(data: Path, splits: int, english: Corpus) -> dict[str, Any]:
    fit, encoder = FingerprintConfig(), StaticEncoder.load()
    config = ShiftDetectorConfig(fit.directions, fit.prompt_directions)
    corpus = load(data / "ja_shaberi.ndjson.gz", {m for s in JAPANESE for m in s}, encoder)
    streams = split_all(corpus, JAPANESE, splits, fit, SMALL_REFERENCE)
    swaps = swap_figures(streams, JAPANESE, config, Scenario("swap"))
    # English with as few prompts, in the reference and in the stream.
    few = np.random.default_rng(3).permutation(len(english.x))[: len(corpus.x)]
    thin = Corpus(english.kinds[few], english.x[few], {m: y[few] for m, y in english.y.items()})
    peers = split_all(thin, ENGLISH, splits, fit, SMALL_REFERENCE)
    return {
        "swaps": [asdict(f) for f in swaps],
        "median_delay": median_of_medians(swaps),
        "null": paged(streams, config, Scenario("none", quiet=0)),
        "english_median_delay": median_of_medians(
            swap_figures(peers, ENGLISH, config, Scenario("swap"))
        ),
        "english_null": paged(peers, config, Scenario("none", quiet=0)),
    }


def table(figures: dict[str, Any]) -> str:
    lines = [
        *swap_lines(figures["swaps"]),
        f"median of medians {figures['median_delay']:.0f}",
        *(f"  with batches of {b}: {v:.0f}" for b, v in figures["median_delay_by_batch"].items()),
        *(f"  after {q} quiet ones: {v:.0f}" for q, v in figures["median_delay_by_quiet"].items()),
        f"nulls that alarm {figures['null']:.1%};"
        f" at {LOW_THRESHOLD:.0e} {figures['realised_to_promised']:.2f} of what is promised",
        f"mix changes that page {figures['mix']:.1%}, blind {figures['mix_blind']:.1%},"
        f" marginal {figures['mix_marginal']:.1%}",
        f"swaps found, of all, that come with a mix change {figures['both']:.0%}",
        "",
        "Japanese",
        *swap_lines(figures["japanese"]["swaps"]),
        f"median of medians {figures['japanese']['median_delay']:.0f},"
        f" English with as few prompts {figures['japanese']['english_median_delay']:.0f};"
        f" nulls that alarm {figures['japanese']['null']:.1%} and"
        f" {figures['japanese']['english_null']:.1%}",
        "",
        f"median delay, run length {TOLD_RUN_LENGTH:.0e} measured: CUSUM told the shift,"
        " what is told its length, ours",
        *(
            f"{t['before'][:26]:26} → {t['after'][:26]:26} {t['told']:5.0f}"
            f" {t['told_length']:5.0f} {t['ours']:5.0f}"
            f" {t['ours'] / t['told']:5.2f}×"
            for t in figures["told"]
        ),
    ]
    return "\n".join(lines)


def swap_lines(swaps: list[dict[str, Any]]) -> list[str]:
    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f}"

    return [
        f"{'swap':55} shift  delay  [quartiles]    found  early",
        *(
            f"{f['before'][-26:]:26} → {f['after'][-26:]:26} {f['shift']:5.2f}"
            f"  {text(f['median']):>5}  [{text(f['quartiles'][0]):>4},"
            f" {text(f['quartiles'][1]):>4}]"
            f"  {f['found']:6.0%} {f['early']:6.0%}"
            for f in swaps
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="directory of the evaluation data")
    parser.add_argument("--quick", action="store_true", help="a quarter of the splits")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    figures = measure(arguments.data, SPLITS // 4 if arguments.quick else SPLITS)
    print(json.dumps(figures) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
