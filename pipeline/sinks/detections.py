"""Verdicts, alarms and the detectors' snapshots in ClickHouse.

Delivery guarantee: at least once, and every write is idempotent by its key: the
detectors are deterministic, so a replay writes the same rows again.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence

from pipeline.core.chunk import Columns
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.alarm import Alarm, Verdict, encode_alarm
from schemas.monitor import DIMENSIONS


class DetectionStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def store_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        if verdicts:
            self._store.insert("verdicts", _verdict_rows(verdicts))

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

    def save_snapshot(
        self, topic: str, epoch: str, partition: int, position: int, state: bytes
    ) -> None:
        """Store the state after the signal at offset `position`."""
        self._store.insert_rows(
            "detector_snapshots",
            [
                {
                    "topic": topic,
                    "epoch": epoch,
                    "partition": partition,
                    "position": position,
                    "state": state,
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
        return (int(rows[0][0]), b64decode(rows[0][1])) if rows else None


def _verdict_rows(verdicts: Sequence[Verdict]) -> Columns:
    return {
        "time": [v.time_ms for v in verdicts],
        "grouping": [v.grouping for v in verdicts],
        **{d.value: [v.monitor.get(d.value, "") for v in verdicts] for d in DIMENSIONS},
        "family": [v.family.value for v in verdicts],
        "signal": [v.signal.value for v in verdicts],
        "state": [v.state.value for v in verdicts],
        "log_evidence": [v.log_evidence for v in verdicts],
        "log_threshold": [v.log_threshold for v in verdicts],
        "baseline_count": [v.baseline.count for v in verdicts],
        "baseline_total": [v.baseline.total for v in verdicts],
        "baseline_low": [v.baseline_low for v in verdicts],
        "baseline_high": [v.baseline_high for v in verdicts],
        "current_count": [v.current.count for v in verdicts],
        "current_total": [v.current.total for v in verdicts],
        "change_time": [v.change_time_ms for v in verdicts],
    }
