"""The families that count: k of n events had a property, and is that still the rate?

State is arrays over monitors × signals. A stream, one signal of one monitor,
has index row · s + signal. Every family has the mean of its signals' e-values:
they depend on each other, so they are never multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from detectors.bank_family import Batch, FamilyGroup, Lead, Readings
from detectors.bank_packet import PacketView
from detectors.bank_tails import TailEdges
from detectors.base import Arrays, Floats, Ints
from detectors.rate import Change, RateDetector, RateDetectorConfig
from detectors.recovery import RecoveryTest
from detectors.reference import RateReference, ReferenceConfig
from schemas.alarm import Direction, Rate
from schemas.signal import CLASSED, COUNTED, FAMILY_OF, MEASURED, RARE, RISING, Family, Signal

Bools = npt.NDArray[np.bool_]
Number = TypeVar("Number", bound=np.generic)

#: Alternatives of the detectors that ask whether a rate is beyond all that is immaterial.
BEYOND = RateDetectorConfig((0.5, 2.0, 5.0))

#: Signals that every monitor has, or may have at any moment.
SIGNALS: tuple[Signal, ...] = tuple(
    s for s in Signal if (s in COUNTED or s in MEASURED) and s not in RARE
)


@dataclass(frozen=True)
class Material:
    """The smallest change worth a page: by a factor, in absolute terms, and in time."""

    ratio: float = 1.5
    difference: float = 0.01
    lasting_ms: int = 0


class Tally(NamedTuple):
    """So many of so many events had each signal's property, shape (m, s) both."""

    counts: Ints
    totals: Ints


