"""Verdicts, alarms and the detectors' snapshots in ClickHouse.

Delivery guarantee: at least once, and every write is idempotent by its key: the
detectors are deterministic, so a replay writes the same rows again.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from lz4.frame import LZ4FrameCompressor, decompress

from detectors.bank_verdicts import STATES, VerdictTable
from pipeline.core.chunk import CodedColumn, Columns, code_values
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.alarm import Alarm, encode_alarm
from schemas.control import Effect, Reset
from schemas.monitor import DIMENSIONS, Dimension, grouping_name
from schemas.signal import Signal

#: What every LZ4 frame begins with.
_LZ4_MAGIC = b"\x04\x22\x4d\x18"


class DetectionStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def store_verdicts(self, tables: Sequence[VerdictTable]) -> None:
        if tables:
            self._store.insert("verdicts", _verdict_rows(tables))

    def store_alarms(self, alarms: Sequence[Alarm]) -> None:
        self._store.insert_rows(
            "alarms",
            [
                {
                    "alarm_id": a.alarm_id,
                    "transition": a.transition.value,
                    "time": to_datetime(a.time_ms),
                    "grouping": a.grouping,
                    "monitor": a.monitor,
                    "family": a.family.value,
                    "signal": a.signal.value,
                    "direction": a.direction.value,
                    "e_value": a.e_value,
                    "threshold": a.threshold,
                    "change_time": to_datetime(a.change_time_ms),
                    "alarm": encode_alarm(a).decode(),
                }
                for a in alarms
            ],
        )

    def store_resets(self, resets: Sequence[Reset]) -> None:
        """Store planned changes; every signals partition stores the same rows."""
        self._store.insert_rows(
            "reference_orders",
            [
                {
                    "order_id": each.reset_id,
                    "ordered_at": to_datetime(each.time_ms),
                    "action": "reset",
                    "slice": {dimension.value: value for dimension, value in labels.items()},
                    "request_model": labels[Dimension.REQUEST_MODEL]
                    if labels.keys() == {Dimension.REQUEST_MODEL}
                    else "",
                    "note": each.note,
                }
                for each in resets
                for labels in each.slices
            ],
        )

    def store_effects(self, effects: Sequence[Effect]) -> None:
        """Store what planned changes did."""
        self._store.insert_rows(
            "planned_effects",
            [
                {
                    "order_id": e.reset_id,
                    "time": to_datetime(e.time_ms),
                    "grouping": e.grouping,
                    "monitor": e.monitor,
                    "family": e.family.value,
                    "signal": e.signal.value,
                    "before_count": e.before.count,
                    "before_total": e.before.total,
                    "after_count": e.after.count,
                    "after_total": e.after.total,
                }
                for e in effects
            ],
        )

    def save_snapshot(
        self, topic: str, epoch: str, partition: int, position: int, state: Iterable[bytes]
    ) -> None:
        """Store the state after the signal at offset `position`, given piece by piece.

        Compressed here: on its way into ClickHouse it is copied several times, and of
        thousands of monitors it is tens of megabytes, most of them zeros. So the whole
        of it is nowhere.
        """
        with LZ4FrameCompressor() as compressor:
            pieces = [compressor.begin(), *map(compressor.compress, state), compressor.flush()]
        self._store.insert_rows(
            "detector_snapshots",
            [
                {
                    "topic": topic,
                    "epoch": epoch,
                    "partition": partition,
                    "position": position,
                    "state": b"".join(pieces),
                }
            ],
        )

    def load_snapshot(self, topic: str, epoch: str, partition: int) -> tuple[int, bytes] | None:
        """Return the latest snapshot and its position, or None when there is none."""
        rows = self._store.rows(
            "SELECT position, base64Encode(state) FROM detector_snapshots"
            " WHERE topic = {topic:String} AND epoch = {epoch:String}"
            " AND partition = {partition:UInt32} ORDER BY position DESC LIMIT 1",
            {"topic": topic, "epoch": epoch, "partition": partition},
        )
        if not rows:
            return None
        state = b64decode(rows[0][1])
        # What an older version stored is handed on as it is, and the bank refuses it.
        packed = state.startswith(_LZ4_MAGIC)
        return int(rows[0][0]), decompress(state) if packed else state


def _verdict_rows(tables: Sequence[VerdictTable]) -> Columns:
    """The verdicts of all tables: a row wherever one is ready."""
    ready = [np.nonzero(table.ready) for table in tables]
    monitor = _number([row for row, _ in ready], [len(t.monitors) for t in tables])
    signal = _number([column for _, column in ready], [len(t.signals) for t in tables])
    monitors = [m for table in tables for m in table.monitors]
    labels = [m.labels() for m in monitors]

    def join(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(table, name)[table.ready] for table in tables])

    return {
        "time": np.concatenate([table.time_ms for table in tables])[monitor],
        "grouping": _repeat([grouping_name(m.grouping) for m in monitors], monitor),
        **{
            d.value: _repeat([each.get(d.value, "") for each in labels], monitor)
            for d in DIMENSIONS
        },
        "family": _repeat([f.value for table in tables for f in table.families], signal),
        "signal": _repeat([_signal_name(s, t) for t in tables for s in t.signals], signal),
        "state": _repeat([state.value for state in STATES], join("state")),
        "log_evidence": join("log_evidence"),
        "log_threshold": np.array([t for table in tables for t in table.log_thresholds])[signal],
        "baseline_count": join("baseline_count"),
        "baseline_total": join("baseline_total"),
        "baseline_low": join("baseline_low"),
        "baseline_high": join("baseline_high"),
        "current_count": join("current_count"),
        "current_total": join("current_total"),
        "change_time": join("change_time_ms"),
    }


def _signal_name(signal: Signal, table: VerdictTable) -> str:
    """Two detectors may speak of one signal, and their verdicts must not replace each other."""
    return f"{signal}/{table.detector}" if table.detector else signal.value


def _number(places: Sequence[npt.NDArray[Any]], sizes: Sequence[int]) -> npt.NDArray[Any]:
    """Places in several lists of these sizes as places in all of them, one after the other."""
    starts = accumulate(sizes, initial=0)
    return np.concatenate([place + start for place, start in zip(places, starts, strict=False)])


def _repeat(texts: Sequence[str], at: npt.NDArray[Any]) -> CodedColumn:
    coded = code_values(texts)
    return CodedColumn(coded.codes[at], coded.values)
