"""References and the samples they are fitted to, in ClickHouse.

Delivery guarantee: saving the same reference again changes nothing; of two of a
model, the one that was fitted later counts.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detectors.fingerprint import FingerprintReference, from_bytes, to_bytes
from pipeline.core.answers import ANSWER_WIDTH, PROMPT_WIDTH
from pipeline.core.fingerprints import FIT
from pipeline.sinks.clickhouse import Store
from pipeline.sinks.times import to_datetime
from schemas.signal import Family

logger = logging.getLogger(__name__)

Floats32 = npt.NDArray[np.float32]

#: Reference models beyond these, by how many answers they have, get no reference.
MAX_MODELS = 500
#: An alarm that never cleared keeps its time out of references for so long.
ALARM_MS = 7 * 86_400_000


class StoredReference(NamedTuple):
    """A reference, and when it was fitted to answers of what time; milliseconds."""

    request_model: str
    fitted_ms: int
    first_ms: int
    last_ms: int
    reference: FingerprintReference


class Samples(NamedTuple):
    """n whole answers of one model, oldest first."""

    time_ms: npt.NDArray[np.int64]
    prompts: Floats32
    answers: Floats32


class ReferenceStore:
    """Calls block: the shell runs them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def count_samples(self, embedding: str) -> dict[str, int]:
        """Return how many answers of each request model are kept, of the models with most."""
        rows = self._store.rows(
            "SELECT request_model, count() FROM answer_samples"
            " WHERE embedding = {embedding:String} GROUP BY request_model"
            " ORDER BY count() DESC, request_model LIMIT {limit:UInt32}",
            {"embedding": embedding, "limit": MAX_MODELS},
        )
        return {str(model): int(count) for model, count in rows}

    def read_samples(self, embedding: str, model: str, limit: int) -> Samples:
        """Return the latest answers of a model, those from times of alarm left out."""
        table = self._store.table(
            f"""
            SELECT toUnixTimestamp64Milli(event_time) AS time_ms, prompt, answer
            FROM answer_samples AS samples FINAL
            WHERE embedding = {{embedding:String}} AND request_model = {{model:String}}
              AND length(prompt) = {PROMPT_WIDTH} AND length(answer) = {ANSWER_WIDTH}
              AND NOT arrayExists(
                  span -> event_time BETWEEN span.1 AND span.2,
                  (SELECT groupArray((since, until)) FROM (
                      SELECT min(change_time) AS since,
                             if(countIf(transition = 'cleared') > 0, max(time),
                                min(time) + toIntervalMillisecond({ALARM_MS})) AS until
                      FROM alarms
                      WHERE monitor['request_model'] IN ('', {{model:String}})
                      GROUP BY alarm_id)))
            ORDER BY event_time DESC, event_id LIMIT {{limit:UInt32}}
            """,  # noqa: S608 — the parts are constants
            {"embedding": embedding, "model": model, "limit": limit},
        )
        table = table.take(pa.array(range(len(table) - 1, -1, -1), pa.int64()))
        return Samples(
            table["time_ms"].to_numpy().astype(np.int64),
            _vectors(table["prompt"], PROMPT_WIDTH),
            _vectors(table["answer"], ANSWER_WIDTH),
        )

    def has_open_alarm(self, now_ms: int) -> bool:
        """Return whether a fingerprint stands alarmed, and not for longer than `ALARM_MS`."""
        rows = self._store.rows(
            "SELECT count() FROM (SELECT alarm_id FROM alarms"
            " WHERE family = {family:String} AND time >= {since:DateTime64(3, 'UTC')}"
            " GROUP BY alarm_id HAVING countIf(transition = 'cleared') = 0)",
            {"family": Family.FINGERPRINT.value, "since": to_datetime(now_ms - ALARM_MS)},
        )
        return bool(rows[0][0])

    def save(self, embedding: str, references: Sequence[StoredReference]) -> None:
        """Store references, all of them or none."""
        self._store.insert_rows("references", [_to_row(embedding, each) for each in references])

    def load(self, embedding: str) -> list[StoredReference]:
        """Return the latest reference of each model.

        One that another version of Kizashi fitted, to other features, is passed over.
        """
        rows = self._store.rows(
            "SELECT request_model, toUnixTimestamp64Milli(fitted_at),"
            " toUnixTimestamp64Milli(first_time), toUnixTimestamp64Milli(last_time), reference"
            " FROM references WHERE embedding = {embedding:String}"
            " ORDER BY request_model, fitted_at DESC LIMIT 1 BY request_model",
            {"embedding": embedding},
        )
        return [
            StoredReference(model, fitted_ms, first_ms, last_ms, reference)
            for model, fitted_ms, first_ms, last_ms, raw in rows
            if (reference := _read_reference(model, raw)) is not None
        ]

    def latest(self, embedding: str) -> int:
        """Return when the latest reference was fitted, milliseconds; 0 when there is none."""
        rows = self._store.rows(
            "SELECT toUnixTimestamp64Milli(max(fitted_at)) FROM references"
            " WHERE embedding = {embedding:String}",
            {"embedding": embedding},
        )
        return int(rows[0][0])


def _to_row(embedding: str, stored: StoredReference) -> dict[str, Any]:
    return {
        "request_model": stored.request_model,
        "embedding": embedding,
        "fitted_at": to_datetime(stored.fitted_ms),
        "answers": stored.reference.n,
        "first_time": to_datetime(stored.first_ms),
        "last_time": to_datetime(stored.last_ms),
        "reference": b64encode(to_bytes(stored.reference)).decode(),
    }


def _read_reference(model: str, raw: str) -> FingerprintReference | None:
    try:
        reference = from_bytes(b64decode(raw))
    except ValueError as error:
        logger.warning("the reference of %s is fitted anew: %s", model, error)
        return None
    directions = (reference.directions, reference.prompt_directions)
    shape = (*reference.coefficients.shape, *directions)
    if shape != (PROMPT_WIDTH, ANSWER_WIDTH, FIT.directions, FIT.prompt_directions):
        logger.warning("the reference of %s is fitted anew: it is of shape %s", model, shape)
        return None
    return reference


def _vectors(column: object, width: int) -> Floats32:
    flat = column.combine_chunks().flatten()  # type: ignore[attr-defined]  # an Arrow column
    vectors: Floats32 = flat.to_numpy().astype(np.float32).reshape(-1, width)
    return vectors
