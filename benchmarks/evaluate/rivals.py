"""What others do about a rate, each tuned to the same measured run length to a false alarm.

The rate of refusals goes from .02 to .04. Each rival has one knob; it is turned until the rival
alarms for nothing once in so many events, and then the delay is measured. None is told the rate
but fixed thresholds, which a person would set. What a rival learns from are the quiet events
that come before the change, so it is given several numbers of them. Ours, like for like, has a
reference of as many.

- *river*: ADWIN, Page–Hinkley and KSWIN, by bisection over a long quiet stream. They begin anew
  after each alarm.
- *windows*, as Evidently and the like compare them: every W events are held against the
  reference by Fisher's exact test, one-sided. Run length and delay are computed, not drawn: they
  are sums over what reference and window can be.
- *fixed thresholds*: more than x of the last n. x is a whole number, so the delay is
  interpolated between two of them in the logarithm of the run length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from river import drift
from scipy.stats import binom, hypergeom

from benchmarks.rates import BEFORE, CHANGES, MAX_EVENTS, REFERENCE_EVENTS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AFTER = CHANGES[0]
#: River says nothing of its types.
_DRIFT: Any = drift
#: Steps of a bisection; the last one is a five-hundredth of the knob's range.
BISECTIONS = 9
#: A rival whose run length stays outside this share of the goal cannot be tuned to it.
REACHED = (0.6, 1.7)
WINDOWS = (200, 500, 1_000, 2_000)
TRAILING = (200, 500, 1_000, 2_000)
#: Where in its window a change may lie, in so many steps.
OFFSETS = 8


@dataclass(frozen=True)
class RivalEffort:
    """How much is drawn. With 30 false alarms a run length is known to 18 %, its delay to 2 %."""

    run_lengths: tuple[float, ...] = (1e4, 1e5)
    false_alarms: int = 30
    streams: int = 300
    quiet: tuple[int, ...] = (1_000, REFERENCE_EVENTS, 5_000, 20_000)
    kswin: bool = True


QUICK_RIVALS = RivalEffort((1e5,), 10, 80, (REFERENCE_EVENTS,), kswin=False)


@dataclass(frozen=True)
class Rival:
    """A rival with its knob turned to a run length; None where it cannot be."""

    kind: str
    name: str
    goal: float
    setting: float | None
    run_length: float | None
    #: Mean events to the alarm by quiet events before the change.
    delays: dict[int, float]


# --- River ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """`build` takes the knob, which lies between `least` and `most`; more of it, fewer alarms."""

    name: str
    build: Callable[[float], Any]
    least: float
    most: float
    #: Events whose rate is one value.
    group: int = 1
    #: Told how large the change will be, which no other is.
    told: bool = False


CANDIDATES = (
    Candidate("ADWIN", lambda x: _DRIFT.ADWIN(delta=10**-x, clock=1), -0.5, 6),
    Candidate("ADWIN, clock 32", lambda x: _DRIFT.ADWIN(delta=10**-x), -0.5, 6),
    Candidate("Page–Hinkley", lambda x: _DRIFT.PageHinkley(threshold=x), 1, 100),
    Candidate(
        "Page–Hinkley, told the size",
        lambda x: _DRIFT.PageHinkley(threshold=x, delta=0.01, mode="up"),
        1,
        100,
        told=True,
    ),
    Candidate("KSWIN of 25s", lambda x: _DRIFT.KSWIN(10**-x, seed=1), 1, 8, group=25),
)


def run_length_of(detector: Any, values: Sequence[float]) -> float:
    """Values between alarms; river's detectors begin anew after each."""
    alarms = 0
    for value in values:
        detector.update(value)
        alarms += detector.drift_detected
    return len(values) / max(alarms, 0.5)


def bisect(run_length: Callable[[float], float], least: float, most: float, goal: float) -> float:
    """The knob at which the run length, which grows with it, passes the goal."""
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        least, most = (middle, most) if run_length(middle) < goal else (least, middle)
    return most


