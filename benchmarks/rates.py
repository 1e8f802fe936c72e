"""How soon the rate detector speaks, against the optimum; and what it costs.

    python -m benchmarks.rates                   # some minutes
    python -m benchmarks.rates --quick [--json]  # under a minute

The yardstick is CUSUM told both rates: of all detectors with its mean run length
to a false alarm it is the soonest in the worst case (Moustakides, Annals of
Statistics 14, 1986). Its figures are computed: a Markov chain over a grid (Brook &
Evans, Biometrika 59, 1972). The detector is told only the baseline, or only the
reference: 2,000 events, from which it has a bound.

*Nominal* figures are at the threshold A that promises the run length. Since the
detector alarms less often than it promises, *matched* ones are at the threshold
where its measured run length is CUSUM's. Run lengths of a million events are
measured by importance sampling: streams are drawn with a change at a random time
to a random alternative, and weighed by N / (S + N - t), S being that mixture's
likelihood ratio; that is exact, and its weights are bounded.

With a reference, run lengths are pooled: one over the mean false-alarm rate of
monitors that differ in their references. *Floor* is what a CUSUM would need that
knows the new rate, and keeps the promise in 95 % of all monitors whatever their
rate: by the lemma of Neyman and Pearson it must treat the reference's upper bound
as the null.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from detectors.rate import RateDetector, RateDetectorConfig
from detectors.reference import RateReference, ReferenceConfig

BEFORE = 0.02
CHANGES = (0.04, 0.06, 0.01)
RUN_LENGTHS = (1e4, 1e5, 1e6)
#: Thresholds at which passages are recorded; figures between them are interpolated.
LOG_A = np.log(np.geomspace(300.0, 1.3e6, 30))
#: Events without a change before it.
QUIET_EVENTS = 5_000
#: A stream that has not alarmed by then counts as if it just had.
MAX_EVENTS = 25_000
REFERENCE_EVENTS = 2_000
#: The probability that a reference's bound is wrong, both sides together.
MISS = 0.05
MONITORS = 1_000
#: Steps of CUSUM's grid for one event that does not count.
GRID = 2
HEAD_START = 1_000.0
#: Events an hour of monitors whose rate follows the day.
VOLUMES = (12, 120, 1_200, 6_000)
RHYTHM_WEEKS = 4
FAMILIES = 12

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Effort:
    """How many streams are drawn. Standard errors: 1 % of a delay, or 2 % when quick."""

    streams: int = 5_000
    horizon: int = 20_000
    fleet_streams: int = 4_000
    null_weeks: int = 30
    rhythm_monitors: int = 1_000
    references: tuple[int, ...] = (REFERENCE_EVENTS, 10 * REFERENCE_EVENTS)


QUICK = Effort(1_000, 6_000, 400, 4, 100, (REFERENCE_EVENTS,))


@dataclass(frozen=True)
class Delay:
    """Mean events from the change to the alarm, as multiples of CUSUM's."""

    after: float
    run_length: float
    cusum: float
    matched: float
    #: Against a CUSUM that has been watching, too.
    watching: float
    nominal: float
    fresh: float
    head_start: float


@dataclass(frozen=True)
class FleetDelay:
    """The same of monitors with a reference each; `floor` is nominal, too."""

    after: float
    run_length: float
    cusum: float
    matched: float
    nominal: float
    floor: float


@dataclass(frozen=True)
class Fleet:
    """Monitors with references of so many events; figures by run length that was promised."""

    events: int
    miss: float
    delays: list[FleetDelay]
    #: Realised over promised false-alarm rate: mean over the monitors, and share within 1.
    realised: list[float]
    within: list[float]


# --- CUSUM ---------------------------------------------------------------------------------------


