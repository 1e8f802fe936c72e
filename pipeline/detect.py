"""The detectors of the signals partitions that this worker owns.

The bank is a deterministic function of a partition's log, so its snapshot and
its position are enough: after a crash it is read back and the signals after it
are taken in again, with the same verdicts and alarms.

Delivery guarantee: state exactly once; verdicts and alarms at least once, and
idempotent: the same rows, the same alarm ids. A planned change (`schemas.control`) is a
record of the log like any other, and takes effect at its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from detectors.bank import Bank, BankConfig
from detectors.bank_verdicts import VerdictTable
from pipeline.core.chunk import Record
from pipeline.sinks.detections import DetectionStore
from schemas.alarm import Alarm
from schemas.control import Effect, Reset, decode_signals

logger = logging.getLogger(__name__)


@dataclass
class _Owned:
    bank: Bank
    #: Offset of the last signal in the bank.
    position: int
    #: Time of the last snapshot, and the position that it holds.
    saved_s: float
    saved_position: int
    # What the bank has said and is not yet known to be stored and published.
    verdicts: list[VerdictTable] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


class DetectorRunner:
    """Banks by partition. Calls block: the shell runs them in a thread."""

    def __init__(
        self,
        config: BankConfig,
        store: DetectionStore,
        topic: str,
        epoch: str,
        snapshot_interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._store = store
        self._topic = topic
        #: Holds for the partitions that are assigned from now on.
        self.epoch = epoch
        self._interval_s = snapshot_interval_s
        self._clock = clock
        self._owned: dict[int, _Owned] = {}

    def forget(self, partition: int) -> None:
        """The partition was assigned anew: its state is what was last saved."""
        self._owned.pop(partition, None)

    def detect(self, partition: int, records: Sequence[Record]) -> list[Alarm]:
        """Take in signals and store verdicts and alarms; returns the alarms to publish.

        May be called again with the same records after a RetryableError. Once
        the alarms are published, `settle` must be called.
        """
        owned = self._owned.get(partition) or self._load(partition)
        for record in records:
            if record.offset > owned.position:
                self._update(owned, record)
        self._store.store_verdicts(owned.verdicts)
        self._store.store_alarms(owned.alarms)
        self._store.store_resets(owned.resets)
        self._store.store_effects(owned.effects)
        return list(owned.alarms)

    def settle(self, partition: int) -> int | None:
        """Forget what has been published; returns the offset to commit when a snapshot was due."""
        owned = self._owned[partition]
        quiet = (
            not owned.alarms
            and not owned.resets
            and self._clock() - owned.saved_s < self._interval_s
        )
        if not quiet and owned.position > owned.saved_position:
            self._store.save_snapshot(
                self._topic, self.epoch, partition, owned.position, owned.bank.write_snapshot()
            )
            owned.saved_s, owned.saved_position = self._clock(), owned.position
        owned.verdicts.clear()
        owned.alarms.clear()
        owned.resets.clear()
        owned.effects.clear()
        return None if quiet else owned.saved_position + 1

    def _update(self, owned: _Owned, record: Record) -> None:
        owned.position = record.offset
        try:
            order = decode_signals(record.value or b"")
            if isinstance(order, Reset):
                findings = owned.bank.reset(order)
                owned.resets.append(order)
            else:
                findings = owned.bank.update(order)
        except (msgspec.MsgspecError, ValueError) as error:
            # Only another program can have written it; there is nothing to keep.
            logger.warning("the signal at offset %d is none of ours: %s", record.offset, error)
            return
        owned.verdicts += findings.verdicts
        owned.alarms += findings.alarms
        owned.effects += findings.effects

    def _restore(self, partition: int, state: bytes) -> Bank:
        try:
            return Bank.restore(self._config, state)
        except ValueError as error:
            # An older version's state is worth less than a worker that starts: the monitors
            # learn anew, within a few hundred events each.
            logger.warning("the detectors of partition %d start anew: %s", partition, error)
            return Bank(self._config)

    def _load(self, partition: int) -> _Owned:
        found = self._store.load_snapshot(self._topic, self.epoch, partition)
        if found is None:
            bank, position = Bank(self._config), -1
        else:
            position, state = found
            bank = self._restore(partition, state)
        self._owned[partition] = _Owned(bank, position, self._clock(), position)
        return self._owned[partition]
