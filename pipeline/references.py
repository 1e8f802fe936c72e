"""Keeps the references in use: fits the first of a model, fits it anew, and hands out the set.

Every worker reads the set; the one that owns the alarms fits. By itself it never fits
to answers from a time of alarm, nor while a fingerprint stands alarmed, nor where a
version is pinned. What people order, `pipeline.referencing` does.

Delivery guarantee: a reference counts once it is stored, on every worker within one
`refresh`. Until then fingerprints are taken against those before it.
"""

from __future__ import annotations

import logging

from detectors.fingerprint import fit_reference
from pipeline.config import ReferenceSettings
from pipeline.core.fingerprints import FIT, ReferenceSet
from pipeline.core.reference_history import Standing
from pipeline.errors import Unfittable
from pipeline.sinks.references import Period, ReferenceStore, Stamp, StoredReference

logger = logging.getLogger(__name__)

HOUR_MS = 3_600_000
MINUTE_MS = 60_000
#: A model that could not be fitted is tried again after so long, and then after twice that …
FIRST_RETRY_MS = 10 * MINUTE_MS
#: … and so on, up to this.
LAST_RETRY_MS = 12 * HOUR_MS


class ReferenceKeeper:
    """The references of one embedding. Calls block: the shell runs them in a thread."""

    def __init__(self, settings: ReferenceSettings, store: ReferenceStore, embedding: str) -> None:
        self._settings = settings
        self._store = store
        self._embedding = embedding
        self._stored: dict[str, StoredReference] = {}
        self._standings: dict[str, Standing] = {}
        self._stamp: Stamp | None = None
        #: When a model that could not be fitted is due again, and how long that is put off.
        self._retries: dict[str, tuple[int, int]] = {}
        self.references = ReferenceSet(embedding, 0, {})

    def refresh(self) -> None:
        """Read the set again if there is a newer reference, or an order.

        Raises:
            SinkUnavailable: ClickHouse is away; the set stays as it was.
        """
        stamp = self._store.latest(self._embedding)
        if stamp == self._stamp:
            return
        standings = self._store.read_standings(self._embedding)
        stored = self._store.load(self._embedding, standings)
        self._stamp, self._standings = stamp, standings
        self._stored = {s.request_model: s for s in stored}
        by_model = {model: s.reference for model, s in self._stored.items()}
        version = max((s.since_ms for s in standings.values()), default=0)
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
        version = max(now_ms, self._store.latest(self._embedding).next_ms)
        fitted = [f for model in due if (f := self._fit(model, version)) is not None]
        self._put_off(set(due) - {f.request_model for f in fitted}, now_ms)
        if fitted:
            # At once: they are one version of the set, and nobody may see a part of it.
            self._store.save(self._embedding, fitted)
            self.refresh()
        for each in fitted:
            logger.info("reference of %s: %d answers", each.request_model, each.reference.n)
        return fitted

    def _is_due(self, model: str, count: int, now_ms: int) -> bool:
        standing = self._standings.get(model, Standing())
        if count < self._settings.learn_answers or standing.pinned:
            return False
        if now_ms < self._retries.get(model, (0, 0))[0]:
            return False
        stored = self._stored.get(model)
        if stored is None:
            return True
        return now_ms - stored.fitted_ms >= self._settings.refit_hours * HOUR_MS

    def _put_off(self, models: set[str], now_ms: int) -> None:
        """Each of them has cost a read of all its answers, and will again."""
        self._retries = {m: r for m, r in self._retries.items() if r[0] + LAST_RETRY_MS > now_ms}
        for model in models:
            _, last_ms = self._retries.get(model, (0, FIRST_RETRY_MS // 2))
            wait_ms = min(2 * last_ms, LAST_RETRY_MS)
            self._retries[model] = (now_ms + wait_ms, wait_ms)

    def _fit(self, model: str, fitted_ms: int) -> StoredReference | None:
        period = Period(since_ms=self._standings.get(model, Standing()).reset_ms)
        try:
            return fit_model(self._store, self._settings, self._embedding, model, fitted_ms, period)
        except Unfittable as error:
            # Too many from times of alarm, or all prompts alike.
            logger.warning("no reference of %s: %s", model, error)
            return None


def fit_model(
    store: ReferenceStore,
    settings: ReferenceSettings,
    embedding: str,
    model: str,
    fitted_ms: int,
    period: Period,
) -> StoredReference:
    """Fit a reference to what is stored of a period; it is not stored yet.

    Raises:
        Unfittable: too few answers, or nothing to cross-fit in them.
        SinkUnavailable: ClickHouse is away.
    """
    samples = store.read_samples(embedding, model, settings.full_answers, period)
    if len(samples.time_ms) < settings.learn_answers:
        raise Unfittable(
            f"{len(samples.time_ms)} answers, and it takes {settings.learn_answers}"
            + ("" if period.with_alarms else " outside times of alarm")
        )
    try:
        reference = fit_reference(samples.prompts, samples.answers, FIT)
    except ValueError as error:
        raise Unfittable(str(error)) from None
    first, last = int(samples.time_ms[0]), int(samples.time_ms[-1])
    return StoredReference(model, fitted_ms, first, last, reference)
