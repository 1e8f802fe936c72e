"""The family that sums: has what answers look like moved, given what was asked?

A monitor's fingerprints are residuals against references; what arrives are their
sums. One reference set counts at a time, the newest: with it every row starts anew,
for sums that were taken against another set do not add.

What an alarm says is put as a rate. Along the shift, one answer in ten lay beyond a
certain point; that many lie beyond it now, if what the prompt leaves open is as wide
as before. So a shift has a size that can be compared, merged and explained like any
other change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from detectors.bank_family import Batch, FamilyGroup, Lead, Readings
from detectors.bank_packet import PacketView, SumsView
from detectors.bank_rates import Material
from detectors.base import Arrays, Floats, Ints
from detectors.recovery import ShiftRecovery
from detectors.shift import Shift, ShiftDetector, ShiftDetectorConfig
from schemas.alarm import Direction, Rate
from schemas.monitor import Dimension
from schemas.signal import Family, Signal

Bools = npt.NDArray[np.bool_]

#: Name of the sums in a packet.
FINGERPRINT = "fingerprint"
#: Of the answers before a change, so many lie beyond the point by which it is measured …
ODD_SHARE = 0.1
#: … which is so many standard deviations out.
ODD_DEVIATIONS = 1.2815515655446004
#: A row waits for so many answers before it is judged: judging costs the same for one as for many.
LEAST_ANSWERS = 16

_STATE = ("sums", "counts", "weight", "first_ms", "known", "total")


class ShiftFamilies(FamilyGroup[SumsView | None]):
    """Detectors of all summed signals: one, the fingerprint.

    Memory per row: that of `ShiftDetector`, and one sum that waits.
    """

    families = (Family.FINGERPRINT,)

    def __init__(
        self, config: ShiftDetectorConfig, material: Material, recovery_ratio: float
    ) -> None:
        self._config = config
        self._material = material
        self._recovery_ratio = recovery_ratio
        self._detector = ShiftDetector(config, 0)
        self._log_e: Floats = np.zeros(0)
        #: Version of the reference set that counts; -1 before there was any.
        self._version = -1
        #: Answers that wait to be judged, and what has to be known of them.
        self._sums: Floats = np.zeros((0, config.width))
        self._counts: Ints = np.zeros(0, np.int64)
        self._weight: Floats = np.zeros(0)
        self._first_ms: Ints = np.zeros(0, np.int64)
        #: How many answers the row's reference rests on; how many it has judged.
        self._known: Ints = np.zeros(0, np.int64)
        self._total: Ints = np.zeros(0, np.int64)

    def resize(self, rows: int) -> None:
        self._detector.resize(rows)
        extra = rows - len(self._counts)
        self._log_e = np.concatenate([self._log_e, np.full(extra, -np.inf)])
        for name in _STATE:
            held = getattr(self, f"_{name}")
            blank = np.zeros((extra, *held.shape[1:]), held.dtype)
            setattr(self, f"_{name}", np.concatenate([held, blank]))

    # Judging

    def judge(self, batch: Batch) -> SumsView | None:
        view = batch.view.sums.get(FINGERPRINT)
        # Time passes for a row whether or not there was an answer to judge.
        self._weight[batch.rows] += batch.weight
        if view is None or view.version < self._version or not self._fits(view):
            return None
        if view.version > self._version:
            self._start_anew(view.version)
            self._weight[batch.rows] = batch.weight
        self._gather(batch, view)
        full = batch.rows[self._counts[batch.rows] >= LEAST_ANSWERS]
        if len(full):
            self._judge(full)
        return view

    def _fits(self, view: SumsView) -> bool:
        return view.matrix.shape[1] == self._config.width and view.known > 0

    def outdate(self, version: int) -> None:
        if version > self._version:
            self._start_anew(version)

    def _start_anew(self, version: int) -> None:
        self._version = version
        self.reset(np.arange(len(self._counts)))

    def _gather(self, batch: Batch, view: SumsView) -> None:
        has = np.flatnonzero(view.counts)
        rows, first = batch.rows[has], batch.first_time_ms[has]
        waiting = self._counts[rows] > 0
        earliest = np.minimum(self._first_ms[rows], first)
        self._first_ms[rows] = np.where(waiting, earliest, first)
        self._sums[rows] += view.matrix[has]
        self._counts[rows] += view.counts[has]
        self._known[rows] = np.where(_are_models(batch.view)[has], view.known, 1)

    def _judge(self, rows: Ints) -> None:
        self._log_e[rows] = self._detector.update(
            rows,
            self._sums[rows],
            self._counts[rows],
            self._known[rows],
            self._weight[rows],
            self._first_ms[rows],
        )
        self._total[rows] += self._counts[rows]
        self._sums[rows] = self._weight[rows] = self._counts[rows] = 0

    def log_evidence(self, rows: Ints) -> Floats:
        return self._log_e[rows][:, None]

    # What matters

    def find_leads(self, rows: Ints, family: int, log_threshold: float) -> list[tuple[int, Lead]]:
        shift = self._change(rows)
        share = _share_beyond(shift.mean)
        least = max(ODD_SHARE * self._material.ratio, ODD_SHARE + self._material.difference)
        return [
            (at, self._make_lead(int(rows[at]), float(share[at]), shift, at))
            for at in np.flatnonzero(share >= least).tolist()
        ]

    def _change(self, rows: Ints) -> Shift:
        return self._detector.change(rows, np.maximum(self._known[rows], 1))

    def _make_lead(self, row: int, share: float, shift: Shift, at: int) -> Lead:
        total = int(shift.total[at])
        before = int(self._known[row] + self._total[row]) - total
        return Lead(
            signal=Signal.FINGERPRINT,
            direction=Direction.RISE,
            baseline=Rate(round(ODD_SHARE * before), before),
            current=Rate(round(share * total), total),
            change_time_ms=int(shift.start[at]),
            edge=None,
            shift=tuple(shift.mean[at].tolist()),
        )

    # Coming back

    def start_recovery(self, row: int, lead: Lead) -> ShiftRecovery:
        before = self._change(np.array([row])).before[0]
        ratio = math.log(self._recovery_ratio)
        return ShiftRecovery(before.tolist(), list(lead.shift), self._version, ratio)

    def has_recovered(
        self, test: ShiftRecovery, signal: Signal, tally: SumsView | None, at: int
    ) -> bool:
        if test.version != self._version:
            # Somebody has said what is normal from now on.
            return True
        return tally is not None and test.update(
            tally.matrix[at, : self._config.dimensions], int(tally.counts[at])
        )

    def clear(self, row: int, family: int) -> None:
        self.reset(np.array([row]))

    def reset(self, rows: Ints) -> None:
        self._detector.reset(rows)
        self._log_e[rows] = -np.inf
        for name in _STATE:
            getattr(self, f"_{name}")[rows] = 0

    # Learning and reporting

    def learning(self, rows: Ints, family: int) -> Bools:
        # What came before each possible change is what the detector knows of a row.
        return np.zeros(len(rows), np.bool_)

    def learn(self, batch: Batch, tally: SumsView | None, quiet: Bools) -> None:
        """Nothing: see `learning`."""

    def read(self, rows: Ints) -> Readings:
        shift = self._change(rows)
        current = np.rint(_share_beyond(shift.mean) * shift.total).astype(np.int64)
        total = self._known[rows] + self._total[rows] - shift.total
        share = np.full((len(rows), 1), ODD_SHARE)
        return Readings(
            families=self.families,
            signals=(Signal.FINGERPRINT,),
            ready=(self._total[rows] > 0)[:, None],
            baseline_count=np.rint(ODD_SHARE * total).astype(np.int64)[:, None],
            baseline_total=total[:, None],
            baseline_low=share,
            baseline_high=share,
            current_count=current[:, None],
            current_total=shift.total[:, None],
            change_time_ms=shift.start[:, None],
        )

    # Snapshots

    def snapshot(self) -> Iterator[tuple[str, Arrays]]:
        yield "detector", self._detector.snapshot()
        waiting = {name: getattr(self, f"_{name}").copy() for name in _STATE}
        yield "waiting", {**waiting, "version": np.array([self._version])}

    def restore(self, parts: Mapping[str, Mapping[str, npt.NDArray[np.generic]]]) -> None:
        waiting = parts["waiting"]
        if missing := [name for name in (*_STATE, "version") if name not in waiting]:
            raise ValueError(f"the snapshot lacks {', '.join(missing)}")
        self._detector.restore(parts["detector"])
        for name in _STATE:
            setattr(self, f"_{name}", waiting[name].copy())
        self._version = int(waiting["version"][0])
        self._log_e = self._detector.log_evidence(np.arange(self._detector.rows))


def _are_models(view: PacketView) -> Bools:
    """Monitors whose mean is 0 by construction: a reference is that of a request model.

    One of its routes or tenants may be answered differently from the rest, and has been
    all along. What is normal for them they learn from nothing but themselves.
    """
    of_model = [grouping == (Dimension.REQUEST_MODEL,) for grouping in view.groupings]
    return np.array(of_model, np.bool_)[view.grouping]


def _share_beyond(shift: Floats) -> Floats:
    """How many answers lie beyond the point now, along each shift (m, p), shape (m,)."""
    # As in `detectors.bounds`: slow to load.
    from scipy.special import ndtr

    share: Floats = ndtr(np.linalg.norm(shift, axis=1) - ODD_DEVIATIONS)
    return share
