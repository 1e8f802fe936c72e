"""Whole weeks of thousands of monitors in which nothing changes: how many false pages?

What is asked is the bank itself, by way of packets as they come from Kafka: it learns every
reference, judges every signal of every family, and its threshold follows the number of monitors.
Nothing is told it, and nothing is skipped.

Traffic is uneven as in life: monitors from one request in hours to thousands an hour, days and
nights of each monitor's own time zone, weekends, bursts of up to twenty times for minutes up to
an hour, monitors that come in mid-week (a template's new version) or go. Rates are each
monitor's own and stay. With the evaluation data, latencies are those of `llmperf` by provider,
and fingerprints are residuals of real answers to prompts that the reference has not seen;
without, log-normal and normal. A monitor that is no request model is asked some of the prompts
alone, so what is normal there is not what is normal for the model.

Every alarm counts as a false page, also those that would only inform.
"""

from __future__ import annotations

import gc
import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.swaps import ENGLISH, English, split
from detectors.bank import WEEK_MS, Bank, BankConfig
from detectors.bank_shifts import FINGERPRINT
from pipeline.core.histogram import find_buckets
from schemas.alarm import Transition
from schemas.monitor import DEFAULT_GROUPINGS, Dimension, grouping_name
from schemas.signal import (
    BUCKET_COUNT_TYPE,
    BUCKET_TYPE,
    COUNT_TYPE,
    COUNTED,
    FIRST_TIME_MS,
    GROUPING_TYPE,
    LAST_TIME_MS,
    MEASURED,
    OFFSET_TYPE,
    REQUESTS,
    SUM_TYPE,
    Histograms,
    SignalPacket,
    Source,
    Sums,
)

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

START_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
#: One packet says what so much time brought.
INTERVAL_MS = 300_000
INTERVALS = WEEK_MS // INTERVAL_MS
#: Requests an hour: median and spread (log-normal), least and most.
PER_HOUR, PER_HOUR_SPREAD, PER_HOUR_RANGE = 20.0, 1.6, (0.3, 5_000.0)
#: In so many intervals a burst begins, once.
BURSTS = 500
#: One monitor in so many comes during the week, and as many go.
COME_AND_GO = 20
#: Median of a counted signal's rate over the monitors, and its spread (log-normal).
RATES = {"refusals": (0.01, 1.0), "errors": (0.004, 1.2), "truncations": (0.03, 0.8)}
OTHER_RATES = (0.05, 0.8)
#: Median and spread of a monitor's latencies where there are no data, in the histogram's unit.
LATENCIES = {"first_chunk_ms": (500.0, 0.5), "output_token_us": (20_000.0, 0.35)}
OTHER_LATENCIES = (100.0, 0.5)
#: Answers of which a monitor's fingerprints are drawn that is no request model, of a pool.
OWN_PROMPTS = 100
REFERENCE_ANSWERS = 500
SPAN = 2**16