class RateFamilies(FamilyGroup[Tally]):
    """Detectors of all counted signals. Cost per batch: a fixed number of passes over m × s."""

    def __init__(
        self,
        reference: ReferenceConfig,
        detector: RateDetectorConfig,
        materiality: Mapping[Family, Material],
        recovery_ratio: float,
        signals: tuple[Signal, ...] = SIGNALS,
    ) -> None:
        self.signals = signals
        own = {FAMILY_OF[s] for s in signals}
        self.families: tuple[Family, ...] = tuple(f for f in Family if f in own)
        self._members = [
            [i for i, s in enumerate(signals) if FAMILY_OF[s] is f] for f in self.families
        ]
        self._family = np.array([self.families.index(FAMILY_OF[s]) for s in signals])
        names = dict.fromkeys(MEASURED[s] for s in signals if s in MEASURED)
        #: Histogram → the signals that count on it.
        self._measured = {
            name: tuple(s for s in signals if MEASURED.get(s) == name) for name in names
        }
        self._rising: Bools = np.array([s in RISING for s in signals])
        #: Ratio and difference, shape (s,) each.
        self._ratio: Floats = np.array([materiality[FAMILY_OF[s]].ratio for s in self.signals])
        self._difference: Floats = np.array(
            [materiality[FAMILY_OF[s]].difference for s in self.signals]
        )
        self._recovery_ratio = recovery_ratio
        self._detector = RateDetector(detector, 0)
        # Beside it the same question with another null: not "is this the baseline?"
        # but "is this a change too small to matter?". A small change that has
        # lasted for weeks would otherwise hide a large one behind its average.
        self._beyond = RateDetector(BEYOND, 0)
        self._reference = RateReference(reference, 0)
        self._tails = {n: TailEdges(reference.learn, 0, s) for n, s in self._measured.items()}
        # What the detectors say, kept so that it is worked out once for each update.
        self._log_e: Floats = np.zeros(0)
        self._log_e_beyond: Floats = np.zeros(0)

    def resize(self, rows: int) -> None:
        streams = rows * len(self.signals)
        self._detector.resize(streams)
        self._beyond.resize(streams)
        self._reference.resize(streams)
        for tails in self._tails.values():
            tails.resize(rows)
        new = np.arange(len(self._log_e), streams)
        self._log_e = np.concatenate([self._log_e, self._detector.log_evidence(new)])
        self._log_e_beyond = np.concatenate([self._log_e_beyond, self._beyond.log_evidence(new)])

    # Counting and judging

    def judge(self, batch: Batch) -> Tally:
        tally = self._tally(batch.rows, batch.view)
        # In the order in which the streams lie: detectors are fastest along a run of rows.
        order = np.argsort(batch.rows)
        totals = tally.totals[order].ravel()
        use = np.flatnonzero(totals)
        monitor, signal = np.divmod(use, len(self.signals))
        streams = batch.rows[order[monitor]] * len(self.signals) + signal
        ready = self._reference.ready(streams)
        use, signal, streams, at = use[ready], signal[ready], streams[ready], order[monitor[ready]]
        rest = (batch.weight[at], batch.first_time_ms[at])
        self._update(streams, signal, tally.counts[at, signal], totals[use], *rest)
        return tally

    def _tally(self, rows: Ints, view: PacketView) -> Tally:
        count = np.zeros((len(rows), len(self.signals)), np.int64)
        total = np.zeros_like(count)
        for at, signal in enumerate(self.signals):
            # Of what the packet was made without, nothing was counted; not: it never happened.
            if signal in COUNTED and view.columns.keys() >= set(COUNTED[signal]):
                count[:, at], total[:, at] = (view.columns[name] for name in COUNTED[signal])
        for name, tails in self._tails.items():
            if (histogram := view.histograms.get(name)) is not None:
                beyond, known = tails.count(rows, histogram)
                for signal, each in zip(self._measured[name], beyond, strict=True):
                    at = self.signals.index(signal)
                    count[:, at], total[:, at] = each, known
        return Tally(count, total)

    def _update(
        self, streams: Ints, signal: Ints, count: Ints, total: Ints, weight: Floats, time: Ints
    ) -> None:
        low, high = self._reference.bounds(streams, time)
        # Below a bound of 0 no rate can fall.
        low = np.where(self._rising[signal], 0.0, low)
        self._log_e[streams] = self._detector.update(streams, count, total, low, high, weight, time)
        least, most = self._immaterial(streams, signal, low, high)
        self._log_e_beyond[streams] = self._beyond.update(
            streams, count, total, least, most, weight, time
        )

    def _immaterial(
        self, streams: Ints, signal: Ints, low: Floats, high: Floats
    ) -> tuple[Floats, Floats]:
        """The span of rates that are no change, or one too small to matter."""
        count, total = self._reference.counts(streams)
        rate = (count + 0.5) / (total + 1)
        ratio, difference = self._ratio[signal], self._difference[signal]
        least = np.where(
            self._rising[signal], 0.0, np.minimum(low, np.minimum(rate / ratio, rate - difference))
        )
        most = np.maximum(high, np.maximum(rate * ratio, rate + difference))
        return np.maximum(least, 0.0), np.minimum(most, 1.0)

    def log_evidence(self, rows: Ints) -> Floats:
        each = self._log_e.reshape(-1, len(self.signals))[rows]
        evidence = each[:, [members[0] for members in self._members]]
        for family, members in enumerate(self._members):
            if len(members) > 1:
                evidence[:, family] = _mean(each[:, members])
        return evidence

    # What matters

    def find_leads(self, rows: Ints, family: int, log_threshold: float) -> list[tuple[int, Lead]]:
        signal, change = self._lead(rows, family, self._detector, self._log_e)
        material = self._is_material(rows, signal, change)
        found = [
            (at, self._make_lead(int(rows[at]), int(signal[at]), _pick(change, at)))
            for at in np.flatnonzero(material).tolist()
        ]
        rest = np.flatnonzero(~material)
        beyond = self._log_e_beyond.reshape(-1, len(self.signals))[rows[rest]][
            :, self._members[family]
        ]
        rest = rest[_mean(beyond) >= log_threshold]
        signal, change = self._lead(rows[rest], family, self._beyond, self._log_e_beyond)
        found += [
            (at, self._make_lead(int(rows[at]), int(signal[i]), _pick(change, i)))
            for i, at in enumerate(rest.tolist())
        ]
        return sorted(found, key=lambda each: each[0])

    def _lead(
        self, rows: Ints, family: int, detector: RateDetector, log_e: Floats
    ) -> tuple[Ints, Change]:
        """The signal of the family with the most evidence, and its change, row by row."""
        members = np.array(self._members[family])
        signal = members[np.argmax(log_e.reshape(-1, len(self.signals))[rows][:, members], axis=1)]
        return signal, detector.change(rows * len(self.signals) + signal)

    def _is_material(self, rows: Ints, signal: Ints, change: Change) -> Bools:
        count, total = self._reference.counts(rows * len(self.signals) + signal)
        # Half an event more on both sides: a baseline of 0 in 300 is not a rate of nought.
        before = (count + 0.5) / (total + 1)
        now = (change.count + 0.5) / (change.total + 1)
        more, less = np.where(change.rise, (now, before), (before, now))
        material: Bools = (more / less >= self._ratio[signal]) & (
            more - less >= self._difference[signal]
        )
        return material

    def _make_lead(self, row: int, signal: int, change: Change) -> Lead:
        count, total = self._reference.counts(self._stream(row, signal))
        return Lead(
            signal=self.signals[signal],
            direction=Direction.RISE if change.rise[0] else Direction.FALL,
            baseline=Rate(int(count[0]), int(total[0])),
            current=Rate(int(change.count[0]), int(change.total[0])),
            change_time_ms=int(change.start[0]),
            **self._edges(row, self.signals[signal]),
        )

    def _edges(self, row: int, signal: Signal) -> dict[str, Any]:
        """What a lead says of the quantile beyond which its signal counts."""
        if signal not in MEASURED:
            return {"edge": None}
        edges = self._tails[MEASURED[signal]].edges(row, signal)
        if signal in CLASSED:
            return {"edge": None, "edges": tuple(-1.0 if e is None else e for e in edges)}
        return {"edge": edges[0]}

    # Coming back

    def start_recovery(self, row: int, lead: Lead) -> RecoveryTest:
        low, high = self._reference.bounds(self._stream(row, self.signals.index(lead.signal)))
        rise = lead.direction is Direction.RISE
        bound = float(high[0] if rise else low[0])
        return RecoveryTest.between(bound, lead.current.value, self._recovery_ratio, rise)

    def has_recovered(self, test: RecoveryTest, signal: Signal, tally: Tally, at: int) -> bool:
        column = self.signals.index(signal)
        return test.update(int(tally.counts[at, column]), int(tally.totals[at, column]))

    def clear(self, row: int, family: int) -> None:
        self._forget(row * len(self.signals) + np.array(self._members[family]))

    def _forget(self, streams: Ints) -> None:
        self._detector.reset(streams)
        self._beyond.reset(streams)
        self._log_e[streams] = self._detector.log_evidence(streams)
        self._log_e_beyond[streams] = self._beyond.log_evidence(streams)

    def reset(self, rows: Ints) -> None:
        streams = self._streams(rows)
        self._forget(streams)
        self._reference.reset(streams)
        for tails in self._tails.values():
            tails.reset(rows)

    def outdate(self, version: int) -> None:
        """Nothing: these references are learned here."""

    # Learning and reporting

    def learning(self, rows: Ints, family: int) -> Bools:
        streams = rows[:, None] * len(self.signals) + np.array(self._members[family])
        grows = self._reference.grows(streams.ravel()).reshape(streams.shape)
        learns: Bools = np.logical_or.reduce(grows, axis=1)
        return learns

    def learn(self, batch: Batch, tally: Tally, quiet: Bools) -> None:
        has = np.flatnonzero(tally.totals)
        at, signal = np.divmod(has, len(self.signals))
        streams = batch.rows[at] * len(self.signals) + signal
        grows = self._reference.grows(streams)
        if not grows.all():
            has, at, signal, streams = (each[grows] for each in (has, at, signal, streams))
        if len(has):
            self._reference.learn(
                streams,
                tally.counts.ravel()[has],
                tally.totals.ravel()[has],
                quiet[at, self._family[signal]],
                batch.first_time_ms[at],
            )

    def read(self, rows: Ints) -> Readings:
        streams, shape = self._streams(rows), (len(rows), len(self.signals))
        ready = self._reference.ready(streams)
        # Of what is not ready nothing is said, and with many monitors that is most.
        streams = streams[ready]
        change = self._detector.change(streams)
        count, total = self._reference.counts(streams)
        low, high = self._reference.bounds(streams)

        def lay_out(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
            out = np.zeros(len(ready), values.dtype)
            out[ready] = values
            return out.reshape(shape)

        return Readings(
            families=tuple(FAMILY_OF[s] for s in self.signals),
            signals=self.signals,
            ready=ready.reshape(shape),
            baseline_count=lay_out(count),
            baseline_total=lay_out(total),
            baseline_low=lay_out(low),
            baseline_high=lay_out(high),
            current_count=lay_out(change.count),
            current_total=lay_out(change.total),
            change_time_ms=lay_out(change.start),
        )

    # Snapshots

    def snapshot(self) -> Iterator[tuple[str, Arrays]]:
        yield "detector", self._detector.snapshot()
        yield "beyond", self._beyond.snapshot()
        yield "reference", self._reference.snapshot()
        for name, tails in self._tails.items():
            yield f"tails_{name}", tails.snapshot()

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[np.generic]]]) -> None:
        self._detector.restore(parts["detector"])
        self._beyond.restore(parts["beyond"])
        self._reference.restore(parts["reference"])
        for name, tails in self._tails.items():
            tails.restore(parts[f"tails_{name}"])
        streams = np.arange(self._detector.rows)
        self._log_e = self._detector.log_evidence(streams)
        self._log_e_beyond = self._beyond.log_evidence(streams)

    def _streams(self, rows: Ints) -> Ints:
        """The streams of these rows, side by side, shape (m · s,)."""
        width = len(self.signals)
        streams: Ints = (rows[:, None] * width + np.arange(width)).ravel()
        return streams

    def _stream(self, row: int, signal: int) -> Ints:
        return np.array([row * len(self.signals) + signal])


def _mean(log_e: Floats) -> Floats:
    """Logarithm of the mean e-value of each row, shape (m, members)."""
    if log_e.shape[1] == 1:
        return log_e[:, 0]
    with np.errstate(invalid="ignore"):
        mean: Floats = np.logaddexp.reduce(log_e, axis=1) - np.log(log_e.shape[1])
    return mean


def _pick(change: Change, at: int) -> Change:
    one = slice(at, at + 1)
    return Change(change.rise[one], change.start[one], change.total[one], change.count[one])