def measure_river(candidate: Candidate, goal: float, effort: RivalEffort) -> Rival:
    rng, group = np.random.default_rng(4), candidate.group
    events = int(goal * effort.false_alarms) // (1 if group == 1 else 5)
    quiet = (rng.binomial(group, BEFORE, events // group) / group).tolist()

    def run_length(knob: float) -> float:
        return run_length_of(candidate.build(knob), quiet) * group

    setting = bisect(run_length, candidate.least, candidate.most, goal)
    reached = run_length(setting)
    low, high = REACHED
    if not low * goal < reached < high * goal:
        return Rival("river", candidate.name, goal, None, reached, {})
    delays = {n: river_delay(candidate, setting, n, effort.streams) for n in effort.quiet}
    return Rival("river", candidate.name, goal, setting, reached, delays)


def river_delay(candidate: Candidate, setting: float, quiet_events: int, streams: int) -> float:
    """Mean events to the alarm, of streams that did not alarm before the change."""
    rng, group, delays = np.random.default_rng(5), candidate.group, []
    for _ in range(streams):
        before = rng.binomial(group, BEFORE, quiet_events // group) / group
        after = rng.binomial(group, AFTER, MAX_EVENTS // group) / group
        detector = candidate.build(setting)
        if first_alarm(detector, before.tolist()) is None:
            at = first_alarm(detector, after.tolist())
            delays.append(MAX_EVENTS if at is None else (at + 1) * group)
    return float(np.mean(delays)) if delays else math.inf


def first_alarm(detector: Any, values: Sequence[float]) -> int | None:
    for at, value in enumerate(values):
        detector.update(value)
        if detector.drift_detected:
            return at
    return None


# --- Windows -------------------------------------------------------------------------------------


class WindowTest:
    """Fisher's exact test of every `size` events against a reference of `known` events."""

    def __init__(self, size: int, known: int) -> None:
        self.size, self.known = size, known
        # Whatever is rarer than this counts for nothing in a mean.
        rare = 1e-9
        self.references = np.arange(
            binom.ppf(rare, known, BEFORE), binom.ppf(1 - rare, known, BEFORE) + 1, dtype=np.int64
        )
        self.counts = np.arange(binom.ppf(1 - rare, size, AFTER) + 1, dtype=np.int64)
        self.share = binom.pmf(self.references, known, BEFORE)
        all_counts = self.references[:, None] + self.counts[None, :]
        #: Shape (references, counts), falling in the count.
        self.p_value: Floats = hypergeom.sf(
            self.counts[None, :] - 1, size + known, all_counts, size
        )

    def level(self, run_length: float) -> float:
        """The level at which windows alarm for nothing once in `run_length` events."""
        weight = (self.share[:, None] * binom.pmf(self.counts, self.size, BEFORE)).ravel()
        p_values = self.p_value.ravel()
        order = np.argsort(p_values)
        at = int(np.searchsorted(np.cumsum(weight[order]), self.size / run_length))
        return float(p_values[order[min(at, len(order) - 1)]])

    def run_length(self, level: float) -> float:
        alarms = (self.p_value < level) @ binom.pmf(self.counts, self.size, BEFORE)
        return self.size / max(float(self.share @ alarms), 1e-300)

    def delay(self, level: float) -> float:
        """Mean events to the alarm for a change anywhere in a window, at most `MAX_EVENTS`."""
        alarm = self.p_value < level
        whole = np.maximum(alarm @ binom.pmf(self.counts, self.size, AFTER), 1e-12)
        delays = np.zeros(len(self.references))
        for before in (np.arange(OFFSETS) * self.size) // OFFSETS:
            old = binom.pmf(self.counts, before, BEFORE)
            mixed = np.convolve(old, binom.pmf(self.counts, self.size - before, AFTER))
            found = alarm @ mixed[: len(self.counts)]
            delays += (self.size - before + (1 - found) * self.size / whole) / OFFSETS
        return float(self.share @ np.minimum(delays, MAX_EVENTS) / self.share.sum())


def measure_window(size: int, goal: float, effort: RivalEffort) -> Rival:
    tests = {known: WindowTest(size, known) for known in effort.quiet}
    levels = {known: test.level(goal) for known, test in tests.items()}
    delays = {known: test.delay(levels[known]) for known, test in tests.items()}
    known = REFERENCE_EVENTS
    run_length = tests[known].run_length(levels[known])
    return Rival("windows", f"windows of {size:,}", goal, levels[known], run_length, delays)


# --- Fixed thresholds ----------------------------------------------------------------------------


def trailing_run_length(quiet: npt.NDArray[np.int8], size: int, most: int) -> float:
    """Events between alarms of "at least `most` of the last `size`"; it starts anew after each."""
    sums = moving_sums(quiet[None, :], size)[0]
    over, alarms, free = np.flatnonzero(sums >= most), 0, 0
    while (at := int(np.searchsorted(over, free))) < len(over):
        alarms, free = alarms + 1, int(over[at]) + size
    return len(quiet) / max(alarms, 0.5)


def trailing_delay(size: int, most: int, streams: int) -> float:
    """Mean events from the change to the alarm, after a window that was quiet."""
    rng, delays = np.random.default_rng(6), []
    events = min(MAX_EVENTS, 20 * size)
    for _ in range(streams):
        before, after = rng.random(size) < BEFORE, rng.random(events) < AFTER
        stream = np.concatenate([before, after]).astype(np.int8)
        over = moving_sums(stream[None, :], size)[0, 1:] >= most
        delays.append(int(over.argmax()) + 1 if over.any() else events)
    return float(np.mean(delays))


def moving_sums(values: npt.NDArray[np.int8], size: int) -> Ints:
    """Sums over each run of `size`, shape (rows, events − size + 1)."""
    sums = np.cumsum(values, axis=1, dtype=np.int64)
    sums[:, size:] -= sums[:, :-size].copy()
    return sums[:, size - 1 :]


def measure_trailing(size: int, goal: float, effort: RivalEffort) -> Rival:
    rng = np.random.default_rng(7)
    quiet = (rng.random(int(goal * effort.false_alarms)) < BEFORE).astype(np.int8)
    most = int(size * BEFORE) + 2
    while (run_length := trailing_run_length(quiet, size, most)) < goal:
        most += 1
    shorter = trailing_run_length(quiet, size, most - 1)
    at = float(np.interp(math.log(goal), np.log([shorter, run_length]), [most - 1, most]))
    delays = [trailing_delay(size, each, 5 * effort.streams) for each in (most - 1, most)]
    delay = float(np.interp(at, [most - 1, most], delays))
    told = dict.fromkeys(effort.quiet, delay)
    return Rival("thresholds", f"over x of the last {size:,}", goal, at, goal, told)


# --- All of it -----------------------------------------------------------------------------------


def measure_rivals(effort: RivalEffort, goal: float) -> list[Rival]:
    """All rivals, tuned to the run length `goal`."""
    return [
        *(measure_river(c, goal, effort) for c in CANDIDATES if effort.kswin or c.group == 1),
        *(measure_window(size, goal, effort) for size in WINDOWS),
        *(measure_trailing(size, goal, effort) for size in TRAILING),
    ]


def best_river(rivals: Sequence[Rival], goal: float, quiet: int) -> float | None:
    """The shortest delay of river's detectors that are told nothing; None where there is none."""
    told = {candidate.name for candidate in CANDIDATES if candidate.told}
    delays = [
        rival.delays[quiet]
        for rival in rivals
        if rival.kind == "river" and rival.goal == goal and rival.name not in told and rival.delays
    ]
    return min(delays, default=None)