@dataclass(frozen=True)
class Material:
    """What monitors are made of: samples of latency, and of fingerprints."""

    #: Histogram → samples of each provider, in the histogram's unit.
    latencies: dict[str, list[Floats]]
    #: Residuals (n, p + q) of each model, and how many answers its reference counts for.
    fingerprints: list[Floats32]
    known: int

    @classmethod
    def make(cls, seed: int = 5) -> Material:
        """Without data."""
        rng, shift = np.random.default_rng(seed), BankConfig().shift
        latencies = {}
        for name in MEASURED.values():
            middle, spread = LATENCIES.get(name, OTHER_LATENCIES)
            medians = middle * np.exp(rng.normal(0, 0.7, 12))
            latencies[name] = [m * np.exp(rng.normal(0, spread, 400)) for m in medians]
        residuals = rng.normal(size=(9, 300, shift.width)).astype(np.float32)
        return cls(latencies, list(residuals), REFERENCE_ANSWERS // 2)

    @classmethod
    def read(cls, data: Path) -> Material:
        """From the evaluation data."""
        made, english = cls.make(), English.read(data)
        streams = [split(english.corpus, s, 0, REFERENCE_ANSWERS, english.fit) for s in ENGLISH]
        latencies = {**made.latencies, **read_latencies(data / "llmperf.ndjson.gz")}
        residuals = [s.before.astype(np.float32) for s in streams]
        return cls(latencies, residuals, min(s.known for s in streams))


def read_latencies(file: Path) -> dict[str, list[Floats]]:
    """Time to first chunk and per token of each provider and model that has a hundred."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["error_code"] is None and row["ttft_s"] and row["inter_token_latency_s"]:
                chunk, token = found.setdefault(row["provider"], ([], []))
                chunk.append(row["ttft_s"] * 1e3)
                token.append(row["inter_token_latency_s"] * 1e6)
    enough = [each for each in found.values() if len(each[0]) >= 100]
    return {
        "first_chunk_ms": [np.array(chunk) for chunk, _ in enough],
        "output_token_us": [np.array(token) for _, token in enough],
    }


class Samples:
    """A list of samples for each of m monitors, laid end to end, to be drawn from at once."""

    def __init__(self, values: npt.NDArray[np.generic], first: Ints, size: Ints) -> None:
        self.values, self._first, self._size = values, first, size

    @classmethod
    def of(cls, lists: Sequence[npt.NDArray[np.generic]], chosen: Ints) -> Samples:
        """Each monitor has one of the lists."""
        sizes = np.array([len(each) for each in lists])
        first = np.cumsum(sizes) - sizes
        return cls(np.concatenate(lists), first[chosen], sizes[chosen])

    def own(self, rows: Ints, size: int, rng: np.random.Generator) -> None:
        """Let each of these rows have but a run of `size` of its list."""
        size = min(size, int(self._size.min()))
        self._first[rows] += rng.integers(0, self._size[rows] - size + 1)
        self._size[rows] = size

    def draw(self, rows: Ints, rng: np.random.Generator) -> npt.NDArray[np.generic]:
        """One sample for each entry of `rows`."""
        at = self._first[rows] + (rng.random(len(rows)) * self._size[rows]).astype(np.int64)
        drawn: npt.NDArray[np.generic] = self.values[at]
        return drawn


class Fleet:
    """A simulated company's monitors; `packet` says what an interval brought.

    With `per_interval` all have as much traffic, and all are there from the first.
    """

    def __init__(
        self, monitors: int, material: Material, seed: int, per_interval: float | None = None
    ) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.monitors, self.rows = monitors, np.arange(monitors)
        self._grouping = self.rows % len(DEFAULT_GROUPINGS)
        self._values = [
            tuple(f"{d}-{i}" for d in DEFAULT_GROUPINGS[g]) for i, g in enumerate(self._grouping)
        ]
        self._known = material.known
        least, most = PER_HOUR_RANGE
        per_hour = PER_HOUR * np.exp(rng.normal(0, PER_HOUR_SPREAD, monitors))
        self._mean = np.clip(per_hour, least, most) * INTERVAL_MS / HOUR_MS
        self._swing, self._zone = rng.uniform(0, 0.9, monitors), rng.integers(0, 24, monitors)
        self._weekend = rng.uniform(0.2, 1.0, monitors)
        self._burst, self._left = np.ones(monitors), np.zeros(monitors, np.int64)
        self._first, self._last = np.zeros(monitors, np.int64), np.full(monitors, 2**60)
        if per_interval is None:
            self._come_and_go()
        else:
            self._mean[:] = per_interval
        #: Counted signal → each monitor's rate.
        self.rates = {
            count: self._draw_rates(*RATES.get(count, OTHER_RATES)) for count, _ in COUNTED.values()
        }
        self._slow = {
            name: Samples.of(
                [find_buckets(each) for each in lists], rng.integers(0, len(lists), monitors)
            )
            for name, lists in material.latencies.items()
        }
        pools = material.fingerprints
        self._answers = Samples.of(pools, rng.integers(0, len(pools), monitors))
        of_model = [g == (Dimension.REQUEST_MODEL,) for g in DEFAULT_GROUPINGS]
        self._answers.own(
            np.flatnonzero(~np.array(of_model)[self._grouping]), OWN_PROMPTS, self.rng
        )

    def _draw_rates(self, median: float, spread: float) -> Floats:
        rates = median * np.exp(self.rng.normal(0, spread, self.monitors))
        return np.minimum(rates, 0.5)

    def _come_and_go(self) -> None:
        some = self.rng.permutation(self.rows)[: 2 * (self.monitors // COME_AND_GO)]
        come, go = some[::2], some[1::2]
        self._first[come] = self.rng.integers(0, INTERVALS, len(come))
        self._last[go] = self.rng.integers(0, INTERVALS, len(go))

    def packet(self, at: int) -> SignalPacket:
        """What the interval `at` brought, as a packet."""
        requests = self._requests(at)
        active = np.flatnonzero(requests)
        columns = self._columns(requests, active)
        answered = columns["answered"]
        start = START_MS + at * INTERVAL_MS
        columns[FIRST_TIME_MS] = np.full(len(active), start)
        columns[LAST_TIME_MS] = np.full(len(active), start + INTERVAL_MS - 1)
        return SignalPacket(
            source=Source("events", "evaluation", 0, at, at),
            part=0,
            groupings=tuple(map(grouping_name, DEFAULT_GROUPINGS)),
            grouping=self._grouping[active].astype(GROUPING_TYPE).tobytes(),
            values=tuple(self._values[i] for i in active.tolist()),
            columns={name: c.astype(COUNT_TYPE).tobytes() for name, c in columns.items()},
            histograms={
                name: self._histogram(samples, active, answered)
                for name, samples in self._slow.items()
            },
            sums={FINGERPRINT: self._sum(active, answered)},
        )

    def _requests(self, at: int) -> Ints:
        hour = at * INTERVAL_MS / HOUR_MS + self._zone
        mean = self._mean * (1 + self._swing * np.sin(2 * np.pi * hour / 24))
        mean = mean * np.where(hour // 24 % 7 >= 5, self._weekend, 1.0)
        self._left -= 1
        begins = (self._left < 0) & (self.rng.random(self.monitors) < 1 / BURSTS)
        self._burst[self._left < 0] = 1.0
        self._burst[begins] = self.rng.uniform(2, 20, int(begins.sum()))
        self._left[begins] = self.rng.integers(1, 12, int(begins.sum()))
        alive = (at >= self._first) & (at < self._last)
        return np.where(alive, self.rng.poisson(mean * self._burst), 0)

    def _columns(self, requests: Ints, active: Ints) -> dict[str, Ints]:
        columns: dict[str, Ints] = {REQUESTS: requests[active]}
        errors = self.rng.binomial(columns[REQUESTS], self.rates["errors"][active])
        columns |= {"errors": errors, "answered": columns[REQUESTS] - errors}
        for count, total in COUNTED.values():
            if total not in columns:
                columns[total] = self.rng.binomial(columns["answered"], 0.9)
            if count not in columns:
                columns[count] = self.rng.binomial(columns[total], self.rates[count][active])
        return columns

    def _histogram(self, samples: Samples, active: Ints, answered: Ints) -> Histograms:
        buckets = samples.draw(np.repeat(active, answered), self.rng).astype(np.int64)
        key = np.repeat(np.arange(len(active)), answered) * SPAN + buckets + SPAN // 2
        entries, counts = np.unique(key, return_counts=True)
        offsets = np.searchsorted(entries, np.arange(len(active) + 1) * SPAN)
        return Histograms(
            offsets.astype(OFFSET_TYPE).tobytes(),
            (entries % SPAN - SPAN // 2).astype(BUCKET_TYPE).tobytes(),
            counts.astype(BUCKET_COUNT_TYPE).tobytes(),
        )

    def _sum(self, active: Ints, answered: Ints) -> Sums:
        drawn = self._answers.draw(np.repeat(active, answered), self.rng)
        width = drawn.shape[1]
        sums = np.zeros((len(active), width))
        has = np.flatnonzero(answered)
        if len(has):
            sums[has] = np.add.reduceat(drawn, (np.cumsum(answered) - answered)[has], axis=0)
        return Sums(
            version=1,
            known=self._known,
            width=width,
            counts=answered.astype(COUNT_TYPE).tobytes(),
            matrix=sums.astype(SUM_TYPE).tobytes(),
        )


# --- Figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weeks:
    """Alarms of one fleet over its weeks, the first of which it begins knowing nothing."""

    monitors: int
    weeks: int
    requests: int
    alarms: int
    promised: float
    by_family: dict[str, int]


def run_weeks(monitors: int, weeks: int, material: Material, seed: int) -> Weeks:
    fleet, bank = Fleet(monitors, material, seed), Bank(BankConfig())
    raised: list[str] = []
    requests = 0
    for at in range(weeks * INTERVALS):
        packet = fleet.packet(at)
        requests += int(np.frombuffer(packet.columns[REQUESTS], COUNT_TYPE).sum())
        alarms = bank.update(packet).alarms
        raised += [a.family for a in alarms if a.transition is Transition.RAISED]
    promised = bank.config.false_alarms_per_week * weeks
    return Weeks(monitors, weeks, requests, len(raised), promised, dict(Counter(raised)))


def measure_state(monitors: int = 5_000) -> dict[str, float]:
    """Memory of a bank that has learned the references of all its monitors, in MB."""
    fleet = Fleet(monitors, Material.make(), 1, per_interval=60.0)
    packets = [fleet.packet(at) for at in range(8)]
    gc.collect()
    tracemalloc.start()
    bank, most = Bank(BankConfig()), 0
    for packet in packets:
        bank.update(packet)
        most = max(most, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return {"monitors": bank.monitors, "families": len(bank.families), "state_mb": most / 1e6}
