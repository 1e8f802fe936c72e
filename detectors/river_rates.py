"""River's drift detectors (ADWIN, Page–Hinkley, KSWIN) on rates: alarms without a promise.

They say *that* a stream has drifted, by rules of their own, and give no
e-value: nothing here bounds how often they alarm for nothing, and what they
return must not be averaged with evidence. Their reference is what they have
seen themselves, so a slow change becomes their normal.

River's detectors take one number at a time. A stream's events are cut into
groups of `events_per_value`, and a group's rate is the number; inside a batch,
where the order of events is not known, counts are spread evenly.

River offers no way to store a detector but pickle. So the last values are kept,
and a detector *is* what it becomes when they are fed to a new one: `restore` does
that. When `remember` values are there, the older half is forgotten and the
detector is made anew from the rest. It never looks back further than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.base import Arrays, Detector, Floats, Ints
from detectors.rate import Change

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint16]


class RiverKind(StrEnum):
    """Which of river's detectors; the values are their names in the configuration."""

    ADWIN = "adwin"
    PAGE_HINKLEY = "page_hinkley"
    KSWIN = "kswin"


#: What a detector may be given, by river's own names.
_PARAMETERS: dict[RiverKind, frozenset[str]] = {
    RiverKind.ADWIN: frozenset(
        {"delta", "clock", "max_buckets", "min_window_length", "grace_period"}
    ),
    RiverKind.PAGE_HINKLEY: frozenset({"min_instances", "delta", "threshold", "alpha", "mode"}),
    RiverKind.KSWIN: frozenset({"alpha", "window_size", "stat_size", "seed"}),
}


def _build(kind: RiverKind, parameters: Mapping[str, Any]) -> Any:
    # Here and not above: it takes a second and 60 MB, and most workers have no use for it.
    # River says nothing of its types.
    drift: Any = import_module("river.drift")
    match kind:
        case RiverKind.ADWIN:
            return drift.ADWIN(**parameters)
        case RiverKind.PAGE_HINKLEY:
            return drift.PageHinkley(**parameters)
        case RiverKind.KSWIN:
            # Without a seed it draws from the system's randomness.
            return drift.KSWIN(**{"seed": 1, **parameters})


@dataclass(frozen=True)
class RiverConfig:
    """`parameters` are river's own; what is not given is as river has it."""

    kind: RiverKind
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)
    #: Events whose rate is one value for the detector.
    events_per_value: int = 1
    #: Of one batch at most so many values are fed, the last ones: it bounds the cost of an update.
    values_per_update: int = 200
    #: Values that are kept of each stream.
    remember: int = 2_000

    def __post_init__(self) -> None:
        if unknown := set(self.parameters) - _PARAMETERS[self.kind]:
            raise ValueError(f"{self.kind} must not be given {', '.join(sorted(unknown))}")
        for each in self.parameters.values():
            if not isinstance(each, str) and not np.isfinite(each):
                raise ValueError("parameters must be finite")
        if not 1 <= self.events_per_value <= np.iinfo(np.uint16).max:
            raise ValueError("events_per_value must lie between 1 and 65535")
        if not 1 <= self.values_per_update <= self.remember // 2:
            raise ValueError("values_per_update must be positive, and at most half of remember")
        if int(self.parameters.get("window_size", 100)) > self.remember // 2:
            raise ValueError("window_size must be at most half of remember")
        self.build()

    def build(self) -> Any:
        """Return a new detector of river's."""
        return _build(self.kind, self.parameters)

    def name(self) -> bytes:
        """What tells a snapshot of one configuration from that of another."""
        sizes = (self.events_per_value, self.values_per_update, self.remember)
        return repr((self.kind.value, sorted(self.parameters.items()), *sizes)).encode()