def cusum_delay(before: float, after: float, run_length: float) -> tuple[float, float]:
    """Mean delay of the CUSUM from `before` to `after` with this mean run length to a false alarm.

    From 0, which is its worst, and from where it stands after a long quiet time.
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
    log_runs, worst, watching = [], [], []
    for height in (low, high):
        visits = np.linalg.solve(
            np.eye(height) - moves(height, before, after, before).T, np.eye(height)[0]
        )
        delays = mean_runs(height, before, after, after)
        log_runs.append(math.log(visits.sum()))
        worst.append(delays[0])
        watching.append(delays @ visits / visits.sum())
    at = math.log(run_length)
    return float(np.interp(at, log_runs, worst)), float(np.interp(at, log_runs, watching))


def mean_run(height: int, before: float, after: float, rate: float) -> float:
    """Mean events until a CUSUM from 0 reaches `height` grid steps while the rate is `rate`."""
    return float(mean_runs(height, before, after, rate)[0])


def mean_runs(height: int, before: float, after: float, rate: float) -> Floats:
    """The same from every step below `height`, shape (height,)."""
    chain = np.eye(height) - moves(height, before, after, rate)
    return np.asarray(np.linalg.solve(chain, np.ones(height)))


def moves(height: int, before: float, after: float, rate: float) -> Floats:
    """Probabilities to go from one step to another without reaching `height`."""
    step = abs(math.log((1 - after) / (1 - before))) / GRID
    hit = round(abs(math.log(after / before)) / step)
    # A fall is a rise of the events that do not count.
    up, down, p = (hit, GRID, rate) if after > before else (GRID, hit, 1 - rate)
    states = np.arange(height)
    chain = np.zeros((height, height))
    np.add.at(chain, (states, np.maximum(states - down, 0)), 1 - p)
    stays = states[states + up < height]
    chain[stays, stays + up] += p
    return chain


def nearly_cusum_delay(null: float, after: float, run_length: float, before: float) -> float:
    """The same within some per cent, without a matrix; infinite if `null` lies beyond `after`."""
    if (null < after) != (before < after):
        return math.inf
    gain, loss = divergence(after, null), divergence(null, after)
    return (math.log(max(run_length * loss, math.e**2)) - 1) / gain


def divergence(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


# --- Delays and run lengths ----------------------------------------------------------------------


class Streams:
    """Streams of single events with bounds of their own, and a detector for each."""

    def __init__(self, low: Floats, high: Floats, head_start: float = 0.0, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.low, self.high = low, high
        config = RateDetectorConfig(head_start=head_start)
        self.detector = RateDetector(config, len(low))

    def step(self, rows: Ints, rate: Floats | float) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """One event of each row; returns log evidence and whether it counted."""
        hit, one = self.rng.random(len(rows)) < rate, np.ones(len(rows), np.int64)
        batch = (hit.astype(np.int64), one, self.low[rows], self.high[rows])
        return self.detector.update(rows, *batch, np.ones(len(rows)), one), hit

    def quiet(self, events: int) -> Floats:
        """Run without a change; returns the most evidence of each row on the way."""
        most, rows = np.full(len(self.low), -np.inf), np.arange(len(self.low))
        for _ in range(events):
            np.maximum(most, self.step(rows, BEFORE)[0], out=most)
        return most

    def delays(self, after: float, seen: Floats) -> Floats:
        """Events to each threshold, shape (A, rows); NaN where it was `seen` before the change."""
        delays = np.full((len(LOG_A), len(seen)), float(MAX_EVENTS))
        passed, rows = np.zeros(len(seen), np.int64), np.arange(len(seen))
        for event in range(1, MAX_EVENTS):
            evidence, _ = self.step(rows, after)
            for at, new in passages(evidence, passed, rows):
                delays[new, rows[at]] = event
            if event % 16 == 0 and not len(rows := rows[passed[rows] < len(LOG_A)]):
                break
        delays[seen[None, :] >= LOG_A[:, None]] = np.nan
        return delays


def passages(evidence: Floats, passed: Ints, rows: Ints) -> Iterator[tuple[int, slice]]:
    """Yield where evidence has come over new thresholds, and over which; `passed` counts them."""
    for at in np.flatnonzero(evidence >= np.append(LOG_A, np.inf)[passed[rows]]).tolist():
        row = rows[at]
        new = slice(int(passed[row]), int(np.searchsorted(LOG_A, evidence[at], side="right")))
        passed[row] = new.stop
        yield at, new


def alarm_rates(low: Floats, high: Floats, horizon: int, group: Ints) -> tuple[Floats, Floats]:
    """False alarms per event, shape (groups, A), and the mean of S / A at one, shape (A,)."""
    streams, m = Streams(low, high, seed=2), len(low)
    config = RateDetectorConfig()
    theta, share = np.array(config.odds_ratios)[:, None], np.array(config.weights)[:, None]
    bound = np.where(theta > 1, high, low)
    q = theta * bound / (1 - bound + theta * bound)
    on_hit, on_miss = q / BEFORE, (1 - q) / (1 - BEFORE)
    drawn = streams.rng.choice(len(theta), m, p=share[:, 0])
    after, start = q[drawn, np.arange(m)], streams.rng.integers(0, horizon, m)
    mixture, passed = np.zeros_like(q), np.zeros(m, np.int64)
    early, late, over = (np.zeros((len(LOG_A), m)) for _ in range(3))
    rows = np.arange(m)
    for event in range(horizon):
        rate = np.where(event < start[rows], BEFORE, after[rows])
        evidence, hit = streams.step(rows, rate)
        mixture += share
        mixture *= np.where(hit, on_hit, on_miss)
        for at, new in passages(evidence, passed, rows):
            weight = horizon / (mixture[:, at].sum() + horizon - 1 - event)
            late[new, rows[at]] = weight
            early[new, rows[at]] = weight * (event < horizon // 3)
            over[new, rows[at]] = weight * np.exp(evidence[at] - LOG_A[new])
        if event % 16 == 0:
            keep = passed[rows] < len(LOG_A)
            rows, mixture = rows[keep], mixture[:, keep]
            on_hit, on_miss = on_hit[:, keep], on_miss[:, keep]
    survived = [
        np.log1p(-np.minimum([x[:, group == g].mean(axis=1) for g in range(group.max() + 1)], 0.99))
        for x in (early, late)
    ]
    rates = (survived[0] - survived[1]) / (horizon - horizon // 3)
    return rates, over.sum(axis=1) / np.maximum(late.sum(axis=1), 1e-300)


def mean_of_known(delays: Floats) -> Floats:
    """Mean over what did not alarm before the change; 0 where nothing is left."""
    known = ~np.isnan(delays)
    total: Floats = np.where(known, delays, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return total


def measure_delays(effort: Effort) -> list[Delay]:
    """The rate is known: the run length is the mean of S at a false alarm, S - n being fair."""
    known = np.full(effort.streams, BEFORE)
    _, over = alarm_rates(known, known, effort.horizon, np.zeros(len(known), np.int64))
    log_run = LOG_A + np.log(over)
    watching = Streams(known, known)
    seen = watching.quiet(QUIET_EVENTS)
    state, nothing = watching.detector.snapshot(), np.full(len(known), -np.inf)
    found = []
    for after in CHANGES:
        watching.detector.restore(state)
        means = [
            mean_of_known(watching.delays(after, seen)),
            mean_of_known(Streams(known, known).delays(after, nothing)),
            mean_of_known(Streams(known, known, HEAD_START).delays(after, nothing)),
        ]
        for run_length in RUN_LENGTHS:
            (optimum, watched), at = cusum_delay(BEFORE, after, run_length), math.log(run_length)
            # The head start is taken off the run length: E[S] = n + head start.
            paid = np.log(np.maximum(np.exp(log_run) - HEAD_START, 1.0))
            ratios = [
                float(np.interp(at, x, mean) / optimum)
                for x, mean in (
                    (log_run, means[0]), (LOG_A, means[0]), (log_run, means[1]), (paid, means[2])
                )
            ]  # fmt: skip
            ratios.insert(1, ratios[0] * optimum / watched)
            found.append(Delay(after, run_length, optimum, *ratios))
    return found


def measure_fleet(effort: Effort, events: int, miss: float) -> Fleet:
    """Monitors whose references are the quantiles of what a reference can be."""
    counts, monitors = np.unique(
        binom.ppf((np.arange(MONITORS) + 0.5) / MONITORS, events, BEFORE).astype(np.int64),
        return_counts=True,
    )
    low, high = reference_bounds(counts, events, miss)
    share = monitors / MONITORS
    group = np.arange(effort.fleet_streams) % len(counts)
    rates, _ = alarm_rates(low[group], high[group], effort.horizon, group)
    rates = np.maximum(rates, 1e-12)
    pooled = np.maximum.accumulate((share @ rates)[::-1])[::-1]
    at_promise = [[np.interp(math.log(n), LOG_A, each) * n for n in RUN_LENGTHS] for each in rates]
    promised = np.array(at_promise)
    watching = Streams(low[group], high[group])
    seen = watching.quiet(QUIET_EVENTS)
    state, delays = watching.detector.snapshot(), []
    for after in CHANGES:
        watching.detector.restore(state)
        passed = watching.delays(after, seen)
        each = np.array([mean_of_known(passed[:, group == g]) for g in range(len(counts))])
        mean = share @ each
        for run_length in RUN_LENGTHS:
            (optimum, _), at = cusum_delay(BEFORE, after, run_length), math.log(run_length)
            matched_at = float(np.interp(at, -np.log(pooled), LOG_A))
            bounds = high if after > BEFORE else low
            told = [nearly_cusum_delay(b, after, run_length, BEFORE) for b in bounds.tolist()]
            # What never looks alarms about once in a run length all the same.
            floor = float(share @ np.minimum(told, min(run_length, MAX_EVENTS)))
            nominal, matched = (float(np.interp(x, LOG_A, mean)) for x in (at, matched_at))
            delays.append(
                FleetDelay(
                    after,
                    run_length,
                    optimum,
                    *(delay / optimum for delay in (matched, nominal, floor)),
                )
            )
    return Fleet(
        events, miss, delays, (share @ promised).tolist(), (share @ (promised <= 1)).tolist()
    )


def reference_bounds(counts: Ints, events: int, miss: float) -> tuple[Floats, Floats]:
    """What `RateReference` makes of `counts` of so many events."""
    reference = RateReference(ReferenceConfig(events, events, miss), len(counts))
    rows = np.arange(len(counts))
    reference.learn(rows, counts, np.full(len(counts), events), np.full(len(counts), True))
    return reference.bounds(rows)


# --- Null monitors, in batches and by the hour --------------------------------------------------


@dataclass(frozen=True)
class Nulls:
    """Share of monitors that alarm no more often than promised; nothing ever changes."""

    steady: float
    diurnal: float
    #: The refusal rate itself swings by a fifth with the hour of the week.
    swinging: float
    #: It doubles from night to day, and the reference is learned meanwhile; by events an hour.
    rhythm: dict[int, float]
    #: The same without strata, and without the allowance of the first day.
    rhythm_without: dict[int, float]


def measure_nulls(effort: Effort) -> Nulls:
    def share(traffic: float, swing: float) -> float:
        return float((null_alarms(effort, traffic, swing) <= 1).mean())

    def rhythm(told: bool) -> dict[int, float]:
        return {
            volume: float((rhythm_alarms(effort, volume, told) <= RHYTHM_WEEKS / 4).mean())
            for volume in VOLUMES
        }

    return Nulls(share(0.0, 0.0), share(0.9, 0.0), share(0.9, 0.2), rhythm(True), rhythm(False))


def rhythm_alarms(effort: Effort, volume: int, told: bool) -> Floats:
    """Alarms of each monitor in four weeks, shape (monitors,); batches of a quarter of an hour.

    Day and night lie anywhere in the day. From the first event on the monitors learn as
    they do in the bank. `told` is whether references know the time.
    """
    rng, rows = np.random.default_rng(6), np.arange(effort.rhythm_monitors)
    reference = RateReference(ReferenceConfig(), len(rows))
    detector, weight = RateDetector(RateDetectorConfig(), len(rows)), np.full(len(rows), 1 / 672)
    phase, alarms = rng.uniform(0, 24, len(rows)), np.zeros(len(rows))
    for quarter in range(1, RHYTHM_WEEKS * 672):
        hour = 2 * np.pi * (quarter / 4 + phase) / 24
        total = rng.poisson(volume / 4 * (1 + 0.6 * np.sin(hour)))
        count = rng.binomial(total, BEFORE * (1 + np.sin(hour - np.pi / 4) / 3))
        time_ms = np.full(len(rows), quarter * 900_000)
        times = {"time_ms": time_ms} if told else {}
        at = np.flatnonzero(reference.ready(rows) & (total > 0))
        low, high = reference.bounds(at, **{name: each[at] for name, each in times.items()})
        batch = (count[at], total[at], low, high, weight[at], time_ms[at])
        evidence = np.full(len(rows), -np.inf)
        evidence[at] = detector.update(at, *batch)
        alarmed = evidence >= math.log(4.0)
        alarms += alarmed
        detector.reset(np.flatnonzero(alarmed))
        grows = np.flatnonzero(reference.grows(rows) & (total > 0))
        quiet = evidence[grows] < 0.0
        learned = {name: each[grows] for name, each in times.items()}
        reference.learn(grows, count[grows], total[grows], quiet, **learned)
    return alarms


def null_alarms(effort: Effort, traffic: float, swing: float) -> Floats:
    """Alarms over those promised, shape (monitors,): hourly batches over weeks, six streams each.

    Promised is one alarm in four weeks; a row that alarms is reset. The reference
    is what a week's first 2,000 events were.
    """
    rng, copies, weeks_to_alarm = np.random.default_rng(3), 6, 4.0
    hours = 2 * np.pi * np.arange(168) / 24
    events, rates = 12 * (1 + traffic * np.sin(hours)), BEFORE * (1 + swing * np.sin(hours))
    mean_rate = float((events * rates).sum() / events.sum())
    count = rng.binomial(REFERENCE_EVENTS, mean_rate, MONITORS)
    low, high = (np.repeat(b, copies) for b in reference_bounds(count, REFERENCE_EVENTS, MISS))
    detector, rows = RateDetector(RateDetectorConfig(), len(low)), np.arange(len(low))
    weight, alarms = np.full(len(low), 1 / 168), np.zeros(len(low))
    for hour in range(effort.null_weeks * 168):
        total = rng.poisson(events[hour % 168], len(low))
        batch = (rng.binomial(total, rates[hour % 168]), total, low, high, weight)
        alarmed = detector.update(rows, *batch, rows) >= math.log(weeks_to_alarm)
        alarms += alarmed
        detector.reset(np.flatnonzero(alarmed))
    promised = copies * effort.null_weeks / weeks_to_alarm
    return np.asarray(alarms.reshape(MONITORS, copies).sum(axis=1) / promised)


# --- Speed and memory ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """One core; a row update is one batch of one stream, against all alternatives."""

    rows: int
    alternatives: int
    row_updates_per_s: float
    rate_updates_per_s: float
    #: The same where a packet brings every second row.
    scattered_rate_updates_per_s: float
    state_mb: float


def measure_speed() -> Speed:
    """CPU time, the median of many updates of all streams of 5,000 monitors."""
    config, rows = RateDetectorConfig(), 5_000 * FAMILIES
    all_of, half = (seconds_per_row(rows, np.arange(0, rows, every)) for every in (1, 2))
    alternatives = len(config.odds_ratios)
    detector, reference = RateDetector(config, rows), RateReference(ReferenceConfig(), rows)
    arrays = (*detector.snapshot().values(), *reference.snapshot().values())
    size = sum(a.nbytes for a in arrays) / 1e6
    each = (1 / all_of, alternatives / all_of, alternatives / half)
    return Speed(rows, alternatives, *each, size)


def seconds_per_row(available: int, rows: Ints, passes: int = 60) -> float:
    rng, m = np.random.default_rng(2), len(rows)
    detector, total = RateDetector(RateDetectorConfig(), available), np.full(m, 20)
    low, high, weight = np.full(m, 0.01), np.full(m, 0.03), np.full(m, 1e-5)
    took = []
    for at in range(passes):
        count, start = rng.binomial(total, BEFORE), np.full(m, at)
        began = time.process_time()
        detector.update(rows, count, total, low, high, weight, start)
        took.append(time.process_time() - began)
    return float(np.median(took)) / m


# --- All of it -----------------------------------------------------------------------------------


def measure(effort: Effort) -> dict[str, Any]:
    known = measure_delays(effort)
    fleets = [measure_fleet(effort, events, MISS) for events in effort.references]
    nulls, speed = measure_nulls(effort), measure_speed()
    within = min(*fleets[0].within, nulls.steady, nulls.diurnal, *nulls.rhythm.values())
    return {
        "rate_vs_cusum_known_p0": max(d.matched for d in known),
        "rate_vs_cusum_reference_2000": max(d.matched for d in fleets[0].delays),
        "null_monitors_within_promise": within,
        "rate_updates_per_s": speed.rate_updates_per_s,
        "state_mb_5000_monitors": speed.state_mb,
        "known": [asdict(d) for d in known],
        "fleets": [asdict(f) for f in fleets],
        "nulls": asdict(nulls),
        "speed": asdict(speed),
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'Known rate; over CUSUM':35} CUSUM  matched watching  nominal    fresh  ahead"
    for d in found["known"]:
        name = f"{BEFORE:.2f} → {d['after']:.2f} at {d['run_length']:.0e}"
        rest = "".join(
            f"{d[k]:9.2f}" for k in ("matched", "watching", "nominal", "fresh", "head_start")
        )
        yield f"  {name:30} {d['cusum']:7.0f}{rest}"
    for fleet in found["fleets"]:
        head = f"Reference of {fleet['events']:,} events, miss {fleet['miss']}"
        yield f"\n{head:34} matched  nominal  floor"
        for d in fleet["delays"]:
            name = f"{BEFORE:.2f} → {d['after']:.2f} at {d['run_length']:.0e}"
            yield f"  {name:30}" + "".join(f"{d[k]:9.2f}" for k in ("matched", "nominal", "floor"))
        for key in ("realised", "within"):
            yield f"  {key:30}" + "".join(f"{x:9.3f}" for x in fleet[key])
    nulls = {n: share for n, share in found["nulls"].items() if not n.startswith("rhythm")}
    yield "\nNull monitors within their promise: " + ", ".join(
        f"{name} {share:.1%}" for name, share in nulls.items()
    )
    for name, what in (("rhythm", "by the time of day"), ("rhythm_without", "without it")):
        shares = ", ".join(f"{share:.1%} at {v}/h" for v, share in found["nulls"][name].items())
        yield f"  learning a rate that doubles from night to day, {what}: {shares}"
    s = found["speed"]
    yield (
        f"\n{s['rows']:,} rows × {s['alternatives']} alternatives:"
        f" {s['row_updates_per_s'] / 1e6:.1f} M row updates/s,"
        f" {s['rate_updates_per_s'] / 1e6:.0f} M with each alternative counted"
        f" ({s['scattered_rate_updates_per_s'] / 1e6:.0f} M scattered), {s['state_mb']:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer streams, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    found = measure(QUICK if arguments.quick else Effort())
    print("\n".join(lines(found)))
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
