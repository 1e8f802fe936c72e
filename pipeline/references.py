"""Keeps the references in use: fits the first of a model, fits it anew, and hands out the set.

Every worker reads the set; the one that owns the alarms fits. A reference is never
fitted to answers from a time of alarm, nor while a fingerprint stands alarmed.

Delivery guarantee: a reference counts once it is stored, on every worker within one
`refresh`. Until then fingerprints are taken against those before it.
"""

from __future__ import annotations

import logging

from detectors.fingerprint import fit_reference
from pipeline.config import ReferenceSettings
from pipeline.core.fingerprints import FIT, ReferenceSet
from pipeline.sinks.references import ReferenceStore, StoredReference

logger = logging.getLogger(__name__)

HOUR_MS = 3_600_000


class ReferenceKeeper:
    """The references of one embedding. Calls block: the shell runs them in a thread."""

    def __init__(self, settings: ReferenceSettings, store: ReferenceStore, embedding: str) -> None:
        self._settings = settings
        self._store = store
        self._embedding = embedding
        self._stored: dict[str, StoredReference] = {}
        self.references = ReferenceSet(embedding, 0, {})

    def refresh(self) -> None:
        """Read the set again if there is a newer reference.

        Raises:
            SinkUnavailable: ClickHouse is away; the set stays as it was.
        """
        version = self._store.latest(self._embedding)
        if version == self.references.version:
            return
        self._stored = {s.request_model: s for s in self._store.load(self._embedding)}
        by_model = {model: s.reference for model, s in self._stored.items()}
        self.references = ReferenceSet(self._embedding, version, by_model)

    def fit_due(self, now_ms: int) -> list[StoredReference]:
        """Fit and store the references that are due; returns them.

        Raises:
            SinkUnavailable: ClickHouse is away; all of them are due again.
        """
        counts = self._store.count_samples(self._embedding)
        due = [model for model, count in counts.items() if self._is_due(model, count, now_ms)]
        if not due or self._store.has_open_alarm(now_ms):
            # A new set starts all detectors anew, and would end an alarm that stands.
            return []
        # A set is known by its version: none may come again, whatever a clock says.
        version = max(now_ms, self.references.version + 1)
        fitted = [f for model in due if (f := self._fit(model, version)) is not None]
        if fitted:
            # At once: they are one version of the set, and nobody may see a part of it.
            self._store.save(self._embedding, fitted)
            self.refresh()
        for each in fitted:
            logger.info("reference of %s: %d answers", each.request_model, each.reference.n)
        return fitted

    def _is_due(self, model: str, count: int, now_ms: int) -> bool:
        if count < self._settings.learn_answers:
            return False
        stored = self._stored.get(model)
        if stored is None:
            return True
        return now_ms - stored.fitted_ms >= self._settings.refit_hours * HOUR_MS

    def _fit(self, model: str, fitted_ms: int) -> StoredReference | None:
        settings = self._settings
        samples = self._store.read_samples(self._embedding, model, settings.full_answers)
        if len(samples.time_ms) < settings.learn_answers:
            return None
        try:
            reference = fit_reference(samples.prompts, samples.answers, FIT)
        except ValueError as error:
            # All prompts alike, say: there is nothing to cross-fit.
            logger.warning("no reference of %s: %s", model, error)
            return None
        first, last = int(samples.time_ms[0]), int(samples.time_ms[-1])
        return StoredReference(model, fitted_ms, first, last, reference)