class _Stream:
    """One row: river's detector, and the values that make it what it is."""

    def __init__(self, config: RiverConfig) -> None:
        self.config = config
        self.detector = config.build()
        self.counts: Counts = np.zeros(config.remember, np.uint16)
        self.times: Ints = np.zeros(config.remember, np.int64)
        self.size = 0

    def feed(self, counts: Counts, time: int) -> bool:
        """Take in values, at most half of `remember`; return whether there was a drift."""
        if self.size + len(counts) > self.config.remember:
            self._forget()
        end = self.size + len(counts)
        self.counts[self.size : end], self.times[self.size : end] = counts, time
        self.size = end
        return self._pass_on(counts)

    def replay(self, counts: Counts, times: Ints) -> None:
        """Become what a stream is that has these values, and no others."""
        self.detector, self.size = self.config.build(), len(counts)
        self.counts[: self.size], self.times[: self.size] = counts, times
        self._pass_on(counts)

    def _forget(self) -> None:
        kept = slice(max(self.size - self.config.remember // 2, 0), self.size)
        self.replay(self.counts[kept].copy(), self.times[kept].copy())

    def _pass_on(self, counts: Counts) -> bool:
        drift = False
        for value in (counts / self.config.events_per_value).tolist():
            self.detector.update(value)
            drift |= bool(self.detector.drift_detected)
        return drift

    def best_split(self) -> tuple[bool, int, int, int]:
        """Rise, start, total and count of the likeliest single change among the values kept."""
        hits = np.cumsum(self.counts[: self.size], dtype=np.float64)
        events = np.arange(1.0, self.size + 1) * self.config.events_per_value
        all_hits, all_events = hits[-1], events[-1]
        after_hits, after_events = all_hits - hits[:-1], all_events - events[:-1]
        likelihood = _log_likelihood(hits[:-1], events[:-1])
        likelihood += _log_likelihood(after_hits, after_events)
        at = int(np.argmax(likelihood)) if self.size > 1 else 0
        k, n = (after_hits[at], after_events[at]) if self.size > 1 else (all_hits, all_events)
        first = min(at + 1, self.size - 1)
        return bool(k / n > hits[at] / events[at]), int(self.times[first]), int(n), int(k)


class RiverDetector(Detector):
    """River's detectors for r streams, one row each. An alarm stands until the row is reset.

    It keeps all of `Detector`'s contract but the promise. Cost: two steps of river's
    per value, in Python, on average; at most `values_per_update` and half of
    `remember` at once. Memory:
    ten bytes for each of `remember` values of every row that was ever updated,
    and river's own.
    """

    def __init__(self, config: RiverConfig, rows: int) -> None:
        self.config = config
        self._streams: dict[int, _Stream] = {}
        #: Events that do not make a value yet.
        self._pending_total: Ints = np.zeros(rows, np.int64)
        self._pending_count: Ints = np.zeros(rows, np.int64)
        self._alarmed: Bools = np.zeros(rows, np.bool_)
        self._rise: Bools = np.zeros(rows, np.bool_)
        self._start: Ints = np.zeros(rows, np.int64)
        self._total: Ints = np.zeros(rows, np.int64)
        self._count: Ints = np.zeros(rows, np.int64)

    @property
    def rows(self) -> int:
        return len(self._alarmed)

    def update(self, rows: Ints, count: Ints, total: Ints, time: Ints) -> Floats:
        """Take in one batch and return `log_evidence` of each row in it, shape (m,).

        Args:
            rows: distinct row numbers, shape (m,) like all that follow.
            count, total: `count` of `total` events, 0 ≤ count ≤ total.
            time: start of the batch, any unit; comes back as the change point.

        Raises:
            ValueError: a row that is not there or stands twice; a count outside its
                range or not finite; shapes that differ.
        """
        _check(rows, count, total, time, self.rows)
        for row, k, n, t in zip(*(a.tolist() for a in (rows, count, total, time)), strict=True):
            self._update_row(row, int(k), int(n), int(t))
        return self.log_evidence(rows)

    def _update_row(self, row: int, count: int, total: int, time: int) -> None:
        k, n = int(self._pending_count[row]) + count, int(self._pending_total[row]) + total
        size = self.config.events_per_value
        groups = n // size
        # Spread evenly: so many of the k have come by the end of each group.
        first = max(groups - self.config.values_per_update, 0)
        by_then = [k * size * g // n for g in range(first, groups + 1)] if groups else [0]
        self._pending_count[row], self._pending_total[row] = k - by_then[-1], n - groups * size
        if not groups:
            return
        if row not in self._streams:
            self._streams[row] = _Stream(self.config)
        stream = self._streams[row]
        drift = stream.feed(np.diff(by_then).astype(np.uint16), time)
        if drift and not self._alarmed[row]:
            self._alarmed[row] = True
            self._rise[row], self._start[row], self._total[row], self._count[row] = (
                stream.best_split()
            )

    def log_evidence(self, rows: Ints) -> Floats:
        """Return inf for a row that stands alarmed and -inf for others: a verdict, no e-value."""
        return np.where(self._alarmed[rows], np.inf, -np.inf)

    def change(self, rows: Ints) -> Change:
        """Return the likeliest change among the values kept, as it looked at the alarm."""
        return Change(self._rise[rows], self._start[rows], self._total[rows], self._count[rows])

    def kept(self, row: int) -> tuple[int, int]:
        """Return the count and the total of the values that are kept of a row."""
        if (stream := self._streams.get(row)) is None:
            return 0, 0
        hits = int(stream.counts[: stream.size].sum(dtype=np.int64))
        return hits, stream.size * self.config.events_per_value

    def resize(self, rows: int) -> None:
        """Add rows; the new ones have seen nothing."""
        if rows < self.rows:
            raise ValueError(f"{self.rows} rows cannot be cut to {rows}")
        for name in _COLUMNS:
            column = getattr(self, f"_{name}")
            extra = np.zeros(rows - len(column), column.dtype)
            setattr(self, f"_{name}", np.concatenate([column, extra]))

    def reset(self, rows: Ints) -> None:
        """Forget all that these rows have seen, their normal included."""
        for name in _COLUMNS:
            getattr(self, f"_{name}")[rows] = 0
        for row in rows.tolist():
            self._streams.pop(row, None)

    def snapshot(self) -> Arrays:
        """Return copies of the whole state; `restore` brings it back bit for bit."""
        size = np.array([self._size(row) for row in range(self.rows)], np.int64)
        streams = [self._streams[row] for row in np.flatnonzero(size).tolist()]
        values = [s.counts[: s.size] for s in streams] or [np.zeros(0, np.uint16)]
        times = [s.times[: s.size] for s in streams] or [np.zeros(0, np.int64)]
        state: Arrays = {name: getattr(self, f"_{name}").copy() for name in _COLUMNS}
        made_by = np.frombuffer(self.config.name(), np.uint8).copy()
        joined: Arrays = {"values": np.concatenate(values), "times": np.concatenate(times)}
        return {"config": made_by, "size": size, **joined, **state}

    def _size(self, row: int) -> int:
        return self._streams[row].size if row in self._streams else 0

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take on a state from `snapshot`.

        Raises:
            ValueError: it was made with another configuration, or is not whole.
        """
        _check_snapshot(arrays, self.config)
        streams, ends = {}, np.cumsum(arrays["size"])
        for row in np.flatnonzero(arrays["size"]).tolist():
            part = slice(int(ends[row] - arrays["size"][row]), int(ends[row]))
            streams[row] = _Stream(self.config)
            streams[row].replay(
                arrays["values"][part].astype(np.uint16), arrays["times"][part].astype(np.int64)
            )
        self._streams = streams
        for name in _COLUMNS:
            setattr(self, f"_{name}", arrays[name].copy())


_COLUMNS = ("pending_total", "pending_count", "alarmed", "rise", "start", "total", "count")


def _log_likelihood(hits: Floats, events: Floats) -> Floats:
    """Log likelihood of `hits` of `events` at the rate that suits them best."""
    misses = events - hits
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = np.where(hits > 0, hits * np.log(hits / events), 0.0)
        no = np.where(misses > 0, misses * np.log(misses / events), 0.0)
    total: Floats = yes + no
    return total


def _check(rows: Ints, count: Ints, total: Ints, time: Ints, available: int) -> None:
    if rows.ndim != 1 or any(each.shape != rows.shape for each in (count, total, time)):
        raise ValueError("rows and all that runs parallel to them must have one shape (m,)")
    if len(rows) and (rows.min() < 0 or rows.max() >= available):
        raise ValueError(f"rows must lie between 0 and {available - 1}")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("a row must not stand twice in the batch")
    if not ((count >= 0).all() and (count <= total).all() and (total < np.inf).all()):
        raise ValueError("counts must lie between 0 and their totals")


def _check_snapshot(arrays: Mapping[str, npt.NDArray[np.generic]], config: RiverConfig) -> None:
    if missing := [n for n in ("config", "size", "values", "times", *_COLUMNS) if n not in arrays]:
        raise ValueError(f"the snapshot lacks {', '.join(missing)}")
    if arrays["config"].tobytes() != config.name():
        raise ValueError("the snapshot was made with another configuration")
    size, rows = arrays["size"], len(arrays["alarmed"])
    values = int(size.sum())
    if any(arrays[name].shape != (rows,) for name in ("size", *_COLUMNS)) or any(
        arrays[name].shape != (values,) for name in ("values", "times")
    ):
        raise ValueError("the snapshot's arrays do not fit one another")
    if not all(0 <= each <= config.remember for each in size.tolist()):
        raise ValueError("the snapshot keeps more values than the configuration does")
